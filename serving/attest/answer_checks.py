"""Are the answers right? Golden images, the decode step, the model step, and both together."""

from dataclasses import dataclass

import numpy as np

from fruitstand.contract import ENCODED, FRUIT_RESNET, IMAGE_DECODE, MAX_BATCH_SIZE, PIXELS
from fruitstand.errors import FruitstandError
from fruitstand.images.synthetic import supported_images
from fruitstand.repository.tolerances import (
    MAX_DECODE_DIFF,
    MAX_FP16_ABS_DIFF,
    MAX_INT8_DISTANCE,
    MIN_AGREEMENT,
    MIN_MARGIN,
    all_but_share_or_one_image,
)
from fruitstand.repository.versions import MAX_GOLDEN_DISTANCE, farthest_golden
from serving.attest.check import Check, Status, judged, not_seen
from serving.attest.promise import Reference, Subject, decode_all, reference_answers, why_not

IN_FLIGHT = 16
QUICK_SHARE = 4
"""With --quick one of so many images."""
MODEL_CHUNK = 16
"""Decoded images in one request: 64 of a large input size are more than a gateway lets through."""
OTHER_PREPROCESSING = "the decode step does not do the contract's preprocessing: render the repository again"
OTHER_MODEL = (
    "other weights, or numerics outside the gates: compare the version's sha256 on the server's side"
)


async def check_golden(subject: Subject) -> Check:
    """The version's golden images get the answers recorded when it was published."""
    expected = f"the recorded answers, distance at most {MAX_GOLDEN_DISTANCE}"
    if subject.version is None:
        return not_seen("golden", expected, subject.no_version)
    golden = subject.version.golden()
    answers = await subject.server.classify_all(
        [one.path.read_bytes() for one in golden], in_flight=IN_FLIGHT
    )
    failed = [answer for answer in answers if not answer.ok]
    arrays = [answer.array() for answer in answers]
    _, distance = farthest_golden(golden, [[] if one is None else one[0].tolist() for one in arrays])
    got = f"{len(golden)} images, largest distance {distance:.3g}"
    return judged(
        "golden",
        ok=distance <= MAX_GOLDEN_DISTANCE,
        expected=expected,
        got=f"{got}; {len(failed)} not answered, {failed[0]}" if failed else got,
        advice="another model, other preprocessing or a broken engine: see 'decode' and 'model'",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """The lines of the report about numbers, and what they were held against."""

    checks: list[Check]
    reference: Reference | None


async def check_parity(subject: Subject) -> Parity:
    """Painted images of all formats: the decode step, the model step, and both, against our own."""
    images = list(supported_images().values())
    if subject.quick:
        images = images[::QUICK_SHARE]
    checks = [await _decode(subject, images)]
    if subject.version is None:
        checks += [not_seen(name, "the version's own file's answers", subject.no_version) for name in
                   ("model", "parity")]  # fmt: skip
        return Parity(checks=checks, reference=None)
    try:
        references = [reference_answers(subject.version, file, images) for file in subject.files]
    except FruitstandError as exc:
        checks += [not_seen(name, "the version's own file's answers", why_not(exc)) for name in
                   ("model", "parity")]  # fmt: skip
        return Parity(checks=checks, reference=None)
    checks += [await _model(subject, references), await _both(subject, images, references)]
    return Parity(checks=checks, reference=references[0])


async def _decode(subject: Subject, images: list[bytes]) -> Check:
    expected = f"pixels within {MAX_DECODE_DIFF} of 255 of the reference decode (mean of the worst image)"
    if subject.version is None:
        return not_seen("decode", expected, subject.no_version)
    reference = decode_all(images, subject.preprocessing)
    answers = await subject.server.classify_all(
        images, in_flight=IN_FLIGHT, model=IMAGE_DECODE, tensor=ENCODED, output=PIXELS
    )
    worst, failed = 0.0, []
    for answer, pixels in zip(answers, reference, strict=True):
        if answer.status in ("NOT_FOUND", "UNIMPLEMENTED", "PERMISSION_DENIED"):
            return not_seen("decode", expected, f"{IMAGE_DECODE} cannot be called by itself ({answer})")
        array = answer.array(PIXELS)
        if array is None or array.shape[1:] != pixels.shape:
            failed.append(str(answer) if not answer.ok else f"shape {None if array is None else array.shape}")
        else:
            worst = max(worst, float(np.abs(array[0].astype(np.int16) - pixels).mean()))
    got = f"{len(images)} images, worst {worst:.3g}"
    return judged(
        "decode",
        ok=not failed and worst <= MAX_DECODE_DIFF,
        expected=expected,
        got=f"{got}; {len(failed)} not decoded, {failed[0]}" if failed else got,
        advice=OTHER_PREPROCESSING,
    )


async def _model(subject: Subject, references: list[Reference]) -> Check:
    """The model step on the reference's own pixels: no decoder in between."""
    expected = "the answers of the version's own file to the same pixels, within its gate"
    pixels = references[0].pixels_nhwc_u8
    parts = []
    for start in range(0, len(pixels), MODEL_CHUNK):
        answer = await subject.server.infer(
            FRUIT_RESNET, PIXELS, pixels[start : start + min(MODEL_CHUNK, MAX_BATCH_SIZE)],
            version=subject.version.number if subject.version else None,
        )  # fmt: skip
        array = answer.array()
        if array is None:
            return not_seen("model", expected, f"{FRUIT_RESNET} cannot be called by itself ({answer})")
        parts.append(array)
    return _nearest("model", expected, np.concatenate(parts), references, OTHER_MODEL)


async def _both(subject: Subject, images: list[bytes], references: list[Reference]) -> Check:
    expected = "the answers of the reference decode and the version's own file, within the gates"
    answers = await subject.server.classify_all(images, in_flight=IN_FLIGHT)
    failed = [answer for answer in answers if answer.array() is None]
    if failed:
        return Check(
            name="parity",
            status=Status.FAILED,
            expected=expected,
            got=f"{len(failed)} of {len(images)} images not answered, {failed[0]}",
            advice="every one of these images has to be answered: docs/inputs.md",
        )
    got = np.concatenate([answer.array() for answer in answers])
    return _nearest("parity", expected, got, references, "see the lines 'decode' and 'model'", decoded=True)


def _nearest(
    name: str,
    expected: str,
    got: np.ndarray,
    references: list[Reference],
    advice: str,
    *,
    decoded: bool = False,
) -> Check:
    """Judge answers by the file they are nearest to: which one is served is not always shown.

    Args:
        name: of the check.
        expected: for the report.
        got: (N, C) the server's answers.
        references: what each file answers.
        advice: where it fails.
        decoded: the server decoded by itself, so a pixel may be off by one.
    """
    if any(got.shape != one.probabilities.shape for one in references):
        text = f"shape {got.shape}, not {references[0].probabilities.shape}"
        return judged(name, ok=False, expected=expected, got=text, advice=advice)
    nearest = min(references, key=lambda one: float(np.abs(got - one.probabilities).sum()))
    differences = np.abs(got - nearest.probabilities)
    distance, largest = float(differences.sum(axis=1).mean() / 2), float(differences.max())
    ordered = np.sort(nearest.probabilities, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] >= MIN_MARGIN
    same = got.argmax(axis=1) == nearest.probabilities.argmax(axis=1)
    agreement = float(same[clear].mean()) if clear.any() else 1.0
    limit = all_but_share_or_one_image(MIN_AGREEMENT, max(1, int(clear.sum())))
    # A pixel that is off by one is within the decode gate, and moves answers further than rounding does.
    is_exact = not decoded and "int8" not in nearest.file
    numbers_ok = largest <= MAX_FP16_ABS_DIFF if is_exact else distance <= MAX_INT8_DISTANCE
    allowed = f"largest {MAX_FP16_ABS_DIFF}" if is_exact else f"mean distance {MAX_INT8_DISTANCE}"
    return judged(
        name,
        ok=bool(np.isfinite(got).all()) and numbers_ok and agreement >= limit,
        expected=f"{expected}: {allowed}, top-1 agreement {limit:.3f}",
        got=f"{len(got)} images, nearest file {nearest.file}: largest difference {largest:.2g}, mean distance"
        f" {distance:.2g}, top-1 agreement {agreement:.3f} of {int(clear.sum())} clear answers",
        advice=advice,
    )
