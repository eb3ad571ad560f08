"""What the real server samples of what it serves, and how it compares with its version's reference."""

from pathlib import Path

import pytest

from fruitstand.sampling.samples import REFERENCE_NAME, join_samples, read_samples, write_samples
from fruitstand_client import Client
from monitoring.drift.report import drift_report
from serving.triton.embedded import EmbeddedServer


def test_served_images_are_sampled_with_their_features(
    repository: Path, test_images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions are those that were answered; MMD is among the measures; nothing is left in the config."""
    monkeypatch.setenv("FRUITSTAND_SAMPLES", str(tmp_path / "samples"))
    monkeypatch.setenv("FRUITSTAND_SAMPLES_PER_S", "1000")
    answered: set[int] = set()
    with EmbeddedServer(repository, log_path=tmp_path / "triton.log") as server, Client(server.url) as client:
        labels = (repository / "fruit_resnet" / "labels.txt").read_text().splitlines()
        for _ in range(200 // len(test_images) + 1):
            for path in test_images:
                (one,) = client.classify([path])
                answered.add(labels.index(one.label))
    parts = [read_samples(path) for path in sorted((tmp_path / "samples").glob("*.npz"))]
    assert {version for _, version, _ in parts} == {1}
    assert all(samples.features.shape[1] == 512 for samples, _, _ in parts)
    # Besides what was sent there are the readiness check's own images.
    assert answered <= {int(one) for samples, _, _ in parts for one in samples.predicted}
    # The version's own reference has the features too, and too few images for a comparison.
    own, _, named = read_samples(repository / "fruit_resnet" / "1" / REFERENCE_NAME)
    assert (own.features.shape[1], named) == (512, labels)
    reference = tmp_path / "reference.npz"
    write_samples(reference, join_samples([one for one, _, _ in parts]), version=1, labels=labels)
    result = drift_report(
        tmp_path / "samples", repository=repository, reference=reference, window_size=50, out=tmp_path / "out"
    )
    assert "mmd_features" in result["measures"]
    assert "FEATURES" not in (repository / "fruit_resnet" / "config.pbtxt").read_text()
