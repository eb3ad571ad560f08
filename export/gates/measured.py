"""Measure accuracy and speed of a file on one engine, interleaved with a reference file."""

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from export.gates.checks import agreement_gate, distance_gate, top1_loss_gate
from export.gates.gate import Gate
from export.gates.validation import Validation
from fruitstand.model.session import run_batches
from fruitstand.repository.tolerances import MIN_AGREEMENT

BATCH = 32
ROUNDS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Speed of one session relative to another."""

    images_per_s: float
    """Median over the rounds."""
    ratio: float
    """Median over the rounds of the other's time divided by this one's; above 1 this one is faster."""
    slowest: float
    """The smallest of these ratios."""
    fastest: float
    """The largest of these ratios."""

    def to_json(self) -> dict[str, Any]:
        """Values for the report."""
        return {
            "images_per_s": round(self.images_per_s, 1),
            "speedup_over_fp32": round(self.ratio, 3),
            "speedup_spread": [round(self.slowest, 3), round(self.fastest, 3)],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Measurements of one file on one engine."""

    engine: str
    gates: list[Gate]
    agreement: float
    """Share of the validation images with PyTorch's top-1 answer."""
    top1: float
    distance: float
    speed: Speed | None
    """Relative to the fp32 file on the same engine; None where it was not asked for and a gate failed."""

    @property
    def images_per_s(self) -> float:
        """The measured speed; 0 where it was not measured."""
        return self.speed.images_per_s if self.speed else 0.0

    @property
    def passed(self) -> bool:
        """Whether all gates pass, so that the file may be served on this engine."""
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        """Values for the report."""
        return {
            "passed": self.passed,
            "top1": self.top1,
            "top1_agreement": self.agreement,
            "distance": self.distance if math.isfinite(self.distance) else None,
            **(self.speed.to_json() if self.speed else {}),
        }


def measure(
    name: str,
    engine: str,
    session: onnxruntime.InferenceSession,
    fp32: onnxruntime.InferenceSession,
    validation: Validation,
    *,
    time_failed: bool = False,
) -> Measured:
    """Measure a file on the validation images.

    Both sessions run on `engine`; `fp32` has the file that the other was made from. The gates' names begin
    with `name`. `time_failed` measures the speed of a file that misses a gate too.
    """
    got, expected = run_batches(session, validation.pixels_nhwc_u8), validation.reference
    gates = [
        agreement_gate(name, got, expected, MIN_AGREEMENT),
        top1_loss_gate(name, got, expected, validation.targets),
        distance_gate(name, got, expected),
    ]
    return Measured(
        engine=engine,
        gates=gates,
        agreement=gates[0].value,
        top1=float(np.mean(got.argmax(axis=1) == validation.targets)),
        distance=gates[2].value,
        speed=compare(session, fp32, validation.pixels_nhwc_u8)
        if time_failed or all(gate.passed for gate in gates)
        else None,
    )


def compare(
    new: onnxruntime.InferenceSession, old: onnxruntime.InferenceSession, pixels_nhwc_u8: np.ndarray
) -> Speed:
    """Time two sessions alternately.

    The images are (N, H, W, 3) uint8, repeated when fewer than a batch.
    """
    batch = np.resize(pixels_nhwc_u8, (BATCH, *pixels_nhwc_u8.shape[1:]))
    for session in (new, old):
        run_batches(session, batch)
    rounds = [(_seconds(new, batch), _seconds(old, batch)) for _ in range(ROUNDS)]
    ratios = [old_s / new_s for new_s, old_s in rounds]
    return Speed(
        images_per_s=BATCH / statistics.median(new_s for new_s, _ in rounds),
        ratio=statistics.median(ratios),
        slowest=min(ratios),
        fastest=max(ratios),
    )


def _seconds(session: onnxruntime.InferenceSession, batch: np.ndarray) -> float:
    started = time.perf_counter()
    run_batches(session, batch)
    return time.perf_counter() - started
