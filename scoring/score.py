"""`fruitstand score`: offline scoring on Ray Data.

Only descriptions of partitions travel through Ray: its workers read the images and write the answers
themselves, so that no image is copied between processes.
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
from scoring.job import Job, open_job
from scoring.model import (
    Answer,
    LocalModel,
    PinnedServer,
    PinnedVersion,
    ServedModel,
    pin_repository,
    pin_server,
)
from scoring.partitions import Image, Partition, find_inputs


class Worker:
    """Loads the model once, for its first partition, and scores partitions with it."""

    def __init__(
        self, job: Job, pinned: PinnedVersion | PinnedServer, *, num_threads: int, top_k: int
    ) -> None:
        """Take note of the model; Ray Data 2.60 waits for ever for workers that cannot be constructed.

        Args:
            job: where to write.
            pinned: the model.
            num_threads: of the decode and of the session.
            top_k: classes in each answer.
        """
        self._job = job
        self._open = lambda: pinned.open(num_threads=num_threads, top_k=top_k)
        self._model: LocalModel | ServedModel | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Score partitions, as `map_batches` calls it.

        Args:
            batch: `partition`, one partition.

        Returns:
            What `score` returns, and as `failure` why there is none: Ray loses the type of an error.
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
            How many images it holds, and when it was begun and ended, s.
        """
        model = self._model = self._model or self._open()
        started = time.time()
        scored: list[tuple[Image, Answer | str]] = []
        for images in self._batches(partition):
            readable = [one.content for one in images if isinstance(one.content, bytes)]
            answers = iter(model.answer(readable))
            for one in images:
                answer = next(answers) if isinstance(one.content, bytes) else one.content
                # What the file held is let go: memory does not grow with the partition.
                scored.append((Image(one.index, one.path, ""), answer))
        self._job.write(partition.number, scored)
        return {"num_images": len(scored), "started": started, "ended": time.time()}

    def _batches(self, partition: Partition) -> Iterator[list[Image]]:
        """The partition's images in batches; one is read ahead while another is scored."""
        images = partition.read()

        def read() -> list[Image]:
            return list(islice(images, MAX_BATCH_SIZE))

        ahead = self._reader.submit(read)
        while batch := ahead.result():
            ahead = self._reader.submit(read)
            yield batch


OBJECT_STORE_BYTES = 128 * 2**20
"""Of a Ray that is started for the job: it holds descriptions, not images."""
MAX_RETRIES = 3
"""How often a partition is begun again because its worker died; what kills every worker ends the job."""


def score(
    source: Path,
    *,
    out: Path,
    repository: Path | None,
    url: str | None,
    num_workers: int | None,
    partition_size: int,
    top_k: int,
    columns: str,
    address: str | None,
    trusted_keys: Path | None,
    tls: Tls | None,
) -> dict[str, Any]:
    """Score every image of a source once, and go on where an earlier run was stopped.

    Args:
        source: see `scoring.partitions.find_inputs`.
        out: the job's folder, see `scoring.job`.
        repository: scores with the version it serves.
        url: HOST:PORT of a server that scores instead.
        num_workers: processes; None takes what the processors allow; 0 works in this one, without Ray.
        partition_size: images that are written together.
        top_k: classes in each answer.
        columns: IMAGE,ID of a parquet source.
        address: of a Ray cluster, on which source, repository and out are shared; None starts Ray here.
        trusted_keys: a folder with public keys, one of which must have signed the served version.
        tls: of the connection to that server.

    Returns:
        Counts, the model, and how long it took, s.

    Raises:
        UsageError: no input, no model, or a folder with another job.
        ArtefactError: the version was altered, or another run is writing into the folder.
        ServerError: Ray cannot be used as asked, or a worker failed.
    """
    names = tuple(columns.split(","))
    if len(names) != 2 or not all(names):
        raise UsageError(f"--columns: got {columns!r}, expected two names, as in image,path")
    if (repository is None) == (url is None):
        raise UsageError("name one of --repository and --url")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out}: is inside {source}, whose files are the job's inputs; choose another --out")
    started = time.time()
    pinned = pin_server(url, tls) if url is not None else pin_repository(repository, trusted_keys)
    inputs = find_inputs(source, partition_size=partition_size, columns=names)
    record = {
        "inputs": {"num_images": inputs.num_images, "sha256": inputs.sha256},
        "model": pinned.identity(),
        "settings": {"partition_size": partition_size, "top_k": top_k},
    }
    with open_job(out, record) as job:
        left = [one for one in inputs.partitions if not job.is_finished(one.number)]
        # Measured: a process a processor does more than one with all of them.
        options = {"num_threads": thread_budget() if num_workers == 0 else 1, "top_k": top_k}
        with _results(left, job, pinned, options, num_workers=num_workers, address=address) as results:
            rows = list(track(results, total=len(left), description="score partitions"))
        counts = job.count_rows()
    if sum(counts.values()) != inputs.num_images:
        raise ArtefactError(
            f"{out}: {counts['predictions']} predictions and {counts['errors']} errors for"
            f" {inputs.num_images} images; something else changed this folder: score into another --out"
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
    """What the workers return, as they return it."""
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
                    f"{num_workers or 1} workers need a processor each, Ray has {num_cpus:g}; lower --workers"
                )
            pool = min(num_workers or fitting, len(partitions))
            yield _map_on_ray(partitions, (job, pinned), options, pool)


@contextlib.contextmanager
def _ray(address: str | None, num_cpus: int | None) -> Iterator[float]:
    """Connect to a cluster, or start Ray here; the number of processors it has."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15: whatever else runs here would go before
    # Under `uv run` it would upload the working directory, of whatever size, and start workers with uv again.
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
    except Exception as exc:  # ConnectionError, ValueError, RuntimeError, and for a late node plainly this
        raise ServerError(f"{address or 'this machine'}: no Ray to work on ({exc})") from exc
    try:
        yield ray.cluster_resources().get("CPU", 0.0)
    finally:
        ray.shutdown()


def _map_on_ray(
    partitions: list[Partition], arguments: tuple[Any, ...], options: dict[str, int], num_workers: int
) -> Iterator[dict[str, float]]:
    """Score partitions in a pool of Ray actors; Ray restarts one that dies and repeats what it was doing."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours is shown
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error is raised as well
    items = [{"partition": one} for one in partitions]
    with warnings.catch_warnings():
        # Going away in Ray 2.64, and so far the only way to bound the retries.
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
        raise ServerError(f"a worker died: {said}; the same command goes on where this one stopped") from exc
