import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.onnx.known import temper
from fruitstand.manifest import PreparedData, read_prepared
from fruitstand.repository.versions import read_version
from fruitstand.runs import read_run
from fruitstand_client import Client
from serving.triton.embedded import EmbeddedServer
from tests.command import fruitstand
from training.evaluate.predict import predict_probabilities

NAMES = ("007", "a: b, c", "kept blank ", '水果 "x"')
"""Class folders whose names something between folder and client could spoil."""
MAX_DIFFERENCE = 1e-3
"""Of a probability, between PyTorch on the reference decode and the server."""


@pytest.fixture(scope="session")
def class_folders(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The painted images as <class>/*.jpg, without folders for training and test."""
    root = tmp_path_factory.mktemp("families") / "pictures"
    for row in prepared.rows:
        folder = root / NAMES[prepared.labels.index(row.label)]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(prepared.directory / row.path, folder)
    return root


def _run(*arguments: object) -> dict:
    done = fruitstand(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("model_name", "variants"),
    [
        pytest.param("mobilenetv3_small_050", "fp32"),
        *(
            pytest.param(name, "fp32,fp16", marks=pytest.mark.nightly)
            for name in ("convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224")
        ),
    ],
)
def test_a_folder_becomes_served_answers_of_any_family(
    model_name: str, variants: str, class_folders: Path, tmp_path: Path
) -> None:
    """Prepared, trained, exported through the gates: the served answers are the run's own, label by label."""
    _run("data", "prepare", "--source", class_folders, "--out", tmp_path / "data")
    settings = [part for one in ("input_size=64", "batch_size=16") for part in ("--set", one)]
    arguments = ("--data", tmp_path / "data", "--out", tmp_path / "run", "--model", model_name, "--epochs", 1)
    _run("train", *arguments, *settings)
    repository = tmp_path / "model_repository"
    _run("export", "--run", tmp_path / "run", "--repository", repository, "--variants", variants)
    data = read_prepared(tmp_path / "data")
    rows = data.split("test")
    temperature = read_version(repository, 1).manifest["reports"]["temperature"]
    offline = temper(predict_probabilities(read_run(tmp_path / "run"), data, rows), temperature)
    paths = [data.directory / row.path for row in rows]
    with EmbeddedServer(repository, log_path=tmp_path / "triton.log") as server, Client(server.url) as client:
        answers = [dict(one.top_k) for one in client.classify(paths, top_k=len(NAMES))]
    assert {label for answer in answers for label in answer} == set(NAMES)
    served = np.array([[answer[label] for label in data.labels] for answer in answers])
    assert np.abs(served - offline).max() <= MAX_DIFFERENCE
