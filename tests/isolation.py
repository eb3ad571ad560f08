"""Whether each caller gets its own answer: among bad images, and among many others.

- **Bad images.** One image of eight is bad, of every kind in turn; the server batches single-image requests.
  Each bad one has to be refused with its reason, and the others answered as alone; how fast they are is held
  against the same load without bad images, in turns.
- **Many callers.** Requests of distinct images at once; each answer is compared with its image's own, alone.
"""

import asyncio
import itertools
import random
from collections.abc import Sequence
from typing import Any

import grpc.aio

from benchmarks.load import Target, ask_all, ratio
from fruitstand.errors import ImageRejected
from fruitstand_client import RequestFailed
from fruitstand_client.errors import translate
from fruitstand_client.prediction import Prediction
from serving.attest.kinds import image_kinds

ONE_BAD_OF = 8
IN_FLIGHT, MANY_IN_FLIGHT = 64, 256
MAX_DIFFERENCE = 1e-4
"""Between an image's probability alone and in a batch."""

Outcome = Prediction | RequestFailed


def among_bad(
    url: str, files: Sequence[bytes], alone: Sequence[Outcome], *, rounds: int, batches: int
) -> dict[str, Any]:
    """Send good images with and without bad ones among them.

    Args:
        url: HOST:PORT.
        files: good images.
        alone: what each of them is answered with, alone.
        rounds: with and without bad images, in turns.
        batches: of eight images, one of them bad, in each round.
    """
    kinds = [kind for kind in image_kinds() if not kind.is_accepted and kind.content]
    images_per_s: dict[str, list[float]] = {"clean": [], "with_bad": []}
    not_refused, not_as_alone, endless = 0, 0, itertools.cycle(kinds)
    for number in range(rounds):
        # In each eight the bad one has another place.
        bad = {ONE_BAD_OF * one + one % ONE_BAD_OF: next(endless) for one in range(batches)}
        clean = [files[one % len(files)] for one in range(ONE_BAD_OF * batches)]
        mixed = [bad[one].content if one in bad else file for one, file in enumerate(clean)]
        loads = {"clean": clean, "with_bad": mixed}
        for load in sorted(loads, reverse=number % 2 == 1):
            seconds, outcomes = ask(url, loads[load], IN_FLIGHT)
            refused = bad if load == "with_bad" else {}
            images_per_s[load].append((len(clean) - len(refused)) / seconds)
            for one, outcome in enumerate(outcomes):
                if one in refused:
                    not_refused += not _is_refused(outcome, refused[one].verdict)
                else:
                    not_as_alone += not _is_as_alone(outcome, alone[one % len(files)])
    return {
        "kinds": len(kinds),
        "bad": rounds * batches,
        "bad_not_refused_with_their_reason": not_refused,
        "good_not_answered_as_alone": not_as_alone,
        "good_images_per_s": images_per_s,
        "good_over_clean": ratio(images_per_s["with_bad"], images_per_s["clean"]),
    }


def among_many(
    url: str, files: Sequence[bytes], alone: Sequence[Outcome], *, requests: int
) -> dict[str, Any]:
    """Send images from many callers at once.

    Args:
        url: HOST:PORT.
        files: good images, in random order as often as it takes.
        alone: what each of them is answered with, alone.
        requests: in all.
    """
    order = [one % len(files) for one in range(requests)]
    random.Random(1).shuffle(order)
    seconds, outcomes = ask(url, [files[one] for one in order], MANY_IN_FLIGHT)
    wrong = sum(not _is_as_alone(answer, alone[one]) for one, answer in zip(order, outcomes, strict=True))
    return {
        "in_flight": MANY_IN_FLIGHT,
        "requests": requests,
        "not_answered_as_alone": wrong,
        "swaps_that_would_be_noticed": round(_told_apart(alone), 4),
        "images_per_s": round(requests / seconds, 1),
    }


def _is_refused(outcome: Outcome, verdict: str) -> bool:
    return isinstance(outcome, ImageRejected) and verdict in str(outcome)


def _is_as_alone(outcome: Outcome, alone: Outcome) -> bool:
    if not isinstance(outcome, Prediction) or not isinstance(alone, Prediction):
        return False
    known, least = dict(alone.top_k), alone.top_k[-1].probability
    return outcome.label == alone.label and all(
        abs(probability - known[label]) <= MAX_DIFFERENCE
        if label in known
        else probability <= least + MAX_DIFFERENCE
        for label, probability in outcome.top_k
    )


def _told_apart(alone: Sequence[Outcome]) -> float:
    """Of all pairs of images, how many whose answers could not be taken for each other."""
    pairs = list(itertools.combinations(alone, 2))
    return sum(not _is_as_alone(one, other) for one, other in pairs) / max(1, len(pairs))


def ask(url: str, images: Sequence[bytes], in_flight: int) -> tuple[float, list[Outcome]]:
    """Send each image as a request of its own.

    Args:
        url: HOST:PORT.
        images: encoded.
        in_flight: requests in flight.

    Returns:
        Seconds for all, and for each image its answer or its failure.
    """
    number_of = {image: number for number, image in enumerate(dict.fromkeys(images))}
    target = Target(url, list(number_of), top_k=5)
    seconds, answers = asyncio.run(ask_all(target, [number_of[image] for image in images], in_flight))
    return seconds, [
        translate(one.code().name, one.details() or "", url)
        if isinstance(one, grpc.aio.AioRpcError)
        else target.prediction(one)
        for one in answers
    ]
