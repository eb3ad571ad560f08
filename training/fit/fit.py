"""One training run, from creating the model to writing `meta.json`.

`fruitstand train` reserves the run folder and calls `fit` in each process. `loop.py` has the epochs and
checkpoints, `steps.py` one optimiser step, `config.py` every setting. A small run, for a machine without GPU:

    fruitstand data prepare --source generated --out data/try --images-per-class 40
    fruitstand train --data data/try --out runs/try --model resnet10t --epochs 1
"""

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
from torchvision.utils import save_image

from fruitstand import __version__
from fruitstand.artefacts import atomic_file, sha256_file, write_json
from fruitstand.contract import Preprocessing
from fruitstand.errors import UsageError
from fruitstand.labels import labels_sha256
from fruitstand.machine.provenance import git_commit, hardware, lock_sha256
from fruitstand.manifest import PreparedData
from fruitstand.runs import CHECKPOINT_NAME, META_NAME, WEIGHTS_NAME, Run
from training.evaluate.evaluate import finish_evaluation
from training.fit.config import TrainConfig
from training.fit.loop import BEST_NAME, Loop, Progress, contiguous_state, read_checkpoint
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
from training.plots import plot_curves

NUM_PICTURES = 32
log = logging.getLogger("fruitstand.train")


def fit(
    config: TrainConfig, data: PreparedData, out: Path, *, resume: bool, devices: int, source: Run | None
) -> dict | None:
    """Train one model.

    Returns:
        The content of `meta.json`; None in every process but the first.

    Raises:
        UsageError: the settings do not fit the machine or the model.
        TrainingError: pretrained weights cannot be downloaded, or a loss or weight became infinite or NaN.
    """
    fabric = _launch(config, devices)
    # This seed is for the initial weights. Each training step seeds the generators again.
    seed_step(config.seed, 0, 0)
    model, finetuned = _model(config, data, source, resume=resume)
    config = without_refused_sizes(config, model)
    preprocessing = resolve_preprocessing(model, config.input_size, config.preprocessing)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        # Not on CPUs: gloo would exchange the statistics layer by layer. The loop copies those of rank 0.
        model = convert_sync_batchnorm(model)
    batches, loader, val_loader = _loaders(fabric, config, data, preprocessing)
    # After a kill the trackers may lack the last finished epoch, so a resumed run reports it again.
    reported_again = read_checkpoint(out / CHECKPOINT_NAME)["progress"]["history"][-1:] if resume else []
    first_epoch = int(reported_again[0]["epoch"]) if reported_again else 0
    trackers = create_trackers(config, out, first_epoch=first_epoch) if fabric.is_global_zero else []

    def on_epoch(row: dict[str, float]) -> None:
        for tracker in trackers:
            tracker.epoch(row)

    for row in reported_again:
        on_epoch(row)
    classifier = Classifier(model, preprocessing)
    loop = Loop(fabric, config, classifier, preprocessing, batches, loader, val_loader, out, on_epoch)
    if fabric.is_global_zero and not resume:
        _save_augmented_images(out, config, loop, batches, loader)
    progress = loop.run(resume=resume)
    hashes = loop.check_agreement()
    if not fabric.is_global_zero:
        return None
    meta = _finish(out, config, data, loop.evaluated, preprocessing, progress)
    processes = {"num_processes": fabric.world_size, "device": fabric.device.type, "weights_sha256": hashes}
    meta |= {"finetuned_from": finetuned, "processes": processes}
    meta = finish_evaluation(out, meta, data)  # after all of the above, which the model card shows
    meta["trackers"] = {}
    for tracker in trackers:
        meta["trackers"] |= tracker.finish(meta)
    write_json(out / META_NAME, meta)
    (out / BEST_NAME).unlink(missing_ok=True)
    return meta


def _model(
    config: TrainConfig, data: PreparedData, source: Run | None, *, resume: bool
) -> tuple[torch.nn.Module, dict[str, object] | None]:
    """Create the model and load its initial weights.

    Returns:
        The model, and the `finetuned_from` entry of `meta.json`; None for a fresh or pretrained model.
    """
    from_hub = "timm" if config.pretrained else config.weights if config.weights.startswith(HUB) else ""
    model = create_model(
        config.model_name,
        num_classes=len(data.labels),
        input_size=config.input_size,
        hub="" if resume else from_hub,  # a resumed run loads its weights from the checkpoint
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


def without_refused_sizes(config: TrainConfig, model: torch.nn.Module) -> TrainConfig:
    """Set `small_share` to 0, no epochs on smaller images, if the model accepts only its own input size."""
    small = min(config.train_size(epoch) for epoch in range(config.epochs))
    try:
        answer_black(model, small)
    except Exception:  # each model family raises errors of its own for a wrong size
        log.warning("%s takes images of one size only: small_share is set to 0", config.model_name)
        return replace(config, small_share=0.0)
    return config


def _launch(config: TrainConfig, devices: int) -> Fabric:
    """Launch Fabric on this machine's GPUs or cores; with several devices this starts the other processes."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 uses a name that PyTorch 2.15 has deprecated.
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
    share, remainder = divmod(config.batch_size, fabric.world_size * config.grad_accum_steps)
    if remainder or ((config.mixup or config.cutmix) and share % 2):
        raise UsageError(
            f"batch_size: got {config.batch_size}, allowed multiples of {fabric.world_size} processes times"
            f" {config.grad_accum_steps} grad_accum_steps; with mixup or cutmix each share must be even"
        )
    return fabric


def _loaders(
    fabric: Fabric, config: TrainConfig, data: PreparedData, preprocessing: Preprocessing
) -> tuple[ShuffledBatches, Any, Any]:
    """The training sampler, the training loader and the validation loader."""
    process = {"rank": fabric.global_rank, "world": fabric.world_size}
    rows = data.split("train")
    weights = balanced_weights(rows) if config.sampling == "balanced" else None
    batches = ShuffledBatches(len(rows), config.batch_size, config.seed, weights=weights, **process)
    with fabric.rank_zero_first(local=True):
        pixels = pixel_cache(data, preprocessing)
    train_set = SplitPixels(data, pixels, "train")
    val_set = SplitPixels(data, pixels, "val")
    return batches, train_loader(train_set, batches, workers=config.workers), eval_loader(val_set, **process)


def _save_augmented_images(
    out: Path, config: TrainConfig, loop: Loop, batches: ShuffledBatches, loader: DataLoader
) -> None:
    """Write `augmentation.png`: the augmented images of the first step."""
    batches.start_at(0)
    pixels, _ = loop.fabric.to_device(next(iter(loader)))
    generator = seed_step(config.seed, 0, 0)
    pictures = loop.step.pictures(pixels[:NUM_PICTURES], config.input_size, generator)
    with atomic_file(out / "augmentation.png") as temporary:
        save_image(pictures / 255, temporary, format="png", padding=4, pad_value=0.5)


def _finish(
    out: Path,
    config: TrainConfig,
    data: PreparedData,
    module: Classifier,
    preprocessing: Preprocessing,
    progress: Progress,
) -> dict:
    """Write the weights and the learning curves; return `meta.json` without the evaluation."""
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
        "saved_epoch": progress.best_epoch if config.keep == "best" else len(epochs) - 1,
        "epochs": epochs,
    }
