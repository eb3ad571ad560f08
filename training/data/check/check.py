"""`fruitstand data check`: check the files of a prepared folder and the claims of its split.

Writes `check.json`, `check.html` (one file with the pictures inside), `balance.png` and `sheets/<class>.png`.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fruitstand.artefacts import write_bytes, write_json
from fruitstand.errors import DataError
from fruitstand.manifest import PreparedData, read_prepared
from training.data.check.claims import broken_claims, shared
from training.data.check.duplicates import (
    ExactDuplicates,
    Example,
    NearReport,
    Twin,
    closest_leaks,
    exact_duplicates,
    near_report,
    twin_objects,
)
from training.data.check.near_duplicates import NearDuplicates, find_near_duplicates
from training.data.check.survey import MAX_LISTED, FileReport, Survey, file_report, survey
from training.data.class_folders import SPLITS
from training.data.splits import film_of, variety_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """Varieties or films that are in two splits."""

    num: int
    names: list[str]
    """The first `MAX_LISTED` of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """The content of `check.json`."""

    ok: bool
    """No file is damaged and the split's claims hold."""
    failures: list[str]
    """One message for each failure."""
    summary: list[str]
    """The main findings, one sentence each."""
    source: str
    manifest_sha256: str
    split_kind: str
    split_details: dict[str, Any]
    num_images: dict[str, int]
    """Keyed by split."""
    num_objects: int
    num_films: int
    num_test_films: int
    images_per_class: dict[str, dict[str, int]]
    """Keyed by class and split."""
    files: FileReport
    shared_objects: dict[str, Shared]
    """Keyed by a pair of splits such as "train/test"."""
    shared_films: dict[str, Shared]
    exact_duplicates: ExactDuplicates
    near_duplicates: NearReport
    twin_objects: list[Twin]
    closest_leaks: list[Example]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-ready values."""
        return asdict(self)


def check_data(directory: Path, *, out: Path | None = None) -> CheckResult:
    """Check a prepared folder and write the reports, by default to its `check`.

    Raises:
        DataError: not a prepared folder, or one from a version that did not record the kind of split.
    """
    data = read_prepared(directory)
    if not data.split_kind:
        raise DataError(
            f"{directory}: its manifest does not record the kind of split; prepare the data again"
        )
    out = out or directory / "check"
    seen = survey(data)
    objects = sorted({row.object for row in data.rows})
    number = {name: index for index, name in enumerate(objects)}
    near = find_near_duplicates(
        seen,
        splits=[row.split for row in data.rows],
        groups=[number[row.object] for row in data.rows],
        num_groups=len(objects),
    )
    result = _result(data, seen, near, objects)

    from training.data.check.page import plot_balance, render_page, write_sheets

    plot_balance(out / "balance.png", result.images_per_class)
    write_sheets(out / "sheets", data, seen)
    page = render_page(result.to_json(), data, (out / "balance.png").read_bytes())
    write_bytes(out / "check.html", page.encode())
    write_json(out / "check.json", result.to_json())
    return result


def _result(data: PreparedData, seen: Survey, near: NearDuplicates, objects: list[str]) -> CheckResult:
    files = file_report(data, seen)
    failures = [f"{one.file}: {one.reason}" for one in files.damaged] + broken_claims(data)
    per_class = {label: dict.fromkeys(SPLITS, 0) for label in data.labels}
    for row in data.rows:
        per_class[row.label][row.split] += 1
    result = CheckResult(
        ok=not failures,
        failures=failures[:MAX_LISTED],
        summary=[],
        source=data.source,
        manifest_sha256=data.manifest_sha256,
        split_kind=data.split_kind,
        split_details=data.split_details,
        num_images=dict(sorted(Counter(row.split for row in data.rows).items())),
        num_objects=len(objects),
        num_films=len({film_of(row) for row in data.rows}),
        num_test_films=len({film_of(row) for row in data.rows if row.split == "test"}),
        images_per_class=per_class,
        files=files,
        shared_objects=_counted(shared(data.rows, variety_of)),
        shared_films=_counted(shared(data.rows, film_of)),
        exact_duplicates=exact_duplicates(data.rows),
        near_duplicates=near_report(data, near),
        twin_objects=twin_objects(data, near, objects),
        closest_leaks=closest_leaks(data, near),
    )
    return replace(result, summary=_summary(result))


def _counted(names: dict[str, list[str]]) -> dict[str, Shared]:
    return {pair: Shared(num=len(both), names=both[:MAX_LISTED]) for pair, both in names.items()}


def _summary(result: CheckResult) -> list[str]:
    near, files = result.near_duplicates, result.files
    leaked = (
        f"{near.num_test_images_near_training} of {result.num_images.get('test', 0)} test images"
        f" ({near.share_of_test:.1%}) have a near duplicate in Training or validation"
    )
    num_shared = result.shared_films["train/test"].num
    if result.split_kind == "classic" and num_shared:
        lines = [
            f"the classic split leaks by design: {num_shared} of the {result.num_test_films} films in Test"
            f" are also in Training; {leaked}"
        ]
    else:
        what = "varieties" if result.split_kind == "object" else "films"
        found = result.shared_objects if what == "varieties" else result.shared_films
        counts = ", ".join(f"{pair} {both.num}" for pair, both in found.items())
        lines = [f"shared {what}: {counts}; {leaked}"]
    lines += [
        f"{' and '.join(map(repr, twin.objects))} show the same fruit: {max(twin.shares):.0%} of the"
        " images of one have a near duplicate in the other"
        for twin in result.twin_objects
    ]
    counts_per_class = [sum(splits.values()) for splits in result.images_per_class.values()]
    lines.append(
        f"{len(counts_per_class)} classes of {min(counts_per_class)} to {max(counts_per_class)} images;"
        f" {result.exact_duplicates.num_files_repeated} files occur more than once;"
        f" {files.num_odd} odd, {files.num_damaged} damaged"
    )
    return lines
