"""Files that are refused, as a dictionary; the list itself is `serving.attest.kinds`."""

from serving.attest.kinds import image_kinds


def refused() -> dict[str, tuple[bytes, str]]:
    """Files that are refused, with what the reason has to say."""
    return {kind.name: (kind.content, kind.verdict) for kind in image_kinds() if not kind.is_accepted}
