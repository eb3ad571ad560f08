"""Which backends the tests' servers run on: FRUITSTAND_BACKENDS=host or stub, else what users get."""

import os
from pathlib import Path

from fruitstand.contract import CPU_CONFIG, HOST_CONFIG
from fruitstand.machine.threads import thread_budget
from serving.triton.backend_directory import BACKENDS_VARIABLE, DEFAULT_BACKENDS, HOST


def on_host() -> bool:
    """Whether the embedded server's own backend serves."""
    return (os.environ.get(BACKENDS_VARIABLE) or DEFAULT_BACKENDS) == HOST


def served_config(repository: Path, model: str) -> Path:
    """The configuration of a model that a server without a GPU reads; it depends on the backends."""
    named = repository / model / "configs" / f"{HOST_CONFIG if on_host() else CPU_CONFIG}.pbtxt"
    return named if named.is_file() else repository / model / "config.pbtxt"


def pending_metric() -> str:
    """The gauge of requests that wait: of the host's own queues, or of Triton's in front of the stubs."""
    return "fruitstand_pending_requests" if on_host() else "nv_inference_pending_request_count"


def num_workers() -> int:
    """Batches of the second step that are computed at the same time."""
    return thread_budget() if on_host() else 1
