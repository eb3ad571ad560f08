"""`fruitstand diagnose`: find what limits a server under load, from its configuration and statistics."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2

from fruitstand.contract import FRUIT_CLASSIFIER
from fruitstand.errors import UsageError
from fruitstand.machine.threads import thread_budget
from loadtests.server_statistics import Counters, ServedModel, breakdown, growth

MIN_REQUESTS = 20
"""Fewer requests are not enough for a diagnosis."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
ONE_CALLER = 1.05
"""Mean requests in flight up to which there is probably a single caller that waits for each answer."""
FEW_IN_FLIGHT = 1.5
"""With fewer mean requests in flight there is nothing to batch."""
NO_BATCH = 1.2
"""Batches do not form if the mean batch is at most this many times the images of one request."""
FULL_STEP = 0.75
"""A step whose instances compute for this share of the time limits the throughput."""
IDLE_STEP = 0.6
"""Below this share the server waits for its clients."""
LONG_QUEUE = 0.5
"""Share of a request's time in queues above which the server is overloaded."""
KIND_GPU = model_config_pb2.ModelInstanceGroup.KIND_GPU
ONNXRUNTIME, PYTHON = "onnxruntime", "python"
THREAD_KEYS = ("intra_op_thread_count", "num_threads")


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause and its remedy."""

    cause: str
    """Identifier for programs, such as no_queue_delay."""
    model: str
    words: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Observed:
    """Configuration and counters of the ensemble and its steps."""

    configs: dict[str, Any]
    steps: list[str]
    ensemble: str
    counters: Counters
    seconds: float
    num_cores: int | None
    """Cores of the server's machine; None if unknown."""

    @property
    def in_flight(self) -> float:
        """Mean number of requests in flight, by Little's law."""
        return self.counters[self.ensemble].request_ns / 1e9 / self.seconds

    def busy(self, step: str) -> float:
        """Share of the time that a step's instances, or their workers, computed."""
        at_once = num_at_once(self.configs[step], self.num_cores)
        return self.counters[step].busy_ns / 1e9 / self.seconds / at_once


def diagnose(
    url: str, *, model_name: str = FRUIT_CLASSIFIER, seconds: float = 10.0, num_cores: int | None = None
) -> dict[str, Any]:
    """Watch a server under load, and find out what limits its throughput.

    Returns:
        `findings`, those of the configuration first, and the numbers behind them.

    Raises:
        UsageError: no server, another model, or no load.
    """
    if seconds <= 0:
        raise UsageError(f"seconds: got {seconds:g}, allowed > 0")
    with ServedModel(url, model_name) as model:
        before, started = model.read(), time.monotonic()
        time.sleep(seconds)
        counters, elapsed_s = growth(before, model.read()), time.monotonic() - started
        if num_cores is None and url.rpartition(":")[0] in LOOPBACK:
            num_cores = thread_budget()
        seen = Observed(model.configs, model.steps, model.name, counters, elapsed_s, num_cores)
    total = counters[model.name]
    if total.num_requests < MIN_REQUESTS:
        raise UsageError(
            f"{url}: only {total.num_requests} requests in {elapsed_s:.0f} s; run this while 'fruitstand"
            " loadtest' or your own clients are sending"
        )
    return {
        "seconds": round(elapsed_s, 2),
        "images_per_s": round(total.num_images / elapsed_s, 1),
        "in_flight": round(seen.in_flight, 2),
        "steps": breakdown(counters, model.steps, elapsed_s),
        "findings": [asdict(one) for one in explain(seen)],
    }


def explain(seen: Observed) -> list[Finding]:
    """All causes that configuration and counters show, those of the configuration first."""
    findings = [finding for step in seen.steps for finding in _batching(seen, step)]
    findings += [finding for step in seen.steps for finding in _threads(seen, step)]
    return findings + list(_pace(seen))


def num_instances(config: Any) -> int:
    """Number of instances in a step's configuration."""
    return sum(group.count for group in config.instance_group) or 1


def has_own_queue(config: Any) -> bool:
    """Whether our own backend serves this step: it has its own queue and batching."""
    return "default_timeout_microseconds" in config.parameters


def num_at_once(config: Any, num_cores: int | None) -> int:
    """Batches that a step can compute at the same time: its instances times their workers.

    Args:
        config: the configuration of the step.
        num_cores: cores of the server's machine; without `num_workers`, there is one worker per thread.
    """
    instances = num_instances(config)
    if not has_own_queue(config) or config.backend != ONNXRUNTIME:
        return instances
    written = _number(config, "num_workers")
    threads = _number(config, THREAD_KEYS[0]) or (num_cores or 1) // instances
    return instances * (written or max(1, threads // max(1, _number(config, "threads_per_worker"))))


def _number(config: Any, key: str) -> int:
    """The value of a parameter; 0 if it is not set."""
    text = config.parameters[key].string_value if key in config.parameters else ""
    return int(text) if text.isdecimal() else 0


def _batching(seen: Observed, step: str) -> Iterator[Finding]:
    """Find out why batches do not form."""
    config, counters = seen.configs[step], seen.counters[step]
    request_images = counters.num_images / max(1, counters.num_requests)
    if config.max_batch_size <= 1:
        words = f"max_batch_size is {config.max_batch_size}, so every image is computed on its own"
        yield Finding("batch_size_cap", step, words, "set max_batch_size to 64 and export again")
        return
    # The guard checks images one by one.
    if config.backend == PYTHON or counters.mean_batch > NO_BATCH * request_images:
        return
    observed = f"batches do not form: {counters.mean_batch:.1f} images per execution"
    ragged = [tensor.name for tensor in config.input if -1 in tensor.dims and not tensor.allow_ragged_batch]
    if not config.HasField("dynamic_batching") and not has_own_queue(config):
        words = f"{observed}; the configuration has no dynamic_batching"
        yield Finding("no_dynamic_batching", step, words, "add dynamic_batching { }")
    elif ragged:
        words = (
            f"{observed}; {', '.join(ragged)} has a variable length and no allow_ragged_batch, so only images"
            " of equal length share a batch"
        )
        remedy = "set allow_ragged_batch: true on that input"
        yield Finding("ragged_flag_missing", step, words, remedy)
    elif has_own_queue(config):
        return  # our backend takes what is queued without delay, so few requests in flight make small batches
    elif seen.in_flight > ONE_CALLER and config.dynamic_batching.max_queue_delay_microseconds == 0:
        words = (
            f"{observed}; max_queue_delay_microseconds is 0 and only {seen.in_flight:.1f} requests are in"
            " flight, so each one is computed as soon as it arrives"
        )
        remedy = "set a delay of about a millisecond, or send more requests at once"
        yield Finding("no_queue_delay", step, words, remedy)


def _threads(seen: Observed, step: str) -> Iterator[Finding]:
    """Find thread counts that do not fit the cores."""
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
            f" {seen.num_cores} cores: the cores are oversubscribed"
        )
        remedy = f"omit the thread count, or set it to {max(1, seen.num_cores // instances)}"
        yield Finding("threads_oversubscribed", step, words, remedy)


def _workers(seen: Observed, step: str, num_cores: int) -> Iterator[Finding]:
    """Find numbers of workers of our own backend that oversubscribe the cores or leave some idle."""
    config = seen.configs[step]
    if not has_own_queue(config) or not _number(config, "num_workers"):
        return
    workers, threads = num_at_once(config, num_cores), max(1, _number(config, "threads_per_worker"))
    observed = f"{workers} workers with {threads} threads each on {num_cores} cores"
    remedy = "set num_workers to 0, which uses all cores"
    if workers * threads > num_cores:
        yield Finding("threads_oversubscribed", step, f"{observed}: the cores are oversubscribed", remedy)
    elif workers * threads < num_cores and seen.busy(step) >= FULL_STEP:
        yield Finding("too_few_workers", step, f"{observed}: the other cores are idle", remedy)


def _pace(seen: Observed) -> Iterator[Finding]:
    """Find the bottleneck, client or step, and long queues."""
    slowest = max(seen.steps, key=seen.busy)
    busy = seen.busy(slowest)
    if seen.in_flight < FEW_IN_FLIGHT or busy < IDLE_STEP:
        words = (
            f"the server waits for its clients: {seen.in_flight:.1f} requests in flight on average, and"
            f" {slowest}, its busiest step, computes {busy:.0%} of the time"
        )
        yield Finding(
            "client_limited", seen.ensemble, words, "send more requests at once, or more images in each"
        )
    elif busy >= FULL_STEP:
        words = f"this step is the bottleneck: it computes {busy:.0%} of the time"
        yield Finding(
            "limiting_step", slowest, words, "use a smaller or quantised model, more cores or more replicas"
        )
    stages = [seen.counters[step] for step in seen.steps]
    queue_ns = sum(one.queue_ns for one in stages)
    share = queue_ns / max(1, seen.counters[seen.ensemble].request_ns)
    if share > LONG_QUEUE:
        words = f"requests spend {share:.0%} of their time in queues"
        remedy = "the load is beyond the knee: send less, or add replicas"
        yield Finding("queueing", seen.ensemble, words, remedy)
