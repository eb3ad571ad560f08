"""What the gateway asks another replica, and what it does not: a real Envoy in front of real gRPC servers."""

from pathlib import Path

import grpc
import pytest

from tests.gateway_calls import inference, opened, status
from tests.model_server import Received, model_server


@pytest.mark.parametrize(
    ("words", "is_asked_again"),
    [
        pytest.param("in ensemble 'fruit_classifier', Exceeds maximum queue size", True, id="full_queue"),
        pytest.param("Request for unknown model: 'm' version 2 is not at ready state", True, id="loading"),
        pytest.param("in ensemble 'fruit_classifier', Request timeout expired", False, id="waited_too_long"),
    ],
)
def test_another_replica_is_asked_unless_the_call_has_waited_already(
    words: str, is_asked_again: bool, tmp_path: Path
) -> None:
    """All of these are UNAVAILABLE; a call that waited as long as it may does not wait again elsewhere."""

    def refuse(received: Received, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, words)

    with model_server(refuse) as first, model_server(refuse) as second:
        gateway = opened([first, second], None, tmp_path / "envoy.log")
        try:
            code, text = status(gateway.url, body=inference())
        finally:
            gateway.stop()
    assert (code, words in text) == ("UNAVAILABLE", True)
    tries = len(first.received), len(second.received)
    assert (min(tries) > 0) is is_asked_again
    assert sum(tries) > 1 if is_asked_again else sum(tries) == 1
