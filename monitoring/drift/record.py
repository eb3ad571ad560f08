"""`fruitstand drift record`: write samples of images that a server has just classified."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fruitstand.contract import Preprocessing
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.images.conversion import as_supported
from fruitstand.images.reference_decode import decode_reference
from fruitstand.repository.versions import read_version
from fruitstand.sampling.samples import describe, join_samples, write_samples

Answer = tuple[int, dict[str, float], float | None]
"""The version that answered, its probabilities by label, and KNOWN where it has that."""


def record_samples(
    paths: Sequence[Path], answers: Iterable[Answer], *, repository: Path, out: Path, num_kept: int
) -> dict[str, Any]:
    """Write the samples of classified images.

    Returns:
        File, version and number of samples, JSON-ready.

    Raises:
        UsageError: no image, or the repository has no such version.
        ArtefactError: two versions answered, or the server has other classes than the repository.
    """
    listed = list(answers)
    if not listed:
        raise UsageError("no image to record")
    versions = sorted({version for version, _, _ in listed})
    if len(versions) > 1:
        raise ArtefactError(f"versions {versions} answered, because one was promoted meanwhile; record again")
    manifest = read_version(repository, versions[0]).manifest
    labels: list[str] = manifest["labels"]
    if set(listed[0][1]) != set(labels):
        raise ArtefactError(
            f"{repository}: version {versions[0]} has other classes than the server; give the server's"
            " --repository"
        )
    preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
    parts = []
    for number, (path, (_, by_label, known)) in enumerate(zip(paths, listed, strict=True)):
        pixels = decode_reference(as_supported(path.read_bytes(), preprocessing).content, preprocessing)
        probabilities = np.array([[by_label[label] for label in labels]], np.float32)
        known_or_not = None if known is None else np.array([known], np.float32)
        parts.append(
            describe(pixels[None], probabilities, known=known_or_not, num_kept=int(number < num_kept))
        )
    write_samples(out, join_samples(parts), version=versions[0], labels=labels)
    return {"samples": str(out), "version": versions[0], "num_samples": len(parts)}
