"""One number against another, taken in the same round: what a busy machine does to both falls out."""

import statistics
from collections.abc import Sequence


def ratio(values: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios within rounds."""
    ratios = [value / reference for value, reference in zip(values, references, strict=True)]
    found = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {key: round(value, 3) for key, value in found.items()}
