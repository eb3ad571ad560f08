"""What the clients' tests send, and with which client."""

import struct

import pytest

from fruitstand.images.synthetic import encode, pattern
from tests.both_clients import Classify, awaiting, blocking


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """Forty files of different lengths."""
    jpeg = encode(pattern(50, 40))
    return [
        jpeg[:2] + b"\xff\xfe" + struct.pack(">H", 2 + size) + bytes(size) + jpeg[2:] for size in range(40)
    ]


@pytest.fixture(params=[blocking, awaiting])
def classify(request: pytest.FixtureRequest) -> Classify:
    """Either client."""
    return request.param
