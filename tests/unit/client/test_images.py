"""What is taken for an image, and what is refused before anything is sent."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fruitstand.contract import Preprocessing
from fruitstand.errors import UsageError
from fruitstand.images.synthetic import encode, pattern
from fruitstand_client.images import MAX_ENCODED_BYTES, read_batches, read_image

JPEG = encode(pattern(60, 40))


def test_a_path_a_file_and_bytes_are_one_image(tmp_path: Path) -> None:
    """Named by what they are named by."""
    path = tmp_path / "one.jpg"
    path.write_bytes(JPEG)
    with path.open("rb") as file:
        read = [read_image(one) for one in (path, str(path), file, io.BytesIO(JPEG), JPEG)]
    assert [one.content for one in read] == [JPEG] * 5
    assert [one.name for one in read] == [str(path)] * 3 + [""] * 2


def test_an_array_is_sent_without_changing_a_pixel() -> None:
    """As PNG."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    sent = read_image(pixels).content
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sent))), pixels)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.zeros((20, 20, 3), np.float32), id="float"),
        pytest.param(np.zeros((3, 20, 20), np.uint8), id="channels_first"),
        pytest.param(np.zeros((20, 20), np.uint8), id="grey"),
    ],
)
def test_an_array_of_another_kind_is_refused_with_what_is_expected(array: np.ndarray) -> None:
    """Nothing is guessed."""
    assert "expected (H, W, 3) uint8" in str(read_image(array).failure)


def test_an_array_without_pillow_names_what_to_install() -> None:
    """In a process that cannot import it."""
    script = (
        "import sys; sys.modules['PIL'] = None\n"
        "import numpy as np; from fruitstand_client.images import read_image\n"
        "try: read_image(np.zeros((9, 9, 3), np.uint8))\n"
        "except Exception as exc: print(type(exc).__name__, exc)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UsageError an array is sent as PNG, which needs Pillow: pip install")


def test_a_grpcio_that_is_too_old_for_tritonclient_is_one_line() -> None:
    """Its wheel does not declare what its generated code wants."""
    script = (
        "import grpc; grpc.__version__ = '1.50.0'\n"
        "from fruitstand_client import Client\n"
        "try: Client('127.0.0.1:1')\n"
        "except Exception as exc: print(type(exc).__name__, exc)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UsageError The grpc package installed is at version 1.50.0")
    assert done.stdout.endswith("(pip install --upgrade grpcio protobuf tritonclient)\n")


def test_what_is_no_image_at_all_is_a_mistake_of_the_program() -> None:
    """Told, not sent."""
    with pytest.raises(UsageError, match="got int, expected a path"):
        read_image(7)
    with pytest.raises(UsageError, match="mode 'rb'"):
        read_image(io.StringIO("text"))


def sparse(path: Path, size_bytes: int) -> Path:
    """A file of any size that takes no room."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def test_a_file_of_200_mb_is_never_read(tmp_path: Path) -> None:
    """Its size is enough."""
    path = sparse(tmp_path / "large.jpg", 200 * 10**6)
    before = Path("/proc/self/io").read_text().split()[1]
    failure = str(read_image(path).failure)
    after = Path("/proc/self/io").read_text().split()[1]
    assert failure == "too many bytes: 200000000, at most 8388608 are allowed"
    assert int(after) - int(before) < 10**6
    with path.open("rb") as file:
        assert "too many bytes" in str(read_image(file).failure)
        assert file.tell() == MAX_ENCODED_BYTES + 1


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    """No rights, nothing there, a link to nothing, a folder, a pipe that nobody writes to, no content."""
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(JPEG)
    secret.chmod(0)
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "empty.jpg").touch()
    user = os.geteuid()
    if user == 0:  # root may read everything
        tmp_path.chmod(0o755)
        for parent in tmp_path.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
        os.seteuid(65534)
    try:
        said = {
            name: str(read_image(tmp_path / f"{name}.jpg").failure)
            for name in ("secret", "nothing", "dangling", "folder", "pipe", "empty")
        }
    finally:
        os.seteuid(user)
    assert said == {
        "secret": "cannot be read: Permission denied",
        "nothing": "cannot be read: No such file or directory",
        "dangling": "cannot be read: No such file or directory",
        "folder": "cannot be read: no file, but a folder or a device",
        "pipe": "cannot be read: no file, but a folder or a device",
        "empty": "the image is empty (0 bytes)",
    }


def test_a_hostile_header_is_refused_here() -> None:
    """By the contract's own limits, before the server sees it."""
    limits = Preprocessing()
    assert limits.max_encoded_bytes == MAX_ENCODED_BYTES
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2
    assert "too many pixels" in str(read_image(header).failure)


def test_shrunk_photographs_keep_their_pixels_for_the_model(large_jpegs: dict[str, bytes]) -> None:
    """Fewer bytes, upright, and what the model sees moves by less than half of the gate."""
    from fruitstand.images.reference_decode import decode_reference

    contract = Preprocessing()
    for name, content in large_jpegs.items():
        (batch,) = read_batches([content], batch_bytes=2 * MAX_ENCODED_BYTES, shrink=True)
        assert batch[0].failure is None
        assert batch[0].converted_from is not None
        assert batch[0].converted_from.startswith("JPEG, shrunk to ")
        assert len(batch[0].content) < len(content)
        before, after = (decode_reference(one, contract).astype(int) for one in (content, batch[0].content))
        assert np.abs(before - after).mean() < 0.5, name


def test_shrinking_leaves_small_and_refuses_bad_images(large_jpegs: dict[str, bytes]) -> None:
    """A picture of 512 pixels is sent as it is; one that was cut off gets the server's own reason."""
    small = encode(pattern(900, 512))
    cut = large_jpegs["largest"][:100_000]
    batches = read_batches([small, cut], batch_bytes=2 * MAX_ENCODED_BYTES, shrink=True)
    sent, refused = (image for batch in batches for image in batch)
    assert (sent.content, sent.converted_from) == (small, None)
    assert str(refused.failure).startswith("truncated")
