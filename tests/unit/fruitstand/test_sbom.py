import json
import subprocess
import sys


def test_the_bill_of_materials_names_what_is_installed() -> None:
    """CycloneDX, with package URLs."""
    done = subprocess.run(
        [sys.executable, "-m", "fruitstand.machine.sbom"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    document = json.loads(done.stdout)
    assert document["bomFormat"] == "CycloneDX"
    purls = {one["purl"] for one in document["components"]}
    assert any(purl.startswith("pkg:pypi/numpy@") for purl in purls)
