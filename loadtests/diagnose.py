"""`fruitstand diagnose`: what a server's statistics say, during a load, of why it is as fast as it is."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2

from fruitstand.contract import IMAGE_GUARD
from fruitstand.errors import UsageError
from fruitstand.machine.threads import thread_budget
from loadtests.server_statistics import Counters, ServedModel, breakdown, growth

MIN_REQUESTS = 20
"""Fewer say nothing."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
ONE_CALLER = 1.05
"""Requests at the server at once: one caller that waits for its answers makes no more."""
FEW_IN_FLIGHT = 1.5
"""Below, nobody is there to share a batch with."""
NO_BATCH = 1.2
"""Images in a mean batch, of requests with one image."""
FULL_STEP = 0.75
"""Share of the time that a step's instances compute; from here on it sets the pace."""
IDLE_STEP = 0.6
LONG_QUEUE = 0.5
KIND_GPU = model_config_pb2.ModelInstanceGroup.KIND_GPU
ONNXRUNTIME = "onnxruntime"
THREAD_KEYS = ("intra_op_thread_count", "num_threads")


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason, in words."""

    cause: str
    """For a program: one of those that `explain` names."""
    model: str
    words: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of the ensemble and its steps."""

    configs: dict[str, Any]
    steps: list[str]
    ensemble: str
    counters: Counters
    seconds: float
    num_cores: int | None
    """Of the server's machine; None where it is another one and nobody told."""

    @property
    def in_flight(self) -> float:
        """Requests at the server at once, on average, by Little's law."""
        return self.counters[self.ensemble].request_ns / 1e9 / self.seconds

    def busy(self, step: str) -> float:
        """Share of the time that each of a step's instances, or of their workers, computed."""
        at_once = num_at_once(self.configs[step], self.num_cores)
        return self.counters[step].busy_ns / 1e9 / self.seconds / at_once


def diagnose(url: str, *, seconds: float = 10.0, num_cores: int | None = None) -> dict[str, Any]:
    """Watch a server that is under load, and explain what is seen.

    Args:
        url: HOST:PORT of the server's gRPC endpoint.
        seconds: how long to watch.
        num_cores: of the server's machine; None takes this machine's, if the server is on it.

    Returns:
        `findings`, the most telling first, and the numbers behind them.

    Raises:
        UsageError: no server, another model, or no load.
    """
    if seconds <= 0:
        raise UsageError(f"seconds: got {seconds:g}, allowed > 0")
    with ServedModel(url) as model:
        before, started = model.read(), time.monotonic()
        time.sleep(seconds)
        counters, elapsed_s = growth(before, model.read()), time.monotonic() - started
        if num_cores is None and url.rpartition(":")[0] in LOOPBACK:
            num_cores = thread_budget()
        seen = Observed(model.configs, model.steps, model.name, counters, elapsed_s, num_cores)
    total = counters[model.name]
    if total.num_requests < MIN_REQUESTS:
        raise UsageError(
            f"{url}: {total.num_requests} requests in {elapsed_s:.0f} s: there is nothing to explain; run it"
            " while 'fruitstand loadtest' or your own clients are sending"
        )
    return {
        "seconds": round(elapsed_s, 2),
        "images_per_s": round(total.num_images / elapsed_s, 1),
        "in_flight": round(seen.in_flight, 2),
        "steps": breakdown(counters, model.steps, elapsed_s),
        "findings": [asdict(one) for one in explain(seen)],
    }


def explain(seen: Observed) -> list[Finding]:
    """Every cause that the numbers and the configuration show, those of the configuration first."""
    findings = [finding for step in seen.steps for finding in _batching(seen, step)]
    findings += [finding for step in seen.steps for finding in _threads(seen, step)]
    return findings + list(_pace(seen))


def num_instances(config: Any) -> int:
    """Of a step, as its configuration says."""
    return sum(group.count for group in config.instance_group) or 1


def has_own_queue(config: Any) -> bool:
    """Whether the embedded server's own backend serves this step: it queues and batches by itself."""
    return "default_timeout_microseconds" in config.parameters


def num_at_once(config: Any, num_cores: int | None) -> int:
    """Batches that a step may compute at the same time: of its instances, and there of the workers of each.

    Args:
        config: the step's.
        num_cores: of the server's machine, where known: workers without a number are one a thread.
    """
    instances = num_instances(config)
    if not has_own_queue(config) or config.backend != ONNXRUNTIME:
        return instances
    written = _number(config, "num_workers")
    threads = _number(config, THREAD_KEYS[0]) or (num_cores or 1) // instances
    return instances * (written or max(1, threads // max(1, _number(config, "threads_per_worker"))))


def _number(config: Any, key: str) -> int:
    """A parameter; 0 where it is not there."""
    text = config.parameters[key].string_value if key in config.parameters else ""
    return int(text) if text.isdecimal() else 0


def _batching(seen: Observed, step: str) -> Iterator[Finding]:
    """Why batches do not form, where they do not."""
    config, counters = seen.configs[step], seen.counters[step]
    request_images = counters.num_images / max(1, counters.num_requests)
    if config.max_batch_size <= 1:
        words = f"max_batch_size is {config.max_batch_size}: every image is computed by itself"
        yield Finding("batch_size_cap", step, words, "set max_batch_size to 64 and export again")
        return
    if step == IMAGE_GUARD or counters.mean_batch > NO_BATCH * request_images:  # it checks one by one
        return
    observed = f"batches do not form: {counters.mean_batch:.1f} images an execution"
    ragged = [tensor.name for tensor in config.input if -1 in tensor.dims and not tensor.allow_ragged_batch]
    if not config.HasField("dynamic_batching") and not has_own_queue(config):
        words = f"{observed}; the configuration has no dynamic_batching"
        yield Finding("no_dynamic_batching", step, words, "add dynamic_batching { }")
    elif ragged:
        words = (
            f"{observed}; {', '.join(ragged)} has a variable length and no allow_ragged_batch: a batch ends"
            " at the first image of another length"
        )
        remedy = "set allow_ragged_batch: true on that input"
        yield Finding("ragged_flag_missing", step, words, remedy)
    elif has_own_queue(config):
        return  # our own backend computes at once what is there: few in flight make small batches
    elif seen.in_flight > ONE_CALLER and config.dynamic_batching.max_queue_delay_microseconds == 0:
        words = (
            f"{observed}; max_queue_delay_microseconds is 0 and only {seen.in_flight:.1f} requests are under"
            " way: each is taken as soon as it comes"
        )
        remedy = "set a delay of about a millisecond, or send more at once"
        yield Finding("no_queue_delay", step, words, remedy)


def _threads(seen: Observed, step: str) -> Iterator[Finding]:
    """More threads than cores."""
    config = seen.configs[step]
    threads = next(filter(None, (_number(config, key) for key in THREAD_KEYS)), None)
    on_gpu = any(group.kind == KIND_GPU for group in config.instance_group)
    if seen.num_cores is None or on_gpu:
        return
    yield from _workers(seen, step, seen.num_cores)
    if threads is None:
        return
    instances = num_instances(config)
    if instances * threads > seen.num_cores:
        words = (
            f"{instances} instance{'s' if instances > 1 else ''} with {threads} threads each on"
            f" {seen.num_cores} cores: they take turns instead of computing"
        )
        remedy = f"leave the thread count out, or set {max(1, seen.num_cores // instances)}"
        yield Finding("threads_oversubscribed", step, words, remedy)


def _workers(seen: Observed, step: str, num_cores: int) -> Iterator[Finding]:
    """Workers of our own backend that are more than the cores, or that leave some without work."""
    config = seen.configs[step]
    if not has_own_queue(config) or not _number(config, "num_workers"):
        return
    workers, threads = num_at_once(config, num_cores), max(1, _number(config, "threads_per_worker"))
    observed = f"{workers} workers with {threads} threads each on {num_cores} cores"
    remedy = "set num_workers to 0, which is as many as the threads allow"
    if workers * threads > num_cores:
        yield Finding("threads_oversubscribed", step, f"{observed}: they take turns", remedy)
    elif workers * threads < num_cores and seen.busy(step) >= FULL_STEP:
        yield Finding("too_few_workers", step, f"{observed}: the others have nothing to compute", remedy)


def _pace(seen: Observed) -> Iterator[Finding]:
    """Who sets the pace: the client, or which step; and how much of the time is waiting."""
    slowest = max(seen.steps, key=seen.busy)
    busy = seen.busy(slowest)
    if seen.in_flight < FEW_IN_FLIGHT or busy < IDLE_STEP:
        words = (
            f"the server waits for its clients: {seen.in_flight:.1f} requests under way on average, and"
            f" {slowest}, its busiest step, computes {busy:.0%} of the time"
        )
        yield Finding(
            "client_limited", seen.ensemble, words, "send more requests at once, or more images in each"
        )
    elif busy >= FULL_STEP:
        words = f"it sets the pace: it computes {busy:.0%} of the time"
        yield Finding(
            "limiting_step", slowest, words, "a smaller or quantised model, more cores, more replicas"
        )
    stages = [seen.counters[step] for step in seen.steps]
    queue_ns = sum(one.queue_ns for one in stages)
    share = queue_ns / max(1, seen.counters[seen.ensemble].request_ns)
    if share > LONG_QUEUE:
        words = f"{share:.0%} of a request's time is waiting in queues"
        yield Finding("queueing", seen.ensemble, words, "it is past its knee: send less, or add replicas")
