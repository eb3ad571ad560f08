"""Which values the activations take on training images: int8 lays its 256 steps over these ranges."""

import contextlib
import copy
import io
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from fruitstand.contract import PIXELS
from fruitstand.progress import track

BATCH = 16
"""ONNX Runtime's histograms hold every activation of a batch: resnet50 at 100 pixels 20 MiB an image."""
ENTROPY_BINS = 512
"""With its default of 128 bins and 128 steps, the search for the best range has one candidate: everything."""
PERCENTILE_BINS = 2048


class ActivationRanges:
    """The ranges of one fp32 file's activations, by method, each computed once.

    minmax: from the smallest to the largest value seen.
    percentile_P: what P percent of the values fit in, half of the rest cut off at each end.
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
        with contextlib.redirect_stdout(io.StringIO()):  # it prints, and stdout is the command's result
            calibrator = self._collected(CalibrationMethod[_METHODS[kind]])
            if percentile:
                calibrator.collector.percentile = float(percentile)
            # A copy: the quantiser adjusts the ranges that it is given.
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
            # Strided, so that every batch has all kinds: the first one sets the histograms' width.
            num_batches = max(1, len(self._pixels) // BATCH)
            batches = [self._pixels[start::num_batches] for start in range(num_batches)]
            for batch in track(batches, total=num_batches, description="calibrate"):
                calibrator.collect_data(_One(batch))
            self._calibrators[method] = calibrator
        return self._calibrators[method]


_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


class _One(CalibrationDataReader):
    """One batch: the calibrators keep what a whole reader gives until it is empty."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._feeds = [{PIXELS: pixels}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._feeds.pop() if self._feeds else None
