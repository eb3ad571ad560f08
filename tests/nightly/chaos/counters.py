"""What a server says of itself: a page of metrics in Prometheus's text format, as sums."""

import re

from fruitstand.network.connections import fetch_page

_LABEL = re.compile(r'(\w+)="([^"]*)"')


def fetch(url: str) -> str:
    """The page; empty while nobody answers."""
    try:
        return str(fetch_page(url, timeout_s=5), "utf-8")
    except OSError:
        return ""


def total(page: str, name: str, **labels: str) -> float:
    """The sum of one metric's series that have these labels; 0 without one."""
    found = 0.0
    for line in page.splitlines():
        if not line.startswith(name) or line[len(name) : len(name) + 1] not in ("{", " "):
            continue
        have = dict(_LABEL.findall(line))
        if all(have.get(key) == value for key, value in labels.items()):
            found += float(line.rsplit(" ", 1)[1])
    return found


def answers_by_code(page: str) -> dict[int, int]:
    """How many inferences a gateway answered, by gRPC's status code."""
    found: dict[int, int] = {}
    for code, value in re.findall(r"^envoy_cluster_grpc_ModelInfer_(\d+)\{.*\} (\d+)", page, re.MULTILINE):
        found[int(code)] = found.get(int(code), 0) + int(value)
    return found
