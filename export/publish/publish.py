"""`fruitstand models publish`: a checked candidate becomes the next version of a model repository.

The candidate's own gates are in its `candidate.json`. Publication checks what depends on the repository, and
repeats all checks that need no training data, so that it does not rely on that file.
"""

import logging
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import onnxruntime

from export.gates.checks import extreme_pixels_gate
from export.gates.decode_parity import decode_as_served
from export.gates.gate import MAX_SLOWDOWN, Gate, at_most, read_gate
from export.gates.measured import compare
from export.gates.structure import structure_gate
from export.publish.candidate_files import CANDIDATE_NAME, required_gates
from export.publish.repository import (
    check_same_contract,
    locked,
    next_number,
    reference_version,
    write_served,
)
from fruitstand.artefacts import atomic_directory, write_json
from fruitstand.errors import ArtefactError, GateFailed, UsageError
from fruitstand.model.session import open_session, run_batches
from fruitstand.repository.audit_log import audited
from fruitstand.repository.model_names import ModelNames, repository_names
from fruitstand.repository.signing import read_private_key, sign_manifest
from fruitstand.repository.version_record import FP32_MODEL, Record, read_record
from fruitstand.repository.versions import (
    MANIFEST_NAME,
    MAX_GOLDEN_DISTANCE,
    ServingState,
    Version,
    farthest_golden,
    transition,
    verify_files,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger("fruitstand.export")


def publish(
    repository: Path,
    candidate: Path,
    *,
    max_slowdown: float = MAX_SLOWDOWN,
    sign_key: Path | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Publish a candidate; its version folder appears whole or not at all.

    The first version of a repository is served at once, later ones after their promotion. A version has to
    match the served one, or the newest if none is served.

    The other arguments are the options of `fruitstand models publish`.

    Returns:
        The manifest of the new version.

    Raises:
        ArtefactError: not a complete, unaltered candidate; or other classes, preprocessing or files than the
            repository's versions; or another command is changing the repository.
        GateFailed: a gate missed its limit.
        UsageError: the key cannot be used, `max_slowdown` is not above 0, or the repository has another
            name.
    """
    if not 0 < max_slowdown < math.inf:
        raise UsageError(f"--max-slowdown: got {max_slowdown}, allowed a number above 0")
    key = None if sign_key is None else read_private_key(sign_key)
    with locked(repository, create=True), audited(repository, "publish", None) as details:
        details["candidate"] = candidate.resolve().parent.name
        names = repository_names(repository, name)
        record = _publish(repository, names, candidate, max_slowdown, key)
        details["version"] = record.version
    return record.to_json()


def _publish(
    repository: Path,
    names: ModelNames,
    candidate: Path,
    max_slowdown: float,
    key: "Ed25519PrivateKey | None",
) -> Record:
    number, reference = next_number(repository), reference_version(repository)
    record = replace(_checked(candidate), version=number, passed=None)
    if record.serve.known and reference is not None and not reference.serve.known:
        log.warning(
            "version %d has no KNOWN, and one configuration serves all versions, so the new one is served"
            " without it; publish into another repository to have it",
            reference.number,
        )
        record = replace(record, serve=replace(record.serve, known=False))
    claims = {name: record.to_json()[name] for name in ("labels_sha256", "preprocessing", "serve")}
    check_same_contract(repository, reference, **claims)
    new = Version(number, repository / names.model / str(number), record)
    for gate in _gates(candidate, new, reference, max_slowdown):
        if not gate.passed:
            raise GateFailed(f"{gate}; nothing was published, the candidate is in {candidate}")
        record.gates.append(gate.to_json())
    if reference is None:
        # Before the folder exists, so that it is never loaded with files rendered for other classes.
        for state in transition(None, ServingState(number)):
            write_served(repository, state, described_by=new, names=names)
    _place(new, candidate, key)
    return record


def _checked(candidate: Path) -> Record:
    """Read the candidate's record, and check its files and gates against it."""
    path = candidate / CANDIDATE_NAME
    if not path.is_file():
        raise ArtefactError(
            f"{candidate}: not a candidate, {path.name} is missing; make one with 'fruitstand export'"
        )
    record = read_record(path)
    if FP32_MODEL not in record.files:
        raise ArtefactError(f"{path}: has no {FP32_MODEL}; export again")
    verify_files(candidate, record.files, besides={CANDIDATE_NAME})
    try:
        gates = [read_gate(gate) for gate in record.gates]
    except (KeyError, TypeError, ValueError) as exc:
        raise ArtefactError(f"{path}: a gate cannot be read ({exc}); export again") from exc
    failed = [str(gate) for gate in gates if not gate.passed]
    reference = record.source_run.get("reference", "torch")
    missing = [
        f"{name} was not checked"
        for name in required_gates(record.files, record.serve.cpu_engine, reference)
        if name not in {gate.name for gate in gates}
    ]
    if failed or missing or record.passed is not True:
        reason = "; ".join(failed or missing) or "its record says so"
        raise GateFailed(f"{candidate}: did not pass its gates: {reason}")
    return record


def _gates(candidate: Path, new: Version, served: Version | None, max_slowdown: float) -> Iterator[Gate]:
    """Check the files: structure, extreme pixels, golden answers, speed."""
    preprocessing = new.preprocessing
    models = new.record.networks
    for name in models:
        yield _at_publication(structure_gate(candidate / name, preprocessing, len(new.labels)))
    for name in models:
        yield _at_publication(extreme_pixels_gate(candidate / name, preprocessing))
    golden = replace(new, directory=candidate).golden()
    pixels = decode_as_served([one.path.read_bytes() for one in golden], preprocessing)
    session = _session(candidate, new)
    answers = run_batches(session, pixels)
    _, distance = farthest_golden(golden, answers.tolist())
    yield at_most("golden_distance", distance, MAX_GOLDEN_DISTANCE)
    if served is None:
        return
    replaced = _session(served.directory, served)
    ratio = compare(session, replaced, pixels).ratio
    if 1 / ratio > max_slowdown:  # measure again, in case other load on the machine slowed it
        ratio = median([ratio, *(compare(session, replaced, pixels).ratio for _ in range(2))])
    yield at_most(f"slowdown_to_version_{served.number}", 1 / ratio, max_slowdown)


def _at_publication(gate: Gate) -> Gate:
    """Rename a gate, because the candidate has one of the same name."""
    return replace(gate, name=f"publish_{gate.name}")


def _session(directory: Path, version: Version) -> onnxruntime.InferenceSession:
    return open_session(directory / version.serve.cpu_model, version.serve.cpu_engine)


def _place(new: Version, candidate: Path, sign_key: "Ed25519PrivateKey | None") -> None:
    """Copy the candidate to its version folder, which appears in one step."""
    with atomic_directory(new.directory) as staged:
        for name in new.record.files:
            (staged / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(candidate / name, staged / name)
        write_json(staged / MANIFEST_NAME, new.manifest)
        if sign_key is not None:
            sign_manifest(staged / MANIFEST_NAME, sign_key)
        # Check the copy, because the candidate may have changed since its gates ran.
        verify_files(staged, new.record.files, besides={path.name for path in staged.glob("manifest.*")})
