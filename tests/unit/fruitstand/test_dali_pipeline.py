from pathlib import Path

import pytest

from fruitstand.errors import ArtefactError
from fruitstand.images.dali_pipeline import served_pipeline


def test_the_latest_version_is_the_served_one(tmp_path: Path) -> None:
    """By number, not by name; configuration folders are no versions."""
    for name in ("2", "10", "configs"):
        path = tmp_path / "image_decode" / name / "dali.py"
        path.parent.mkdir(parents=True)
        path.touch()
    assert served_pipeline(tmp_path).parent.name == "10"
    with pytest.raises(ArtefactError, match="no version"):
        served_pipeline(tmp_path / "other")
