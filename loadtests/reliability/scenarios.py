"""The scenarios that are built, by number: each hurts a running stack and says what became of the calls."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from fruitstand.image_kinds import image_kinds
from fruitstand.sample_images import encode, pattern
from fruitstand_client import Client, RequestFailed
from loadtests.reliability.load import Load
from loadtests.reliability.malformed import malformed_request
from loadtests.reliability.stack import Stack

INFER = "/inference.GRPCInferenceService/ModelInfer"
ABANDONED = "cluster.triton.retry_or_shadow_abandoned"
RETRIED = "cluster.triton.upstream_rq_retry"
BACK_S = 120.0
REFUSALS = ("PERMISSION_DENIED", "UNIMPLEMENTED")
CONTROL = (
    "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelConfig", "ModelStatistics",
    "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "TraceSetting",
    "LogSettings",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """How much of everything."""

    rate: float
    """Calls/s of the load."""
    repeats: int
    """Of a fault."""
    steady_s: float
    """Before and after each fault."""
    malformed: int
    """Requests."""


TIERS = {
    "ci": Tier(rate=10, repeats=2, steady_s=4, malformed=2_000),
    "full": Tier(rate=100, repeats=20, steady_s=20, malformed=100_000),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one scenario."""

    passed: bool
    numbers: dict[str, object]


def _image(size_bytes: int) -> bytes:
    """A JPEG of about that length: what follows the picture's end is not looked at."""
    content = encode(pattern(100, 100))
    return content + b"\0" * max(0, size_bytes - len(content))


def _faulty_load(stack: Stack, tier: Tier, images: list[bytes], fault: Callable[[int], object]) -> Outcome:
    """Calls go on while a fault happens again and again; none may fail."""
    before = {name: stack.counter(name) for name in (ABANDONED, RETRIED)}
    back_s = []
    with Load(stack.url, images, rate=tier.rate) as load:
        for number in range(tier.repeats):
            time.sleep(tier.steady_s)
            fault(number % len(stack.replicas))
            time.sleep(3)  # the gateway has to notice first
            back_s.append(stack.wait_healthy(len(stack.replicas), BACK_S))
        time.sleep(tier.steady_s)
    abandoned, retried = (stack.counter(name) - before[name] for name in (ABANDONED, RETRIED))
    numbers = {
        **load.ledger.numbers(),
        "retried": retried,
        "retry_or_shadow_abandoned": abandoned,
        "all_healthy_again_s": [round(one, 2) for one in back_s],
    }
    return Outcome(load.ledger.failed == 0 and abandoned == 0 and bool(load.ledger.statuses["OK"]), numbers)


def replica_killed(stack: Stack, tier: Tier) -> Outcome:
    """1: kill -9 of one replica under load."""
    return _faulty_load(stack, tier, [_image(6_000)], lambda n: stack.signal(n, signal.SIGKILL))


def replica_killed_large(stack: Stack, tier: Tier) -> Outcome:
    """2: the same with 300 KB and 4 MB."""
    images = [_image(300_000), _image(4_000_000)]
    return _faulty_load(stack, tier, images, lambda n: stack.signal(n, signal.SIGKILL))


def replica_hangs(stack: Stack, tier: Tier) -> Outcome:
    """3: SIGSTOP for 15 s, then SIGCONT."""

    def fault(number: int) -> None:
        pid_stopped = stack.pid(number)
        stack.signal(number, signal.SIGSTOP)
        time.sleep(15)
        if stack.pid(number) == pid_stopped:
            stack.signal(number, signal.SIGCONT)

    return _faulty_load(stack, tier, [_image(6_000)], fault)


def rolling_restart(stack: Stack, tier: Tier) -> Outcome:
    """4: all replicas are restarted in turn under load."""

    def fault(_: int) -> None:
        old = {stack.pid(number) for number in range(len(stack.replicas))}
        stack.roll()
        deadline = time.monotonic() + 3 * BACK_S
        while time.monotonic() < deadline:
            time.sleep(1)
            try:
                if not old & {stack.pid(number) for number in range(len(stack.replicas))}:
                    return
            except Exception:  # one of them does not run at this moment
                continue

    return _faulty_load(stack, tier, [_image(6_000)], fault)


def bad_images(stack: Stack, tier: Tier) -> Outcome:
    """13: every kind of image gets its documented verdict, alone."""
    wrong = []
    with Client(stack.url, deadline_s=20) as client:
        for kind in image_kinds():
            try:
                client.classify_batch([kind.content])
                status = "OK"
            except RequestFailed as exc:
                status = exc.status or "UNKNOWN"
            if status != ("OK" if kind.is_accepted else "INVALID_ARGUMENT"):
                wrong.append({"kind": kind.name, "status": status})
    return Outcome(not wrong, {"kinds": len(image_kinds()), "wrong": wrong})


def malformed_requests(stack: Stack, tier: Tier) -> Outcome:
    """14: malformed requests crash nothing and are named the caller's fault."""
    random_, statuses = random.Random(14), Counter[str]()
    pids, image = set(stack.pids()), _image(0)
    with grpc.insecure_channel(stack.url) as channel:
        call = channel.unary_unary(INFER, request_serializer=lambda message: message.SerializeToString())
        warm_up = min(500, tier.malformed // 4)
        memory_mib = 0.0
        for number in range(tier.malformed):
            if number == warm_up:
                memory_mib = stack.rss_mib()
            try:
                call(malformed_request(random_, image), timeout=10)
                statuses["OK"] += 1
            except grpc.RpcError as exc:
                statuses[exc.code().name] += 1
    growth_mib = stack.rss_mib() - memory_mib
    allowed = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    same = pids <= set(stack.pids())
    per_100_mib = growth_mib / ((tier.malformed - warm_up) / 100)
    numbers = {"statuses": dict(statuses), "rss_growth_mib_per_100": per_100_mib, "same_processes": same}
    return Outcome(same and set(statuses) <= allowed and per_100_mib <= 1, numbers)


def too_large(stack: Stack, tier: Tier) -> Outcome:
    """15: 100 MB and compressed requests are refused and cost the others nothing."""
    statuses = Counter[str]()
    with Load(stack.url, [_image(6_000)], rate=tier.rate) as load:
        options = [("grpc.max_send_message_length", -1)]
        for body, compression in ((b"\0" * 100_000_000, None), (b"\0" * 1_000_000, grpc.Compression.Gzip)):
            with grpc.insecure_channel(stack.url, options) as channel:
                try:
                    channel.unary_unary(INFER)(body, timeout=30, compression=compression)
                    statuses["OK"] += 1
                except grpc.RpcError as exc:
                    statuses[exc.code().name] += 1
    good = set(statuses) <= {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED"}
    return Outcome(good and load.ledger.failed == 0, {"refused": dict(statuses), **load.ledger.numbers()})


def control_refused(stack: Stack, tier: Tier) -> Outcome:
    """25: control is refused by the gateway, and by the servers behind it; inference works."""
    let_in = []
    attempts = 0
    for url, layer in ((stack.url, "gateway"), *((url, "server") for url in stack.replicas)):
        with grpc.insecure_channel(url) as channel:
            for method in CONTROL:
                path = f"/inference.GRPCInferenceService/{method}"
                variants = [path] if layer == "server" else [
                    path, "/" + path, path + "/", path.upper(), path.replace("e", "%65"),
                    f"{INFER}/../..{path}",
                    path + "?x=1", path.replace("/", "%2f"), path.lower(), path + "%00", path + "/..",
                    "/v2" + path,
                    path + ";", path + ".", "/x/.." + path,
                    path + "#",
                ]  # fmt: skip
                for variant in variants:
                    attempts += 1
                    try:
                        channel.unary_unary(variant)(b"", timeout=10)
                        let_in.append({"layer": layer, "path": variant})
                    except grpc.RpcError as exc:
                        code, words = exc.code().name, exc.details() or ""
                        # An empty body is an error too, of a call that was let in.
                        refused = "restricted" in words if layer == "server" else code in REFUSALS
                        if not refused:
                            let_in.append({"layer": layer, "path": variant, "status": code, "words": words})
    with Client(stack.url) as client:
        works = client.classify([_image(0)])[0].failure is None
    return Outcome(not let_in and works, {"attempts": attempts, "let_in": let_in, "inference_works": works})


SCENARIOS: dict[int, Callable[[Stack, Tier], Outcome]] = {
    1: replica_killed,
    2: replica_killed_large,
    3: replica_hangs,
    4: rolling_restart,
    13: bad_images,
    14: malformed_requests,
    15: too_large,
    25: control_refused,
}
NUM_SCENARIOS = 30
BLOCKERS = (1, 4, 9, 13, 16, 17, 20, 25)
