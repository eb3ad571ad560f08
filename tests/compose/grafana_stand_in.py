"""Stands in for Grafana where its image cannot be pulled: checks the provisioning, answers the health check.

`tests/compose/run.sh` puts it into an image of Grafana's name, so that docker-compose.yml runs as it is. It
shows no dashboard. It checks: known keys, a data source with an address, dashboards in JSON that ask that
data source.
"""

import json
import os
import re
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

PROVISIONING = Path("/etc/grafana/provisioning")
DATA = Path("/var/lib/grafana")
SOURCE_KEYS = {"name", "uid", "type", "access", "url", "isDefault", "editable", "jsonData"}
PROVIDER_KEYS = {
    "name", "type", "folder", "allowUiUpdates", "disableDeletion", "updateIntervalSeconds", "options",
}  # fmt: skip


def check() -> str:
    """What was read, in words.

    Raises:
        ValueError: what Grafana would refuse, or would come up without.
    """
    if not os.environ.get("GF_SECURITY_ADMIN_PASSWORD"):
        raise ValueError("GF_SECURITY_ADMIN_PASSWORD is empty")
    sources = [one for document in documents("datasources") for one in document["datasources"]]
    for one in sources:
        if unknown := set(one) - SOURCE_KEYS:
            raise ValueError(f"datasource {one.get('name')}: unknown keys {unknown}")
        if not re.fullmatch(r"https?://[\w.-]+:\d+", one["url"] or ""):
            raise ValueError(f"datasource {one['name']}: url is {one['url']!r}")
    uids = {one["uid"] for one in sources}
    boards = 0
    for document in documents("dashboards"):
        for provider in document["providers"]:
            if unknown := set(provider) - PROVIDER_KEYS:
                raise ValueError(f"dashboards of {provider.get('name')}: unknown keys {unknown}")
            for path in sorted(Path(provider["options"]["path"]).glob("*.json")):
                asked = set(re.findall(r'"uid": "(fruitstand-prometheus)"', path.read_text()))
                if not json.loads(path.read_text())["uid"] or not asked <= uids:
                    raise ValueError(f"{path.name}: asks {asked}, there is {uids}")
                boards += 1
    if not boards or not sources:
        raise ValueError(f"{boards} dashboards, {len(sources)} data sources")
    (DATA / "written").touch()
    return f"{boards} dashboards, {len(sources)} data source at {sources[0]['url']}"


def documents(kind: str) -> list[dict[str, Any]]:
    """The YAML files of a kind, with the environment's variables put in."""
    texts = [os.path.expandvars(path.read_text()) for path in sorted((PROVISIONING / kind).glob("*.yml"))]
    return [yaml.safe_load(text) for text in texts]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """The health check alone."""
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
        self.wfile.write(b'{"database": "ok", "version": "stand-in"}')


def main() -> None:
    """Check, then answer."""
    # The first process of a container ignores it otherwise.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"NOT GRAFANA but a stand-in for it: {check()}", flush=True)
    address = (os.environ["GF_SERVER_HTTP_ADDR"], int(os.environ["GF_SERVER_HTTP_PORT"]))
    ThreadingHTTPServer(address, _Handler).serve_forever()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, KeyError, OSError, TypeError) as exc:
        sys.exit(f"provisioning: {type(exc).__name__}: {exc}")
