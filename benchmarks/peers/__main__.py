r"""Measure our server and its peers in turn, on the same cores with the same load.

    python -m benchmarks.peers --repository model_repository --images DIR \
        --out benchmarks/results/peers_HARDWARE_DATE_COMMIT.json
    python -m benchmarks.peers ... --quick      # check that each peer answers
    python -m benchmarks.peers --lock           # resolve the peers' requirements again

Every peer has its own environment in `build/peers`, installed on first use; TorchServe's takes 5 GB and needs
Java. Each round starts, measures and stops every server once: ours on its C++ backend, ours on the Python
stubs, then the peers. The summary has medians of ratios within a round.
"""

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.in_process import in_process_images_per_s, served_version
from benchmarks.load import ratio
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.environments import install, lock
from benchmarks.peers.measure import IN_FLIGHT, OURS, STUBS, Case, Round, measure
from fruitstand.artefacts import read_json, write_json
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.machine.provenance import provenance
from fruitstand.repository.versions import MANIFEST_NAME
from fruitstand.stages import command_line, console
from loadtests.generator.profiles import read_sample
from serving.triton.backend_directory import HOST, STUB

NUM_IMAGES = 256
VARIANTS = {"fp32": ("model.onnx", "cpu"), "int8": ("model.int8.onnx", "openvino")}


def main(
    repository: Annotated[Path | None, typer.Option(help="Model repository with a served version.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder with JPEG images.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    peers: Annotated[str, typer.Option(help="Comma-separated names.")] = ",".join(PEERS),
    variants: Annotated[str, typer.Option(help="Comma-separated: fp32, int8.")] = ",".join(VARIANTS),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of measurements.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds per measurement.")] = 10.0,
    quick: Annotated[bool, typer.Option("--quick", help="One short round.")] = False,
    relock: Annotated[bool, typer.Option("--lock", help="Resolve the requirements and exit.")] = False,
) -> None:
    """Install the peers, measure all servers, and write the result."""
    if relock:
        lock()
        return
    if repository is None or images is None or out is None:
        raise UsageError("--repository, --images and --out are missing")
    rounds, seconds = (1, 2.0) if quick else (rounds, seconds)
    cases = _cases(repository, peers.split(","), variants.split(","))
    sample = read_sample(images, NUM_IMAGES)
    for environment in sorted({case.peer.environment for case in cases if case.peer is not None}):
        console.print(f"[bold]install[/]  {environment}")
        install(environment)
    samples: dict[str, list[dict[str, Any]]] = {}
    in_process = []
    for number in range(rounds):
        in_process.append(in_process_images_per_s(repository, images, seconds))
        one_round = Round(repository, sample, seconds)
        for case in cases:
            try:
                one = measure(case, one_round)
            except FruitstandError as exc:
                console.print(f"{number + 1}/{rounds} {case.name}: failed: {exc}")
                one = {"failed": str(exc)}
            else:
                console.print(f"{number + 1}/{rounds} {case.name}: {one}")
            samples.setdefault(case.name, []).append(one)
    result = {
        **provenance(),
        "settings": {
            "rounds": rounds,
            "seconds": seconds,
            "quick": quick,
            "num_images": len(sample),
            "in_flight": list(IN_FLIGHT),
            "peers": {name: peer.settings for name, peer in PEERS.items()},
            "variants": {name: {"file": file, "engine": engine} for name, (file, engine) in VARIANTS.items()},
        },
        "samples": {**samples, "in_process": in_process},
        "summary": summarise(samples, in_process),
    }
    write_json(out, result)
    print(out)


def summarise(samples: dict[str, list[dict[str, Any]]], in_process: list[float]) -> dict[str, Any]:
    """Medians of each peer, and ratios of ours to it within rounds; the error of a peer that failed."""
    summary: dict[str, Any] = {}
    for name, rows in samples.items():
        if failed := [row["failed"] for row in rows if "failed" in row]:
            summary[name] = {"failed": failed[0]}
            continue
        summary[name] = {
            key: statistics.median(row[key] for row in rows) for key in ("start_s", "memory_mib")
        }
        for load in (f"c{in_flight}" for in_flight in IN_FLIGHT):
            own = [row[load]["images_per_s"] for row in rows]
            entry = {
                "images_per_s": statistics.median(own),
                "p50_ms": statistics.median(row[load]["p50_ms"] for row in rows),
                "p99_ms": statistics.median(row[load]["p99_ms"] for row in rows),
                "over_in_process": ratio(own, in_process),
            }
            ours = samples[OURS]
            if name != OURS and not any("failed" in row for row in ours):
                for key, measured in (
                    ("ours_over_it", "images_per_s"),
                    ("our_p50_over_its", "p50_ms"),
                    ("our_p99_over_its", "p99_ms"),
                ):
                    entry[key] = ratio(*([row[load][measured] for row in which] for which in (ours, rows)))
            summary[name][load] = entry
    return summary


def _cases(repository: Path, peers: list[str], variants: list[str]) -> list[Case]:
    """Our server on both backends, then every peer with every variant."""
    if unknown := (set(peers) - set(PEERS)) | (set(variants) - set(VARIANTS)):
        raise UsageError(f"got {', '.join(sorted(unknown))}, allowed {', '.join([*PEERS, *VARIANTS])}")
    version = served_version(repository)
    manifest = read_json(version / MANIFEST_NAME)
    common = {"labels": manifest["labels"], "preprocessing": manifest["preprocessing"]}
    cases = [
        Case(name=name, peer=None, settings={"backends": backends})
        for name, backends in ((OURS, HOST), (STUBS, STUB))
    ]
    for name in peers:
        for variant in variants:
            file, engine = VARIANTS[variant]
            settings = {**common, "model": str((version / file).resolve()), "engine": engine}
            cases.append(Case(name=f"{name}_{variant}", peer=PEERS[name], settings=settings))
    return cases


if __name__ == "__main__":
    command_line(main)
