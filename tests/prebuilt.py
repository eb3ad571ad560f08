"""The folders that most tests start from: painted data, a trained run, one published version, and two."""

import shutil
from pathlib import Path

from tests.disk_cache import built_once

TRAINING = ("fruitstand", "training", "tests/prebuilt.py")
EXPORT = (*TRAINING, "export", "tests/nightly/chaos/bad_candidates.py")
ANY_SLOWDOWN = 100.0
"""On a busy machine a gate on time would decide whether there is anything to test with."""


def data() -> Path:
    """`prepared/`: four painted classes, 40 images each."""

    def build(folder: Path) -> None:
        from training.data.prepare import prepare_data

        prepare_data(source="generated", out=folder / "prepared", num_classes=4, images_per_class=40)

    return built_once("data", build, sources=TRAINING)


def trained() -> Path:
    """`tiny/`: a finished run of the smallest ResNet on the painted classes."""
    prepared = data() / "prepared"

    def build(folder: Path) -> None:
        from training.fit.config import TrainConfig
        from training.fit.train import train

        config = TrainConfig(model_name="resnet10t", epochs=3, batch_size=8, lr=0.02)
        train(config, data_directory=prepared, out=folder / "tiny")

    return built_once("trained", build, sources=TRAINING, ingredients=[prepared.parent])


def published() -> Path:
    """`tiny/` with its candidate, and `model_repository/` with it as version 1: fp32, int8 and fp16."""
    ingredient = trained()

    def build(folder: Path) -> None:
        from export.publish.export import export

        run = shutil.copytree(ingredient / "tiny", folder / "tiny")
        export(run, repository=folder / "model_repository", data_directory=None)

    return built_once("published", build, sources=EXPORT, ingredients=[ingredient])


def birds() -> Path:
    """`model_repository/` named birds with two versions: 1, the less sure head, is served; 2 is the run's."""
    first, second = published(), two_versions()

    def build(folder: Path) -> None:
        from export.publish.publish import publish

        for candidate in (second / "second" / "export", first / "tiny" / "export"):
            publish(folder / "model_repository", candidate, max_slowdown=ANY_SLOWDOWN, name="birds")

    return built_once("birds", build, sources=EXPORT, ingredients=[first, second])


def two_versions() -> Path:
    """`second/`, the run with a less sure head, and `model_repository/` with it as version 2; 1 is served."""
    first, ingredient = trained(), published()

    def build(folder: Path) -> None:
        from export.publish.export import export
        from tests.nightly.chaos.bad_candidates import less_sure

        run = less_sure(first / "tiny", folder / "second")
        repository = shutil.copytree(ingredient / "model_repository", folder / "model_repository")
        result = export(run, repository=repository, data_directory=None, max_slowdown=ANY_SLOWDOWN)
        assert result["version"] == 2

    return built_once("two_versions", build, sources=EXPORT, ingredients=[first, ingredient])


def explained() -> Path:
    """`tiny/` with a candidate that explains, and `model_repository/` with it as version 1: fp32 alone."""
    ingredient = trained()

    def build(folder: Path) -> None:
        from export.publish.export import export

        run = shutil.copytree(ingredient / "tiny", folder / "tiny")
        repository = folder / "model_repository"
        export(run, repository=repository, data_directory=None, variants=("fp32",), explain=True)

    return built_once("explained", build, sources=EXPORT, ingredients=[ingredient])
