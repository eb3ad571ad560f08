"""Session fixtures: one small data set, one trained run, one repository, one server for all tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fruitstand.manifest import PreparedData, read_prepared
from fruitstand.runs import Run, read_run
from serving.triton.embedded import EmbeddedServer
from tests import prebuilt
from tests.images import real_data_folder

ROOT = Path(__file__).parents[1]
FOLDERS = ("tests/integration", "tests/unit/export", "tests/unit/training")
"""The order in which several workers take files; the short ones of the other folders fill the gaps."""
PREBUILT = {"prepared", "run", "repository", "second_run", "two_versions", "explaining_server"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files for several workers, which `--dist loadfile` gives whole files: long ones first.

    On a fresh checkout the first file makes all of `tests.prebuilt`; those after it need nothing of it.
    """
    if not hasattr(config, "workerinput"):  # one process alone keeps pytest's order
        return
    fixtures: dict[str, set[str]] = {}
    for item in items:
        name = item.path.relative_to(ROOT).as_posix()
        fixtures.setdefault(name, set()).update(getattr(item, "fixturenames", ()))
    builder = next((name for name in sorted(fixtures) if "two_versions" in fixtures[name]), None)

    def turn(item: pytest.Item) -> tuple[bool, int, bool]:
        name = item.path.relative_to(ROOT).as_posix()
        folder = next((turn for turn, one in enumerate(FOLDERS) if name.startswith(one)), len(FOLDERS))
        return name != builder, folder, bool(fixtures[name] & PREBUILT)

    items.sort(key=turn)


@pytest.fixture(scope="session")
def large_jpegs() -> dict[str, bytes]:
    """Painted photographs by name: large enough to be decoded at a reduced size."""
    from fruitstand.images.synthetic import photographs

    return photographs()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real Fruits-360 images, where this machine has one."""
    path = real_data_folder()
    if not (path / "fruits-360_dataset").is_dir():
        pytest.skip(f"needs real Fruits-360 images in {path}; set FRUITSTAND_REAL_DATA to where they are")
    return path


@pytest.fixture(scope="session")
def prepared() -> PreparedData:
    """Four painted classes, 40 images each."""
    return read_prepared(prebuilt.data() / "prepared")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the smallest ResNet on the painted classes."""
    return read_run(shutil.copytree(prebuilt.trained() / "tiny", tmp_path_factory.mktemp("runs") / "tiny"))


@pytest.fixture(scope="session")
def repository(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with that run's candidate published as version 1: fp32, int8 and fp16."""
    published = prebuilt.published()
    shutil.copytree(published / "tiny" / "export", run.directory / "export")
    path = tmp_path_factory.mktemp("repository") / "model_repository"
    return shutil.copytree(published / "model_repository", path)


@pytest.fixture(scope="session")
def second_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with a less sure head, and its candidate."""
    second = prebuilt.two_versions() / "second"
    return shutil.copytree(second, tmp_path_factory.mktemp("second") / "second")


@pytest.fixture(scope="session")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with versions 1, served, and 2; a test that changes it takes a copy."""
    path = tmp_path_factory.mktemp("two_versions") / "model_repository"
    return shutil.copytree(prebuilt.two_versions() / "model_repository", path)


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The real tritonserver on that repository."""
    log_path = tmp_path_factory.mktemp("server") / "triton.log"
    with EmbeddedServer(repository, log_path=log_path) as running:
        yield running


@pytest.fixture(scope="session")
def explaining_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server whose version explains; `tiny/export` beside its repository is the candidate."""
    folder = tmp_path_factory.mktemp("explained") / "copy"
    shutil.copytree(prebuilt.explained(), folder, symlinks=True)
    with EmbeddedServer(folder / "model_repository", log_path=folder / "triton.log") as running:
        yield running


@pytest.fixture(scope="session")
def test_images(prepared: PreparedData) -> list[Path]:
    """The test split's files, in manifest order."""
    return [prepared.directory / row.path for row in prepared.split("test")]
