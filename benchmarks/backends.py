r"""The embedded server's own C++ backend beside the Python stubs: stalls, equal answers, loads under callers.

    python -m benchmarks.backends --repository REPOSITORY --images FOLDER \
        --out benchmarks/results/backends_HARDWARE_DATE_COMMIT.json
    python -m benchmarks.backends ... --quick      # does it run?

One server of each kind runs, and they are measured in turns:

- **Stalls.** Closed loops of 8 and 64 requests: how many calls took longer than 400 ms.
- **Answers.** The probabilities of each image, asked for alone, bit for bit.
- **Loads.** 8 callers while another version of the classifier is loaded and unloaded again, several times:
  p99 of the calls beside a load, and of those before the first.
"""

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.load import WARM_UP_S, Target, closed_loop
from fruitstand.artefacts import read_json, write_json
from fruitstand.contract import CPU_CONFIG, FRUIT_RESNET, HOST_CONFIG
from fruitstand.errors import DataError
from fruitstand.machine.provenance import provenance
from fruitstand.network.connections import open_triton
from fruitstand.repository.versions import MANIFEST_NAME, published_versions, serving_state
from fruitstand.stages import command_line, console, served
from loadtests.generator.profiles import read_sample
from loadtests.server_statistics import ServedModel
from serving.triton.backend_directory import BACKENDS_VARIABLE, HOST, STUB

IN_FLIGHT = (8, 64)
CALLERS = 8
"""While a version loads."""
CONFIGS = {HOST: HOST_CONFIG, STUB: CPU_CONFIG}


def main(
    repository: Annotated[Path, typer.Option(help="Model repository with a served version.")],
    images: Annotated[Path, typer.Option(help="Folder with images.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    seconds: Annotated[float, typer.Option(help="Of each closed loop.")] = 60.0,
    num_images: Annotated[int, typer.Option(min=1, help="Whose answers are compared.")] = 1000,
    loads: Annotated[int, typer.Option(min=1, help="Of another version, on each backend.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Short loops, few images, one load.")] = False,
) -> None:
    """Measure and write the result."""
    if quick:
        seconds, num_images, loads = 2.0, 32, 1
    files = read_sample(images, num_images)
    result: dict[str, Any] = {
        **provenance(),
        "settings": {"seconds": seconds, "num_images": num_images, "loads": loads, "callers": CALLERS},
        "samples": {name: {} for name in CONFIGS},
    }
    with TemporaryDirectory(prefix="fruitstand-backends-") as scratch, contextlib.ExitStack() as stack:
        urls, copies = {}, {}
        for name in CONFIGS:
            copies[name] = with_another_version(repository, Path(scratch, name))
            log, environment = Path(scratch, f"{name}.log"), {BACKENDS_VARIABLE: name}
            urls[name] = stack.enter_context(served(copies[name], log=log, environment=environment))
        targets = {name: Target(url, files) for name, url in urls.items()}
        for in_flight in IN_FLIGHT:
            for name, target in targets.items():
                loop = asdict(asyncio.run(closed_loop(target, in_flight, seconds)))
                console.print(f"{name}, {in_flight} in flight: {loop}")
                result["samples"][name][f"c{in_flight}"] = loop
        result["samples"]["answers"] = compare(urls[HOST], urls[STUB], files)
        console.print(f"answers: {result['samples']['answers']}")
        for name, target in targets.items():
            beside = asyncio.run(beside_loads(urls[name], target, copies[name], CONFIGS[name], loads))
            console.print(f"{name}, a version loads: {beside}")
            result["samples"][name]["loads"] = beside
    write_json(out, result)
    print(out)


def with_another_version(repository: Path, copy: Path) -> Path:
    """A copy of a repository in which the served version has a twin, which nobody loads yet."""
    shutil.copytree(repository, copy)
    state = serving_state(copy)
    if state is None:
        raise DataError(f"{repository}: serves no version; publish one with fruitstand export")
    versions = copy / FRUIT_RESNET
    twin = versions / str(max(published_versions(copy)) + 1)
    shutil.copytree(versions / str(state.version), twin)
    write_json(twin / MANIFEST_NAME, {**read_json(twin / MANIFEST_NAME), "version": int(twin.name)})
    return copy


def compare(url: str, other_url: str, files: Sequence[bytes]) -> dict[str, int]:
    """How many images get the same probabilities from two servers, bit for bit."""
    with ServedModel(url) as one, ServedModel(other_url) as other:
        pairs = list(zip(one.probabilities(files), other.probabilities(files), strict=True))
    differences = [
        float(np.abs(np.frombuffer(mine, np.float32) - np.frombuffer(its, np.float32)).max())
        for mine, its in pairs
    ]
    return {
        "images": len(pairs),
        "bit_equal": sum(mine == its for mine, its in pairs),
        "largest_difference": max(differences),
    }


async def beside_loads(
    url: str, target: Target, repository: Path, config_name: str, loads: int
) -> dict[str, Any]:
    """Callers of the served version, while another one is loaded and unloaded.

    Args:
        url: HOST:PORT of the server.
        target: of the same server.
        repository: that it serves, with a version more than it loads.
        config_name: the configuration it reads.
        loads: how many times.
    """
    calls: list[tuple[float, float]] = []
    windows: list[tuple[float, float]] = []
    quiet_s = 4.0

    def load_and_unload() -> float:
        time.sleep(WARM_UP_S)
        quiet_from = time.perf_counter()
        time.sleep(quiet_s)
        config = repository / FRUIT_RESNET / "configs" / f"{config_name}.pbtxt"
        text = config.read_text()
        newest = max(published_versions(repository))
        both = re.sub(r"versions: \[ ([\d, ]+) \]", rf"versions: [ \1, {newest} ]", text)
        with open_triton(url) as client:
            for _ in range(loads):
                for wanted in (both, text):
                    config.write_text(wanted)
                    begun = time.perf_counter()
                    client.load_model(FRUIT_RESNET)
                    if wanted == both:
                        windows.append((begun, time.perf_counter()))
                    time.sleep(1.0)
        return quiet_from

    working = asyncio.create_task(asyncio.to_thread(load_and_unload))
    while not working.done():
        await closed_loop(target, CALLERS, 5.0, calls)
    quiet_from = working.result()
    quiet = [end - begun for begun, end in calls if quiet_from <= begun and end <= windows[0][0]]
    loading = [
        end - begun for begun, end in calls if any(begun < until and end > since for since, until in windows)
    ]
    quiet_ms, loading_ms = (float(np.percentile(one, 99)) * 1e3 for one in (quiet, loading))
    return {
        "load_s": [round(until - since, 2) for since, until in windows],
        "calls": {"quiet": len(quiet), "loading": len(loading)},
        "p99_ms": {"quiet": round(quiet_ms, 2), "loading": round(loading_ms, 2)},
        "loading_over_quiet": round(loading_ms / quiet_ms, 3),
    }


if __name__ == "__main__":
    command_line(main)
