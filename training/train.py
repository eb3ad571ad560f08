"""`fruitstand train`: a timm ResNet on a prepared folder, into a run folder.

The folder fills in this order: `config.json` at the start, `last.ckpt` and `metrics.csv` each epoch, then
`model.safetensors`, the pictures, and `meta.json` last: without it the run is half written.

What can be refused is refused here, before PyTorch is imported.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from fruitstand.artefacts import read_json, write_json
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.manifest import read_prepared
from fruitstand.runs import CHECKPOINT_NAME, META_NAME
from training.config import TrainConfig, resolved_precision

CONFIG_NAME = "config.json"


def train(
    config: TrainConfig, *, data_directory: Path, out: Path, resume: bool = False, overwrite: bool = False
) -> dict:
    """Train one model.

    Args:
        config: the settings.
        data_directory: a prepared folder.
        out: the run folder to make.
        resume: go on with a run that was interrupted, from its last finished epoch.
        overwrite: replace a run that is there.

    Returns:
        What `meta.json` holds.

    Raises:
        UsageError: `out` is taken, or resume does not fit what is there.
        DataError: the prepared folder is not usable.
        TrainingError: pretrained weights cannot be had, or the loss is no number any more.
    """
    data = read_prepared(data_directory)
    for split in ("train", "val"):
        data.split(split)
    if not resume:
        _claim_new(out, overwrite=overwrite)
    config = replace(config, precision=resolved_precision(config.precision))
    record = {
        "config": config.to_dict(),
        "data": str(data.directory.resolve()),
        "manifest": data.manifest_sha256,
    }
    if resume:
        _claim_interrupted(out, record)
    else:
        write_json(out / CONFIG_NAME, record)

    from training.fit import fit

    return fit(config, data, out, resume=resume)


def _claim_new(out: Path, *, overwrite: bool) -> None:
    """Make an empty run folder, or say why that cannot be."""
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        if not overwrite:
            raise UsageError(
                f"{out}: exists already; go on with --resume, replace it with --overwrite, or rename it"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def _claim_interrupted(out: Path, record: dict) -> None:
    """Take over a run that was interrupted, or say why that cannot be."""
    if (out / META_NAME).is_file():
        raise UsageError(f"{out}: this run is finished; nothing to resume")
    if not (out / CHECKPOINT_NAME).is_file():
        raise UsageError(f"{out}: no {CHECKPOINT_NAME} to resume from; train without --resume")
    if read_json(out / CONFIG_NAME) != record:
        raise ArtefactError(
            f"{out}: was started with other settings or data, see {CONFIG_NAME};"
            " resume with the same, or start anew with --overwrite"
        )
