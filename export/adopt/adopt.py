"""`fruitstand adopt`: publish an external model as the next version of a model repository.

It builds a candidate and publishes it through the same gates as a training run, with two differences: the
gates compare with the original model instead of the run's weights, and measure on a user's folder instead of
prepared data.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from export.adopt.original import OriginalNetwork, Signature, observe, read_signature
from export.adopt.rewrite import rewrite
from export.adopt.sources import (
    PAINTED,
    TIMM,
    as_prepared,
    decode_images,
    find_images,
    imagenet_labels,
    make_preprocessing,
    make_timm_model,
    painted_images,
    preprocessing_values,
    read_label_list,
    read_preprocessing,
    weights_sha256,
)
from export.gates.checks import run_torch
from export.gates.gate import MAX_SLOWDOWN
from export.onnx.graph import ServedModel, export_onnx
from export.onnx.metadata import file_metadata, set_metadata, write_model
from export.publish.candidate import Network, build_candidate
from export.publish.publish import publish
from export.publish.repository import check_same_contract, reference_version
from fruitstand.artefacts import sha256_file
from fruitstand.contract import Preprocessing
from fruitstand.errors import UsageError
from fruitstand.labels import labels_sha256
from fruitstand.repository.model_names import repository_names
from fruitstand.repository.signing import read_private_key
from fruitstand.repository.tolerances import MAX_ABS_DIFF, MIN_MARGIN
from fruitstand.runs import Run

log = logging.getLogger("fruitstand.export")

UNCHANGED = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
"""Normalisation that leaves bytes unchanged, for a model with uint8 input: (x / 255) / (1 / 255) is x."""


def adopt(
    model: str,
    *,
    repository: Path,
    labels: Path | None = None,
    preprocessing: str | None = None,
    images: Path | None = None,
    weights: Path | None = None,
    out: Path | None = None,
    sign_key: Path | None = None,
    max_slowdown: float = MAX_SLOWDOWN,
    name: str | None = None,
) -> dict[str, Any]:
    """Check an external model and publish it.

    The arguments are the options of `fruitstand adopt`.

    Returns:
        The published version's number, gates and reports, and the properties found in the model.

    Raises:
        UsageError: a flag does not fit the model.
        ArtefactError: the model cannot be adopted, or the repository serves other classes; says why.
        GateFailed: a gate missed its limit; the candidate stays in the folder.
    """
    if sign_key is not None:
        read_private_key(sign_key)
    repository_names(repository, name)
    title = model.removeprefix(TIMM) if model.startswith(TIMM) else Path(model).stem
    out = out or Path("runs", "adopted-" + "".join(c if c.isalnum() or c in "._-" else "_" for c in title))
    folder = out / PAINTED if images is None else images
    paths = painted_images(folder) if images is None else find_images(folder)
    as_run = functools.partial(_as_run, out, title, folder)
    if model.startswith(TIMM):
        run, network = _find_timm(title, labels, preprocessing, weights, as_run)
    elif weights is not None:
        raise UsageError("--weights: only for timm:NAME; an ONNX file contains its weights")
    else:
        run, network = _find_onnx(Path(model), labels, preprocessing, paths, as_run)
    check_same_contract(
        repository,
        reference_version(repository),
        labels_sha256=labels_sha256(run.labels),
        preprocessing=run.preprocessing.to_dict(),
    )
    paths, pixels = decode_images(paths, run.preprocessing)
    answers = run_torch(network.reference, pixels)
    data = as_prepared(folder, paths, run.labels, answers, is_painted=images is None)
    variants = ("fp32",) if images is None else ("fp32", "int8", "fp16")
    candidate = build_candidate(run, data, variants, network=network)
    manifest = publish(repository, candidate, max_slowdown=max_slowdown, sign_key=sign_key, name=name)
    log.info("published version %d in %s", manifest["version"], repository)
    return {key: manifest[key] for key in ("version", "gates", "reports", "serve")} | {
        "repository": str(repository),
        "adopted": run.meta["adopted"],
        "num_classes": len(run.labels),
    }


def _as_run(
    out: Path,
    name: str,
    folder: Path,
    labels: list[str],
    preprocessing: Preprocessing,
    record: dict[str, Any],
) -> Run:
    """A run for `build_candidate`; `record` describes the model in the version's manifest."""
    meta = {
        "weights_sha256": record["sha256"],
        "git_commit": None,
        "data": {"source": "adopted", "manifest_sha256": ""},
        "adopted": record,
    }
    return Run(out, name, labels, preprocessing, folder, meta)


def _find_onnx(
    path: Path, labels_file: Path | None, given: str | None, paths: list[Path], as_run: Callable[..., Run]
) -> tuple[Run, Network]:
    if labels_file is None:
        raise UsageError(
            "--labels: an ONNX file does not name its classes; give a file with one class per line"
        )
    labels, signature = read_label_list(labels_file), read_signature(path)
    preprocessing = _onnx_preprocessing(signature, given)
    _, probes = decode_images(paths[:: -(-len(paths) // 8)], preprocessing)
    black = np.zeros_like(probes[0])
    noise = np.random.default_rng(0).integers(0, 256, black.shape, dtype=np.uint8)
    probes = np.stack([*probes, noise, black, black + 255, noise // 2, 255 - noise, noise[::-1], noise // 4])
    original = observe(signature, preprocessing, len(labels), probes)
    model = rewrite(original, probes)
    properties = {one.key: one.value for one in signature.model.metadata_props}
    licence = ("license", "licence", "author")  # the version keeps the original's licence
    record = {
        "from": path.name,
        "sha256": sha256_file(path),
        **original.to_dict(),
        "licence": {key: text for key, text in properties.items() if key.lower().startswith(licence)},
    }
    run = as_run(labels, preprocessing, record)
    set_metadata(model, file_metadata(run))
    return run, Network(
        reference=OriginalNetwork(original),
        write_fp32=lambda target: write_model(model, target),
        max_abs_diff=original.max_abs_diff,
        name="original",
        min_margin=MIN_MARGIN,
        may_lack_variants=True,
    )


def _onnx_preprocessing(signature: Signature, given: str | None) -> Preprocessing:
    values, size = read_preprocessing(given), signature.input_size()
    is_timm = given is not None and given.startswith(TIMM)
    if size is None and "input_size" not in values:
        raise UsageError(
            f"{signature.path}: takes images of any size; set input_size in a file for --preprocessing"
        )
    if size is not None and tuple(values.get("input_size", size)) != size:
        if not is_timm:
            raise UsageError(f"--preprocessing: input_size {values['input_size']}, the model takes {size}")
        log.warning("%s is for %s pixels; the model takes %s", given, values["input_size"], size)
    if size is not None:
        values["input_size"] = size
    if signature.input_type is np.uint8:
        if values.keys() & UNCHANGED.keys() and not is_timm:
            log.warning("mean and std in --preprocessing are ignored: the model takes uint8")
        values |= UNCHANGED
    elif not values.keys() & UNCHANGED.keys():
        log.warning("no mean and std in --preprocessing: using ImageNet's, which fit most models")
    return make_preprocessing(values)


def _find_timm(
    name: str,
    labels_file: Path | None,
    given: str | None,
    weights: Path | None,
    as_run: Callable[..., Run],
) -> tuple[Run, Network]:
    labels = None if labels_file is None else read_label_list(labels_file)
    values = read_preprocessing(given)
    model = make_timm_model(name, weights, labels, values.get("input_size"))
    labels = labels or imagenet_labels(model)
    if len(labels) != model.num_classes:
        raise UsageError(f"--labels: {len(labels)} labels, but {name} has {model.num_classes} classes")
    preprocessing = make_preprocessing(preprocessing_values(model.pretrained_cfg) | values)
    licence = model.pretrained_cfg.get("license")
    record = {
        "from": f"{TIMM}{name}",
        "sha256": weights_sha256(model),
        "licence": {"license_weights": licence} if licence and weights is None else {},
    }
    run = as_run(labels, preprocessing, record)
    served = ServedModel(model, preprocessing).eval()
    return run, Network(
        reference=served,
        write_fp32=lambda path: export_onnx(served, preprocessing, path, file_metadata(run)),
        max_abs_diff=MAX_ABS_DIFF,
        min_margin=MIN_MARGIN,
        may_lack_variants=True,
    )
