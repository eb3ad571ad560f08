"""`fruitstand loadtest`: run a named profile with headless Locust, check objectives and draw plots."""

import contextlib
import logging
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fruitstand.artefacts import read_json
from fruitstand.contract import FRUIT_CLASSIFIER
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.machine.provenance import provenance
from fruitstand.network.ports import free_ports
from loadtests.generator.profiles import REQUEST_BATCHES, Profile, named_profile, read_sample
from loadtests.generator.recording import ANSWERED, MISSED, REJECTED, Cell, Recording, limits_found
from loadtests.results.plots import draw
from loadtests.results.result import RESULT, Latency, LoadResult, Point, read_result
from loadtests.results.slo import find_knee, judge, judged_points, read_slo
from loadtests.server_statistics import ServedModel, StatisticsLog, breakdown

log = logging.getLogger("fruitstand.loadtest")

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
DEFAULT_SLO = Path(__file__).with_name("slo.toml")
WARM_UP_S = 1.0
"""Start of each stage that does not count; Locust updates the number of users once a second."""
STOP_S = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadTest:
    """The settings of a load test."""

    profile: str
    """One of `loadtests.generator.profiles.PROFILES`."""
    url: str
    """HOST:PORT of the server's gRPC endpoint."""
    model_name: str = FRUIT_CLASSIFIER
    """Name of the classifier."""
    images: Path
    """Folder with the images to send."""
    out: Path
    """Folder for `result.json`, `report.html` and plots."""
    slo: Path = DEFAULT_SLO
    """TOML file with the objectives."""
    stage_s: float = 10.0
    """Length of one stage of a ramp, seconds."""
    peak: str | None = None
    """Peak throughput in images/s, or file or folder with the result of a ramp."""
    request_batches: tuple[int, ...] = (1,)
    """Images in a request; with several sizes, each request draws one."""
    workers: int = 0
    """Locust workers that send requests, besides the master; 0 uses one process for both."""
    deadline_s: float = 5.0
    """Deadline of each request, seconds."""

    def __post_init__(self) -> None:
        if not set(self.request_batches) <= set(REQUEST_BATCHES):
            got = list(self.request_batches)
            raise UsageError(f"request-batches: got {got}, allowed {REQUEST_BATCHES}")

    @property
    def mean_batch(self) -> float:
        """Mean number of images in one request."""
        return sum(self.request_batches) / len(self.request_batches)


def loadtest(test: LoadTest) -> LoadResult:
    """Run one profile; write `result.json`, `report.html` and plots.

    Returns:
        The result; its `slo` tells whether the objectives were met.

    Raises:
        UsageError: bad input, or no server that answers.
        FruitstandError: Locust failed.
    """
    peak = _peak(test.peak)
    profile = named_profile(test.profile, stage_s=test.stage_s, peak=peak)
    objectives = read_slo(test.slo, test.profile)
    sample = read_sample(test.images, 1)
    with ServedModel(test.url, test.model_name, behind_gateway=True) as model:
        model.answer(sample[0])
        test.out.mkdir(parents=True, exist_ok=True)
        with StatisticsLog(model) as statistics:
            _run_locust(test, profile, peak)
        result = _result(test, profile, peak, model, statistics)
    result = replace(result, slo=judge(objectives, judged_points(result)))
    result.write(test.out / RESULT)
    draw(result, test.out)
    return result


def _peak(given: str | None) -> float | None:
    """Parse a number, or read the knee from the result of a ramp."""
    if given is None:
        return None
    with contextlib.suppress(ValueError):
        return float(given)
    knees = read_result(Path(given)).knees
    if not knees:
        raise UsageError(f"{given}: has no knee; give the result of --profile ramp")
    return knees[0].images_per_s


def _run_locust(test: LoadTest, profile: Profile, peak: float | None) -> None:
    """Run Locust in one process, or as a master and its workers."""
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", test.url]
    command += [
        "--model",
        test.model_name,
        "--images",
        str(test.images),
        "--load",
        test.profile,
        "--stage-s",
        str(test.stage_s),
    ]
    command += ["--deadline-s", str(test.deadline_s), "--stop-timeout", str(STOP_S)]
    command += [] if peak is None else ["--peak", str(peak)]
    tags = ["--tags", *(f"batch-{size}" for size in test.request_batches)]
    port = str(free_ports(1)[0])
    with contextlib.ExitStack() as processes, (test.out / "locust.log").open("w") as output:
        for _ in range(test.workers):
            worker = [*command, "--worker", "--master-host", "127.0.0.1", "--master-port", port, *tags]
            process = subprocess.Popen(worker, stdout=output, stderr=output)
            processes.callback(_end, process)
        if test.workers:
            command += ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
            command += ["--expect-workers", str(test.workers), "--expect-workers-max-wait", str(STOP_S)]
        command += ["--headless", "--only-summary", "--html", str(test.out / "report.html")]
        command += ["--recording", str(test.out / "recording.json"), "--exit-code-on-error", "0", *tags]
        seconds = sum(stage.seconds for stage in profile.stages)
        log.info("locust: profile %s, %.0f s", test.profile, seconds)
        process = subprocess.Popen(command, stdout=output, stderr=output)
        processes.callback(_end, process)
        try:
            status = process.wait(seconds + 4 * STOP_S)
        except subprocess.TimeoutExpired as exc:
            raise FruitstandError(f"locust did not finish; see {test.out / 'locust.log'}") from exc
    if status:
        raise FruitstandError(f"locust exited with status {status}; see {test.out / 'locust.log'}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process to exit, and kill it if it does not; workers exit with their master."""
    try:
        process.wait(STOP_S if process.poll() is None else 0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _result(
    test: LoadTest, profile: Profile, peak: float | None, model: ServedModel, statistics: StatisticsLog
) -> LoadResult:
    """Build the result from the generator's recording and the server's statistics."""
    raw = read_json(test.out / "recording.json")
    recording, stages = Recording.from_dict(raw), raw["stages"]
    points = [_point(test, profile.loop, stage, recording, model, statistics) for stage in stages]
    reasons = sorted({reason for point in points for reason in point.generator_limits})
    served, calls = statistics.total().get(model.name), recording.total().outcomes
    knee = find_knee(points) if test.profile in ("ramp", "break") else None
    return LoadResult(
        tool="locust",
        **provenance(),
        server_version=model.server_version,
        settings={
            "profile": test.profile,
            "loop": profile.loop,
            "stage_s": test.stage_s,
            "peak": peak,
            "request_batches": list(test.request_batches),
            "workers": test.workers,
            "deadline_s": test.deadline_s,
        },
        points=points,
        knees=[knee] if knee else [],
        over_time=_over_time(stages, recording),
        generator={"limited": bool(reasons), "reasons": reasons},
        accounted={
            "num_calls": calls.total(),
            "num_rejected": calls[REJECTED],
            "num_unanswered": calls.total() - calls[ANSWERED],
            "num_served": served.num_requests + served.num_failed if served else None,
        },
    )


def _point(
    test: LoadTest,
    loop: str,
    stage: dict[str, float],
    recording: Recording,
    model: ServedModel,
    statistics: StatisticsLog,
) -> Point:
    """Measure one stage without its warm-up."""
    start, end = int(stage["start"] + WARM_UP_S) + 1, int(stage["end"])
    cell, seconds = recording.window(start, end), max(1, end - start)
    each = [recording.window(second, second + 1) for second in range(start, end)]
    counters, between_s = statistics.between(start, end)
    return Point(
        loop=loop,
        load=stage["load"],
        request_batch=test.mean_batch,
        seconds=seconds,
        images_per_s=round(cell.num_images / seconds, 1),
        samples=[one.num_images for one in each],
        latency_ms=_latency(cell),
        p99_samples_ms=[_latency(one)["p99"] for one in each],
        num_requests=cell.outcomes.total(),
        num_answered=cell.outcomes[ANSWERED],
        num_rejected=cell.outcomes[REJECTED],
        num_missed=cell.outcomes[MISSED],
        steps=breakdown(counters, model.steps, between_s),
        generator_limits=limits_found(recording.health, start, end),
    )


def _latency(cell: Cell) -> Latency:
    values = {f"p{percent}": cell.percentile_ms(percent) for percent in (50, 95, 99)}
    return {key: None if value is None else round(value, 2) for key, value in values.items()}


def _over_time(stages: list[dict[str, float]], recording: Recording) -> list[dict[str, Any]]:
    if not recording.cells:
        return []
    first, rows = min(second for second, _ in recording.cells), []
    for second in range(first, max(second for second, _ in recording.cells) + 1):
        cell = recording.window(second, second + 1)
        loads = [stage["load"] for stage in stages if stage["start"] <= second + 1 and second < stage["end"]]
        rows.append(
            {
                "second": second - first,
                "load": loads[-1] if loads else 0,
                "images_per_s": cell.num_images,
                "latency_ms": _latency(cell),
                "num_unanswered": cell.outcomes.total() - cell.outcomes["answered"],
            }
        )
    return rows
