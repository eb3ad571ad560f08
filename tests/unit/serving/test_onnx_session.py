import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fruitstand.errors import ArtefactError, ServerError
from fruitstand.machine.threads import THREADS_VARIABLE
from fruitstand.repository.signing import make_key, read_private_key, sign_manifest
from fruitstand.repository.versions import MANIFEST_NAME
from serving.engine.onnx_session import execution_providers, open_session, session_options
from serving.engine.onnx_signature import Tensor, check_signature, tensors_of
from tests.repositories import place_version


def config(parameters: dict[str, str] | None = None, **others: object) -> dict:
    """A model configuration as Triton hands it to a backend."""
    entries = {key: {"string_value": value} for key, value in (parameters or {}).items()}
    return {"name": "fruit_resnet", "parameters": entries, "max_batch_size": 8, **others}


def test_threads_come_from_the_machines_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the configuration names none."""
    monkeypatch.setenv(THREADS_VARIABLE, "5")
    assert session_options(config()).intra_op_num_threads == 5
    assert session_options(config({"intra_op_thread_count": "0"})).intra_op_num_threads == 5


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        pytest.param({"intra_op_threads": "2"}, "unknown parameter", id="unknown"),
        pytest.param({"intra_op_thread_count": "two"}, "intra_op_thread_count is 'two'", id="not_a_number"),
    ],
)
def test_an_unknown_key_or_value_is_an_error(parameters: dict[str, str], says: str) -> None:
    """Nothing is ignored in silence."""
    with pytest.raises(ServerError, match=says):
        session_options(config(parameters))


def accelerators(kind: str, name: str, **parameters: str) -> dict:
    """The optimization block that asks for one accelerator."""
    asked = {"name": name, "parameters": parameters}
    return {"execution_accelerators": {f"{kind}_execution_accelerator": [asked]}}


def pretend(monkeypatch: pytest.MonkeyPatch, *providers: str) -> None:
    """Another installation of ONNX Runtime."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*providers, "CPUExecutionProvider"])


def test_openvino_is_taken_when_asked_for() -> None:
    """With ONNX Runtime's own kernels behind it for what OpenVINO does not take."""
    asked = execution_providers(config(optimization=accelerators("cpu", "openvino")), device_id=None)
    assert [name for name, _ in asked] == ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
    assert execution_providers(config(), device_id=None) == [("CPUExecutionProvider", {})]


def test_a_provider_that_is_not_installed_is_named_and_the_next_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenVINO falls back to ONNX Runtime's kernels, TensorRT to CUDA."""
    pretend(monkeypatch)
    with caplog.at_level(logging.WARNING):
        on_cpu = execution_providers(config(optimization=accelerators("cpu", "openvino")), device_id=None)
        pretend(monkeypatch, "CUDAExecutionProvider")
        on_gpu = execution_providers(config(optimization=accelerators("gpu", "tensorrt")), device_id=1)
    assert [name for name, _ in on_cpu] == ["CPUExecutionProvider"]
    assert on_gpu == [("CUDAExecutionProvider", {"device_id": "1"}), ("CPUExecutionProvider", {})]
    assert "no OpenVINOExecutionProvider" in caplog.text
    assert "no TensorrtExecutionProvider" in caplog.text


def test_gpu_accelerators_get_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's as they are, TensorRT's under ONNX Runtime's names."""
    pretend(monkeypatch, "TensorrtExecutionProvider", "CUDAExecutionProvider")
    cuda = accelerators("gpu", "cuda", arena_extend_strategy="kSameAsRequested")
    asked = execution_providers(config(optimization=cuda), device_id=0)
    assert asked[0] == (
        "CUDAExecutionProvider",
        {"device_id": "0", "arena_extend_strategy": "kSameAsRequested"},
    )
    tensorrt = accelerators("gpu", "tensorrt", trt_dla_core="1", max_workspace_size_bytes="9")
    (name, options), *_ = execution_providers(config(optimization=tensorrt), device_id=0)
    assert name == "TensorrtExecutionProvider"
    assert options == {"device_id": "0", "trt_dla_core": "1", "trt_max_workspace_size": "9"}


def test_an_unknown_accelerator_or_a_missing_cuda_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names as in the native backend; CUDA with the extra to install."""
    pretend(monkeypatch)
    with pytest.raises(ServerError, match="unknown Execution Accelerator"):
        execution_providers(config(optimization=accelerators("cpu", "tvm")), device_id=None)
    with pytest.raises(ServerError, match="serve-gpu"):
        execution_providers(config(optimization=accelerators("gpu", "cuda")), device_id=0)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A published version's folder; its model is a few bytes."""
    return place_version(tmp_path / "repository", 1)


def test_a_gpu_instance_does_not_compute_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when CUDA's libraries cannot be loaded: ONNX Runtime falls back, a GPU instance does not."""
    version = place_version(tmp_path / "repository", 1, doubling_model().SerializeToString())
    pretend(monkeypatch, "CUDAExecutionProvider")
    fallen_back = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: fallen_back)
    with pytest.raises(ServerError, match="cannot use CUDA"):
        open_session(version, config(optimization=accelerators("gpu", "cuda")), device_id=0)


def test_a_missing_or_torn_model_file_is_named(version: Path) -> None:
    """By its file name, never by its path."""
    with pytest.raises(ServerError, match=r"no file model\.int8\.onnx"):
        open_session(version, config(default_model_filename="model.int8.onnx"), device_id=None)
    with pytest.raises(ServerError, match="cannot be loaded") as caught:
        open_session(version, config(), device_id=None)
    assert str(version) not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda v: (v / "model.onnx").write_bytes(b"others"), "altered", id="altered"),
        pytest.param(lambda v: (v / MANIFEST_NAME).unlink(), "not a readable", id="no manifest"),
        pytest.param(
            lambda v: (v / "model.onnx").rename(v / "other.onnx"), "not in the manifest", id="not listed"
        ),
        pytest.param(lambda v: v.rename(v.with_name("2")), "belongs to version 1", id="another version's"),
    ],
)
def test_a_file_that_was_not_published_is_not_loaded(
    change: Callable[[Path], object], reason: str, version: Path
) -> None:
    """Whoever asks the server for it, and whatever was checked before."""
    change(version)
    (version,) = version.parent.iterdir()
    name = next(path.name for path in version.glob("*.onnx"))
    with pytest.raises(ArtefactError, match=reason):
        open_session(version, config(default_model_filename=name), device_id=None)


def test_a_version_is_loaded_when_a_trusted_key_signed_it(version: Path, tmp_path: Path) -> None:
    """Where keys are trusted; the signature is checked by whoever loads, not only by whoever promotes."""
    trusted = tmp_path / "trusted"
    make_key(tmp_path / "key")
    trusted.mkdir()
    (tmp_path / "key.pub").rename(trusted / "key.pub")
    with pytest.raises(ArtefactError, match="not signed"):
        open_session(version, config(), device_id=None, trusted_keys=trusted)
    sign_manifest(version / MANIFEST_NAME, read_private_key(tmp_path / "key"))
    with pytest.raises(ServerError, match="cannot be loaded"):  # a few bytes are no model
        open_session(version, config(), device_id=None, trusted_keys=trusted)


def doubling_model(batch: str | int = "N") -> onnx.ModelProto:
    """Adds its input to itself: X FLOAT [batch, 3] -> Y."""
    shape = [batch, 3]
    graph = helper.make_graph(
        [helper.make_node("Add", ["X", "X"], ["Y"])],
        "doubling",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("parameters", "num_threads", "expected"),
    [
        pytest.param({}, None, 5, id="budget"),
        pytest.param({"intra_op_thread_count": "3"}, None, 3, id="configuration"),
        pytest.param({"intra_op_thread_count": "3"}, 2, 2, id="caller"),
    ],
)
def test_openvino_gets_the_sessions_threads(
    parameters: dict[str, str],
    num_threads: int | None,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would take all processors, whatever the budget."""
    asked = []

    class Recorded(onnxruntime.InferenceSession):
        def __init__(self, path: Path, options: onnxruntime.SessionOptions, providers: list) -> None:
            asked.append((options.intra_op_num_threads, dict(providers)["OpenVINOExecutionProvider"]))
            super().__init__(path, options, providers=providers)

    if "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("the installed onnxruntime has no OpenVINO")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    monkeypatch.setenv(THREADS_VARIABLE, "5")
    version = place_version(tmp_path / "repository", 1, doubling_model().SerializeToString())
    settings = config(parameters, optimization=accelerators("cpu", "openvino"))
    session = open_session(version, settings, device_id=None, num_threads=num_threads)
    assert session.get_providers()[0] == "OpenVINOExecutionProvider"
    ((num_asked, options),) = asked
    assert (num_asked, options["num_of_threads"]) == (expected, str(expected))


def test_openvino_binds_no_thread_to_a_processor(tmp_path: Path) -> None:
    """Two processes of one thread each would share the first processor and leave the others idle."""
    everywhere = os.sched_getaffinity(0)
    if "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers() or len(everywhere) < 2:
        pytest.skip("needs OpenVINO and two processors")
    version = place_version(tmp_path / "repository", 1, doubling_model().SerializeToString())
    settings = config(optimization=accelerators("cpu", "openvino"))
    others = set(Path("/proc/self/task").iterdir())  # ONNX Runtime's own engine binds, in sessions still open
    session = open_session(version, settings, device_id=None, num_threads=1)
    pictures = np.zeros((4_000_000, 3), np.float32)
    bound = []

    def compute() -> None:
        for _ in range(10):
            session.run(None, {"X": pictures})

    runner = threading.Thread(target=compute)
    runner.start()
    while runner.is_alive():
        for thread in set(Path("/proc/self/task").iterdir()) - others:
            with contextlib.suppress(ProcessLookupError):
                bound.append(os.sched_getaffinity(int(thread.name)) != everywhere)
    assert bound
    assert not any(bound)


def doubling(tmp_path: Path, batch: str | int = "N") -> onnxruntime.InferenceSession:
    """That model, opened from a file."""
    onnx.save(doubling_model(batch), tmp_path / "model.onnx")
    return onnxruntime.InferenceSession(tmp_path / "model.onnx", session_options(config()))


def tensors(session: onnxruntime.InferenceSession) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs and outputs of an opened file."""
    return tensors_of(session.get_inputs()), tensors_of(session.get_outputs())


def tensor(name: str, dims: list[int], data_type: str = "TYPE_FP32") -> dict:
    """One entry of `input` or `output`."""
    return {"name": name, "data_type": data_type, "dims": dims}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param({"input": [tensor("Z", [3])]}, "no input 'Z' in the file, it has X", id="name"),
        pytest.param({"input": []}, "0 inputs configured", id="number"),
        pytest.param({"input": [tensor("X", [3], "TYPE_INT8")]}, "X is TYPE_INT8", id="type"),
        pytest.param({"input": [tensor("X", [4])]}, r"X is TYPE_FP32 \[4\]", id="input_dims"),
        pytest.param({"output": [tensor("Y", [-1])]}, r"Y is TYPE_FP32 \[-1\]", id="output_dims_are_exact"),
    ],
)
def test_a_configuration_is_held_against_the_file(given: dict, says: str, tmp_path: Path) -> None:
    """Number, names, types and dims, as the native backend does."""
    file = tensors(doubling(tmp_path))
    right = {"input": [tensor("X", [3])], "output": [tensor("Y", [3])]}
    check_signature(config(**right), *file)
    check_signature(config(**{**right, "input": [tensor("X", [-1])]}), *file)  # inputs take wildcards
    with pytest.raises(ServerError, match=says):
        check_signature(config(**{**right, **given}), *file)


def test_a_file_without_a_batch_axis_does_not_batch(tmp_path: Path) -> None:
    """With what to do."""
    file = tensors(doubling(tmp_path, batch=2))
    with pytest.raises(ServerError, match=r"no batch axis.*dynamic first axis"):
        check_signature(config(input=[tensor("X", [3])], output=[tensor("Y", [3])]), *file)
