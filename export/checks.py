"""What has to hold before a version is published: each check gives a number and its limit."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from fruitstand.contract import MAX_BATCH_SIZE, PIXELS, PROBABILITIES, Preprocessing
from fruitstand.errors import GateFailed

CHECKED_BATCHES = (1, 2, 7, MAX_BATCH_SIZE)
MAX_ABS_DIFF = 1e-4
"""Between PyTorch's and ONNX Runtime's probabilities, fp32."""
MAX_INT8_DISTANCE = 0.1
"""Total variation between int8 and fp32 probabilities, 0 to 1, mean over images, on every engine here."""
MAX_SUM_ERROR = 1e-3
"""Of an answer's probabilities from 1."""
MAX_TOP1_LOSS = 0.002
"""int8 may answer that share of the validation images worse than fp32, plus one image of a small set."""
MAX_DECODE_DIFF = 1.0
"""Of 255: mean over the pixels of the worst image, pipeline against yardstick."""
MAX_DECODE_DISAGREEMENT = 0.001
"""Share of images that get another answer because of how they were decoded."""
ENGINES = {"openvino": "OpenVINOExecutionProvider", "cpu": "CPUExecutionProvider"}
"""That may serve without a GPU, the preferred first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """One check's result."""

    name: str
    value: float
    limit: float
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)


def at_most(name: str, value: float, limit: float) -> Gate:
    """A gate that passes up to and including its limit."""
    return Gate(name=name, value=float(value), limit=limit, passed=bool(value <= limit))


def check_structure(path: Path, preprocessing: Preprocessing, num_classes: int) -> None:
    """Hold the file's inputs and outputs against the contract.

    Raises:
        GateFailed: a name, type or shape differs, or the batch axis is no symbol.
    """
    graph = onnx.load(path, load_external_data=False).graph
    height, width = preprocessing.input_size
    expected = {
        "input": (graph.input, PIXELS, onnx.TensorProto.UINT8, [height, width, 3]),
        "output": (graph.output, PROBABILITIES, onnx.TensorProto.FLOAT, [num_classes]),
    }
    for kind, (values, name, element_type, dims) in expected.items():
        if [value.name for value in values] != [name]:
            raise GateFailed(
                f"{path.name}: {kind}s are {[value.name for value in values]}, expected [{name!r}]"
            )
        tensor = values[0].type.tensor_type
        batch, *rest = tensor.shape.dim
        if not batch.dim_param:
            raise GateFailed(
                f"{path.name}: the {kind}'s batch axis is fixed to {batch.dim_value}, not symbolic"
            )
        if tensor.elem_type != element_type or [dim.dim_value for dim in rest] != dims:
            raise GateFailed(f"{path.name}: {kind} {name} is not {dims} of the contract's type")


def open_session(path: Path, engine: str = "cpu") -> onnxruntime.InferenceSession:
    """The file in ONNX Runtime, on one of `ENGINES`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=[ENGINES[engine]])


def run_batches(session: onnxruntime.InferenceSession, pixels_nhwc_u8: np.ndarray) -> np.ndarray:
    """(N, C) probabilities for any number of images, at most `MAX_BATCH_SIZE` a call."""
    parts = np.array_split(pixels_nhwc_u8, -(-len(pixels_nhwc_u8) // MAX_BATCH_SIZE))
    return np.concatenate([session.run([PROBABILITIES], {PIXELS: part})[0] for part in parts])


def parity_gates(model: torch.nn.Module, fp32: Path, pixels_nhwc_u8: np.ndarray) -> list[Gate]:
    """PyTorch against ONNX Runtime on real images at every batch size of `CHECKED_BATCHES`.

    Args:
        model: the served model in PyTorch.
        fp32: its ONNX file.
        pixels_nhwc_u8: (N, H, W, 3) uint8 images; repeated when fewer than a batch.
    """
    session = open_session(fp32)
    gates = []
    for batch_size in CHECKED_BATCHES:
        batch = np.resize(pixels_nhwc_u8, (batch_size, *pixels_nhwc_u8.shape[1:]))
        with torch.inference_mode():
            expected = model(torch.from_numpy(batch)).numpy()
        got = session.run([PROBABILITIES], {PIXELS: batch})[0]
        gates.append(at_most(f"torch_vs_onnx_batch_{batch_size}", np.abs(got - expected).max(), MAX_ABS_DIFF))
    return gates


def extreme_pixels_gate(path: Path, preprocessing: Preprocessing) -> Gate:
    """Black, white and noise: every answer is a probability distribution, without NaN or Inf."""
    shape = (*preprocessing.input_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])
    sums = run_batches(open_session(path), pixels).sum(axis=1)
    worst = np.nan_to_num(np.abs(sums - 1), nan=np.inf).max()
    return at_most(f"extreme_pixels_{path.stem}", worst, MAX_SUM_ERROR)


def decode_pixels_gate(expected: np.ndarray, decoded: np.ndarray) -> Gate:
    """How far the pipeline that will be served is from the yardstick on images of all kinds.

    Args:
        expected: (N, H, W, 3) uint8 from the yardstick.
        decoded: the same images from the pipeline.
    """
    difference = np.abs(expected.astype(np.int16) - decoded).mean(axis=(1, 2, 3)).max()
    return at_most("decode_mean_abs_diff_of_255", difference, MAX_DECODE_DIFF)


def decode_answers_gate(fp32: Path, expected: np.ndarray, decoded: np.ndarray) -> Gate:
    """Which share of the validation images is answered otherwise because of its decode; as above."""
    session = open_session(fp32)
    answers = [run_batches(session, pixels).argmax(axis=1) for pixels in (expected, decoded)]
    return at_most("decode_top1_disagreement", np.mean(answers[0] != answers[1]), MAX_DECODE_DISAGREEMENT)


def installed_engines() -> list[str]:
    """Those of `ENGINES` that this machine's ONNX Runtime has."""
    available = onnxruntime.get_available_providers()
    return [engine for engine, provider in ENGINES.items() if provider in available]


def int8_gates(
    fp32: Path, int8: Path, pixels_nhwc_u8: np.ndarray, targets: np.ndarray
) -> tuple[dict[str, list[Gate]], dict[str, float]]:
    """What quantisation changed on the validation images, on every engine installed here.

    Engines may disagree on one int8 file: kernels differ by processor, and some are wrong.

    Returns:
        The gates by engine, and a report with `top1_fp32`, and for each engine `top1_int8_<engine>` and
        `top1_agreement_<engine>`, 0 to 1.
    """
    expected = run_batches(open_session(fp32), pixels_nhwc_u8)
    report = {"num_images": len(targets), "top1_fp32": float(np.mean(expected.argmax(1) == targets))}
    gates = {}
    for engine in installed_engines():
        got = run_batches(open_session(int8, engine), pixels_nhwc_u8)
        report[f"top1_int8_{engine}"] = float(np.mean(got.argmax(1) == targets))
        report[f"top1_agreement_{engine}"] = float(np.mean(got.argmax(1) == expected.argmax(1)))
        distance = np.abs(got - expected).sum(axis=1).mean() / 2
        lost = report["top1_fp32"] - report[f"top1_int8_{engine}"]
        gates[engine] = [
            at_most(f"int8_distance_{engine}", distance, MAX_INT8_DISTANCE),
            at_most(f"int8_top1_loss_{engine}", lost, MAX_TOP1_LOSS + 1 / len(targets)),
        ]
    return gates, report
