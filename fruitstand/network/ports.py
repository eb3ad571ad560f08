"""Find free TCP ports on this machine."""

import contextlib
import errno
import secrets
import socket
from collections.abc import Mapping

from fruitstand.errors import UsageError

LOOPBACK = "127.0.0.1"
# Below the ports that Linux (from 32768), macOS and Windows (from 49152) give to outgoing connections. Such a
# connection of any process could take a port between its choice here and the start of its server.
CHOICES = range(20000, 32768)
BACKLOG = 1024


def listening_socket(port: int, flag: str) -> socket.socket:
    """Listen on a port of the loopback interface.

    0 chooses a free port. `flag` is the option that chooses it, for the error message.

    Raises:
        UsageError: the port is taken, or may not be used.
    """
    while True:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((LOOPBACK, port or secrets.choice(CHOICES)))
            listener.listen(
                BACKLOG
            )  # with SO_REUSEADDR, bind succeeds on a port that another process listens on
        except OSError as exc:
            listener.close()
            is_taken = exc.errno == errno.EADDRINUSE
            if is_taken and port == 0:
                continue
            reason = "is in use" if is_taken else f"cannot be used ({exc.strerror})"
            raise UsageError(
                f"port {port} {reason}; choose another with {flag}, or 0 for a free one"
            ) from exc
        return listener


def claim_ports(wanted: Mapping[str, int]) -> list[int]:
    """Choose ports for servers that start next.

    `wanted` has the port for each option that chooses one; 0 for a free one.

    Returns:
        The ports in the order of the options. Nothing listens on them yet.

    Raises:
        UsageError: a port is taken, or may not be used.
    """
    with contextlib.ExitStack() as claimed:
        return [
            claimed.enter_context(listening_socket(port, flag)).getsockname()[1]
            for flag, port in wanted.items()
        ]


def free_ports(number: int) -> list[int]:
    """Choose free ports of the loopback interface."""
    return claim_ports({str(index): 0 for index in range(number)})
