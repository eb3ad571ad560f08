"""Real images, and files that are refused; the list itself is `serving.attest.kinds`."""

import os
from pathlib import Path

from serving.attest.kinds import image_kinds


def refused() -> dict[str, tuple[bytes, str]]:
    """Files that are refused, with what the reason has to say."""
    return {kind.name: (kind.content, kind.verdict) for kind in image_kinds() if not kind.is_accepted}


def real_data_folder() -> Path:
    """Where real Fruits-360 images are, if anywhere: FRUITSTAND_REAL_DATA, else beside the checkout."""
    return Path(os.environ.get("FRUITSTAND_REAL_DATA", Path(__file__).parents[2] / "shared"))
