"""The published model versions in a model repository.

    model_repository/
    ├── audit.jsonl                    log of published, promoted, refused and removed versions
    ├── fruit_classifier/config.pbtxt  pins the served version; a promotion switches this file
    └── fruit_resnet/<N>/              both have other names in a named repository
        ├── manifest.json              sha256 of every file, gates, source run; signed by manifest.sig
        ├── model*.onnx
        └── golden/                    images with the answers expected for them

A version folder is created atomically and never changed. This module detects altered, missing and added
files.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fruitstand.artefacts import read_json, sha256_file
from fruitstand.contract import CPU_CONFIG, FRUIT_RESNET, Preprocessing
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.repository.model_names import repository_names
from fruitstand.repository.signing import SIGNATURE_NAME, check_signature
from fruitstand.repository.version_record import FileEntry, Record, ServedFiles, read_record

if TYPE_CHECKING:
    from tritonclient.grpc import model_config_pb2

MANIFEST_NAME = "manifest.json"
GOLDEN_LIST = Path("golden", "golden.json")
MAX_GOLDEN_DISTANCE = 0.1
"""Allowed total variation, 0 to 1, between expected and served answer; CPUs round int8 differently."""

LOADED_CONFIG = Path(FRUIT_RESNET, "configs", f"{CPU_CONFIG}.pbtxt")
"""The classifier's CPU configuration under its default name; it lists the versions that a server loads, as
those for GPUs do."""

_NUMBER = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True, slots=True)
class ServingState:
    """Which version a repository serves; a promotion goes through several states."""

    version: int
    """The served version, which the ensemble's configuration pins."""
    previous: int | None = None
    """The version served before, to which a rollback returns."""
    loaded: tuple[int, ...] = field(default=(), compare=False)
    """Versions of the classifier that a server loads: the served one, and others during a promotion."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "loaded", tuple(sorted({self.version, *self.loaded})))

    def alone(self) -> "ServingState":
        """The same state with only the served version loaded."""
        return replace(self, loaded=())


def transition(old: ServingState | None, new: ServingState) -> list[ServingState]:
    """The states from one served version to another.

    The ensemble never pins a version that the classifier does not load.

    There is no old one before the first publication.

    Returns:
        The new version loaded beside the old one, the new one pinned, the old one no longer loaded.
    """
    if old is None:
        return [new]
    both = (*old.loaded, *new.loaded)
    return [replace(old, loaded=both), replace(new, loaded=both), new]


@dataclass(frozen=True, slots=True)
class Golden:
    """An image and its expected answer."""

    path: Path
    probabilities: list[float]

    def distance(self, answer: Sequence[float]) -> float:
        """Total variation, 0 to 1, between an answer and the expected one; 1 for a wrong length or NaN."""
        if len(answer) != len(self.probabilities):
            return 1.0
        distance = sum(abs(a - b) for a, b in zip(answer, self.probabilities, strict=True)) / 2
        return float(distance) if distance == distance else 1.0


def farthest_golden(golden: Sequence[Golden], answers: Iterable[Sequence[float]]) -> tuple[Golden, float]:
    """The golden image whose answer is farthest from the expected one, and this distance, 0 to 1."""
    distances = [one.distance(answer) for one, answer in zip(golden, answers, strict=True)]
    worst = max(range(len(golden)), key=distances.__getitem__)
    return golden[worst], distances[worst]


@dataclass(frozen=True, slots=True)
class Version:
    """A published version."""

    number: int
    directory: Path
    record: Record

    @property
    def manifest(self) -> dict[str, Any]:
        """The record as JSON."""
        return self.record.to_json()

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing contract it was trained with."""
        return Preprocessing.from_dict(self.record.preprocessing)

    @property
    def labels(self) -> list[str]:
        """Its classes, in the order of its outputs."""
        return self.record.labels

    @property
    def serve(self) -> ServedFiles:
        """Which of its files is served where."""
        return self.record.serve

    def golden(self) -> list[Golden]:
        """Read its golden images, at least one.

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
        known = {self.directory / name for name in self.record.files}
        if not golden or any(one.path not in known for one in golden):
            raise ArtefactError(
                f"{path}: names no golden image, or one that is not in the manifest; export again"
            )
        return golden


def version_numbers(model: Path) -> list[int]:
    """The version numbers in a model's folder, ascending; empty if there is no folder."""
    if not model.is_dir():
        return []
    return sorted(
        int(path.name) for path in model.iterdir() if path.is_dir() and _NUMBER.fullmatch(path.name)
    )


def published_versions(repository: Path) -> list[int]:
    """Version numbers of the classifier, ascending."""
    return version_numbers(repository / repository_names(repository).model)


def serving_state(repository: Path) -> ServingState | None:
    """Read what the repository serves; None if nothing is published.

    Raises:
        ArtefactError: a configuration cannot be read.

    Source:
        The `parameters` that export/templates gives the ensemble's configuration.
    """
    ensemble = repository / repository_names(repository).classifier
    parameters = _read_config(ensemble / "config.pbtxt").parameters
    served, previous = (parameters[f"{key}_version"].string_value for key in ("served", "previous"))
    if not served.isdecimal() or int(served) not in published_versions(repository):
        return None
    return ServingState(
        int(served), int(previous) if previous.isdecimal() else None, tuple(loaded_versions(repository))
    )


def loaded_versions(repository: Path) -> list[int]:
    """Read which classifier versions a server loads: the served one, and others during a promotion.

    Raises:
        ArtefactError: the configuration cannot be read.
    """
    path = repository / repository_names(repository).place(LOADED_CONFIG)
    return list(_read_config(path).version_policy.specific.versions)


def _read_config(path: Path) -> "model_config_pb2.ModelConfig":
    """Read a model's configuration; empty if there is no file."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        text = path.read_text("utf-8") if path.is_file() else ""
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
        reason = " ".join(str(exc).split())
        raise ArtefactError(
            f"{path}: cannot be read ({reason}); remove it, and promote the version to serve"
        ) from exc


def on_trial(model: Path, number: int) -> bool:
    """Whether a version is not the served one, so that it is loaded only for a promotion."""
    state = serving_state(model.parent)
    is_model = model.name == repository_names(model.parent).model
    return is_model and state is not None and state.version != number


def read_version(repository: Path, number: int) -> Version:
    """Read a version's manifest without checking its files.

    Raises:
        UsageError: no such version.
        ArtefactError: the manifest cannot be read, or belongs to another version.
    """
    directory = repository / repository_names(repository).model / str(number)
    if not directory.is_dir():
        known = ", ".join(map(str, published_versions(repository))) or "none"
        raise UsageError(f"{repository}: no version {number}; published: {known}")
    record = read_record(directory / MANIFEST_NAME)
    if record.version != number:
        raise ArtefactError(
            f"{directory / MANIFEST_NAME}: belongs to version {record.version}; remove the folder"
        )
    return Version(number, directory, record)


def verify_version(repository: Path, number: int, *, trusted_keys: Path | None = None) -> Version:
    """Read a version and check every file against its manifest.

    One of the public keys in the folder `trusted_keys` must have signed the manifest; None requires no
    signature.

    Raises:
        UsageError: no such version.
        ArtefactError: a file is altered, missing or not in the manifest, or the signature is not trusted.
    """
    version = read_version(repository, number)
    verify_files(version.directory, version.record.files, besides={MANIFEST_NAME, SIGNATURE_NAME})
    if trusted_keys is not None:
        check_signature(version.directory / MANIFEST_NAME, trusted_keys)
    return version


def verify_model_file(path: Path, *, trusted_keys: Path | None = None) -> None:
    """Check one file of a version against the manifest, as a backend does before it loads the file.

    Raises:
        ArtefactError: the manifest is missing, unsigned or of another version, or the file is altered or not
            in it.
    """
    version = read_version(path.parents[2], int(path.parent.name))
    if path.name not in version.record.files:
        raise ArtefactError(f"{path}: is not in the manifest; publish the version again")
    verify_file(path, version.record.files[path.name].sha256)
    if trusted_keys is not None:
        check_signature(version.directory / MANIFEST_NAME, trusted_keys)


def verify_files(directory: Path, expected: dict[str, FileEntry], *, besides: set[str]) -> None:
    """Check a folder against the sha256 values in its manifest.

    `besides` names further files that may be there: the manifest itself and its signature.

    Raises:
        ArtefactError: a file is altered, missing, a link, or not in the manifest.
    """
    there = {str(path.relative_to(directory)): path for path in directory.rglob("*") if not path.is_dir()}
    for name, path in there.items():
        if path.is_symlink():
            raise ArtefactError(f"{path}: is a link; a version may hold only its own files")
        if name not in expected and name not in besides:
            raise ArtefactError(f"{path}: is not in the manifest; remove it, or publish again")
    for name in expected:
        if name not in there:
            raise ArtefactError(f"{directory / name}: is missing; publish again")
        verify_file(there[name], expected[name].sha256)


def verify_file(path: Path, expected: str) -> None:
    """Check one file against its sha256.

    Raises:
        ArtefactError: the file was altered.
    """
    got = sha256_file(path)
    if got != expected:
        raise ArtefactError(
            f"{path}: altered after it was checked, sha256 {got[:12]} but the manifest says {expected[:12]};"
            " publish again"
        )
