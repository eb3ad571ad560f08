"""`fruitstand serve`: the embedded server in the foreground, with HTTP in front of it."""

import json
import signal
from pathlib import Path

from fruitstand.errors import ServerError
from serving.page.web import WebServer
from serving.tracing import Tracing
from serving.triton.embedded import EmbeddedServer


def serve(
    repository: Path,
    *,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    config_name: str,
    log_path: Path | None,
    trusted_keys: Path | None = None,
    control_key: str | None = None,
    tracing: Tracing | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish requests in flight and clean up.

    Once the server answers, one line of JSON with its URLs goes to stdout.

    Args:
        repository: the model repository.
        grpc_port: port of gRPC; 0 takes a free one, as for the other ports.
        http_port: port of `POST /classify`, KServe V2 REST and the page; Triton's own HTTP takes a free port.
        metrics_port: port of the Prometheus endpoint.
        config_name: name of `configs/<name>.pbtxt`; a model without it takes `config.pbtxt`.
        log_path: file for tritonserver's log; None writes to stderr.
        trusted_keys: folder of public keys, one of which must have signed the served version.
        control_key: see `EmbeddedServer`; None leaves model control open to this machine.
        tracing: collector for spans; None turns tracing off.

    Raises:
        UsageError: no repository, nothing published, or a port is taken.
        ArtefactError: the served version was altered, or lacks the required signature.
        ServerError: the server did not start, or exited by itself.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    with WebServer(http_port) as web:
        server = EmbeddedServer(
            repository,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            config_name=config_name,
            log_path=log_path,
            trusted_keys=trusted_keys,
            control_key=control_key,
            tracing=tracing,
        )
        try:
            server.start()
            web.start(server.url)
            urls = {"grpc": server.url, "http": web.url, "metrics": server.metrics_url}
            print(json.dumps({"ready": True, **urls}), flush=True)
            status = server.wait()
            raise ServerError(f"tritonserver exited with status {status}; see its log")
        except KeyboardInterrupt:
            pass
        finally:
            for number in previous:
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean-up
            server.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)
