"""What the page's server does without a browser: whom it refuses, and how it ends."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fruitstand.contract import Preprocessing
from fruitstand.errors import UsageError
from serving.page.web import WebServer
from serving.triton.embedded import EmbeddedServer
from tests.http_calls import ask

DEADLINE_S = 60


def test_pages_of_other_sites_are_refused(server: EmbeddedServer) -> None:
    """No other site's page; a link to it is followed."""

    def status_of(method: str, path: str, headers: dict[str, str]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    with WebServer(0) as web:
        web.start(server.url)
        port = web.port
        own, other = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
        for headers, status in (
            ({"Host": f"evil.example:{port}"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": other}, 403),
            ({"Origin": own}, 200),
            ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
            ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
            ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ):
            assert status_of("GET", "/", headers) == status, headers
        for headers in ({"Origin": other}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}):
            assert status_of("POST", "/classify", {"Content-Length": "0", **headers}) == 403, headers


def test_the_pages_limit_is_the_contracts() -> None:
    """It stands in the page because the page is static."""
    page = (Path(__file__).parents[2] / "client" / "web" / "index.html").read_text()
    assert f'data-max-bytes="{Preprocessing().max_encoded_bytes}"' in page


def test_serve_gives_out_the_page_and_answers_until_it_ends(
    repository: Path, test_images: list[Path], tmp_path: Path
) -> None:
    """The ready line has its URL; after SIGTERM every request is answered, until nobody listens there."""
    command = [sys.executable, "-m", "fruitstand", "serve", "--repository", repository]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--log", tmp_path / "log"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        port = int(ready["http"].rpartition(":")[2])
        image, classify = test_images[0].read_bytes(), f"{ready['http']}/classify"
        assert b"fruitstand" in ask(ready["http"]).body
        assert ask(classify, image).json["model_version"] == "1"
        process.terminate()
        statuses = []
        with contextlib.suppress(OSError):  # nobody listens any more
            while process.poll() is None:
                statuses.append(ask(classify, image).status)
        assert process.poll() is None  # the port goes first, the model server after it
        assert set(statuses) <= {200}
        assert process.wait(30) == 0
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


def test_a_taken_http_port_is_named() -> None:
    """With the flag that changes it."""
    with WebServer(0) as taken, pytest.raises(UsageError, match=rf"port {taken.port} is in use.*--http-port"):
        WebServer(taken.port)
