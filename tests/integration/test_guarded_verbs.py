"""Verbs that send images reach a server behind TLS, client certificates and API keys."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fruitstand.manifest import PreparedData
from fruitstand.network.ports import claim_ports
from serving.gateway.api_keys import add_api_key
from serving.gateway.certificates import write_dev_certificates
from serving.gateway.envoy import Gateway
from serving.triton.embedded import EmbeddedServer
from tests.command import fruitstand

TIMEOUT_S = 200


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates, of clients too."""
    directory = tmp_path_factory.mktemp("access")
    write_dev_certificates(directory, hosts=["localhost", "127.0.0.1"], days=1)
    (directory / "clients.crt").write_bytes((directory / "ca.crt").read_bytes())
    own = [(directory / name).read_bytes() for name in ("client.crt", "client.key")]
    (directory / "client.pem").write_bytes(b"".join(own))
    return directory


@pytest.fixture(scope="module")
def key(access: Path) -> str:
    """Of the only caller."""
    return add_api_key(access / "api_keys.json", "jobs", days=1, requests_per_s=None)


@pytest.fixture(scope="module")
def url(
    server: EmbeddedServer, access: Path, key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Of the gateway in front of the real server."""
    port, metrics_port = claim_ports({"gateway": 0, "metrics": 0})
    log_path = tmp_path_factory.mktemp("gateway") / "envoy.log"
    gateway = Gateway(
        listen="127.0.0.1", port=port, metrics_port=metrics_port, access_directory=access, log_path=log_path
    )
    try:
        gateway.start({server.grpc_port: True})
        yield f"localhost:{port}"
    finally:
        gateway.stop()


@pytest.fixture(params=["evaluate", "drift record", "score"])
def words(request: pytest.FixtureRequest, prepared: PreparedData, repository: Path, tmp_path: Path) -> list:
    """A verb with all that it needs but where the server is."""
    images, out = prepared.directory / "images" / "Test", tmp_path / "out"
    return {
        "evaluate": ["evaluate", "--data", prepared.directory, "--out", out],
        "drift record": ["drift", "record", images, "--out", out / "w.npz", "--repository", repository],
        "score": ["score", images, "--out", out, "--workers", "1"],
    }[request.param]


def test_it_is_let_in_with_certificate_and_key_only(
    words: list, url: str, access: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one of them the message says what was refused."""

    def run(api_key: str, *flags: object) -> "subprocess.CompletedProcess[str]":
        where = ["--url", url, "--ca", access / "ca.crt", *flags]
        monkeypatch.setenv("FRUITSTAND_API_KEY", api_key)
        arguments = [*map(str, [*words, *where]), "--json"]
        if words[0] != "score":
            return fruitstand(*arguments)
        # Ray's processes get the key from their parent's environment, and end with it.
        return subprocess.run(
            [sys.executable, "-m", "fruitstand", *arguments],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip

    cert = ("--cert", access / "client.pem")
    for refused, reason in ((run(key), "UNAVAILABLE"), (run("wrong", *cert), "unknown API key")):
        assert refused.returncode == 1, refused.stderr
        assert reason in refused.stderr
    done = run(key, *cert)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    counts = [result.get(name) for name in ("num_images", "num_samples", "num_predictions")]
    assert sum(filter(None, counts)) > 20
    assert key not in done.stdout + done.stderr
