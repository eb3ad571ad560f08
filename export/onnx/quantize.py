"""int8: static quantisation in QDQ form, unsigned activations and signed per-channel weights."""

import contextlib
import copy
import errno
import io
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    create_calibrator,
)
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from export.onnx.metadata import set_metadata, write_model
from fruitstand.contract import PIXELS
from fruitstand.errors import ArtefactError
from fruitstand.model.session import create_session
from fruitstand.progress import track

MIN_INPUT_CHANNELS = 32
"""Convolutions with fewer a group stay fp32: stem and depthwise. See docs/decisions/quantisation.md."""
# The normalisation's addition is among the additions: without either, OpenVINO's AVX2 kernels answer
# wrongly. The gates in export/onnx/int8.py notice.
QUANTIZED_OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "MaxPool", "GlobalAveragePool", "Relu"]
CALIBRATION_BATCH = 16
"""ONNX Runtime's histograms hold every activation of a batch: resnet50 at 100 pixels 20 MiB an image."""
ENTROPY_BINS = 512
"""With its default of 128 bins and 128 steps, the search for the best range has one candidate: everything."""
PERCENTILE_BINS = 2048
_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8Choice:
    """One way to make an int8 file."""

    calibration: str = "minmax"
    """minmax, percentile_P with P in percent, or entropy; see `ActivationRanges`."""
    additions: bool = True
    """Compute residual additions in int8 too; fp32 additions are exact but slower."""
    last_in_fp32: bool = False
    """Keep the classifier, the last layer, in fp32."""
    weight_bits: int = 7
    """8 only for comparison: such a file gives wrong answers on CPUs without VNNI or AMX."""

    def __post_init__(self) -> None:
        if self.calibration.partition("_")[0] not in ("minmax", "percentile", "entropy"):
            raise ValueError(
                f"calibration: got {self.calibration!r}, allowed minmax, percentile_P and entropy"
            )
        if self.weight_bits not in (7, 8):
            raise ValueError(f"weight_bits: got {self.weight_bits}, allowed 7 and 8")

    @property
    def name(self) -> str:
        """Name for reports, such as percentile_99.99+last_in_fp32."""
        return (
            self.calibration
            + ("" if self.additions else "+additions_in_fp32")
            + ("+last_in_fp32" if self.last_in_fp32 else "")
            + ("+8_bit_weights" if self.weight_bits == 8 else "")
        )


CHOICES = (
    Int8Choice(),
    Int8Choice(calibration="percentile_99.99"),
    Int8Choice(calibration="percentile_99.9"),
    Int8Choice(calibration="entropy"),
    Int8Choice(last_in_fp32=True),
    Int8Choice(calibration="percentile_99.99", last_in_fp32=True),
    Int8Choice(additions=False),
    Int8Choice(calibration="percentile_99.99", additions=False),
)
"""In the order in which export tries them; the numbers are in docs/decisions/quantisation.md."""
ONLY_COMPARED = (Int8Choice(weight_bits=8),)
"""Measured for comparison only, never served."""


class Quantizer:
    """Makes int8 files from one fp32 file; computes what the choices share once.

    Served weights keep 7 bits (`reduce_range`): kernels for AVX2 and AVX-512 without VNNI add two products in
    16 bits, where full 8-bit weights overflow silently.

    Source:
        ONNX Runtime, "Quantize ONNX models", section on U8S8 saturation.
    """

    def __init__(self, fp32: Path, calibration_nhwc_u8: np.ndarray, *, scratch: Path) -> None:
        """Prepare the file.

        Args:
            fp32: the file that `export_onnx` wrote.
            calibration_nhwc_u8: (N, H, W, 3) uint8 training images that set the activations' ranges.
            scratch: an empty folder for temporary files.
        """
        self._prepared = scratch / "prepared.onnx"
        self._metadata = {prop.key: prop.value for prop in onnx.load(fp32).metadata_props}
        _optimize(fp32, self._prepared)
        self._ranges = ActivationRanges(
            self._prepared, QUANTIZED_OPERATORS, calibration_nhwc_u8, scratch=scratch
        )

    def write(self, choice: Int8Choice, int8: Path) -> None:
        """Write the int8 file of a choice."""
        with _full_disk_named(self._prepared, self._prepared.parent):
            model = load_model_with_shape_infer(self._prepared)
        operators = [name for name in QUANTIZED_OPERATORS if choice.additions or name != "Add"]
        with _quiet_root_logger():
            quantizer = QDQQuantizer(
                model,
                True,  # weights per channel
                choice.weight_bits == 7,  # reduce_range
                QuantType.QInt8,
                QuantType.QUInt8,
                self._ranges(choice.calibration),
                [],
                _kept_in_fp32(model.graph, choice),
                operators,
                {},
            )
            quantizer.quantize_model()
        quantizer.model.topological_sort()
        made = quantizer.model.model
        set_metadata(made, self._metadata)
        write_model(made, int8)


class ActivationRanges:
    """Activation ranges of one fp32 file by method, each computed once.

    minmax: from the smallest to the largest value.
    percentile_P: contains P percent of the values; half of the rest is cut off at each end.
    entropy: the range whose 128 steps lose the least information.
    """

    def __init__(
        self, model: Path, operators: list[str], pixels_nhwc_u8: np.ndarray, *, scratch: Path
    ) -> None:
        self._model, self._operators, self._pixels, self._scratch = model, operators, pixels_nhwc_u8, scratch
        self._calibrators: dict[CalibrationMethod, object] = {}

    def __call__(self, method: str):
        """ONNX Runtime's `TensorsData` for minmax, percentile_P or entropy."""
        kind, _, percentile = method.partition("_")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints, but stdout is for the command's result
            calibrator = self._collected(CalibrationMethod[_METHODS[kind]])
            if percentile:
                calibrator.collector.percentile = float(percentile)
            # A copy, because the quantiser changes the ranges that it gets.
            return copy.deepcopy(calibrator.compute_data())

    def _collected(self, method: CalibrationMethod):
        if method not in self._calibrators:
            bins = ENTROPY_BINS if method is CalibrationMethod.Entropy else PERCENTILE_BINS
            calibrator = create_calibrator(
                self._model,
                self._operators,
                augmented_model_path=str(self._scratch / f"{self._model.stem}-{method.name}.onnx"),
                calibrate_method=method,
                extra_options={"symmetric": False, "num_bins": bins},
            )
            # Strided, so that every batch has all classes: the first batch sets the width of the histograms.
            num_batches = max(1, len(self._pixels) // CALIBRATION_BATCH)
            batches = [self._pixels[start::num_batches] for start in range(num_batches)]
            for batch in track(batches, total=num_batches, description="calibrate"):
                calibrator.collect_data(_One(batch))
            self._calibrators[method] = calibrator
        return self._calibrators[method]


class _One(CalibrationDataReader):
    """Reads a single batch, because the calibrators keep everything in memory until a reader is empty."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._feeds = [{PIXELS: pixels}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._feeds.pop() if self._feeds else None


def _optimize(fp32: Path, prepared: Path) -> None:
    """As ONNX Runtime's `quant_pre_process`, without a temporary folder that a kill would leave behind."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(prepared)
    with _full_disk_named(fp32, prepared.parent):
        create_session(fp32, options)
        model = onnx.load(prepared)
    write_model(onnx.shape_inference.infer_shapes(model), prepared)


@contextlib.contextmanager
def _full_disk_named(model: Path, writes_to: Path) -> Iterator[None]:
    """Report a full disk around tools that write a copy of a model.

    On a full disk they leave half a file, with an unclear error or none, and the next reader fails.
    """
    try:
        yield
    except Exception as exc:  # ONNX Runtime has one class per status code, protobuf its own
        is_full = shutil.disk_usage(writes_to).free < model.stat().st_size
        reason = os.strerror(errno.ENOSPC) if is_full else " ".join(str(exc).split())
        raise ArtefactError(f"{model}: cannot be prepared to be quantised: {reason}") from exc


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Silence the root logger, where the quantiser reports every node that it skips on purpose."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)


def _kept_in_fp32(graph: onnx.GraphProto, choice: Int8Choice) -> list[str]:
    """Names of layers that are not quantised.

    These are the stem's and depthwise convolutions, products of two activations (attention), and the
    classifier if the choice keeps it in fp32.
    """
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    kept = [
        node.name
        for node in layers
        if node.input[1] not in shapes
        or (node.op_type == "Conv" and shapes[node.input[1]][1] < MIN_INPUT_CHANNELS)
    ]
    last = next(node.name for node in reversed(layers) if node.input[1] in shapes)
    return [*kept, last] if choice.last_in_fp32 else kept
