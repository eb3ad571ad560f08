"""Session fixtures: one small data set, one trained run, one repository, one server for all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fruitstand.manifest import PreparedData, read_prepared
from fruitstand.runs import Run, read_run
from serving.embedded import EmbeddedServer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real Fruits-360 images, where this machine has one."""
    path = Path(os.environ.get("FRUITSTAND_REAL_DATA", ROOT.parent / "shared"))
    if not (path / "fruits-360_dataset").is_dir():
        pytest.skip(f"needs real Fruits-360 images in {path}; set FRUITSTAND_REAL_DATA to where they are")
    return path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Four painted classes, 40 images each."""
    from training.prepare import prepare_data

    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare_data(source="generated", out=out, num_classes=4, images_per_class=40)
    return read_prepared(out)


@pytest.fixture(scope="session")
def run(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the smallest ResNet on the painted classes."""
    from training.config import TrainConfig
    from training.train import train

    out = tmp_path_factory.mktemp("runs") / "tiny"
    config = TrainConfig(model_name="resnet10t", epochs=3, batch_size=8, lr=0.02)
    train(config, data_directory=prepared.directory, out=out)
    return read_run(out)


@pytest.fixture(scope="session")
def repository(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with that run published as version 1: fp32, int8 and fp16."""
    from export.export import export

    path = tmp_path_factory.mktemp("repository") / "model_repository"
    export(run.directory, repository=path, data_directory=None)
    return path


@pytest.fixture(scope="session")
def second_run(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with a less sure head."""
    from loadtests.reliability.bad_candidates import less_sure

    return less_sure(run.directory, tmp_path_factory.mktemp("second") / "second")


@pytest.fixture(scope="session")
def two_versions(repository: Path, second_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with versions 1, served, and 2; a test that changes it takes a copy."""
    from export.export import export

    copy = shutil.copytree(repository, tmp_path_factory.mktemp("two_versions") / "model_repository")
    assert export(second_run, repository=copy, data_directory=None)["version"] == 2
    return copy


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The real tritonserver on that repository."""
    log_path = tmp_path_factory.mktemp("server") / "triton.log"
    with EmbeddedServer(repository, log_path=log_path) as running:
        yield running


@pytest.fixture(scope="session")
def test_images(prepared: PreparedData) -> list[Path]:
    """The test split's files, in manifest order."""
    return [prepared.directory / row.path for row in prepared.split("test")]
