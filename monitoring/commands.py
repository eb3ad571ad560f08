"""The command `fruitstand drift`: compare served images with those the model was trained for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fruitstand.cli_options import Ca, Cert, Json, Port, Repository, Url, connection, needs, print_json

app = typer.Typer(
    help="Compare served images with the training data.", no_args_is_help=True, rich_markup_mode=None
)

MAX_CLASSES = 1 << 16
"""More classes than any model has: a request for the top MAX_CLASSES returns all of them."""
WindowSize = Annotated[int, typer.Option(min=50, help="Number of newest samples to compare.")]


@app.command()
def report(
    samples: Annotated[Path, typer.Argument(help="Folder a server fills (FRUITSTAND_SAMPLES), or a file.")],
    out: Annotated[Path, typer.Option(help="Folder for drift.json, drift.prom and drift.html.")],
    repository: Repository = Path("model_repository"),
    reference: Annotated[
        Path | None, typer.Option(help="Clean samples; default: those in the model version.")
    ] = None,
    window_size: WindowSize = 500,
    as_json: Json = False,
) -> None:
    """Compare the newest samples with the reference of their version; exit 1 if they have drifted."""
    with needs("drift"):
        from monitoring.drift.report import drift_report

        result = drift_report(
            samples, repository=repository, reference=reference, window_size=window_size, out=out
        )
    if as_json:
        print_json(result)
    else:
        for name, one in result["measures"].items():
            verdict = "DRIFTED" if one["drifted"] else "clean"
            print(f"{verdict:8} {name:20} {one['value']:8.4f}, threshold {one['threshold']:.4f}")
        print(f"report: {out / 'drift.html'}")
    if result["drifted"]:
        raise typer.Exit(1)


@app.command()
def watch(
    samples: Annotated[Path, typer.Argument(help="Folder that servers fill (FRUITSTAND_SAMPLES).")],
    out: Annotated[Path, typer.Option(help="Folder for drift.json, drift.prom and drift.html.")],
    repository: Repository = Path("model_repository"),
    reference: Annotated[
        Path | None, typer.Option(help="Clean samples; default: those in the model version.")
    ] = None,
    window_size: WindowSize = 500,
    interval_s: Annotated[float, typer.Option(min=1, help="Seconds between reports.")] = 600.0,
    port: Port = 9102,
) -> None:
    """Write a report at an interval, and serve the newest: /metrics for Prometheus, / as a web page."""
    with needs("drift"):
        from monitoring.drift.watch import watch_drift

        watch_drift(
            samples,
            repository=repository,
            reference=reference,
            window_size=window_size,
            out=out,
            interval_s=interval_s,
            port=port,
        )


@app.command()
def record(
    images: Annotated[list[str], typer.Argument(help="Files, folders or patterns.")],
    out: Annotated[Path, typer.Option(help="File to write, such as window.npz.")],
    url: Url = "127.0.0.1:8001",
    repository: Repository = Path("model_repository"),
    keep_images: Annotated[int, typer.Option(min=0, help="Number of images whose pixels to keep.")] = 0,
    ca: Ca = None,
    cert: Cert = None,
    as_json: Json = False,
) -> None:
    """Send images to a server and write their samples, as a reference or as a window to compare.

    The API key comes from the environment variable FRUITSTAND_API_KEY. It is sent only over TLS, which --ca
    or --cert switches on.
    """
    with needs("client"):
        from fruitstand_client.command.sources import find_images

        paths = [one for one in find_images(images) if isinstance(one, Path)]
    with needs("drift"):
        from fruitstand.repository.model_names import repository_names
        from monitoring.drift.record import record_samples

        model = repository_names(repository).classifier
        answers = _ask(url, model, paths, ca, cert)
        result = record_samples(paths, answers, repository=repository, out=out, num_kept=keep_images)
    if as_json:
        print_json(result)
    else:
        print(f"{out}: {result['num_samples']} samples of version {result['version']}")


def _ask(
    url: str, model: str, paths: list[Path], ca: Path | None, cert: Path | None
) -> Iterator[tuple[int, dict[str, float], float | None]]:
    """For each image, the version that answered, the probabilities by label, and KNOWN if there is one."""
    from fruitstand.progress import track
    from fruitstand_client import Client

    with Client(url, model=model, **connection(url, ca, cert)) as client:
        answers = client.classify_stream(paths, top_k=MAX_CLASSES)
        for one in track(answers, total=len(paths), description="record"):
            if one.failure is not None:
                raise one.failure
            by_label = {rank.label: rank.probability for rank in one.top_k}
            yield int(one.model_version or 0), by_label, one.known
