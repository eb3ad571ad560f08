"""Print the installed packages as a CycloneDX document; the container images carry it as /venv/sbom.json."""

import json
from importlib.metadata import PackageMetadata, distributions
from typing import Any


def sbom() -> dict[str, Any]:
    """List every installed distribution, sorted by name.

    Source:
        CycloneDX 1.6 and the package-URL type `pypi`.
    """
    read = (one.metadata for one in distributions())  # each access to `metadata` reads the file again
    found = {one["Name"].lower().replace("_", "-"): one for one in read}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [
            {
                "type": "library",
                "name": name,
                "version": one["Version"],
                "purl": f"pkg:pypi/{name}@{one['Version']}",
                **_license(one),
            }
            for name, one in sorted(found.items())
        ],
    }


def _license(metadata: PackageMetadata) -> dict[str, Any]:
    expressions = metadata.get_all("License-Expression") or []
    return {"licenses": [{"expression": one} for one in expressions]} if expressions else {}


if __name__ == "__main__":
    print(json.dumps(sbom(), indent=1))
