"""Ready means: the server has answered real inferences, and as expected."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import tritonclient.grpc as triton

from fruitstand.contract import EMBEDDED_SERVER_VERSION, FRUIT_CLASSIFIER, IMAGE, PROBABILITIES
from fruitstand.errors import ServerError
from fruitstand.images.synthetic import canary_image
from fruitstand.network.connections import open_triton
from fruitstand.repository.versions import MAX_GOLDEN_DISTANCE, Golden, farthest_golden

POLL_S = 0.05
CALL_TIMEOUT_S = 20.0


def classify(client: triton.InferenceServerClient, content: bytes) -> np.ndarray:
    """Send one encoded image through the ensemble; its probabilities, (num_classes,) float32."""
    encoded = np.frombuffer(content, np.uint8)[None]
    tensor = triton.InferInput(IMAGE, list(encoded.shape), "UINT8")
    tensor.set_data_from_numpy(encoded)
    answer = client.infer(FRUIT_CLASSIFIER, [tensor], client_timeout=CALL_TIMEOUT_S)
    return answer.as_numpy(PROBABILITIES)[0]


def wait_until_ready(
    url: str, *, deadline: float, is_alive: Callable[[], bool], golden: Sequence[Golden]
) -> None:
    """Wait for a server that was just started.

    Args:
        url: HOST:PORT of its gRPC endpoint.
        deadline: on the monotonic clock, seconds.
        is_alive: whether its process still runs.
        golden: images with the answers expected of the version that is served.

    Raises:
        ServerError: it ended, was not ready in time, is another version, or answered the canary wrongly.
    """
    client = open_triton(url, [("grpc.initial_reconnect_backoff_ms", 50)])
    try:
        while not _is_ready(client):
            if not is_alive():
                raise ServerError("tritonserver ended while starting")
            if time.monotonic() > deadline:
                raise ServerError("tritonserver was not ready in time")
            time.sleep(POLL_S)
        version = client.get_server_metadata(client_timeout=CALL_TIMEOUT_S).version
        if version != EMBEDDED_SERVER_VERSION:
            raise ServerError(
                f"another server answers at {url}: version {version}, not {EMBEDDED_SERVER_VERSION}"
            )
        probabilities = classify(client, canary_image())
        if not (np.isfinite(probabilities).all() and abs(probabilities.sum() - 1) < 1e-2):
            raise ServerError("the canary image got an answer that is no probability distribution")
        answers = [classify(client, one.path.read_bytes()).tolist() for one in golden]
        worst, distance = farthest_golden(golden, answers)
        if distance > MAX_GOLDEN_DISTANCE:
            raise ServerError(
                f"the golden image {worst.path.name} is answered otherwise than when the version was"
                f" checked: distance {distance:.3g}, allowed {MAX_GOLDEN_DISTANCE}; export on this kind"
                " of processor"
            )
    except triton.InferenceServerException as exc:
        raise ServerError(f"a canary image was not answered: {exc.message()}") from exc
    finally:
        client.close()


def _is_ready(client: triton.InferenceServerClient) -> bool:
    try:
        return client.is_server_ready(client_timeout=1.0) and client.is_model_ready(
            FRUIT_CLASSIFIER, client_timeout=1.0
        )
    except triton.InferenceServerException:
        return False
