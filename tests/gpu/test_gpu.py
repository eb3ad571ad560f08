"""The same repository on a GPU: needs an NVIDIA driver and the serve-gpu extra."""

import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from fruitstand_client import Client
from serving.embedded import EmbeddedServer


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """Skip with the reason where there is no GPU to test on."""
    try:
        subprocess.run(["nvidia-smi", "-L"], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as exc:
        pytest.skip(f"no NVIDIA GPU: nvidia-smi says {type(exc).__name__}")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed: uv pip sync requirements.gpu.lock")


def test_the_gpu_answers_as_the_processor(
    server: EmbeddedServer, repository: Path, test_images: list[Path], tmp_path: Path
) -> None:
    """Decoded and inferred on the GPU from the same files: the same top-1."""
    with Client(server.url) as client:
        expected = np.stack(list(client.probabilities(test_images)))
    with (
        EmbeddedServer(repository, config_name="gpu", log_path=tmp_path / "log") as on_gpu,
        Client(on_gpu.url) as client,
    ):
        got = np.stack(list(client.probabilities(test_images)))
    assert np.mean(got.argmax(1) == expected.argmax(1)) >= 0.95
