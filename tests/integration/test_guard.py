"""The guard of the configurations for NVIDIA's backends, in a real server with our own decoder behind it."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from fruitstand.contract import (
    CPU_NATIVE_CONFIG,
    FRUIT_CLASSIFIER,
    FRUIT_RESNET,
    IMAGE,
    IMAGE_DECODE_DALI,
    IMAGE_GUARD,
    PROBABILITIES,
)
from loadtests.server_statistics import ServedModel
from serving.attest.kinds import ImageKind, image_kinds
from serving.triton.embedded import EmbeddedServer
from tests.callers import padded_batch
from tests.gateway_calls import wait_for

KINDS = image_kinds()


@pytest.fixture(scope="module")
def guarded(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server with the configuration in which `image_decode` is the guard and then the decoder."""
    log_path = tmp_path_factory.mktemp("guarded") / "triton.log"
    with EmbeddedServer(repository, config_name=CPU_NATIVE_CONFIG, log_path=log_path) as running:
        yield running


def as_batch(content: bytes) -> np.ndarray:
    """A file as a request of one image."""
    return np.array(bytearray(content), np.uint8)[None]


def answer(server: EmbeddedServer, batch: np.ndarray) -> tuple[str, str | list[list[float]]]:
    """Status and text, or the probabilities; without the ensembles' names, which Triton puts first."""
    tensor = triton.InferInput(IMAGE, list(batch.shape), "UINT8")
    tensor.set_data_from_numpy(batch)
    with triton.InferenceServerClient(server.url) as client:
        try:
            result = client.infer(FRUIT_CLASSIFIER, [tensor], client_timeout=60)
        except InferenceServerException as exc:
            return str(exc.status()), re.sub(r"^(in ensemble '\w+', )+", "", exc.message())
    return "OK", result.as_numpy(PROBABILITIES).tolist()


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in KINDS])
def test_every_kind_gets_the_embedded_servers_verdict_in_its_words(
    guarded: EmbeddedServer, server: EmbeddedServer, kind: ImageKind
) -> None:
    """The same answer, bit for bit, or the same reason."""
    batch = as_batch(kind.content)
    got = answer(guarded, batch)
    assert got == answer(server, batch)
    assert (got[0] == "OK") == kind.is_accepted


def test_a_bad_image_fails_alone_and_the_decoder_never_sees_it(guarded: EmbeddedServer) -> None:
    """Many of each at once, in the same batches: the good ones are all answered."""
    bad = [kind for kind in KINDS if not kind.is_accepted]
    good = next(kind for kind in KINDS if kind.name == "jpeg").content
    before = executed(guarded)
    images = [content for kind in bad for content in (good, kind.content)]
    with ThreadPoolExecutor(32) as pool:  # not our client: it refuses most of them itself
        answers = list(pool.map(partial(answer, guarded), map(as_batch, images)))
    assert {status for status, _ in answers[::2]} == {"OK"}
    for kind, (status, reason) in zip(bad, answers[1::2], strict=True):
        assert "INVALID_ARGUMENT" in status
        assert str(reason).startswith(kind.verdict)

    def seen() -> list[int]:
        return [count - before[model] for model, count in executed(guarded).items()]

    # The answer is sent before it is counted.
    wait_for(lambda: seen() == [len(images), len(bad)])


def test_a_request_of_several_names_the_bad_one(
    guarded: EmbeddedServer, server: EmbeddedServer, test_images: list[Path], tmp_path: Path
) -> None:
    """By its place, as the embedded server does."""
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(test_images[1].read_bytes()[:900])
    batch = padded_batch([*test_images[:3], cut, *test_images[3:6]])
    status, reason = answer(guarded, batch)
    assert "INVALID_ARGUMENT" in status
    assert str(reason).startswith("image 4 of 7: ")
    assert (status, reason) == answer(server, batch)


def test_the_statistics_name_the_guard_and_the_decoder(guarded: EmbeddedServer) -> None:
    """`diagnose` and the load tests look at what has batches, not at the ensemble around it."""
    with ServedModel(guarded.url) as model:
        assert model.steps == [IMAGE_GUARD, IMAGE_DECODE_DALI, FRUIT_RESNET]
        assert FRUIT_CLASSIFIER in model.read()


def executed(server: EmbeddedServer) -> dict[str, int]:
    """How many images each of the two steps has worked on."""
    with triton.InferenceServerClient(server.url) as client:
        return {
            model: client.get_inference_statistics(model).model_stats[0].inference_count
            for model in (IMAGE_GUARD, IMAGE_DECODE_DALI)
        }
