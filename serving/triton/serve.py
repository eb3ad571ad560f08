"""`fruitstand serve`: the embedded server in the foreground, with HTTP in front of it."""

import json
import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.page.web import WebServer
from serving.triton.embedded import EmbeddedServer

log = logging.getLogger("fruitstand.serve")


def serve(repositories: Sequence[Path], *, http_port: int, **of_server: Any) -> None:
    """Serve until SIGTERM or SIGINT, then finish requests in flight and clean up.

    Once the server answers, one line of JSON with its URLs goes to stdout. A tritonserver that exits
    by itself is started again.

    Raises:
        UsageError: no repository, nothing published, or a port is taken.
        ArtefactError: the served version was altered, or lacks the required signature.
        ServerError: the server did not start, or did not start again.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    with WebServer(http_port) as web:
        server = EmbeddedServer(*repositories, **of_server)
        try:
            server.start()
            web.start(server.url, *(names.classifier for names in server.names))
            urls = {"grpc": server.url, "http": web.url, "metrics": server.metrics_url}
            print(json.dumps({"ready": True, **urls}), flush=True)
            while True:
                status = server.wait()
                log.warning("tritonserver exited with status %d and is started again; see its log", status)
                server.stop(at_once=True)
                server.start()
        except KeyboardInterrupt:
            pass
        finally:
            for number in previous:
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean-up
            web.stop()  # first, or HTTP would take requests for a server that has ended
            server.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)
