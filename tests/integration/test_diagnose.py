"""`diagnose` names the fault that was planted in a real server, from what the server counts under load."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE_DECODE
from fruitstand.errors import UsageError
from fruitstand_client import Client
from loadtests.diagnose import diagnose
from serving.triton.embedded import EmbeddedServer
from tests.backends import on_host, served_config

WATCH_S = 3.0
NUM_WINDOWS = 5

Texts = dict[str, str]
"""The configuration of each model."""


def _replace(texts: Texts, name: str, old: str, new: str) -> None:
    assert old in texts[name]
    texts[name] = texts[name].replace(old, new)


def _no_ragged_flag(texts: Texts) -> None:
    _replace(texts, IMAGE_DECODE, "allow_ragged_batch: true", "allow_ragged_batch: false")


def _no_queue_delay(texts: Texts) -> None:
    for name in (IMAGE_DECODE, FRUIT_RESNET):
        _replace(texts, name, "max_queue_delay_microseconds: 1000", "max_queue_delay_microseconds: 0")


def _batches_of_one(texts: Texts) -> None:
    for name in texts:
        _replace(texts, name, "max_batch_size: 64", "max_batch_size: 1")
    _replace(texts, FRUIT_RESNET, "batch_size: 8", "batch_size: 1")


def _too_many_threads(texts: Texts) -> None:
    texts[FRUIT_RESNET] += 'parameters { key: "intra_op_thread_count" value: { string_value: "64" } }\n'


def _too_many_workers(texts: Texts) -> None:
    written = '"num_workers" value: {{ string_value: "{}" }}'.format
    _replace(texts, FRUIT_RESNET, written(0), written(64))


def _nothing(texts: Texts) -> None:
    """The fault is not the server's."""


@contextmanager
def _callers(url: str, images: list[bytes], number: int) -> Iterator[None]:
    """Closed loops, each of which sends images of another length than its neighbour's."""
    stop = threading.Event()

    def call(offset: int) -> None:
        with Client(url) as client:
            while not stop.is_set():
                client.classify_batch([images[offset % len(images)]])
                offset += 1

    threads = [threading.Thread(target=call, args=(offset,)) for offset in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def _loaded(
    repository: Path,
    plants: list[Callable[[Texts], None]],
    num_callers: int,
    images: list[bytes],
    folder: Path,
) -> Iterator[EmbeddedServer]:
    """A server with faults in its configuration, and callers."""
    copy = shutil.copytree(repository, folder / "model_repository")
    paths = {name: served_config(copy, name) for name in (IMAGE_DECODE, FRUIT_RESNET, FRUIT_CLASSIFIER)}
    texts = {name: path.read_text() for name, path in paths.items()}
    for plant in plants:
        plant(texts)
    for name, path in paths.items():
        path.write_text(texts[name])
    with (
        EmbeddedServer(copy, log_path=folder / "triton.log") as server,
        _callers(server.url, images, num_callers),
    ):
        yield server


def _is_named(found: list[dict[str, str]], cause: str, model: str | None) -> bool:
    return any(one["cause"] == cause and model in (None, one["model"]) for one in found)


@pytest.fixture(scope="module")
def images(test_images: list[Path]) -> list[bytes]:
    """Files of different lengths."""
    files = [path.read_bytes() for path in test_images]
    assert len({len(file) for file in files}) > len(files) // 2
    return files


def test_what_the_configuration_does_is_named(repository: Path, images: list[bytes], tmp_path: Path) -> None:
    """However busy the machine is: no batches, and more threads than cores."""
    with _loaded(repository, [_batches_of_one, _too_many_threads], 4, images, tmp_path) as server:
        found = diagnose(server.url, seconds=WATCH_S)["findings"]
    assert _is_named(found, "batch_size_cap", FRUIT_RESNET), found
    assert _is_named(found, "threads_oversubscribed", FRUIT_RESNET), found


def test_a_lone_caller_is_what_limits(server: EmbeddedServer, images: list[bytes]) -> None:
    """A client that waits for each answer keeps no server busy."""
    with _callers(server.url, images, 1):
        found = diagnose(server.url, seconds=WATCH_S)["findings"]
    assert _is_named(found, "client_limited", FRUIT_CLASSIFIER), found


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("plant", "num_callers", "cause", "model"),
    [
        pytest.param(_no_ragged_flag, 8, "ragged_flag_missing", IMAGE_DECODE, id="ragged_flag"),
        # Planted in both steps: where the first lets two through together, the second has its batch.
        pytest.param(
            *(_no_queue_delay, 2, "no_queue_delay", None),
            id="queue_delay",
            marks=pytest.mark.skipif(on_host(), reason="the host has no such delay"),
        ),
        pytest.param(_batches_of_one, 4, "batch_size_cap", FRUIT_RESNET, id="batches_of_one"),
        pytest.param(_too_many_threads, 4, "threads_oversubscribed", FRUIT_RESNET, id="threads"),
        pytest.param(
            *(_too_many_workers, 4, "threads_oversubscribed", FRUIT_RESNET),
            id="workers",
            marks=pytest.mark.skipif(not on_host(), reason="the stubs have no such workers"),
        ),
        pytest.param(_nothing, 1, "client_limited", FRUIT_CLASSIFIER, id="client"),
    ],
)
def test_the_planted_cause_is_named(
    plant: Callable[[Texts], None],
    num_callers: int,
    cause: str,
    model: str | None,
    repository: Path,
    images: list[bytes],
    tmp_path: Path,
) -> None:
    """And the others are not, in one of a few windows: which batches form is up to the scheduler."""
    windows = []
    with _loaded(repository, [plant], num_callers, images, tmp_path) as server:
        for _ in range(NUM_WINDOWS):
            found = diagnose(server.url, seconds=WATCH_S)["findings"]
            windows.append(found)
            causes = {one["cause"] for one in found} - {"client_limited", "limiting_step", "queueing"}
            if _is_named(found, cause, model) and causes == {cause} - {"client_limited"}:
                return
    pytest.fail(f"{cause} was never named alone: {windows}")


def test_without_a_load_there_is_nothing_to_explain(server: EmbeddedServer) -> None:
    """It says so, and what to do."""
    with pytest.raises(UsageError, match="only 0 requests in"):
        diagnose(server.url, seconds=0.2)
