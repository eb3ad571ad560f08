"""What int8 and fp16 cost and bring: every way to quantise on every engine here, and top-1 as served.

    python -m benchmarks.variants --run runs/first --out benchmarks/results/variants_HARDWARE_DATE_COMMIT.json

Exports the run with `--compare-int8` into a repository of its own, serves what was published, and evaluates
the run and the server on the test split of the run's data.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.provenance import provenance
from benchmarks.stages import served, step
from fruitstand.artefacts import write_json
from fruitstand.runs import read_run


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
    summary = {
        "model_name": read_run(run).model_name,
        "num_classes": len(read_run(run).labels),
        "num_images": offline["num_images"],
        "top1_offline_fp32": offline["top1"],
        "top1_served_int8": online["top1"],
        "lost_points": round(100 * (offline["top1"] - online["top1"]), 3),
        "choice": exported["reports"]["int8"]["choice"],
        "engine": exported["reports"]["int8"]["engine"],
    }
    write_json(out, {**provenance(), "summary": summary, "gates": exported["gates"], **exported["reports"]})
    print(out)


if __name__ == "__main__":
    typer.run(measure)
