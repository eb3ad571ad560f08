"""Which way to quantise, and which engine, an int8 file is chosen by."""

from pathlib import Path

import pytest

from export.gates.gate import at_most
from export.gates.measured import Measured, Speed
from export.onnx.int8 import Attempt
from export.onnx.quantize import CHOICES, ONLY_COMPARED, Int8Choice


def _measured(engine: str, *, passed: bool, agreement: float = 1.0, images_per_s: float = 1.0) -> Measured:
    return Measured(
        engine=engine,
        gates=[at_most("distance", 0.01 if passed else 0.7, 0.1)],
        agreement=agreement,
        top1=agreement,
        distance=0.0,
        speed=Speed(images_per_s=images_per_s, ratio=1.0, slowest=1.0, fastest=1.0),
    )


def test_an_engine_with_wrong_kernels_does_not_serve() -> None:
    """The next one is taken; where none is right, none is."""
    for openvino, cpu, expected in ((True, True, "openvino"), (False, True, "cpu"), (False, False, None)):
        engines = [_measured("openvino", passed=openvino), _measured("cpu", passed=cpu)]
        served = Attempt(choice=Int8Choice(), path=Path(), engines=engines).served
        assert (served.engine if served else None) == expected


@pytest.mark.parametrize(("cpu", "expected"), [(140.0, "openvino"), (160.0, "cpu")])
def test_an_engine_serves_that_is_clearly_faster(cpu: float, expected: str) -> None:
    """Otherwise the preferred one, so that a busy moment does not choose."""
    engines = [_measured("openvino", passed=True, images_per_s=100.0)]
    engines.append(_measured("cpu", passed=True, images_per_s=cpu))
    served = Attempt(choice=Int8Choice(), path=Path(), engines=engines).served
    assert served is not None
    assert served.engine == expected


def test_the_best_attempt_passes_then_agrees_then_is_fast() -> None:
    """In this order of weight."""
    ordered = [
        _measured("cpu", passed=False, agreement=1.0, images_per_s=900),
        _measured("cpu", passed=True, agreement=0.996, images_per_s=900),
        _measured("cpu", passed=True, agreement=0.998, images_per_s=400),
        _measured("cpu", passed=True, agreement=0.998, images_per_s=500),
    ]
    ranks = [Attempt(choice=Int8Choice(), path=Path(), engines=[one]).rank for one in ordered]
    assert ranks == sorted(ranks)


def test_the_choices_have_names_of_their_own_and_bad_ones_are_refused() -> None:
    """A report names each by what it does."""
    choices = (*CHOICES, *ONLY_COMPARED)
    assert len({choice.name for choice in choices}) == len(choices)
    with pytest.raises(ValueError, match="calibration"):
        Int8Choice(calibration="kmeans")
    with pytest.raises(ValueError, match="weight_bits"):
        Int8Choice(weight_bits=4)
