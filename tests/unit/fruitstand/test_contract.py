import pytest

from fruitstand.contract import Preprocessing


def test_a_contract_survives_json() -> None:
    """What is saved beside the weights is what was trained with."""
    original = Preprocessing(input_size=(128, 224), mean=(0.5, 0.5, 0.5))
    assert Preprocessing.from_dict(original.to_dict()) == original


@pytest.mark.parametrize(
    ("values", "names"),
    [
        pytest.param({"input_size": (0, 100)}, "input_size", id="size"),
        pytest.param({"interpolation": "lanczos"}, "interpolation", id="filter"),
        pytest.param({"antialias": False}, "antialias", id="antialias"),
        pytest.param({"std": (1.0, 0.0, 1.0)}, "std", id="std"),
        pytest.param({"max_pixels": 0}, "max_pixels", id="pixels"),
    ],
)
def test_a_value_outside_the_contract_is_named(values: dict, names: str) -> None:
    """A wrong value is refused with its name, what was got and what is allowed."""
    with pytest.raises(ValueError, match=names):
        Preprocessing(**values)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param((100, 100), (100, 100), id="identity"),
        pytest.param((333, 200), (167, 100), id="half_up"),
        pytest.param((200, 100), (200, 100), id="wide"),
        pytest.param((100, 1000), (100, 1000), id="tall"),
        pytest.param((1, 1), (100, 100), id="one_pixel"),
    ],
)
def test_the_shorter_side_reaches_the_input_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The resize keeps the aspect ratio and never leaves a side too short."""
    assert Preprocessing().resized_size(*size) == expected
