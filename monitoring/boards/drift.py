"""Drift: how far what is asked is from what the served version was trained for."""

from monitoring.board import Board, Panel, Query, Row

_THRESHOLD = ((1.0, "red"),)

DRIFT = Board(
    uid="fruitstand-drift",
    title="fruitstand: drift",
    description="The newest window of sampled requests against the reference of its version.",
    rows=(
        Row(
            title="Drift",
            panels=(
                Panel(
                    title="Measures that drifted",
                    description="Of all measures, those above their threshold. One of them in one report in"
                    " fifty is chance.",
                    unit="none",
                    kind="stat",
                    steps=((1, "red"),),
                    queries=(
                        Query(
                            expr="count(fruitstand_drift_ratio > 1) or vector(0)",
                            legend="drifted",
                        ),
                    ),
                ),
                Panel(
                    title="Window",
                    description="Images in the newest window.",
                    unit="none",
                    kind="stat",
                    base_color="blue",
                    queries=(Query(expr="fruitstand_drift_samples", legend="version {{version}}"),),
                ),
                Panel(
                    title="Compared",
                    description="Time since the newest report. After three hours the alert DriftUnwatched"
                    " fires.",
                    unit="s",
                    kind="stat",
                    steps=((3600, "orange"), (10800, "red")),
                    queries=(Query(expr="time() - fruitstand_drift_time_seconds", legend="ago"),),
                ),
                Panel(
                    title="Age",
                    description="Since the version that answers was published. After 180 days the alert"
                    " StaleModel fires.",
                    unit="s",
                    kind="stat",
                    steps=((90 * 86400, "orange"), (180 * 86400, "red")),
                    queries=(
                        Query(
                            expr="time() - max by (version) (fruitstand_version_published_time_seconds)",
                            legend="version {{version}}",
                        ),
                    ),
                ),
                Panel(
                    title="Measures over their thresholds",
                    description="Each measure of the newest window, divided by its threshold: above 1 is"
                    " drift.",
                    unit="none",
                    steps=_THRESHOLD,
                    queries=(Query(expr="fruitstand_drift_ratio", legend="{{measure}}"),),
                ),
                Panel(
                    title="Farthest measure of each version",
                    description="Two versions at once are a promotion under way. The alert DriftHigh fires"
                    " above 1 for 25 minutes.",
                    unit="none",
                    steps=_THRESHOLD,
                    queries=(
                        Query(
                            expr="max by (version) (fruitstand_drift_ratio)",
                            legend="version {{version}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
