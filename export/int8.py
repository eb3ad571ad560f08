"""Find an int8 file that holds: try the ways to quantise until one passes on an engine installed here.

Engines may disagree on one int8 file: kernels differ by processor, and some are wrong. So every attempt is
measured on every engine, and the engine that serves is chosen with the file.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from export.checks import (
    MIN_AGREEMENT,
    agreement_gate,
    distance_gate,
    installed_engines,
    open_session,
    run_batches,
    top1_loss_gate,
)
from export.gates import Gate
from export.quantize import CHOICES, Int8Choice, Quantizer
from export.timing import images_per_s
from export.validation import Validation

log = logging.getLogger("fruitstand.export")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One int8 file on one engine."""

    engine: str
    gates: list[Gate]
    agreement: float
    """Share of the validation images answered as PyTorch does."""
    top1: float
    distance: float
    images_per_s: float
    images_per_s_fp32: float
    """Of the fp32 file on the same engine, in turns with the int8 file."""

    @property
    def passed(self) -> bool:
        """On this engine the file may be served."""
        return all(gate.passed for gate in self.gates)

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "passed": self.passed,
            "top1": self.top1,
            "top1_agreement": self.agreement,
            "distance": self.distance if math.isfinite(self.distance) else None,
            "images_per_s": round(self.images_per_s, 1),
            "speedup_over_fp32": round(self.images_per_s / self.images_per_s_fp32, 2),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One choice, made and measured."""

    choice: Int8Choice
    path: Path
    engines: list[Measured]
    """The preferred engine first."""

    @property
    def served(self) -> Measured | None:
        """On the preferred engine whose kernels answer rightly on this processor; None when none does."""
        return next((one for one in self.engines if one.passed), None)

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Greater is better: passing, then agreement, then speed."""
        one = self.served or max(self.engines, key=lambda measured: measured.agreement)
        return self.served is not None, one.agreement, one.images_per_s

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "choice": self.choice.name,
            "engines": {measured.engine: measured.to_dict() for measured in self.engines},
        }


def make_int8(
    fp32: Path, int8: Path, calibration_nhwc_u8: np.ndarray, validation: Validation, *, compare: bool
) -> tuple[Measured, dict[str, Any]]:
    """Write the int8 file.

    Args:
        fp32: the file that `export_onnx` wrote.
        int8: the file to write.
        calibration_nhwc_u8: (N, H, W, 3) uint8 training images that set the activations' ranges.
        validation: the held-back images.
        compare: measure every choice and take the best, instead of the first that passes.

    Returns:
        The file on the engine that will serve it, with its gates, failed ones when no choice passed
        anywhere; and the report on all attempts.
    """
    fp32_sessions = {engine: open_session(fp32, engine) for engine in installed_engines()}
    attempts: list[Attempt] = []
    # Beside the file to write: where that is swept after a kill, so is this.
    with TemporaryDirectory(dir=int8.parent) as name:
        scratch = Path(name)
        quantizer = Quantizer(fp32, calibration_nhwc_u8, scratch=scratch)
        for number, choice in enumerate(CHOICES):
            path = scratch / f"attempt-{number}.onnx"
            quantizer.write(choice, path)
            attempts.append(_measure(choice, path, fp32_sessions, validation))
            if attempts[-1].served and not compare:
                break
        best = max(attempts, key=lambda attempt: attempt.rank)
        int8.write_bytes(best.path.read_bytes())
    measured = best.served or max(best.engines, key=lambda one: one.agreement)
    top1_fp32 = float(np.mean(validation.reference.argmax(axis=1) == validation.targets))
    report = {
        "num_images": len(validation.targets),
        "num_calibration_images": len(calibration_nhwc_u8),
        "choice": best.choice.name,
        "engine": measured.engine,
        "top1_fp32": top1_fp32,
        **{f"top1_int8_{one.engine}": one.top1 for one in best.engines},
        **{f"top1_agreement_{one.engine}": one.agreement for one in best.engines},
        "attempts": [attempt.to_dict() for attempt in attempts],
    }
    return measured, report


def _measure(
    choice: Int8Choice,
    path: Path,
    fp32_sessions: dict[str, onnxruntime.InferenceSession],
    validation: Validation,
) -> Attempt:
    """The file's answers and rate on every engine."""
    engines = []
    for engine, fp32_session in fp32_sessions.items():
        session = open_session(path, engine)
        got, expected = run_batches(session, validation.pixels_nhwc_u8), validation.reference
        gates = [
            agreement_gate(f"int8_{engine}", got, expected, MIN_AGREEMENT),
            top1_loss_gate(f"int8_{engine}", got, expected, validation.targets),
            distance_gate(f"int8_{engine}", got, expected),
        ]
        rates = images_per_s({"int8": session, "fp32": fp32_session}, validation.pixels_nhwc_u8)
        measured = Measured(
            engine=engine,
            gates=gates,
            agreement=gates[0].value,
            top1=float(np.mean(got.argmax(axis=1) == validation.targets)),
            distance=gates[2].value,
            images_per_s=rates["int8"],
            images_per_s_fp32=rates["fp32"],
        )
        engines.append(measured)
        failed = "; ".join(str(gate) for gate in gates if not gate.passed)
        log.info(
            "int8 %s on %s: agreement %.4f, %.0f images/s, %s",
            choice.name, engine, measured.agreement, measured.images_per_s, failed or "passed",
        )  # fmt: skip
    return Attempt(choice=choice, path=path, engines=engines)
