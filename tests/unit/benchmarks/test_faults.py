import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from benchmarks.faults.inputs import BAD_KINDS, LEAK
from benchmarks.faults.ledger import LOST, REFUSED, RIGHT, WRONG, Caller, Ledger, Record
from benchmarks.faults.subjects import GATEWAY, OURS, SECOND, SUBJECTS
from benchmarks.faults.table import NAMES, ROWS, render
from fruitstand.manifest import PreparedData
from fruitstand.network.ports import free_ports
from serving.attest.kinds import image_kinds


def _record(sent: float, verdict: str = RIGHT, took: float = 0.01) -> Record:
    return Record(sent=sent, done=sent + took, verdict=verdict, status="200")


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        pytest.param([_record(one) for one in range(10)], 0.0, id="nothing-happened"),
        pytest.param([_record(0), _record(2, LOST), _record(3), _record(9)], 1.0, id="a-call-is-lost"),
        pytest.param([_record(2, RIGHT, 3.0), _record(4, took=0.1), _record(9)], 1.0, id="a-call-is-slow"),
        pytest.param([_record(2, LOST), _record(8, REFUSED), _record(9)], None, id="it-never-comes-back"),
        pytest.param([_record(0, LOST), _record(5), _record(9)], 0.0, id="it-was-before-the-fault"),
    ],
)
def test_the_time_back_ends_with_the_last_call_that_was_not_normal(
    records: list[Record], expected: float | None
) -> None:
    """Counted from the fault at 1 s; two quiet seconds have to follow."""
    assert Ledger(records).abnormal_s(1.0) == expected


def test_every_call_gets_the_verdict_that_its_caller_saw() -> None:
    """From a real HTTP server that answers right, wrong, with 503, nonsense, too late, and not at all."""

    async def answer(request: web.Request) -> web.StreamResponse:
        kind = (await request.read()).decode()
        if kind == "late":
            await asyncio.sleep(5)
        if kind == "broken":
            assert request.transport is not None
            request.transport.close()
        if kind == "refused":
            return web.json_response({"error": "full"}, status=503)
        return web.Response(text="no JSON") if kind == "nonsense" else web.json_response({"label": kind})

    async def run() -> list[Record]:
        app, port = web.Application(), free_ports(1)[0]
        app.router.add_post("/classify", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        kinds = ("right", "other", "refused", "nonsense", "late", "broken")
        caller = Caller(SUBJECTS["fastapi"], f"http://127.0.0.1:{port}", [kind.encode() for kind in kinds])
        caller.expected = ["right"] * len(kinds)
        records = await caller.at_once(range(len(kinds)), deadline_s=1.0)
        await runner.cleanup()
        return records

    records = asyncio.run(run())
    assert [one.verdict for one in records] == [RIGHT, WRONG, REFUSED, WRONG, LOST, LOST]
    assert records[2].status == "503"
    assert "full" in records[2].text


def test_answers_tell_which_model_computed_them() -> None:
    """Ours names the version; the second model of a peer has labels of its own."""
    assert SUBJECTS[OURS].read("Apple", b'{"model_version": "2"}') == ("Apple", "2")
    assert SUBJECTS["mosec"].read(f"Apple{SECOND}", b"") == ("Apple", "2")
    assert SUBJECTS["mosec"].read("Apple", b"") == ("Apple", "1")


def test_every_bad_kind_is_refused_by_the_contract() -> None:
    """Twenty of them; a server without a limit of bytes may answer the largest."""
    refused = {kind.name for kind in image_kinds() if not kind.is_accepted}
    assert len(set(BAD_KINDS)) == 20
    assert set(BAD_KINDS) <= refused


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        pytest.param("cannot identify image file <_io.BytesIO object at 0x7f0000000001>", True, id="address"),
        pytest.param("File /usr/lib/python3/x", True, id="path"),
        pytest.param('{"error": "the image is truncated", "status": 400}', False, id="reason"),
    ],
)
def test_a_leak_is_found(text: str, leaks: bool) -> None:
    """A path, a source file, a stack trace or an address."""
    assert (LEAK.search(text) is not None) is leaks


def test_the_table_has_a_row_a_fault_and_a_column_a_subject() -> None:
    """Also for one that did not start, and for faults of another run."""
    cell = {"text": "3 failed", "after": "restarted", "load_1_min": 1.0, "numbers": {}}
    result = {
        "date": "2026-11-28T08:00:00",
        "commit": "0123456789",
        "hardware": {"num_cores": 2, "cpu": "a CPU"},
        "subjects": {
            OURS: {"capacity_per_s": 100.0, "cells": {"kill": cell}},
            "mosec": {"failed": "no Java", "cells": {}},
        },
    }
    again = {
        **result,
        "subjects": {OURS: {"cells": {"soak": {**cell, "text": "+0 MiB", "after": "answers"}}}},
    }
    lines = render({"faults_x.json": result, "faults_y.json": again}).splitlines()
    assert "| fault | ours, one server | Mosec |" in lines
    assert f"| {ROWS['kill']} | 3 failed (r) | did not start |" in lines
    assert f"| {ROWS['soak']} | +0 MiB | did not start |" in lines
    assert "- Mosec: no Java." in lines
    assert set(NAMES) == set(SUBJECTS)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [OURS, GATEWAY])
def test_our_stack_is_right_in_every_verdict(
    name: str, repository: Path, prepared: PreparedData, tmp_path: Path
) -> None:
    """No neighbour suffers, bad input is the caller's fault, and a killed server comes back."""
    out = tmp_path / "faults.json"
    command = [sys.executable, "-m", "benchmarks.faults", "--repository", repository, "--out", out]
    command += ["--images", prepared.directory / "images", "--peers", name, "--soak-minutes", "0.1"]
    command += ["--faults", ",".join(ROWS)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(out.read_text())["subjects"][name]
    assert "failed" not in row
    cells = {key: cell["numbers"] for key, cell in row["cells"].items()}
    assert set(cells) == set(ROWS)
    assert cells["neighbours"]["neighbours"]["right"] == 140
    kinds = cells["bad_inputs"]["kinds"].values()
    assert all(kind["status"].startswith("4") and not kind["leak"] and kind["stays_up"] for kind in kinds)
    assert cells["large_body"]["status"] in ("413", "closed")
    assert name == GATEWAY or cells["swap"]["mixed"] == 0  # replicas switch one after the other
    assert cells["terminate"]["lost_under_way"] == 0
    assert all(numbers.get("wrong", 0) == 0 for numbers in cells.values())
    assert all(cell["after"] != "restarted" for cell in row["cells"].values())
