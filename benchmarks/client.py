"""What the client costs: on one image, at import, and `fruitstand classify` against perf_analyzer.

    python -m benchmarks.client --repository model_repository --images DIR --out benchmarks/results/X.json

The C++ client and the command send the same request batch, in turns, to one embedded server. `--num-images`
links the folder's images under as many names. Cheap variant: `--num-images 1000 --rounds 1`.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from fruitstand.artefacts import write_json
from fruitstand.errors import ServerError
from fruitstand.machine.provenance import provenance
from fruitstand.stages import command_line, served
from fruitstand_client import Client
from fruitstand_client.command.sources import find_images
from loadtests.perf_analyzer import install_perf_analyzer, request_arguments, write_images

BATCH_SIZE, IN_FLIGHT = 32, 4
NUM_SINGLE = 300
NUM_IMPORTS = 7
NUM_DISTINCT = 1024
"""Images that perf_analyzer holds in memory."""


def measure(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")],
    images: Annotated[Path, typer.Option(help="Folder with images.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    num_images: Annotated[int, typer.Option(help="Rows of one run of classify.")] = 10_000,
    rounds: Annotated[int, typer.Option(help="Of each client, in turns.")] = 3,
) -> None:
    """Measure everything on one server."""
    paths = [Path(str(one)) for one in find_images([str(images)])]
    with tempfile.TemporaryDirectory(prefix="fruitstand-client-") as scratch:
        folder = Path(scratch, "images")
        folder.mkdir()
        for number in range(num_images):
            path = paths[number % len(paths)]
            (folder / f"{number:07}{path.suffix}").symlink_to(path.resolve())
        write_images(Path(scratch, "images.json"), [path.read_bytes() for path in paths[:NUM_DISTINCT]])
        with served(repository, log=Path(scratch, "triton.log")) as url:
            single = _single_image(url, [path.read_bytes() for path in paths[:NUM_SINGLE]])
            samples = [_round(url, Path(scratch), num_images) for _ in range(rounds)]
    ratios = [one["classify_images_per_s"] / one["perf_analyzer_images_per_s"] for one in samples]
    summary = {
        **single,
        "import_s": _import_s("import fruitstand_client"),
        "import_and_first_client_s": _import_s("import fruitstand_client as f; f.Client('a:1')"),
        "classify_over_perf_analyzer": round(median(ratios), 3),
        "classify_over_perf_analyzer_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "num_rows": num_images,
        "rss_growth_mib": max(one["rss_growth_mib"] for one in samples),
    }
    settings = {"batch_size": BATCH_SIZE, "in_flight": IN_FLIGHT, "num_images": num_images, "rounds": rounds}
    write_json(out, {**provenance(), "settings": settings, "samples": samples, "summary": summary})
    print(json.dumps(summary, indent=2))


def _single_image(url: str, contents: list[bytes]) -> dict[str, float]:
    """One image a call: what the caller waits, less what the server says it took."""
    from fruitstand.contract import FRUIT_CLASSIFIER
    from fruitstand.network.connections import open_triton

    def served_ns() -> int:
        (stats,) = probe.get_inference_statistics(FRUIT_CLASSIFIER).model_stats
        return int(stats.inference_stats.success.ns)

    overheads_ms, waits_ms = [], []
    probe = open_triton(url)
    with Client(url) as client:
        client.classify(contents[:20])
        for content in contents:
            before = served_ns()
            started = time.perf_counter()
            client.classify([content])
            waited_ms = (time.perf_counter() - started) * 1e3
            overheads_ms.append(waited_ms - (served_ns() - before) / 1e6)
            waits_ms.append(waited_ms)
    probe.close()
    return {
        "single_image_p50_ms": round(median(waits_ms), 3),
        "overhead_p50_ms": round(median(overheads_ms), 3),
    }


def _round(url: str, scratch: Path, num_images: int) -> dict[str, float]:
    """The C++ client, then the command."""
    arguments = request_arguments(url, scratch / "images.json", batch_size=BATCH_SIZE, in_flight=IN_FLIGHT)
    # Three windows whatever they say: whether they are stable is for the spread of the ratios to show.
    windows = ("--measurement-interval", 5000, "--stability-percentage", 999)
    done = install_perf_analyzer().run(*arguments, *windows, timeout_s=300)
    found = re.findall(r"throughput: ([\d.]+) infer/sec", done.stdout)
    if not found:
        raise ServerError(f"perf_analyzer measured nothing: {done.stderr.strip() or done.stdout[-300:]}")
    return {"perf_analyzer_images_per_s": float(found[-1]), **_classify(url, scratch, num_images)}


def _classify(url: str, scratch: Path, num_images: int) -> dict[str, float]:
    """One run of the command; its rows are checked."""
    out = scratch / "out.jsonl"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "fruitstand", "classify", str(scratch / "images"), "--url", url]
    command += ["--format", "jsonl", "--out", str(out)]
    command += ["--batch-size", str(BATCH_SIZE), "--in-flight", str(IN_FLIGHT)]
    started = time.monotonic()
    rss_mib: list[float] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        watcher = threading.Thread(target=_watch, args=(process, rss_mib))
        watcher.start()
        _, said = process.communicate()
        watcher.join()
    seconds = time.monotonic() - started
    if process.returncode:
        raise ServerError(f"classify failed: {said.strip()}")
    rows = [json.loads(line)["path"] for line in out.read_text().splitlines()]
    if rows != sorted(str(path) for path in (scratch / "images").iterdir()):
        raise ServerError(
            f"classify wrote {len(rows)} rows, not one for each of {num_images} images in order"
        )
    rate = re.search(r"(\d+) images/s", said)
    assert rate is not None
    third = len(rss_mib) // 3
    return {
        "classify_images_per_s": float(rate[1]),
        "classify_images_per_s_with_start": round(num_images / seconds, 1),
        "rss_max_mib": round(max(rss_mib), 1),
        "rss_growth_mib": round(max(rss_mib[-third:]) - max(rss_mib[third : 2 * third]), 1),
    }


def _watch(process: subprocess.Popen[str], rss_mib: list[float]) -> None:
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if found := re.search(r"VmRSS:\s*(\d+) kB", status):  # a process that is ending has none
            rss_mib.append(int(found[1]) / 1024)
        time.sleep(0.1)


def _import_s(statement: str) -> float:
    """The quickest of some runs in a fresh process: everything above it is the machine's other work."""
    script = f"import time; s = time.perf_counter(); {statement}; print(time.perf_counter() - s)"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    return round(
        min(
            float(subprocess.check_output([sys.executable, "-c", script], text=True, env=environment))
            for _ in range(NUM_IMPORTS)
        ),
        3,
    )


if __name__ == "__main__":
    command_line(measure)
