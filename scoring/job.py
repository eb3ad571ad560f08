"""The folder a scoring job writes: every finished partition once, whatever was killed in between.

    OUT/
    ├── job.json                          inputs, model and cut, pinned by the first run
    ├── predictions/part-000000.parquet   a row for each answered image; its presence says: finished
    └── errors/part-000000.parquet        a row for each image without an answer; missing when there is none

A partition's two files are written whole, the errors first. So one without predictions is scored again, and
what its errors held is replaced.
"""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fruitstand.artefacts import atomic_file, read_json, sweep_temporaries, write_json
from fruitstand.errors import ArtefactError, UsageError
from scoring.model import Answer
from scoring.partitions import Image

RECORD_NAME = "job.json"
LOCK_NAME = ".lock"
SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Job:
    """A scoring job's folder."""

    directory: Path
    model: dict[str, str | None]
    """Version and hashes that stand in every row."""

    def file(self, table: str, number: int) -> Path:
        """Where a partition of `predictions` or `errors` lies."""
        return self.directory / table / f"part-{number:06}.parquet"

    def is_finished(self, number: int) -> bool:
        """Whether a partition has all its rows."""
        return self.file("predictions", number).exists()

    def write(self, number: int, scored: Sequence[tuple[Image, Answer | str]]) -> None:
        """Write a partition."""
        answered = [(image, one) for image, one in scored if isinstance(one, Answer)]
        failed = [(image, one) for image, one in scored if isinstance(one, str)]
        errors = self.file("errors", number)
        if failed:
            import pyarrow as pa

            reasons = pa.array([_text(reason) for _, reason in failed], pa.string())
            self._write_table(errors, [image for image, _ in failed], {"error": reasons})
        else:
            errors.unlink(missing_ok=True)
        columns = _ranked_columns([one for _, one in answered])
        self._write_table(self.file("predictions", number), [image for image, _ in answered], columns)

    def count_rows(self) -> dict[str, int]:
        """Rows in each table, from the files themselves.

        Raises:
            ArtefactError: a file is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        counts = {}
        for table in ("predictions", "errors"):
            counts[table] = 0
            for path in (self.directory / table).glob("part-*.parquet"):
                try:
                    counts[table] += pq.read_metadata(path).num_rows
                except (pa.ArrowException, OSError) as exc:
                    raise ArtefactError(f"{path}: damaged ({exc}); remove it and run the job again") from exc
        return counts

    def _write_table(self, path: Path, images: Sequence[Image], columns: dict[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        def repeated(value: str | None) -> Any:
            return pa.array([value] * len(images), pa.string())

        table = pa.table(
            {
                "index": pa.array([image.index for image in images], pa.int64()),
                "path": pa.array([_text(image.path) for image in images], pa.string()),
                **columns,
                "model_version": repeated(self.model["version"]),
                "manifest_sha256": repeated(self.model["manifest_sha256"]),
            }
        )
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary)


@contextlib.contextmanager
def open_job(directory: Path, record: dict[str, Any]) -> Iterator[Job]:
    """Begin a job in a folder, or go on with the one that is there; nobody else may meanwhile.

    Args:
        directory: of the job.
        record: what the job is, JSON-ready; `inputs`, `model` and the rest have to be those it began with.

    Raises:
        UsageError: the folder holds something else, or a job with other inputs, model or settings.
        ArtefactError: another run is writing into it.
    """
    path = directory / RECORD_NAME
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory}: is no folder; choose another --out")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ArtefactError(f"{directory}: another run is writing into it; let it end") from exc
        for folder in (directory, directory / "predictions", directory / "errors"):
            sweep_temporaries(folder, of_anyone=True)
        if path.exists():
            _refuse_other(directory, read_json(path), record)
        elif foreign := sorted(one.name for one in directory.iterdir() if one.name != LOCK_NAME):
            raise UsageError(f"{directory}: holds {foreign[0]!r} and no scoring job; choose another --out")
        else:
            write_json(path, record)
        yield Job(directory, record["model"])


def _refuse_other(directory: Path, begun: dict[str, Any], now: dict[str, Any]) -> None:
    for key in now:
        if begun.get(key) != now[key]:
            raise UsageError(
                f"{directory}: holds a job with other {key} ({_short(begun.get(key))},"
                f" now {_short(now[key])}); go on with the same, or choose another --out"
            )


def _short(value: Any) -> str:
    """A value of the record for an error message; of a hash its beginning."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(one)}" for key, one in value.items())
    return value[:12] if isinstance(value, str) and len(value) == SHA256_DIGITS else str(value)


def _ranked_columns(answers: Sequence[Answer]) -> dict[str, Any]:
    """`label`, `probability` and `top_k` of the predictions, built flat: a dict an answer would cost more."""
    import pyarrow as pa

    ends = [0]
    for one in answers:
        ends.append(ends[-1] + len(one.labels))
    ranks = pa.StructArray.from_arrays(
        [
            pa.array([label for one in answers for label in one.labels], pa.string()),
            pa.array([value for one in answers for value in one.probabilities], pa.float32()),
        ],
        ["label", "probability"],
    )
    return {
        "label": pa.array([one.labels[0] for one in answers], pa.string()),
        "probability": pa.array([one.probabilities[0] for one in answers], pa.float32()),
        "top_k": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), ranks),
    }


def _text(value: str) -> str:
    """A file name may hold bytes that are no UTF-8; they are written as escapes."""
    return value.encode("utf-8", "backslashreplace").decode()
