"""One form for the results of both load generators: these classes, and `result.schema.json` for files."""

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
"""Name of the result in the folder of a run."""
Latency = dict[str, float | None]
"""p50, p95 and p99 in ms; None where no call was answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One load that was measured."""

    loop: str
    """closed or open."""
    load: float
    """Requests in flight of a closed loop, images offered a second of an open one."""
    request_batch: float
    """Images in one request; the mean where they differ."""
    seconds: float
    images_per_s: float
    samples: list[float]
    """Images/s of each second, or of each round."""
    latency_ms: Latency
    p99_samples_ms: list[float | None]
    num_requests: int
    num_answered: int
    num_rejected: int = 0
    num_missed: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    """What each step of the server took, see `breakdown`; empty behind a gateway."""
    generator_limits: list[str] = field(default_factory=list)
    """Why the generator, not the server, was the limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Knee:
    """The smallest load that gives nearly the highest throughput."""

    load: float
    request_batch: float
    images_per_s: float
    p99_ms: float | None
    peak_images_per_s: float
    reached: bool
    """A higher load was tried; otherwise this is only the end of what was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """An objective, and what was measured."""

    objective: str
    limit: float
    measured: float | None
    met: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadResult:
    """A run of `loadtest` or `profile`; the first fields are its provenance."""

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
    """The generator's calls beside the server's; None where the generator hides them."""

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values, in the order of the fields."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write it; `ValidationError` is our own bug."""
        document = self.to_json()
        _validator().validate(document)
        write_json(path, document)


def read_result(path: Path) -> LoadResult:
    """Read a result: the file, or the folder of a run with one.

    Raises:
        UsageError: not there, or not a result of a load test.
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
