import os
import subprocess
import sys
from pathlib import Path

import pytest

from fruitstand.errors import UsageError
from training.data import kaggle


def test_without_a_network_the_download_fails_with_one_clear_line(tmp_path: Path) -> None:
    """The real kagglehub, behind a proxy that is not there; nothing is left of the target."""
    pytest.importorskip("kagglehub", reason="needs the package kagglehub: pip install 'fruitstand[data]'")
    nowhere = "http://127.0.0.1:9"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KAGGLE")}
    environment |= {"HTTPS_PROXY": nowhere, "https_proxy": nowhere, "NO_PROXY": "", "no_proxy": ""}
    environment |= {"KAGGLEHUB_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fruitstand",
            "data",
            "prepare",
            "--source",
            "kaggle",
            "--out",
            str(tmp_path / "data"),
        ],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Kaggle cannot be reached for {kaggle.KAGGLE_HANDLE}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_without_kagglehub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an optional package: only this source needs it."""
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(UsageError, match=r"pip install 'fruitstand\[data\]'"):
        kaggle.download()


def test_the_version_is_pinned() -> None:
    """Classes change between versions, so a result without one could not be repeated."""
    owner, name, word, number = kaggle.KAGGLE_HANDLE.split("/")
    assert (owner, name, word) == ("moltean", "fruits", "versions")
    assert int(number) > 0
