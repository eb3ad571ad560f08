"""`fruitstand score`: offline scoring on Ray Data.

Only the locations of images travel through Ray. The workers read the images and write the answers themselves,
so no image is copied between processes.
"""

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from fruitstand.contract import MAX_BATCH_SIZE
from fruitstand.errors import ArtefactError, FruitstandError, ServerError, UsageError
from fruitstand.machine.threads import thread_budget
from fruitstand.network.tls import Tls
from fruitstand.progress import track
from fruitstand.repository.model_names import DEFAULT_NAME, names_for, repository_names
from scoring.job import Job, open_job
from scoring.model import (
    Answer,
    Model,
    PinnedServer,
    PinnedVersion,
    pin_repository,
    pin_server,
)
from scoring.partitions import Image, Partition, find_inputs


class Worker:
    """Scores partitions; loads the model with the first one."""

    def __init__(
        self, job: Job, pinned: PinnedVersion | PinnedServer, *, num_threads: int, top_k: int
    ) -> None:
        """Keep the arguments. The model is loaded later: Ray Data 2.60 hangs if a constructor fails.

        The decoder and the session have `num_threads` each.
        """
        self._job = job
        self._open = lambda: pinned.open(num_threads=num_threads, top_k=top_k)
        self._model: Model | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Score a batch of one partition; `map_batches` calls this.

        Returns:
            The result of `score`, and the error message as `failure`, because Ray loses the type of an error.
        """
        nothing = dict.fromkeys(("num_images", "started", "ended"), 0.0)
        (partition,) = batch["partition"]
        try:
            row: dict[str, Any] = {**self.score(partition), "failure": ""}
        except FruitstandError as exc:
            row = {**nothing, "failure": str(exc)}
        return {key: [value] for key, value in row.items()}

    def score(self, partition: Partition) -> dict[str, float]:
        """Score one partition and write it.

        Returns:
            Its number of images, and when it was started and ended, s.
        """
        model = self._model = self._model or self._open()
        started = time.time()
        scored: list[tuple[Image, Answer | str]] = []
        for images in self._batches(partition):
            readable = [one.content for one in images if isinstance(one.content, bytes)]
            answers = iter(model(readable))
            for one in images:
                answer = next(answers) if isinstance(one.content, bytes) else one.content
                # Drop the content, so that memory does not grow with the partition.
                scored.append((Image(one.index, one.path, ""), answer))
        self._job.write(partition.number, scored)
        return {"num_images": len(scored), "started": started, "ended": time.time()}

    def _batches(self, partition: Partition) -> Iterator[list[Image]]:
        """Yield the partition's images in batches; the next one is read while one is scored."""
        images = partition.read()

        def read() -> list[Image]:
            return list(islice(images, MAX_BATCH_SIZE))

        ahead = self._reader.submit(read)
        while batch := ahead.result():
            ahead = self._reader.submit(read)
            yield batch


OBJECT_STORE_BYTES = 128 * 2**20
"""Object store of a Ray started for the job; it holds locations, not images."""
MAX_RETRIES = 3
"""How often a partition is retried after its worker died; then the job ends."""


def score(
    source: Path,
    *,
    out: Path,
    repository: Path | None,
    url: str | None,
    name: str | None,
    num_workers: int | None,
    partition_size: int,
    top_k: int,
    columns: str,
    address: str | None,
    trusted_keys: Path | None,
    tls: Tls | None,
) -> dict[str, Any]:
    """Score every image of a source exactly once; a stopped job continues where it stopped.

    The arguments are the options of `fruitstand score`.

    Returns:
        Counts, the model, and the duration, s.

    Raises:
        UsageError: no input, no model, or a folder with another job.
        ArtefactError: the version was altered, or another run is writing into the folder.
        ServerError: Ray cannot be used as asked, or a worker failed.
    """
    names = tuple(columns.split(","))
    if len(names) != 2 or not all(names):
        raise UsageError(f"--columns: got {columns!r}, expected two names, as in image,path")
    if (repository is None) == (url is None):
        raise UsageError("give either --repository or --url")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out}: is inside {source}, whose files are the job's inputs; choose another --out")
    started = time.time()
    if url is not None:
        pinned = pin_server(url, tls, names_for(name or DEFAULT_NAME).classifier)
    else:
        repository_names(repository, name)
        pinned = pin_repository(repository, trusted_keys)
    inputs = find_inputs(source, partition_size=partition_size, columns=names)
    record = {
        "inputs": {"num_images": inputs.num_images, "sha256": inputs.sha256},
        "model": pinned.identity(),
        "settings": {"partition_size": partition_size, "top_k": top_k},
    }
    with open_job(out, record) as job:
        left = [one for one in inputs.partitions if not job.is_finished(one.number)]
        # Measured: one single-threaded process per core is faster than one process with all threads.
        options = {"num_threads": thread_budget() if num_workers == 0 else 1, "top_k": top_k}
        with _results(left, job, pinned, options, num_workers=num_workers, address=address) as results:
            rows = list(track(results, total=len(left), description="score partitions"))
        counts = job.count_rows()
    if sum(counts.values()) != inputs.num_images:
        raise ArtefactError(
            f"{out}: {counts['predictions']} predictions and {counts['errors']} errors for"
            f" {inputs.num_images} images; another program changed this folder; score into another --out"
        )
    return {
        "num_images": inputs.num_images,
        "num_predictions": counts["predictions"],
        "num_errors": counts["errors"],
        "num_scored_now": sum(row["num_images"] for row in rows),
        "model": pinned.identity(),
        "total_s": time.time() - started,
        "scoring_s": max(row["ended"] for row in rows) - min(row["started"] for row in rows) if rows else 0.0,
    }


@contextlib.contextmanager
def _results(
    partitions: list[Partition],
    job: Job,
    pinned: PinnedVersion | PinnedServer,
    options: dict[str, int],
    *,
    num_workers: int | None,
    address: str | None,
) -> Iterator[Iterable[dict[str, float]]]:
    """Score partitions with the chosen workers; yields their results as they arrive."""
    if not partitions:
        yield []
    elif num_workers == 0:
        worker = Worker(job, pinned, **options)
        yield map(worker.score, partitions)
    else:
        with _ray(address, num_workers) as num_cpus:
            fitting = int(num_cpus)
            if (num_workers or 1) > fitting:
                raise UsageError(
                    f"{num_workers or 1} workers need a core each, but Ray has {num_cpus:g}; lower --workers"
                )
            pool = min(num_workers or fitting, len(partitions))
            yield _map_on_ray(partitions, (job, pinned), options, pool)


@contextlib.contextmanager
def _ray(address: str | None, num_cpus: int | None) -> Iterator[float]:
    """Connect to a cluster, or start Ray here; yields its number of CPUs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_worker_niceness", "0")  # the default 15 gives other processes priority
    # Under `uv run` Ray uploads the working directory and starts its workers with uv.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    here = {"num_cpus": num_cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(
            address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else here),
        )
    except Exception as exc:  # Ray raises ConnectionError, ValueError, RuntimeError, and bare Exception
        raise ServerError(f"{address or 'this machine'}: cannot connect to or start Ray ({exc})") from exc
    try:
        yield ray.cluster_resources().get("CPU", 0.0)
    finally:
        ray.shutdown()


def _map_on_ray(
    partitions: list[Partition], arguments: tuple[Any, ...], options: dict[str, int], num_workers: int
) -> Iterator[dict[str, float]]:
    """Score partitions in a pool of Ray actors; Ray restarts an actor that dies and retries its partition."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False  # we show our own
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised too
    items = [{"partition": one} for one in partitions]
    with warnings.catch_warnings():
        # Deprecated, to be removed in Ray 2.64, but so far the only way to limit the retries.
        warnings.filterwarnings("ignore", message=".*ray_remote_args_fn", category=DeprecationWarning)
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Worker,
            batch_size=1,
            compute=ActorPoolStrategy(size=num_workers),
            num_cpus=1,
            ray_remote_args_fn=lambda: {"max_task_retries": MAX_RETRIES},
            fn_constructor_args=arguments,
            fn_constructor_kwargs=options,
        )
    try:
        for row in dataset.iter_rows():
            if row["failure"]:
                raise ServerError(f"a worker failed: {row['failure']}")
            yield row
    except ray.exceptions.RayError as exc:
        said = str(exc).strip().splitlines()[0]
        raise ServerError(f"a worker died: {said}; run the same command again to continue") from exc
