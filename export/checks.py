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
MAX_MEAN_ABS_DIFF_INT8 = 0.01
"""Between int8 and fp32 probabilities, mean over images and classes, on every engine that may serve it."""
ENGINES = {"cpu": "CPUExecutionProvider", "openvino": "OpenVINOExecutionProvider"}


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


def int8_gates(
    fp32: Path, int8: Path, pixels_nhwc_u8: np.ndarray, targets: np.ndarray
) -> tuple[list[Gate], dict[str, float]]:
    """What quantisation changed on the validation images, on every engine installed here.

    Two engines may disagree on one int8 file: kernels differ by processor, and some are wrong.

    Returns:
        A gate for each engine, and a report with `top1_fp32`, and for each engine `top1_int8_<engine>` and
        `top1_agreement_<engine>`, 0 to 1.
    """
    expected = run_batches(open_session(fp32), pixels_nhwc_u8)
    report = {"num_images": len(targets), "top1_fp32": float(np.mean(expected.argmax(1) == targets))}
    gates = []
    for engine, provider in ENGINES.items():
        if provider not in onnxruntime.get_available_providers():
            continue
        got = run_batches(open_session(int8, engine), pixels_nhwc_u8)
        difference = np.abs(got - expected).mean()
        gates.append(at_most(f"int8_vs_fp32_{engine}", difference, MAX_MEAN_ABS_DIFF_INT8))
        report[f"top1_int8_{engine}"] = float(np.mean(got.argmax(1) == targets))
        report[f"top1_agreement_{engine}"] = float(np.mean(got.argmax(1) == expected.argmax(1)))
    return gates, report
