"""Change the versions of a running server over the gRPC model control API."""

from collections.abc import Mapping
from types import TracebackType

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from fruitstand.contract import ENCODED, IMAGE, PIXELS, PROBABILITIES
from fruitstand.errors import GateFailed, ServerError
from fruitstand.network.connections import open_triton
from fruitstand.repository.model_names import ModelNames
from fruitstand.repository.versions import MAX_GOLDEN_DISTANCE, Version, farthest_golden

LOAD_TIMEOUT_S = 300.0
"""Timeout of loading one model; building a TensorRT engine takes minutes."""
CALL_TIMEOUT_S = 30.0


class LiveServer:
    """Model control of one server."""

    def __init__(
        self, url: str, names: ModelNames, headers: Mapping[str, str] | None = None, *, metrics_url: str = ""
    ) -> None:
        """Prepare a connection to HOST:PORT of the gRPC endpoint.

        The address is that of the server itself, not of a gateway. `headers` let a call change models, where
        the server asks for it.
        """
        self.names, self.metrics_url = names, metrics_url
        self._url, self._headers = url, dict(headers or {})
        self._triton = open_triton(url)

    def __enter__(self) -> "LiveServer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._triton.close()

    def load(self, model: str) -> None:
        """Load a model with its current configuration; Triton then unloads versions that it no longer lists.

        Raises:
            ServerError: the server refuses, does not answer, or the model cannot be loaded.
        """
        try:
            self._triton.load_model(model, headers=self._headers, client_timeout=LOAD_TIMEOUT_S)
        except InferenceServerException as exc:
            hint = "; behind a gateway it takes --control" if _is_refused(exc) else ""
            raise ServerError(f"{self._url}: {model} cannot be loaded: {exc.message()}{hint}") from exc

    def check_golden(self, version: Version) -> None:
        """Run the golden images through the decode step and one given version of the classifier.

        As one batch: callers wait for it once, and it takes the server a fraction of what each alone would.

        Raises:
            GateFailed: an answer is not the expected one.
            ServerError: the server does not answer.
        """
        known = version.golden()
        files = [golden.path.read_bytes() for golden in known]
        longest = max(map(len, files))
        encoded = np.frombuffer(b"".join(file.ljust(longest, b"\0") for file in files), np.uint8)
        pixels = self._infer(self.names.decode, ENCODED, encoded.reshape(len(files), longest), PIXELS)
        answers = self._infer(
            self.names.model, PIXELS, pixels.as_numpy(PIXELS), PROBABILITIES, version=version.number
        )
        worst, distance = farthest_golden(known, answers.as_numpy(PROBABILITIES).tolist())
        if distance > MAX_GOLDEN_DISTANCE:
            raise GateFailed(
                f"version {version.number} answers {worst.path.name} differently from the recorded answer:"
                f" distance {distance:.3g}, allowed at most {MAX_GOLDEN_DISTANCE}; it was not promoted"
            )

    def answering_version(self, encoded: bytes) -> int:
        """Classify an image without naming a version, to see which version answers.

        Raises:
            ServerError: none does.
        """
        image = np.frombuffer(encoded, np.uint8)[None]
        result = self._infer(self.names.classifier, IMAGE, image, PROBABILITIES)
        return int(result.get_response().model_version)

    def _infer(
        self, model: str, name: str, array_u8: np.ndarray, output: str, *, version: int | None = None
    ) -> triton.InferResult:
        tensor = triton.InferInput(name, list(array_u8.shape), "UINT8")
        tensor.set_data_from_numpy(array_u8)
        try:
            return self._triton.infer(
                model,
                [tensor],
                model_version="" if version is None else str(version),
                outputs=[triton.InferRequestedOutput(output)],
                client_timeout=CALL_TIMEOUT_S,
            )
        except InferenceServerException as exc:
            raise ServerError(f"{self._url}: {model} did not answer: {exc.message()}") from exc


def _is_refused(error: InferenceServerException) -> bool:
    """Whether the gateway or the server refuses model control."""
    return "PERMISSION_DENIED" in str(error.status()) or "restricted" in error.message()
