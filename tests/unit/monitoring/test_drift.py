import json
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fruitstand.errors import ArtefactError, UsageError
from fruitstand.sampling.samples import (
    IMAGE_STATISTICS,
    Samples,
    describe,
    image_statistics,
    read_samples,
    write_samples,
)
from monitoring.drift.measures import NUM_COMPONENTS, ks, measure, mmd, principal_axes, psi, thresholds
from monitoring.drift.report import abstention_rate, drift_report
from tests.nightly.chaos.drift_power import drift_power

LABELS = ["Apple", "Pear", "Plum", "Fig"]


def samples(count: int, *, seed: int, dark: float = 1.0, mix: tuple[float, ...] = (0.25,) * 4) -> Samples:
    """Images with a white border and a coloured middle, and answers to them."""
    draw = np.random.default_rng(seed)
    pixels = np.full((count, 20, 20, 3), 255.0)
    pixels[:, 4:16, 4:16] = draw.uniform(60, 200, (count, 1, 1, 3)) + draw.normal(0, 10, (count, 12, 12, 3))
    answers = draw.dirichlet([0.4] * 4, count) * 0.3
    answers[np.arange(count), draw.choice(4, count, p=mix)] += 0.7
    return describe((pixels * dark).clip(0, 255).astype(np.uint8), answers.astype(np.float32), num_kept=3)


def test_the_statistics_of_known_pictures_are_their_definitions() -> None:
    """A white picture, and one with a black and a white half."""
    white = np.full((10, 10, 3), 255, np.uint8)
    assert image_statistics(white).tolist() == pytest.approx([1, 0, 0, 0, 1], abs=1e-5)
    halves = white.copy()
    halves[:, :5] = 0
    named = dict(zip(IMAGE_STATISTICS, image_statistics(halves), strict=True))
    assert named["brightness"] == pytest.approx(0.5)
    assert named["contrast"] == pytest.approx(0.5)
    assert named["border_whiteness"] == pytest.approx(0.5)
    assert named["sharpness"] > 1000


def test_ks_is_the_largest_distance_of_the_distribution_functions() -> None:
    """By hand: nothing in common is 1; the same twice is 0, ties included."""
    low, high = np.array([1.0, 2, 2, 3]), np.array([4.0, 5])
    assert ks(low, high) == 1
    assert ks(low, low) == 0
    assert ks(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])) == 0.5


def test_psi_is_zero_for_the_same_mix_and_grows_with_the_shift() -> None:
    """And a class that was never seen is finite."""
    even = np.repeat(np.arange(4), 50)
    assert psi(even, even, 4) == 0
    assert 0 < psi(np.append(even, [0] * 40), even, 4) < psi(np.append(even, [0] * 200), even, 4)
    assert np.isfinite(psi(np.zeros(100, int), even, 4))


def test_mmd_is_about_zero_for_one_distribution_and_large_for_two() -> None:
    """Sixty-four features."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 300, 64))
    assert abs(mmd(a, b)) < 0.02
    assert mmd(a + 1.0, b) > 0.1


def test_a_drift_of_the_features_is_found_and_a_clean_window_is_not() -> None:
    """Pictures and answers alike; calibrated on components, measured from all the features."""
    draw = np.random.default_rng(0)

    def with_features(seed: int, shift: float) -> Samples:
        features = draw.normal(size=(200, 64)) * np.linspace(3, 0.1, 64) + shift
        return replace(samples(200, seed=seed), features=features.astype(np.float32))

    reference = with_features(0, 0.0)
    assert principal_axes(reference.features).shape == (64, NUM_COMPONENTS)
    limits = thresholds(reference, 200, num_classes=4)
    values = [
        measure(with_features(seed, shift), reference, num_classes=4)["mmd_features"]
        for seed, shift in ((1, 0.0), (2, 1.0))
    ]
    assert values[0] < limits["mmd_features"] < values[1]


def test_clean_windows_seldom_alarm_and_dark_ones_or_another_mix_always_do() -> None:
    """Thresholds from a reference, held against other draws of the same kind."""
    reference = samples(600, seed=0)
    limits = thresholds(reference, 200, num_classes=4)

    def alarms(window: Samples) -> set[str]:
        values = measure(window, reference, num_classes=4)
        return {name for name, value in values.items() if value > limits[name]}

    assert sum(bool(alarms(samples(200, seed=seed))) for seed in range(1, 41)) <= 6
    assert {"ks_brightness", "ks_border_whiteness"} <= alarms(samples(200, seed=99, dark=0.6))
    assert "psi_class_mix" in alarms(samples(200, seed=99, mix=(0.6, 0.2, 0.1, 0.1)))


def test_features_are_compared_where_both_sides_have_them() -> None:
    """And only there."""
    with_features = describe(
        np.zeros((60, 20, 20, 3), np.uint8),
        np.full((60, 4), 0.25, np.float32),
        np.eye(60, 8, dtype=np.float32),
    )
    assert "mmd_features" in measure(with_features, with_features, num_classes=4)
    assert "mmd_features" not in measure(with_features, samples(60, seed=0), num_classes=4)


@pytest.mark.parametrize(
    ("num_unknown", "is_inside"),
    [
        pytest.param(0, True, id="none_unknown"),
        pytest.param(2, True, id="as_expected"),
        pytest.param(30, False, id="every_fifth_unknown"),
    ],
)
def test_the_abstention_rate_is_held_against_the_validation_images(num_unknown: int, is_inside: bool) -> None:
    """One in a hundred was unknown there, and 150 images came in."""
    window, reference = np.ones(150), np.ones(400)
    window[:num_unknown], reference[:4] = 0.1, 0.1
    found = abstention_rate(window, reference)
    assert found is not None
    assert found["rate"] == num_unknown / 150
    assert (found["low"] <= found["rate"] <= found["high"]) == is_inside


def test_a_version_without_known_has_no_abstention_rate() -> None:
    """Neither in the report nor as a metric."""
    assert abstention_rate(np.full(150, np.nan), np.ones(400)) is None


def test_the_page_says_how_many_images_show_no_known_class(tmp_path: Path) -> None:
    """30 of 150, where 4 of the 400 of the reference were."""
    window, reference = (replace(samples(n, seed=n), known=np.ones(n)) for n in (150, 400))
    window.known[:30], reference.known[:4] = 0.1, 0.1
    write_samples(tmp_path / "reference.npz", reference, version=3, labels=LABELS)
    write_samples(tmp_path / "window.npz", window, version=3)
    files = {"repository": tmp_path, "reference": tmp_path / "reference.npz"}
    drift_report(tmp_path / "window.npz", window_size=150, out=tmp_path / "out", **files)
    assert "20.0% show no known class" in (tmp_path / "out" / "drift.html").read_text()


def test_the_report_names_what_drifted_and_shows_the_images_that_were_kept(tmp_path: Path) -> None:
    """JSON, Prometheus text and a page, from the newest files of a folder."""
    write_samples(tmp_path / "reference.npz", samples(400, seed=0), version=3, labels=LABELS)
    write_samples(tmp_path / "samples" / "1.npz", samples(150, seed=1), version=3)
    write_samples(tmp_path / "samples" / "2.npz", samples(150, seed=2, dark=0.6), version=3)
    result = drift_report(
        tmp_path / "samples",
        repository=tmp_path,
        reference=tmp_path / "reference.npz",
        window_size=150,
        out=tmp_path / "out",
    )
    assert result["drifted"] is True
    assert result["num_samples"] == 150
    assert result["measures"]["ks_brightness"]["drifted"] is True
    assert result["measures"]["psi_class_mix"]["drifted"] is False
    assert json.loads((tmp_path / "out" / "drift.json").read_text()) == result
    page = (tmp_path / "out" / "drift.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    from prometheus_client.parser import text_string_to_metric_families

    ratios = {
        one.labels["measure"]: one.value
        for family in text_string_to_metric_families((tmp_path / "out" / "drift.prom").read_text())
        for one in family.samples
        if one.name == "fruitstand_drift_ratio"
    }
    assert {name for name, value in ratios.items() if value > 1} == {
        name for name, one in result["measures"].items() if one["drifted"]
    }


@pytest.mark.parametrize(
    ("prepare", "error", "words"),
    [
        pytest.param(lambda folder: folder.mkdir(), UsageError, "no samples", id="empty"),
        pytest.param(
            lambda folder: write_samples(folder / "1.npz", samples(20, seed=0), version=3),
            UsageError,
            "at least 50",
            id="too_few",
        ),
        pytest.param(
            lambda folder: write_samples(folder / "1.npz", samples(60, seed=0), version=4),
            ArtefactError,
            "version 3",
            id="another_version",
        ),
        pytest.param(
            lambda folder: (folder.mkdir(), (folder / "1.npz").write_bytes(b"PK\3\4")),
            ArtefactError,
            "no readable samples",
            id="damaged",
        ),
    ],
)
def test_samples_that_cannot_be_compared_are_refused_in_one_line(
    prepare: object, error: type[Exception], words: str, tmp_path: Path
) -> None:
    """Nothing is written."""
    write_samples(tmp_path / "reference.npz", samples(100, seed=0), version=3, labels=LABELS)
    prepare(tmp_path / "samples")  # type: ignore[operator]
    with pytest.raises(error, match=words) as caught:
        drift_report(
            tmp_path / "samples",
            repository=tmp_path,
            reference=tmp_path / "reference.npz",
            window_size=100,
            out=tmp_path / "out",
        )
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_thresholds_are_kept_until_the_reference_or_the_window_changes(tmp_path: Path) -> None:
    """What is in the file is used; another reference is another key."""
    out = tmp_path / "out"
    write_samples(tmp_path / "window.npz", samples(60, seed=1), version=3)

    def limits(seed: int) -> dict[str, float]:
        write_samples(tmp_path / "reference.npz", samples(100, seed=seed), version=3, labels=LABELS)
        result = drift_report(
            tmp_path / "window.npz",
            repository=tmp_path,
            reference=tmp_path / "reference.npz",
            window_size=60,
            out=out,
        )
        return {name: one["threshold"] for name, one in result["measures"].items()}

    first = limits(0)
    kept = json.loads((out / "thresholds.json").read_text())
    assert kept["thresholds"] == first
    kept["thresholds"]["ks_entropy"] = 0.5
    (out / "thresholds.json").write_text(json.dumps(kept))
    assert limits(0)["ks_entropy"] == 0.5
    assert limits(5)["ks_entropy"] != 0.5


def test_a_watch_shows_the_newest_report_and_waits_for_samples(tmp_path: Path) -> None:
    """From nothing to a report, without a restart; SIGTERM ends it."""
    write_samples(tmp_path / "reference.npz", samples(100, seed=0), version=3, labels=LABELS)
    command = [sys.executable, "-m", "fruitstand", "drift", "watch", str(tmp_path / "samples")]
    command += ["--out", str(tmp_path / "out"), "--reference", str(tmp_path / "reference.npz")]
    command += ["--window-size", "60", "--interval-s", "1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            urls = json.loads(process.stdout.readline())

            def page(kind: str) -> str:
                with urllib.request.urlopen(urls[kind], timeout=10) as answer:
                    return str(answer.read().decode())

            assert page("metrics") == ""
            write_samples(tmp_path / "samples" / "1.npz", samples(60, seed=1, dark=0.6), version=3)
            deadline = time.monotonic() + 60
            while not page("metrics"):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert 'fruitstand_drift_samples{version="3"} 60' in page("metrics")
            assert "Version 3: drifted" in page("page")
        finally:
            process.terminate()
        assert process.wait(30) == 0


def test_power_tells_drift_from_clean_windows(tmp_path: Path) -> None:
    """The same kinds as the benchmark's, painted."""
    files = {
        "reference": samples(500, seed=0),
        "clean": samples(500, seed=1),
        "dark": samples(300, seed=2, dark=0.6),
    }
    for name, one in files.items():
        write_samples(tmp_path / f"{name}.npz", one, version=1, labels=LABELS)
    result = drift_power(
        tmp_path / "reference.npz", tmp_path / "clean.npz", [tmp_path / "dark.npz"], None, window_size=150
    )
    found = {kind: one["share_found"] for kind, one in result["kinds"].items()}
    assert found.keys() == {"clean", "dark", "class_mix"}
    assert found["dark"] == 1
    assert found["clean"] < 0.2


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Every column."""
    written = samples(10, seed=0)
    write_samples(tmp_path / "a.npz", written, version=7, labels=LABELS)
    read, version, labels = read_samples(tmp_path / "a.npz")
    assert (version, labels) == (7, LABELS)
    assert all(
        np.array_equal(getattr(read, name), getattr(written, name), equal_nan=True)
        for name in Samples.__slots__
    )
