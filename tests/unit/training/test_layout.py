import pytest

from fruitstand.errors import DataError
from training.data.class_folders import find_images, find_root, fruit_of
from training.data.file_tree import Listing


def _listing(*files: str) -> Listing:
    folders = {""}
    for name in files:
        parts = name.split("/")[:-1]
        folders.update("/".join(parts[: i + 1]) for i in range(len(parts)))
    return Listing(list(files), sorted(folders))


KAGGLE = _listing(
    "fruits-360_100x100/fruits-360/Training/Apple 6/r0_0_100.jpg",
    "fruits-360_100x100/fruits-360/Test/Apple 6/r0_3_100.jpg",
    "fruits-360_original-size/fruits-360-original-size/Training/apple_6/r0_0.jpg",
    "fruits-360_original-size/fruits-360-original-size/Validation/apple_6/r0_1.jpg",
    "fruits-360_original-size/fruits-360-original-size/Test/apple_6/r0_3.jpg",
    "fruits-360_3-body-problem/fruits-360_3-body-problem/Training/Apple/Apple 11/r0_0_100.jpg",
    "fruits-360_3-body-problem/fruits-360_3-body-problem/Test/Apple/Apple 10/r0_0_100.jpg",
    "fruits-360_multi/Apple/0.jpg",
)


def test_of_a_whole_download_one_data_set_is_chosen_by_name() -> None:
    """A Kaggle download holds several; the choices are named."""
    with pytest.raises(DataError, match=r"several data sets .*original-size.*--subset"):
        find_root(KAGGLE)
    assert find_root(KAGGLE, subset="100X100") == ("fruits-360_100x100/fruits-360", True)
    with pytest.raises(DataError, match="0 data sets with 'meta'"):
        find_root(KAGGLE, subset="meta")


def test_the_original_size_set_brings_its_own_validation() -> None:
    """Three splits, names without a size."""
    found = find_images(KAGGLE, subset="original-size")
    assert [(one.split, one.object, one.film, one.frame) for one in found] == [
        ("train", "apple_6", "r0", 0),
        ("val", "apple_6", "r0", 1),
        ("test", "apple_6", "r0", 3),
    ]


@pytest.mark.parametrize(
    ("label_level", "labels"), [("fruit", ["Apple", "Apple"]), ("variety", ["Apple 11", "Apple 10"])]
)
def test_two_levels_give_fruit_or_variety(label_level: str, labels: list[str]) -> None:
    """The variety's folder repeats the fruit; its name does not."""
    found = find_images(KAGGLE, subset="3-body", label_level=label_level)
    assert [one.label for one in found] == labels
    assert [one.object for one in found] == ["Apple 11", "Apple 10"]


def test_varieties_of_a_one_level_tree_are_grouped_by_their_first_word() -> None:
    """Apple 6 and Apple Braeburn 1 are apples, in every spelling."""
    assert [fruit_of(name) for name in ("Apple Braeburn 1", "apple_6", "Kiwi")] == ["Apple", "apple", "Kiwi"]
    found = find_images(KAGGLE, subset="100x100", group_varieties=True)
    assert {(one.label, one.object) for one in found} == {("Apple", "Apple 6")}


def test_images_outside_a_class_folder_are_refused() -> None:
    """Their class is unknown."""
    listing = _listing("Training/Apple/0_100.jpg", "Test/Apple/1_100.jpg", "Training/2_100.jpg")
    with pytest.raises(DataError, match="outside a class folder"):
        find_images(listing)
