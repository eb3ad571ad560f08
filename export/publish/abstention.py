"""Calibrate a candidate's KNOWN and label sets, write them into its files, and measure how good they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.gates.gate import Gate, at_most
from export.gates.validation import Validation
from export.onnx.known import COVERAGE, MAX_UNKNOWN, add_known, calibrate, fit_features
from fruitstand.artefacts import write_bytes
from fruitstand.contract import FEATURES, KNOWN, KNOWN_LIMIT, PROBABILITIES, SET_SIZE, Preprocessing
from fruitstand.images.synthetic import pattern, photograph
from fruitstand.model.session import open_session, run_batches
from fruitstand.runs import ABSTENTION_HEADING, CARD_NAME

MAX_KNOWN_DIFF = 0.02
"""Between KNOWN from a file and from NumPy, on the validation images."""
NUM_OTHERS = 64
"""Images of each kind that is no class, to measure on."""


def calibrate_files(
    directory: Path,
    engines: dict[str, str],
    training: tuple[np.ndarray, np.ndarray],
    validation: Validation,
) -> tuple[dict[str, Any], list[Gate]]:
    """Add KNOWN and SET_SIZE to the files of a candidate.

    Args:
        directory: of the candidate.
        engines: by file, fp32 first, the engine that serves it: an int8 file's features differ from fp32's.
        training: (N, H, W, 3) uint8 training images, and their (N,) classes.
        validation: the held-back images.

    Returns:
        What was calibrated, for the manifest; and for each file how far its KNOWN is from NumPy's.
    """
    pixels, targets = training
    fp32, *_ = engines
    model = fit_features(run_batches(open_session(directory / fp32), pixels, FEATURES), targets)
    files, gates = {}, []
    for name, engine in engines.items():
        session = open_session(directory / name, engine)
        features, answers = (
            run_batches(session, validation.served_nhwc_u8, output) for output in (FEATURES, PROBABILITIES)
        )
        distances = model.distances(features)
        thresholds = calibrate(distances, answers, validation.targets)
        add_known(directory / name, model, thresholds)
        got = run_batches(open_session(directory / name, engine), validation.served_nhwc_u8, KNOWN)[:, 0]
        difference = np.abs(got - thresholds.known(distances)).max()
        gates.append(at_most(f"known_{Path(name).stem}", difference, MAX_KNOWN_DIFF))
        files[name] = {
            "engine": engine,
            "distance_limit": thresholds.distance_limit,
            "slope": thresholds.slope,
            "set_threshold": thresholds.set_threshold,
        }
    record = {
        "coverage": COVERAGE,
        "max_unknown": MAX_UNKNOWN,
        "num_training_images": len(targets),
        "num_validation_images": len(validation.targets),
        "num_components": model.axes.shape[1],
        "files": files,
    }
    return record, gates


def measure_abstention(
    model: Path, engine: str, splits: dict[str, tuple[np.ndarray, np.ndarray]], preprocessing: Preprocessing
) -> dict[str, Any]:
    """How often the label sets hold the right class, and how well KNOWN tells other pictures apart.

    Args:
        model: the file that is served.
        engine: that it is served by.
        splits: by name, (N, H, W, 3) uint8 images and their (N,) classes; the last one is what others are
            held against.
        preprocessing: for the size of the other pictures.
    """
    session = open_session(model, engine)
    measured, known = {}, np.zeros(0)
    for name, (pixels, targets) in splits.items():
        known, sizes, answers = (
            run_batches(session, pixels, output) for output in (KNOWN, SET_SIZE, PROBABILITIES)
        )
        measured[name] = set_scores(known[:, 0], sizes[:, 0], answers, targets)
    others = {name: run_batches(session, one, KNOWN) for name, one in _others(preprocessing).items()}
    return {
        "splits": measured,
        "auroc": {name: auroc(known, one) for name, one in others.items()},
        "rejected": {name: float((one < KNOWN_LIMIT).mean()) for name, one in others.items()},
    }


def set_scores(
    known: np.ndarray, sizes: np.ndarray, probabilities: np.ndarray, targets: np.ndarray
) -> dict[str, float]:
    """Shares over N images of known classes.

    Args:
        known: (N,) KNOWN.
        sizes: (N,) SET_SIZE.
        probabilities: (N, C).
        targets: (N,) the right classes.
    """
    right = probabilities[np.arange(len(targets)), targets]
    ranks = (probabilities > right[:, None]).sum(axis=1)
    return {
        "num_images": len(targets),
        "coverage": float((ranks < sizes).mean()),
        "mean_set_size": float(sizes.mean()),
        "known": float((known >= KNOWN_LIMIT).mean()),
    }


def auroc(known: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> float:
    """The share of pairs in which the image of a known class has the higher KNOWN; a tie counts half."""
    inside, outside = np.sort(np.ravel(known)), np.ravel(others)
    above = len(inside) - np.searchsorted(inside, outside, side="right")
    level = len(inside) - np.searchsorted(inside, outside, side="left") - above
    return float((above + level / 2).mean() / len(inside))


def _others(preprocessing: Preprocessing) -> dict[str, np.ndarray]:
    """Pictures of no class, made by code: noise, smooth patterns, and pictures with a photograph's grain."""
    height, width = preprocessing.input_size
    random = np.random.default_rng(0)
    numbers = range(NUM_OTHERS)
    return {
        "noise": random.integers(0, 256, (NUM_OTHERS, height, width, 3), dtype=np.uint8),
        "patterns": np.stack([np.asarray(pattern(width, height, phase=one)) for one in numbers]),
        "synthetic_photographs": np.stack(
            [np.asarray(photograph(width, height, seed=one)) for one in numbers]
        ),
    }


def write_card_section(run_directory: Path, record: dict[str, Any]) -> None:
    """Say it in the run's model card, which has one where the run was evaluated; again after another export.

    Args:
        run_directory: the run.
        record: what a manifest holds under `abstention`.
    """
    card = run_directory / CARD_NAME
    if card.is_file():
        before, _, _ = card.read_text("utf-8").partition(ABSTENTION_HEADING)
        write_bytes(card, f"{before.rstrip()}\n\n{_card_section(record)}".encode())


def _card_section(record: dict[str, Any]) -> str:
    measured = record["measured"]
    splits = "".join(
        f"| {name} | {one['num_images']} | {one['coverage']:.4f} | {one['mean_set_size']:.2f} |"
        f" {one['known']:.4f} |\n"
        for name, one in measured["splits"].items()
    )
    others = "".join(
        f"| {name.replace('_', ' ')} | {value:.4f} | {measured['rejected'][name]:.4f} |\n"
        for name, value in measured["auroc"].items()
    )
    return (
        f"{ABSTENTION_HEADING}\n\n"
        f"Calibrated at export on {record['num_validation_images']} validation images, measured on"
        f" {record['file']}. The logits are divided by {record['temperature']:.2f}."
        f" Label sets are made to hold the right class in {record['coverage']:.0%} of the images.\n\n"
        "| split | images | coverage | classes in a set | known |\n|---|---:|---:|---:|---:|\n"
        f"{splits}\n"
        "| no fruit at all | AUROC of KNOWN | not known |\n|---|---:|---:|\n"
        f"{others}"
    )
