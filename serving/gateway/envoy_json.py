"""Building blocks of Envoy's configuration."""

from pathlib import Path
from typing import Any

PACKAGE = "type.googleapis.com/envoy"

Json = dict[str, Any]


def typed(name: str, kind: str, **fields: Any) -> Json:
    """An extension's configuration with its type URL."""
    return {"name": name, "typed_config": {"@type": f"{PACKAGE}.{kind}", **fields}}


def address(host: str, port: int) -> Json:
    """Address of a TCP socket."""
    return {"socket_address": {"address": host, "port_value": port}}


def watched(folder: Path, name: str) -> Json:
    """A reference to a file that Envoy reloads whenever it is replaced."""
    return {
        "resource_api_version": "V3",
        "path_config_source": {
            "path": str(folder / f"{name}.json"),
            "watched_directory": {"path": str(folder)},
        },
    }
