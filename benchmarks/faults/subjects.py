"""Who is tested: our stack and its peers, each set by its own documentation, and how each swaps a model."""

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.peers.catalogue import PEERS, Peer, label_field, raw
from fruitstand.errors import ServerError
from fruitstand.machine.threads import thread_budget

if TYPE_CHECKING:
    from benchmarks.faults.running import Running

QUEUE = 256
"""Requests that may wait, where a peer can be told: about half a second of work."""
TIMEOUT_S = 5
"""Of the server, where it can be told: as long as callers wait."""
SECOND = " (2)"
"""Ends each label of the peers' second model, so that answers tell which one computed them."""
OURS, GATEWAY = "fruitstand", "fruitstand_gateway"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One way to serve, ready to be broken."""

    peer: Peer
    settings: dict[str, Any]
    """What its documentation advises, published with the result."""
    swap: "Callable[[Running], None]"
    """Replaces the served model by the second one."""
    swap_note: str
    """How, for the table."""
    is_ours: bool = False

    @property
    def name(self) -> str:
        """For the command line and the table."""
        return self.peer.name

    def read(self, label: str, answer: bytes) -> tuple[str, str]:
        """Label and model version of an answer; the labels of the peers' second model tell."""
        if self.is_ours:
            return label, str(json.loads(answer)["model_version"])
        return label.removesuffix(SECOND), "2" if label.endswith(SECOND) else "1"


def _promote(running: "Running") -> None:
    ready = running.ready()
    where = ("--control", ready["control"]) if "control" in ready else ("--url", ready["grpc"])
    command = [sys.executable, "-P", "-m", "fruitstand", "models", "promote", running.second, *where]
    done = subprocess.run(
        [*command, "--repository", str(running.repository)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ServerError(f"the promotion failed: {done.stderr.strip()[-300:]}")


def _restart(running: "Running") -> None:
    running.stop()
    running.start(second=True)


def _hang_up(running: "Running") -> None:
    running.write_settings(second=True)
    running.signal(signal.SIGHUP)


def _reload(running: "Running") -> None:
    running.write_settings(second=True)
    _http("POST", f"{running.url}/v2/repository/models/fruit/load")


def _register(running: "Running") -> None:
    running.write_settings(second=True)
    management = f"http://127.0.0.1:{running.port(2)}/models"
    workers = f"initial_workers={running.subject.settings['workers']}&synchronous=true"
    _http("POST", f"{management}?url=fruit2.mar&model_name=fruit&{workers}")
    _http("PUT", f"{management}/fruit/2.0/set-default")
    _http("DELETE", f"{management}/fruit/1.0")


def _http(method: str, url: str) -> None:
    request = urllib.request.Request(url, method=method, data=b"" if method == "POST" else None)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=60) as response:
        response.read()


def _ours(name: str, *flags: str, **settings: Any) -> Subject:
    command = (
        *("-P", "-m", "fruitstand", "serve", "--repository", "REPOSITORY", "--http-port", "PORT"),
        *("--grpc-port", "0", "--metrics-port", "0", "--log", "LOG", *flags),
    )
    return Subject(
        peer=Peer(
            name=name,
            environment="",
            command=(sys.executable, *command),
            path="/classify",
            payload=raw,
            label=label_field,
            settings={},
        ),
        settings={"command": " ".join(("fruitstand", *command[3:])), "everything": "defaults", **settings},
        swap=_promote,
        swap_note="`fruitstand models promote`",
        is_ours=True,
    )


def _peer(
    name: str,
    swap: "Callable[[Running], None]" = _restart,
    swap_note: str = "restart: it has no swap; its users roll replicas behind a load balancer",
    command: tuple[str, ...] | None = None,
    **settings: Any,
) -> Subject:
    peer = PEERS[name]
    common = {
        **peer.settings,
        "workers": thread_budget(),
        "queue": QUEUE,
        "timeout_s": TIMEOUT_S,
        "decodes_first": True,
    }
    return Subject(
        peer=replace(peer, command=command or peer.command),
        settings={**common, **settings},
        swap=swap,
        swap_note=swap_note,
    )


SUBJECTS = {
    subject.name: subject
    for subject in (
        _ours(OURS),
        _ours(GATEWAY, "--gateway", "--replicas", "3", replicas=3),
        _peer(
            "mosec",
            command=(
                *("python", "mosec_app.py", "--port", "PORT", "--capacity", str(QUEUE)),
                *("--timeout", str(TIMEOUT_S * 1000), "--max-request-size", str(8 * 2**20)),
            ),
            bad_images="ValidationError in a decoding stage of its own, as in its example of a ResNet",
        ),
        _peer(
            "litserve",
            queue="no limit is offered",
            max_body_bytes=8 * 2**20,
            restart_workers=True,
            bad_images="HTTPException(400) in decode_request; a batch is decoded in one call",
        ),
        _peer(
            "bentoml",
            bad_images="a Pydantic validator that decodes: ValidationError before the batch",
        ),
        _peer(
            "ray",
            swap=_hang_up,
            swap_note="`serve.run` again with another `user_config`: replicas reconfigure in place",
            max_queued_requests=QUEUE,
            bad_images="decoded before @serve.batch, answered with 400",
        ),
        _peer(
            "mlserver",
            swap=_reload,
            swap_note="`POST /v2/repository/models/fruit/load`",
            queue="no limit is offered",
            timeout_s="none is offered",
            workers=1,  # with parallel_workers=2 it started and shut its pool down at once; not looked into
            parallel_workers=0,
            bad_images="MLServerError in predict; no step before the batch sees one request",
        ),
        _peer(
            "torchserve",
            swap=_register,
            swap_note="management API: register version 2, set it as default, delete version 1",
            job_queue_size=QUEUE,
            bad_images="context.set_response_status(400) for its index in the batch",
        ),
        _peer(
            "fastapi",
            swap=_hang_up,
            swap_note="SIGHUP: uvicorn restarts its workers one after the other",
            command=(
                *("uvicorn", "fastapi_app:app", "--port", "PORT", "--workers", "CORES", "--no-access-log"),
                *("--limit-concurrency", str(QUEUE // thread_budget()), "--timeout-graceful-shutdown", "10"),
            ),
            timeout_s="none is offered",
            bad_images="HTTPException(400)",
        ),
    )
}
