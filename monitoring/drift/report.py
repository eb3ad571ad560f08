"""`fruitstand drift report`: compare a window with its version's reference; JSON, Prometheus and HTML."""

import datetime
import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from fruitstand.artefacts import read_json, sha256_file, write_bytes, write_json
from fruitstand.contract import KNOWN_LIMIT
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.html_page import html_page, image_url, table
from fruitstand.repository.audit_log import published_at
from fruitstand.repository.versions import read_version
from fruitstand.sampling.samples import (
    IMAGE_STATISTICS,
    REFERENCE_NAME,
    UNNUMBERED,
    Samples,
    join_samples,
    read_samples,
)
from monitoring.drift.measures import measure, thresholds

THRESHOLDS_NAME = "thresholds.json"
BAND_DEVIATIONS = 3.0
"""Standard deviations between the expected share of unknown images and either end of its band."""
NUM_EXAMPLES = 24
NUM_CLASSES_SHOWN = 10


def drift_report(
    samples: Path, *, repository: Path, reference: Path | None, window_size: int, out: Path
) -> dict[str, Any]:
    """Compare the newest samples with their version's reference, and write the report.

    Args:
        samples: the folder that a server fills, or a file of `fruitstand drift record`.
        repository: the model repository, whose versions hold their references.
        reference: another file to compare with.
        window_size: number of newest samples to compare; only those of the newest sample's version count.
        out: folder for `drift.json`, `drift.prom` (for node_exporter's textfile collector) and `drift.html`.

    Returns:
        The content of `drift.json`.

    Raises:
        UsageError: no samples, too few, or no reference.
        ArtefactError: a file is damaged, or belongs to another model.
    """
    window, version = read_window(samples, window_size)
    path = reference or read_version(repository, version).directory / REFERENCE_NAME
    if not path.is_file():
        raise UsageError(
            f"{path}: no reference for version {version}; make one from clean images with"
            " 'fruitstand drift record IMAGES --out FILE' and give it with --reference"
        )
    clean, reference_version, labels = read_samples(path)
    if reference_version not in (version, UNNUMBERED):
        raise ArtefactError(
            f"{path}: is of version {reference_version}, but the samples are of version {version}"
        )
    limits = partial(_kept_thresholds, out / THRESHOLDS_NAME, sha256_file(path))
    result = compare(window, clean, labels, limits) | {"version": version}
    published = published_at(repository, version)
    result["published"] = None if published is None else published.isoformat(timespec="seconds")
    result["time"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_bytes(out / "drift.html", _page(result, window, clean).encode())
    write_json(out / "drift.json", result)
    write_bytes(out / "drift.prom", prometheus_text(result))
    return result


def read_window(samples: Path, window_size: int) -> tuple[Samples, int]:
    """Read the newest samples of one version.

    Raises:
        UsageError: there are no samples.
        ArtefactError: a file is damaged.
    """
    paths = [samples] if samples.is_file() else sorted(samples.glob("*.npz"), reverse=True)
    if not paths:
        raise UsageError(f"{samples}: no samples; serve with FRUITSTAND_SAMPLES set to that folder")
    parts: list[Samples] = []
    newest: int | None = None
    for path in paths:
        part, version, _ = read_samples(path)
        newest = version if newest is None else newest
        if version == newest:
            parts.append(part)
        if sum(map(len, parts)) >= window_size:
            break
    assert newest is not None
    num_kept = 0
    for part in parts:  # pixels must belong to the first rows, so stop at the first part that lacks some
        num_kept += len(part.pixels)
        if len(part.pixels) < len(part):
            break
    joined = join_samples(parts)
    window = joined.rows(np.arange(min(window_size, len(joined))))
    return replace(window, pixels=joined.pixels[: min(num_kept, window_size)]), newest


def _kept_thresholds(
    kept: Path, reference_sha256: str, reference: Samples, window_size: int, *, num_classes: int
) -> dict[str, float]:
    """Read cached thresholds, or compute and cache them, which takes seconds."""
    key = {
        "reference_sha256": reference_sha256,
        "num_features": reference.features.shape[1],
        "window_size": window_size,
        "num_classes": num_classes,
    }
    if kept.is_file():
        last = read_json(kept)
        if last.get("key") == key:
            return dict(last["thresholds"])
    limits = thresholds(reference, window_size, num_classes=num_classes)
    write_json(kept, {"key": key, "thresholds": limits})
    return limits


def compare(
    window: Samples,
    reference: Samples,
    labels: list[str],
    limits_of: Callable[..., dict[str, float]],
) -> dict[str, Any]:
    """Compute measures, thresholds and verdict, JSON-ready.

    Args:
        window: n samples.
        reference: m samples.
        labels: the model's classes.
        limits_of: `thresholds`, or a function with its signature.

    Raises:
        UsageError: too few samples.
        ArtefactError: the window has classes that the reference does not have.
    """
    num_classes = len(labels) or int(reference.predicted.max()) + 1
    if window.predicted.max() >= num_classes:
        raise ArtefactError(
            f"a sample was answered with class {window.predicted.max()}, the reference has {num_classes};"
            " it belongs to another model"
        )
    if window.features.shape[1] != reference.features.shape[1]:  # then thresholds must not include features
        reference = replace(reference, features=reference.features[:, :0])
    limits = limits_of(reference, len(window), num_classes=num_classes)
    values = measure(window, reference, num_classes=num_classes)
    measures = {
        name: {"value": values[name], "threshold": limits[name], "drifted": values[name] > limits[name]}
        for name in values
    }
    shares = {
        side: np.bincount(one.predicted, minlength=num_classes) / len(one)
        for side, one in (("window", window), ("reference", reference))
    }
    abstention = abstention_rate(window.known, reference.known)
    moved = np.argsort(-np.abs(shares["window"] - shares["reference"]), kind="stable")[:NUM_CLASSES_SHOWN]
    return {
        "drifted": any(one["drifted"] for one in measures.values()),
        "num_samples": len(window),
        "num_reference": len(reference),
        "measures": measures,
        "abstention": abstention,
        "classes": [
            {
                "label": labels[index] if labels else str(index),
                **{side: float(share[index]) for side, share in shares.items()},
            }
            for index in map(int, moved)
        ],
    }


def abstention_rate(window: np.ndarray, reference: np.ndarray) -> dict[str, float] | None:
    """The share of images that are of no known class, and the band in which it stays by chance.

    Args:
        window: (n,) KNOWN of the newest images.
        reference: (m,) KNOWN of the validation images.

    Returns:
        `rate`, `low` and `high`, 0 to 1; None where one side has no KNOWN.
    """
    if np.isnan(window).any() or np.isnan(reference).any():
        return None
    unknown = int((reference < KNOWN_LIMIT).sum())
    expected = (unknown + 1) / (len(reference) + 2)  # no share of a sample is exactly 0
    spread = BAND_DEVIATIONS * np.sqrt(expected * (1 - expected) * (1 / len(window) + 1 / len(reference)))
    return {
        "rate": float((window < KNOWN_LIMIT).mean()),
        "low": float(max(0.0, expected - spread)),
        "high": float(min(1.0, expected + spread)),
    }


def prometheus_text(result: dict[str, Any]) -> bytes:
    """Format the result for Prometheus."""
    registry, version = CollectorRegistry(), str(result["version"])

    def gauge(name: str, words: str, *labels: str) -> Gauge:
        return Gauge(f"fruitstand_{name}", words, labels, registry=registry)

    words = "Measure of the newest window over its threshold; above 1 is drift."
    ratio = gauge("drift_ratio", words, "measure", "version")
    for name, one in result["measures"].items():
        over = one["value"] / one["threshold"] if one["threshold"] > 0 else float(one["drifted"]) * 2
        ratio.labels(name, version).set(over)
    if abstention := result["abstention"]:
        words = "Share of the newest window's images that show no known class."
        gauge("abstention_ratio", words, "version").labels(version).set(abstention["rate"])
        words = "Between these the share stays for images like those of the calibration."
        bounds = gauge("abstention_bound", words, "bound", "version")
        for bound in ("low", "high"):
            bounds.labels(bound, version).set(abstention[bound])
    samples = gauge("drift_samples", "Images in the newest window.", "version")
    samples.labels(version).set(result["num_samples"])
    gauge("drift_time_seconds", "When the window was compared.").set(_seconds(result["time"]))
    if result["published"] is not None:
        published = gauge(
            "version_published_time_seconds", "When the version that answers was published.", "version"
        )
        published.labels(version).set(_seconds(result["published"]))
    return generate_latest(registry)


def _seconds(time: str) -> int:
    return round(datetime.datetime.fromisoformat(time).timestamp())


def _page(result: dict[str, Any], window: Samples, reference: Samples) -> str:
    measures = [
        [name, f"{one['value']:.4f}", f"{one['threshold']:.4f}", "drifted" if one["drifted"] else "clean"]
        for name, one in result["measures"].items()
    ]
    kinds = ["bad" if one["drifted"] else "ok" for one in result["measures"].values()]
    classes = [[one["label"], f"{one['window']:.1%}", f"{one['reference']:.1%}"] for one in result["classes"]]
    body = (
        f"<p>{result['num_samples']} samples against {result['num_reference']} of the reference,"
        f" {result['time']}.{_abstained(result['abstention'])} 0 is no difference from the reference; a value"
        " above its threshold is drift.</p>",
        table(["measure", "value", "threshold", "verdict"], measures, kinds),
        "<h2>Classes whose share moved most</h2>",
        table(["class", "window", "reference"], classes),
        _examples(window, reference),
    )
    verdict = "drifted" if result["drifted"] else "as the reference"
    return html_page(f"Version {result['version']}: {verdict}", "\n".join(body))


def _abstained(abstention: dict[str, float] | None) -> str:
    if abstention is None:
        return ""
    return (
        f" {abstention['rate']:.1%} show no known class; {abstention['low']:.1%} to {abstention['high']:.1%}"
        " are expected."
    )


def _examples(window: Samples, reference: Samples) -> str:
    """Show the kept images that are farthest from the reference in any image statistic."""
    if not len(window.pixels):
        return "<p>No images: the server keeps them only with FRUITSTAND_SAMPLES_KEEP_IMAGES=1.</p>"
    from PIL import Image

    kept = window.statistics[: len(window.pixels)]
    middle = np.median(reference.statistics, axis=0)
    spread = np.maximum(np.median(np.abs(reference.statistics - middle), axis=0), 1e-3)
    distance = np.abs(kept - middle) / spread
    images = []
    for index in np.argsort(-distance.max(axis=1), kind="stable")[:NUM_EXAMPLES]:
        buffer = io.BytesIO()
        Image.fromarray(window.pixels[index]).save(buffer, "PNG")
        why = IMAGE_STATISTICS[int(distance[index].argmax())]
        images.append(
            f'<img width="100" src="{image_url(buffer.getvalue(), "png")}" alt="{why}" title="{why}">'
        )
    return f"<h2>Images farthest from the reference</h2>{''.join(images)}"
