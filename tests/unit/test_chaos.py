"""The parts of the fault-injection scenarios that need no server."""

import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fruitstand.artefacts import write_json
from fruitstand.images.synthetic import encode, pattern
from fruitstand.network.connections import metric_total
from tests.nightly.chaos.control_calls import grpc_paths, http_calls
from tests.nightly.chaos.counters import answers_by_code
from tests.nightly.chaos.delay_proxy import DelayProxy
from tests.nightly.chaos.load import Ledger, Record
from tests.nightly.chaos.malformed import malformed_request
from tests.nightly.chaos.material import Material
from tests.nightly.chaos.scenarios import BLOCKERS, NUM_SCENARIOS, SCENARIOS
from tests.nightly.chaos.scenarios.model_change import _mixed_s
from tests.nightly.chaos.scoreboard import gather, render, run_scenario
from tests.nightly.chaos.setting import (
    TIERS,
    Claim,
    Outcome,
    _complaints,
    at_least,
    at_most,
    equals,
    none_failed,
    none_of,
)
from tests.nightly.chaos.wholeness import torn
from tests.repositories import place_version

PAGE = """# TYPE nv_inference_request_success counter
nv_inference_request_success{model="fruit_classifier",version="1"} 5
nv_inference_request_success{model="fruit_classifier",version="2"} 7
nv_inference_request_success{model="image_decode",version="1"} 100
nv_inference_request_success_other{model="fruit_classifier",version="1"} 1000
envoy_cluster_grpc_ModelInfer_0{envoy_cluster_name="triton"} 12
envoy_cluster_grpc_ModelInfer_14{envoy_cluster_name="triton"} 3
"""
GOOD_AUDIT = {
    "callers_answered": 100,
    "callers_gave_up": 2,
    "gateway_answered": 101,
    "gateway_repeated": 3,
    "triton_answered": 110,
    "canaries_at_most": 20,
    "restarts": 0,
}


def record(due: float, latency_s: float, status: str = "OK", version: str = "1") -> Record:
    """Sent when it was due."""
    return Record(due, due, due + latency_s, status, version)


def test_a_sum_takes_the_series_with_the_labels_and_no_other_metric() -> None:
    """A longer name is another metric."""
    assert metric_total(PAGE, "nv_inference_request_success", model="fruit_classifier") == 12
    assert metric_total(PAGE, "nv_inference_request_success") == 112
    assert metric_total(PAGE, "nv_nothing") == 0
    assert answers_by_code(PAGE) == {0: 12, 14: 3}


def test_a_ledger_tells_apart_when_and_how_calls_ended() -> None:
    """Quantiles of a span of time, of what was answered or refused; goodput counts what was due in it."""
    ledger = Ledger([record(n, 0.1) for n in range(10)] + [record(5, 0.02, "UNAVAILABLE"), record(20, 1.0)])
    assert (ledger.failed, ledger.statuses) == (1, {"OK": 11, "UNAVAILABLE": 1})
    assert ledger.quantile_ms(0.99, before=10) == pytest.approx(100)
    assert ledger.quantile_ms(0.99, answered=False) == pytest.approx(20)
    assert ledger.quantile_ms(0.5, after=15) == pytest.approx(1000)
    assert ledger.quantile_ms(0.5, after=30) is None
    assert ledger.goodput(0, 10) == 1.0


@pytest.mark.parametrize(
    ("change", "hurt", "complaint"),
    [
        pytest.param({}, (), "", id="they_agree"),
        pytest.param({"gateway_answered": 99}, (), "gateway counts -1", id="an_answer_nobody_gave"),
        pytest.param({"gateway_answered": 103}, (), "gateway counts 3", id="answers_that_nobody_got"),
        pytest.param({"gateway_answered": 103}, ("gateway",), "", id="a_restarted_gateway_forgot"),
        pytest.param({"triton_answered": 90}, (), "servers count -11", id="answers_without_a_server"),
        pytest.param({"triton_answered": 200}, (), "servers count 99", id="answers_that_were_lost"),
        pytest.param({"triton_answered": 0, "restarts": 2}, ("replicas",), "", id="killed_replicas"),
        pytest.param({"restarts": 1}, (), "restarted", id="a_restart_for_no_reason"),
    ],
)
def test_counters_are_held_against_the_ledger(
    change: dict[str, int], hurt: tuple[str, ...], complaint: str
) -> None:
    """What was killed on purpose is left out, nothing else."""
    found = _complaints({**GOOD_AUDIT, **change}, hurt)
    assert bool(found) is bool(complaint)
    assert complaint in "".join(found)


def test_there_are_two_hundred_ways_to_ask_for_control_at_each_layer() -> None:
    """Of different spelling, over gRPC and HTTP."""
    for of_gateway in (False, True):
        assert len(grpc_paths()) > 200
        assert len(http_calls(of_gateway=of_gateway)) > 200
    assert not any("/ModelInfer" in path and ".." not in path and "?" not in path for path in grpc_paths())


def test_malformed_requests_come_again_from_their_seed_and_differ() -> None:
    """A failure can be repeated."""
    image = encode(pattern(20, 20))

    def some(seed: int) -> list[bytes]:
        random_ = random.Random(seed)
        return [malformed_request(random_, image).SerializeToString() for _ in range(200)]

    assert some(1) == some(1)
    assert len(set(some(1))) > 100


def test_the_switch_lasts_from_the_first_new_to_the_last_old_answer() -> None:
    """An old answer to a call that was sent before the first new one came is no mixture."""
    calm = [record(n, 0.1, version="1" if n < 5 else "2") for n in range(10)]
    assert _mixed_s(calm, 0, 10, "2") == 0
    assert _mixed_s([*calm, record(6, 0.1)], 0, 10, "2") == pytest.approx(0.9)


def test_a_torn_repository_is_seen(tmp_path: Path) -> None:
    """A file that is missing, and one that was altered."""
    for number in (1, 2):
        place_version(tmp_path, number)
    assert torn(tmp_path) == []
    (tmp_path / "fruit_resnet" / "1" / "model.onnx").unlink()
    (tmp_path / "fruit_resnet" / "2" / "model.onnx").write_bytes(b"other")
    assert len(torn(tmp_path)) == 2


@pytest.fixture
def echo() -> Any:
    """A server that sends back what it gets; its HOST:PORT."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            while piece := connection.recv(1024):
                connection.sendall(piece)

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def test_the_proxy_delays_and_then_swallows_open_connections_only(echo: str) -> None:
    """A new connection works beside a dead one."""
    with DelayProxy(echo, delay_s=0.1) as proxy:
        host, port = proxy.url.split(":")
        with socket.create_connection((host, int(port)), 10) as old:
            started = time.monotonic()
            old.sendall(b"one")
            assert old.recv(10) == b"one"
            assert time.monotonic() - started >= 0.1
            proxy.swallow()
            old.sendall(b"two")
            old.settimeout(0.5)
            with pytest.raises(TimeoutError):
                old.recv(10)
            with socket.create_connection((host, int(port)), 10) as new:
                new.sendall(b"three")
                assert new.recv(10) == b"three"


def test_every_blocker_is_built_and_titles_are_numbered() -> None:
    """The number in a scenario's title is its own."""
    assert set(BLOCKERS) <= set(SCENARIOS)
    assert all((scenario.__doc__ or "").startswith(f"{number}: ") for number, scenario in SCENARIOS.items())
    assert max(SCENARIOS) <= NUM_SCENARIOS


@pytest.mark.parametrize(
    ("claim", "held"),
    [
        pytest.param(at_most("x", 2.0, 2), True, id="at_the_limit"),
        pytest.param(at_most("x", 2.1, 2), False, id="over_the_limit"),
        pytest.param(at_most("x", None, 2), False, id="never_measured"),
        pytest.param(at_least("x", 1, 2), False, id="too_little"),
        pytest.param(none_of("x", {"UNKNOWN"}), False, id="something_found"),
        pytest.param(none_of("x", ""), True, id="nothing_found"),
        pytest.param(equals("x", {1}, {1}), True, id="equal"),
        pytest.param(none_failed("x", Ledger([record(0, 0.1)])), True, id="all_answered"),
        pytest.param(none_failed("x", Ledger([])), False, id="no_call_at_all"),
    ],
)
def test_a_claim_says_whether_it_held(claim: Claim, held: bool) -> None:
    """A number that was never measured holds no limit."""
    assert claim.held is held


def test_a_row_names_the_claim_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was seen and what is allowed; a scenario that breaks has one claim, which says how."""

    def scenario(_: object) -> Outcome:
        """99: one limit is missed."""
        return Outcome((at_most("p99, ms", 70, 50), none_of("lost", {"a"} - {"a"})), {"calls": 3})

    def broken(_: object) -> Outcome:
        """98: breaks."""
        raise ValueError("no such stack")

    monkeypatch.setitem(SCENARIOS, 99, scenario)
    monkeypatch.setitem(SCENARIOS, 98, broken)
    material = Material(tmp_path / "material")
    row, other = (run_scenario(n, tmp_path, material, TIERS["brief"], tmp_path / "out") for n in (99, 98))
    assert not row.passed
    (failed,) = (one for one in row.to_json(tmp_path)["claims"] if not one["held"])
    assert failed == {"claim": "p99, ms", "got": 70, "limit": "at most 50", "held": False}
    assert "ValueError: no such stack" in other.claims[0].got


def test_the_page_counts_what_passed_and_has_a_row_for_each_scenario(tmp_path: Path) -> None:
    """The rows that tests wrote become one table, ordered by number."""
    for number in (2, 10, 1):
        row = {
            "scenario": number,
            "title": f"title {number}",
            "blocker": number == 1,
            "passed": number != 2,
            "seconds": 1.0,
            "repeats": 20,
            "commit": "0123456789" if number > 1 else None,
        }
        write_json(tmp_path / f"scenario{number}.json", row)
    page = render(gather(tmp_path))
    assert "2 of 30 scenarios pass, and 1 of 8 release blockers." in page
    assert "| 2 | title 2 | no | no | 20 | 1 | 0123456 |" in page
    assert page.index("title 2") < page.index("title 10")
