"""`fruitstand train`: train a timm model on a prepared folder and write a run folder.

The files appear in this order: `config.json`, `augmentation.png` (the first augmented batch), `last.ckpt`
every minute, `metrics.csv` each epoch, `model.safetensors`, the plots, and `meta.json` last. A folder without
`meta.json` is an unfinished run.

This module checks the arguments before PyTorch is imported. With several processes only the first one writes
to the folder. `--devices N` starts the others, or torchrun starts all of them:

    torchrun --nproc-per-node 2 -m fruitstand train --data data/fruits --out runs/first
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from fruitstand.artefacts import read_json, sweep_temporaries, write_json
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.manifest import read_prepared
from fruitstand.runs import CHECKPOINT_NAME, META_NAME, Run, read_run
from training.fit.config import TrainConfig, resolved_precision, with_settings

CONFIG_NAME = "config.json"


def train(
    config: TrainConfig,
    *,
    data_directory: Path,
    out: Path,
    finetune_from: Path | None = None,
    devices: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> dict | None:
    """Train one model; the options are those of `fruitstand train`.

    Returns:
        The content of `meta.json`; None in every process but the first.

    Raises:
        UsageError: `out` is taken, there is nothing to resume, or the settings do not fit the machine.
        DataError: the prepared folder is not usable.
        ArtefactError: the run to start from or to resume is not usable.
        TrainingError: pretrained weights cannot be downloaded, or the loss became infinite or NaN.
    """
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    if devices < 1:
        raise UsageError(f"--devices: got {devices}, allowed 1 or more")
    data = read_prepared(data_directory)
    for split in ("train", "val"):
        data.split(split)
    if config.weights and not (
        resume or config.weights.startswith("hf-hub:") or Path(config.weights).is_file()
    ):
        raise UsageError(f"--weights {config.weights}: no such file; give one, or hf-hub:OWNER/NAME")
    source = None if finetune_from is None else _source(finetune_from, config, out)
    config = replace(config, precision=resolved_precision(config.precision))
    replaced = out.with_name(f"{out.name}.replaced")
    first = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0
    if first:
        record = {
            "config": config.to_dict(),
            "data": str(data.directory.resolve()),
            "manifest": data.manifest_sha256,
            "finetune_from": None if source is None else str(source.directory.resolve()),
            "devices": devices,
        }
        if resume:
            _claim_interrupted(out, record)
            sweep_temporaries(out)
        else:
            record["replaces"] = _make_room(out, replaced, overwrite=overwrite)
            write_json(out / CONFIG_NAME, record)
        replaces = read_json(out / CONFIG_NAME).get("replaces", False)

    from training.fit.fit import fit

    try:
        meta = fit(config, data, out, resume=resume, devices=devices, source=source)
    except BaseException:
        # There is no checkpoint yet, so nothing is lost: restore what was there before.
        if first and not (out / CHECKPOINT_NAME).exists():
            shutil.rmtree(out)
            if replaces and replaced.exists():
                replaced.rename(out)
        raise
    if first and replaces and replaced.exists():
        shutil.rmtree(replaced)
    return meta


def read_interrupted(out: Path) -> tuple[TrainConfig, Path, Path | None, int]:
    """Read how an interrupted run was started: settings, data, run to fine-tune from, devices.

    Raises:
        UsageError: there is no run.
        ArtefactError: `config.json` was written by another version.
    """
    if not (out / CONFIG_NAME).is_file():
        raise UsageError(f"{out}: no {CONFIG_NAME} in it, so there is no run to resume")
    record = read_json(out / CONFIG_NAME)
    try:
        source = record["finetune_from"]
        config = TrainConfig.from_dict(record["config"])
        return config, Path(record["data"]), None if source is None else Path(source), record["devices"]
    except (KeyError, TypeError, ValueError) as exc:
        raise ArtefactError(
            f"{out / CONFIG_NAME}: not written by this version ({exc}); start over with --overwrite"
        ) from exc


def read_resumed(
    out: Path,
    settings: list[str],
    given: dict[str, Any],
    *,
    recipe: str,
    data: Path | None,
    finetune_from: Path | None,
) -> tuple[TrainConfig, Path, Path | None, int]:
    """Read how an interrupted run was started, and check that the given flags repeat the same values.

    Raises:
        UsageError: there is no run, or a flag differs from the run's record.
        ArtefactError: `config.json` was written by another version.
        ValueError: a setting is invalid.
    """
    config, started_data, source, devices = read_interrupted(out)
    same = with_settings(replace(config, **given), settings) == config and recipe in ("auto", config.recipe)
    same = same and (data is None or data.resolve() == started_data)
    if not same or (finetune_from is not None and finetune_from.resolve() != source):
        raise UsageError(
            f"{out}: was started with other settings or data, see {CONFIG_NAME}; --resume needs only --out"
        )
    return config, started_data, source, devices


def _source(directory: Path, config: TrainConfig, out: Path) -> Run:
    """Read the run to fine-tune from, and check that it fits."""
    source = read_run(directory)
    if source.model_name != config.model_name:
        raise UsageError(
            f"--finetune-from {directory}: is a {source.model_name}, but the new run is a"
            f" {config.model_name}; add --model {source.model_name}"
        )
    if config.pretrained or config.weights:
        raise UsageError("--finetune-from excludes pretrained and --weights: give one source of weights")
    if directory.resolve() == out.resolve():
        raise UsageError(f"--finetune-from {directory}: is the same folder as --out; choose another --out")
    return source


def _make_room(out: Path, replaced: Path, *, overwrite: bool) -> bool:
    """Create an empty run folder; an existing run moves to `replaced` until the new one is finished.

    Returns:
        Whether a run was moved.
    """
    taken = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if taken:
        if not overwrite:
            raise UsageError(
                f"{out}: already exists; continue it with --resume, replace it with --overwrite, or rename it"
            )
        if not (out / CONFIG_NAME).is_file():
            raise UsageError(
                f"{out}: not a run folder, so --overwrite does not touch it; choose another --out"
            )
        if replaced.exists():
            raise UsageError(f"{replaced}: holds an earlier run that was replaced; check and remove it first")
        out.rename(replaced)
    out.mkdir(parents=True, exist_ok=True)
    return taken


def _claim_interrupted(out: Path, record: dict) -> None:
    """Check that `out` is an interrupted run that was started with the same settings."""
    if (out / META_NAME).is_file():
        raise UsageError(f"{out}: this run is finished; nothing to resume")
    if not (out / CHECKPOINT_NAME).is_file():
        raise UsageError(f"{out}: no {CHECKPOINT_NAME} to resume from; start over with --overwrite")
    started = read_json(out / CONFIG_NAME)
    if {key: started.get(key) for key in record} != record:
        raise ArtefactError(
            f"{out}: was started with other settings or data, see {CONFIG_NAME};"
            " resume with the same, or start over with --overwrite"
        )
