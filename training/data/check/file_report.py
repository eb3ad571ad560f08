"""What kind of files a prepared folder holds, and which of them are damaged or odd."""

from collections import Counter
from statistics import median

from fruitstand.manifest import PreparedData
from training.data.check.survey import Survey

USUAL_SHARE = 0.9
"""When so many images have one size, or one mode, the others are odd."""
MAX_LISTED = 200
"""Of every kind of finding; the counts are complete."""


def file_report(data: PreparedData, seen: Survey) -> dict:
    """Damaged and odd files, and how often each size, mode and format occurs."""
    looks = [look for look in seen.looks if look is not None]
    num_bytes = sorted(look.num_bytes for look in looks)
    damaged = [
        {"file": data.rows[index].path, "reason": reason} for index, reason in sorted(seen.problems.items())
    ]
    odd = _unusual(data, seen) + [{"file": stray, "reason": "not in the manifest"} for stray in _strays(data)]
    return {
        "num_damaged": len(damaged),
        "damaged": damaged[:MAX_LISTED],
        "num_odd": len(odd),
        "odd": odd[:MAX_LISTED],
        "sizes": dict(Counter(f"{look.width} x {look.height}" for look in looks).most_common(MAX_LISTED)),
        "modes": dict(Counter(look.mode for look in looks).most_common()),
        "formats": dict(Counter(look.format for look in looks).most_common()),
        "bytes": {
            "smallest": num_bytes[0] if num_bytes else 0,
            "median": median(num_bytes) if num_bytes else 0,
            "largest": num_bytes[-1] if num_bytes else 0,
        },
    }


def _unusual(data: PreparedData, seen: Survey) -> list[dict[str, str]]:
    """Images that differ from nearly all the others in size or mode."""
    traits = [
        (row.path, f"{look.width} x {look.height} pixels", f"mode {look.mode}")
        for row, look in zip(data.rows, seen.looks, strict=True)
        if look is not None
    ]
    odd: dict[str, str] = {}
    for trait in (1, 2):
        counts = Counter(one[trait] for one in traits)
        usual, count = counts.most_common(1)[0] if counts else ("", 0)
        if count >= USUAL_SHARE * len(traits):
            for one in traits:
                if one[trait] != usual:
                    odd.setdefault(one[0], f"{one[trait]}, most are {usual.removeprefix('mode ')}")
    return [{"file": file, "reason": reason} for file, reason in sorted(odd.items())]


def _strays(data: PreparedData) -> list[str]:
    listed = {row.path for row in data.rows}
    found = (path for path in (data.directory / "images").rglob("*") if path.is_file())
    return sorted({str(path.relative_to(data.directory)) for path in found} - listed)
