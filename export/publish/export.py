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
from fruitstand.repository.version_record import FP16_MODEL, FP32_MODEL, INT8_MODEL, read_record
from fruitstand.runs import read_run, read_run_data

log = logging.getLogger("fruitstand.export")

VARIANTS = {"fp32": FP32_MODEL, "int8": INT8_MODEL, "fp16": FP16_MODEL}


def export(
    run_directory: Path,
    *,
    repository: Path,
    variants: tuple[str, ...] | None = None,
    data_directory: Path | None,
    compare_int8: bool = False,
    explain: bool = False,
    sign_key: Path | None = None,
    max_slowdown: float = MAX_SLOWDOWN,
    name: str | None = None,
) -> dict:
    """Export, check and publish a run.

    The arguments are the options of `fruitstand export`. Without `variants`, a repository's first version
    leaves out an int8 or fp16 file that misses a gate, and an int8 file that is slower than fp32; later ones
    have the files of that version.

    Returns:
        The published version's number, path and gates.

    Raises:
        UsageError: an unknown variant, data of other classes than the run's, a key that cannot be used, or
            the repository has another name.
        ArtefactError: the run is half written or altered, or the repository serves other classes.
        GateFailed: a check missed its limit; the candidate stays in the run's folder.
    """
    reference = reference_version(repository)
    may_lack_variants = variants is None and reference is None
    if variants is None:
        variants = tuple(
            name for name, file in VARIANTS.items() if reference is None or file in reference.record.files
        )
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
        reference,
        labels_sha256=labels_sha256(run.labels),
        preprocessing=run.preprocessing.to_dict(),
    )

    # Only now: it takes seconds to import, and what can be refused has been.
    from export.publish.abstention import write_card_section
    from export.publish.candidate import build_candidate, network_of
    from export.publish.publish import publish

    candidate = build_candidate(
        run,
        data,
        variants,
        compare_int8=compare_int8,
        explain=explain,
        network=network_of(run, may_lack_variants=may_lack_variants),
    )
    if abstention := read_record(candidate / CANDIDATE_NAME).abstention:
        write_card_section(run.directory, abstention)
    manifest = publish(repository, candidate, max_slowdown=max_slowdown, sign_key=sign_key, name=name)
    log.info("published version %d in %s", manifest["version"], repository)
    wanted = ("version", "gates", "reports", "serve")
    return {key: manifest[key] for key in wanted} | {"repository": str(repository)}
