import io
import os
import pickle
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fruitstand.contract import Preprocessing
from fruitstand.errors import DataError, UsageError
from fruitstand.images.synthetic import encode, pattern
from scoring.partitions import Image, Inputs, find_inputs

NUM_IMAGES = 10
COLUMNS = ("image", "path")


@pytest.fixture
def contents() -> dict[str, bytes]:
    """Ten images by the name they have in the folder."""
    return {f"{n % 3}/{n}.png": encode(pattern(20 + n, 20), "PNG") for n in range(NUM_IMAGES)}


@pytest.fixture
def folder(contents: dict[str, bytes], tmp_path: Path) -> Path:
    """The images as files, beside one that is none."""
    for name, content in contents.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    (tmp_path / "folder" / "readme.txt").write_text("not an image")
    return tmp_path / "folder"


@pytest.fixture
def tars(contents: dict[str, bytes], tmp_path: Path) -> Path:
    """The images in two WebDataset shards, each with its class beside it."""
    shards = tmp_path / "tars"
    shards.mkdir()
    names = sorted(contents)
    for number, part in enumerate((names[:6], names[6:])):
        with tarfile.open(shards / f"shard-{number}.tar", "w") as archive:
            for name in part:
                for member, content in ((name, contents[name]), (name.replace("png", "cls"), b"3")):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return shards


@pytest.fixture
def parquet(contents: dict[str, bytes], tmp_path: Path) -> Path:
    """The images in row groups of three."""
    names = sorted(contents)
    table = pa.table({"path": names, "image": [contents[name] for name in names]})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=3)
    return tmp_path / "images.parquet"


def find(source: Path, partition_size: int = 4) -> Inputs:
    """The source's inputs, cut small."""
    return find_inputs(source, partition_size=partition_size, columns=COLUMNS)


def read(inputs: Inputs) -> list[Image]:
    """All inputs in order, each partition as it arrives in another process."""
    partitions = pickle.loads(pickle.dumps(inputs.partitions))
    return [image for partition in partitions for image in partition.read()]


@pytest.mark.parametrize(
    ("kind", "sizes", "prefix"),
    [
        pytest.param("folder", [4, 4, 2], "", id="folder"),
        pytest.param("tars", [4, 4, 2], "shard-{}.tar/", id="webdataset"),
        # Row groups stay whole: 3, 3, 3 and 1 rows.
        pytest.param("parquet", [6, 4], "", id="parquet"),
    ],
)
def test_every_kind_of_source_yields_each_image_once_and_in_order(
    kind: str,
    sizes: list[int],
    prefix: str,
    contents: dict[str, bytes],
    request: pytest.FixtureRequest,
) -> None:
    """Numbered through, named, byte for byte, in partitions of about the size asked for."""
    inputs = find(request.getfixturevalue(kind))
    images = read(inputs)
    assert [image.index for image in images] == list(range(NUM_IMAGES)) == list(range(inputs.num_images))
    names = sorted(contents)
    assert [image.path for image in images] == [
        prefix.format(int(place >= 6)) + name for place, name in enumerate(names)
    ]
    assert [image.content for image in images] == [contents[name] for name in names]
    assert [partition.num_images for partition in inputs.partitions] == sizes
    assert [partition.first for partition in inputs.partitions] == [
        sum(sizes[:place]) for place in range(len(sizes))
    ]


@pytest.mark.parametrize("kind", ["folder", "tars", "parquet"])
def test_the_list_has_an_identity(kind: str, request: pytest.FixtureRequest) -> None:
    """The same when nothing changed; another one for another cut, a changed file, a further file."""
    source = request.getfixturevalue(kind)
    first = find(source)
    assert find(source) == first
    assert find(source, partition_size=5).sha256 != first.sha256
    file = next(
        path for path in sorted([source, *source.rglob("*")]) if path.suffix in (".png", ".tar", ".parquet")
    )
    os.utime(file, ns=(1, 1))
    changed = find(source)
    assert changed.sha256 != first.sha256
    if source.is_dir():
        (source / f"zzz{file.suffix}").write_bytes(file.read_bytes())
        assert find(source).sha256 != changed.sha256


def test_an_image_that_cannot_be_read_has_its_reason(folder: Path) -> None:
    """It went away, or it is too large, which is found before it is read; the others are there."""
    inputs = find(folder)
    (folder / "0/3.png").unlink()
    os.truncate(folder / "1/1.png", Preprocessing().max_encoded_bytes + 1)
    reasons = {image.path: image.content for image in read(inputs) if isinstance(image.content, str)}
    assert reasons == {
        "0/3.png": "cannot be read: No such file or directory",
        "1/1.png": "too many bytes: 8388609, at most 8388608 are allowed",
    }


def test_a_hugging_face_image_column_is_understood(contents: dict[str, bytes], tmp_path: Path) -> None:
    """It holds the bytes beside a path; a row without bytes is one that cannot be read."""
    rows = [{"bytes": next(iter(contents.values())), "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    pq.write_table(pa.table({"img": rows, "id": [7, 8]}), tmp_path / "hf.parquet")
    inputs = find_inputs(tmp_path, partition_size=4, columns=("img", "id"))
    assert [(one.path, one.content) for one in read(inputs)] == [
        ("7", rows[0]["bytes"]),
        ("8", "holds no encoded image"),
    ]


def test_a_folder_that_links_to_itself_ends(folder: Path) -> None:
    """Links to folders are not followed; a link to a file is an input."""
    (folder / "loop").symlink_to(folder)
    (folder / "again.png").symlink_to(folder / "0/0.png")
    assert find(folder).num_images == NUM_IMAGES + 1


def test_a_file_name_may_be_any_bytes(tmp_path: Path) -> None:
    """Linux allows it, and so do we."""
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(encode(pattern(20, 20), "PNG"))
    (image,) = read(find(tmp_path))
    assert image.path == name
    assert isinstance(image.content, bytes)


def _mixed(folder: Path) -> Path:
    (folder / "more.parquet").touch()
    return folder


def _compressed(folder: Path) -> Path:
    (folder / "more.tar.gz").touch()
    return folder


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def _no_tar(folder: Path) -> Path:
    (folder / "x.tar").write_text("no tar file" * 100)
    return folder / "x.tar"


def _no_parquet(folder: Path) -> Path:
    (folder / "x.parquet").write_text("no parquet file")
    return folder / "x.parquet"


def _other_columns(folder: Path) -> Path:
    pq.write_table(pa.table({"picture": [b""], "path": ["a"]}), folder / "y.parquet")
    return folder / "y.parquet"


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        pytest.param(lambda folder: folder / "nowhere", UsageError, "no such file", id="missing"),
        pytest.param(_empty, UsageError, "holds no image", id="empty"),
        pytest.param(_mixed, UsageError, "several kinds", id="mixed"),
        pytest.param(_compressed, UsageError, "compressed tar", id="compressed_tar"),
        pytest.param(_no_tar, DataError, "not a tar file", id="no_tar"),
        pytest.param(_no_parquet, DataError, "not a Parquet file", id="no_parquet"),
        pytest.param(_other_columns, UsageError, "no column 'image', it has picture, path", id="columns"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(
    make: object, error: type[Exception], says: str, folder: Path
) -> None:
    """Before anything is scored, with what to do."""
    with pytest.raises(error, match=says):
        find(make(folder))  # type: ignore[operator]
