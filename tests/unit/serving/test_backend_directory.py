import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fruitstand.contract import CPU_CONFIG, FRUIT_RESNET, HOST_CONFIG
from fruitstand.errors import UsageError
from serving.host import build
from serving.triton.backend_directory import (
    BACKENDS_VARIABLE,
    HOST,
    STUB,
    choose_backends,
    make_backend_directory,
)

REPOSITORY = Path(__file__).parents[3] / "model_repository"
NEEDS_BUILD = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


def choose(wanted: str, repository: Path = REPOSITORY, config_name: str = CPU_CONFIG):
    """The choice with FRUITSTAND_BACKENDS set."""
    return choose_backends([repository], config_name, {BACKENDS_VARIABLE: wanted})


@NEEDS_BUILD
def test_the_host_is_built_once_and_serves_under_both_names(tmp_path: Path) -> None:
    """Both backends are one file, or one process would hold two interpreters."""
    chosen = choose(HOST)
    assert (chosen.kind, chosen.config_name) == (HOST, HOST_CONFIG)
    assert build.library() == chosen.library
    folder = make_backend_directory(tmp_path, chosen)
    found = sorted(folder.rglob("*.so"))
    assert [path.name for path in found] == ["libtriton_dali.so", "libtriton_onnxruntime.so"]
    assert found[0].stat().st_ino == found[1].stat().st_ino


def test_a_machine_without_a_compiler_gets_the_stubs_and_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An empty cache and no g++: the server starts all the same."""
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no compiler"))
    assert choose(HOST).kind == STUB
    assert "apt-get install g++" in caplog.text


@NEEDS_BUILD
def test_a_library_in_the_cache_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image that was built elsewhere."""
    built = build.library()
    monkeypatch.setenv("CXX", "no compiler")
    assert build.missing() is not None
    assert choose(HOST).library == built


def test_a_repository_of_an_older_release_gets_the_stubs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no configuration for the host."""
    copy = shutil.copytree(REPOSITORY, tmp_path / "model_repository")
    (copy / FRUIT_RESNET / "configs" / f"{HOST_CONFIG}.pbtxt").unlink()
    assert choose(HOST, copy).kind == STUB
    assert "host.pbtxt is missing" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "config_name"),
    [pytest.param(STUB, CPU_CONFIG, id="asked_for"), pytest.param(HOST, "gpu", id="gpu")],
)
def test_the_stubs_serve_where_they_are_asked_for_and_on_gpus(wanted: str, config_name: str) -> None:
    """The host computes on CPUs alone."""
    chosen = choose(wanted, config_name=config_name)
    assert (chosen.kind, chosen.config_name) == (STUB, config_name)


def test_another_word_is_refused() -> None:
    """With what is allowed."""
    with pytest.raises(UsageError, match="got 'native', allowed host or stub"):
        choose("native")


@NEEDS_BUILD
def test_several_processes_may_build_at_once(tmp_path: Path) -> None:
    """They wait for the first one, and all get its library."""
    code = f"import os; os.environ[{build.CACHE_VARIABLE!r}] = {str(tmp_path)!r};"
    code += "from serving.host import build; print(build.library())"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    paths = {process.communicate(timeout=120)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert [Path(path) for path in paths] == sorted(tmp_path.glob("*.so"))
