import json
import subprocess
import sys
from pathlib import Path

import tritonclient.grpc as triton

from fruitstand.contract import FRUIT_CLASSIFIER
from fruitstand.manifest import PreparedData
from serving.embedded import EmbeddedServer

LOCUSTFILE = Path(__file__).parents[2] / "loadtests" / "locustfile.py"


def test_locust_counts_what_the_server_counts(server: EmbeddedServer, prepared: PreparedData) -> None:
    """Eight users under gevent: no failure, and not one call that only one side knows of."""
    client = triton.InferenceServerClient(server.url)

    def served() -> int:
        return client.get_inference_statistics(FRUIT_CLASSIFIER).model_stats[0].inference_stats.success.count

    before = served()
    command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--host", server.url, "--headless"]
    command += ["--users", "8", "--spawn-rate", "8", "--run-time", "4s", "--stop-timeout", "10"]
    command += [
        "--images",
        prepared.directory / "images" / "Test",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["name"] == "classify, batch 1"
    assert row["num_failures"] == 0
    assert row["num_requests"] == served() - before > 8
    client.close()
