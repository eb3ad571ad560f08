"""Which addresses the fetch of one URL may reach."""

import ipaddress
import socket

from fruitstand_client.errors import ImageRejected


class AddressRule:
    """Looks at every address that one fetch is about to connect to, the first one being the URL's own.

    Whoever names a URL may name a server of a private network. A server elsewhere may not: a redirect leads
    to public addresses only, unless the URL's own was none. Link-local addresses are never fetched: cloud
    machines find their credentials there.
    """

    def __init__(self) -> None:
        """Start before the URL's own address."""
        self._from_public: bool | None = None

    def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a host, all of them allowed; to be connected to without asking for the name again.

        Raises:
            ImageRejected: one of them is not allowed.
            OSError: the name is not found.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        parsed = [_parse(address) for address in addresses]
        are_public = all(one.is_global for one in parsed)
        if any(one.is_link_local for one in parsed):
            raise ImageRejected(f"cannot be fetched: {host} is a link-local address")
        if self._from_public and not are_public:
            raise ImageRejected(
                f"cannot be fetched: a redirect from a public address to {host}, a private one"
            )
        if self._from_public is None:
            self._from_public = are_public
        return addresses

    def trust_proxy(self) -> None:
        """Note that a proxy, whose own address is the user's choice, asks for the URL."""
        if self._from_public is None:
            self._from_public = True


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address without its zone; an IPv4 address written as IPv6 is the former."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed
