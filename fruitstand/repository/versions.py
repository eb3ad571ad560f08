"""Published model versions: what export writes into a model repository and serving reads from it.

    model_repository/
    ├── audit.jsonl                    what was published, promoted, refused, removed, and when
    ├── fruit_classifier/config.pbtxt  pins the version that is served: this one file is the switch
    └── fruit_resnet/<N>/
        ├── manifest.json              sha256 of every file, gates, source run; signed by manifest.sig
        ├── model*.onnx
        └── golden/                    images with the answers expected for them

A version folder appears whole and is never changed; a file that is altered, missing or added is found here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fruitstand.artefacts import read_json, sha256_file
from fruitstand.contract import CPU_CONFIG, FRUIT_CLASSIFIER, FRUIT_RESNET
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.repository.signing import SIGNATURE_NAME, check_signature
from fruitstand.repository.version_record import read_record

MANIFEST_NAME = "manifest.json"
GOLDEN_LIST = Path("golden", "golden.json")
MAX_GOLDEN_DISTANCE = 0.1
"""Total variation, 0 to 1, between an expected and a served answer; processors round int8 differently."""

LOADED_CONFIG = Path(FRUIT_RESNET, "configs", f"{CPU_CONFIG}.pbtxt")
"""Names the classifier's versions that a server loads, as those for GPUs do."""

_STATE = re.compile(r'key: "(served|previous)_version" value: { string_value: "(\d*)" }')
_NUMBER = re.compile(r"[1-9][0-9]*")
_LOADED = re.compile(r"version_policy { specific { versions: \[ ([\d, ]+) \] } }")


@dataclass(frozen=True, slots=True)
class ServingState:
    """Which version a repository serves."""

    version: int
    previous: int | None = None
    """The one served before; what a rollback goes to."""


@dataclass(frozen=True, slots=True)
class Golden:
    """An image and the answer that is expected for it."""

    path: Path
    probabilities: list[float]

    def distance(self, answer: Sequence[float]) -> float:
        """Total variation, 0 to 1, between an answer and the expected one; 1 for another length or NaN."""
        if len(answer) != len(self.probabilities):
            return 1.0
        distance = sum(abs(a - b) for a, b in zip(answer, self.probabilities, strict=True)) / 2
        return float(distance) if distance == distance else 1.0


@dataclass(frozen=True, slots=True)
class Version:
    """A published version."""

    number: int
    directory: Path
    manifest: dict[str, Any]

    def golden(self) -> list[Golden]:
        """Its golden images, at least one.

        Raises:
            ArtefactError: there are none, or their list cannot be read.
        """
        path = self.directory / GOLDEN_LIST
        listed = read_json(path).get("images", [])
        try:
            golden = [
                Golden(path.with_name(one["file"]), list(map(float, one["probabilities"]))) for one in listed
            ]
        except (KeyError, TypeError, ValueError) as exc:
            raise ArtefactError(f"{path}: not a list of golden images ({exc}); export again") from exc
        known = {self.directory / name for name in self.manifest["files"]}
        if not golden or any(one.path not in known for one in golden):
            raise ArtefactError(
                f"{path}: names no golden image, or one that is not in the manifest; export again"
            )
        return golden


def version_numbers(model: Path) -> list[int]:
    """The versions in one model's folder, ascending; none where there is no folder."""
    if not model.is_dir():
        return []
    return sorted(
        int(path.name) for path in model.iterdir() if path.is_dir() and _NUMBER.fullmatch(path.name)
    )


def published_versions(repository: Path) -> list[int]:
    """Version numbers of the classifier, ascending."""
    return version_numbers(repository / FRUIT_RESNET)


def serving_state(repository: Path) -> ServingState | None:
    """Which version the repository serves; None when nothing was published yet.

    Source:
        The `parameters` that export/templates gives the ensemble's configuration.
    """
    config = repository / FRUIT_CLASSIFIER / "config.pbtxt"
    if not config.is_file():
        return None
    numbers = {key: int(value) for key, value in _STATE.findall(config.read_text("utf-8")) if value}
    if numbers.get("served") not in published_versions(repository):
        return None
    return ServingState(numbers["served"], numbers.get("previous"))


def loaded_versions(repository: Path) -> list[int]:
    """The classifier's versions that a server loads: the served one, and others during a promotion."""
    config = repository / LOADED_CONFIG
    match = _LOADED.search(config.read_text("utf-8")) if config.is_file() else None
    return [int(number) for number in match[1].split(",")] if match else []


def on_trial(model: Path, number: int) -> bool:
    """Whether a version is loaded beside the one that is served, as while it is promoted.

    Args:
        model: the model's folder.
        number: of the version.
    """
    state = serving_state(model.parent)
    return model.name == FRUIT_RESNET and state is not None and state.version != number


def read_version(repository: Path, number: int) -> Version:
    """Read a version's manifest, without looking at its files.

    Raises:
        UsageError: no such version.
        ArtefactError: its manifest cannot be read, or is another version's.
    """
    directory = repository / FRUIT_RESNET / str(number)
    if not directory.is_dir():
        known = ", ".join(map(str, published_versions(repository))) or "none"
        raise UsageError(f"{repository}: no version {number}; published: {known}")
    manifest = read_record(directory / MANIFEST_NAME)
    if manifest.get("version") != number:
        raise ArtefactError(
            f"{directory / MANIFEST_NAME}: is that of version {manifest.get('version')}; remove the folder"
        )
    return Version(number, directory, manifest)


def verify_version(repository: Path, number: int, *, trusted_keys: Path | None = None) -> Version:
    """Read a version and hold every file against its manifest.

    Args:
        repository: the model repository.
        number: of the version.
        trusted_keys: a folder with public keys; the manifest has to be signed by one of them. None asks for
            no signature.

    Raises:
        UsageError: no such version.
        ArtefactError: a file is altered, missing or not in the manifest, or the signature is not trusted.
    """
    version = read_version(repository, number)
    verify_files(version.directory, version.manifest, besides={MANIFEST_NAME, SIGNATURE_NAME})
    if trusted_keys is not None:
        check_signature(version.directory / MANIFEST_NAME, trusted_keys)
    return version


def verify_model_file(path: Path, *, trusted_keys: Path | None = None) -> None:
    """Hold one file of a version against its manifest: what a backend does before it loads.

    Args:
        path: of the file, in its version's folder.
        trusted_keys: as for `verify_version`.

    Raises:
        ArtefactError: no manifest or another version's, a file that is not in it, altered, or not signed.
    """
    version = read_version(path.parents[2], int(path.parent.name))
    if path.name not in version.manifest["files"]:
        raise ArtefactError(f"{path}: is not in the manifest; publish the version again")
    verify_file(path, version.manifest["files"][path.name]["sha256"])
    if trusted_keys is not None:
        check_signature(version.directory / MANIFEST_NAME, trusted_keys)


def verify_files(directory: Path, manifest: dict[str, Any], *, besides: set[str]) -> None:
    """Hold a folder against the sha256 in its manifest.

    Args:
        directory: of the files.
        manifest: with `files`, by relative name.
        besides: names that the manifest does not list: itself and its signature.

    Raises:
        ArtefactError: a file is altered, missing, a link, or listed nowhere.
    """
    expected = manifest["files"]
    there = {str(path.relative_to(directory)): path for path in directory.rglob("*") if not path.is_dir()}
    for name, path in there.items():
        if path.is_symlink():
            raise ArtefactError(f"{path}: is a link; a version holds its own files only")
        if name not in expected and name not in besides:
            raise ArtefactError(f"{path}: is not in the manifest; remove it, or publish again")
    for name in expected:
        if name not in there:
            raise ArtefactError(f"{directory / name}: is missing; publish again")
        verify_file(there[name], expected[name]["sha256"])


def verify_file(path: Path, expected: str) -> None:
    """Hold one file against its sha256.

    Raises:
        ArtefactError: it was altered.
    """
    got = sha256_file(path)
    if got != expected:
        raise ArtefactError(
            f"{path}: altered after it was checked, sha256 {got[:12]} but the manifest says {expected[:12]};"
            " publish again"
        )
