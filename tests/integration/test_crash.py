"""Export and publish are killed, or run out of disk: the repository is old or new, never torn."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.publish import publish
from export.render import LABELS_FILE
from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET
from fruitstand.labels import read_labels
from fruitstand.runs import Run, read_run
from fruitstand.versions import ServingState, published_versions, serving_state, verify_version

NUM_CRASHES = int(os.environ.get("FRUITSTAND_CRASHES", "8"))
"""Half of them kills, half of them full disks; the release check runs 50."""
DISK_MIB = 400
COMMITTED = Path(__file__).parents[2] / "model_repository"


class Crasher:
    """The process of `tests.crash`."""

    def __init__(self, run: Path, repository: Path) -> None:
        self._repository = repository
        command = [sys.executable, "-m", "tests.crash", str(run)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def run(self, action: str, limit_s: float = 0, *, repository: Path | None = None) -> dict:
        """Do it, killed after `limit_s`; how it ended."""
        assert self._process.stdin is not None
        where = str(repository or self._repository)
        wanted = {"action": action, "repository": where, "limit_s": limit_s}
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        result: dict = {}
        while "status" not in result:
            result |= self._read()
        return result

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)

    def _read(self) -> dict:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def assert_whole(repository: Path) -> None:
    """Every version is complete, and the configuration serves one that exists, or nothing at all."""
    for number in published_versions(repository):
        verify_version(repository, number)
    state = serving_state(repository)
    if state is None:
        return
    for model in (FRUIT_RESNET, FRUIT_CLASSIFIER):
        text = (repository / model / "config.pbtxt").read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert state.version in config.version_policy.specific.versions
        assert (repository / model / str(state.version)).is_dir()


def litter(*directories: Path) -> list[Path]:
    """Temporaries that were left behind."""
    return [path for directory in directories for path in directory.rglob(".tmp-*")]


@pytest.fixture
def own_run(run: Run, tmp_path: Path) -> Path:
    """A copy of the run: its export folder is ours."""
    return shutil.copytree(run.directory, tmp_path / "run")


@pytest.mark.timeout(1500)
def test_killed_at_any_moment_the_repository_stays_whole(own_run: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of all that changes a repository; the next command cleans up and succeeds."""
    repository, dice = tmp_path / "repository", random.Random(0)
    crasher = Crasher(own_run, repository)
    actions = ("export", "publish", "promote", "prune")
    durations = {action: crasher.run(action)["seconds"] for action in actions}
    ends = []
    for number in range(NUM_CRASHES // 2):
        action = actions[number % len(actions)]
        before, state = published_versions(repository), serving_state(repository)
        ends.append(crasher.run(action, dice.uniform(0.0, durations[action]))["status"])
        assert_whole(repository)
        after = published_versions(repository)
        assert set(after) <= set(before) if action == "prune" else after[: len(before)] == before
        if action != "promote":
            assert serving_state(repository) == state
        if action == "export":  # a candidate to publish, and the clean-up after the kill
            assert crasher.run("export")["status"] == 0
            assert litter(repository, own_run) == []
    assert -9 in ends, "no kill came in time"
    assert crasher.run("publish")["status"] == 0
    assert crasher.run("rollback")["status"] == 0
    assert litter(repository, own_run) == []
    crasher.close()


@pytest.mark.timeout(600)
def test_a_first_publication_that_is_killed_serves_its_own_classes_or_nothing(
    own_run: Path, tmp_path: Path
) -> None:
    """Into the committed repository, which is rendered for other classes than the run's."""
    crasher = Crasher(own_run, tmp_path / "repository")
    took = crasher.run("export")["seconds"]
    labels, dice = read_run(own_run).labels, random.Random(2)
    for number in range(NUM_CRASHES // 2):
        repository = shutil.copytree(COMMITTED, tmp_path / f"repository-{number}")
        # The copying is at the end, the gates take longest.
        crasher.run("publish", dice.uniform(0.5, 1.0) * took, repository=repository)
        assert_whole(repository)
        if serving_state(repository) is not None:
            assert read_labels(repository / LABELS_FILE) == labels
        assert crasher.run("publish", repository=repository)["status"] == 0
        assert serving_state(repository) == ServingState(1)
        assert read_labels(repository / LABELS_FILE) == labels
        assert litter(repository) == []
    crasher.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of our own that can be filled."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a tmpfs")
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.timeout(1500)
def test_on_a_full_disk_the_repository_stays_whole(run: Run, small_disk: Path) -> None:
    """The disk fills up at random points of export and publish; with room again the next command succeeds."""
    own_run = shutil.copytree(run.directory, small_disk / "run")
    repository, dice = small_disk / "repository", random.Random(1)
    crasher = Crasher(own_run, repository)
    free_before = shutil.disk_usage(small_disk).free
    assert crasher.run("export")["status"] == 0
    needed = {"export": free_before - shutil.disk_usage(small_disk).free}
    free_before = shutil.disk_usage(small_disk).free
    assert crasher.run("publish")["status"] == 0
    needed["publish"] = free_before - shutil.disk_usage(small_disk).free
    ends = []
    for number in range(NUM_CRASHES - NUM_CRASHES // 2):
        action = ("publish", "export")[number % 2]
        _make_room(repository, small_disk, 4 * sum(needed.values()))
        before = published_versions(repository)
        filler = small_disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(
                file.fileno(), 0, shutil.disk_usage(small_disk).free - dice.randrange(4096, needed[action])
            )
        result = crasher.run(action)
        ends.append(result["status"])
        assert result["status"] in (0, 1)
        if result["status"]:
            assert "No space left on device" in result["error"], result
        assert_whole(repository)
        assert published_versions(repository)[: len(before)] == before
        filler.unlink()
        if action == "export":  # a candidate to publish next time, and the clean-up
            again = crasher.run("export")
            assert again["status"] == 0, again
            assert litter(repository, own_run) == []
    assert 1 in ends, "the disk never was full"
    publish(repository, own_run / "export")
    assert litter(repository, own_run) == []
    crasher.close()


def _make_room(repository: Path, disk: Path, needed: int) -> None:
    """Remove the newest versions until a full export fits; the served one stays."""
    for number in reversed(published_versions(repository)[1:]):
        if shutil.disk_usage(disk).free >= needed:
            return
        shutil.rmtree(repository / FRUIT_RESNET / str(number))
