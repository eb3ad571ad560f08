"""C. Bad input: images, requests and sizes that no caller should send."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc

from fruitstand.contract import Preprocessing
from fruitstand.images.synthetic import encode
from fruitstand.network.connections import open_channel
from fruitstand_client import Client, RequestFailed
from fruitstand_client.prediction import Prediction
from fruitstand_client.wire import MODEL_INFER
from serving.attest.kinds import ImageKind, image_kinds
from tests.nightly.chaos.load import Load
from tests.nightly.chaos.malformed import MalformedLoad
from tests.nightly.chaos.pictures import many_pictures, picture
from tests.nightly.chaos.setting import Claim, Outcome, Setting, at_least, at_most, none_failed, none_of
from tests.nightly.chaos.stack import Stack

NEIGHBOURS = 7
NEXT_MS = 50.0
MAX_DISTANCE = 0.02
"""Between the probabilities of an image and of its pixels as the yardstick decodes them."""
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
TOO_LARGE = {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED"}
LARGE_BYTES = 100_000_000

MIN_WARM_UP = 1_000
"""Malformed requests, until every thread and arena of the servers has met some."""


def bad_images(setting: Setting) -> Outcome:
    """13: every kind of image gets its documented verdict, alone and among neighbours, which keep theirs."""
    good = many_pictures(NEIGHBOURS)
    kinds, wrong, next_ms = image_kinds(), [], []
    with (
        setting.stack() as stack,
        ThreadPoolExecutor(NEIGHBOURS + 1) as pool,
        Client(stack.url, deadline_s=20) as client,
    ):
        caller = _Caller(client, stack)
        alone = [caller.ask(one) for one in good]
        for kind in kinds:
            answer = caller.ask(kind.content)
            started = time.monotonic()
            caller.ask(good[0])
            next_ms.append((time.monotonic() - started) * 1e3)
            wrong += _faults(kind, answer, caller)
            mixed = list(pool.map(caller.ask, [kind.content, *good]))
            if not _agree(mixed[0], answer):
                wrong.append({"kind": kind.name, "among others": _short(mixed[0])})
            for before, after in zip(alone, mixed[1:], strict=True):
                if not _agree(before, after):
                    wrong.append({"kind": kind.name, "neighbour": _short(after)})
        bomb_mib = _growth_mib(stack, caller, kinds)
    next_ms.sort()
    numbers = {
        "kinds": len(kinds), "wrong": wrong, "next_good_call_p50_ms": round(next_ms[len(next_ms) // 2], 1),
        "next_good_call_max_ms": round(next_ms[-1], 1), "bomb_rss_growth_mib": round(bomb_mib, 1),
    }  # fmt: skip
    claims = (
        none_of("a verdict is not the documented one", wrong),
        at_most("p50 of the next good call, ms", numbers["next_good_call_p50_ms"], NEXT_MS),
        at_most("20 bombs cost, MiB", bomb_mib, 64),
    )
    return Outcome(claims, numbers)


class _Caller:
    """Asks about single images, and counts its answers."""

    def __init__(self, client: Client, stack: Stack) -> None:
        self._client, self._stack = client, stack
        self._lock = threading.Lock()

    def ask(self, image: bytes) -> Prediction | RequestFailed:
        """The answer, or why there is none."""
        try:
            (answer,) = self._client.classify_batch([image])
        except RequestFailed as exc:
            return exc
        with self._lock:
            self._stack.answered += 1
        return answer


def _faults(kind: ImageKind, answer: Prediction | RequestFailed, caller: _Caller) -> list[dict[str, str]]:
    """What is not as `docs/reference/input-kinds.md` says."""
    if kind.is_accepted:
        if isinstance(answer, RequestFailed):
            return [{"kind": kind.name, "answer": _short(answer)}]
        pixels = caller.ask(_as_decoded(kind.content))
        close = isinstance(pixels, Prediction) and pixels.label == answer.label
        close = close and abs(pixels.top_k[0].probability - answer.top_k[0].probability) <= MAX_DISTANCE
        return [] if close else [{"kind": kind.name, "other pixels": f"{_short(answer)}, {_short(pixels)}"}]
    refused = isinstance(answer, RequestFailed) and answer.status == "INVALID_ARGUMENT"
    if refused and str(answer).startswith(kind.verdict):
        return []
    return [{"kind": kind.name, "documented": kind.verdict, "answer": _short(answer)}]


def _as_decoded(content: bytes) -> bytes:
    """The pixels that the yardstick makes of a file, in one that every decoder reads alike."""
    from PIL import Image

    from fruitstand.images.reference_decode import decode_reference

    return encode(Image.fromarray(decode_reference(content, Preprocessing())), "PNG")


def _agree(one: Prediction | RequestFailed, other: Prediction | RequestFailed) -> bool:
    """The same answer to the last digit, or refused alike."""
    if isinstance(one, Prediction) and isinstance(other, Prediction):
        return one.top_k == other.top_k
    if isinstance(one, RequestFailed) and isinstance(other, RequestFailed):
        return one.status == other.status
    return False


def _short(answer: Prediction | RequestFailed) -> str:
    if isinstance(answer, RequestFailed):
        return f"{answer.status} {str(answer)[:80]}"
    return f"{answer.label} {answer.top_k[0].probability:.4f}"


def _growth_mib(stack: Stack, caller: _Caller, kinds: tuple[ImageKind, ...]) -> float:
    """What a small file of very many pixels costs."""
    (bomb,) = (kind.content for kind in kinds if kind.name == "png_bomb")
    before = stack.rss_mib()
    for _ in range(20):
        caller.ask(bomb)
    return stack.rss_mib() - before


def malformed_requests(setting: Setting) -> Outcome:
    """14: malformed requests crash nothing and are named the caller's fault."""
    number = setting.tier.malformed
    with setting.stack() as stack:
        pids = set(stack.pids())
        warm_up = MalformedLoad(stack, max(MIN_WARM_UP, number // 4), seed=1)
        warm_up.send()
        memory_mib = stack.rss_mib()
        load = MalformedLoad(stack, number, seed=14)
        load.send()
        growth_mib = stack.rss_mib() - memory_mib
        same = pids <= set(stack.pids())
        with Client(stack.url) as client:
            works = client.classify([picture()])[0].failure is None
        stack.answered += 1
    numbers = {
        **load.numbers(), "rss_growth_mib_per_100": round(growth_mib / (number / 100), 4),
        "same_processes": same, "still_works": works,
    }  # fmt: skip
    claims = (
        Claim("the processes are the same", same, "True", same),
        Claim("an image is still classified", works, "True", works),
        none_of("statuses that blame the server", {*load.statuses, *warm_up.statuses} - ALLOWED),
        at_most("memory for 100 requests, MiB", growth_mib / (number / 100), 1),
    )
    return Outcome(claims, numbers)


def too_large(setting: Setting) -> Outcome:
    """15: 100 MB and compressed requests, many at once, are refused and cost the others nothing."""
    at_once = 4 if setting.tier.repeats < 10 else 50
    statuses, rate = Counter[str](), setting.tier.rate

    def send(number: int) -> str:
        compression = grpc.Compression.Gzip if number % 2 else None
        with open_channel(stack.url) as channel:
            try:
                channel.unary_unary(MODEL_INFER)(body, timeout=60, compression=compression)
            except grpc.RpcError as exc:
                return str(exc.code().name)
        return "OK"

    with setting.stack() as stack:
        body, rss_mib = b"\0" * LARGE_BYTES, stack.rss_mib()
        with Load(stack, [[picture(6_000)]], rate=rate) as load, ThreadPoolExecutor(at_once) as pool:
            time.sleep(2)
            began = time.monotonic()
            statuses.update(pool.map(send, range(2 * at_once)))
            ended = max(time.monotonic(), began + 2)
            time.sleep(2)
        growth_mib = stack.rss_mib() - rss_mib
    goodput = load.ledger.goodput(began, ended) / rate
    numbers = {
        "refused": dict(statuses), **load.ledger.numbers(), "goodput_share": round(goodput, 3),
        "rss_growth_mib": round(growth_mib, 1), "at_once": at_once,
    }  # fmt: skip
    claims = (
        none_of("large requests end otherwise than refused", set(statuses) - TOO_LARGE),
        none_failed("no other call fails", load.ledger),
        at_least("share of the offered calls that are answered", goodput, 0.9),
        at_most("memory grows, MiB", growth_mib, 16 * at_once),
    )
    return Outcome(claims, numbers)
