"""Fetch an image from the web: http and https only, with limits on bytes and time."""

import http.client
import time
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
)

from fruitstand_client.errors import ImageRejected

TIMEOUT_S = 10.0
"""For the whole of one image."""
CHUNK_BYTES = 65_536


def fetch(url: str, max_bytes: int) -> bytes:
    """Fetch a URL's content.

    Args:
        url: http or https; so is every address it redirects to.
        max_bytes: of the content; more is not read.

    Raises:
        ImageRejected: another scheme, no answer, not in time, or too long.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme not in ("http", "https"):
        raise ImageRejected(f"a URL of scheme {scheme!r}: only http and https are fetched")
    opener = OpenerDirector()
    # Without handlers for files and FTP a redirect cannot lead there.
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        HTTPDefaultErrorHandler(),
        HTTPRedirectHandler(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    deadline = time.monotonic() + TIMEOUT_S
    try:
        with opener.open(url, timeout=TIMEOUT_S) as response:
            if int(response.headers.get("Content-Length") or 0) > max_bytes:
                raise ImageRejected(f"too many bytes: at most {max_bytes} are allowed")
            content = bytearray()
            while chunk := response.read1(CHUNK_BYTES):
                content += chunk
                if len(content) > max_bytes:
                    raise ImageRejected(f"too many bytes: at most {max_bytes} are allowed")
                if time.monotonic() > deadline:
                    raise ImageRejected(f"cannot be fetched: not complete within {TIMEOUT_S:.0f} s")
            return bytes(content)
    except HTTPError as exc:
        raise ImageRejected(f"cannot be fetched: HTTP status {exc.code}") from exc
    except (URLError, OSError, http.client.HTTPException, ValueError) as exc:
        raise ImageRejected(f"cannot be fetched: {getattr(exc, 'reason', exc)}") from exc
