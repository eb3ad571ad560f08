"""`fruitstand serve`: the embedded server in the foreground, with HTTP in front of it."""

import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.host.build import cache_folder
from serving.page.web import WebServer
from serving.triton.embedded import EmbeddedServer

log = logging.getLogger("fruitstand.serve")


def log_for_terminal(http_port: int) -> Path | None:
    """A file for tritonserver's log if stderr is a terminal, where its 60 lines would hide ours; else None.

    Args:
        http_port: in the file's name, so that two servers of one user have two files.
    """
    if not sys.stderr.isatty():
        return None
    path = cache_folder() / f"serve-{http_port}.log"
    path.unlink(missing_ok=True)
    log.info("starting; the log of tritonserver is %s", path)
    return path


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
            if sys.stderr.isatty():
                print(f"open {web.url} and drop a photograph on it; Ctrl-C ends the server", file=sys.stderr)
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
