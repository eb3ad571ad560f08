"""Build a candidate in a run's folder: ONNX files, golden images, and `candidate.json` with every gate.

The folder appears whole. If a gate fails, the build stops and `candidate.json` records it: the candidate can
be inspected, but not published.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
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
from fruitstand.manifest import PreparedData
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
NUM_KNOWN_IMAGES = 1024
"""Training images that KNOWN is fitted to; docs/decisions/evaluation.md has the numbers."""
NUM_PARITY_IMAGES = 64
MAX_INT8_SIZE_RATIO, MAX_FP16_SIZE_RATIO = 0.35, 0.6
"""Largest size as a share of the fp32 file's; a larger file was not fully converted."""
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


def network_of(run: Run, *, may_lack_variants: bool = False) -> Network:
    """The network of a run: its weights in PyTorch, exported to ONNX."""
    model = load_served_model(run)
    metadata = file_metadata(run)
    return Network(
        reference=model,
        write_fp32=lambda path: export_onnx(model, run.preprocessing, path, metadata),
        max_abs_diff=MAX_ABS_DIFF,
        may_lack_variants=may_lack_variants,
        set_temperature=functools.partial(setattr, model, "temperature"),
    )


@dataclass(kw_only=True, slots=True)
class _Draft:
    """A candidate while it is built."""

    run: Run
    data: PreparedData
    network: Network
    directory: Path
    validation: Validation
    gates: list[Gate] = field(default_factory=list)
    reports: dict[str, Any] = field(default_factory=dict)
    serve: ServedFiles = FP32_ONLY
    abstention: dict[str, Any] | None = None

    @property
    def fp32(self) -> Path:
        """The file that the others are made from."""
        return self.directory / FP32_MODEL

    @property
    def some_pixels(self) -> np.ndarray:
        """At most `NUM_PARITY_IMAGES` validation images, spread evenly over the split."""
        pixels = self.validation.pixels_nhwc_u8
        return pixels[:: -(-len(pixels) // NUM_PARITY_IMAGES)]

    def require(self, gates: list[Gate]) -> None:
        """Record gates; raises at the first that fails."""
        self.gates += gates
        failed = [gate for gate in gates if not gate.passed]
        if failed:
            raise GateFailed(str(failed[0]))

    def require_readable(self, path: Path) -> None:
        """Require the structure gate before others: a file of another structure cannot be run."""
        self.require([structure_gate(path, self.run.preprocessing, len(self.run.labels))])

    def require_small(self, path: Path, limit: float) -> None:
        """Require a file's size as a share of the fp32 file's."""
        ratio = path.stat().st_size / (self.directory / FP32_MODEL).stat().st_size
        self.require([at_most(f"size_ratio_{path.stem}", ratio, limit)])

    def require_parity(self, path: Path, max_abs_diff: float) -> None:
        """Require the reference's answers, within `max_abs_diff`, and probabilities for any pixels."""
        self.require_readable(path)
        network = self.network
        parity = parity_gates(
            path, network.reference, self.some_pixels, max_abs_diff=max_abs_diff, reference=network.name
        )
        self.require([*parity, extreme_pixels_gate(path, self.run.preprocessing)])

    def images(self, split: str, count: int = NUM_CALIBRATION_IMAGES) -> tuple[np.ndarray, np.ndarray]:
        """(N, H, W, 3) uint8 and their (N,) classes, every class with its share, over films and frames."""
        rows = sorted(self.data.split(split), key=lambda row: (row.label, row.film, row.frame))
        positions = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        chosen, index = [rows[position] for position in positions], self.data.label_index()
        pixels = np.stack(list(decode_rows(self.data, chosen, self.run.preprocessing)))
        return pixels, np.array([index[row.label] for row in chosen])

    def record(self, *, passed: bool) -> Record:
        """The content of `candidate.json`."""
        run = self.run
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
                "reference": self.network.name,
                **({"adopted": run.meta["adopted"]} if "adopted" in run.meta else {}),
            },
            gates_data={"source": self.data.source, "manifest_sha256": self.data.manifest_sha256},
            gates=[gate.to_json() for gate in self.gates],
            reports=self.reports,
            abstention=self.abstention,
            requires={"triton": f">={EMBEDDED_SERVER_VERSION}", "opset": OPSET, "ir_version": IR_VERSION},
            files=describe_files(self.directory),
            serve=self.serve,
        )


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
    directory, network = run.directory / CANDIDATE_FOLDER, network or network_of(run)
    sweep_temporaries(run.directory)
    failure: GateFailed | None = None
    with atomic_directory(directory, replace=True) as staged:
        log.info("export %s, %d classes, %s", run.model_name, len(run.labels), run.preprocessing.input_size)
        validation = read_validation(data, run.preprocessing, network.reference)
        draft = _Draft(run=run, data=data, network=network, directory=staged, validation=validation)
        try:
            _build(draft, variants, compare_int8=compare_int8, explain=explain)
        except GateFailed as exc:
            failure = exc
        write_json(staged / CANDIDATE_NAME, draft.record(passed=failure is None).to_json())
    if failure:
        raise GateFailed(f"{failure}; nothing was published, the candidate is in {directory}") from failure
    return directory


def _build(draft: _Draft, variants: tuple[str, ...], *, compare_int8: bool, explain: bool) -> None:
    if draft.network.set_temperature:
        before = draft.validation.reference
        temperature = fit_temperature(before, draft.validation.targets)
        draft.network.set_temperature(temperature)
        draft.validation = replace(draft.validation, reference=temper(before, temperature))
        draft.reports["temperature"] = temperature
    _add_fp32(draft)
    if "fp16" in variants:
        with _optional(draft, "fp16", FP16_MODEL):
            _add_fp16(draft)
    if "int8" in variants:
        with _optional(draft, "int8", INT8_MODEL):
            _add_int8(draft, compare=compare_int8)
    if explain:
        _add_explainer(draft)
    if draft.network.set_temperature:
        _add_known(draft)
    served, engine = draft.directory / draft.serve.cpu_model, draft.serve.cpu_engine
    count = write_golden(draft.directory, served, engine, draft.validation, draft.run.labels)
    draft.require([at_least("golden_images", count, 1)])
    session, pixels = open_session(served, engine), draft.validation.served_nhwc_u8
    given = {one.name for one in session.get_outputs()}
    features, known = (
        run_batches(session, pixels, name) if name in given else None for name in (FEATURES, KNOWN)
    )
    reference = describe(pixels, run_batches(session, pixels), features, known)
    write_samples(draft.directory / REFERENCE_NAME, reference, version=UNNUMBERED, labels=draft.run.labels)


@contextlib.contextmanager
def _optional(draft: _Draft, name: str, file: str) -> Iterator[None]:
    """Make an fp16 or int8 file; if it may be left out, a failure only goes into the report."""
    num_gates = len(draft.gates)
    try:
        yield
    except Exception as exc:  # converters raise any class for an external network
        if not draft.network.may_lack_variants:
            raise
        reason = " ".join(str(exc).split()) or type(exc).__name__
        log.warning("%s is left out: %s", name, reason)
        del draft.gates[num_gates:]
        (draft.directory / file).unlink(missing_ok=True)
        draft.reports[name] = {**draft.reports.get(name, {}), "left_out": reason}


def _add_fp32(draft: _Draft) -> None:
    network, validation = draft.network, draft.validation
    network.write_fp32(draft.fp32)
    draft.require_parity(draft.fp32, network.max_abs_diff)
    answers = run_batches(open_session(draft.fp32), validation.pixels_nhwc_u8)
    share = None if network.max_abs_diff <= MAX_ABS_DIFF else MIN_AGREEMENT
    draft.require([agreement_gate("fp32", answers, validation.reference, share)])
    log.info("decode with the pipeline that will be served, and with the reference decode")
    preprocessing = draft.run.preprocessing
    draft.require(decode_gates(draft.fp32, preprocessing, validation, min_margin=network.min_margin))


def _add_fp16(draft: _Draft) -> None:
    """Measure fp16 on a GPU if there is one; the CPU simulates a GPU's answers, but not its speed."""
    fp32, fp16, validation = draft.fp32, draft.directory / FP16_MODEL, draft.validation
    convert_fp16(fp32, fp16)
    draft.require_parity(fp16, MAX_FP16_ABS_DIFF)
    draft.require_small(fp16, MAX_FP16_SIZE_RATIO)
    engines = {"fp16": "cpu"} | ({"fp16_gpu": GPU_ENGINE} if has_engine(GPU_ENGINE) else {})
    measured = [
        measure(name, engine, open_session(fp16, engine), open_session(fp32, engine), validation)
        for name, engine in engines.items()
    ]
    draft.reports["fp16"] = {
        "num_images": len(validation.targets),
        "simulated_on": "cpu",
        "engines": {one.engine: one.to_json() for one in measured},
    }
    for one in measured:
        draft.require(one.gates)
    draft.serve = replace(draft.serve, gpu_model=FP16_MODEL)


def _add_int8(draft: _Draft, *, compare: bool) -> None:
    int8 = draft.directory / INT8_MODEL
    calibration, _ = draft.images("train")
    log.info("quantise with %d training images", len(calibration))
    measured, draft.reports["int8"] = make_int8(
        draft.fp32, int8, calibration, draft.validation, compare=compare
    )
    draft.require_readable(int8)
    draft.require([*measured.gates, extreme_pixels_gate(int8, draft.run.preprocessing, measured.engine)])
    draft.require_small(int8, MAX_INT8_SIZE_RATIO)
    if draft.network.may_lack_variants and measured.speed is not None:
        # The fastest of the rounds: below 1 the file is slower, however busy the machine was.
        draft.require([at_least(f"int8_{measured.engine}_speedup", measured.speed.fastest, 1.0)])
    draft.serve = replace(draft.serve, cpu_model=INT8_MODEL, cpu_engine=measured.engine)


def _add_known(draft: _Draft) -> None:
    """KNOWN and label sets, in every file; without pooled features a network has none."""
    serve, validation = draft.serve, draft.validation
    if FEATURES not in {one.name for one in open_session(draft.fp32).get_outputs()}:
        log.warning("the network has no pooled features, so it cannot tell what it does not know")
        return
    others = [FP16_MODEL] if (draft.directory / FP16_MODEL).exists() else []
    engines = dict.fromkeys((FP32_MODEL, *others), "cpu") | {serve.cpu_model: serve.cpu_engine}
    training = draft.images("train", NUM_KNOWN_IMAGES)
    record, gates = calibrate_files(draft.directory, engines, training, validation)
    draft.require(gates)
    splits = {"val": (validation.served_nhwc_u8, validation.targets)}
    if any(row.split == "test" for row in draft.data.rows):
        splits["test"] = draft.images("test")
    served = draft.directory / serve.cpu_model
    measured = measure_abstention(served, serve.cpu_engine, splits, draft.run.preprocessing)
    temperature = draft.reports["temperature"]
    draft.abstention = {"temperature": temperature, **record, "file": serve.cpu_model, "measured": measured}
    draft.serve = replace(serve, known=True)


def _add_explainer(draft: _Draft) -> None:
    """After the other files were made of the fp32 one: they do without the feature map."""
    run, fp32, path = draft.run, draft.fp32, draft.directory / EXPLAINER_MODEL
    head = find_linear_head(onnx.load(fp32).graph)
    if head is None:
        log.warning(
            "%s does not end in global average pooling and one linear layer: no explainer", run.model_name
        )
        return
    num_training = len(draft.data.split("train"))
    pixels, classes = draft.images("train", max_sample(head.weights.shape[1]))
    if len(pixels) < NUM_NEIGHBOURS:
        raise GateFailed(f"an explainer needs {NUM_NEIGHBOURS} training images, there are {len(pixels)}")
    log.info("explain with %d of %d training images", len(pixels), num_training)
    expose_feature_map(fp32, head)
    session, some = open_session(fp32), draft.some_pixels
    features = run_batches(session, pixels, FEATURES)
    sample = TrainingSample(classes=classes, features=features, pixels=pixels)
    write_explainer(path, head, sample, run.preprocessing)
    maps = run_batches(session, some, FEATURE_MAP)
    (explained,) = open_session(path).run([PROBABILITIES], {FEATURE_MAP: maps, PIXELS: some})
    distance = np.abs(explained - run_batches(session, some)).max()
    size_bytes = path.stat().st_size - head.weights.nbytes
    draft.require(
        [
            at_most("explainer_distance", distance, MAX_ABS_DIFF),
            at_most("explainer_bytes", size_bytes, MAX_BYTES),
        ]
    )
    draft.reports["explainer"] = {"num_training_images": len(pixels), "of": num_training}
    draft.serve = replace(draft.serve, feature_map=maps.shape[1:])
