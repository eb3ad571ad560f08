"""One training run, from the first step to `meta.json`."""

import datetime
import logging
import os
import platform
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import safetensors.torch
import timm
import torch
from lightning.fabric import Fabric
from timm.layers import convert_sync_batchnorm
from torch.utils.data import DataLoader

from fruitstand import __version__
from fruitstand.artefacts import atomic_file, sha256_file, write_json
from fruitstand.contract import Preprocessing
from fruitstand.errors import UsageError
from fruitstand.labels import labels_sha256
from fruitstand.machine.provenance import git_commit, hardware, lock_sha256
from fruitstand.manifest import PreparedData
from fruitstand.runs import CHECKPOINT_NAME, META_NAME, WEIGHTS_NAME, Run
from training.evaluate.evaluate import finish_evaluation
from training.fit.checkpoint import read_checkpoint
from training.fit.config import TrainConfig
from training.fit.loop import BEST_NAME, Loop, Progress, contiguous_state
from training.fit.model import (
    HUB,
    Classifier,
    answer_black,
    create_model,
    load_from_file,
    load_from_run,
    resolve_preprocessing,
)
from training.fit.pixel_cache import (
    ShuffledBatches,
    SplitPixels,
    balanced_weights,
    eval_loader,
    pixel_cache,
    train_loader,
)
from training.fit.steps import seed_step
from training.fit.trackers import create_trackers
from training.plots import plot_curves, plot_pictures

NUM_PICTURES = 32
log = logging.getLogger("fruitstand.train")


def fit(
    config: TrainConfig, data: PreparedData, out: Path, *, resume: bool, devices: int, source: Run | None
) -> dict | None:
    """Train one model into a run folder that is ours.

    Args:
        config: the settings, precision resolved.
        data: the prepared folder.
        out: the run folder.
        resume: go on from its last checkpoint.
        devices: processes on this machine, each with a GPU or its share of the cores.
        source: a run whose weights to start from.

    Returns:
        What `meta.json` holds; None in all processes but the first.

    Raises:
        UsageError: the settings do not fit the machine or the model.
        TrainingError: pretrained weights cannot be had, or loss or weights are no numbers any more.
    """
    fabric = _launched(config, devices)
    # Those of the initial weights; each step seeds anew.
    seed_step(config.seed, 0, 0)
    model, finetuned = _model(config, data, source, resume=resume)
    config = with_sizes_it_takes(config, model)
    preprocessing = resolve_preprocessing(model, config.input_size, config.preprocessing)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        # On processors gloo would exchange statistics layer by layer; there the first process's count.
        model = convert_sync_batchnorm(model)
    batches, loader, val_loader = _loaders(fabric, config, data, preprocessing)
    # The last finished epoch is told again: the kill may have come between checkpoint and trackers.
    told = read_checkpoint(out / CHECKPOINT_NAME)["progress"]["history"][-1:] if resume else []
    first_epoch = int(told[0]["epoch"]) if told else 0
    trackers = create_trackers(config, out, first_epoch=first_epoch) if fabric.is_global_zero else []

    def on_epoch(row: dict[str, float]) -> None:
        for tracker in trackers:
            tracker.epoch(row)

    for row in told:
        on_epoch(row)

    classifier = Classifier(model, preprocessing)
    loop = Loop(fabric, config, classifier, preprocessing, batches, loader, val_loader, out, on_epoch)
    if fabric.is_global_zero and not resume:
        _picture_of_augmentation(out, config, loop, batches, loader)
    progress = loop.run(resume=resume)
    hashes = loop.check_agreement()
    if not fabric.is_global_zero:
        return None
    meta = _finish(out, config, data, loop.evaluated, preprocessing, progress)
    meta["finetuned_from"] = finetuned
    meta["processes"] = {
        "num_processes": fabric.world_size,
        "device": fabric.device.type,
        "weights_sha256": hashes,
    }
    # The model card says all of the above.
    meta = finish_evaluation(out, meta, data)
    meta["trackers"] = {}
    for tracker in trackers:
        meta["trackers"] |= tracker.finish(meta)
    write_json(out / META_NAME, meta)
    (out / BEST_NAME).unlink(missing_ok=True)
    return meta


def _model(
    config: TrainConfig, data: PreparedData, source: Run | None, *, resume: bool
) -> tuple[torch.nn.Module, dict[str, object] | None]:
    """The model before its first step, and what `meta.json` says of where its weights come from."""
    from_hub = "timm" if config.pretrained else config.weights if config.weights.startswith(HUB) else ""
    model = create_model(
        config.model_name,
        num_classes=len(data.labels),
        input_size=config.input_size,
        hub="" if resume else from_hub,  # the checkpoint has them
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
    )
    if source is not None:
        kept = load_from_run(model, source, data.labels)
        name, digest = source.directory.name, source.meta["weights_sha256"]
    elif config.weights and not from_hub:
        path = Path(config.weights)
        has_head = not resume and load_from_file(model, path)
        kept, name = len(data.labels) if has_head else 0, path.name
        digest = sha256_file(path) if path.is_file() else "not there any more"
    else:
        return model, None
    return model, {"run": name, "weights_sha256": digest, "num_classes_kept": kept}


def with_sizes_it_takes(config: TrainConfig, model: torch.nn.Module) -> TrainConfig:
    """The settings without epochs on small images where the model takes images of one size alone."""
    small = min(config.train_size(epoch) for epoch in range(config.epochs))
    try:
        answer_black(model, small)
    except Exception:  # each family has its own words and classes of error
        log.warning("%s takes no smaller images: small_share is 0", config.model_name)
        return replace(config, small_share=0.0)
    return config


def _launched(config: TrainConfig, devices: int) -> Fabric:
    """Fabric on this machine's GPUs or cores; with several devices this starts the other processes."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(
            logging.WARNING
        )  # what Lightning says of itself is no part of our log
    # Lightning 2.6 on PyTorch 2.15 uses a name that PyTorch retires.
    warnings.filterwarnings("ignore", message=".*treespec.*LeafSpec", category=FutureWarning)
    nodes = int(os.environ.get("WORLD_SIZE", 1)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fabric = Fabric(
        accelerator="auto",
        devices=devices,
        num_nodes=nodes if "LOCAL_WORLD_SIZE" in os.environ else 1,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=config.precision,
    )
    fabric.launch()
    share, left = divmod(config.batch_size, fabric.world_size * config.grad_accum_steps)
    if left or ((config.mixup or config.cutmix) and share % 2):
        raise UsageError(
            f"batch_size: got {config.batch_size}, allowed what {fabric.world_size} processes times"
            f" {config.grad_accum_steps} grad_accum_steps divide into equal (with mixup even) shares"
        )
    return fabric


def _loaders(
    fabric: Fabric, config: TrainConfig, data: PreparedData, preprocessing: Preprocessing
) -> tuple[ShuffledBatches, Any, Any]:
    """The order of the batches, the batches, and those of the validation."""
    place = {"rank": fabric.global_rank, "world": fabric.world_size}
    rows = data.split("train")
    weights = balanced_weights(rows) if config.sampling == "balanced" else None
    batches = ShuffledBatches(len(rows), config.batch_size, config.seed, weights=weights, **place)
    if config.loader == "dali":
        from training.fit.dali_loader import DaliLoader

        shared = {"device": fabric.device, "num_threads": torch.get_num_threads()}
        share = batches.batch_size // fabric.world_size
        loader = DaliLoader(data, "train", preprocessing, batches, batch_size=share, **shared)
        every = list(eval_loader(range(len(data.split("val"))), **place).sampler)
        longest = max(map(len, every), default=1)
        return batches, loader, DaliLoader(data, "val", preprocessing, every, batch_size=longest, **shared)
    with fabric.rank_zero_first(local=True):
        pixels = pixel_cache(data, preprocessing)
    train_set = SplitPixels(data, pixels, "train")
    val_set = SplitPixels(data, pixels, "val")
    return batches, train_loader(train_set, batches, workers=config.workers), eval_loader(val_set, **place)


def _picture_of_augmentation(
    out: Path, config: TrainConfig, loop: Loop, batches: ShuffledBatches, loader: DataLoader
) -> None:
    """Write `augmentation.png`: what the model is shown in its first step."""
    batches.start_at(0)
    pixels, _ = loop.fabric.to_device(next(iter(loader)))
    generator = seed_step(config.seed, 0, 0)
    pictures = loop.step.pictures(pixels[:NUM_PICTURES], config.input_size, generator)
    plot_pictures(out / "augmentation.png", pictures.round().byte().permute(0, 2, 3, 1).cpu().numpy())


def _finish(
    out: Path,
    config: TrainConfig,
    data: PreparedData,
    module: Classifier,
    preprocessing: Preprocessing,
    progress: Progress,
) -> dict:
    """Write weights and pictures; return what `meta.json` shall hold, but for the evaluation."""
    with atomic_file(out / WEIGHTS_NAME) as temporary:
        safetensors.torch.save_file(contiguous_state(module.model), temporary)
    epochs = progress.history
    plot_curves(out / "curves.png", epochs)
    seconds = sum(epoch["seconds"] for epoch in epochs)
    root = Path(__file__).parents[2]
    return {
        "fruitstand_version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "labels": data.labels,
        "labels_sha256": labels_sha256(data.labels),
        "weights_sha256": sha256_file(out / WEIGHTS_NAME),
        "data": {
            "directory": str(data.directory.resolve()),
            "source": data.source,
            "split_kind": data.split_kind,
            "manifest_sha256": data.manifest_sha256,
        },
        "git_commit": git_commit(root),
        "lock_sha256": lock_sha256(root),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "lightning": lightning.__version__,
        },
        "hardware": hardware()
        | {
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
            "num_threads": torch.get_num_threads(),
        },
        "train_s": round(seconds, 1),
        "data_wait_pct": round(
            sum(epoch["data_wait_pct"] * epoch["seconds"] for epoch in epochs) / max(seconds, 1e-9), 2
        ),
        "stopped_early": progress.stopped,
        "saved_epoch": progress.best_epoch if config.keep == "best" else len(epochs) - 1,
        "epochs": epochs,
    }
