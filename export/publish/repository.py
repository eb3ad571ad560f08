"""Change a model repository: one writer at a time, one file that switches versions, a log of changes.

The ensemble's configuration pins the served version and is written last: until then the old version is
served, then the new one. The next command completes the work of a killed one.
"""

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.publish.render import render_repository, write_repository
from fruitstand.artefacts import remove_directory, sweep_temporaries, write_json
from fruitstand.contract import Preprocessing
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.repository.audit_log import audited, read_audit
from fruitstand.repository.model_names import ModelNames, repository_names
from fruitstand.repository.tuning import TUNING_NAME, Tuning, read_tuning
from fruitstand.repository.versions import (
    ServingState,
    Version,
    published_versions,
    read_version,
    serving_state,
    verify_version,
    version_numbers,
)

log = logging.getLogger("fruitstand.export")

LOCK_NAME = ".lock"


@contextlib.contextmanager
def locked(repository: Path, *, create: bool = False) -> Iterator[None]:
    """Lock the repository for changes, and remove temporary files of killed writers.

    Raises:
        UsageError: no model repository there.
        ArtefactError: another command is changing it.
    """
    if create:
        repository.mkdir(parents=True, exist_ok=True)
    elif not (repository / repository_names(repository).model).is_dir():
        raise UsageError(f"{repository}: no model repository; name one with --repository")
    with (repository / LOCK_NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ArtefactError(
                f"{repository}: another command is changing it; try again when that command has finished"
            ) from exc
        sweep_temporaries(repository)
        # Only in folders that this stage writes, because the path may name another folder by mistake.
        for model in repository_names(repository).all:
            below = [path for path in (repository / model).rglob("*") if path.is_dir()]
            for directory in (repository / model, *below):
                sweep_temporaries(directory, of_anyone=True)
        _finish_interrupted(repository)
        yield


def _finish_interrupted(repository: Path) -> None:
    """Complete the rendering of an interrupted promotion."""
    state = serving_state(repository)
    if state is None:
        return
    try:
        write_served(repository, state.alone())
    except ArtefactError as exc:  # what is rendered stays; another version can still be promoted
        log.warning("version %d is served and damaged: %s", state.version, exc)


def write_served(
    repository: Path,
    state: ServingState,
    *,
    described_by: Version | None = None,
    names: ModelNames | None = None,
) -> None:
    """Render all files for a state; Triton reads them at its next load.

    Classes, preprocessing and files come from `described_by`, since they are the same for all versions, or
    else from the version to be served. `names` is for a repository in which nothing was rendered yet.

    Raises:
        ArtefactError: the manifest of the version to be served is damaged.
    """
    version = described_by or read_version(repository, state.version)
    names = names or repository_names(repository)
    if version.serve.explains:
        _link_explainer(repository, names, state.version)
    write_repository(repository, **_choices(repository, version, state, names))


def _choices(repository: Path, version: Version, state: ServingState, names: ModelNames) -> dict[str, Any]:
    return {
        "preprocessing": version.preprocessing,
        "labels": version.labels,
        "state": state,
        "files": version.serve,
        "tuning": read_tuning(repository),
        "names": names,
    }


def _link_explainer(repository: Path, names: ModelNames, number: int) -> None:
    """Give the explainer's models the folder of the served version: its files are there once."""
    for model in names.explaining:
        target = Path("..", names.model, str(number))
        link = repository / model / str(number)
        for other in version_numbers(link.parent):
            old = link.with_name(str(other))
            if old.is_symlink() and other != number:
                old.unlink()
            elif not old.is_symlink():  # a copy of the repository has folders
                remove_directory(old)
        if not link.is_symlink():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(target, target_is_directory=True)


def reference_version(repository: Path) -> Version | None:
    """The version that new ones have to match: the served one, else the newest; None if there is none.

    Raises:
        ArtefactError: its manifest is damaged.
    """
    state, versions = serving_state(repository), published_versions(repository)
    if state is not None:
        return read_version(repository, state.version)
    return read_version(repository, versions[-1]) if versions else None


def check_same_contract(repository: Path, reference: Version | None, **claims: Any) -> None:
    """Check labels, preprocessing and served files, which all versions of a repository share.

    The claims are `labels_sha256`, `preprocessing` and `serve`, as in a manifest. No reference agrees with
    everything.

    Raises:
        ArtefactError: one of them differs.
    """
    what = {
        "labels_sha256": "other classes",
        "preprocessing": "images preprocessed in another way",
        "serve": "other files or outputs, or on another engine,",
    }
    for key, claim in claims.items() if reference is not None else ():
        published = reference.manifest[key]
        if key == "preprocessing":  # older versions use other keys
            published, claim = Preprocessing.from_dict(published), Preprocessing.from_dict(claim)
        if published != claim:
            got = f" ({published}, not {claim})" if key == "serve" else ""
            raise ArtefactError(
                f"{repository}: serves {what[key]} in version {reference.number}{got}, and one configuration"
                " serves all versions; publish into another repository with --repository"
            )


def next_number(repository: Path) -> int:
    """Number of the next version; numbers of pruned versions are not reused."""
    known = [0, *published_versions(repository)]
    for entry in read_audit(repository):
        if entry["action"] == "publish" and entry["done"]:
            known.append(entry["version"])
        known += entry.get("removed", [])  # also versions whose publication was killed before it was logged
    return max(known) + 1


def list_versions(repository: Path) -> list[dict[str, Any]]:
    """Describe every version, oldest first; a damaged one says why.

    Raises:
        UsageError: nothing is published there.
    """
    state = serving_state(repository)
    roles = {state.previous: "previous", state.version: "served"} if state is not None else {}
    rows = []
    for number in _published(repository):
        row: dict[str, Any] = {"version": number, "role": roles.get(number, "")}
        try:
            record = read_version(repository, number).record
        except ArtefactError as exc:
            rows.append({**row, "damaged": str(exc)})
            continue
        rows.append(
            {
                **row,
                "model_name": record.model_name,
                "source_run": record.source_run["name"],
                "serve": asdict(record.serve),
                "size_bytes": sum(entry.size_bytes for entry in record.files.values()),
            }
        )
    return rows


def check_repository(repository: Path, *, trusted_keys: Path | None) -> list[Version]:
    """Check every version against its manifest.

    Raises:
        UsageError: nothing is published there.
        ArtefactError: a file is altered, missing or added, or a signature is not trusted.
    """
    return [
        verify_version(repository, number, trusted_keys=trusted_keys) for number in _published(repository)
    ]


def _published(repository: Path) -> list[int]:
    numbers = published_versions(repository)
    if not numbers:
        raise UsageError(f"{repository}: nothing is published there; start with 'fruitstand export'")
    return numbers


def drifted_files(repository: Path) -> list[Path]:
    """Rendered files that differ from those of the served version's manifest; they are not signed."""
    return [
        relative
        for relative, content in _rendered(repository).items()
        if not (repository / relative).is_file() or (repository / relative).read_bytes() != content
    ]


def stray_files(repository: Path) -> list[Path]:
    """Files in the folders of the other models that were not rendered, such as `__pycache__`.

    Triton loads a model again when a file in its folder is newer, as at the next promotion.
    """
    rendered = _rendered(repository)
    if not rendered:
        return []
    names = repository_names(repository)
    found = (
        path
        for model in (names.guard, names.decode_dali, names.decode)
        for path in (repository / model).rglob("*")
    )
    return sorted(
        path.relative_to(repository)
        for path in found
        if path.is_file() and path.relative_to(repository) not in rendered
    )


def _rendered(repository: Path) -> dict[Path, bytes]:
    """Rendered files of the served version by relative path; empty if none is served."""
    state = serving_state(repository)
    if state is None:
        return {}
    version, names = read_version(repository, state.version), repository_names(repository)
    return render_repository(**_choices(repository, version, state, names))


def configure(repository: Path, tuning: Tuning) -> None:
    """Write the settings into the repository's configuration; a server uses them after its next start.

    Raises:
        UsageError: nothing is published there.
        ArtefactError: another command is changing it, or the served version is damaged.
    """
    with locked(repository), audited(repository, "configure", None) as details:
        details |= tuning.to_dict()
        state = serving_state(repository)
        if state is None:
            raise UsageError(f"{repository}: nothing is published there; start with 'fruitstand export'")
        write_json(repository / TUNING_NAME, tuning.to_dict())
        write_served(repository, state)


def prune(repository: Path, *, keep: int) -> list[int]:
    """Remove the oldest versions; the served and the previous version always stay.

    Besides those two, the newest `keep` stay.

    Returns:
        The numbers removed.

    Raises:
        UsageError: nothing is published there, or `keep` is negative.
    """
    if keep < 0:
        raise UsageError(f"--keep: got {keep}, allowed 0 or more")
    with locked(repository), audited(repository, "prune", None) as details:
        state = serving_state(repository)
        if state is None:
            raise UsageError(f"{repository}: serves no version, so pruning is not safe; promote one first")
        kept = {state.previous, *state.loaded}
        spare = [number for number in published_versions(repository) if number not in kept]
        removed = spare[: max(0, len(spare) - keep)]
        names = repository_names(repository)
        for number in removed:
            # Delete the manifest last, so that an interrupted removal can be repeated.
            remove_directory(repository / names.classifier / str(number))
            remove_directory(repository / names.model / str(number))
        details["removed"] = removed
    return removed
