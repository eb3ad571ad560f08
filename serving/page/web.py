"""The HTTP server: `POST /classify`, KServe V2 REST, `/openapi.json` and the page, on one loopback port.

    python -m serving.page.web 127.0.0.1:8001 --port 8081      # beside a gateway, as in Kubernetes

`fruitstand serve` runs it on `--http-port`, the gateway runs it behind Envoy. It forwards bodies to the model
server over one gRPC channel and decodes no images. It limits bodies while they stream, and disconnects slow
or idle clients.
"""

import asyncio
import signal
import threading
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from aiohttp import web

from fruitstand.cli_options import ServedNames
from fruitstand.contract import FRUIT_CLASSIFIER
from fruitstand.errors import ServerError
from fruitstand.network.connections import is_loopback
from fruitstand.network.ports import LOOPBACK, listening_socket
from fruitstand.repository.model_names import names_for
from fruitstand_client.errors import RequestFailed
from serving.page import kserve
from serving.page.answer import Refused, response
from serving.page.classify import MAX_IMAGE_BYTES, check_content_type, classify, explain
from serving.page.upstream import Upstream

PAGE = Path(__file__).parents[2] / "client" / "web"
FILES = {
    "/": (PAGE / "index.html", "text/html; charset=utf-8"),
    "/page.css": (PAGE / "page.css", "text/css; charset=utf-8"),
    "/page.js": (PAGE / "page.js", "text/javascript; charset=utf-8"),
    "/openapi.json": (Path(__file__).with_name("openapi.json"), "application/json"),
}
OPTION = "<option>{}</option>"
NO_OPTION = OPTION.format("").encode()
"""Stands in the page for the classifiers to choose from."""
ANSWERS = {"/classify": classify, "/explain": explain}
"""What takes an image as its body."""

MAX_BODY_BYTES = MAX_IMAGE_BYTES + 16 * 2**10
"""The largest image, with a form or JSON header around it."""
MAX_HELD_BYTES = 256 * 2**20
"""Total size of bodies in flight; requests above it get 503. Each body is in memory up to four times."""
MAX_UNDER_WAY = 256
"""Inferences in flight; requests above it get 503 at once instead of waiting longer than their callers do."""
MAX_CONNECTIONS = 4096
DEADLINE_S = 30.0
"""Deadline of one inference."""
BODY_S = 30.0
"""Longest time for a body to arrive."""
IDLE_S = 20.0
"""Longest time for a request's headers to arrive, and between two requests."""
DRAIN_S = 0.5
"""How long a server that stops still answers open connections, with `Connection: close`."""
STOP_S = 10.0
"""Longest wait for requests in flight when the server stops."""


class WebServer:
    """The HTTP server, in a thread of this process. It claims its port at once and answers after `start`."""

    def __init__(
        self, port: int, *, is_public: bool = False, deadline_s: float = DEADLINE_S, flag: str = "--http-port"
    ) -> None:
        """Claim the port.

        Args:
            port: loopback port; 0 takes a free one.
            is_public: allow any Host header, for requests that a gateway passes on from other machines.
                Otherwise the Host header has to name this machine, which stops DNS rebinding.
            deadline_s: deadline of one inference.
            flag: the flag that chooses the port, for the error message.

        Raises:
            UsageError: the port is taken.
        """
        self._socket = listening_socket(port, flag)
        self.port: int = self._socket.getsockname()[1]
        self._is_public, self._deadline_s = is_public, deadline_s
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Base URL, which is also the web page's."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self, grpc_url: str, *models: str) -> None:
        """Start to answer requests.

        Args:
            grpc_url: HOST:PORT of the model server or of a gateway, in clear text.
            *models: the classifiers that the page offers; `POST /classify` asks the first where the
                request names none. Default: the default repository's.

        Raises:
            ServerError: the HTTP server did not start; the log says why.
        """
        listening = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(grpc_url, models or (FRUIT_CLASSIFIER,), listening)),
            name="http",
            daemon=True,
        )
        self._thread.start()
        while not listening.wait(0.1):
            if not self._thread.is_alive():
                self._thread = None
                raise ServerError("the HTTP server did not start; see the log above")

    def stop(self) -> None:
        """Finish requests in flight, and release the port."""
        if self._thread is not None:
            assert self._loop is not None
            assert self._ended is not None
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()
            self._thread = None
        self._socket.close()

    def __enter__(self) -> "WebServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _serve(self, grpc_url: str, models: tuple[str, ...], listening: threading.Event) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        upstream = Upstream(grpc_url, deadline_s=self._deadline_s)
        router = _Router(upstream, models, is_public=self._is_public)
        server = _Server(
            router.answer,
            handler_cancellation=True,  # the gRPC call is cancelled when the caller disconnects
            access_log=None,
            auto_decompress=False,  # compressed bodies can expand to any size; `_route` refuses them
            keepalive_timeout=IDLE_S,
        )
        listener = await self._loop.create_server(server, sock=self._socket, backlog=1024)
        listening.set()
        await self._ended.wait()
        listener.close()
        router.is_stopping = True
        if server.connections:  # a request that is on its way would be cut off with its connection
            await asyncio.sleep(DRAIN_S)
        server.pre_shutdown()
        await server.shutdown(STOP_S)
        await upstream.close()


class _Connection(web.RequestHandler):
    """One connection; it answers malformed HTTP with a line of JSON too."""

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status >= 500:
            self.logger.error("%s %s failed", request.method, request.path, exc_info=exc)
        reason = "the server failed on this request" if status >= 500 else "malformed HTTP request"
        answer = Refused(status, reason).response()
        answer.force_close()
        return answer


class _Server(web.Server):
    """Limits the number of connections."""

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > MAX_CONNECTIONS:
            handler.force_close()


class _Router:
    """Routes requests to their handlers; paths have to match exactly and are not decoded."""

    def __init__(self, upstream: Upstream, models: tuple[str, ...], *, is_public: bool) -> None:
        self._upstream, self._models, self._is_public = upstream, models, is_public
        self._held_bytes = self._num_under_way = 0
        self.is_stopping = False

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer any request."""
        answer = await self._answer(request)
        if self.is_stopping:
            answer.force_close()
        return answer

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._route(request)
        except Refused as refused:
            return refused.response()
        except RequestFailed as failure:
            return Refused.after(failure).response()

    async def _route(self, request: web.BaseRequest) -> web.Response:
        path = request.rel_url.raw_path
        if not kserve.is_health(path):
            self._refuse_foreign(request)
        model = kserve.MODEL.fullmatch(path)
        if path in ANSWERS or (model is not None and model["call"] == "/infer"):
            if request.method != "POST":
                raise Refused(405, "POST an image here", allow="POST")
            return await self._post(request, path)
        if path in FILES:
            name, content_type = FILES[path]
            self._only_get(request)
            content = name.read_bytes()
            if path == "/":
                content = content.replace(NO_OPTION, "".join(map(OPTION.format, self._models)).encode())
            return response(content, content_type)
        if model is not None or path.startswith("/v2"):
            found = await kserve.read(path, self._upstream) if request.method == "GET" else None
            if found is not None:
                return found
        raise Refused(404, "no such endpoint; /openapi.json lists them")

    def _only_get(self, request: web.BaseRequest) -> None:
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, "GET this page", allow="GET")

    async def _post(self, request: web.BaseRequest, path: str) -> web.Response:
        if path in ANSWERS:
            check_content_type(request.headers.get("Content-Type", ""))
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(415, "compressed bodies are not taken")
        self._refuse_when_full()
        body = bytearray()
        try:
            await self._read(request, body)
            self._refuse_when_full()
            return await self._infer(request, path, bytes(body))
        finally:
            self._held_bytes -= len(body)

    def _refuse_when_full(self) -> None:
        if self._num_under_way >= MAX_UNDER_WAY:
            raise Refused(503, "too many requests under way; send less at once, or try again later")

    async def _infer(self, request: web.BaseRequest, path: str, body: bytes) -> web.Response:
        self._num_under_way += 1
        try:
            if path in ANSWERS:
                return await ANSWERS[path](request, body, self._upstream, self._models[0])
            return await kserve.infer(request, body, self._upstream)
        finally:
            self._num_under_way -= 1

    async def _read(self, request: web.BaseRequest, body: bytearray) -> None:
        """Read the body, and count it towards the total in flight.

        Raises:
            Refused: the body is too long or too slow, or too many bytes are in flight.
        """
        too_long = Refused(413, f"too many bytes: at most {MAX_IMAGE_BYTES} are allowed")
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise too_long
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.content.iter_any():
                    if self._held_bytes + len(chunk) > MAX_HELD_BYTES:
                        raise Refused(503, "the server holds too many uploads; try again later")
                    body += chunk
                    self._held_bytes += len(chunk)
                    if len(body) > MAX_BODY_BYTES:
                        raise too_long
        except TimeoutError as exc:
            raise Refused(408, f"the body did not arrive within {BODY_S:.0f} s") from exc
        except web.RequestPayloadError as exc:
            raise Refused(400, "the body cannot be read") from exc

    def _refuse_foreign(self, request: web.BaseRequest) -> None:
        """Refuse requests from other sites' pages, also from names that resolve here (DNS rebinding).

        Links from other sites to this page still work.

        Source:
            Fetch Metadata Request Headers, W3C; RFC 6454, section 7 (Origin).
        """
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        try:
            is_here = self._is_public or is_loopback(urlsplit(f"//{host}").hostname or "")
            is_own = origin is None or urlsplit(origin).netloc == host
        except ValueError as exc:
            raise Refused(400, "Host or Origin is not a host name") from exc
        crosses = request.headers.get("Sec-Fetch-Site") == "cross-site"
        is_link = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
        if not (is_here and is_own and (is_link or not crosses)):
            raise Refused(403, "not for pages of other sites")


def main(
    grpc_url: Annotated[str, typer.Argument(help="HOST:PORT of the gateway's inner gRPC listener.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Loopback port to listen on.")],
    name: ServedNames = None,
) -> None:
    """Answer HTTP behind a separate Envoy, until SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with WebServer(port, is_public=True, flag="--port") as server:
        server.start(grpc_url, *(names_for(one).classifier for one in name or ()))
        ended.wait()


if __name__ == "__main__":
    typer.run(main)
