import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.gates.checks import CHECKED_BATCHES
from export.onnx.graph import load_served_model
from export.publish.candidate_files import CANDIDATE_FOLDER
from export.publish.export import export
from export.publish.publish import publish
from fruitstand.artefacts import read_json, sha256_file
from fruitstand.contract import PIXELS, PROBABILITIES
from fruitstand.errors import ArtefactError, DataError, GateFailed, UsageError
from fruitstand.manifest import read_prepared
from fruitstand.model.session import open_session, run_batches
from fruitstand.repository.versions import published_versions
from fruitstand.runs import META_NAME, Run
from training.fit.pixel_cache import pixel_cache


@pytest.fixture(scope="module")
def version(repository: Path) -> Path:
    """The published version's folder."""
    return repository / "fruit_resnet" / "1"


@pytest.fixture(scope="module")
def pixels(run: Run) -> np.ndarray:
    """All 160 painted images as the model sees them."""
    return np.array(pixel_cache(read_prepared(run.data_directory), run.preprocessing))


@pytest.fixture
def copied_run(run: Run, tmp_path: Path) -> Path:
    """The run in another place, under the same name and without a candidate."""
    ignored = shutil.ignore_patterns(CANDIDATE_FOLDER)
    return shutil.copytree(run.directory, tmp_path / run.directory.name, ignore=ignored)


@pytest.mark.parametrize("batch_size", CHECKED_BATCHES)
def test_onnx_matches_torch_within_1e_4(batch_size: int, version: Path, run: Run, pixels: np.ndarray) -> None:
    """At every batch size, on probabilities."""
    batch = pixels[:batch_size]
    with torch.inference_mode():
        model = load_served_model(run)
        model.temperature = read_json(version / "manifest.json")["abstention"]["temperature"]
        expected = model(torch.from_numpy(batch)).numpy()
    got = open_session(version / "model.onnx").run([PROBABILITIES], {PIXELS: batch})[0]
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-5)


def test_int8_weights_are_signed_per_channel_and_activations_unsigned(version: Path) -> None:
    """The form that every engine here computes fast."""
    graph = onnx.load(version / "model.int8.onnx").graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    zero_points = {
        node.input[2] for node in graph.node if node.op_type == "QuantizeLinear" and node.input[2] in tensors
    }
    assert {tensors[name].data_type for name in zero_points} == {onnx.TensorProto.UINT8}
    weights = [
        tensor
        for tensor in tensors.values()
        if tensor.name.endswith("_quantized") and len(tensor.dims) == 4 and tensor.dims[0] > 1
    ]
    assert len(weights) >= 6
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
    scales = [tensors[f"{tensor.name.removesuffix('_quantized')}_scale"] for tensor in weights]
    assert [list(scale.dims) for scale in scales] == [[tensor.dims[0]] for tensor in weights]


def test_int8_answers_as_fp32_on_every_engine_here(version: Path, pixels: np.ndarray) -> None:
    """The kernels for this processor are part of the test."""
    manifest = json.loads((version / "manifest.json").read_text())
    engine = manifest["reports"]["int8"]["engine"]
    expected = run_batches(open_session(version / "model.onnx"), pixels)
    got = run_batches(open_session(version / "model.int8.onnx", engine), pixels)
    assert np.abs(got - expected).sum(axis=1).mean() / 2 < 0.1
    assert ("openvino" in (version.parent / "config.pbtxt").read_text()) == (engine == "openvino")


def test_the_manifest_says_what_was_published(version: Path, run: Run) -> None:
    """Files by sha256, the source run, and every gate with value and limit."""
    manifest = json.loads((version / "manifest.json").read_text())
    for name in ("model.onnx", "model.int8.onnx", "model.fp16.onnx"):
        assert manifest["files"][name]["sha256"] == sha256_file(version / name)
    assert manifest["source_run"]["weights_sha256"] == run.meta["weights_sha256"]
    assert all(gate["passed"] for gate in manifest["gates"])
    names = {gate["name"] for gate in manifest["gates"]}
    assert {f"torch_vs_model_batch_{size}" for size in CHECKED_BATCHES} < names
    assert {"decode_mean_abs_diff_of_255", "decode_top1_agreement", "extreme_pixels_model.int8"} < names
    assert {"golden_distance", "size_ratio_model.int8", "size_ratio_model.fp16"} < names


def test_versions_count_up_and_are_never_touched_again(repository: Path, run: Run, tmp_path: Path) -> None:
    """A second publication is version 2, byte for byte the same model, and version 1 is as it was."""
    copy = shutil.copytree(repository, tmp_path / "repository")
    before = {path: sha256_file(path) for path in (copy / "fruit_resnet" / "1").glob("*.*")}
    # The same model, timed against itself: what is tested here is not the machine.
    assert publish(copy, run.directory / "export", max_slowdown=100)["version"] == 2
    assert published_versions(copy) == [1, 2]
    assert {path: sha256_file(path) for path in before} == before
    assert sha256_file(copy / "fruit_resnet" / "2" / "model.onnx") == sha256_file(
        copy / "fruit_resnet" / "1" / "model.onnx"
    )


def test_a_failed_gate_publishes_nothing(
    copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number is named, the candidate stays outside the repository."""
    monkeypatch.setattr("export.publish.candidate.MAX_ABS_DIFF", -1.0)
    with pytest.raises(GateFailed, match="torch_vs_model_batch_1"):
        export(copied_run, repository=tmp_path / "repository", variants=("fp32",), data_directory=None)
    assert published_versions(tmp_path / "repository") == []


def test_a_half_written_run_and_an_unknown_variant_are_refused(run: Run, tmp_path: Path) -> None:
    """Nothing is published for either."""
    copy = shutil.copytree(run.directory, tmp_path / "run")
    (copy / META_NAME).unlink()
    with pytest.raises(ArtefactError, match="unfinished"):
        export(copy, repository=tmp_path / "repository", data_directory=None)
    with pytest.raises(UsageError, match="int4"):
        export(run.directory, repository=tmp_path / "repository", variants=("int4",), data_directory=None)
    with pytest.raises(UsageError, match="--compare-int8"):
        export(
            run.directory,
            repository=tmp_path / "r",
            variants=("fp16",),
            data_directory=None,
            compare_int8=True,
        )
    with pytest.raises(DataError, match="fruitstand data prepare"):
        export(run.directory, repository=tmp_path / "repository", data_directory=tmp_path)
    assert not (tmp_path / "repository").exists()
