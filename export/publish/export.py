"""`fruitstand export`: a finished run becomes the next version in a model repository.

The candidate is built and checked in the run's own `export/` folder; the repository only ever sees what
passed.
"""

import logging
from pathlib import Path

from export.gates.gate import MAX_SLOWDOWN
from export.publish.candidate_files import CANDIDATE_NAME
from export.publish.repository import check_same_contract, reference_version
from fruitstand.errors import UsageError
from fruitstand.labels import labels_sha256
from fruitstand.repository.model_names import repository_names
from fruitstand.repository.signing import read_private_key
from fruitstand.repository.version_record import read_record
from fruitstand.runs import read_run, read_run_data

log = logging.getLogger("fruitstand.export")

VARIANTS = ("fp32", "int8", "fp16")


def export(
    run_directory: Path,
    *,
    repository: Path,
    variants: tuple[str, ...] = VARIANTS,
    data_directory: Path | None,
    compare_int8: bool = False,
    explain: bool = False,
    sign_key: Path | None = None,
    max_slowdown: float = MAX_SLOWDOWN,
    name: str | None = None,
) -> dict:
    """Export, check and publish a run.

    The arguments are the options of `fruitstand export`.

    Returns:
        The published version's number, path and gates.

    Raises:
        UsageError: an unknown variant, data of other classes than the run's, a key that cannot be used, or
            the repository has another name.
        ArtefactError: the run is half written or altered, or the repository serves other classes.
        GateFailed: a check missed its limit; the candidate stays in the run's folder.
    """
    unknown = set(variants) - set(VARIANTS)
    if unknown:
        raise UsageError(f"--variants: got {min(unknown)!r}, allowed {', '.join(VARIANTS)}")
    if compare_int8 and "int8" not in variants:
        raise UsageError("--compare-int8: there is nothing to compare without int8 among --variants")
    repository_names(repository, name)
    run = read_run(run_directory)
    data = read_run_data(run, data_directory)
    data.split("val")
    if sign_key is not None:
        read_private_key(sign_key)
    check_same_contract(
        repository,
        reference_version(repository),
        labels_sha256=labels_sha256(run.labels),
        preprocessing=run.preprocessing.to_dict(),
    )

    # Only now: it takes seconds to import, and what can be refused has been.
    from export.publish.abstention import write_card_section
    from export.publish.candidate import build_candidate
    from export.publish.publish import publish

    candidate = build_candidate(run, data, variants, compare_int8=compare_int8, explain=explain)
    if abstention := read_record(candidate / CANDIDATE_NAME).abstention:
        write_card_section(run.directory, abstention)
    manifest = publish(repository, candidate, max_slowdown=max_slowdown, sign_key=sign_key, name=name)
    log.info("published version %d in %s", manifest["version"], repository)
    return {key: manifest[key] for key in ("version", "gates", "reports")} | {"repository": str(repository)}
