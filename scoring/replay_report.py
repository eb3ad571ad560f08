"""The result of a replay: flips by class, confidence shifts and latency, as JSON and as an HTML page."""

import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

import numpy as np

from fruitstand.html_page import html_page, image_url, table
from fruitstand.sampling.recording import Recording
from fruitstand_client.command.sheet import MAX_PICTURES, thumbnail
from scoring.model import Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One version's answers to the recorded images."""

    answers: list[Answer | str]
    """For each image its most probable class, or why it was not answered."""
    duration_s: float
    """On a server: from the first image sent to the last one. Offline: the whole computation."""
    latencies_ms: list[float] = field(default_factory=list)
    """For each image, from the time it was due to its answer; empty offline."""
    late_ms: list[float] = field(default_factory=list)
    """How late each image was sent; empty offline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionRun:
    """One version's numbers."""

    version: int
    num_unanswered: int
    mean_confidence: float
    duration_s: float
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    late_p99_ms: float | None
    """How late images were sent; if this is large, the machine could not send at this rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassChange:
    """The images to which the old version gave one class."""

    label: str
    num_images: int
    num_flips: int
    now: dict[str, int]
    """The new version's classes for the flipped images, most frequent first."""
    mean_confidence_shift: float
    """New minus old probability of the top class, -1 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """One image whose top class changed."""

    index: int
    """Position in the recording."""
    old: str
    old_confidence: float
    new: str
    new_confidence: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayResult:
    """Two versions compared on the same images."""

    rate: str | None
    """The value of `--rate`; None if offline."""
    num_images: int
    recorded_duration_s: float
    traffic_images_per_s: float | None
    """What the server answered during the recording, including images that were not kept."""
    num_compared: int
    """Images that both versions answered."""
    num_flips: int
    flip_share: float
    """Share of the compared images, 0 to 1."""
    old: VersionRun
    new: VersionRun
    confidence_shift: dict[str, float]
    """5th, 50th and 95th percentile of new minus old probability of the top class."""
    classes: list[ClassChange]
    """Classes with the most flips first."""
    flips: list[Flip]

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def compare(
    old_version: int, old: Run, new_version: int, new: Run, *, recording: Recording, rate: str | None
) -> ReplayResult:
    """Compare two runs over the same recording."""
    by_class: defaultdict[str, list[tuple[int, str, float, str, float]]] = defaultdict(list)
    for index, (before, now) in enumerate(zip(old.answers, new.answers, strict=True)):
        if not isinstance(before, str) and not isinstance(now, str):
            row = (index, before.labels[0], before.probabilities[0], now.labels[0], now.probabilities[0])
            by_class[before.labels[0]].append(row)
    classes, flips = [], []
    for label, rows in by_class.items():
        flipped = [
            Flip(index=i, old=a, old_confidence=p, new=b, new_confidence=q)
            for i, a, p, b, q in rows
            if a != b
        ]
        change = ClassChange(
            label=label,
            num_images=len(rows),
            num_flips=len(flipped),
            now=dict(Counter(one.new for one in flipped).most_common()),
            mean_confidence_shift=float(np.mean([q - p for _, _, p, _, q in rows])),
        )
        classes.append(change)
        flips += flipped
    classes.sort(key=lambda one: (-one.num_flips, one.label))
    shifts = [q - p for rows in by_class.values() for _, _, p, _, q in rows]
    percentiles = np.percentile(shifts, [5, 50, 95]).tolist() if shifts else []
    lasted_s = recording.duration_s
    return ReplayResult(
        rate=rate,
        num_images=len(recording),
        recorded_duration_s=lasted_s,
        traffic_images_per_s=recording.num_passed / lasted_s if lasted_s else None,
        num_compared=len(shifts),
        num_flips=len(flips),
        flip_share=len(flips) / max(1, len(shifts)),
        old=_numbers(old_version, old),
        new=_numbers(new_version, new),
        confidence_shift=dict(zip(("p05", "p50", "p95"), percentiles, strict=False)),
        classes=classes,
        flips=sorted(flips, key=lambda one: one.index),
    )


def _numbers(version: int, run: Run) -> VersionRun:
    confidences = [one.probabilities[0] for one in run.answers if not isinstance(one, str)]

    def percentile(values: list[float], share: float) -> float | None:
        return float(np.percentile(values, share)) if values else None

    return VersionRun(
        version=version,
        num_unanswered=len(run.answers) - len(confidences),
        mean_confidence=float(np.mean(confidences)) if confidences else 0.0,
        duration_s=run.duration_s,
        latency_p50_ms=percentile(run.latencies_ms, 50),
        latency_p99_ms=percentile(run.latencies_ms, 99),
        late_p99_ms=percentile(run.late_ms, 99),
    )


def summary(result: ReplayResult) -> list[str]:
    """The result in a few lines."""
    old, new = result.old, result.new
    lines = [
        f"version {new.version} against {old.version}: {result.num_flips} of {result.num_compared} answers"
        f" differ ({result.flip_share:.2%})"
    ]
    for one in result.classes:
        if one.num_flips:
            now = ", ".join(f"{label} {count}" for label, count in one.now.items())
            lines.append(f"  {one.label}: {one.num_flips} of {one.num_images}, now {now}")
    for one in (old, new):
        line = f"version {one.version}: mean confidence {one.mean_confidence:.3f}"
        line += f", {one.num_unanswered} unanswered"
        if one.latency_p50_ms is not None:
            line += (
                f", p50 {one.latency_p50_ms:.1f} ms, p99 {one.latency_p99_ms:.1f} ms; sent in"
                f" {one.duration_s:.1f} s, recorded in {result.recorded_duration_s:.1f} s"
            )
        lines.append(line)
    return lines


def render_page(result: ReplayResult, images: Sequence[bytes]) -> str:
    """The result as one HTML file, with pictures of the flipped images."""
    rows = [
        [
            one.label,
            one.num_images,
            one.num_flips,
            ", ".join(f"{k} {n}" for k, n in one.now.items()),
            f"{one.mean_confidence_shift:+.3f}",
        ]
        for one in result.classes
    ]
    runs = [
        [
            one.version,
            f"{one.mean_confidence:.3f}",
            one.num_unanswered,
            *("" if value is None else f"{value:.1f}" for value in (one.latency_p50_ms, one.latency_p99_ms)),
            f"{one.duration_s:.1f}",
        ]
        for one in (result.old, result.new)
    ]
    title = f"Version {result.new.version} against {result.old.version}"
    shown = result.flips[:MAX_PICTURES]
    left_out = (
        f"<p>The first {len(shown)} of {result.num_flips}.</p>" if len(shown) < result.num_flips else ""
    )
    body = [
        f"<p>{result.num_flips} of {result.num_compared} answers differ ({result.flip_share:.2%}). Replayed"
        f" {'offline' if result.rate is None else f'at rate {escape(result.rate)}'}; recorded in"
        f" {result.recorded_duration_s:.1f} s.</p>",
        table(["version", "mean confidence", "unanswered", "p50, ms", "p99, ms", "duration, s"], runs),
        "<h2>By class of the old version</h2>",
        table(["class", "images", "flips", "now", "confidence shift"], rows),
        "<h2>Images that flipped</h2>" if shown else "",
        left_out,
        '<div class="pictures">',
        *(_figure(one, images[one.index]) for one in shown),
        "</div>",
    ]
    return html_page(title, "\n".join(body))


def _figure(flip: Flip, encoded: bytes) -> str:
    picture = thumbnail(encoded)
    image = ""
    if picture is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        url = image_url(buffer.getvalue(), "jpeg")
        image = f'<img alt="" style="max-width: 100%; object-fit: contain" src="{url}">'
    return (
        f"<figure>{image}<figcaption>{escape(flip.old)} {flip.old_confidence:.2f}<br>"
        f"<strong>{escape(flip.new)} {flip.new_confidence:.2f}</strong></figcaption></figure>"
    )
