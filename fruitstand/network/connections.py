"""Open gRPC channels and fetch HTTP pages, with the right use of proxies.

gRPC and urllib use the proxies of the environment (`grpc_proxy`, `https_proxy`, `http_proxy`) even for
127.0.0.1. A proxy cannot reach this machine's loopback, and could read clear text. So loopback is always
reached directly; for other hosts the proxy is used unless `no_proxy` names the host.

gRPC and tritonclient are imported inside the functions, so importing this module is cheap.
"""

import ipaddress
import logging
import os
import re
import socket
import urllib.request
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fruitstand.errors import UsageError

log = logging.getLogger("fruitstand.network.connections")

GRPC_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables in which gRPC looks for a proxy, in its order."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
Options = Sequence[tuple[str, Any]]


class Endpoint(NamedTuple):
    """One gRPC address."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether the host is always this machine."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoints(url: str) -> list[Endpoint]:
    """Parse HOST:PORT, or several separated by commas.

    Raises:
        UsageError: an address has another form.
    """
    endpoints = []
    for one in url.split(","):
        match = re.fullmatch(r"\s*(?:\[([^\]]+)\]|([^\s/:\[\]]+)):(\d{1,5})\s*", one)
        if match is None or not 0 < int(match[3]) < 65536:
            raise UsageError(
                f"{one.strip() or 'an empty address'}: not a gRPC address; write HOST:PORT[,HOST:PORT...]"
            )
        endpoints.append(Endpoint(match[1] or match[2], int(match[3])))
    return endpoints


def is_loopback(host: str) -> bool:
    """Whether a host name or address is always this machine: localhost, 127.0.0.0/8, ::1."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def open_channel(
    url: str, *, credentials: Any = None, options: Options = (), asynchronous: bool = False
) -> Any:
    """Open a gRPC channel; it connects with its first call.

    Without `grpc.ChannelCredentials` it sends clear text. The options are added to `channel_options`. An
    asynchronous one is of `grpc.aio` and belongs to the running event loop.

    Raises:
        UsageError: invalid address, or none of several host names is found.
    """
    import grpc
    import grpc.aio

    endpoints = parse_endpoints(url)
    target, settings = _target(endpoints), [*channel_options(url), *options]
    module = grpc.aio if asynchronous else grpc
    if credentials is None:
        return module.insecure_channel(target, options=settings)
    return module.secure_channel(target, credentials, options=settings)


def open_triton(url: str, options: Options = ()) -> Any:
    """Open a `tritonclient.grpc.InferenceServerClient` with our channel options, in clear text.

    Raises:
        UsageError: `url` is not HOST:PORT.
    """
    import tritonclient.grpc

    return tritonclient.grpc.InferenceServerClient(url, channel_args=[*channel_options(url), *options])


def channel_options(url: str) -> list[tuple[str, Any]]:
    """The gRPC channel arguments of all our channels.

    Raises:
        UsageError: invalid address.
    """
    endpoints = parse_endpoints(url)
    options: list[tuple[str, Any]] = [
        # Lift the client's default limit of 4 MiB; the server sets its own limit.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # Otherwise channels to the same address share a connection and its back-off after a failure.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    is_list = len(endpoints) > 1
    if is_list or endpoints[0].is_loopback:
        options.append(("grpc.enable_http_proxy", 0))
    # Through a proxy, gRPC would request one connection to the whole list.
    if is_list and (proxies := {one for one in map(proxy_variable, url.split(",")) if one}):
        log.warning("%s: a list of addresses is reached without the proxy in %s", url, *proxies)
    return options


def proxy_variable(url: str) -> str | None:
    """The environment variable with the proxy that a channel to HOST:PORT uses; None without a proxy."""
    endpoints = parse_endpoints(url)
    (host, _), is_list = endpoints[0], len(endpoints) > 1
    if is_list or is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    return next((name for name in GRPC_PROXY_VARIABLES if os.environ.get(name)), None)


def _target(endpoints: list[Endpoint]) -> str:
    """The target string of a channel; a list must consist of IP addresses, which gRPC does not resolve."""
    if len(endpoints) == 1:
        return str(endpoints[0])
    found: set[Endpoint] = set()
    for host, port in endpoints:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as exc:
            log.warning("%s: not found (%s); using the other addresses", host, exc.strerror)
            continue
        found.update(Endpoint(str(info[4][0]), port) for info in infos)
    for family, version in (("ipv4", 4), ("ipv6", 6)):
        addresses = [
            str(one)
            for one in sorted(found)
            if ipaddress.ip_address(one.host.partition("%")[0]).version == version
        ]
        if addresses:
            return f"{family}:{','.join(addresses)}"
    raise UsageError(f"none of {', '.join(one.host for one in endpoints)} is found; check the names")


class EnvironmentProxies(urllib.request.ProxyHandler):
    """Uses the proxies of the environment, except for loopback."""

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:
        """Send a request through `proxy`; None makes urllib connect directly."""
        if is_loopback(urlsplit(req.full_url).hostname or ""):
            return None
        return super().proxy_open(req, proxy, type)


def fetch_page(url: str, *, timeout_s: float) -> bytes:
    """Fetch an HTTP page, such as a server's metrics.

    Raises:
        OSError: no answer, or an HTTP error status (`urllib.error.URLError` is an OSError).
    """
    with urllib.request.build_opener(EnvironmentProxies()).open(url, timeout=timeout_s) as answer:
        content: bytes = answer.read()
        return content


def metric_total(page: str, name: str, **labels: str) -> float:
    """Sum all series of a metric that have the given labels; 0 if there are none.

    The page is in Prometheus's text format. A series may have more labels.
    """
    from prometheus_client.parser import text_string_to_metric_families

    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        # The parser appends _total to a counter's name.
        if sample.name in (name, f"{name}_total") and labels.items() <= sample.labels.items()
    )


def direct_environment() -> dict[str, str]:
    """The environment for a program that connects to this machine, with loopback excluded from proxies."""
    environment = dict(os.environ)
    names = ["no_proxy", *(["no_grpc_proxy"] if "no_grpc_proxy" in environment else [])]
    for name in names:
        known = environment.get(name) or environment.get(name.upper(), "")
        environment[name] = ",".join([*filter(None, [known]), *LOOPBACK_NAMES])
    return environment
