"""Images to send: of a length, and many that are told apart by their answers."""

from collections.abc import Sequence

from fruitstand.images.synthetic import encode, pattern


def picture(size_bytes: int = 0) -> bytes:
    """A JPEG of about that length: what follows the picture's end is not looked at."""
    content = encode(pattern(100, 100))
    return content + b"\0" * max(0, size_bytes - len(content))


def many_pictures(number: int) -> Sequence[bytes]:
    """Different ones."""
    return [encode(pattern(100, 100, phase=0.37 * one)) for one in range(number)]
