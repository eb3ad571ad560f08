"""Build a candidate in a run's folder: ONNX files, golden images, and `candidate.json` with every gate.

The folder appears whole. If a gate fails, the build stops and `candidate.json` records it: the candidate can
be inspected, but not published.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from export.gates.checks import agreement_gate, extreme_pixels_gate, parity_gates
from export.gates.decode_parity import decode_gates
from export.gates.gate import Gate, at_least, at_most
from export.gates.measured import measure
from export.gates.structure import structure_gate
from export.gates.validation import Validation, read_validation
from export.onnx.explainer import (
    MAX_BYTES,
    TrainingSample,
    expose_feature_map,
    find_linear_head,
    max_sample,
    write_explainer,
)
from export.onnx.fp16 import convert_fp16
from export.onnx.graph import IR_VERSION, OPSET, export_onnx, load_served_model
from export.onnx.int8 import make_int8
from export.onnx.known import fit_temperature, temper
from export.onnx.metadata import file_metadata
from export.publish.abstention import calibrate_files, measure_abstention
from export.publish.candidate_files import CANDIDATE_FOLDER, CANDIDATE_NAME
from export.publish.golden import write_golden
from fruitstand import __version__
from fruitstand.artefacts import atomic_directory, sweep_temporaries, write_json
from fruitstand.contract import (
    EMBEDDED_SERVER_VERSION,
    FEATURE_MAP,
    FEATURES,
    KNOWN,
    NUM_NEIGHBOURS,
    PIXELS,
    PROBABILITIES,
)
from fruitstand.errors import GateFailed
from fruitstand.images.reference_decode import decode_rows
from fruitstand.labels import labels_sha256
from fruitstand.manifest import ManifestRow, PreparedData
from fruitstand.model.session import GPU_ENGINE, has_engine, open_session, run_batches
from fruitstand.repository.tolerances import MAX_ABS_DIFF, MAX_FP16_ABS_DIFF, MIN_AGREEMENT
from fruitstand.repository.version_record import (
    EXPLAINER_MODEL,
    FP16_MODEL,
    FP32_MODEL,
    INT8_MODEL,
    Record,
    ServedFiles,
    describe_files,
)
from fruitstand.runs import Run
from fruitstand.sampling.samples import REFERENCE_NAME, UNNUMBERED, describe, write_samples

log = logging.getLogger("fruitstand.export")

NUM_CALIBRATION_IMAGES = 512
NUM_PARITY_IMAGES = 64
FP32_ONLY = ServedFiles(cpu_model=FP32_MODEL, cpu_engine="cpu", gpu_model=FP32_MODEL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """The source of the fp32 file, and the reference that every file is compared with."""

    reference: torch.nn.Module
    """(N, H, W, 3) uint8 to (N, C) probabilities."""
    write_fp32: Callable[[Path], None]
    max_abs_diff: float
    """Largest allowed difference between the reference's probabilities and the fp32 file's."""
    name: str = "torch"
    """Name of the reference in the gates' names."""
    min_margin: float = 0.0
    """Smallest margin between the first and second probability for images that count in the decode gate."""
    may_lack_variants: bool = False
    """Whether to leave out an fp16 or int8 file that misses a gate, instead of failing."""
    set_temperature: Callable[[float], None] | None = None
    """Sets the temperature of the reference and of the file to write. None if the images' classes may be
    wrong, so that nothing can be calibrated."""


def network_of(run: Run) -> Network:
    """The network of a run: its weights in PyTorch, exported to ONNX."""
    model = load_served_model(run)
    metadata = file_metadata(run)
    return Network(
        reference=model,
        write_fp32=lambda path: export_onnx(model, run.preprocessing, path, metadata),
        max_abs_diff=MAX_ABS_DIFF,
        set_temperature=functools.partial(setattr, model, "temperature"),
    )


@dataclass(kw_only=True, slots=True)
class _Draft:
    """A candidate while it is built."""

    run: Run
    network: Network
    directory: Path
    gates: list[Gate] = field(default_factory=list)
    reports: dict[str, Any] = field(default_factory=dict)
    serve: ServedFiles = FP32_ONLY
    abstention: dict[str, Any] | None = None

    def require(self, gates: list[Gate]) -> None:
        """Record gates; raises at the first that fails."""
        self.gates += gates
        failed = [gate for gate in gates if not gate.passed]
        if failed:
            raise GateFailed(str(failed[0]))

    def add_variant(self, name: str, file: str, add: Callable[[], None]) -> None:
        """Make an fp16 or int8 file; if it may be left out, a failure only goes into the report."""
        num_gates = len(self.gates)
        try:
            add()
        except Exception as exc:  # converters raise any class for an external network
            if not self.network.may_lack_variants:
                raise
            reason = " ".join(str(exc).split()) or type(exc).__name__
            log.warning("%s is left out: %s", name, reason)
            del self.gates[num_gates:]
            (self.directory / file).unlink(missing_ok=True)
            self.reports[name] = {**self.reports.get(name, {}), "left_out": reason}

    def require_readable(self, path: Path) -> None:
        """Require the structure gate before others: a file of another structure cannot be run."""
        self.require([structure_gate(path, self.run.preprocessing, len(self.run.labels))])


def build_candidate(
    run: Run,
    data: PreparedData,
    variants: tuple[str, ...],
    *,
    compare_int8: bool = False,
    explain: bool = False,
    network: Network | None = None,
) -> Path:
    """Build and check a run's candidate, which then replaces an older one.

    Args:
        run: a finished run.
        data: prepared images of the run's classes; train calibrates int8, val is what the gates measure on.
        variants: some of fp32, int8 and fp16; fp32 is always made, because the others are made from it.
        compare_int8: measure every way to quantise and take the best, instead of the first that passes.
        explain: add an explainer, if the network's end allows one.
        network: source of the files; None takes the run's weights.

    Returns:
        The candidate's folder.

    Raises:
        GateFailed: a check missed its limit; the candidate is there, marked as not passed.
        DataError: an image was changed since it was prepared.
    """
    directory = run.directory / CANDIDATE_FOLDER
    sweep_temporaries(run.directory)
    failure: GateFailed | None = None
    with atomic_directory(directory, replace=True) as staged:
        draft = _Draft(run=run, network=network or network_of(run), directory=staged)
        try:
            _build(draft, data, variants, compare_int8=compare_int8, explain=explain)
        except GateFailed as exc:
            failure = exc
        write_json(staged / CANDIDATE_NAME, _record(draft, data, passed=failure is None).to_json())
    if failure:
        raise GateFailed(f"{failure}; nothing was published, the candidate is in {directory}") from failure
    return directory


def _build(
    draft: _Draft, data: PreparedData, variants: tuple[str, ...], *, compare_int8: bool, explain: bool
) -> None:
    run = draft.run
    log.info("export %s, %d classes, %s", run.model_name, len(run.labels), run.preprocessing.input_size)
    validation = read_validation(data, run.preprocessing, draft.network.reference)
    temperature = 1.0
    if draft.network.set_temperature:
        temperature = fit_temperature(validation.reference, validation.targets)
        draft.network.set_temperature(temperature)
        validation = replace(validation, reference=temper(validation.reference, temperature))
        draft.reports["temperature"] = temperature
    _add_fp32(draft, validation)
    if "fp16" in variants:
        draft.add_variant("fp16", FP16_MODEL, lambda: _add_fp16(draft, validation))
    if "int8" in variants:
        draft.add_variant(
            "int8", INT8_MODEL, lambda: _add_int8(draft, data, validation, compare=compare_int8)
        )
    if explain:
        _add_explainer(draft, data, validation)
    served = draft.directory / draft.serve.cpu_model
    if draft.network.set_temperature:
        _add_known(draft, data, validation, temperature)
    count = write_golden(draft.directory, served, draft.serve.cpu_engine, validation, run.labels)
    draft.require([at_least("golden_images", count, 1)])
    session = open_session(served, draft.serve.cpu_engine)
    answers = run_batches(session, validation.served_nhwc_u8)
    others = {
        one.name: run_batches(session, validation.served_nhwc_u8, one.name)
        for one in session.get_outputs()
        if one.name in (FEATURES, KNOWN)
    }
    reference = describe(validation.served_nhwc_u8, answers, others.get(FEATURES), others.get(KNOWN))
    write_samples(draft.directory / REFERENCE_NAME, reference, version=UNNUMBERED, labels=run.labels)


def _add_fp32(draft: _Draft, validation: Validation) -> None:
    run, network, fp32 = draft.run, draft.network, draft.directory / FP32_MODEL
    network.write_fp32(fp32)
    draft.require_readable(fp32)
    pixels = validation.pixels_nhwc_u8
    parity = parity_gates(
        fp32,
        network.reference,
        _some(pixels),
        max_abs_diff=network.max_abs_diff,
        reference=network.name,
    )
    draft.require([*parity, extreme_pixels_gate(fp32, run.preprocessing)])
    answers = run_batches(open_session(fp32), pixels)
    share = None if network.max_abs_diff <= MAX_ABS_DIFF else MIN_AGREEMENT
    draft.require([agreement_gate("fp32", answers, validation.reference, share)])
    log.info("decode with the pipeline that will be served, and with the reference decode")
    draft.require(decode_gates(fp32, run.preprocessing, validation, min_margin=network.min_margin))


def _add_fp16(draft: _Draft, validation: Validation) -> None:
    """Measure fp16 on a GPU if there is one; the CPU simulates a GPU's answers, but not its speed."""
    run, fp32, fp16 = draft.run, draft.directory / FP32_MODEL, draft.directory / FP16_MODEL
    convert_fp16(fp32, fp16)
    draft.require_readable(fp16)
    parity = parity_gates(
        fp16,
        draft.network.reference,
        _some(validation.pixels_nhwc_u8),
        max_abs_diff=MAX_FP16_ABS_DIFF,
        reference=draft.network.name,
    )
    draft.require([*parity, extreme_pixels_gate(fp16, run.preprocessing)])
    engines = {"fp16": "cpu"} | ({"fp16_gpu": GPU_ENGINE} if has_engine(GPU_ENGINE) else {})
    measured = {
        name: measure(name, engine, open_session(fp16, engine), open_session(fp32, engine), validation)
        for name, engine in engines.items()
    }
    draft.reports["fp16"] = {
        "num_images": len(validation.targets),
        "simulated_on": "cpu",
        "engines": {one.engine: one.to_json() for one in measured.values()},
    }
    for one in measured.values():
        draft.require(one.gates)
    draft.serve = replace(draft.serve, gpu_model=FP16_MODEL)


def _add_int8(draft: _Draft, data: PreparedData, validation: Validation, *, compare: bool) -> None:
    run, int8 = draft.run, draft.directory / INT8_MODEL
    calibration, _ = _read_images(data, "train", run)
    log.info("quantise with %d training images", len(calibration))
    measured, draft.reports["int8"] = make_int8(
        draft.directory / FP32_MODEL, int8, calibration, validation, compare=compare
    )
    draft.require_readable(int8)
    draft.require([*measured.gates, extreme_pixels_gate(int8, run.preprocessing, measured.engine)])
    draft.serve = replace(draft.serve, cpu_model=INT8_MODEL, cpu_engine=measured.engine)


def _add_known(draft: _Draft, data: PreparedData, validation: Validation, temperature: float) -> None:
    """KNOWN and label sets, in every file; without pooled features a network has none."""
    run, serve = draft.run, draft.serve
    engines = {FP32_MODEL: "cpu"}
    if (draft.directory / FP16_MODEL).exists():
        engines[FP16_MODEL] = "cpu"
    engines[serve.cpu_model] = serve.cpu_engine
    if FEATURES not in {one.name for one in open_session(draft.directory / FP32_MODEL).get_outputs()}:
        log.warning("the network has no pooled features, so it cannot tell what it does not know")
        return
    training = _read_images(data, "train", run)
    record, gates = calibrate_files(draft.directory, engines, training, validation)
    draft.require(gates)
    splits = {"val": (validation.served_nhwc_u8, validation.targets)}
    if any(row.split == "test" for row in data.rows):
        splits["test"] = _read_images(data, "test", run)
    measured = measure_abstention(
        draft.directory / serve.cpu_model, serve.cpu_engine, splits, run.preprocessing
    )
    draft.abstention = {"temperature": temperature, **record, "file": serve.cpu_model, "measured": measured}
    draft.serve = replace(serve, known=True)


def _add_explainer(draft: _Draft, data: PreparedData, validation: Validation) -> None:
    """After the other files were made of the fp32 one: they do without the feature map."""
    run, fp32, path = draft.run, draft.directory / FP32_MODEL, draft.directory / EXPLAINER_MODEL
    head = find_linear_head(onnx.load(fp32).graph)
    if head is None:
        log.warning(
            "%s does not end in global average pooling and one linear layer: no explainer", run.model_name
        )
        return
    depth = head.weights.shape[1]
    rows = _stratified(data.split("train"), max_sample(depth))
    if len(rows) < NUM_NEIGHBOURS:
        raise GateFailed(f"an explainer needs {NUM_NEIGHBOURS} training images, there are {len(rows)}")
    log.info("explain with %d of %d training images", len(rows), len(data.split("train")))
    expose_feature_map(fp32, head)
    session, index = open_session(fp32), data.label_index()
    pixels = np.stack(list(decode_rows(data, rows, run.preprocessing)))
    sample = TrainingSample(
        classes=np.array([index[row.label] for row in rows]),
        features=run_batches(session, pixels, FEATURES),
        pixels=pixels,
    )
    write_explainer(path, head, sample, run.preprocessing)
    some = _some(validation.pixels_nhwc_u8)
    maps = run_batches(session, some, FEATURE_MAP)
    feeds = {FEATURE_MAP: maps, PIXELS: some}
    (explained,) = open_session(path).run([PROBABILITIES], feeds)
    distance = np.abs(explained - run_batches(session, some)).max()
    size_bytes = path.stat().st_size - head.weights.nbytes
    draft.require(
        [
            at_most("explainer_distance", distance, MAX_ABS_DIFF),
            at_most("explainer_bytes", size_bytes, MAX_BYTES),
        ]
    )
    draft.reports["explainer"] = {"num_training_images": len(rows), "of": len(data.split("train"))}
    draft.serve = replace(draft.serve, feature_map=maps.shape[1:])


def _record(draft: _Draft, data: PreparedData, *, passed: bool) -> Record:
    """The content of `candidate.json`."""
    run = draft.run
    return Record(
        fruitstand_version=__version__,
        passed=passed,
        model_name=run.model_name,
        labels=run.labels,
        labels_sha256=labels_sha256(run.labels),
        preprocessing=run.preprocessing.to_dict(),
        source_run={
            "name": run.directory.resolve().name,
            "weights_sha256": run.meta["weights_sha256"],
            "git_commit": run.meta["git_commit"],
            "data": {key: run.meta["data"][key] for key in ("source", "manifest_sha256")},
            "reference": draft.network.name,
            **({"adopted": run.meta["adopted"]} if "adopted" in run.meta else {}),
        },
        gates_data={"source": data.source, "manifest_sha256": data.manifest_sha256},
        gates=[gate.to_json() for gate in draft.gates],
        reports=draft.reports,
        abstention=draft.abstention,
        requires={"triton": f">={EMBEDDED_SERVER_VERSION}", "opset": OPSET, "ir_version": IR_VERSION},
        files=describe_files(draft.directory),
        serve=draft.serve,
    )


def _read_images(data: PreparedData, split: str, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W, 3) uint8 and their (N,) classes, some of every class of a split."""
    rows, index = _stratified(data.split(split), NUM_CALIBRATION_IMAGES), data.label_index()
    pixels = np.stack(list(decode_rows(data, rows, run.preprocessing)))
    return pixels, np.array([index[row.label] for row in rows])


def _some(pixels: np.ndarray) -> np.ndarray:
    """At most `NUM_PARITY_IMAGES` images, spread evenly over the split."""
    return pixels[:: -(-len(pixels) // NUM_PARITY_IMAGES)]


def _stratified(rows: list[ManifestRow], count: int) -> list[ManifestRow]:
    """At most `count` rows, every class with its share, spread evenly over its films and frames."""
    ordered = sorted(rows, key=lambda row: (row.label, row.film, row.frame))
    positions = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[position] for position in positions]
