"""The same repository on a GPU: needs an NVIDIA driver and the serve-gpu extra."""

import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.checks import open_session, run_batches
from fruitstand.reference_decode import decode_reference
from fruitstand.runs import Run
from fruitstand_client import Client
from serving.embedded import EmbeddedServer


def missing() -> str:
    """Why there is no GPU to test on; empty when there is one."""
    try:
        subprocess.run(["nvidia-smi", "-L"], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as exc:
        return f"no NVIDIA GPU: nvidia-smi says {type(exc).__name__}"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "onnxruntime-gpu is not installed: uv pip sync requirements.gpu.lock"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "a GPU is here")


def test_the_gpu_answers_as_the_processor(
    repository: Path, run: Run, test_images: list[Path], tmp_path: Path
) -> None:
    """Decoded and inferred on the GPU: the answers of the same file on the processor."""
    pixels = np.stack([decode_reference(path.read_bytes(), run.preprocessing) for path in test_images])
    expected = run_batches(open_session(repository / "fruit_resnet" / "1" / "model.onnx"), pixels).argmax(1)
    with (
        EmbeddedServer(repository, config_name="gpu", log_path=tmp_path / "log") as server,
        Client(server.url) as client,
    ):
        got = [one.label for one in client.classify(test_images)]
    agreement = np.mean([label == run.labels[index] for label, index in zip(got, expected, strict=True)])
    assert agreement >= 0.95
