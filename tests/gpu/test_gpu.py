"""The same repository on a GPU: needs an NVIDIA driver and the serve-gpu extra."""

import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from fruitstand.images.reference_decode import decode_reference
from fruitstand.model.session import open_session, run_batches
from fruitstand.runs import Run
from fruitstand_client import Client
from serving.engine.tensorrt_libraries import load_tensorrt
from serving.triton.embedded import EmbeddedServer
from training.fit.augmentation import to_size


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
        # A batch is filled up to the next size; its answers are those of its images alone.
        alone = [client.classify([path])[0].probability for path in test_images[:3]]
        for num_images in (2, 9, 33, 64):
            batch = [test_images[number % 3] for number in range(num_images)]
            answers = [one.probability for one in client.classify(batch)]
            np.testing.assert_allclose(answers, np.resize(alone, num_images), atol=0.01)
    agreement = np.mean([label == run.labels[index] for label, index in zip(got, expected, strict=True)])
    assert agreement >= 0.95


def test_tensorrt_answers_as_cuda(repository: Path, test_images: list[Path], tmp_path: Path) -> None:
    """The same fp16 file, one engine for every batch size; needs the tensorrt extra."""
    reason = load_tensorrt()
    if reason:
        pytest.skip(reason)
    answers = {}
    for config_name in ("gpu", "gpu-trt"):
        log = tmp_path / config_name
        with EmbeddedServer(repository, config_name=config_name, log_path=log) as server:
            server_log = log.read_text()
            with Client(server.url) as client:
                answers[config_name] = [one.probability for one in client.classify(test_images)]
        assert "fell back" not in server_log
    np.testing.assert_allclose(answers["gpu-trt"], answers["gpu"], atol=0.01)


def test_images_shrink_as_on_the_processor() -> None:
    """In floats there, in bytes here: at most one level and a rounding apart."""
    pixels = torch.randint(0, 256, (4, 100, 100, 3), dtype=torch.uint8)
    assert (to_size(pixels.cuda(), 64).cpu() - to_size(pixels, 64)).abs().max() <= 1.5
