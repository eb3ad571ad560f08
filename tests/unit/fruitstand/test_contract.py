import pytest

from fruitstand.contract import Preprocessing


def test_a_contract_survives_json() -> None:
    """What is saved beside the weights is what was trained with."""
    original = Preprocessing(input_size=(128, 224), mean=(0.5, 0.5, 0.5), crop_pct=0.9, crop_mode="squash")
    assert Preprocessing.from_dict(original.to_dict()) == original


def test_the_contract_of_an_older_version_is_read() -> None:
    """Its keys that allowed one value only say nothing; another value of them is refused by name."""
    older = Preprocessing().to_dict() | {"resize_mode": "not_smaller", "antialias": True, "crop": "center"}
    for key in ("crop_pct", "crop_mode", "reduced_decode"):
        del older[key]
    assert Preprocessing.from_dict(older) == Preprocessing()
    with pytest.raises(ValueError, match="antialias"):
        Preprocessing.from_dict(older | {"antialias": False})


@pytest.mark.parametrize(
    ("values", "names"),
    [
        pytest.param({"input_size": (0, 100)}, "input_size", id="size"),
        pytest.param({"interpolation": "lanczos"}, "interpolation", id="filter"),
        pytest.param({"crop_pct": 1.1}, "crop_pct", id="crop_share"),
        pytest.param({"crop_mode": "border"}, "crop_mode", id="crop_mode"),
        pytest.param({"reduced_decode": 0.5}, "reduced_decode", id="enlarged"),
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({"crop_pct": 0.875}, (341, 256), id="center"),
        pytest.param({"crop_pct": 0.875, "crop_mode": "squash"}, (256, 256), id="squash"),
        pytest.param({"crop_pct": 0.95, "input_size": (160, 320)}, (336, 252), id="not_square"),
    ],
)
def test_the_resize_leaves_room_for_the_crop(values: dict, expected: tuple[int, int]) -> None:
    """A picture of 4 to 3 goes to input_size / crop_pct, rounded down as timm rounds it."""
    assert Preprocessing(**{"input_size": (224, 224)} | values).resized_size(1200, 900) == expected


@pytest.mark.parametrize(
    ("values", "size", "scale"),
    [
        pytest.param({}, (4000, 3000), 8, id="photograph"),
        pytest.param({"input_size": (224, 224), "crop_pct": 0.875}, (4000, 3000), 2, id="224"),
        pytest.param({}, (900, 600), 2, id="just_large_enough"),
        pytest.param({}, (900, 599), 1, id="just_too_small"),
        pytest.param({"crop_mode": "squash"}, (9000, 700), 2, id="squash_by_its_shorter_side"),
        pytest.param({"reduced_decode": 0}, (4000, 3000), 1, id="off"),
    ],
)
def test_a_jpeg_is_reduced_while_enough_pixels_are_left(
    values: dict, size: tuple[int, int], scale: int
) -> None:
    """Both sides stay at least three times those of the resize."""
    assert Preprocessing(**values).jpeg_scale(*size) == scale
