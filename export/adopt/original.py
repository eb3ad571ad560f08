"""An external ONNX classifier: its input, its output, and its answers one image at a time.

Layout, output and softmax are found by running the file, not from names or documentation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import torch

from fruitstand.contract import Preprocessing
from fruitstand.errors import ArtefactError
from fruitstand.model.network import scale_and_shift
from fruitstand.model.session import open_session
from fruitstand.repository.tolerances import MAX_ABS_DIFF, MAX_FP16_ABS_DIFF, MAX_SUM_ERROR

NCHW, NHWC = 1, 3
"""Layouts, as the axis of the three channels."""
INPUT_TYPES = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
_STANDARD = {"", "ai.onnx"}
_QUANTIZING = ("DequantizeLinear", "QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """The input that the file declares."""

    path: Path
    model: onnx.ModelProto
    """Includes the weights; local functions are inlined."""
    session: onnxruntime.InferenceSession
    input_name: str
    input_type: type[np.generic]
    layouts: list[int]
    """The layouts that the declared shape allows; both if all axes are dynamic."""
    fixed_batch: int | None
    """None if the batch axis is dynamic."""

    @property
    def opset(self) -> int:
        """Opset of the standard operators."""
        return max(one.version for one in self.model.opset_import if one.domain in _STANDARD)

    @property
    def is_exact(self) -> bool:
        """Whether it computes in fp32; rounding in fp16 or int8 depends on the batch size."""
        graph = self.model.graph
        is_half = any(one.data_type == onnx.TensorProto.FLOAT16 for one in graph.initializer)
        is_quantized = any(node.op_type.startswith(_QUANTIZING) for node in graph.node)
        return self.input_type is not np.float16 and not is_half and not is_quantized

    def input_size(self) -> tuple[int, int] | None:
        """Height and width in pixels; None if one of them is dynamic."""
        _, *axes = self.session.get_inputs()[0].shape
        height, width = axes[1:] if self.layouts[0] == NCHW else axes[:2]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def read_signature(path: Path) -> Signature:
    """Open an ONNX file and check that its only input is a batch of RGB images.

    Raises:
        ArtefactError: not ONNX, non-standard operators, several inputs, or no image input; says which.
    """
    try:
        model = onnx.load(path)
    except FileNotFoundError as exc:
        raise ArtefactError(f"{exc.filename or path}: no such file") from exc
    except Exception as exc:  # protobuf and onnx raise their own classes for other files
        raise ArtefactError(
            f"{path}: not an ONNX file ({' '.join(str(exc).split()) or type(exc).__name__})"
        ) from exc
    if not model.graph.node or not model.opset_import:
        raise ArtefactError(f"{path}: not an ONNX file (it contains no graph)")
    model = onnx.inliner.inline_local_functions(model)
    foreign = sorted(
        {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in _STANDARD}
    )
    if foreign:
        raise ArtefactError(
            f"{path}: uses {', '.join(foreign[:3])}, which not every server supports; export it with standard"
            " operators, and without ONNX Runtime's optimisation"
        )
    session = open_session(path)
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs)
        raise ArtefactError(f"{path}: has {len(inputs)} inputs, {names}; expected one, the images")
    (images,) = inputs
    if images.type not in INPUT_TYPES:
        raise ArtefactError(f"{path}: input {images.name} is {images.type}, allowed {', '.join(INPUT_TYPES)}")
    shape, axes = images.shape, (NCHW, NHWC) if len(images.shape) == 4 else ()
    layouts = [axis for axis in axes if shape[axis] == 3]
    layouts = layouts or [axis for axis in axes if not isinstance(shape[axis], int)]
    if not layouts:
        raise ArtefactError(f"{path}: input {images.name} is {shape}, expected [N, 3, H, W] or [N, H, W, 3]")
    return Signature(
        path=path,
        model=model,
        session=session,
        input_name=images.name,
        input_type=INPUT_TYPES[images.type],
        layouts=layouts,
        fixed_batch=shape[0] if isinstance(shape[0], int) else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Original:
    """An external model file, and the properties found by running it."""

    signature: Signature
    preprocessing: Preprocessing
    layout: int
    num_classes: int
    output_name: str
    output_rank: int
    """2, or 4 if two axes of size 1 follow the classes."""
    gives_probabilities: bool
    """Whether rows are non-negative and sum to 1; otherwise they are logits."""

    @property
    def max_abs_diff(self) -> float:
        """Largest allowed difference between the adopted file's probabilities and these."""
        return MAX_ABS_DIFF if self.signature.is_exact else MAX_FP16_ABS_DIFF

    def to_dict(self) -> dict[str, Any]:
        """The properties for the version's manifest."""
        return {
            "layout": "NCHW" if self.layout == NCHW else "NHWC",
            "input_type": np.dtype(self.signature.input_type).name,
            "batch": self.signature.fixed_batch or "dynamic",
            "opset": self.signature.opset,
            "answers": "probabilities" if self.gives_probabilities else "logits",
        }

    def probabilities(self, pixels_nhwc_u8: np.ndarray) -> np.ndarray:
        """Run (N, H, W, 3) uint8 images one at a time; returns (N, classes) float32."""
        inputs = _as_input(pixels_nhwc_u8, self.signature, self.preprocessing, self.layout)
        answers = np.concatenate([_run_one(self.signature, one, [self.output_name])[0] for one in inputs])
        answers = answers.reshape(len(answers), -1).astype(np.float32)
        if self.gives_probabilities:
            return answers
        powers = np.exp(answers - answers.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


class OriginalNetwork(torch.nn.Module):
    """Wraps the file as a PyTorch module, with which the gates compare the candidate."""

    def __init__(self, original: Original) -> None:
        super().__init__()
        self.original = original

    def forward(self, pixels_nhwc_u8: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 RGB to (N, classes) float32 probabilities."""
        return torch.from_numpy(self.original.probabilities(pixels_nhwc_u8.numpy()))


def observe(
    signature: Signature, preprocessing: Preprocessing, num_classes: int, pixels_nhwc_u8: np.ndarray
) -> Original:
    """Run the file on images to find its layout and output, and whether it returns probabilities.

    The images are (N, H, W, 3) uint8: a few, as different as possible.

    Raises:
        ArtefactError: the file fails on an image, or has no output with one row of classes per image.
    """
    path = signature.path
    for layout in signature.layouts:
        inputs = _as_input(pixels_nhwc_u8, signature, preprocessing, layout)
        try:
            outputs = [_run_one(signature, one, None) for one in inputs]
            break
        except Exception as exc:  # ONNX Runtime raises one class per status code, with no common base
            failure = exc
    else:
        raise ArtefactError(
            f"{path}: cannot be run on an image: {' '.join(str(failure).split())}"
        ) from failure
    declared = signature.session.get_outputs()
    name = _classes_output(path, declared, outputs[0], num_classes)
    position = [one.name for one in declared].index(name)
    answers = np.concatenate([one[position] for one in outputs])
    rows = answers.reshape(len(answers), -1).astype(np.float32)
    if not np.isfinite(rows).all():
        raise ArtefactError(f"{path}: answers NaN or infinity; check mean and std in --preprocessing")
    sums_to_one = rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() <= MAX_SUM_ERROR
    if not sums_to_one and _last_operator(signature.model.graph, name) in ("Sigmoid", "HardSigmoid"):
        raise ArtefactError(
            f"{path}: answers come from a sigmoid and sum to {rows.sum(axis=1).mean():.3g}: scores that are"
            " independent of each other, not one class per image; export the logits or a softmax"
        )
    return Original(
        signature=signature,
        preprocessing=preprocessing,
        layout=layout,
        num_classes=num_classes,
        output_name=name,
        output_rank=answers.ndim,
        gives_probabilities=bool(sums_to_one),
    )


def _last_operator(graph: onnx.GraphProto, output: str) -> str:
    """Type of the operator that computes an output, skipping those that only change shape or dtype."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in ("Identity", "Cast", "Flatten", "Reshape", "Squeeze"):
        node = makers.get(node.input[0])
    return "" if node is None else node.op_type


def _classes_output(path: Path, declared: list[Any], answers: list[Any], num_classes: int) -> str:
    """Name of the only output with one row of classes per image."""
    shapes = {one.name: np.shape(answer) for one, answer in zip(declared, answers, strict=True)}
    types = {one.name: one.type for one in declared}
    told = ", ".join(f"{name} {list(shape)} {types[name]}" for name, shape in shapes.items())
    rows = {
        name: shape[1]
        for name, shape in shapes.items()
        if len(shape) >= 2 and shape[0] == 1 and set(shape[2:]) <= {1} and types[name].startswith("tensor(")
    }
    fitting = [name for name, width in rows.items() if width == num_classes]
    if len(fitting) > 1:
        raise ArtefactError(
            f"{path}: several outputs could be the answer ({told}); export it with one of them"
        )
    if not fitting and len(rows) == 1:
        raise ArtefactError(
            f"{path}: answers {max(rows.values())} classes, but there are {num_classes} labels"
        )
    if not fitting:
        raise ArtefactError(
            f"{path}: no output is [N, classes] for {num_classes} labels: for one image {told}"
        )
    if types[fitting[0]] not in ("tensor(float)", "tensor(float16)", "tensor(double)"):
        raise ArtefactError(
            f"{path}: output {fitting[0]} is {types[fitting[0]]}, expected floating point numbers"
        )
    return fitting[0]


def _as_input(
    pixels_nhwc_u8: np.ndarray, signature: Signature, preprocessing: Preprocessing, layout: int
) -> np.ndarray:
    """Convert images to the file's layout and dtype; normalises them unless it takes uint8."""
    batch_nchw = pixels_nhwc_u8.transpose(0, 3, 1, 2)
    if signature.input_type is not np.uint8:
        scale, shift = scale_and_shift(preprocessing)
        batch_nchw = (batch_nchw.astype(np.float32) * scale.numpy() + shift.numpy()).astype(
            signature.input_type
        )
    return np.ascontiguousarray(batch_nchw if layout == NCHW else batch_nchw.transpose(0, 2, 3, 1))


def _run_one(signature: Signature, image: np.ndarray, names: list[str] | None) -> list[np.ndarray]:
    """Run one image; returns outputs with a batch of 1. A fixed batch is filled with copies of the image."""
    batch = np.repeat(image[None], signature.fixed_batch or 1, axis=0)
    answers = signature.session.run(names, {signature.input_name: batch})
    return [answer[:1] if np.ndim(answer) else answer for answer in answers]
