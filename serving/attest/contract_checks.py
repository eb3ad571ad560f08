"""Is it the server that the repository describes? Answers at all, tensors, labels, version."""

import struct

import numpy as np
from tritonclient.grpc import service_pb2

from fruitstand.contract import (
    ENCODED,
    FRUIT_CLASSIFIER,
    FRUIT_RESNET,
    IMAGE,
    IMAGE_DECODE,
    PIXELS,
    PROBABILITIES,
)
from fruitstand.images.synthetic import canary_image
from fruitstand.repository.tolerances import MAX_SUM_ERROR
from fruitstand_client.wire import strings
from serving.attest.caller import Server
from serving.attest.check import Check, Status, judged, not_seen
from serving.attest.promise import MODELS, Promise, Subject

NUM_VERSION_CALLS = 8
"""Behind a gateway several servers answer in turn."""


def is_distribution(probabilities: np.ndarray | None) -> bool:
    """Whether an answer is a probability distribution."""
    if probabilities is None or not probabilities.size or not np.isfinite(probabilities).all():
        return False
    return bool((np.abs(probabilities.sum(axis=-1) - 1) <= 10 * MAX_SUM_ERROR).all())


async def check_answers(server: Server, promise: Promise | None) -> Check:
    """The server is ready and answers one image; if it does not, which step is to blame."""
    expected = (
        f"ready, and {FRUIT_CLASSIFIER} answers an image with probabilities within {server.timeout_s:g} s"
    )
    ready = await server.call("ServerReady", service_pb2.ServerReadyRequest())
    answer = await server.classify(canary_image())
    probabilities = answer.array()
    if answer.ok and is_distribution(probabilities):
        is_ready = ready.ok and ready.response.ready
        got = f"answered in {answer.latency_s * 1e3:.0f} ms" + ("" if is_ready else f"; ready: {ready}")
        return judged(
            "answers", ok=is_ready, expected=expected, got=got, advice="look at the server's log: a model is"
            " not loaded, or it still loads one",
        )  # fmt: skip
    if answer.ok:
        got = "an answer that is no probability distribution"
    else:
        got = str(answer)
        if ready.ok:
            got += "; " + await _steps(server, promise)
    return Check(
        name="answers",
        status=Status.FAILED,
        expected=expected,
        got=got,
        advice="check the address and the server's log; restart the server if a step is dead",
    )


async def _steps(server: Server, promise: Promise | None) -> str:
    """Which step of the ensemble answers by itself."""
    encoded = np.frombuffer(canary_image(), np.uint8)[None]
    decoded = await server.infer(IMAGE_DECODE, ENCODED, encoded, output=PIXELS)
    words = [f"{IMAGE_DECODE}: {decoded}"]
    pixels = decoded.array(PIXELS)
    if pixels is None and promise is not None:
        pixels = np.zeros((1, *promise.input_size, 3), np.uint8)
    if pixels is not None:
        words.append(f"{FRUIT_RESNET}: {await server.infer(FRUIT_RESNET, PIXELS, pixels)}")
    return ", ".join(words)


async def check_contract(subject: Subject) -> Check:
    """Names, datatypes and shapes of the ensemble's tensors, and of its steps where they can be seen."""
    height, width = subject.preprocessing.input_size if subject.version else (-1, -1)
    num_classes = len(subject.version.manifest["labels"]) if subject.version else -1
    promised = {
        FRUIT_CLASSIFIER: ((IMAGE, "UINT8", [-1, -1]), (PROBABILITIES, "FP32", [-1, num_classes])),
        IMAGE_DECODE: ((ENCODED, "UINT8", [-1, -1]), (PIXELS, "UINT8", [-1, height, width, 3])),
        FRUIT_RESNET: ((PIXELS, "UINT8", [-1, height, width, 3]), (PROBABILITIES, "FP32", [-1, num_classes])),
    }
    seen, wrong = [], []
    for model in MODELS:
        answer = await subject.server.call("ModelMetadata", service_pb2.ModelMetadataRequest(name=model))
        if not answer.ok:
            if model == FRUIT_CLASSIFIER:
                wrong.append(f"{model}: {answer}")
            continue
        seen.append(model)
        for tensors, (name, datatype, shape) in zip(
            (answer.response.inputs, answer.response.outputs), promised[model], strict=True
        ):
            got = [(one.name, one.datatype, list(one.shape)) for one in tensors]
            if len(got) != 1 or got[0][:2] != (name, datatype) or not _fits(got[0][2], shape):
                wrong.append(f"{model}: {got}, not {(name, datatype, shape)}")
    return judged(
        "contract",
        ok=not wrong,
        expected=f"{IMAGE} UINT8 in, {PROBABILITIES} FP32 [-1, {num_classes}] out and the steps",
        got="; ".join(wrong) or f"as promised: {', '.join(seen)}",
        advice="serve the repository's own config.pbtxt: 'fruitstand models check' names edited files",
    )


def _fits(got: list[int], promised: list[int]) -> bool:
    """Whether a shape is the promised one; a promised -1 takes any size."""
    return len(got) == len(promised) and all(
        want in (-1, one) for one, want in zip(got, promised, strict=True)
    )


async def check_labels(subject: Subject) -> Check:
    """The labels the server writes into its answers, all of them and in order."""
    expected = "the labels of the version's manifest, in its order"
    if subject.version is None:
        return not_seen("labels", expected, subject.no_version)
    labels = subject.version.manifest["labels"]
    answer = await subject.server.classify(canary_image(), num_classes=len(labels))
    if not answer.ok or not answer.response.raw_output_contents:
        return not_seen("labels", expected, f"the server does not give labels ({answer})")
    served = _labels(answer.response.raw_output_contents[0])
    wrong = [index for index, label in enumerate(labels) if served.get(index) != label]
    first = wrong[0] if wrong else 0
    return judged(
        "labels",
        ok=not wrong and len(served) == len(labels),
        expected=f"{expected}: {len(labels)}",
        got=f"{len(wrong)} of {len(labels)} differ; class {first} is {served.get(first)!r}, not"
        f" {labels[first]!r}"
        if wrong
        else f"{len(served)} labels, all equal",
        advice="render the repository again ('fruitstand models promote N') and load the model again",
    )


def _labels(raw: bytes) -> dict[int, str]:
    """Labels by class in Triton's classification answer, whose entries are 'probability:class:label'."""
    try:
        parts = [entry.decode("utf-8", "replace").split(":", 2) for entry in strings(raw)]
    except struct.error:  # another server's own form
        return {}
    return {int(one[1]): one[2] for one in parts if len(one) == 3 and one[1].isdecimal()}


async def check_version(subject: Subject) -> Check:
    """Every answer comes from the version that the repository serves."""
    answers = await subject.server.classify_all([canary_image()] * NUM_VERSION_CALLS, in_flight=4)
    numbers = sorted({answer.version for answer in answers if answer.version is not None})
    got = f"version {', '.join(map(str, numbers))}" if numbers else "the answers name no version"
    if subject.promise is None:
        return not_seen("version", "the version the repository serves", f"{subject.no_version}; got {got}")
    served = subject.promise.served
    if not numbers:
        return not_seen("version", f"version {served}", got)
    return judged(
        "version",
        ok=numbers == [served] and subject.version is not None,
        expected=f"version {served} in every answer, its files as published",
        got=got if subject.version is not None else f"{got}; {subject.no_version}",
        advice="promote the version again, or restart the server; does it read this repository?",
    )
