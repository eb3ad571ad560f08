"""The pieces that Envoy's configuration is written with."""

from pathlib import Path
from typing import Any

PACKAGE = "type.googleapis.com/envoy"

Json = dict[str, Any]


def typed(name: str, kind: str, **fields: Any) -> Json:
    """An extension's configuration, as Envoy wants it named."""
    return {"name": name, "typed_config": {"@type": f"{PACKAGE}.{kind}", **fields}}


def address(host: str, port: int) -> Json:
    """Of a TCP socket."""
    return {"socket_address": {"address": host, "port_value": port}}


def watched(folder: Path, name: str) -> Json:
    """A document that Envoy reads again whenever it is replaced."""
    return {
        "resource_api_version": "V3",
        "path_config_source": {
            "path": str(folder / f"{name}.json"),
            "watched_directory": {"path": str(folder)},
        },
    }
