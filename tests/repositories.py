"""A clean model repository, and faults to plant in it: for the tests of the configuration linter."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.config_lint import lint_repository
from export.corpus import encode, pattern
from export.render import FP32_MODEL, INT8_MODEL, write_repository
from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE_DECODE, Preprocessing

VERSION = 2
DECODE = f"{IMAGE_DECODE}/config.pbtxt"
DECODE_SETS = f"{IMAGE_DECODE}/**/*.pbtxt"
RESNET = f"{FRUIT_RESNET}/config.pbtxt"
RESNET_GPU = f"{FRUIT_RESNET}/configs/gpu.pbtxt"
RESNET_TENSORRT = f"{FRUIT_RESNET}/configs/gpu-trt.pbtxt"
RESNET_SETS = f"{FRUIT_RESNET}/**/*.pbtxt"
ENSEMBLE = f"{FRUIT_CLASSIFIER}/config.pbtxt"
EVERYWHERE = "**/*.pbtxt"
WARMUP_IMAGE = f"{IMAGE_DECODE}/warmup/image.jpg"

Change = Callable[[pb.ModelConfig], object]
Plant = Callable[[Path], object]
"""Puts a fault into a clean repository."""


def clean_repository(directory: Path) -> Path:
    """A rendered repository with a published version and warm-up."""
    encoded = encode(pattern(120, 90))
    repository = directory / "model_repository"
    write_repository(repository, Preprocessing(), [f"Fruit {n}" for n in range(12)])
    for file in (
        WARMUP_IMAGE,
        f"{FRUIT_RESNET}/{VERSION}/{FP32_MODEL}",
        f"{FRUIT_RESNET}/{VERSION}/{INT8_MODEL}",
        f"{FRUIT_CLASSIFIER}/{VERSION}/README",
    ):
        (repository / file).parent.mkdir(parents=True, exist_ok=True)
        (repository / file).write_bytes(encoded)
    edit(EVERYWHERE, lambda config: _finish(config, len(encoded)))(repository)
    return repository


def _finish(config: pb.ModelConfig, num_bytes: int) -> None:
    """Pin the versions and warm up, whatever the templates say about them."""
    config.version_policy.specific.versions[:] = [1 if config.name == IMAGE_DECODE else VERSION]
    for step in config.ensemble_scheduling.step:
        step.model_version = VERSION if step.model_name == FRUIT_RESNET else 1
    if config.platform == "ensemble":
        return
    del config.model_warmup[:]
    for batch_size in (1, config.max_batch_size):
        value = config.model_warmup.add(name="warm", batch_size=batch_size).inputs[config.input[0].name]
        value.data_type = config.input[0].data_type
        if config.name == IMAGE_DECODE:
            value.dims[:] = [num_bytes]
            value.input_data_file = Path(WARMUP_IMAGE).name
        else:
            value.dims[:] = config.input[0].dims
            value.zero_data = True


def edit(files: str, change: Change) -> Plant:
    """Change every configuration that the glob finds."""

    def plant(repository: Path) -> None:
        paths = list(repository.glob(files))
        assert paths
        for path in paths:
            config = text_format.Parse(path.read_text(), pb.ModelConfig())
            change(config)
            path.write_text(text_format.MessageToString(config))

    return plant


def put(file: str, content: bytes) -> Plant:
    """Write a file."""
    return lambda repository: (repository / file).write_bytes(content)


def remove(path: str) -> Plant:
    """Delete a file or a folder."""

    def plant(repository: Path) -> None:
        if (repository / path).is_dir():
            shutil.rmtree(repository / path)
        else:
            (repository / path).unlink()

    return plant


def broken_rules(repository: Path, *, config_name: str | None = None) -> set[str]:
    """The names of the rules that are broken; every finding is fit to be shown."""
    findings = lint_repository(repository, config_name=config_name)
    for finding in findings:
        assert not finding.file.is_absolute()
        assert str(repository) not in str(finding), "a message names files as the repository does"
        assert len(str(finding).splitlines()) == 1
    return {finding.rule for finding in findings}


def rule_names(module: str) -> set[str]:
    """The rules that a module of `export` names."""
    source = (Path(__file__).parents[1] / "export" / f"{module}.py").read_text()
    return set(re.findall(r'(?:yield (?:\(\s*)?|Finding\(\s*[\w.]+,\s*)"([a-z_]+)"', source))


def planted_rules(test: Callable[..., None]) -> set[str]:
    """The rules that a parametrised test plants a fault for."""
    (cases,) = (mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize")
    return {case.values[0] for case in cases.args[1]}
