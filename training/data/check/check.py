"""`fruitstand data check`: is a prepared folder what it claims to be?

Writes `check.json`, `check.html` (one file, pictures inside), `balance.png` and `sheets/<class>.png`.
"""

from collections import Counter
from pathlib import Path

from fruitstand.artefacts import write_bytes, write_json
from fruitstand.errors import DataError
from fruitstand.manifest import PreparedData, read_prepared
from training.data.check.claims import broken_claims, shared
from training.data.check.duplicate_report import (
    closest_leaks,
    exact_duplicates,
    near_duplicates,
    twin_objects,
)
from training.data.check.file_report import MAX_LISTED, file_report
from training.data.check.near_duplicates import NearDuplicates, find_near_duplicates
from training.data.check.survey import Survey, survey
from training.data.class_folders import SPLITS
from training.data.splits import film_of, variety_of


def check_data(directory: Path, *, out: Path | None = None) -> dict:
    """Check a prepared folder and write the reports.

    Args:
        directory: the prepared folder.
        out: folder for the reports; default: `check` in the prepared folder.

    Returns:
        The content of `check.json`; `ok` says whether files and split are what they should be, `failures` why
        not.

    Raises:
        DataError: no prepared folder, or one from before splits were recorded.
    """
    data = read_prepared(directory)
    if not data.split_kind:
        raise DataError(
            f"{directory}: its manifest does not say what the split claims; prepare the data again"
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

    from training.data.check.page import render_page
    from training.data.check.pictures import plot_balance, write_sheets

    plot_balance(out / "balance.png", result["images_per_class"])
    write_sheets(out / "sheets", data, seen)
    write_bytes(out / "check.html", render_page(result, data, (out / "balance.png").read_bytes()).encode())
    write_json(out / "check.json", result)
    return result


def _result(data: PreparedData, seen: Survey, near: NearDuplicates, objects: list[str]) -> dict:
    files = file_report(data, seen)
    failures = [f"{one['file']}: {one['reason']}" for one in files["damaged"]] + broken_claims(data)
    test_films = {film_of(row) for row in data.rows if row.split == "test"}
    result: dict = {
        "ok": not failures,
        "failures": failures[:MAX_LISTED],
        "summary": [],
        "source": data.source,
        "manifest_sha256": data.manifest_sha256,
        "split_kind": data.split_kind,
        "split_details": data.split_details,
        "num_images": dict(sorted(Counter(row.split for row in data.rows).items())),
        "num_objects": len(objects),
        "num_films": len({film_of(row) for row in data.rows}),
        "num_test_films": len(test_films),
        "images_per_class": _per_class(data),
        "files": files,
        "shared_objects": _counted(shared(data.rows, variety_of)),
        "shared_films": _counted(shared(data.rows, film_of)),
        "exact_duplicates": exact_duplicates(data.rows),
        "near_duplicates": near_duplicates(data, near),
        "twin_objects": twin_objects(data, near, objects),
        "closest_leaks": closest_leaks(data, near),
    }
    result["summary"] = _summary(result)
    return result


def _per_class(data: PreparedData) -> dict[str, dict[str, int]]:
    counts = {label: dict.fromkeys(SPLITS, 0) for label in data.labels}
    for row in data.rows:
        counts[row.label][row.split] += 1
    return counts


def _counted(names: dict[str, list[str]]) -> dict[str, dict]:
    return {pair: {"num": len(both), "names": both[:MAX_LISTED]} for pair, both in names.items()}


def _summary(result: dict) -> list[str]:
    """What a person wants to know first, a sentence each."""
    near, files = result["near_duplicates"], result["files"]
    leaked = (
        f"{near['num_test_images_near_training']} of {result['num_images'].get('test', 0)} test images"
        f" ({near['share_of_test']:.1%}) have a near duplicate in Training or validation"
    )
    num_shared = result["shared_films"]["train/test"]["num"]
    if result["split_kind"] == "classic" and num_shared:
        lines = [
            f"leaked by construction: {num_shared} of the {result['num_test_films']} films in Test are also"
            f" in Training; {leaked}"
        ]
    else:
        what = "varieties" if result["split_kind"] == "object" else "films"
        found = result["shared_objects" if what == "varieties" else "shared_films"]
        counts = ", ".join(f"{pair} {both['num']}" for pair, both in found.items())
        lines = [f"shared {what}: {counts}; {leaked}"]
    lines += [
        f"{' and '.join(map(repr, twin['objects']))} show the same fruit: {max(twin['shares']):.0%} of the"
        " images of one have a near duplicate in the other"
        for twin in result["twin_objects"]
    ]
    counts_per_class = [sum(splits.values()) for splits in result["images_per_class"].values()]
    lines.append(
        f"{len(counts_per_class)} classes of {min(counts_per_class)} to {max(counts_per_class)} images;"
        f" {result['exact_duplicates']['num_files_repeated']} files stand there more than once;"
        f" {files['num_odd']} odd, {files['num_damaged']} damaged"
    )
    return lines
