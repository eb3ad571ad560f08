"""`fruitstand drift watch`: write a drift report at an interval, and serve the newest over HTTP."""

import contextlib
import json
import logging
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fruitstand.errors import FruitstandError, UsageError
from monitoring.drift.report import drift_report

log = logging.getLogger("fruitstand.drift")

LOOPBACK = "127.0.0.1"
PAGES = {
    "/metrics": ("drift.prom", "text/plain; version=0.0.4; charset=utf-8"),
    "/": ("drift.html", "text/html; charset=utf-8"),
    "/drift.json": ("drift.json", "application/json"),
}


def watch_drift(
    samples: Path,
    *,
    repository: Path,
    reference: Path | None,
    window_size: int,
    out: Path,
    interval_s: float,
    port: int,
) -> None:
    """Report at an interval until SIGTERM or SIGINT; prints one line of JSON with the URLs.

    An error, such as no samples after the server's start, is logged, and the next report tries again.

    Raises:
        UsageError: the port is taken.
    """
    ended = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        with _pages(out, port) as url:
            print(json.dumps({"ready": True, "metrics": f"{url}/metrics", "page": f"{url}/"}), flush=True)
            while True:
                try:
                    result = drift_report(
                        samples, repository=repository, reference=reference, window_size=window_size, out=out
                    )
                    log.info("version %d: %s", result["version"], "DRIFTED" if result["drifted"] else "clean")
                except FruitstandError as exc:
                    log.warning("not compared: %s", exc)
                if ended.wait(interval_s):
                    return
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _pages(out: Path, port: int) -> Iterator[str]:
    """Serve the newest report; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, kind = PAGES.get(self.path, (None, ""))
            if name is None:
                self.send_error(404)
                return
            path = out / name
            content = path.read_bytes() if path.is_file() else b""  # empty before the first report
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing: Prometheus scrapes every few seconds."""

    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    except OSError as exc:
        raise UsageError(f"port {port}: {exc.strerror}; choose another with --port, or 0") from exc
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{LOOPBACK}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
