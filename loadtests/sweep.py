"""`fruitstand profile`: measure loads and request batches with perf_analyzer, in several rounds."""

import csv
import logging
import re
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fruitstand.contract import FRUIT_CLASSIFIER, MAX_BATCH_SIZE
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.machine.provenance import provenance
from loadtests.generator.profiles import CLOSED, OPEN, read_sample
from loadtests.perf_analyzer import PerfAnalyzer, install_perf_analyzer, write_images
from loadtests.results.plots import draw
from loadtests.results.result import RESULT, Knee, LoadResult, Point
from loadtests.results.slo import find_knee
from loadtests.server_statistics import ServedModel, breakdown, growth

log = logging.getLogger("fruitstand.profile")

NUM_IMAGES = 256
NUM_WINDOWS = 3
"""Windows that perf_analyzer needs at least to call a measurement stable."""
ANY_SPREAD = "999"
"""Stability percentage that accepts every measurement; the rounds show the spread."""
START_S = 60.0
REFUSALS = ("Exceeds maximum queue size", "Request timeout expired")
"""Error messages of the server's queue; perf_analyzer stops at the first one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One load to measure."""

    loop: str
    requests: float
    """Requests in flight in a closed loop, requests/s in an open one."""
    request_batch: int

    @property
    def load(self) -> float:
        """Requests in flight, or images/s offered, as in the result."""
        return self.requests if self.loop == CLOSED else self.requests * self.request_batch

    @property
    def name(self) -> str:
        """Name for files and the log."""
        return f"{self.loop}-{self.requests:g}-batch-{self.request_batch}"

    def arguments(self) -> list[str]:
        """perf_analyzer's flags."""
        batch = ["-b", str(self.request_batch)]
        if self.loop == CLOSED:
            return [*batch, "--concurrency-range", f"{self.requests:g}"]
        rate = ["--request-rate-range", f"{self.requests:g}", "--request-distribution", "poisson", "--async"]
        return [*batch, *rate]


def parse_loads(text: str, request_batches: tuple[int, ...]) -> list[Cell]:
    """Parse loads such as "1,8,64" (requests in flight) or "100/s" (requests per second).

    Raises:
        UsageError: the text is something else, or a request batch is out of range.
    """
    if not all(1 <= size <= MAX_BATCH_SIZE for size in request_batches):
        raise UsageError(f"request-batches: got {list(request_batches)}, allowed 1 to {MAX_BATCH_SIZE}")
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d*(/s)?", word) for word in words):
        raise UsageError(f"loads: got {text!r}, expected such as 1,8,64 (in flight) or 100/s (per second)")
    return [
        Cell(
            loop=OPEN if word.endswith("/s") else CLOSED,
            requests=float(word.removesuffix("/s")),
            request_batch=size,
        )
        for size in request_batches
        for word in words
    ]


def profile(
    *,
    url: str,
    model_name: str = FRUIT_CLASSIFIER,
    images: Path,
    out: Path,
    loads: str = "1,4,16,64",
    request_batches: tuple[int, ...] = (1, 8, 32),
    rounds: int = 3,
    seconds: float = 6.0,
) -> LoadResult:
    """Measure every load with every batch size, in `rounds` interleaved rounds.

    In a closed loop with one image per request, perf_analyzer compares each answer with the one from before
    the load. It cannot check requests with several images.

    Raises:
        UsageError: bad input, no server that answers, or perf_analyzer cannot be installed.
        FruitstandError: perf_analyzer failed, or an answer differed under load.
    """
    cells = parse_loads(loads, request_batches)
    if seconds < NUM_WINDOWS or rounds < 1:
        raise UsageError(f"seconds, rounds: got {seconds:g}, {rounds}, allowed >= {NUM_WINDOWS} and >= 1")
    sample = read_sample(images, NUM_IMAGES)
    with (
        ServedModel(url, model_name) as model,
        TemporaryDirectory(prefix="fruitstand-profile-") as scratch,
    ):
        model.answer(sample[0])
        analyzer = install_perf_analyzer()
        plain, checked = Path(scratch, "images.json"), Path(scratch, "checked.json")
        write_images(plain, sample)
        write_images(checked, sample, expected=model.probabilities(sample))
        (out / "perf_analyzer").mkdir(parents=True, exist_ok=True)
        common = ["-m", model.name, "-i", "grpc", "-u", url, "--stability-percentage", ANY_SPREAD]
        common += ["--measurement-interval", str(round(seconds * 1e3 / NUM_WINDOWS)), "--verbose-csv"]
        measured: dict[Cell, list[dict[str, Any]]] = {}
        refused: set[Cell] = set()
        for number in range(rounds):
            for cell in cells:
                may_check = cell.request_batch == 1 and cell.loop == CLOSED
                arguments = [*common, *cell.arguments(), "--input-data", str(checked if may_check else plain)]
                table = out / "perf_analyzer" / f"{cell.name}-round-{number + 1}.csv"
                one = _measure(analyzer, model, cell, [*arguments, "-f", str(table)], table, seconds)
                if one is None:
                    log.warning("%s: the server rejected requests, so perf_analyzer stopped", cell.name)
                    refused.add(cell)
                    continue
                measured.setdefault(cell, []).append(one)
                log.info("%d/%d %s: %.1f images/s", number + 1, rounds, cell.name, one["images_per_s"])
        server_version = model.server_version
    if not set(measured) - refused:
        raise FruitstandError("the server rejected requests under every load; use smaller --loads")
    points = [_point(cell, measured[cell], seconds) for cell in cells if cell in set(measured) - refused]
    result = LoadResult(
        tool="perf_analyzer",
        **provenance(),
        server_version=server_version,
        settings={
            "loads": loads,
            "request_batches": list(request_batches),
            "rounds": rounds,
            "seconds": seconds,
            "num_images": len(sample),
            "refused": sorted(cell.name for cell in refused),
        },
        points=points,
        knees=list(_knees(points)),
        generator={"limited": False, "reasons": []},
    )
    result.write(out / RESULT)
    draw(result, out)
    return result


def _measure(
    analyzer: PerfAnalyzer,
    model: ServedModel,
    cell: Cell,
    arguments: list[str],
    table: Path,
    seconds: float,
) -> dict[str, Any] | None:
    """Run perf_analyzer once and read the server's counters; None if the server rejected requests."""
    before = model.read()
    try:
        done = analyzer.run(*arguments, timeout_s=NUM_WINDOWS * seconds + START_S)
    except subprocess.TimeoutExpired as exc:
        raise FruitstandError(
            f"perf_analyzer did not finish ({cell.name}); check that the server still answers"
        ) from exc
    counters = growth(before, model.read())
    said = done.stdout + done.stderr
    if "doesn't match expected" in said:
        raise FruitstandError(f"{cell.name}: an answer under load differs from the one to the image alone")
    if any(words in said for words in REFUSALS):
        return None
    counts = re.findall(r"Request count: (\d+)", said)
    if done.returncode or not counts or not table.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()] or done.stdout.splitlines()[-1:]
        raise FruitstandError(f"perf_analyzer measured nothing ({cell.name}): {' '.join(lines)[:300]}")
    with table.open(newline="") as file:
        row = next(csv.DictReader(file))
    rate = float(row["Inferences/Second"])
    return {
        "images_per_s": rate,
        "latency_ms": {name: float(row[f"{name} latency"]) / 1e3 for name in ("p50", "p95", "p99")},
        "num_requests": int(counts[-1]),
        # The counters also cover requests outside the windows, so derive the time from the number of images.
        "steps": breakdown(counters, model.steps, counters[model.name].num_images / rate if rate else 0),
    }


def _point(cell: Cell, samples: list[dict[str, Any]], seconds: float) -> Point:
    """Combine the rounds of a cell by their medians."""
    names = ("p50", "p95", "p99")
    middle = sorted(samples, key=lambda one: one["images_per_s"])[len(samples) // 2]
    num_requests = sum(one["num_requests"] for one in samples)
    return Point(
        loop=cell.loop,
        load=cell.load,
        request_batch=cell.request_batch,
        seconds=seconds * len(samples),
        images_per_s=round(statistics.median(one["images_per_s"] for one in samples), 1),
        samples=[round(one["images_per_s"], 1) for one in samples],
        latency_ms={
            name: round(statistics.median(one["latency_ms"][name] for one in samples), 2) for name in names
        },
        p99_samples_ms=[round(one["latency_ms"]["p99"], 2) for one in samples],
        num_requests=num_requests,
        num_answered=num_requests,
        steps=middle["steps"],
    )


def _knees(points: list[Point]) -> Iterator[Knee]:
    """Find the knee of each batch size in the closed loop."""
    for size in sorted({point.request_batch for point in points}):
        own = [point for point in points if point.request_batch == size and point.loop == CLOSED]
        if knee := find_knee(own):
            yield knee
