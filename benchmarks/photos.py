r"""Compare full decode, reduced decode, and FastAPI with Pillow's draft mode, on 12-megapixel JPEGs.

    python -m benchmarks.photos --repository model_repository \
        --out benchmarks/results/photos_HARDWARE_DATE_COMMIT.json
    python -m benchmarks.photos ... --rounds 1 --seconds 2 --num-photos 2      # quick check

Each round starts, measures and stops the three servers in turn, with 1 and 8 requests in flight. The summary
has medians of ratios within a round. The photographs are generated; decoding them takes about as long as
decoding a camera's files of the same size. All three use the same engine.
"""

import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.load import ratio
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.environments import install
from benchmarks.peers.measure import Case, Round, measure
from export.publish.render import render_repository
from fruitstand.artefacts import write_bytes, write_json
from fruitstand.contract import IMAGE_DECODE, Preprocessing
from fruitstand.errors import DataError
from fruitstand.images.synthetic import encode, photograph
from fruitstand.machine.provenance import provenance
from fruitstand.repository.versions import read_version, serving_state
from fruitstand.stages import command_line, console

IN_FLIGHT = (1, 8)
SIZE = (4000, 3000)
QUALITY = 95
FULL, REDUCED, PEER = "full", "reduced", "fastapi_draft"


def main(
    repository: Annotated[Path, typer.Option(help="Model repository with a served version.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of measurements.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds per measurement.")] = 10.0,
    num_photos: Annotated[int, typer.Option(min=1, help="Number of different photographs.")] = 8,
) -> None:
    """Generate photographs, measure the three servers, and write the result."""
    state = serving_state(repository)
    if state is None:
        raise DataError(f"{repository}: serves no version; publish one with fruitstand export")
    manifest = read_version(repository, state.version).manifest
    photos = paint(num_photos)
    install(PEERS["fastapi"].environment)
    samples: dict[str, list[dict[str, Any]]] = {FULL: [], REDUCED: [], PEER: []}
    with tempfile.TemporaryDirectory(prefix="fruitstand-bench-") as scratch:
        repositories = {
            name: _with_margin(repository, Path(scratch, name), manifest, margin)
            for name, margin in ((FULL, 0.0), (REDUCED, Preprocessing().reduced_decode))
        }
        for number in range(rounds):
            expected: list[str] = []
            for name, rows in samples.items():
                served = repositories.get(name, repository)
                one_round = Round(served, photos, seconds, in_flight=IN_FLIGHT, expected=expected)
                rows.append(measure(_case(name, served, state.version, manifest), one_round))
                expected = one_round.expected
                console.print(f"{number + 1}/{rounds} {name}: {rows[-1]}")
    result = {
        **provenance(),
        "settings": {
            "rounds": rounds,
            "seconds": seconds,
            "in_flight": list(IN_FLIGHT),
            "size": list(SIZE),
            "encoded_bytes": [len(photo) for photo in photos],
            "preprocessing": manifest["preprocessing"],
            "serve": manifest["serve"],
        },
        "samples": samples,
        "summary": summarise(samples),
    }
    write_json(out, result)
    console.print_json(data=result["summary"])


def paint(num_photos: int) -> tuple[bytes, ...]:
    """Different 12-megapixel JPEGs, cropped from one generated image."""
    width, height = SIZE
    whole = photograph(width + 8 * num_photos, height)
    return tuple(
        encode(whole.crop((left, 0, left + width, height)), quality=QUALITY)
        for left in range(0, 8 * num_photos, 8)
    )


def _with_margin(repository: Path, copy: Path, manifest: dict[str, Any], margin: float) -> Path:
    """Copy a repository and set its contract's `reduced_decode`."""
    shutil.copytree(repository, copy)
    contract = replace(Preprocessing.from_dict(manifest["preprocessing"]), reduced_decode=margin)
    pipeline = Path(IMAGE_DECODE, "1", "dali.py")
    write_bytes(copy / pipeline, render_repository(contract, manifest["labels"])[pipeline])
    return copy


def _case(name: str, repository: Path, version: int, manifest: dict[str, Any]) -> Case:
    if name != PEER:
        return Case(name=name, peer=None, settings={})
    model = read_version(repository, version).directory / manifest["serve"]["cpu_model"]
    settings = {
        "labels": manifest["labels"],
        "preprocessing": manifest["preprocessing"],
        "model": str(model.resolve()),
        "engine": manifest["serve"]["cpu_engine"],
        "uses_draft": True,
    }
    return Case(name=name, peer=PEERS["fastapi"], settings=settings)


def summarise(samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians by load, and ratios of the reduced decode to the other two within rounds."""
    summary: dict[str, Any] = {}
    for load in (f"c{in_flight}" for in_flight in IN_FLIGHT):
        rates = {name: [row[load]["images_per_s"] for row in rows] for name, rows in samples.items()}
        summary[load] = {
            "images_per_s": {name: statistics.median(own) for name, own in rates.items()},
            "p50_ms": {
                name: statistics.median(row[load]["p50_ms"] for row in rows) for name, rows in samples.items()
            },
            "reduced_over_full": ratio(rates[REDUCED], rates[FULL]),
            "reduced_over_fastapi_draft": ratio(rates[REDUCED], rates[PEER]),
        }
    return summary


if __name__ == "__main__":
    command_line(main)
