import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch

from export.gates.decode_parity import decode_as_served
from export.onnx.graph import load_served_model
from export.onnx.quantize import CHOICES
from export.publish.abstention import write_card_section
from export.publish.candidate import build_candidate
from export.publish.candidate_files import (
    CANDIDATE_FOLDER,
    CANDIDATE_NAME,
    EXPORT,
    GATES,
    PUBLICATION,
    required_gates,
)
from export.publish.export import export
from export.publish.golden import NUM_IMAGES, choose_golden
from fruitstand.artefacts import read_json, sha256_file, write_json
from fruitstand.contract import FEATURES, KNOWN, KNOWN_LIMIT, PIXELS, PROBABILITIES, SET_SIZE
from fruitstand.errors import GateFailed
from fruitstand.images.reference_decode import decode_reference
from fruitstand.manifest import PreparedData, read_prepared
from fruitstand.model.session import installed_engines, open_session, run_batches
from fruitstand.repository.version_record import FP16_MODEL
from fruitstand.repository.versions import GOLDEN_LIST, read_version
from fruitstand.runs import ABSTENTION_HEADING, CARD_NAME, META_NAME, Run, read_run
from fruitstand.sampling.samples import REFERENCE_NAME, read_samples
from training.fit.model import Classifier
from training.fit.pixel_cache import pixel_cache

ONNX_FILES = ("model.onnx", "model.int8.onnx", FP16_MODEL)


@pytest.fixture(scope="module")
def candidate(repository: Path, run: Run) -> Path:
    """The candidate that the repository's version was published from."""
    assert (repository / "fruit_resnet" / "1").is_dir()
    return run.directory / CANDIDATE_FOLDER


@pytest.fixture
def copied_run(run: Run, tmp_path: Path) -> Run:
    """The run in another place, under the same name and without a candidate."""
    ignored = shutil.ignore_patterns(CANDIDATE_FOLDER)
    return read_run(shutil.copytree(run.directory, tmp_path / run.directory.name, ignore=ignored))


def _with_weights(run: Run, change) -> Run:
    """The run finished with other weights."""
    weights = {name: change(name, value) for name, value in safetensors.numpy.load_file(run.weights).items()}
    safetensors.numpy.save_file(weights, run.weights)
    write_json(run.directory / META_NAME, {**run.meta, "weights_sha256": sha256_file(run.weights)})
    return read_run(run.directory)


def _at_size(run: Run, size: int, **preprocessing: object) -> Run:
    """The run as if it had been trained on images of that size, in another way; the network takes any."""
    preprocessing = {**run.meta["preprocessing"], "input_size": [size, size], **preprocessing}
    write_json(run.directory / META_NAME, {**run.meta, "preprocessing": preprocessing})
    return read_run(run.directory)


def test_the_record_lists_every_file_and_every_gate(candidate: Path, run: Run) -> None:
    """Files by sha256 and size, gates by kind, value and limit, and what is to serve."""
    record = read_json(candidate / CANDIDATE_NAME)
    assert record["passed"]
    assert record["labels"] == run.labels
    found = {str(path.relative_to(candidate)) for path in candidate.rglob("*") if path.is_file()}
    assert set(record["files"]) == found - {CANDIDATE_NAME}
    assert {*ONNX_FILES, str(GOLDEN_LIST)} < set(record["files"])
    for name, described in record["files"].items():
        assert described["sha256"] == sha256_file(candidate / name)
        assert described["size_bytes"] == (candidate / name).stat().st_size
    gates = {gate["name"]: gate for gate in record["gates"]}
    assert len(gates) == len(record["gates"]), "a name stands for one gate"
    assert all(gate["passed"] for gate in gates.values())
    assert gates["fp32_top1_agreement"]["limit"] == 1
    assert gates["decode_num_images"]["value"] >= 200
    assert "decode_reduced_mean_abs_diff_of_255" in gates
    engine = record["serve"]["cpu_engine"]
    assert set(required_gates(record["files"], engine, "torch")) <= set(gates)
    assert {"structure_model.int8", f"int8_{engine}_distance", "torch_vs_model.fp16_batch_64"} < set(gates)
    assert record["serve"] == {
        "cpu_model": "model.int8.onnx",
        "cpu_engine": engine,
        "gpu_model": FP16_MODEL,
        "known": True,
        "feature_map": [],
    }


def test_the_list_of_gates_says_which_apply_where(candidate: Path, repository: Path) -> None:
    """A candidate and a version have these gates and no others; a first one that explains nothing."""
    exported = {gate["name"] for gate in read_json(candidate / CANDIDATE_NAME)["gates"]}
    published = {gate["name"] for gate in read_version(repository, 1).record.gates} - exported
    names = [(EXPORT, name) for name in exported]
    names += [(PUBLICATION, name.removeprefix("publish_")) for name in published]
    patterns = {
        gate.name: re.sub(r"\\{\w+\\}", ".+", re.escape(gate.name.replace("{variant}", "VARIANT"))).replace(
            "VARIANT", r"(?:fp16|int8)\w*"
        )
        for gate in GATES
        if not gate.name.startswith(("slowdown", "explainer"))
    }
    found = {
        (place, known)
        for place, name in names
        for known, pattern in patterns.items()
        if re.fullmatch(pattern, name)
    }
    assert found == {(place, gate.name) for gate in GATES if gate.name in patterns for place in gate.at}
    assert all(any(re.fullmatch(one, name) for one in patterns.values()) for _, name in names)


def test_the_report_has_accuracy_and_speed_with_spread_for_each_engine(candidate: Path) -> None:
    """int8 on all engines of the processor, fp16 as the processor simulates it."""
    reports = read_json(candidate / CANDIDATE_NAME)["reports"]
    measured = reports["int8"]["attempts"][-1]["engines"]
    assert list(measured) == installed_engines()
    assert reports["fp16"]["simulated_on"] == "cpu"
    for one in [*measured.values(), reports["fp16"]["engines"]["cpu"]]:
        assert 0.9 <= one["top1_agreement"] <= 1
        low, high = one["speedup_spread"]
        assert 0 < low <= one["speedup_over_fp32"] <= high


@pytest.mark.parametrize("name", ONNX_FILES)
def test_a_file_says_where_it_comes_from(name: str, candidate: Path, run: Run) -> None:
    """Contract, labels, weights and licence; painted images are under no licence of Fruits-360."""
    model = onnx.load(candidate / name)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(metadata["preprocessing"]) == run.preprocessing.to_dict()
    assert metadata["labels_sha256"] == run.meta["labels_sha256"]
    assert metadata["weights_sha256"] == run.meta["weights_sha256"]
    assert metadata["source_run"] == run.directory.name
    assert metadata["license_code"] == "Apache-2.0"
    assert "license_weights" not in metadata
    assert str(Path.home()).encode() not in (candidate / name).read_bytes()


def test_real_images_leave_their_licence_in_the_file(run: Run) -> None:
    """Weights learned from Fruits-360 carry its name."""
    from dataclasses import replace

    from export.onnx.metadata import file_metadata

    real = replace(run, meta={**run.meta, "data": {**run.meta["data"], "source": "fruits-360.zip"}})
    assert "CC BY-SA 4.0" in file_metadata(real)["license_weights"]


def test_batch_norm_is_folded_and_nothing_is_left_over(candidate: Path) -> None:
    """Each convolution carries its norm; no shape arithmetic, no dropout, one identity for the features."""
    operators = [node.op_type for node in onnx.load(candidate / "model.onnx").graph.node]
    assert not {"BatchNormalization", "Dropout", "Shape", "Constant"} & set(operators)
    assert operators.count("Identity") == 1


@pytest.mark.parametrize("name", ONNX_FILES)
def test_the_features_are_what_the_last_layer_reads(name: str, candidate: Path, run: Run) -> None:
    """Of every file; the reference for drift has them too."""
    pixels = np.array(pixel_cache(read_prepared(run.data_directory), run.preprocessing))[:8]
    features = run_batches(open_session(candidate / name), pixels, FEATURES)
    model = load_served_model(run)
    with torch.inference_mode():
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() * model.scale + model.shift
        expected = model.model.forward_head(model.model.forward_features(batch), pre_logits=True).numpy()
    assert features.shape == expected.shape
    assert features.dtype == np.float32
    distance = np.linalg.norm(features - expected) / np.linalg.norm(expected)
    assert distance < {"model.onnx": 1e-5, FP16_MODEL: 1e-2}.get(name, 0.2)
    reference, _, _ = read_samples(candidate / REFERENCE_NAME)
    assert reference.features.shape == (len(reference), expected.shape[1])


@pytest.mark.parametrize("name", ONNX_FILES)
def test_validation_images_are_known_and_noise_is_not(name: str, candidate: Path, run: Run) -> None:
    """Of every file, on the engine that it was calibrated for."""
    record = read_json(candidate / CANDIDATE_NAME)["abstention"]
    session = open_session(candidate / name, record["files"][name]["engine"])
    data = read_prepared(run.data_directory)
    pixels = decode_as_served(
        [(data.directory / row.path).read_bytes() for row in data.split("val")], run.preprocessing
    )
    noise = np.random.default_rng(1).integers(0, 256, pixels.shape, dtype=np.uint8)
    assert (run_batches(session, pixels, KNOWN) >= KNOWN_LIMIT).mean() >= 1 - record["max_unknown"] - 0.01
    assert (run_batches(session, noise, KNOWN) < KNOWN_LIMIT).all()
    assert set(np.unique(run_batches(session, pixels, SET_SIZE))) <= set(range(len(run.labels) + 1))


def test_the_record_and_the_card_say_how_well_it_abstains(candidate: Path, run: Run, tmp_path: Path) -> None:
    """Coverage of each held-back split, and AUROC against each kind of other pictures; in one section."""
    record = read_json(candidate / CANDIDATE_NAME)["abstention"]
    measured = record["measured"]
    shutil.copy(run.directory / CARD_NAME, tmp_path)
    for _ in range(2):
        write_card_section(tmp_path, record)
    assert set(measured["splits"]) == {"val", "test"}
    assert set(measured["auroc"]) == {"noise", "patterns", "synthetic_photographs"}
    _, section = (tmp_path / CARD_NAME).read_text().split(ABSTENTION_HEADING)
    assert f"| test | {measured['splits']['test']['num_images']} |" in section
    assert f"| noise | {measured['auroc']['noise']:.4f} |" in section


@pytest.mark.nightly
def test_the_same_checkpoint_gives_the_same_bytes(candidate: Path, copied_run: Run, tmp_path: Path) -> None:
    """In another process, with other hashes of strings."""
    command = [sys.executable, "-m", "fruitstand", "export", "--run", str(copied_run.directory)]
    subprocess.run(
        [*command, "--repository", str(tmp_path / "repository")],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        check=True,
        capture_output=True,
    )
    again = copied_run.directory / CANDIDATE_FOLDER
    assert {name: sha256_file(again / name) for name in ONNX_FILES} == {
        name: sha256_file(candidate / name) for name in ONNX_FILES
    }


def test_fp16_computes_the_network_in_fp16_and_the_rest_in_fp32(candidate: Path, run: Run) -> None:
    """Normalisation and softmax stay exact; the answers differ from fp32's, and little."""
    model = onnx.shape_inference.infer_shapes(onnx.load(candidate / FP16_MODEL))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "Relu"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT16, node.name
        if node.op_type in ("Mul", "Softmax") and node.output[0] in types:
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node.name
    assert (candidate / FP16_MODEL).stat().st_size < 0.55 * (candidate / "model.onnx").stat().st_size
    pixels = np.array(pixel_cache(read_prepared(run.data_directory), run.preprocessing))[:32]
    answers = [run_batches(open_session(candidate / name), pixels) for name in ("model.onnx", FP16_MODEL)]
    assert 0 < np.abs(answers[0] - answers[1]).max() < 1e-2


def test_golden_images_are_answered_again_as_written(candidate: Path, run: Run) -> None:
    """By the file and engine that are to serve, through the served decode."""
    record = read_json(candidate / CANDIDATE_NAME)
    golden = json.loads((candidate / GOLDEN_LIST).read_text())["images"]
    assert len(golden) == NUM_IMAGES
    assert {one["label"] for one in golden} == set(run.labels)
    assert all(one["top1"] == one["label"] for one in golden)
    encoded = [(candidate / "golden" / one["file"]).read_bytes() for one in golden]
    originals = {row.sha256 for row in read_prepared(run.data_directory).split("val")}
    assert {hashlib.sha256(content).hexdigest() for content in encoded} <= originals
    session = open_session(candidate / record["serve"]["cpu_model"], record["serve"]["cpu_engine"])
    answers = run_batches(session, decode_as_served(encoded, run.preprocessing))
    np.testing.assert_allclose(answers, [one["probabilities"] for one in golden], atol=1e-5)


def test_golden_images_are_clear_and_from_many_classes() -> None:
    """Wrong ones never, unclear ones only where there are too few others."""
    targets = np.arange(40) % 10
    right, margins = np.ones(40, bool), np.full(40, 0.9)
    right[:20], margins[20:30] = False, 0.1
    assert len({targets[index] for index in choose_golden(right, margins, targets)}) == NUM_IMAGES
    assert min(choose_golden(right, margins, targets)) >= 30
    few = np.zeros(40, bool)
    few[[3, 25, 26]] = True
    assert sorted(choose_golden(few, margins, targets)) == [3, 25, 26]
    assert choose_golden(np.zeros(40, bool), margins, targets) == []


def test_nan_weights_fail_a_gate_and_the_candidate_says_so(copied_run: Run) -> None:
    """And what an earlier export left there is gone, half written or whole."""
    broken = _with_weights(
        copied_run, lambda name, value: np.full_like(value, np.nan) if name == "fc.weight" else value
    )
    old = broken.directory / CANDIDATE_FOLDER / "model.int8.onnx"
    old.parent.mkdir()
    old.touch()
    litter = broken.directory / ".tmp-4194305-0000-export"
    litter.mkdir()
    with pytest.raises(GateFailed, match=r"torch_vs_model_batch_1: got nan, allowed at most 0\.0001"):
        build_candidate(broken, read_prepared(broken.data_directory), ("fp32", "int8"))
    record = read_json(broken.directory / CANDIDATE_FOLDER / CANDIDATE_NAME)
    assert not record["passed"]
    failed = [gate for gate in record["gates"] if not gate["passed"]]
    assert failed[0]["name"] == "torch_vs_model_batch_1"
    assert failed[0]["value"] is None
    assert not old.exists()
    assert not list(broken.directory.glob(".tmp-*"))


def test_when_no_choice_holds_the_best_one_fails_its_gate(
    copied_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every choice was tried, and the record has the numbers of each."""
    monkeypatch.setattr("export.gates.measured.MIN_AGREEMENT", 2.0)
    monkeypatch.setattr("export.gates.checks.all_but_share_or_one_image", lambda share, _: share)
    monkeypatch.setattr("export.onnx.int8.CHOICES", CHOICES[:2])
    with pytest.raises(GateFailed, match=r"int8_\w+_top1_agreement: got .*, allowed at least 2"):
        build_candidate(_at_size(copied_run, 32), read_prepared(copied_run.data_directory), ("int8",))
    record = read_json(copied_run.directory / CANDIDATE_FOLDER / CANDIDATE_NAME)
    assert not record["passed"]
    assert record["serve"]["cpu_model"] == "model.onnx"
    attempts = record["reports"]["int8"]["attempts"]
    assert [attempt["choice"] for attempt in attempts] == [choice.name for choice in CHOICES[:2]]
    assert not any(one["passed"] for attempt in attempts for one in attempt["engines"].values())


def test_a_first_version_does_without_an_int8_file_that_misses_its_gates(
    copied_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the versions after it as well; asked for by name, the same file ends the export."""
    monkeypatch.setattr("export.gates.checks.MAX_INT8_DISTANCE", 0.0)
    monkeypatch.setattr("export.onnx.int8.CHOICES", CHOICES[:1])
    run, repository = _at_size(copied_run, 32), tmp_path / "repository"
    monkeypatch.setattr("export.publish.candidate.convert_fp16", _broken)
    result = export(run.directory, repository=repository, data_directory=None)
    assert result["serve"] == {
        **result["serve"], "cpu_model": "model.onnx", "cpu_engine": "cpu", "gpu_model": "model.onnx"
    }  # fmt: skip
    assert "int8_" in result["reports"]["int8"]["left_out"]
    assert result["reports"]["fp16"]["left_out"] == "cannot be converted"
    files = set(read_version(repository, 1).manifest["files"])
    assert not {"model.int8.onnx", FP16_MODEL} & files
    again = export(run.directory, repository=repository, data_directory=None, max_slowdown=100)
    assert (again["version"], "int8" in again["reports"]) == (2, False)
    with pytest.raises(GateFailed, match="int8_"):
        export(run.directory, repository=tmp_path / "other", variants=("int8",), data_directory=None)


def _broken(fp32: Path, fp16: Path) -> None:
    raise ValueError("cannot be converted")


def test_training_reads_its_images_with_the_yardstick(prepared: PreparedData, run: Run) -> None:
    """So the decode gate, pipeline against yardstick, holds the pipeline against training too."""
    trained_on = pixel_cache(prepared, run.preprocessing)
    for index in range(0, len(prepared.rows), 16):
        encoded = (prepared.directory / prepared.rows[index].path).read_bytes()
        np.testing.assert_array_equal(trained_on[index], decode_reference(encoded, run.preprocessing))


def test_training_normalises_as_the_served_graph_does(run: Run, candidate: Path) -> None:
    """Mean and std of the training module and of the ONNX file give the same probabilities."""
    served = load_served_model(run)
    module = Classifier(served.model, run.preprocessing).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (4, *run.preprocessing.input_size, 3), dtype=np.uint8)
    with torch.inference_mode():
        logits = module(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    temperature = read_json(candidate / CANDIDATE_NAME)["abstention"]["temperature"]
    expected = (logits / temperature).softmax(dim=1).numpy()
    got = open_session(candidate / "model.onnx").run([PROBABILITIES], {PIXELS: pixels})[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("size", [64, 128, 224])
def test_other_preprocessing_is_published_with_all_gates(size: int, copied_run: Run, tmp_path: Path) -> None:
    """Every shape comes from the run's contract, and filter and crop too."""
    repository = tmp_path / "repository"
    run = _at_size(copied_run, size, crop_pct=0.875, interpolation="bicubic")
    export(run.directory, repository=repository, data_directory=None)
    manifest = read_version(repository, 1).manifest
    assert manifest["preprocessing"] == run.preprocessing.to_dict()
    for name in ONNX_FILES:
        session = open_session(repository / "fruit_resnet" / "1" / name)
        assert session.get_inputs()[0].shape[1:] == [size, size, 3]
    assert f"dims: [ {size}, {size}, 3 ]" in (repository / "fruit_resnet" / "config.pbtxt").read_text()
    assert f'"input_size": [{size}, {size}]' in (repository / "image_decode" / "1" / "dali.py").read_text()
