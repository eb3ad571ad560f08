"""What the numbers of a file have to be before it may be served; each check is a gate."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from export.gates.gate import Gate, at_least, at_most, share_or_one_image
from fruitstand.contract import CPU_ENGINES, MAX_BATCH_SIZE, PIXELS, PROBABILITIES, Preprocessing
from fruitstand.errors import ArtefactError
from fruitstand.repository.tolerances import MAX_INT8_DISTANCE, MAX_SUM_ERROR, all_but_share_or_one_image

CHECKED_BATCHES = (1, 2, 7, MAX_BATCH_SIZE)
MAX_TOP1_LOSS = 0.002
"""Share of the images that int8 and fp16 may answer worse than PyTorch."""
GPU_ENGINE = "cuda"
_PROVIDERS = {
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
    GPU_ENGINE: "CUDAExecutionProvider",
}


def open_session(path: Path, engine: str = "cpu") -> onnxruntime.InferenceSession:
    """The file in ONNX Runtime, on one of `CPU_ENGINES` or on `GPU_ENGINE`.

    Raises:
        ArtefactError: ONNX Runtime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Sessions take turns here: threads of one that wait by spinning would slow the next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=[_PROVIDERS[engine]])
    except Exception as exc:  # ONNX Runtime raises one class per status code, with no common base
        reason = " ".join(str(exc).split())
        raise ArtefactError(f"{path}: cannot be loaded by ONNX Runtime on {engine}: {reason}") from exc


def installed_engines() -> list[str]:
    """Those of `CPU_ENGINES` that this machine's ONNX Runtime has."""
    return [engine for engine in CPU_ENGINES if has_engine(engine)]


def has_engine(engine: str) -> bool:
    """Whether this machine's ONNX Runtime has an engine, and what it computes on."""
    if engine == GPU_ENGINE and not torch.cuda.is_available():
        return False
    return _PROVIDERS[engine] in onnxruntime.get_available_providers()


def run_batches(
    session: onnxruntime.InferenceSession, pixels_nhwc_u8: np.ndarray, output: str = PROBABILITIES
) -> np.ndarray:
    """(N, C) probabilities for any number of images, at most `MAX_BATCH_SIZE` a call; or another output.

    Raises:
        ArtefactError: the model fails while it computes.
    """
    parts = np.array_split(pixels_nhwc_u8, -(-len(pixels_nhwc_u8) // MAX_BATCH_SIZE))
    try:
        return np.concatenate([session.run([output], {PIXELS: part})[0] for part in parts])
    except Exception as exc:  # as above
        raise ArtefactError(f"the model cannot be run by ONNX Runtime: {' '.join(str(exc).split())}") from exc


def run_torch(model: torch.nn.Module, pixels_nhwc_u8: np.ndarray) -> np.ndarray:
    """The same from the served model in PyTorch."""
    parts = np.array_split(pixels_nhwc_u8, -(-len(pixels_nhwc_u8) // MAX_BATCH_SIZE))
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(part)).numpy() for part in parts])


def parity_gates(
    path: Path,
    model: torch.nn.Module,
    pixels_nhwc_u8: np.ndarray,
    *,
    max_abs_diff: float,
    reference: str = "torch",
) -> list[Gate]:
    """PyTorch against ONNX Runtime on real images at every batch size of `CHECKED_BATCHES`.

    Args:
        path: the ONNX file.
        model: the served model in PyTorch.
        pixels_nhwc_u8: (N, H, W, 3) uint8 images; repeated when fewer than a batch.
        max_abs_diff: the limit, on probabilities.
        reference: what `model` is called in the gates' names.
    """
    session = open_session(path)
    gates = []
    for batch_size in CHECKED_BATCHES:
        batch = np.resize(pixels_nhwc_u8, (batch_size, *pixels_nhwc_u8.shape[1:]))
        difference = np.abs(run_batches(session, batch) - run_torch(model, batch)).max()
        gates.append(at_most(f"{reference}_vs_{path.stem}_batch_{batch_size}", difference, max_abs_diff))
    return gates


def extreme_pixels_gate(path: Path, preprocessing: Preprocessing, engine: str = "cpu") -> Gate:
    """Black, white and noise: every answer is a probability distribution, without NaN or Inf."""
    shape = (*preprocessing.input_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])
    sums = run_batches(open_session(path, engine), pixels).sum(axis=1)
    worst = np.nan_to_num(np.abs(sums - 1), nan=np.inf).max()
    return at_most(f"extreme_pixels_{path.stem}", worst, MAX_SUM_ERROR)


def agreement_gate(variant: str, got: np.ndarray, expected: np.ndarray, share: float | None = None) -> Gate:
    """The share of images with the same answer.

    Args:
        variant: what gave `got`, such as fp16; the gate's name begins with it.
        got: (N, C) probabilities.
        expected: (N, C) PyTorch's.
        share: the least that is allowed, or all but one image of a small set; None for all images.
    """
    same = np.mean(got.argmax(axis=1) == expected.argmax(axis=1))
    limit = 1.0 if share is None else all_but_share_or_one_image(share, len(expected))
    return at_least(f"{variant}_top1_agreement", same, limit)


def top1_loss_gate(variant: str, got: np.ndarray, expected: np.ndarray, targets: np.ndarray) -> Gate:
    """The share of images that are answered worse than by PyTorch; arguments as above."""
    right = [int(np.sum(answers.argmax(axis=1) == targets)) for answers in (expected, got)]
    limit = share_or_one_image(MAX_TOP1_LOSS, len(targets))
    return at_most(f"{variant}_top1_loss", (right[0] - right[1]) / len(targets), limit)


def distance_gate(variant: str, got: np.ndarray, expected: np.ndarray) -> Gate:
    """Mean total variation between two answers, 0 to 1; wrong kernels show here whatever the accuracy."""
    distance = np.abs(got - expected).sum(axis=1).mean() / 2
    return at_most(f"{variant}_distance", distance, MAX_INT8_DISTANCE)
