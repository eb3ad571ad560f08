"""The project as a whole: packaging, names, commands and documents."""

import os
import pty
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("training", "export", "serving", "deploy", "loadtests", "benchmarks", "monitoring")
MODULES = [
    path
    for folder in ("fruitstand", *STAGES, "client", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "templates" not in path.parts  # Triton's own file names
]


def fruitstand(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "fruitstand", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_wheel_installs_only_our_own_names(tmp_path: Path) -> None:
    """No top-level `client` or `training` that could shadow somebody else's."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            str(ROOT),
            "--no-deps",
            "--no-build-isolation",
            "-q",
            "-w",
            tmp_path,
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"fruitstand", "fruitstand_client"}


@pytest.mark.parametrize("package", ["fruitstand", "fruitstand_client", *STAGES])
def test_every_package_is_imported_from_this_checkout(package: str) -> None:
    """No installed package of the same name stands in front of ours."""
    import importlib.util

    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert Path(spec.origin or "").is_relative_to(ROOT)


def test_help_imports_no_stage_and_nothing_heavy() -> None:
    """So that it answers at once."""
    script = (
        "import sys, fruitstand.cli;"
        f"print(*{{'torch', 'numpy', 'tritonclient', 'rich.progress', *{STAGES!r}}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("evaluate",), id="neither_run_nor_url"),
        pytest.param(("classify", "nothing.jpg"), id="no_such_file"),
        pytest.param(("serve", "--repository", "nowhere"), id="no_repository"),
        pytest.param(("train", "--data", "x", "--out", "y", "--set", "epochs=0"), id="no_epochs"),
        pytest.param(("train", "--data", "x", "--out", "y", "--resume", "--overwrite"), id="contradiction"),
        pytest.param(("classify", "x", "--format", "xml"), id="format"),
    ],
)
def test_a_command_used_wrongly_exits_2_with_one_line(arguments: tuple[str, ...]) -> None:
    """Stdout stays empty, stderr has no stack trace."""
    done = fruitstand(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_serve_keeps_tritons_log_out_of_a_terminal_only(tmp_path: Path) -> None:
    """On a terminal it names a file for the log; in a pipe there is none, as containers collect stderr."""
    terminal, its_end = pty.openpty()
    command = [sys.executable, "-m", "fruitstand", "serve", "--repository", str(tmp_path), "--http-port", "0"]
    options = {"env": {**os.environ, "FRUITSTAND_CACHE": str(tmp_path)}, "timeout": 60, "check": False}
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=its_end, **options)
    piped = subprocess.run(command, capture_output=True, text=True, **options)
    assert str(tmp_path / "serve-0.log") in os.read(terminal, 10_000).decode().replace("\r\n", "")
    assert "serve-0.log" not in piped.stderr


def test_a_command_that_fails_exits_1(tmp_path: Path) -> None:
    """With the reason and what to do."""
    done = fruitstand("train", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("fruitstand: error: ")
    assert "fruitstand data prepare" in done.stderr


def test_no_verb_has_more_than_twelve_options() -> None:
    """A verb that needs more wants to be two; options that say which server is meant do not count."""
    from typer.main import get_command

    from fruitstand.cli import app

    group = get_command(app)
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        flags = [
            one
            for one in command.params
            if one.param_type_name == "option" and one.name not in ("url", "name", "ca", "cert")
        ]
        assert len(flags) <= 12, name


def test_modules_stay_short() -> None:
    """A module stops at 400 lines."""
    too_long = {
        str(path.relative_to(ROOT)): n for path in MODULES if (n := len(path.read_text().splitlines())) > 400
    }
    assert too_long == {}


def test_no_module_is_named_after_something_we_import() -> None:
    """`import onnx` may never find a file of ours, nor may a grab-bag of helpers grow."""
    taken = {"triton", "onnx", "locust", "grpc", "timm", "dali", "utils", "helpers", "common"}
    assert {path for path in MODULES if path.stem in taken} == set()


def test_the_locks_are_hash_pinned_and_name_no_index() -> None:
    """Both locks, for every package in them."""
    for name in ("requirements.lock", "requirements.gpu.lock"):
        lines = (ROOT / name).read_text().splitlines()
        packages = [line for line in lines if re.match(r"^[a-z0-9]", line)]
        assert len(packages) > 100
        assert all(line.endswith("\\") for line in packages), name
        assert not any("://" in line or "--index-url" in line or "--find-links" in line for line in lines), (
            name
        )


def test_the_required_packages_are_declared() -> None:
    """Those the product is built on, by name."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = " ".join(requirement for extra in extras.values() for requirement in extra)
    required = "torch> torchvision timm onnx> onnxruntime-gpu tritonclient nvidia-dali locust pytest"
    assert [package for package in required.split() if package not in declared] == []
