"""`last.ckpt`: all that a killed run needs to go on as if nothing had happened."""

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fruitstand.artefacts import atomic_file
from fruitstand.errors import ArtefactError, TrainingError


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        TrainingError: a weight is not finite; the checkpoint that is there stays.
    """
    check_finite(state["model"].values(), step=state["progress"]["step"])
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, onto the CPU. Nothing in it is executed.

    Raises:
        ArtefactError: not a checkpoint, or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as exc:
        raise ArtefactError(f"{path}: damaged or of another version; start anew with --overwrite") from exc


def check_finite(tensors: Iterable[torch.Tensor], *, step: int) -> None:
    """Refuse weights that are no numbers.

    Raises:
        TrainingError: one is infinite or NaN.
    """
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    if not torch.stack([tensor.isfinite().all() for tensor in floats]).all():
        raise TrainingError(
            f"the weights became infinite or NaN at step {step}; the last good checkpoint stays:"
            " train again with a smaller lr, --set lr=..."
        )
