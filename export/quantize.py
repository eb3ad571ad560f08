"""int8: static quantisation in QDQ form, unsigned activations and signed per-channel weights."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from fruitstand.contract import PIXELS

CALIBRATION_BATCH = 32
MIN_INPUT_CHANNELS = 32
"""Convolutions with fewer stay fp32: the stem. See docs/DECISIONS.md, "int8 has to survive AVX2"."""
# Additions are among them, the normalisation's as well: without either, OpenVINO's AVX2 kernels answer
# wrongly. The gates in export/checks.py notice.
QUANTIZED_OPERATORS = ["Conv", "Gemm", "Add", "MaxPool", "GlobalAveragePool", "Relu"]


def quantize_int8(fp32: Path, int8: Path, calibration_nhwc_u8: np.ndarray) -> None:
    """Write the int8 version of an fp32 ONNX file.

    Args:
        fp32: the file that `export_onnx` wrote.
        int8: the file to write.
        calibration_nhwc_u8: (N, H, W, 3) uint8 training images that set the activations' ranges.

    Weights keep 7 bits (`reduce_range`): kernels for AVX2 and AVX-512 without VNNI add two products in 16
    bits, and full 8-bit weights overflow there without a word.

    Source:
        ONNX Runtime, "Quantize ONNX models", section on U8S8 saturation.
    """
    with TemporaryDirectory(prefix="fruitstand-int8-") as scratch, _quiet_root_logger():
        prepared = Path(scratch, "prepared.onnx")
        quant_pre_process(fp32, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            int8,
            _Calibration(calibration_nhwc_u8),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=QUANTIZED_OPERATORS,
            nodes_to_exclude=_kept_in_fp32(prepared),
        )


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """The quantiser warns through the root logger about a preprocessing that was done."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)


def _kept_in_fp32(path: Path) -> list[str]:
    """Names of the stem's convolutions."""
    graph = onnx.load(path).graph
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Conv" and shapes[node.input[1]][1] < MIN_INPUT_CHANNELS
    ]


class _Calibration(CalibrationDataReader):
    def __init__(self, pixels: np.ndarray) -> None:
        self._batches: Iterator[np.ndarray] = iter(
            np.array_split(pixels, max(1, len(pixels) // CALIBRATION_BATCH))
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {PIXELS: batch}
