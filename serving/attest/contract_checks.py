"""Checks that the server is the one the repository describes: answers, tensors, labels, version."""

import struct

import numpy as np
from tritonclient.grpc import service_pb2

from fruitstand.contract import ENCODED, IMAGE, KNOWN, PIXELS, PROBABILITIES, SET_SIZE
from fruitstand.images.synthetic import canary_image
from fruitstand.repository.tolerances import MAX_SUM_ERROR
from fruitstand_client.wire import strings
from serving.attest.caller import Server
from serving.attest.promise import Promise, Subject
from serving.attest.report import Check, Status, judged, not_seen

_Tensor = tuple[str, str, list[int]]
"""Name, datatype and shape."""
NUM_VERSION_CALLS = 8
"""Several calls, because a gateway spreads them over its servers."""


def is_distribution(probabilities: np.ndarray | None) -> bool:
    """Whether every row is finite and sums to one."""
    if probabilities is None or not probabilities.size or not np.isfinite(probabilities).all():
        return False
    return bool((np.abs(probabilities.sum(axis=-1) - 1) <= 10 * MAX_SUM_ERROR).all())


async def check_answers(server: Server, promise: Promise | None) -> Check:
    """Check that the server is ready and classifies one image; if not, name the step that fails."""
    expected = (
        f"ready, and {server.names.classifier} answers an image with probabilities within"
        f" {server.timeout_s:g} s"
    )
    ready = await server.call("ServerReady", service_pb2.ServerReadyRequest())
    answer = await server.classify(canary_image())
    probabilities = answer.array()
    if answer.ok and is_distribution(probabilities):
        is_ready = ready.ok and ready.response.ready
        got = f"answered in {answer.latency_s * 1e3:.0f} ms" + ("" if is_ready else f"; ready: {ready}")
        advice = "look at the server's log: a model is not loaded, or is still loading"
        return judged("answers", ok=is_ready, expected=expected, got=got, advice=advice)
    if answer.ok:
        got = "the answer is not a probability distribution"
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
    """Call each step of the ensemble by itself and report its status."""
    encoded = np.frombuffer(canary_image(), np.uint8)[None]
    decode, model = server.names.decode, server.names.model
    decoded = await server.infer(decode, ENCODED, encoded, output=PIXELS)
    words = [f"{decode}: {decoded}"]
    pixels = decoded.array(PIXELS)
    if pixels is None and promise is not None:
        pixels = np.zeros((1, *promise.input_size, 3), np.uint8)
    if pixels is not None:
        words.append(f"{model}: {await server.infer(model, PIXELS, pixels)}")
    return ", ".join(words)


async def check_contract(subject: Subject) -> Check:
    """Check names, datatypes and shapes of the ensemble's tensors, and of its steps' if they are visible."""
    height, width = subject.preprocessing.input_size if subject.version else (-1, -1)
    num_classes = len(subject.version.manifest["labels"]) if subject.version else -1
    names = subject.names
    answers = [(PROBABILITIES, "FP32", [-1, num_classes])]
    # Without the repository nobody knows whether the version tells what it does not know.
    if subject.version is None or subject.version.serve.known:
        answers += [(name, "FP32", [-1, 1]) for name in (KNOWN, SET_SIZE)]
    pixels = (PIXELS, "UINT8", [-1, height, width, 3])
    promised = {
        names.classifier: ([(IMAGE, "UINT8", [-1, -1])], answers),
        names.decode: ([(ENCODED, "UINT8", [-1, -1])], [pixels]),
        names.model: ([pixels], answers),
    }
    seen, wrong = [], []
    for model, tensors_promised in promised.items():
        answer = await subject.server.call("ModelMetadata", service_pb2.ModelMetadataRequest(name=model))
        if not answer.ok:
            if model == names.classifier:
                wrong.append(f"{model}: {answer}")
            continue
        seen.append(model)
        for tensors, wanted in zip(
            (answer.response.inputs, answer.response.outputs), tensors_promised, strict=True
        ):
            got = [(one.name, one.datatype, list(one.shape)) for one in tensors]
            if subject.version is None:
                wanted = wanted[: max(1, len(got))]
            if len(got) != len(wanted) or not all(map(_fits, got, wanted)):
                wrong.append(f"{model}: {got}, not {wanted}")
    return judged(
        "contract",
        ok=not wrong,
        expected=f"{IMAGE} UINT8 in, {PROBABILITIES} FP32 [-1, {num_classes}] out and the steps",
        got="; ".join(wrong) or f"as promised: {', '.join(seen)}",
        advice="serve the repository's own config.pbtxt: 'fruitstand models check' lists edited files",
    )


def _fits(got: _Tensor, promised: _Tensor) -> bool:
    """Whether name, datatype and shape match the promised ones, in which -1 matches any size."""
    return (
        got[:2] == promised[:2]
        and len(got[2]) == len(promised[2])
        and all(want in (-1, one) for one, want in zip(got[2], promised[2], strict=True))
    )


async def check_labels(subject: Subject) -> Check:
    """Check all labels that the server returns, and their order."""
    expected = "the labels of the version's manifest, in its order"
    if subject.version is None:
        return not_seen("labels", expected, subject.no_version)
    labels = subject.version.manifest["labels"]
    answer = await subject.server.classify(canary_image(), num_classes=len(labels))
    if not answer.ok or not answer.response.raw_output_contents:
        return not_seen("labels", expected, f"the server returns no labels ({answer})")
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
        advice="render the repository again ('fruitstand models promote N') and reload the model",
    )


def _labels(raw: bytes) -> dict[int, str]:
    """Labels by class index from Triton's classification output of 'probability:class:label' entries."""
    try:
        parts = [entry.decode("utf-8", "replace").split(":", 2) for entry in strings(raw)]
    except struct.error:  # the server is not Triton
        return {}
    return {int(one[1]): one[2] for one in parts if len(one) == 3 and one[1].isdecimal()}


async def check_version(subject: Subject) -> Check:
    """Check that every answer comes from the version that the repository serves."""
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
        advice="promote the version again or restart the server, and check that it reads this repository",
    )
