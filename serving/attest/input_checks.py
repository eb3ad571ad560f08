"""Checks of bad input: each kind alone, each kind in a batch with good images, and the error texts."""

import asyncio
import re

import numpy as np

from fruitstand.contract import IMAGE, MAX_BATCH_SIZE
from fruitstand.images.synthetic import canary_image, encode, pattern
from serving.attest.caller import Answer, padded_batch
from serving.attest.contract_checks import is_distribution
from serving.attest.kinds import ImageKind, image_kinds
from serving.attest.promise import Subject
from serving.attest.report import Check, judged, not_seen

NUM_NEIGHBOURS = 7
MAX_NEIGHBOUR_DISTANCE = 0.02
"""Total variation allowed between an answer in a batch and alone: rounding depends on the batch size."""
QUICK_SHARE = 3
"""--quick sends every third bad kind with neighbours."""
REFUSALS = {"too_many_bytes": ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")}
"""A gateway or gRPC itself may refuse a long request first, with a status of its own."""
PATH = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+[\w.+-]+")
LEAKS = {
    "a path": PATH,
    "a stack trace": re.compile(r'Traceback|File "|\bline \d+, in |Stacktrace|#\d+ 0x|\.(?:cc|cpp|h|py):\d+'),
    "a shared-memory name": re.compile(
        r"/dev/shm|shm_?region|shared memory (?:key|region|object)|fruitstand-serve-"
    ),
}


async def check_input_kinds(subject: Subject) -> Check:
    """Check each kind alone: classified, or refused with INVALID_ARGUMENT and the reason."""
    wrong, silent, num_accepted, num_refused = [], 0, 0, 0
    for kind in image_kinds():
        answer = await subject.server.classify(kind.content)
        if kind.is_accepted:
            num_accepted += 1
            if not is_distribution(answer.array()):
                wrong.append(f"{kind.name}: {answer}")
            continue
        num_refused += 1
        if answer.status not in REFUSALS.get(kind.name, ("INVALID_ARGUMENT",)):
            wrong.append(f"{kind.name}: {answer}")
        elif kind.verdict not in answer.text:
            silent += 1
    got = f"{num_accepted + num_refused - len(wrong)} of {num_accepted + num_refused} as listed"
    got += f", {silent} refused without the reason" if silent else ""
    return judged(
        "input_kinds",
        ok=not wrong,
        expected=f"{num_accepted} kinds answered, {num_refused} refused with INVALID_ARGUMENT",
        got=f"{got}; {'; '.join(wrong[:4])}" if wrong else got,
        advice="docs/reference/input-kinds.md lists every kind; NVIDIA's decoder needs the guard before it",
    )


async def check_isolation(subject: Subject) -> Check:
    """Check that a bad image fails alone: it queues with seven good ones behind a full batch."""
    good = _good_images(subject)
    alone = [(await subject.server.classify(image)).array() for image in good]
    expected = "the bad image is refused, its seven neighbours get the answers they get alone"
    if any(one is None for one in alone):
        return not_seen("isolation", expected, "good images alone are not answered")
    bad_kinds = [kind for kind in image_kinds() if not kind.is_accepted]
    bad_kinds = bad_kinds[::QUICK_SHARE] if subject.quick else bad_kinds
    lost, changed, accepted, examples = 0, 0, 0, []
    before = await subject.counters()
    for kind in bad_kinds:
        bad, neighbours = await _among(subject, kind, good)
        for answer, own in zip(neighbours, alone, strict=True):
            array = answer.array()
            if array is None:
                lost += 1
                examples.append(f"beside {kind.name}: {answer}")
            elif float(np.abs(array - own).sum() / 2) > MAX_NEIGHBOUR_DISTANCE:
                changed += 1
                examples.append(f"beside {kind.name}: another answer than alone")
        if bad.ok:
            accepted += 1
            examples.append(f"{kind.name} is answered")
    num = NUM_NEIGHBOURS * len(bad_kinds)
    got = (
        f"{len(bad_kinds)} kinds: {lost} of {num} neighbours lost, {changed} changed, {accepted} bad answered"
    )
    after = await subject.counters()
    if before and after and subject.names.classifier in after:
        # The mean includes the full batch that goes first each time.
        grown = [after[name] - before[name] for name in after if name in before]
        got += f"; mean batch {max(one.num_images / max(1, one.num_executions) for one in grown):.1f}"
    return judged(
        "isolation",
        ok=not (lost or changed or accepted),
        expected=expected,
        got=f"{got}; {'; '.join(examples[:3])}" if examples else got,
        advice="a bad image fails its whole batch: put the guard model in front of the decoder",
    )


async def _among(subject: Subject, kind: ImageKind, good: list[bytes]) -> tuple[Answer, list[Answer]]:
    """Send a bad image and its neighbours so that they queue together behind a full batch."""
    full = padded_batch([canary_image()] * MAX_BATCH_SIZE)
    plug = asyncio.create_task(subject.server.infer(subject.names.classifier, IMAGE, full))
    await asyncio.sleep(0)
    calls = [subject.server.classify(image) for image in good[:3]]
    calls.append(subject.server.classify(kind.content))
    calls += [subject.server.classify(image) for image in good[3:]]
    answers = await asyncio.gather(*calls)
    await plug
    return answers[3], [*answers[:3], *answers[4:]]


def _good_images(subject: Subject) -> list[bytes]:
    """Seven images of different file sizes: the version's golden ones, then generated ones."""
    golden = subject.version.golden() if subject.version is not None else []
    images = [one.path.read_bytes() for one in golden]
    images += [encode(pattern(100 + 9 * n, 100, phase=0.9 * n)) for n in range(NUM_NEIGHBOURS)]
    return images[:NUM_NEIGHBOURS]


async def check_error_texts(subject: Subject) -> Check:
    """Check that no error text so far, nor of three more bad requests, reveals the server's internals."""
    await subject.server.classify(b"no image at all")
    await subject.server.infer(subject.names.classifier, "NO_SUCH_INPUT", np.zeros((1, 4), np.uint8))
    await subject.server.infer("../../etc/no_such_model", IMAGE, np.zeros((1, 4), np.uint8))
    texts = [text.replace("../../etc/no_such_model", "") for text in subject.server.error_texts]
    found = [
        f"{what}: {' '.join(text.split())[:160]!r}"
        for what, leak in LEAKS.items()
        for text in texts
        if leak.search(text)
    ]
    return judged(
        "error_texts",
        ok=not found,
        expected="no path, stack trace or shared-memory name",
        got=f"{len(found)} of {len(texts)} texts: {found[0]}"
        if found
        else f"{len(texts)} texts, none has one",
        advice="error texts reveal the server's internals: put the guard or the gateway in front of it",
    )
