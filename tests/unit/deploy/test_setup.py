import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_set_up_without_python_and_uv_names_the_line_that_installs_uv(tmp_path: Path) -> None:
    """A shell and nothing else, in a path with a blank: one clear message, and nothing is made."""
    programs, checkout = tmp_path / "bin", tmp_path / "my clone"
    for folder in (programs, checkout):
        folder.mkdir()
    for name in ("bash", "cat", "grep"):
        (programs / name).symlink_to(str(shutil.which(name)))
    shutil.copy(ROOT / "requirements.lock", checkout)
    done = subprocess.run(
        [str(shutil.which("bash")), str(ROOT / "deploy" / "setup.sh")],
        cwd=checkout,
        env={"PATH": str(programs), "HOME": str(tmp_path), "UV_VERSION": "0.13.9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "https://astral.sh/uv/install.sh | sh\nand run make again" in done.stderr
    assert os.listdir(checkout) == ["requirements.lock"]
