"""What the scenarios work on: painted images, two small models of them, and both published; made once.

OUT/material/
├── data/          four painted classes
├── first/         a trained run; `second` has other weights
└── repository/    both published, the first is served
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.nightly.chaos.commands import must

NUM_CLASSES, IMAGES_PER_CLASS = 4, 40
ANY_SPEED = 1000
"""How fast a busy machine is is not the subject here."""


class Material:
    """A folder that is filled when it is first asked for something."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def data(self) -> Path:
        """A prepared folder."""
        return self._made("data", lambda out: must(
            "data", "prepare", "--source", "generated", "--num-classes", NUM_CLASSES, "--images-per-class",
            IMAGES_PER_CLASS, "--out", out,
        ))  # fmt: skip

    @property
    def first(self) -> Path:
        """A finished run."""
        return self._run("first", seed=0)

    @property
    def second(self) -> Path:
        """Another one, that answers otherwise."""
        return self._run("second", seed=1)

    @property
    def repository(self) -> Path:
        """With both published; copy it before you change it."""

        def publish(out: Path) -> None:
            for run in (self.first, self.second):
                must("export", "--run", run, "--repository", out, "--variants", "fp32,int8",
                     "--max-slowdown", ANY_SPEED)  # fmt: skip

        return self._made("repository", publish)

    def _run(self, name: str, *, seed: int) -> Path:
        data = self.data
        return self._made(name, lambda out: must(
            "train", "--model", "resnet10t", "--epochs", 3, "--set", "batch_size=8", "--set", "lr=0.02",
            "--set", f"seed={seed}", "--data", data, "--out", out,
        ))  # fmt: skip

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self._folder / name
        if not path.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            making = self._folder / f"{name}.making"
            shutil.rmtree(making, ignore_errors=True)
            make(making)
            making.rename(path)
        return path
