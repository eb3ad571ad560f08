"""Requests that are wrong in every way the protocol allows, made from a seed, and sent many at a time."""

import asyncio
import random
import time
from collections import Counter
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE, IMAGE_DECODE
from fruitstand.network.connections import open_channel
from fruitstand_client.wire import MODEL_INFER
from tests.nightly.chaos.pictures import picture
from tests.nightly.chaos.stack import Stack

CHANNELS, IN_FLIGHT = 4, 32
DEADLINE_S = 10.0
DATATYPES = ("UINT8", "FP32", "BYTES", "INT64", "BOOL", "FP16", "", "NONSENSE")
NAMES = (
    FRUIT_CLASSIFIER,
    FRUIT_RESNET,
    IMAGE_DECODE,
    "",
    "../../etc/passwd",
    "fruit_classifier\0",
    "x" * 5000,
)
DIMENSIONS = (0, -1, 1, 2, 65, 1 << 31, (1 << 63) - 1, -(1 << 63))
NUM_CHANGES = 12


def malformed_request(random_: random.Random, image: bytes) -> Any:
    """A ModelInferRequest that was right until one to three parts of it were changed."""
    request = service_pb2.ModelInferRequest(model_name=FRUIT_CLASSIFIER)
    tensor = request.inputs.add(name=IMAGE, datatype="UINT8", shape=[1, len(image)])
    request.raw_input_contents.append(image)
    for _ in range(random_.randint(1, 3)):
        _change(random_.randrange(NUM_CHANGES), random_, request, tensor, image)
    return request


def _change(kind: int, random_: random.Random, request: Any, tensor: Any, image: bytes) -> None:
    if kind == 0:
        tensor.datatype = random_.choice(DATATYPES[1:])
    elif kind == 1:
        del tensor.shape[:]
        tensor.shape.extend(random_.choice(DIMENSIONS) for _ in range(random_.randint(0, 4)))
    elif kind == 2:
        tensor.name = random_.choice(("", "PIXELS", "image", "x" * 1000, "../x"))
    elif kind == 3:
        request.model_name = random_.choice(NAMES[1:])
    elif kind == 4:
        request.model_version = random_.choice(("0", "-1", "99", "x", "1" * 40, "../1"))
    elif kind == 5:
        request.raw_input_contents.append(image)
    elif kind == 6:
        del request.raw_input_contents[:]
    elif kind == 7:
        request.inputs.add().CopyFrom(tensor)
    elif kind == 8:
        request.outputs.add(name=random_.choice(("", "NOTHING", "PROBABILITIES\0")))
    elif kind == 9:
        del request.raw_input_contents[:]
        tensor.contents.fp32_contents.extend((float("nan"), float("inf"), -1e38))
    elif kind == 10:
        key = random_.choice(("priority", "sequence_id", "binary_data", "shared_memory_region"))
        request.parameters[key].int64_param = random_.choice((-1, 0, 1, 1 << 62))
    else:
        content = bytearray(image)
        for _ in range(random_.randint(1, 20)):
            content[random_.randrange(len(content))] = random_.randrange(256)
        request.raw_input_contents[:] = [bytes(content[: random_.randint(0, len(content))])]


class MalformedLoad:
    """So many of them, over several connections."""

    def __init__(self, stack: Stack, number: int, *, seed: int) -> None:
        self.statuses = Counter[str]()
        self.examples: dict[str, str] = {}
        """The first words that came with each status."""
        self._latencies_ms: list[float] = []
        self._stack, self._number = stack, number
        self._random, self._image = random.Random(seed), picture()

    def send(self) -> None:
        """Send them all; what is answered well is counted in the stack's ledger."""
        asyncio.run(self._send())
        self._stack.answered += self.statuses["OK"]
        self._stack.given_up += self.statuses["DEADLINE_EXCEEDED"]

    def numbers(self) -> dict[str, Any]:
        """For the result."""
        ordered = sorted(self._latencies_ms)
        return {
            "requests": self._number,
            "statuses": dict(self.statuses),
            "examples": self.examples,
            "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 1),
        }

    async def _send(self) -> None:
        channels = [open_channel(self._stack.url, asynchronous=True) for _ in range(CHANNELS)]
        calls = [channel.unary_unary(MODEL_INFER) for channel in channels]
        left = iter(range(self._number))

        async def work(call: Any) -> None:
            for _ in left:
                await self._one(call, malformed_request(self._random, self._image).SerializeToString())

        await asyncio.gather(*(work(calls[number % CHANNELS]) for number in range(IN_FLIGHT)))
        for channel in channels:
            await channel.close()

    async def _one(self, call: Any, body: bytes) -> None:
        started = time.monotonic()
        try:
            await call(body, timeout=DEADLINE_S)
            status, words = "OK", ""
        except grpc.aio.AioRpcError as exc:
            status, words = exc.code().name, (exc.details() or "")[:120]
        self.statuses[status] += 1
        self.examples.setdefault(status, words)
        self._latencies_ms.append((time.monotonic() - started) * 1e3)
