"""`fruitstand models publish`: a checked candidate becomes the next version of a model repository.

The candidate's own gates are in its `candidate.json`. Here is checked what depends on the repository, and
once more what can be checked without the training data: nobody has to believe a file.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime

from export.candidate_files import CANDIDATE_NAME
from export.checks import extreme_pixels_gate, open_session, run_batches
from export.decode_parity import decode_as_served
from export.gates import Gate, at_most
from export.render import FP16_MODEL, FP32_MODEL, INT8_MODEL
from export.repository import audited, locked, write_served
from export.structure import structure_gate
from export.timing import slowdown
from fruitstand.artefacts import atomic_directory, read_json, write_json
from fruitstand.contract import FRUIT_RESNET, Preprocessing
from fruitstand.errors import ArtefactError, GateFailed
from fruitstand.labels import labels_sha256
from fruitstand.signing import sign_manifest
from fruitstand.versions import (
    MANIFEST_NAME,
    MAX_GOLDEN_DISTANCE,
    ServingState,
    Version,
    published_versions,
    read_version,
    serving_state,
    verify_files,
)

MAX_SLOWDOWN = 1.1
"""Time for a batch, as a multiple of the version's that is replaced."""
MAX_INT8_SIZE_RATIO, MAX_FP16_SIZE_RATIO = 0.35, 0.6
"""Of the fp32 file's bytes: a larger one was not really converted."""


def publish(
    repository: Path,
    candidate: Path,
    *,
    max_slowdown: float = MAX_SLOWDOWN,
    sign_key: Path | None = None,
) -> dict[str, Any]:
    """Publish a candidate: its version folder appears whole, or not at all.

    The first version of a repository is served at once; a later one when it is promoted.

    Args:
        repository: the model repository; made if missing.
        candidate: the folder that `fruitstand export` made.
        max_slowdown: how many times as slow as the served version it may be.
        sign_key: an Ed25519 private key, PEM.

    Returns:
        The manifest of the new version.

    Raises:
        ArtefactError: no candidate, half written, altered, or of other classes, preprocessing or files than
            the repository's versions; or somebody else is changing the repository.
        GateFailed: a gate missed its limit.
        UsageError: the key cannot be used.
    """
    with locked(repository), audited(repository, "publish", None) as details:
        details["candidate"] = candidate.resolve().parent.name
        manifest = _checked(candidate)
        state = serving_state(repository)
        served = None if state is None else read_version(repository, state.version)
        if served is not None:
            _check_same_contract(repository, served, manifest)
        for gate in _gates(candidate, manifest, served, max_slowdown):
            if not gate.passed:
                raise GateFailed(f"{gate}; nothing was published, the candidate is in {candidate}")
            manifest["gates"].append(gate.to_dict())
        number = max(published_versions(repository), default=0) + 1
        manifest = {"version": number, **manifest}
        _place(repository / FRUIT_RESNET / str(number), candidate, manifest, sign_key)
        if state is None:
            write_served(repository, ServingState(number))
        details["version"] = number
    return manifest


def _checked(candidate: Path) -> dict[str, Any]:
    """The candidate's record, its files and gates held against it."""
    path = candidate / CANDIDATE_NAME
    if not path.is_file():
        raise ArtefactError(
            f"{candidate}: no candidate, {path.name} is missing; make one with 'fruitstand export'"
        )
    record = read_json(path)
    try:
        failed = [gate for gate in record["gates"] if not gate["passed"]]
        if failed or not record.pop("passed"):
            reason = "; ".join(f"{gate['name']} {gate['value']}, limit {gate['limit']}" for gate in failed)
            raise GateFailed(f"{candidate}: did not pass its gates: {reason or 'no gate is named'}")
        Preprocessing.from_dict(record["preprocessing"])
        is_consistent = record["labels_sha256"] == labels_sha256(record["labels"])
        verify_files(candidate, record, besides={CANDIDATE_NAME})
    except (KeyError, TypeError, ValueError) as exc:
        raise ArtefactError(f"{path}: not written by this version ({exc}); export again") from exc
    if not is_consistent:
        raise ArtefactError(f"{path}: altered, its labels are not those it was checked with; export again")
    return record


def _check_same_contract(repository: Path, served: Version, manifest: dict[str, Any]) -> None:
    """One label file, one decode step and one configuration serve all versions."""
    for key, what in (
        ("labels_sha256", "other classes"),
        ("preprocessing", "images preprocessed in another way"),
        ("serve", "other files or on another engine"),
    ):
        if served.manifest[key] != manifest[key]:
            got = f" ({served.manifest[key]}, not {manifest[key]})" if key == "serve" else ""
            raise ArtefactError(
                f"{repository}: serves {what} in version {served.number}{got}, and one configuration"
                " serves all versions; publish into another repository with --repository"
            )


def _gates(
    candidate: Path, manifest: dict[str, Any], served: Version | None, max_slowdown: float
) -> Iterator[Gate]:
    """What the files themselves show: structure, size, extreme pixels, golden answers, speed."""
    preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
    models = sorted(name for name in manifest["files"] if name.endswith(".onnx"))
    for name in models:
        yield _at_publication(structure_gate(candidate / name, preprocessing, len(manifest["labels"])))
    sizes = {name: manifest["files"][name]["size_bytes"] for name in models}
    for name, limit in ((INT8_MODEL, MAX_INT8_SIZE_RATIO), (FP16_MODEL, MAX_FP16_SIZE_RATIO)):
        if name in sizes:
            yield at_most(f"size_ratio_{Path(name).stem}", sizes[name] / sizes[FP32_MODEL], limit)
    for name in models:
        yield _at_publication(extreme_pixels_gate(candidate / name, preprocessing))
    golden = Version(0, candidate, manifest).golden()
    pixels = decode_as_served([one.path.read_bytes() for one in golden], preprocessing)
    session = _session(candidate, manifest)
    answers = run_batches(session, pixels)
    distances = [one.distance(answer.tolist()) for one, answer in zip(golden, answers, strict=True)]
    yield at_most("golden_distance", max(distances), MAX_GOLDEN_DISTANCE)
    if served is None:
        return
    replaced = _session(served.directory, served.manifest)
    ratio = slowdown(session, replaced, pixels)
    if ratio > max_slowdown:  # a noisy machine deserves a second look, which a slow model does not pass
        ratio = median([ratio, slowdown(session, replaced, pixels), slowdown(session, replaced, pixels)])
    yield at_most(f"slowdown_to_version_{served.number}", ratio, max_slowdown)


def _at_publication(gate: Gate) -> Gate:
    """Beside the candidate's own gate of that name."""
    return replace(gate, name=f"publish_{gate.name}")


def _session(directory: Path, manifest: dict[str, Any]) -> onnxruntime.InferenceSession:
    return open_session(directory / manifest["serve"]["cpu_model"], manifest["serve"]["cpu_engine"])


def _place(directory: Path, candidate: Path, manifest: dict[str, Any], sign_key: Path | None) -> None:
    """Copy the candidate to where its version folder belongs, in one step for everybody who looks."""
    with atomic_directory(directory) as staged:
        for name in manifest["files"]:
            (staged / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(candidate / name, staged / name)
        write_json(staged / MANIFEST_NAME, manifest)
        if sign_key is not None:
            sign_manifest(staged / MANIFEST_NAME, sign_key)
        # What was checked is what is there, whatever happened to the candidate meanwhile.
        verify_files(staged, manifest, besides={path.name for path in staged.glob("manifest.*")})
