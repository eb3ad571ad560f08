import re
from pathlib import Path

import pytest

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.formats.jpeg import MAX_SCANS
from fruitstand.images.formats.png import SIGNATURE, chunk
from fruitstand.images.structure import inspect_image
from serving.attest.kinds import ImageKind, image_kinds, table
from tests.kinds.usual import kind_rows

ONLY_A_DECODER_KNOWS = {
    "png_missing_rows",
    "png_unknown_filter",
    "png_data_without_end",
    "webp_half_sizes_rewritten",
    "webp_overwritten",
}


def test_there_are_many_kinds_and_no_two_alike() -> None:
    """Names and contents differ; both verdicts have their share."""
    kinds = image_kinds()
    assert len(kinds) >= 120
    assert len({kind.name for kind in kinds}) == len({kind.content for kind in kinds}) == len(kinds)
    assert min(sum(kind.is_accepted for kind in kinds), sum(not kind.is_accepted for kind in kinds)) >= 40


@pytest.mark.parametrize("kind", image_kinds(), ids=lambda kind: kind.name)
def test_the_structure_alone_tells_what_is_refused(kind: ImageKind) -> None:
    """With the reason of the table; zero-padded, as in a request of several, accepted kinds stay accepted."""
    if kind.is_accepted or kind.name in ONLY_A_DECODER_KNOWS:
        inspect_image(kind.content, Preprocessing())
        inspect_image(kind.content + bytes(1000), Preprocessing())
        return
    with pytest.raises(ImageRejected) as caught:
        inspect_image(kind.content, Preprocessing())
    assert str(caught.value).startswith(kind.verdict)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg_progressive", "jpeg_thumbnail", "png", "webp", "webp_exif_6", "bmp"]
)
def test_every_cut_of_a_file_is_refused(name: str) -> None:
    """Wherever it ends, down to its last byte; never a crash, never an answer."""
    content = next(kind.content for kind in image_kinds() if kind.name == name)
    end = len(content) - 1 if name != "png" else len(content) - 2
    for length in (*range(0, 800, 7), *range(800, end, 97), end):
        with pytest.raises(ImageRejected):
            inspect_image(content[: min(length, end)], Preprocessing())


def test_a_hostile_file_costs_little_time() -> None:
    """Megabytes of empty segments, tables, chunks or scans end at a limit, not at the file's end."""
    plain = next(kind.content for kind in image_kinds() if kind.name == "jpeg_progressive")
    scan = plain.index(b"\xff\xda")
    segments = plain[:scan] + b"\xff\xfe\0\2" * 2_000_000
    scans = plain[:scan] + plain[scan : scan + 2 + plain[scan + 3]] * (MAX_SCANS + 1)
    chunks = SIGNATURE + chunk(b"IHDR", bytes.fromhex("00000010000000100802000000"))
    chunks += chunk(b"tEXt", b"") * 600_000
    tables = plain[:scan] + (b"\xff\xc4\xff\xff" + bytes(65_533)) * 120 + plain[scan:]
    cases = ((segments, "markers"), (scans, "scans"), (tables, "tables"), (chunks, "chunks"))
    for content, reason in cases:
        with pytest.raises(ImageRejected, match=reason):
            inspect_image(content, Preprocessing())


@pytest.mark.parametrize("name", ["jpeg", "jpeg_grey", "png", "png_palette", "webp", "webp_alpha", "bmp"])
def test_a_file_without_metadata_is_not_copied(name: str) -> None:
    """The decoder gets the memory that came in."""
    content = next(kind.content for kind in image_kinds() if kind.name == name)
    got = inspect_image(content, Preprocessing()).content
    assert isinstance(got, memoryview)
    assert got.obj is content


@pytest.mark.parametrize(
    "kind", [kind for kind in image_kinds() if kind.is_accepted], ids=lambda kind: kind.name
)
def test_a_decoder_gets_no_metadata(kind: ImageKind) -> None:
    """Nor does a second look find any: what was inspected is its own picture, with the same turn."""
    once = bytes(inspect_image(kind.content, Preprocessing()).content)
    assert bytes(inspect_image(once, Preprocessing()).content) == once
    if not kind.name.startswith("bmp"):  # has no metadata, and its pixels may spell anything
        assert (
            re.search(rb"xmp|ICC_PROFILE|ICCP|iCCP|tEXt|zTXt|iTXt|gAMA|cHRM|acTL|fcTL|stray|garbage", once)
            is None
        )


def test_the_corpus_is_what_its_makers_make() -> None:
    """`python -m tests.kinds` after a change to them."""
    made = [(name, verdict, remark, content) for name, content, verdict, remark in kind_rows()]
    assert [(kind.name, kind.verdict, kind.remark, kind.content) for kind in image_kinds()] == made


def test_the_documentation_lists_them() -> None:
    """`docs/reference/input-kinds.md` holds the very table."""
    assert table() in Path("docs/reference/input-kinds.md").read_text()
