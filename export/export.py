"""`fruitstand export`: a finished run becomes the next version in a model repository.

The candidate is built and checked in the run's own `export/` folder; the repository only ever sees what
passed.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.publish import publish
from export.render import FP32_MODEL, INT8_MODEL
from fruitstand import __version__
from fruitstand.artefacts import atomic_file, sweep_temporaries
from fruitstand.contract import EMBEDDED_SERVER_VERSION
from fruitstand.errors import GateFailed, UsageError
from fruitstand.labels import labels_sha256
from fruitstand.manifest import ManifestRow
from fruitstand.reference_decode import decode_reference, decode_rows
from fruitstand.runs import read_run, read_run_data

if TYPE_CHECKING:
    from export.checks import Gate

log = logging.getLogger("fruitstand.export")

VARIANTS = ("fp32", "int8")
NUM_CALIBRATION_IMAGES = 512
NUM_PARITY_IMAGES = 64


def export(
    run_directory: Path,
    *,
    repository: Path,
    variants: tuple[str, ...] = VARIANTS,
    data_directory: Path | None,
) -> dict:
    """Export, check and publish a run.

    Args:
        run_directory: a finished run.
        repository: the model repository.
        variants: of fp32 and int8; fp32 is always made, it is what the others are checked against.
        data_directory: the prepared folder; None takes the one the run was trained on.

    Returns:
        The published version's number, path and gates.

    Raises:
        UsageError: an unknown variant, or data of other classes than the run's.
        ArtefactError: the run is half written or altered, or the repository serves other classes.
        GateFailed: a check missed its limit; the candidate stays in the run's folder.
    """
    unknown = set(variants) - set(VARIANTS)
    if unknown:
        raise UsageError(f"--variants: got {min(unknown)!r}, allowed {', '.join(VARIANTS)}")
    run = read_run(run_directory)
    data = read_run_data(run, data_directory)
    val_rows = data.split("val")

    # Only now: these take seconds to import, and what can be refused has been.
    from export.checks import (
        check_structure,
        decode_answers_gate,
        decode_pixels_gate,
        extreme_pixels_gate,
        int8_gates,
        parity_gates,
    )
    from export.corpus import supported_images
    from export.decode_parity import decode_as_served
    from export.graph import IR_VERSION, OPSET, export_onnx, load_served_model
    from export.quantize import quantize_int8

    candidate = run.directory / "export"
    candidate.mkdir(exist_ok=True)
    sweep_temporaries(candidate)
    fp32, int8 = candidate / FP32_MODEL, candidate / INT8_MODEL
    val_pixels = np.stack(list(decode_rows(data, val_rows, run.preprocessing)))

    log.info("export %s, %d classes, %s", run.model_name, len(run.labels), run.preprocessing.input_size)
    model = load_served_model(run)
    with atomic_file(fp32) as temporary:
        export_onnx(model, run.preprocessing, temporary)
    check_structure(fp32, run.preprocessing, len(run.labels))
    gates = parity_gates(model, fp32, val_pixels[:: -(-len(val_pixels) // NUM_PARITY_IMAGES)])
    gates.append(extreme_pixels_gate(fp32, run.preprocessing))
    log.info("decode with the pipeline that will be served, and with the yardstick")
    corpus = list(supported_images().values())
    yardstick = np.stack([decode_reference(content, run.preprocessing) for content in corpus])
    gates.append(decode_pixels_gate(yardstick, decode_as_served(corpus, run.preprocessing)))
    val_files = [(data.directory / row.path).read_bytes() for row in val_rows]
    gates.append(decode_answers_gate(fp32, val_pixels, decode_as_served(val_files, run.preprocessing)))
    files, reports, engine = [fp32], {}, "cpu"
    if "int8" in variants:
        log.info("quantise with %d training images", NUM_CALIBRATION_IMAGES)
        calibration_rows = _stratified(data.split("train"), NUM_CALIBRATION_IMAGES)
        calibration = np.stack(list(decode_rows(data, calibration_rows, run.preprocessing)))
        with atomic_file(int8) as temporary:
            quantize_int8(fp32, temporary, calibration)
        check_structure(int8, run.preprocessing, len(run.labels))
        index = data.label_index()
        targets = np.array([index[row.label] for row in val_rows])
        by_engine, reports["int8"] = int8_gates(fp32, int8, val_pixels, targets)
        engine = _choose_engine(by_engine)
        reports["int8"]["engine"] = engine
        gates += [*by_engine[engine], extreme_pixels_gate(int8, run.preprocessing)]
        files.append(int8)
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        raise GateFailed(
            f"{failed[0].name}: got {failed[0].value:.3g}, allowed at most {failed[0].limit:.3g};"
            f" nothing was published, the candidate is in {candidate}"
        )

    manifest = {
        "fruitstand_version": __version__,
        "model_name": run.model_name,
        "preprocessing": run.preprocessing.to_dict(),
        "labels_sha256": labels_sha256(run.labels),
        "source_run": {
            "name": run.directory.resolve().name,
            "weights_sha256": run.meta["weights_sha256"],
            "git_commit": run.meta["git_commit"],
            "data": {key: run.meta["data"][key] for key in ("source", "manifest_sha256")},
        },
        "gates_data": {"source": data.source, "manifest_sha256": data.manifest_sha256},
        "gates": [gate.to_dict() for gate in gates],
        "reports": reports,
        "requires": {"triton": f">={EMBEDDED_SERVER_VERSION}", "opset": OPSET, "ir_version": IR_VERSION},
    }
    version = publish(repository, files, manifest, run.preprocessing, run.labels, cpu_engine=engine)
    log.info("published version %d in %s", version, repository)
    return {"version": version, "repository": str(repository), "gates": manifest["gates"], "reports": reports}


def _choose_engine(gates: "dict[str, list[Gate]]") -> str:
    """The preferred engine whose kernels answer rightly on this processor; "cpu" when none does."""
    for engine, results in gates.items():
        if all(gate.passed for gate in results):
            return engine
        worst = ", ".join(f"{gate.name} {gate.value:.3g}, allowed {gate.limit:.3g}" for gate in results)
        log.warning("int8 on %s answers wrongly on this processor and will not be served: %s", engine, worst)
    return "cpu"


def _stratified(rows: list[ManifestRow], count: int) -> list[ManifestRow]:
    """At most `count` rows, every class with its share, spread evenly over its films and frames."""
    ordered = sorted(rows, key=lambda row: (row.label, row.film, row.frame))
    positions = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[position] for position in positions]
