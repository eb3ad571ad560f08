"""Checks of the answers: golden images, the decode step, the model step, and both together."""

import numpy as np

from fruitstand.contract import ENCODED, KNOWN, PIXELS
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
from serving.attest.promise import (
    Reference,
    Subject,
    decode_all,
    file_known,
    reference_answers,
    without_folders,
)
from serving.attest.report import Check, Status, judged, not_seen

IN_FLIGHT = 16
QUICK_SHARE = 4
"""--quick takes every fourth image."""
NUM_KNOWN = 8
"""Generated images in the check of KNOWN, beside the golden ones."""
MAX_KNOWN_DIFF = 0.05
"""Mean difference; a pixel that is off by one moves KNOWN, most where it is near one half."""
MODEL_CHUNK = 16
"""Decoded images in one request. 64 images of a large input size would exceed the gateway's limit."""
OTHER_PREPROCESSING = "the decode step differs from the contract's preprocessing: render the repository again"
OTHER_MODEL = (
    "other weights, or numerics outside the gates: compare the ONNX file's sha256 with the manifest's"
)
OWN_ANSWERS = "the answers of the version's own file"
NEED_THE_VERSION = ("model", "parity", "known")


async def check_golden(subject: Subject) -> Check:
    """Check that the golden images get the answers recorded when the version was published."""
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


async def check_parity(subject: Subject) -> list[Check]:
    """Compare the decode step, the model step and both together with this process, on generated images.

    Sets `subject.reference`.
    """
    images = list(supported_images().values())
    if subject.quick:
        images = images[::QUICK_SHARE]
    checks = [await _decode(subject, images)]
    if subject.version is None:
        return checks + [not_seen(name, OWN_ANSWERS, subject.no_version) for name in NEED_THE_VERSION]
    try:
        references = [reference_answers(subject.version, file, images) for file in subject.files]
    except FruitstandError as exc:
        return checks + [not_seen(name, OWN_ANSWERS, without_folders(exc)) for name in NEED_THE_VERSION]
    subject.reference = references[0]
    return [
        *checks,
        await _model(subject, references),
        await _both(subject, images, references),
        await _known(subject, images[:NUM_KNOWN]),
    ]


async def _decode(subject: Subject, images: list[bytes]) -> Check:
    expected = f"pixels within {MAX_DECODE_DIFF} of 255 of the reference decode (mean of the worst image)"
    if subject.version is None:
        return not_seen("decode", expected, subject.no_version)
    reference = decode_all(images, subject.preprocessing)
    model = subject.names.decode
    answers = await subject.server.classify_all(
        images, in_flight=IN_FLIGHT, model=model, tensor=ENCODED, output=PIXELS
    )
    worst, failed = 0.0, []
    for answer, pixels in zip(answers, reference, strict=True):
        if answer.status in ("NOT_FOUND", "UNIMPLEMENTED", "PERMISSION_DENIED"):
            return not_seen("decode", expected, f"{model} cannot be called by itself ({answer})")
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
    """Send pixels of the reference decode straight to the model step."""
    expected = "the answers of the version's own file to the same pixels, within its gate"
    pixels, model = references[0].pixels_nhwc_u8, subject.names.model
    parts = []
    number = subject.version.number if subject.version else None
    for start in range(0, len(pixels), MODEL_CHUNK):
        chunk = pixels[start : start + MODEL_CHUNK]
        answer = await subject.server.infer(model, PIXELS, chunk, version=number)
        array = answer.array()
        if array is None:
            return not_seen("model", expected, f"{model} cannot be called by itself ({answer})")
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
            advice="the server has to classify every one of these images: see docs/reference/input-kinds.md",
        )
    got = np.concatenate([answer.array() for answer in answers])
    return _nearest("parity", expected, got, references, "see the lines 'decode' and 'model'", decoded=True)


async def _known(subject: Subject, painted: list[bytes]) -> Check:
    """KNOWN of golden images, which are known, and of painted ones, which are not."""
    expected = f"KNOWN as from the version's own file, mean difference at most {MAX_KNOWN_DIFF}"
    version = subject.version
    assert version is not None, "the caller has looked"
    if not version.serve.known:
        return judged("known", ok=True, expected=expected, got="this version was not calibrated", advice="")
    images = [one.path.read_bytes() for one in version.golden()] + painted
    answers = await subject.server.classify_all(images, in_flight=IN_FLIGHT, output=KNOWN)
    arrays = [answer.array(KNOWN) for answer in answers]
    missing = [answer for answer, array in zip(answers, arrays, strict=True) if array is None]
    distance = float("inf")
    if not missing:
        got = np.concatenate(arrays)
        pixels = decode_all(images, subject.preprocessing)
        files = [file_known(version, file, pixels) for file in subject.files]
        distance = min(float(np.abs(got - one).mean()) for one in files)
    return judged(
        "known",
        ok=distance <= MAX_KNOWN_DIFF,
        expected=expected,
        got=f"{len(missing)} of {len(images)} images without it, {missing[0]}"
        if missing
        else f"{len(images)} images, mean difference {distance:.2g}",
        advice="render the repository again ('fruitstand models promote N') and load the model again",
    )


def _nearest(
    name: str,
    expected: str,
    got: np.ndarray,
    references: list[Reference],
    advice: str,
    *,
    decoded: bool = False,
) -> Check:
    """Compare answers with the ONNX file nearest to them: the server may not show which one it serves."""
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
    # The decode gate allows pixels that differ by one; those move answers further than rounding does.
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
