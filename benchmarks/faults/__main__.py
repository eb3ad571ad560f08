r"""The same faults on our stack and its peers, one after the other, on the same machine with the same load.

    python -m benchmarks.faults --repository model_repository --images DIR \
        --out benchmarks/results/faults_HARDWARE_DATE_COMMIT.json
    python -m benchmarks.faults ... --peers mosec --faults bad_inputs    # one cell
    python -m benchmarks.faults ... --faults soak --rate 10    # may run beside others, into one file
    python -m benchmarks.faults.table                                    # docs/reliability.md

Every call goes over HTTP and into a ledger: right, wrong, refused or lost. A cell is made of ledgers and of
counters of the kernel and of the peer. An `--out` that exists is added to, so that peers can run in turns.
A peer answers before every fault; where it does not afterwards it is restarted, which the cell says.
"""

import contextlib
import datetime
import fcntl
import functools
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.faults import bodies, breakdown, inputs, overload
from benchmarks.faults.ledger import DEADLINE_S, SLOW_S, capacity
from benchmarks.faults.running import NICENESS, STEADY_SHARE, Bench, Cell, Running
from benchmarks.faults.subjects import SUBJECTS, Subject
from benchmarks.in_process import served_version
from fruitstand.artefacts import read_json, write_json
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.machine.provenance import git_commit, provenance
from fruitstand.repository.versions import MANIFEST_NAME
from fruitstand.stages import command_line, console
from loadtests.generator.profiles import read_sample

NUM_IMAGES = 64
RENEWED = ("swap", "terminate")
"""After these everybody is started anew."""
MODEL_FILE, ENGINE = "model.int8.onnx", "openvino"
FAULTS: dict[str, Callable[[Bench], Cell]] = {
    "neighbours": inputs.neighbours,
    "bad_inputs": inputs.bad_inputs,
    "overload": overload.overload,
    "give_up": overload.give_up,
    "kill": breakdown.kill,
    "freeze": breakdown.freeze,
    "large_body": bodies.large_body,
    "gzip_bomb": bodies.gzip_bomb,
    "connections": bodies.connections,
    "swap": breakdown.swap,
    "soak": overload.soak,
    "terminate": breakdown.terminate,
}

ALONE = [name for name in FAULTS if name != "soak"]
"""What needs the machine to itself."""


def main(
    repository: Annotated[Path, typer.Option(help="Model repository with a served version.")],
    images: Annotated[Path, typer.Option(help="Folder with JPEG images.")],
    out: Annotated[Path, typer.Option(help="JSON file to write, or to add to.")],
    peers: Annotated[str, typer.Option(help="With commas.")] = ",".join(SUBJECTS),
    faults: Annotated[str, typer.Option(help="With commas; default: all but soak.")] = ",".join(ALONE),
    soak_minutes: Annotated[float, typer.Option(min=0.1, help="Of steady load.")] = 10.0,
    rate: Annotated[
        float, typer.Option(min=0, help="Calls/s of the steady load; 0: 30 % of capacity.")
    ] = 0.0,
    missing: Annotated[bool, typer.Option("--missing", help="Only cells that --out lacks.")] = False,
) -> None:
    """Break each in turn, and write what came of it."""
    names, wanted = peers.split(","), faults.split(",")
    if unknown := (set(names) - set(SUBJECTS)) | (set(wanted) - set(FAULTS)):
        raise UsageError(f"got {', '.join(sorted(unknown))}, allowed {', '.join([*SUBJECTS, *FAULTS])}")
    sample = read_sample(images, NUM_IMAGES)
    version = served_version(repository)
    manifest = read_json(version / MANIFEST_NAME)
    model = {
        "model": str((version / MODEL_FILE).resolve()),
        "engine": ENGINE,
        "labels": manifest["labels"],
        "preprocessing": manifest["preprocessing"],
    }
    for name in names:
        known = read_json(out)["subjects"].get(name, {}).get("cells", {}) if missing and out.exists() else {}
        if todo := [fault for fault in wanted if fault not in known]:
            with tempfile.TemporaryDirectory(
                prefix="fruitstand-faults-", ignore_cleanup_errors=True
            ) as scratch:
                running = functools.partial(Running, SUBJECTS[name], repository, model, sample, Path(scratch))
                for row in _break(
                    SUBJECTS[name], running, manifest["model_name"], todo, rate, soak_minutes * 60
                ):
                    _add(out, name, row)
    print(out)


def _break(
    subject: Subject,
    start: Callable[[], Running],
    model_name: str,
    faults: Sequence[str],
    rate: float,
    soak_s: float,
) -> Iterator[dict[str, Any]]:
    """One subject's column of the table, again after each cell."""
    row: dict[str, Any] = {
        "settings": subject.settings,
        "model": model_name,
        "commit": git_commit(Path(__file__).parent),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cells": {},
    }
    running = None
    try:
        running = start()
        running.caller.learn()
        most = 0.0
        if not rate or "overload" in faults:
            most = capacity(running.caller)
            row["capacity_per_s"] = round(most, 1)
        bench = Bench(running=running, capacity=most, steady_rate=rate or STEADY_SHARE * most, soak_s=soak_s)
        console.print(f"[bold]{subject.name}[/]  {most:.0f} images/s")
        for name in faults:
            row["cells"][name] = _cell(name, bench, is_last=name == faults[-1])
            console.print(f"{subject.name} {name}: {row['cells'][name]['text']}")
            yield row
    except (FruitstandError, OSError) as exc:  # it does not start, or not again
        console.print(f"{subject.name}: {exc}")
        yield {**row, "failed": _said(exc)}
    finally:
        if running is not None:
            running.stop()


def _cell(name: str, bench: Bench, *, is_last: bool) -> dict[str, Any]:
    running = bench.running
    if not running.answers():
        running.restart()
    started, starts = time.monotonic(), running.num_starts
    try:
        cell = asdict(FAULTS[name](bench))
    except Exception as exc:  # whatever a broken server makes psutil, asyncio or aiohttp raise
        cell = {"text": f"broke off: {_said(exc)}", "numbers": {}}
    seconds = round(time.monotonic() - started, 1)
    load_1_min = round(os.getloadavg()[0], 2)
    num_starts = running.num_starts - starts
    after = "started anew" if name in RENEWED else "answers" if running.answers() else "restarted"
    if after != "answers" and not is_last:
        running.restart()
    return {
        **cell,
        "after": after,
        "starts_within": num_starts,
        "seconds": seconds,
        "load_1_min": load_1_min,
    }


def _said(error: Exception) -> str:
    """What went wrong, without the paths of this machine and what would break a table."""
    return re.sub(r"(?:/[\w.-]+)+/", "", str(error)).replace("|", ";").replace("\n", " ")[:300]


def _add(out: Path, name: str, row: dict[str, Any]) -> None:
    with _alone(out.parent):
        _merge(out, name, row)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _merge(out: Path, name: str, row: dict[str, Any]) -> None:
    result: dict[str, Any] = read_json(out) if out.exists() else {**provenance(), "subjects": {}}
    result["settings"] = {
        "num_images": NUM_IMAGES,
        "file": MODEL_FILE,
        "engine": ENGINE,
        "deadline_s": DEADLINE_S,
        "slow_s": SLOW_S,
        "steady_share": STEADY_SHARE,
        "niceness_of_servers": NICENESS,
    }
    known = result["subjects"].get(name, {"cells": {}})
    known.pop("failed", None)
    result["subjects"][name] = {**known, **row, "cells": {**known["cells"], **row["cells"]}}
    write_json(out, result)


if __name__ == "__main__":
    command_line(main)
