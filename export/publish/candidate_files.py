"""What a candidate is: the folder in a run that export fills and publishing reads.

`candidate.json` is what makes the folder a candidate, and names every gate with value and limit.
"""

from collections.abc import Container

from export.publish.render import FP16_MODEL, INT8_MODEL

CANDIDATE_FOLDER = "export"
"""In the run's folder."""
CANDIDATE_NAME = "candidate.json"


def required_gates(files: Container[str], cpu_engine: str, reference: str) -> list[str]:
    """The gates that only export can measure, which a candidate with these files has to name.

    Args:
        files: the names of its files.
        cpu_engine: that int8 is served by.
        reference: what the fp32 file was held against: torch, or the original of an adopted model.
    """
    names = [f"{reference}_vs_model_batch_1", "fp32_top1_agreement"]
    names += ["decode_num_images", "decode_mean_abs_diff_of_255", "decode_top1_agreement", "golden_images"]
    for model, variant in ((FP16_MODEL, "fp16"), (INT8_MODEL, f"int8_{cpu_engine}")):
        if model in files:
            names += [f"{variant}_top1_agreement", f"{variant}_top1_loss"]
    return names
