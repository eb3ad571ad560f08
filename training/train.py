"""`fruitstand train`: a timm ResNet on a prepared folder, into a run folder.

The folder fills in this order: `config.json` at the start, `last.ckpt` and `metrics.csv` each epoch, then
`model.safetensors`, the pictures, and `meta.json` last: without it the run is half written.

What can be refused is refused here, before PyTorch is imported.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from fruitstand.artefacts import read_json, sweep_temporaries, write_json
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
    replaced = out.with_name(f"{out.name}.replaced")
    if not resume:
        _make_room(out, replaced, overwrite=overwrite)
    config = replace(config, precision=resolved_precision(config.precision))
    record = {
        "config": config.to_dict(),
        "data": str(data.directory.resolve()),
        "manifest": data.manifest_sha256,
    }
    if resume:
        _claim_interrupted(out, record)
        sweep_temporaries(out)
    else:
        write_json(out / CONFIG_NAME, record)

    from training.fit import fit

    try:
        meta = fit(config, data, out, resume=resume)
    except BaseException:
        # Nothing was learned yet: leave the place as it was found.
        if not (out / CHECKPOINT_NAME).exists():
            shutil.rmtree(out)
            if replaced.exists():
                replaced.rename(out)
        raise
    if replaced.exists():
        shutil.rmtree(replaced)
    return meta


def _make_room(out: Path, replaced: Path, *, overwrite: bool) -> None:
    """Make an empty run folder; the run it replaces waits in `replaced` until the new one is finished."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if not overwrite:
            raise UsageError(
                f"{out}: exists already; go on with --resume, replace it with --overwrite, or rename it"
            )
        if not (out / CONFIG_NAME).is_file():
            raise UsageError(f"{out}: is no run folder, so --overwrite leaves it alone; choose another --out")
        if replaced.exists():
            raise UsageError(f"{replaced}: an earlier run was put aside there; look at it, then remove it")
        out.rename(replaced)
    out.mkdir(parents=True, exist_ok=True)


def _claim_interrupted(out: Path, record: dict) -> None:
    """Take over a run that was interrupted, or say why that cannot be."""
    if (out / META_NAME).is_file():
        raise UsageError(f"{out}: this run is finished; nothing to resume")
    if not (out / CHECKPOINT_NAME).is_file():
        raise UsageError(f"{out}: no {CHECKPOINT_NAME} to resume from; start anew with --overwrite")
    if read_json(out / CONFIG_NAME) != record:
        raise ArtefactError(
            f"{out}: was started with other settings or data, see {CONFIG_NAME};"
            " resume with the same, or start anew with --overwrite"
        )
