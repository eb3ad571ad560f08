"""One worker of the pool: takes partitions, leaves their parquet files, returns counts."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from fruitstand.contract import MAX_BATCH_SIZE
from fruitstand.errors import FruitstandError
from scoring.job import Job
from scoring.model import Answer, LocalModel, PinnedServer, PinnedVersion, ServedModel
from scoring.partitions import Image, Partition


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
        nothing = dict.fromkeys(("num_images", "num_failed", "started", "ended"), 0.0)
        (partition,) = batch["partition"]
        try:
            row: dict[str, Any] = {**self.score(partition), "failure": ""}
        except FruitstandError as exc:
            row = {**nothing, "failure": str(exc)}
        return {key: [value] for key, value in row.items()}

    def score(self, partition: Partition) -> dict[str, float]:
        """Score one partition and write it.

        Returns:
            How many images it holds, how many have no answer, and when it was begun and ended, s.
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
        num_failed = self._job.write(partition.number, scored)
        return {
            "num_images": len(scored),
            "num_failed": num_failed,
            "started": started,
            "ended": time.time(),
        }

    def _batches(self, partition: Partition) -> Iterator[list[Image]]:
        """The partition's images in batches; one is read ahead while another is scored."""
        images = partition.read()

        def read() -> list[Image]:
            return list(islice(images, MAX_BATCH_SIZE))

        ahead = self._reader.submit(read)
        while batch := ahead.result():
            ahead = self._reader.submit(read)
            yield batch
