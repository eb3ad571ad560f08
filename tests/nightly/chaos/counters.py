"""What a server says of itself: its page of metrics, and a gateway's answers by gRPC status."""

from prometheus_client.parser import text_string_to_metric_families

from fruitstand.network.connections import fetch_page

_GRPC_ANSWERS = "envoy_cluster_grpc_ModelInfer_"


def fetch(url: str) -> str:
    """The page; empty while nobody answers."""
    try:
        return str(fetch_page(url, timeout_s=5), "utf-8")
    except OSError:
        return ""


def answers_by_code(page: str) -> dict[int, int]:
    """How many inferences a gateway answered, by gRPC's status code."""
    found: dict[int, int] = {}
    for family in text_string_to_metric_families(page):
        code = family.name.removeprefix(_GRPC_ANSWERS)
        if code.isdecimal():
            found[int(code)] = found.get(int(code), 0) + int(sum(one.value for one in family.samples))
    return found
