"""The commands `fruitstand loadtest`, `profile`, `diagnose` and `tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fruitstand.cli_options import Json, Repository, ServedName, Url, needs, print_json
from fruitstand.errors import UsageError
from fruitstand.repository.model_names import DEFAULT_NAME, names_for

if TYPE_CHECKING:
    from loadtests.results.result import LoadResult

Images = Annotated[Path, typer.Option(help="Folder with the images to send.")]


def loadtest(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for the result, the report and the plots.")],
    profile: Annotated[str, typer.Option(help="ramp, break, steady, spike or soak.")] = "ramp",
    url: Url = "127.0.0.1:8001",
    name: ServedName = DEFAULT_NAME,
    slo: Annotated[Path | None, typer.Option(help="TOML file; default: loadtests/slo.toml.")] = None,
    peak: Annotated[
        str | None, typer.Option(help="Peak throughput in images/s, or the result of a ramp.")
    ] = None,
    request_batches: Annotated[
        str, typer.Option(help="Images in a request; with several sizes (1,8) each request draws one.")
    ] = "1",
    stage_s: Annotated[float, typer.Option(help="Length of one stage, seconds.")] = 10.0,
    workers: Annotated[
        int, typer.Option(min=0, help="Locust workers that send; 0 sends from the main process.")
    ] = 0,
    deadline_s: Annotated[float, typer.Option(min=0.1, help="Deadline of each request, seconds.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Run a load profile with Locust; exit 1 if it misses an objective of the SLO file."""
    with needs("loadtest"):
        from loadtests.loadtest import DEFAULT_SLO, LoadTest
        from loadtests.loadtest import loadtest as run_loadtest

        test = LoadTest(
            profile=profile,
            url=url,
            model_name=names_for(name).classifier,
            images=images,
            out=out,
            slo=slo or DEFAULT_SLO,
            stage_s=stage_s,
            peak=peak,
            request_batches=numbers("request-batches", request_batches),
            workers=workers,
            deadline_s=deadline_s,
        )
        result = run_loadtest(test)
    if as_json:
        print_json(result.to_json())
    else:
        _print_points(result)
        for one in result.slo or []:
            met = "met" if one.met else "MISSED"
            print(f"{met}: {one.objective} {_number(one.measured)}, objective {one.limit:g}")
        print(f"report: {out / 'report.html'}")
    if not all(one.met for one in result.slo or []):
        raise typer.Exit(1)


def profile(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for the result and the plots.")],
    url: Url = "127.0.0.1:8001",
    name: ServedName = DEFAULT_NAME,
    loads: Annotated[
        str, typer.Option(help="Requests in flight, such as 1,8, or per second, such as 100/s.")
    ] = "1,4,16,64",
    request_batches: Annotated[str, typer.Option(help="Images in a request, such as 1,8.")] = "1,8,32",
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each load.")] = 3,
    seconds: Annotated[float, typer.Option(help="Length of a measurement, seconds.")] = 6.0,
    baseline: Annotated[
        Path | None, typer.Option(help="Result to compare with; exit 1 if throughput is lower.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sweep loads and request batches with perf_analyzer."""
    with needs("loadtest"):
        from loadtests.results.baseline import compare
        from loadtests.results.result import read_result
        from loadtests.sweep import profile as run_profile

        reference = read_result(baseline) if baseline is not None else None
        result = run_profile(
            url=url,
            model_name=names_for(name).classifier,
            images=images,
            out=out,
            loads=loads,
            request_batches=numbers("request-batches", request_batches),
            rounds=rounds,
            seconds=seconds,
        )
        kept = compare(reference, result) if reference is not None else []
    if as_json:
        print_json({**result.to_json(), "baseline": kept})
    else:
        _print_points(result)
        for row in kept:
            verdict = "kept" if row["ok"] else "SLOWER"
            unit = "in flight" if row["loop"] == "closed" else "images/s offered"
            load = f"{row['load']:g} {unit}, batch {row['request_batch']:g}"
            print(f"{verdict}: {load}: {row['ratio']} x baseline, tolerance {row['tolerance']:.0%}")
        print(f"result: {out / 'result.json'}")
    if not all(row["ok"] for row in kept):
        raise typer.Exit(1)


def diagnose(
    url: Url = "127.0.0.1:8001",
    name: ServedName = DEFAULT_NAME,
    seconds: Annotated[float, typer.Option(help="How long to watch the load.")] = 10.0,
    num_cores: Annotated[
        int | None, typer.Option(min=1, help="Cores of the server's machine, if it is not this one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find out what limits the throughput of a server under load."""
    with needs("loadtest"):
        from loadtests.diagnose import diagnose as run_diagnose

        result = run_diagnose(
            url, model_name=names_for(name).classifier, seconds=seconds, num_cores=num_cores
        )
    if as_json:
        print_json(result)
        return
    print(f"{result['images_per_s']:.1f} images/s, {result['in_flight']:.1f} requests in flight")
    for step in result["steps"]:
        times = ", ".join(f"{name.replace('_', ' ')} {ms:.2f} ms" for name, ms in step["mean_ms"].items())
        print(f"{step['name']}: {step['mean_batch']:.1f} images a batch, busy {step['busy']:.0%}; {times}")
    for one in result["findings"]:
        print(f"{one['model']}: {one['words']}\n    {one['remedy']}")


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """Parse positive whole numbers separated by commas.

    Raises:
        UsageError: the text is something else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise UsageError(f"--{flag}: got {text!r}, expected positive whole numbers, such as 1,8,32")
    return tuple(int(word) for word in words)


def _print_points(result: "LoadResult") -> None:
    unit = {"closed": "in flight", "open": "offered/s"}[result.points[0].loop]
    latencies = " ".join(f"{name:>8}" for name in ("p50 ms", "p95 ms", "p99 ms"))
    print(f"{unit:>10} {'batch':>6} {'images/s':>9} {latencies} {'unanswered':>11}")
    for point in result.points:
        latency = " ".join(f"{_number(point.latency_ms[name]):>8}" for name in ("p50", "p95", "p99"))
        print(
            f"{point.load:10.0f} {point.request_batch:6g} {point.images_per_s:9.1f}"
            f" {latency} {point.num_requests - point.num_answered:11}"
        )
    for knee in result.knees:
        words = "knee" if knee.reached else "no knee: still growing"
        print(
            f"{words} at {knee.load:.0f}: {knee.images_per_s:.1f} images/s, p99"
            f" {_number(knee.p99_ms)} ms (request batch {knee.request_batch:g})"
        )
    for reason in result.generator["reasons"]:
        print(f"the load generator, not the server, was the limit: {reason}")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def tune(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for the result; an interrupted search in it continues.")],
    p99_ms: Annotated[float, typer.Option(help="p99 latency budget, ms.")],
    repository: Repository = Path("model_repository"),
    in_flight: Annotated[int, typer.Option(help="Requests in flight.")] = 64,
    request_batch: Annotated[int, typer.Option(help="Images in a request.")] = 1,
    trials: Annotated[int, typer.Option(help="Number of settings to try.")] = 24,
    seconds: Annotated[float, typer.Option(help="Seconds of load for each trial.")] = 6.0,
    as_json: Json = False,
) -> None:
    """Find the settings with the most images/s within a p99 budget; `models configure` applies them."""
    with needs("tune"):
        from loadtests.tune import Search
        from loadtests.tune import tune as run_tune

        search = Search(
            p99_ms=p99_ms, in_flight=in_flight, request_batch=request_batch, trials=trials, seconds=seconds
        )
        result = run_tune(repository, images, out=out, search=search)
    if as_json:
        print_json(result)
        return
    print(f"{'p99 ms':>8} {'images/s':>9}  settings on the frontier")
    for one in result["summary"]["frontier"]:
        settings = ", ".join(f"{name} {value}" for name, value in one["settings"].items())
        print(f"{one['p99_ms']:8.1f} {one['images_per_s']:9.1f}  {settings}")
    ratio = result["summary"]["best_over_in_use"]
    if result["summary"]["changed"]:
        print(f"{ratio} times the images/s of the current settings, better in every round. To apply them:")
        print(f"fruitstand models configure {out / 'tuning.json'} --repository {repository}")
    else:
        print("no settings beat the current ones in every round; keep the current ones")
