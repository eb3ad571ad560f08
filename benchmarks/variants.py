"""What int8 and fp16 cost and bring: every way to quantise on every engine here, and top-1 as served.

Speeds are ratios to the fp32 file on the same engine: batches of 32 in turns, median and spread of seven.
The processor simulates fp16: agreement and top-1 are a GPU's, the speed is not.

    python -m benchmarks.variants --run runs/first --out benchmarks/results/variants_HARDWARE_DATE_COMMIT.json

Exports the run with `--compare-int8` into a repository of its own, serves what was published, and evaluates
the run and the server on the test split of the run's data.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from fruitstand.artefacts import write_json
from fruitstand.machine.provenance import provenance
from fruitstand.runs import read_run
from fruitstand.stages import command_line, served, step


def measure(
    run: Annotated[Path, typer.Option(help="Finished run.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
) -> None:
    """Export, serve and evaluate a run."""
    data = read_run(run).data_directory
    with tempfile.TemporaryDirectory(prefix="fruitstand-variants-") as scratch:
        repository = Path(scratch, "model_repository")
        exported = step("export", "export", "--run", run, "--repository", repository, "--compare-int8")
        offline = step("evaluate", "evaluate", "--run", run)
        with served(repository, log=Path(scratch, "triton.log")) as url:
            online = step("evaluate", "evaluate", "--url", url, "--data", data)
    reports = exported["reports"]
    result = {
        **provenance(),
        "settings": {
            "model_name": read_run(run).model_name,
            "num_classes": len(read_run(run).labels),
            "num_validation_images": reports["int8"]["num_images"],
            "num_calibration_images": reports["int8"]["num_calibration_images"],
            "num_test_images": offline["num_images"],
        },
        "samples": {
            "int8": {one["choice"]: one["engines"] for one in reports["int8"]["attempts"]},
            "fp16": reports["fp16"]["engines"],
        },
        "gates": exported["gates"],
        "summary": {
            "choice": reports["int8"]["choice"],
            "engine": reports["int8"]["engine"],
            "top1_validation_fp32": reports["int8"]["top1_fp32"],
            "top1_test_offline_fp32": offline["top1"],
            "top1_test_served_int8": online["top1"],
            "lost_points": round(100 * (offline["top1"] - online["top1"]), 3),
        },
    }
    write_json(out, result)
    print(out)


if __name__ == "__main__":
    command_line(measure)
