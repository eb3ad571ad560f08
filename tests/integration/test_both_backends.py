"""What every server of ours does, on its own C++ backend and on the Python stubs."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from fruitstand_client import Client, ImageRejected
from loadtests.server_statistics import ServedModel
from serving.attest.kinds import image_kinds
from serving.triton.backend_directory import BACKENDS_VARIABLE, HOST, STUB
from serving.triton.embedded import EmbeddedServer
from tests.images import real_data_folder
from tests.nightly.chaos.pictures import many_pictures

BOTH = [pytest.param(HOST, id="host"), pytest.param(STUB, id="stub")]
NUM_IMAGES = 32


@pytest.fixture(scope="module")
def files(test_images: list[Path]) -> list[bytes]:
    """Good images."""
    return [path.read_bytes() for path in test_images[:NUM_IMAGES]]


@pytest.fixture(scope="module")
def servers(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, EmbeddedServer]]:
    """One server on each."""
    folder = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(BACKENDS_VARIABLE, HOST)
        with EmbeddedServer(repository, log_path=folder / "host.log") as host:
            patch.setenv(BACKENDS_VARIABLE, STUB)
            with EmbeddedServer(repository, log_path=folder / "stub.log") as stub:
                yield {HOST: host, STUB: stub}


def test_both_give_the_same_answers_bit_for_bit(
    servers: dict[str, EmbeddedServer], files: list[bytes]
) -> None:
    """To each image asked for alone."""
    with ServedModel(servers[HOST].url) as host, ServedModel(servers[STUB].url) as stub:
        assert host.probabilities(files) == stub.probabilities(files)


@pytest.mark.nightly
def test_both_give_the_same_answers_to_1000_images(servers: dict[str, EmbeddedServer]) -> None:
    """Real ones where this machine has them, else painted ones."""
    real = sorted(real_data_folder().rglob("*.jpg"))
    files = [path.read_bytes() for path in real[:: max(1, len(real) // 1000)][:1000]] or many_pictures(1000)
    assert len(files) == 1000
    with ServedModel(servers[HOST].url) as host, ServedModel(servers[STUB].url) as stub:
        answers = host.probabilities(files)
        assert len(set(answers)) > 500
        assert answers == stub.probabilities(files)


@pytest.mark.parametrize("backends", BOTH)
def test_answers_keep_the_order_of_a_large_request(
    backends: str, servers: dict[str, EmbeddedServer], files: list[bytes]
) -> None:
    """It is computed in parts."""
    with Client(servers[backends].url, batch_size=NUM_IMAGES) as client:
        together = list(client.classify(files))
    with Client(servers[backends].url, batch_size=1) as client:
        alone = list(client.classify(files))
    assert [one.label for one in together] == [one.label for one in alone]
    pairs = [[rank.probability for rank in one.top_k] for one in (*together, *alone)]
    np.testing.assert_allclose(pairs[:NUM_IMAGES], pairs[NUM_IMAGES:], atol=1e-4)


@pytest.mark.parametrize("backends", BOTH)
def test_every_kind_of_bad_image_is_refused_in_the_same_words(
    backends: str, servers: dict[str, EmbeddedServer]
) -> None:
    """With its verdict."""
    with Client(servers[backends].url) as client:
        for kind in image_kinds():
            if not kind.is_accepted and kind.content:
                with pytest.raises(ImageRejected, match=re.escape(kind.verdict)):
                    client.classify_batch([kind.content])


def test_an_openvino_that_cannot_be_opened_is_named_and_others_compute(
    repository: Path, files: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In C++ as ONNX Runtime's Python API does it: the server answers with ONNX Runtime's own kernels."""
    if "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-openvino: pip install 'fruitstand[serve-cpu]'")
    installed, broken = Path(onnxruntime.__file__).parent, tmp_path / "site" / "onnxruntime"
    (broken / "capi").mkdir(parents=True)
    for path in (*installed.iterdir(), *(installed / "capi").iterdir()):
        if path.name not in ("capi", "__pycache__", "libonnxruntime_providers_openvino.so"):
            (broken / path.relative_to(installed)).symlink_to(path)
    (broken / "capi" / "libonnxruntime_providers_openvino.so").write_bytes(b"no library")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(broken.parent), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv(BACKENDS_VARIABLE, HOST)
    log = tmp_path / "triton.log"
    with EmbeddedServer(repository, log_path=log) as server, Client(server.url) as client:
        (prediction,) = client.classify_batch(files[:1])
        assert prediction.label
    assert "OpenVINOExecutionProvider is not used, fell back to CPUExecutionProvider" in log.read_text()
