"""`fruitstand models publish`: a checked candidate becomes the next version of a model repository.

The candidate's own gates are in its `candidate.json`. Here is checked what depends on the repository, and
once more what can be checked without the training data: nobody has to believe a file.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from export.checks import Gate, at_most, check_structure, extreme_pixels_gate, open_session, run_batches
from export.decode_parity import decode_as_served
from export.onnx_files import check_self_contained
from export.repository import audited, locked, write_served
from export.speed import batch_runner, slowdown
from fruitstand.artefacts import atomic_directory, read_json, write_json
from fruitstand.contract import FRUIT_RESNET, Preprocessing
from fruitstand.errors import ArtefactError, GateFailed
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

CANDIDATE_NAME = "candidate.json"
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
        if state is not None:
            _check_same_contract(repository, read_version(repository, state.version), manifest)
        gates = _file_gates(candidate, manifest)
        if state is not None:
            gates.append(
                _speed_gate(candidate, manifest, read_version(repository, state.version), max_slowdown)
            )
        refuse_failed(gates, candidate)
        manifest["gates"] += [gate.to_dict() for gate in gates]
        number = max(published_versions(repository), default=0) + 1
        manifest = {"version": number, **manifest}
        _place(repository / FRUIT_RESNET / str(number), candidate, manifest, sign_key)
        if state is None:
            write_served(repository, ServingState(number))
        details["version"] = number
    return manifest


def refuse_failed(gates: list[Gate], candidate: Path) -> None:
    """Name the first gate that missed its limit.

    Raises:
        GateFailed: there is one.
    """
    failed = next((gate for gate in gates if not gate.passed), None)
    if failed is not None:
        raise GateFailed(
            f"{failed.name}: got {failed.value:.3g}, allowed {failed.bound} {failed.limit:.3g};"
            f" nothing was published, the candidate is in {candidate}"
        )


def _checked(candidate: Path) -> dict[str, Any]:
    """The candidate's manifest, its files and gates held against it."""
    if not (candidate / CANDIDATE_NAME).is_file():
        raise ArtefactError(
            f"{candidate}: no candidate, {CANDIDATE_NAME} is missing; make one with 'fruitstand export'"
        )
    manifest = read_json(candidate / CANDIDATE_NAME)
    try:
        if not manifest["gates"]:
            raise ArtefactError(f"{candidate}: no gate was run on it; make it with 'fruitstand export'")
        for gate in manifest["gates"]:
            if not gate["passed"]:
                raise GateFailed(
                    f"{gate['name']}: got {gate['value']}, allowed {gate['limit']}; the candidate is in"
                    f" {candidate}, nothing was published"
                )
        Preprocessing.from_dict(manifest["preprocessing"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ArtefactError(f"{candidate / CANDIDATE_NAME}: not written by this version ({exc})") from exc
    verify_files(candidate, manifest, besides={CANDIDATE_NAME})
    for name in manifest["files"]:
        if name.endswith(".onnx"):
            check_self_contained(candidate / name)
    return manifest


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


def _file_gates(candidate: Path, manifest: dict[str, Any]) -> list[Gate]:
    """What the files themselves show: structure, size, extreme pixels, and the golden answers."""
    preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
    gates = []
    for name in sorted(name for name in manifest["files"] if name.endswith(".onnx")):
        check_structure(candidate / name, preprocessing, len(manifest["labels"]))
        gate = extreme_pixels_gate(candidate / name, preprocessing)
        gates.append(replace(gate, name=f"publish_{gate.name}"))
    sizes = {name: entry["size_bytes"] for name, entry in manifest["files"].items()}
    for name, limit in (("model.int8.onnx", MAX_INT8_SIZE_RATIO), ("model.fp16.onnx", MAX_FP16_SIZE_RATIO)):
        if name in sizes:
            gates.append(at_most(f"size_ratio_{name}", sizes[name] / sizes["model.onnx"], limit))
    golden = Version(0, candidate, manifest).golden()
    pixels = decode_as_served([one.path.read_bytes() for one in golden], preprocessing)
    answers = run_batches(_session(candidate, manifest), pixels)
    distances = [one.distance(answer.tolist()) for one, answer in zip(golden, answers, strict=True)]
    gates.append(at_most("golden_distance", max(distances, default=1.0), MAX_GOLDEN_DISTANCE))
    return gates


def _speed_gate(candidate: Path, manifest: dict[str, Any], served: Version, max_slowdown: float) -> Gate:
    """The file that would be served, against the one that is."""
    preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
    new, old = (
        batch_runner(_session(directory, described), preprocessing)
        for directory, described in ((candidate, manifest), (served.directory, served.manifest))
    )
    ratio, _ = slowdown(new, old)
    if ratio > max_slowdown:  # a noisy machine deserves a second look, a slow model does not pass it
        ratio = float(np.median([ratio, slowdown(new, old)[0], slowdown(new, old)[0]]))
    return at_most(f"slowdown_to_version_{served.number}", ratio, max_slowdown)


def _session(directory: Path, manifest: dict[str, Any]):
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
