"""What is installed here, as a CycloneDX document on stdout: the images carry it as /venv/sbom.json."""

import json
from importlib.metadata import distributions
from typing import Any


def sbom() -> dict[str, Any]:
    """Every installed distribution, by name.

    Source:
        CycloneDX 1.6 and the package-URL type `pypi`.
    """
    read = (one.metadata for one in distributions())  # each look at `metadata` reads the file again
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
                **_license(one["License-Expression"] if "License-Expression" in one else None),
            }
            for name, one in sorted(found.items())
        ],
    }


def _license(expression: str | None) -> dict[str, Any]:
    return {"licenses": [{"expression": expression}]} if expression else {}


if __name__ == "__main__":
    print(json.dumps(sbom(), indent=1))
