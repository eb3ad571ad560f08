import multiprocessing
import os
import random
import time
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from fruitstand.artefacts import read_json
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.manifest import PreparedData
from training.fit.config import TrainConfig
from training.fit.trackers import WALL_CLOCK
from training.fit.train import read_interrupted, read_resumed, train

DEADLINE_S = 240
NUM_KILLS = min(3, int(os.environ.get("FRUITSTAND_KILLS", "1")))
"""The run has 18 updates, and up to 4 lie between two kills."""
# Everything that has a state or draws random numbers is on. 6 updates an epoch.
EVERYTHING = TrainConfig(
    model_name="resnet10t",
    epochs=3,
    batch_size=12,
    grad_accum_steps=2,
    lr=0.02,
    input_size=32,
    small_share=0.0,
    drop_rate=0.1,
    drop_path_rate=0.1,
    ema_decay=0.9,
    keep="best",
    clip_grad=1.0,
    random_erasing=0.5,
    mixup=0.2,
    cutmix=0.5,
    mix_prob=0.8,
    checkpoint_seconds=0.0,
)


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Children that have imported everything already and can be killed at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.fit.fit"])
    return context


def kill_after_checkpoints(context: ForkServerContext, num_checkpoints: int, **arguments) -> None:
    """Train in a child; kill it a moment after so many checkpoints."""
    checkpoint = arguments["out"] / "last.ckpt"
    child = context.Process(target=train, kwargs=arguments)
    child.start()
    # Not inodes: the next file may get the number of the one before.
    seen = {checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0}
    deadline = time.monotonic() + DEADLINE_S
    while len(seen) <= num_checkpoints:
        assert child.is_alive(), "ended by itself before it could be killed"
        assert time.monotonic() < deadline
        if checkpoint.exists():
            seen.add(checkpoint.stat().st_mtime_ns)
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))
    child.kill()
    child.join(DEADLINE_S)
    assert child.exitcode == -9


def history(out: Path) -> list[dict]:
    """A finished run's rows without the columns that only a clock decides."""
    return [
        {key: value for key, value in row.items() if key not in WALL_CLOCK}
        for row in read_json(out / "meta.json")["epochs"]
    ]


@pytest.mark.scaled
@pytest.mark.timeout(900)
def test_a_run_killed_at_random_steps_ends_with_the_bits_of_one_that_was_not(
    prepared: PreparedData, tmp_path: Path, context: ForkServerContext
) -> None:
    """SIGKILL in the middle of a run: weights and metric history are those of an uninterrupted run."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    # How often a checkpoint is written must not matter either.
    rarely = replace(EVERYTHING, checkpoint_seconds=1e6)
    train(rarely, data_directory=prepared.directory, out=whole)
    arguments = {"config": EVERYTHING, "data_directory": prepared.directory, "out": cut}
    for number in range(NUM_KILLS):
        kill_after_checkpoints(context, random.randint(1, 4), **arguments, resume=number > 0)
        assert not (cut / "meta.json").exists()
    for flags in ({"given": {"epochs": 99}}, {"settings": ["lr=0.5"]}, {"data": tmp_path}):
        asked = {"settings": [], "given": {}, "recipe": "auto", "data": None, "finetune_from": None} | flags
        with pytest.raises(UsageError, match="other settings"):
            read_resumed(cut, **asked)
    with pytest.raises(ArtefactError, match="other settings"):
        train(replace(EVERYTHING, lr=0.5), data_directory=prepared.directory, out=cut, resume=True)
    config, data, source, devices = read_interrupted(cut)
    assert replace(config, precision="auto") == EVERYTHING
    meta = train(config, data_directory=data, out=cut, finetune_from=source, devices=devices, resume=True)
    assert meta is not None
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    assert history(whole) == history(cut)
    assert len(history(cut)) == 3
    assert sorted(path.name for path in cut.iterdir()) == sorted(path.name for path in whole.iterdir())
    with pytest.raises(UsageError, match="finished"):
        train(config, data_directory=data, out=cut, resume=True)


def test_a_checkpoint_that_is_none_is_named(prepared: PreparedData, tmp_path: Path) -> None:
    """A damaged file is an error that says what to do."""
    from training.fit.loop import read_checkpoint

    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 no checkpoint")
    with pytest.raises(ArtefactError, match="--overwrite"):
        read_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="no run to resume"):
        read_interrupted(tmp_path)
