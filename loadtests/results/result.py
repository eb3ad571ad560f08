"""The result of a load test with either generator; `result.schema.json` is the schema of its file."""

import functools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

from fruitstand.artefacts import read_json, write_json
from fruitstand.errors import ArtefactError, UsageError

SCHEMA = Path(__file__).with_name("result.schema.json")
RESULT = "result.json"
"""Name of the result file in the output folder."""
Latency = dict[str, float | None]
"""p50, p95 and p99 in ms; None if no request was answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """The measurement of one load."""

    loop: str
    """closed or open."""
    load: float
    """Requests in flight in a closed loop; images/s offered in an open loop."""
    request_batch: float
    """Mean number of images in one request."""
    seconds: float
    images_per_s: float
    samples: list[float]
    """Images/s of each second (Locust) or of each round (perf_analyzer)."""
    latency_ms: Latency
    p99_samples_ms: list[float | None]
    num_requests: int
    num_answered: int
    num_rejected: int = 0
    num_missed: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Time spent in each step of the server, see `breakdown`; empty behind a gateway."""
    generator_limits: list[str] = field(default_factory=list)
    """Reasons why the generator, not the server, was the limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Knee:
    """The smallest load with nearly the highest throughput, see `find_knee`."""

    load: float
    request_batch: float
    images_per_s: float
    p99_ms: float | None
    peak_images_per_s: float
    reached: bool
    """Whether a higher load was measured too; otherwise throughput may grow further."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """An objective and its measured value."""

    objective: str
    limit: float
    measured: float | None
    met: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadResult:
    """The result of `loadtest` or `profile`; the first fields are its provenance."""

    schema_version: int = 1
    tool: str
    hardware: dict[str, Any]
    date: str
    commit: str | None
    command: str
    server_version: str
    settings: dict[str, Any]
    points: list[Point]
    knees: list[Knee]
    over_time: list[dict[str, Any]] = field(default_factory=list)
    generator: dict[str, Any]
    slo: list[Verdict] | None = None
    accounted: dict[str, int | None] | None = None
    """The generator's count of calls and the server's; None for perf_analyzer."""

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-ready values, in the order of the fields."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Validate and write the result; a `ValidationError` is a bug of ours."""
        document = self.to_json()
        _validator().validate(document)
        write_json(path, document)


def read_result(path: Path) -> LoadResult:
    """Read a result from its file, or from the output folder of a run.

    Raises:
        UsageError: there is no file, or it is not a result of a load test.
    """
    path = path / RESULT if path.is_dir() else path
    try:
        document = read_json(path)
        _validator().validate(document)
    except ArtefactError as exc:
        raise UsageError(str(exc)) from exc
    except jsonschema.ValidationError as exc:
        raise UsageError(
            f"{path}: not a result of loadtest or profile: {exc.json_path}: {exc.message}"
        ) from exc
    document["points"] = [Point(**one) for one in document["points"]]
    document["knees"] = [Knee(**one) for one in document["knees"]]
    document["slo"] = document["slo"] and [Verdict(**one) for one in document["slo"]]
    return LoadResult(**document)


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
