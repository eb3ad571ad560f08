from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from fruitstand.errors import ArtefactError, ServerError
from fruitstand.signing import make_key, read_private_key, sign_manifest
from fruitstand.versions import MANIFEST_NAME
from serving.onnx_session import execution_providers, open_session, session_options
from tests.repositories import place_version


def config(parameters: dict[str, str] | None = None, **others: object) -> dict:
    """A model configuration as Triton hands it to a backend."""
    entries = {key: {"string_value": value} for key, value in (parameters or {}).items()}
    return {"name": "fruit_resnet", "parameters": entries, **others}


def test_the_native_backends_parameters_are_honoured() -> None:
    """Threads, execution mode, arena, memory pattern and graph level reach the session."""
    parameters = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "false",
    }
    options = session_options(config(parameters, optimization={"graph": {"level": 2}}))
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        pytest.param({"intra_op_threads": "2"}, "unknown parameter", id="unknown"),
        pytest.param({"intra_op_thread_count": "two"}, "whole number", id="not_a_number"),
        pytest.param({"execution_mode": "2"}, "execution_mode", id="mode"),
        pytest.param({"enable_mem_arena": "yes"}, "enable_mem_arena", id="not_a_boolean"),
    ],
)
def test_an_unknown_key_or_value_is_an_error(parameters: dict[str, str], says: str) -> None:
    """Nothing is ignored in silence."""
    with pytest.raises(ServerError, match=says):
        session_options(config(parameters))


def accelerators(kind: str, name: str) -> dict:
    """The optimization block that asks for one accelerator."""
    return {"execution_accelerators": {f"{kind}_execution_accelerator": [{"name": name}]}}


def test_openvino_is_taken_when_asked_for() -> None:
    """With ONNX Runtime's own kernels behind it for what OpenVINO does not take."""
    asked = execution_providers(config(optimization=accelerators("cpu", "openvino")), device_id=None)
    assert [name for name, _ in asked] == ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
    assert execution_providers(config(), device_id=None) == [("CPUExecutionProvider", {})]


def test_an_accelerator_that_is_not_there_is_an_error() -> None:
    """Unknown names as in the native backend; missing ones with the extra to install."""
    with pytest.raises(ServerError, match="unknown Execution Accelerator"):
        execution_providers(config(optimization=accelerators("cpu", "tvm")), device_id=None)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ServerError, match="serve-gpu"):
            execution_providers(config(optimization=accelerators("gpu", "cuda")), device_id=0)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A published version's folder; its model is a few bytes."""
    return place_version(tmp_path / "repository", 1)


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
        pytest.param(lambda v: v.rename(v.with_name("2")), "that of version 1", id="another version's"),
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
