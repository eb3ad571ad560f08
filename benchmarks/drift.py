"""How often drift is found: real images changed in known ways, answered by a served model.

    python -m benchmarks.drift --source ../shared/fruits-360_dataset [-- --model resnet18 --epochs 8]

Every tenth class is left out, a model is trained on the others and served: what was left out is what it has
never seen. Every other test image is the reference, the rest the clean windows; neither was trained on. The
rest is `fruitstand drift record` and `fruitstand drift power`. What follows `--` goes to `fruitstand train`;
data and model lie in `runs/drift/`: what is there is used again, and a training that was cut off goes on.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

from fruitstand.artefacts import write_json
from fruitstand.errors import DataError, UsageError
from fruitstand.machine.provenance import provenance
from fruitstand.runs import read_run
from fruitstand.stages import command_line, served, step
from loadtests.drift_injection import CHANGES, write_windows

MIN_POWER, MAX_FALSE_ALARMS = 0.95, 0.05
LEFT_OUT = slice(4, None, 10)
"""Of the classes by name: apples, a banana, a cherry, a lemon, a raspberry and tomatoes."""


def drift(
    source: Annotated[Path, typer.Option(help="A Fruits-360 folder with Training and Test.")],
    extra: Annotated[list[str] | None, typer.Argument(help="After --: flags for training.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for data, run and repository.")] = Path("runs/drift"),
    max_images: Annotated[int, typer.Option(help="Of each kind.")] = 1700,
    out: Annotated[Path | None, typer.Option(help="Result file.")] = None,
) -> None:
    """Record every kind and measure the power; exit 1 when an objective is missed."""
    known, unseen = split_classes(source, work)
    repository = make_model(known, work, extra or [])
    with TemporaryDirectory(prefix="fruitstand-drift-") as name:
        scratch = Path(name)
        images = sorted((known / "Test").glob("*/*.jpg"))
        even, odd = _some(images[::2], max_images), _some(images[1::2], max_images)
        kinds = write_windows(scratch, reference=even, clean=odd, unseen=_some(unseen, max_images))
        with served(repository, log=scratch / "triton.log") as url:
            for folder in kinds:
                arguments = ("--out", scratch / f"{folder}.npz", "--url", url, "--repository", repository)
                step("record", "drift", "record", scratch / folder, *arguments)
        changed = [word for kind in CHANGES for word in ("--drifted", scratch / f"{kind}.npz")]
        files = ("--reference", scratch / "reference.npz", "--clean", scratch / "clean.npz")
        result = step("power", "drift", "power", *files, "--unseen", scratch / "unseen.npz", *changed)
    found = {kind: one["share_found"] for kind, one in result["kinds"].items()}
    meta = read_run(work / "run").meta
    report = {
        **provenance(),
        "settings": {"train": meta["config"], "left_out": sorted({path.parent.name for path in unseen})},
        "objectives": {"min_power": MIN_POWER, "max_false_alarms": MAX_FALSE_ALARMS},
        "samples": result,
        "summary": {"num_classes": len(meta["labels"]), "share_found": found},
    }
    if out is not None:
        write_json(out, report)
    for kind, share in found.items():
        print(f"{kind:22} {share:.3f}")
    missed = [kind for kind, share in found.items() if kind != "clean" and share < MIN_POWER]
    if found["clean"] > MAX_FALSE_ALARMS:
        missed.append("clean")
    if missed:
        raise DataError(f"objectives missed: {', '.join(missed)}")


def make_model(known: Path, work: Path, extra: list[str]) -> Path:
    """Prepare, train and publish, as far as that is not done; the model repository."""
    data, run, repository = (work / name for name in ("data", "run", "model_repository"))
    if not (data / "manifest.parquet").is_file():
        step("prepare", "data", "prepare", "--source", known, "--out", data, "--validation", "frame")
    if not (run / "meta.json").is_file():
        anew = ("--data", data, "--overwrite", *extra)
        step("train", "train", "--out", run, *(["--resume"] if (run / "last.ckpt").is_file() else anew))
    if not (repository / "fruit_resnet" / "1").is_dir():
        step("export", "export", "--run", run, "--repository", repository, "--variants", "fp32,int8")
    return repository


def split_classes(source: Path, work: Path) -> tuple[Path, list[Path]]:
    """Link all classes but every tenth into a folder of the same layout.

    Args:
        source: a Fruits-360 folder, or the one around it.
        work: the new folder is made in it.

    Returns:
        The new folder, and the test images of the classes that are not in it.

    Raises:
        UsageError: no such layout.
    """
    found = sorted(source.glob("**/Test"))
    if not found:
        raise UsageError(f"{source}: no folder Test in it; give a Fruits-360 folder")
    root, known = found[0].parent, work / "source"
    names = sorted(path.name for path in (root / "Test").iterdir())
    left_out = names[LEFT_OUT]
    for part in ("Training", "Test"):
        (known / part).mkdir(parents=True, exist_ok=True)
        for name in set(names) - set(left_out):
            link = known / part / name
            if not link.is_symlink():
                link.symlink_to((root / part / name).resolve())
    return known, [path for name in left_out for path in sorted((root / "Test" / name).glob("*.jpg"))]


def _some(paths: list[Path], count: int) -> list[Path]:
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[index] for index in chosen]


if __name__ == "__main__":
    command_line(drift)
