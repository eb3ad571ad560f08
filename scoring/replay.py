"""`fruitstand replay`: send recorded traffic to two versions and compare their answers.

Offline, both versions run in this process, with the decoder and session of the embedded server. With a rate,
each version gets a server of its own, one after the other, and images are sent in an open loop: a slow server
does not slow down the arrivals.
"""

import asyncio
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from export.publish.repository import write_served
from fruitstand.artefacts import write_bytes, write_json
from fruitstand.contract import FRUIT_CLASSIFIER, MAX_BATCH_SIZE
from fruitstand.errors import UsageError
from fruitstand.machine.threads import thread_budget
from fruitstand.progress import track
from fruitstand.repository.audit_log import AUDIT_NAME
from fruitstand.repository.model_names import repository_names
from fruitstand.repository.versions import (
    ServingState,
    Version,
    published_versions,
    serving_state,
    verify_version,
)
from fruitstand.sampling.recording import Recording, read_recordings
from fruitstand.stages import served
from fruitstand_client import AsyncClient
from scoring.model import Answer, pin_version
from scoring.replay_report import ReplayResult, Run, compare, render_page
from serving.engine.sampler import FOLDER_VARIABLE

log = logging.getLogger("fruitstand.replay")

RECORDED, AS_FAST_AS_POSSIBLE = "recorded", "max"
MAX_IN_FLIGHT = 64
"""Images in flight at `--rate max`."""


def replay(
    samples: Path,
    *,
    repository: Path,
    version: int,
    against: int | None,
    rate: str | None = None,
    max_images: int = 1000,
    out: Path | None = None,
    trusted_keys: Path | None = None,
) -> ReplayResult:
    """Send recorded images to two versions and compare their answers.

    The arguments are the options of `fruitstand replay`; the repository is not changed.

    Raises:
        UsageError: nothing recorded, no such version, or a wrong rate.
        ArtefactError: a recording is damaged, or a version was altered or is not signed as asked.
        ServerError: a version cannot be served.
        ClientError: the server stopped answering.
    """
    recording = read_recordings(samples, max_images=max_images)
    due_s = None if rate is None else due_times(recording, rate)
    old, new = (
        verify_version(repository, number, trusted_keys=trusted_keys)
        for number in (_served(repository) if against is None else against, version)
    )
    runs = []
    for one in (old, new):
        if rate is None:
            runs.append(_run_offline(repository, one, recording.images))
            continue
        lasts = "as fast as it can" if due_s is None else f"in {due_s[-1]:.0f} s"
        log.info("version %d: %d images, %s", one.number, len(recording), lasts)
        runs.append(_run_served(repository, one, recording.images, due_s))
    result = compare(old.number, runs[0], new.number, runs[1], recording=recording, rate=rate)
    if out is not None:
        write_json(out / "replay.json", result.to_json())
        write_bytes(out / "replay.html", render_page(result, recording.images).encode())
    return result


def _served(repository: Path) -> int:
    state = serving_state(repository)
    if state is None:
        raise UsageError(f"{repository}: serves no version to compare with; name one with --against")
    return state.version


def due_times(recording: Recording, rate: str) -> np.ndarray | None:
    """When each image is due.

    Args:
        recording: the recorded arrivals.
        rate: `recorded` keeps the gaps between arrivals; a number scales all gaps to this mean rate,
            images/s; `max` sends an image whenever an earlier one is answered.

    Returns:
        (N,) seconds after the first one, ascending; None at `max`.

    Raises:
        UsageError: another rate.
    """
    if rate == AS_FAST_AS_POSSIBLE:
        return None
    recorded_s = (recording.arrived_ns - recording.arrived_ns[0]) / 1e9
    if rate == RECORDED:
        return recorded_s
    try:
        images_per_s = float(rate)
    except ValueError:
        images_per_s = 0.0
    if not 0 < images_per_s < float("inf"):
        raise UsageError(f"--rate: got {rate!r}, allowed recorded, max, or images/s as a number above 0")
    wanted_s = (len(recording) - 1) / images_per_s
    if not recorded_s[-1]:  # all arrived at once
        return np.linspace(0, wanted_s, len(recording))
    return recorded_s * (wanted_s / recorded_s[-1])


def _run_offline(repository: Path, version: Version, images: Sequence[bytes]) -> Run:
    model = pin_version(repository, version).open(num_threads=thread_budget(), top_k=1)
    answers: list[Answer | str] = []
    batches = [images[start : start + MAX_BATCH_SIZE] for start in range(0, len(images), MAX_BATCH_SIZE)]
    started_s = perf_counter()
    for batch in track(batches, total=len(batches), description=f"version {version.number}"):
        answers += model(batch)
    return Run(answers=answers, duration_s=perf_counter() - started_s)


def _run_served(repository: Path, version: Version, images: Sequence[bytes], due_s: np.ndarray | None) -> Run:
    with TemporaryDirectory(prefix="fruitstand-replay-") as name:
        copy = Path(name, "model_repository")
        _copy_serving(repository, version, copy)
        # The server must not record the replayed images.
        quiet = {FOLDER_VARIABLE: ""}
        with served(copy, log=Path(name, "triton.log"), environment=quiet) as url:
            description, model = f"version {version.number}", repository_names(repository).classifier
            return asyncio.run(send(url, images, due_s, description=description, model=model))


def _copy_serving(repository: Path, version: Version, copy: Path) -> None:
    """Copy a repository with only one of its versions, and serve that one."""
    model = repository_names(repository).model
    others = {str(number) for number in published_versions(repository)} - {str(version.number)}

    def left_out(folder: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.startswith(".") or name == AUDIT_NAME}
        return hidden | (others & set(names) if Path(folder) == repository / model else set())

    shutil.copytree(repository, copy, ignore=left_out)
    write_served(copy, ServingState(version.number), described_by=version)


@dataclass(slots=True)
class _Sent:
    """One image in flight."""

    due_s: float
    sent_s: float
    answer: Answer | str = ""
    answered_s: float = 0.0


async def send(
    url: str,
    images: Sequence[bytes],
    due_s: np.ndarray | None,
    *,
    description: str,
    model: str = FRUIT_CLASSIFIER,
) -> Run:
    """Send each image when it is due, whether earlier ones are answered or not.

    `due_s` has (N,) seconds after the first one, ascending; None keeps 64 images in flight.

    Raises:
        ClientError: the server stopped answering.
    """
    calls: list[_Sent] = []
    room = asyncio.Semaphore(MAX_IN_FLIGHT)
    async with AsyncClient(url, model=model) as client:

        async def ask(image: bytes, call: _Sent) -> None:
            (one,) = await client.classify([image], top_k=1)
            call.answered_s = perf_counter()
            call.answer = one.error or Answer([one.label or ""], [one.probability or 0.0])
            if due_s is None:
                room.release()

        await client.classify(images[:1])  # opens the connection
        started_s = perf_counter()
        times = [None] * len(images) if due_s is None else due_s.tolist()
        pairs = zip(images, times, strict=True)
        try:
            async with asyncio.TaskGroup() as tasks:
                for image, due in track(pairs, total=len(images), description=description):
                    if due is None:
                        await room.acquire()
                    else:
                        await asyncio.sleep(max(0.0, started_s + due - perf_counter()))
                    now_s = perf_counter()
                    call = _Sent(due_s=now_s if due is None else started_s + due, sent_s=now_s)
                    calls.append(call)
                    tasks.create_task(ask(image, call))
        except ExceptionGroup as failures:  # the first failure cancelled the other tasks
            raise failures.exceptions[0] from failures
    return Run(
        answers=[call.answer for call in calls],
        duration_s=calls[-1].sent_s - calls[0].sent_s,
        # Counted from the due time: a late sender must not hide queueing.
        latencies_ms=[1e3 * (call.answered_s - call.due_s) for call in calls],
        late_ms=[1e3 * (call.sent_s - call.due_s) for call in calls],
    )
