"""Wait until a server has answered real inferences correctly."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import tritonclient.grpc as triton

from fruitstand.contract import EMBEDDED_SERVER_VERSION, IMAGE, PROBABILITIES
from fruitstand.errors import ServerError
from fruitstand.images.synthetic import canary_image
from fruitstand.network.connections import open_triton
from fruitstand.repository.versions import MAX_GOLDEN_DISTANCE, Golden, farthest_golden

POLL_S = 0.05
CALL_TIMEOUT_S = 20.0


def classify(client: triton.InferenceServerClient, model: str, content: bytes) -> np.ndarray:
    """Classify one encoded image with an ensemble; returns its probabilities, (num_classes,) float32."""
    encoded = np.frombuffer(content, np.uint8)[None]
    tensor = triton.InferInput(IMAGE, list(encoded.shape), "UINT8")
    tensor.set_data_from_numpy(encoded)
    answer = client.infer(model, [tensor], client_timeout=CALL_TIMEOUT_S)
    return answer.as_numpy(PROBABILITIES)[0]


def wait_until_ready(
    url: str, *, deadline: float, is_alive: Callable[[], bool], golden: Mapping[str, Sequence[Golden]]
) -> None:
    """Wait for a server that was just started, and check its answers.

    Raises:
        ServerError: it exited, was not ready in time, has another version, or answered wrongly.
    """
    client = open_triton(url, [("grpc.initial_reconnect_backoff_ms", 50)])
    try:
        while not _is_ready(client, golden):
            if not is_alive():
                raise ServerError("tritonserver exited while starting")
            if time.monotonic() > deadline:
                raise ServerError("tritonserver was not ready in time")
            time.sleep(POLL_S)
        version = client.get_server_metadata(client_timeout=CALL_TIMEOUT_S).version
        if version != EMBEDDED_SERVER_VERSION:
            raise ServerError(
                f"another server answers at {url}: version {version}, not {EMBEDDED_SERVER_VERSION}"
            )
        for model, images in golden.items():
            _check_answers(client, model, images)
    except triton.InferenceServerException as exc:
        raise ServerError(f"the server did not answer a canary image: {exc.message()}") from exc
    finally:
        client.close()


def _check_answers(client: triton.InferenceServerClient, model: str, golden: Sequence[Golden]) -> None:
    """See that an ensemble answers a canary image with a distribution, and golden images as expected."""
    probabilities = classify(client, model, canary_image())
    if not (np.isfinite(probabilities).all() and abs(probabilities.sum() - 1) < 1e-2):
        raise ServerError(f"{model}: the canary image got an answer that is no probability distribution")
    answers = [classify(client, model, one.path.read_bytes()).tolist() for one in golden]
    worst, distance = farthest_golden(golden, answers)
    if distance > MAX_GOLDEN_DISTANCE:
        raise ServerError(
            f"{model}: the golden image {worst.path.name} is answered otherwise than when the version was"
            f" checked: distance {distance:.3g}, allowed {MAX_GOLDEN_DISTANCE}; export on this kind of"
            " processor"
        )


def _is_ready(client: triton.InferenceServerClient, models: Iterable[str]) -> bool:
    try:
        return client.is_server_ready(client_timeout=1.0) and all(
            client.is_model_ready(model, client_timeout=1.0) for model in models
        )
    except triton.InferenceServerException:
        return False
