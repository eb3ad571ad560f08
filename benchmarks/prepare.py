"""How long `fruitstand data prepare` takes for a data set of Fruits-360's size, and how much memory.

    python -m benchmarks.prepare --out benchmarks/results/prepare_HARDWARE_DATE_COMMIT.json

Paints the data first (not timed), then prepares them from a folder and from a zip. Then a tenth of the
classes twice: as they are, and with zero bytes behind every image, which decoders ignore. These are the same
images in more bytes, so memory that grows with the bytes would show.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fruitstand.artefacts import write_json
from fruitstand.machine.provenance import provenance
from fruitstand.stages import command_line

PADDING = bytes(100_000)

console = Console(stderr=True, highlight=False)


def measure(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    num_classes: Annotated[int, typer.Option(help="Classes to paint.")] = 131,
    images_per_class: Annotated[int, typer.Option(help="Images of each.")] = 690,
) -> None:
    """Time the prepare step and take its peak memory."""
    with tempfile.TemporaryDirectory(prefix="fruitstand-bench-") as scratch:
        work = Path(scratch)
        console.print(f"paint {num_classes} x {images_per_class} images (not timed)")
        painted = ("--num-classes", num_classes, "--images-per-class", images_per_class)
        _prepare("generated", work / "painted", *painted)
        images = work / "painted" / "images"
        samples = {"folder": _prepare(images, work / "a")}
        archive = Path(shutil.make_archive(str(images), "zip", images))
        samples["zip"] = _prepare(archive, work / "b")
        archive.unlink()
        for name, padding in (("tenth", b""), ("tenth_padded", PADDING)):
            part = _part(images, work / name, every=10, padding=padding)
            samples[name] = _prepare(part, work / f"{name}_out")
    result = {
        **provenance(),
        "settings": {
            "num_classes": num_classes,
            "images_per_class": images_per_class,
            "padding_bytes": len(PADDING),
        },
        "samples": samples,
        "summary": {
            # Wall time where nothing else runs; processor time wherever: a busy machine stretches the first.
            **{
                f"{kind}_per_100k_files": {
                    name: round(samples[name][kind] / samples[name]["num_files"] * 100_000, 1)
                    for name in ("folder", "zip")
                }
                for kind in ("wall_s", "cpu_s")
            },
            "peak_mib_growth_with_padding": round(
                samples["tenth_padded"]["peak_mib"] - samples["tenth"]["peak_mib"], 1
            ),
        },
    }
    write_json(out, result)
    console.print_json(data=result["summary"])


def _prepare(source: Path | str, out: Path, *options: object) -> dict[str, float]:
    """Run the command; wall and CPU seconds, peak memory, files and bytes."""
    command = [sys.executable, "-m", "fruitstand", "data", "prepare", "--source", str(source)]
    started = time.monotonic()
    process = subprocess.Popen([*command, "--out", str(out), *map(str, options)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    sample: dict[str, float] = {
        "wall_s": round(wall_s, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
    }
    if isinstance(source, Path):
        names = map(str, _files(source)) if source.is_dir() else zipfile.ZipFile(source).namelist()
        sample["num_files"] = sum(not name.endswith("/") for name in names)  # a zip lists folders, too
        sample["load_1_min"] = round(os.getloadavg()[0], 2)
        shutil.rmtree(out)
        console.print(f"{source.name}: {sample}")
    return sample


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _part(images: Path, target: Path, *, every: int, padding: bytes) -> Path:
    """Some of the classes, with something behind each image."""
    for split in sorted(images.iterdir()):
        for folder in sorted(split.iterdir())[::every]:
            copied = target / split.name / folder.name
            copied.mkdir(parents=True)
            for file in sorted(folder.iterdir()):
                (copied / file.name).write_bytes(file.read_bytes() + padding)
    return target


if __name__ == "__main__":
    command_line(measure)
