"""A candidate: the folder in a run that export fills and publishing reads, and its gates.

The folder contains `candidate.json`, which lists every gate with value and limit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fruitstand.repository.version_record import EXPLAINER_MODEL, FP16_MODEL, FP32_MODEL, INT8_MODEL

CANDIDATE_FOLDER = "export"
"""Name of the candidate's folder in the run."""
CANDIDATE_NAME = "candidate.json"

EXPORT, PUBLICATION = "export", "publication"
_ALL = (FP32_MODEL, FP16_MODEL, INT8_MODEL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One gate, and where it applies."""

    name: str
    """`{file}` is a file's stem, `{variant}` fp16 or int8_ENGINE, `{number}` a batch size or a version, and
    `{reference}` torch, or original for an adopted file."""
    at: tuple[str, ...]
    """Where it is measured. A gate that only export measures has to be in the candidate's record."""
    files: tuple[str, ...] = (FP32_MODEL,)
    """Those of a candidate's files that need it; fp32 stands for all of it. None: the gate may be missing."""


GATES = (
    Listed(name="structure_{file}", at=(EXPORT, PUBLICATION), files=_ALL),
    Listed(name="{reference}_vs_{file}_batch_{number}", at=(EXPORT,), files=(FP32_MODEL, FP16_MODEL)),
    Listed(name="extreme_pixels_{file}", at=(EXPORT, PUBLICATION), files=_ALL),
    Listed(name="fp32_top1_agreement", at=(EXPORT,)),
    Listed(name="decode_num_images", at=(EXPORT,)),
    Listed(name="decode_mean_abs_diff_of_255", at=(EXPORT,)),
    Listed(name="decode_reduced_mean_abs_diff_of_255", at=(EXPORT,), files=()),
    Listed(name="decode_top1_agreement", at=(EXPORT,)),
    Listed(name="size_ratio_{file}", at=(EXPORT,), files=(FP16_MODEL, INT8_MODEL)),
    Listed(name="{variant}_top1_agreement", at=(EXPORT,), files=(FP16_MODEL, INT8_MODEL)),
    Listed(name="{variant}_top1_loss", at=(EXPORT,), files=(FP16_MODEL, INT8_MODEL)),
    Listed(name="{variant}_distance", at=(EXPORT,), files=(FP16_MODEL, INT8_MODEL)),
    Listed(name="{variant}_speedup", at=(EXPORT,), files=()),
    Listed(name="known_{file}", at=(EXPORT,), files=()),
    Listed(name="explainer_distance", at=(EXPORT,), files=(EXPLAINER_MODEL,)),
    Listed(name="explainer_bytes", at=(EXPORT,), files=(EXPLAINER_MODEL,)),
    Listed(name="golden_images", at=(EXPORT,)),
    Listed(name="golden_distance", at=(PUBLICATION,)),
    Listed(name="slowdown_to_version_{number}", at=(PUBLICATION,)),
)
"""Every gate of a version. Publication repeats some, with `publish_` before the name."""


def required_gates(files: Iterable[str], cpu_engine: str, reference: str) -> Iterator[str]:
    """The gates that only export can measure; a candidate with these files has to contain them.

    `reference` is torch, or original for an adopted model.
    """
    variants = {FP16_MODEL: "fp16", INT8_MODEL: f"int8_{cpu_engine}"}
    for gate in GATES:
        for file in gate.files:
            if gate.at == (EXPORT,) and file in files:
                yield gate.name.format(
                    file=Path(file).stem, variant=variants.get(file), number=1, reference=reference
                )
