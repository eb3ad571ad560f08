"""The output folder of a scoring job, which holds every finished partition exactly once.

    OUT/
    ├── job.json                          inputs, model and settings, pinned by the first run
    ├── predictions/part-000000.parquet   a row for each answered image; the partition is finished if it
    exists └── errors/part-000000.parquet        a row for each rejected image; missing if there is none

Both files of a partition are written atomically, the errors first. A partition without predictions is scored
again, and its errors are replaced.
"""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fruitstand.artefacts import atomic_file, read_json, sweep_temporaries, write_json
from fruitstand.errors import ArtefactError, UsageError
from fruitstand_client.command.output import escaped
from scoring.model import Answer
from scoring.partitions import Image

RECORD_NAME = "job.json"
LOCK_NAME = ".lock"
SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Job:
    """The folder of a scoring job."""

    directory: Path
    model: dict[str, str | None]
    """Version and hashes, which every row carries."""

    def file(self, table: str, number: int) -> Path:
        """Path of a partition of `predictions` or `errors`."""
        return self.directory / table / f"part-{number:06}.parquet"

    def is_finished(self, number: int) -> bool:
        """Whether all rows of a partition are written."""
        return self.file("predictions", number).exists()

    def write(self, number: int, scored: Sequence[tuple[Image, Answer | str]]) -> None:
        """Write a partition."""
        answered = [(image, one) for image, one in scored if isinstance(one, Answer)]
        failed = [(image, one) for image, one in scored if isinstance(one, str)]
        errors = self.file("errors", number)
        if failed:
            import pyarrow as pa

            reasons = pa.array([escaped(reason) for _, reason in failed], pa.string())
            self._write_table(errors, [image for image, _ in failed], {"error": reasons})
        else:
            errors.unlink(missing_ok=True)
        columns = _ranked_columns([one for _, one in answered])
        self._write_table(self.file("predictions", number), [image for image, _ in answered], columns)

    def count_rows(self) -> dict[str, int]:
        """Count the rows of each table in its files.

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
                "path": pa.array([escaped(image.path) for image in images], pa.string()),
                **columns,
                "model_version": repeated(self.model["version"]),
                "manifest_sha256": repeated(self.model["manifest_sha256"]),
            }
        )
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary)


@contextlib.contextmanager
def open_job(directory: Path, record: dict[str, Any]) -> Iterator[Job]:
    """Start a job in a folder, or continue the one that is there, with a lock on the folder.

    The record is inputs, model and settings, JSON-ready; they must equal those the job began with.

    Raises:
        UsageError: the folder holds something else, or a job with other inputs, model or settings.
        ArtefactError: another run is writing into it.
    """
    path = directory / RECORD_NAME
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory}: not a folder; choose another --out")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ArtefactError(f"{directory}: another run is writing into it; wait until it ends") from exc
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
                f" now {_short(now[key])}); continue it with the same, or choose another --out"
            )


def _short(value: Any) -> str:
    """Shorten a value of the record for an error message; hashes are cut."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(one)}" for key, one in value.items())
    return value[:12] if isinstance(value, str) and len(value) == SHA256_DIGITS else str(value)


def _ranked_columns(answers: Sequence[Answer]) -> dict[str, Any]:
    """Columns `label`, `probability` and `top_k`, built from flat lists, which is faster than from dicts."""
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
