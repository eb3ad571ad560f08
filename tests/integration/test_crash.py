"""What changes a repository is killed, or runs out of disk: the repository is old or new, never torn."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.publish.publish import publish
from export.publish.render import LABELS_FILE
from export.publish.repository import locked, prune, write_served
from fruitstand.contract import FRUIT_RESNET
from fruitstand.labels import read_labels
from fruitstand.repository.versions import LOADED_CONFIG, ServingState, published_versions, serving_state
from fruitstand.runs import Run, read_run
from tests.crash import Crasher, assert_whole
from tests.nightly.chaos.wholeness import litter, small_disk
from tests.repositories import place_version

NUM_CRASHES = int(os.environ.get("FRUITSTAND_CRASHES", "2"))
"""Of each verb that is killed, or runs out of disk."""
DISK_MIB = 400
COMMITTED = Path(__file__).parents[2] / "model_repository"


@pytest.fixture(scope="module")
def crasher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crasher]:
    """One for all: its imports take longest."""
    crasher = Crasher(tmp_path_factory.mktemp("scratch"))
    yield crasher
    crasher.close()


@pytest.fixture
def own_run(repository: Path, run: Run, tmp_path: Path) -> Path:
    """A copy of the run with the candidate that the repository was published from: its folder is ours."""
    assert published_versions(repository) == [1]
    return shutil.copytree(run.directory, tmp_path / "run")


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_killed_at_any_moment_the_repository_stays_whole(
    crasher: Crasher, own_run: Path, tmp_path: Path
) -> None:
    """SIGKILL at random moments of all that changes a repository; the next command cleans up and succeeds."""
    repository, dice = tmp_path / "repository", random.Random(0)
    actions = ("export", "publish", "promote", "rollback", "prune")
    durations = {action: crasher.do(action, repository, own_run)["seconds"] for action in actions}
    ends = []
    for number in range(NUM_CRASHES):
        action = actions[number % len(actions)]
        before, state = published_versions(repository), serving_state(repository)
        limit_s = dice.uniform(0.0, durations[action])
        ends.append(crasher.do(action, repository, own_run, limit_s=limit_s)["status"])
        assert_whole(repository)
        after = published_versions(repository)
        assert set(after) <= set(before) if action == "prune" else after[: len(before)] == before
        if action not in ("promote", "rollback"):
            assert serving_state(repository) == state
        if action == "export":  # a candidate to publish, and the clean-up after the kill
            assert crasher.do("export", repository, own_run)["status"] == 0
            assert litter(repository, own_run) == []
    assert -9 in ends, "no kill came in time"
    assert crasher.do("publish", repository, own_run)["status"] == 0
    assert crasher.do("rollback", repository)["status"] == 0
    assert litter(repository, own_run) == []
    assert list(crasher.scratch.iterdir()) == []


@pytest.mark.parametrize("action", ["promote", "rollback", "prune"])
def test_killed_before_any_change_of_a_file_the_repository_stays_whole(
    action: str, crasher: Crasher, tmp_path: Path
) -> None:
    """Every change that the verb makes in the file system is the last one once; the next verb cleans up."""
    clean = tmp_path / "clean"
    for number in (1, 2, 3, 4):
        place_version(clean, number)
    for state in (ServingState(1), ServingState(2, 1)):
        write_served(clean, state)
    old = ServingState(2, 1)
    allowed = {"promote": {old, ServingState(1, 2)}, "rollback": {old, ServingState(1, 2)}, "prune": {old}}
    kills, seen = 0, set()
    while True:
        repository = shutil.copytree(clean, tmp_path / f"repository-{kills}")
        result = crasher.do(action, repository, kill_at=kills + 1)
        assert_whole(repository)
        seen.add(serving_state(repository))
        with locked(repository):
            pass
        assert_whole(repository)
        assert litter(repository) == []
        assert {1, 2} <= set(published_versions(repository))
        seen.add(serving_state(repository))
        prune(repository, keep=0)
        assert published_versions(repository) == [1, 2]
        shutil.rmtree(repository)
        if result["status"] == 0:
            break
        assert result["status"] == -9
        kills += 1
    assert kills > 10
    assert seen == allowed[action]


@pytest.mark.scaled
@pytest.mark.timeout(900)
def test_a_first_publication_that_is_killed_serves_its_own_classes_or_nothing(
    crasher: Crasher, own_run: Path, tmp_path: Path
) -> None:
    """Into the committed repository, which is rendered for other classes: those never meet the version."""
    labels, dice = read_run(own_run).labels, random.Random(2)
    whole = crasher.do("publish", shutil.copytree(COMMITTED, tmp_path / "whole"), own_run)
    for kill_at in dice.sample(range(1, whole["changes"] + 1), NUM_CRASHES):
        repository = shutil.copytree(COMMITTED, tmp_path / f"repository-{kill_at}")
        assert crasher.do("publish", repository, own_run, kill_at=kill_at)["status"] == -9
        assert_whole(repository)
        if published_versions(repository):
            assert serving_state(repository) == ServingState(1)
            assert read_labels(repository / LABELS_FILE) == labels
            assert _num_outputs(repository) == len(labels)
        assert crasher.do("publish", repository, own_run)["status"] == 0
        assert serving_state(repository) == ServingState(1)
        assert read_labels(repository / LABELS_FILE) == labels
        assert litter(repository) == []
        shutil.rmtree(repository)


def _num_outputs(repository: Path) -> int:
    text = (repository / LOADED_CONFIG).read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig()).output[0].dims[0]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of our own that can be filled."""
    with small_disk(tmp_path / "disk", DISK_MIB) as hindrance:
        if hindrance:
            pytest.skip(hindrance)
        yield tmp_path / "disk"


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_on_a_full_disk_the_repository_stays_whole(crasher: Crasher, run: Run, disk: Path) -> None:
    """The disk fills up at random points of export and publish; with room again the next command succeeds."""
    own_run = shutil.copytree(run.directory, disk / "run", ignore=shutil.ignore_patterns("export"))
    repository, dice = disk / "repository", random.Random(1)
    free_before = shutil.disk_usage(disk).free
    assert crasher.do("export", repository, own_run)["status"] == 0
    needed = {"export": free_before - shutil.disk_usage(disk).free}
    free_before = shutil.disk_usage(disk).free
    assert crasher.do("publish", repository, own_run)["status"] == 0
    needed["publish"] = free_before - shutil.disk_usage(disk).free
    ends = []
    for number in range(NUM_CRASHES):
        action = ("publish", "export")[number % 2]
        _make_room(repository, disk, 4 * sum(needed.values()))
        before = published_versions(repository)
        filler = disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(
                file.fileno(), 0, shutil.disk_usage(disk).free - dice.randrange(4096, needed[action])
            )
        result = crasher.do(action, repository, own_run)
        ends.append(result["status"])
        assert result["status"] in (0, 1), result
        if result["status"]:
            assert "No space left on device" in result["stderr"], result
        assert_whole(repository)
        assert published_versions(repository)[: len(before)] == before
        filler.unlink()
        if action == "export":  # a candidate to publish next time, and the clean-up
            again = crasher.do("export", repository, own_run)
            assert again["status"] == 0, again
            assert litter(repository, own_run) == []
    assert 1 in ends, "the disk never was full"
    publish(repository, own_run / "export")
    assert litter(repository, own_run) == []


def _make_room(repository: Path, disk: Path, needed: int) -> None:
    """Remove the newest versions until a full export fits; the served one stays."""
    for number in reversed(published_versions(repository)[1:]):
        if shutil.disk_usage(disk).free >= needed:
            return
        shutil.rmtree(repository / FRUIT_RESNET / str(number))
