"""Requests that are wrong in every way the protocol allows, made from a seed."""

import random
from typing import Any

from tritonclient.grpc import service_pb2

from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE, IMAGE_DECODE

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


def malformed_request(random_: random.Random, image: bytes) -> Any:
    """A ModelInferRequest that was right until one to three parts of it were changed."""
    request = service_pb2.ModelInferRequest(model_name=FRUIT_CLASSIFIER)
    tensor = request.inputs.add(name=IMAGE, datatype="UINT8", shape=[1, len(image)])
    request.raw_input_contents.append(image)
    for _ in range(random_.randint(1, 3)):
        change = random_.randrange(10)
        if change == 0:
            tensor.datatype = random_.choice(DATATYPES[1:])
        elif change == 1:
            del tensor.shape[:]
            tensor.shape.extend(random_.choice(DIMENSIONS) for _ in range(random_.randint(0, 4)))
        elif change == 2:
            tensor.name = random_.choice(("", "PIXELS", "image", "x" * 1000, "../x"))
        elif change == 3:
            request.model_name = random_.choice(NAMES[1:])
        elif change == 4:
            request.model_version = random_.choice(("0", "-1", "99", "x", "1" * 40, "../1"))
        elif change == 5:
            request.raw_input_contents.append(image)
        elif change == 6:
            del request.raw_input_contents[:]
        elif change == 7:
            request.inputs.add().CopyFrom(tensor)
        elif change == 8:
            request.outputs.add(name=random_.choice(("", "NOTHING", "PROBABILITIES\0")))
        else:
            content = bytearray(image)
            for _ in range(random_.randint(1, 20)):
                content[random_.randrange(len(content))] = random_.randrange(256)
            request.raw_input_contents[:] = [bytes(content[: random_.randint(0, len(content))])]
    return request
