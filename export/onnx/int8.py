"""Find an int8 file that passes its gates: try ways to quantise until one passes on an installed engine.

Engines may disagree on an int8 file: kernels depend on the CPU, and some are wrong. So every attempt is
measured on every engine, and the engine that serves is chosen together with the file.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from export.gates.measured import Measured, measure
from export.gates.validation import Validation
from export.onnx.quantize import CHOICES, ONLY_COMPARED, Int8Choice, Quantizer
from fruitstand.model.session import installed_engines, open_session

log = logging.getLogger("fruitstand.export")

CLEARLY_FASTER = 1.5
"""Engines are measured one after the other, and a busy machine must not choose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One way to quantise, with its measurements."""

    choice: Int8Choice
    path: Path
    engines: list[Measured]
    """The preferred engine first."""

    @property
    def served(self) -> Measured | None:
        """The measurement on the engine that serves: the preferred one that passes on this CPU.

        Another one serves if it is clearly faster: OpenVINO is, but not for every network. None if none
        passes.
        """
        passed = [one for one in self.engines if one.passed]
        fastest = max(passed, key=lambda one: one.images_per_s, default=None)
        if fastest is None or fastest.images_per_s > CLEARLY_FASTER * passed[0].images_per_s:
            return fastest
        return passed[0]

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Sort key, larger is better: passing, then agreement, then speed."""
        one = self.served or max(self.engines, key=lambda measured: measured.agreement)
        return self.served is not None, one.agreement, one.images_per_s

    def to_json(self) -> dict[str, Any]:
        """Values for the report."""
        return {
            "choice": self.choice.name,
            "engines": {measured.engine: measured.to_json() for measured in self.engines},
        }


def make_int8(
    fp32: Path, int8: Path, calibration_nhwc_u8: np.ndarray, validation: Validation, *, compare: bool
) -> tuple[Measured, dict[str, Any]]:
    """Write the int8 file.

    Args:
        fp32: the file that `export_onnx` wrote.
        int8: the file to write.
        calibration_nhwc_u8: (N, H, W, 3) uint8 training images that set the activations' ranges.
        validation: the validation images.
        compare: measure every choice and take the best, instead of the first that passes.

    Returns:
        The file on the engine that will serve it, with its gates, failed ones when no choice passed
        anywhere; and the report on all attempts.
    """
    fp32_sessions = {engine: open_session(fp32, engine) for engine in installed_engines()}
    attempts: list[Attempt] = []
    # In the same folder as the file, which is swept after a kill.
    with TemporaryDirectory(dir=int8.parent) as name:
        scratch = Path(name)
        quantizer = Quantizer(fp32, calibration_nhwc_u8, scratch=scratch)
        choices = (*CHOICES, *ONLY_COMPARED) if compare else CHOICES
        for number, choice in enumerate(choices):
            path = scratch / f"attempt-{number}.onnx"
            quantizer.write(choice, path)
            attempts.append(_measure(choice, path, fp32_sessions, validation, time_failed=compare))
            if attempts[-1].served and not compare:
                break
        best = max(attempts[: len(CHOICES)], key=lambda attempt: attempt.rank)
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
        "attempts": [attempt.to_json() for attempt in attempts],
    }
    return measured, report


def _measure(
    choice: Int8Choice,
    path: Path,
    fp32_sessions: dict[str, onnxruntime.InferenceSession],
    validation: Validation,
    *,
    time_failed: bool,
) -> Attempt:
    """Measure the file's answers and speed on every engine."""
    engines = []
    for engine, fp32_session in fp32_sessions.items():
        session = open_session(path, engine)
        measured = measure(
            f"int8_{engine}", engine, session, fp32_session, validation, time_failed=time_failed
        )
        engines.append(measured)
        failed = "; ".join(str(gate) for gate in measured.gates if not gate.passed)
        log.info(
            "int8 %s on %s: agreement %.4f, %s%s", choice.name, engine, measured.agreement,
            f"{measured.speed.ratio:.2f} x fp32, " if measured.speed else "", failed or "passed",
        )  # fmt: skip
    return Attempt(choice=choice, path=path, engines=engines)
