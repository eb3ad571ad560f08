import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from fruitstand.cli import app

ROOT = Path(__file__).parents[3]
TASK = yaml.safe_load((ROOT / "deploy" / "sky" / "train.yaml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_tasks_scripts_are_sound_shell() -> None:
    """`bash -n`; no account is needed for that."""
    for name in ("setup", "run"):
        done = subprocess.run(["bash", "-n"], input=TASK[name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_task_calls_verbs_and_flags_that_exist() -> None:
    """Each `fruitstand` line of the task."""
    calls = re.findall(r"\.venv/bin/fruitstand (.+)", TASK["run"])
    assert len(calls) == 3
    for call in calls:
        words = [word for word in call.split() if not word.startswith(("$", '"'))]
        command = get_command(app).get_command(None, words[0])
        if hasattr(command, "commands"):
            command = command.commands[words[1]]
        flags = {flag for one in command.params for flag in one.opts}
        assert {word for word in words if word.startswith("--")} <= flags, call


def test_every_variable_the_task_reads_has_a_default() -> None:
    """Or is SkyPilot's own, or the shell's."""
    read = set(re.findall(r"\$\{?([A-Z_]+)", yaml.safe_dump(TASK)))
    assert read - set(TASK["envs"]) <= {"HOME", "SKYPILOT_NUM_GPUS_PER_NODE"}


def test_skypilot_itself_reads_the_task() -> None:
    """Three GPUs to choose from, a bucket in and a bucket out; without an account it goes no further."""
    sky = pytest.importorskip("sky", reason="needs skypilot, which wants an environment of its own")
    task = sky.Task.from_yaml(str(ROOT / "deploy" / "sky" / "train.yaml"))
    assert {name for one in task.resources for name in one.accelerators} == {"L4", "A10G", "T4"}
    assert set(task.storage_mounts) == {"/data/source", "/runs"}


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in WORKFLOWS])
def test_workflows_call_make_targets_that_exist_and_ask_for_few_rights(path: Path) -> None:
    """Make is the one definition of what is checked."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"]["contents"] == "read"
    targets = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            for words in re.findall(r"(?:^|&& |sudo )make ([a-z -]+?)(?= \|\|| &&|$)", step.get("run", "")):
                assert set(words.split()) <= targets
            for target, given in re.findall(r"make ([a-z-]+) ((?:[A-Z]+=\S+ ?)+)", step.get("run", "")):
                recipe = re.search(rf"^{target}:.*\n\t(.*)$", MAKEFILE, re.MULTILINE)[1]
                assert {f"$({name})" for name in re.findall(r"([A-Z]+)=", given)} <= set(
                    re.findall(r"\$\([A-Z]+\)", recipe)
                )


def test_actionlint_finds_nothing() -> None:
    """Its own program; CI installs it."""
    program = shutil.which("actionlint")
    if program is None:
        pytest.skip("needs actionlint: CI has it")
    done = subprocess.run([program, *WORKFLOWS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
