"""Read the folder of a training run.

`meta.json` is written last: a folder without it is an unfinished run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fruitstand.artefacts import read_json, sha256_file
from fruitstand.contract import Preprocessing
from fruitstand.errors import ArtefactError, DataError, UsageError
from fruitstand.manifest import PreparedData, read_prepared

WEIGHTS_NAME = "model.safetensors"
CHECKPOINT_NAME = "last.ckpt"
META_NAME = "meta.json"
CARD_NAME = "MODEL_CARD.md"
ABSTENTION_HEADING = "## What it does not know"
"""The last section of a model card, which export writes."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training run."""

    directory: Path
    model_name: str
    """timm's name."""
    labels: list[str]
    preprocessing: Preprocessing
    data_directory: Path
    meta: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.directory / WEIGHTS_NAME


def read_run_data(run: Run, directory: Path | None) -> PreparedData:
    """Read the prepared folder of a run.

    A directory is used instead of the one the run was trained on.

    Raises:
        DataError: not a prepared folder, or the run's own was prepared again since.
        UsageError: the folder has other classes than the run.
    """
    data = read_prepared(directory or run.data_directory)
    if data.labels != run.labels:
        raise UsageError(
            f"{data.directory}: has other classes than the run ({len(data.labels)} and {len(run.labels)});"
            " give a folder with the run's classes with --data"
        )
    if directory is None and data.manifest_sha256 != run.meta["data"]["manifest_sha256"]:
        raise DataError(
            f"{data.directory}: was prepared again since the run, so its splits may differ;"
            " to use it anyway, give it with --data"
        )
    return data


def read_run(directory: Path) -> Run:
    """Read a finished run and check the sha256 of its weights.

    Raises:
        ArtefactError: not a run, unfinished, or altered.
    """
    if not directory.is_dir():
        raise ArtefactError(f"{directory}: no such run; train one with 'fruitstand train --out {directory}'")
    if not (directory / META_NAME).is_file():
        raise ArtefactError(
            f"{directory}: unfinished, {META_NAME} is missing; finish it with 'fruitstand train --resume"
            f" --out {directory}'"
        )
    meta = read_json(directory / META_NAME)
    try:
        run = Run(
            directory,
            meta["config"]["model_name"],
            meta["labels"],
            Preprocessing.from_dict(meta["preprocessing"]),
            Path(meta["data"]["directory"]),
            meta,
        )
        expected = meta["weights_sha256"]
    except (KeyError, TypeError, ValueError) as exc:
        raise ArtefactError(
            f"{directory / META_NAME}: not written by this version ({exc}); train again"
        ) from exc
    if not run.weights.is_file():
        raise ArtefactError(f"{run.weights}: missing; train again with --overwrite")
    got = sha256_file(run.weights)
    if got != expected:
        raise ArtefactError(f"{run.weights}: altered, sha256 {got[:12]} but {META_NAME} says {expected[:12]}")
    return run
