"""Objectives, knee, comparison and gate, on results written down here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fruitstand.errors import UsageError
from loadtests.generator.profiles import PROFILES, named_profile
from loadtests.generator.recording import limits_found
from loadtests.loadtest import DEFAULT_SLO
from loadtests.results.baseline import compare
from loadtests.results.result import RESULT, Knee, LoadResult, Point, read_result
from loadtests.results.slo import find_knee, judge, judged_points, read_slo
from loadtests.sweep import parse_loads

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def point(load: float, images_per_s: float, *samples: float, loop: str = "closed", **others: Any) -> Point:
    """Of a result."""
    values: dict[str, Any] = {
        "samples": list(samples) or [images_per_s],
        "latency_ms": {"p50": 5.0, "p95": 8.0, "p99": 10.0},
        "p99_samples_ms": [10.0, 11.0, 9.0],
        "num_requests": 100,
        "num_answered": 99,
        **others,
    }
    return Point(loop=loop, load=load, request_batch=1, seconds=1, images_per_s=images_per_s, **values)


def result(*points: Point, cpu: str = "a", profile: str = "ramp", knees: tuple[Knee, ...] = ()) -> LoadResult:
    """Of these points."""
    return LoadResult(
        tool="locust", hardware={"cpu": cpu, "num_cores": 2}, date="", commit=None, command="",
        server_version="", settings={"profile": profile}, points=list(points), knees=list(knees),
        generator={"limited": False, "reasons": []},
    )  # fmt: skip


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Byte for byte the same file again; another key is refused."""
    points = [point(1, 100), point(2, 190), point(4, 300)]
    written = result(*points, knees=(find_knee(points),))
    written.write(tmp_path / RESULT)
    assert read_result(tmp_path) == written
    content = (tmp_path / RESULT).read_bytes()
    read_result(tmp_path).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == content
    (tmp_path / RESULT).write_text(content.decode().replace('"tool"', '"tol"'))
    with pytest.raises(UsageError, match="not a result"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("profile_*.json")) + sorted(RESULTS.glob("loadtest_*.json"))
)
def test_committed_results_keep_their_bytes(path: Path, tmp_path: Path) -> None:
    """The classes have every key of the files, in their order."""
    read_result(path).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_the_knee_is_where_throughput_stops_growing() -> None:
    """Three percent more throughput for twice the load is no growth."""
    knee = find_knee([point(1, 100), point(2, 190), point(4, 300), point(8, 309)])
    assert knee is not None
    assert (knee.load, knee.reached) == (4, True)


def test_throughput_that_still_grows_has_no_knee() -> None:
    """The end of what was tried is not one."""
    knee = find_knee([point(1, 100), point(2, 190), point(4, 380)])
    assert knee is not None
    assert not knee.reached


def test_every_profile_has_objectives() -> None:
    """In the file that is taken when none is named."""
    assert all(read_slo(DEFAULT_SLO, name) for name in PROFILES)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[steady", id="no_toml"),
        pytest.param("[stedy]\np99_ms = 1", id="unknown_profile"),
        pytest.param("[steady]\np98_ms = 1", id="unknown_objective"),
        pytest.param("[steady]\np99_ms = 'fast'", id="no_number"),
        pytest.param("[steady]\np99_ms = nan", id="nan"),
        pytest.param("[ramp]\np99_ms = 1", id="nothing_for_this_profile"),
        pytest.param("steady = 1", id="no_table"),
    ],
)
def test_a_malformed_slo_file_is_refused(text: str, tmp_path: Path) -> None:
    """With its name in the message."""
    path = tmp_path / "slo.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"slo\.toml"):
        read_slo(path, "steady")


def test_a_stricter_objective_is_missed() -> None:
    """The same measurement, two limits."""
    points = [point(100, 99, loop="open")]
    met = {"p99_ms": 10, "error_rate": 0.01, "images_per_s": 99, "offered_share": 0.99}
    assert all(one.met for one in judge(met, points))
    strict = {"p99_ms": 9.9, "error_rate": 0.009, "images_per_s": 99.1, "offered_share": 0.991}
    assert not any(one.met for one in judge(strict, points))


@pytest.mark.parametrize(
    ("profile", "number", "num_rejected", "met"),
    [("ramp", 2, 50, True), ("ramp", 1, 50, False), ("ramp", 2, 0, False), ("break", 2, 50, False)],
    ids=["refused_behind_the_knee", "refused_at_the_knee", "failed_behind_the_knee", "no_ramp"],
)
def test_a_ramp_may_be_refused_behind_its_knee(
    profile: str, number: int, num_rejected: int, met: bool
) -> None:
    """It goes on until there is too much; other failures, and earlier refusals, count."""
    points = [point(load, images, num_answered=100) for load, images in ((8, 50), (64, 100), (512, 102))]
    points[number] = replace(points[number], num_answered=50, num_rejected=num_rejected)
    knee = find_knee(points)
    assert knee is not None
    assert knee.load == 64
    objectives = {"error_rate": 0.001, "images_per_s": 101}
    judged = judge(objectives, judged_points(result(*points, profile=profile, knees=(knee,))))
    assert [one.met for one in judged] == [met, True], "the best stage counts, wherever it is"


def test_no_answer_at_all_meets_no_objective() -> None:
    """What was not measured is not good."""
    latency = dict.fromkeys(("p50", "p95", "p99"))
    nothing = point(100, 0, loop="open", num_requests=0, num_answered=0, latency_ms=latency)
    assert not any(one.met for one in judge({"p99_ms": 10, "error_rate": 0.1}, [nothing]))


def test_the_comparison_learns_its_tolerance_from_the_rounds() -> None:
    """Six percent less is within what a restless baseline differs by, and not within a calm one's."""
    current = result(point(8, 94, 94, 94, 94))
    (restless,) = compare(result(point(8, 100, 95, 100, 105)), current)
    (calm,) = compare(result(point(8, 100, 99.5, 100, 100.5)), current)
    assert (restless["ok"], calm["ok"]) == (True, False)


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        pytest.param(result(point(8, 100, 100)), "rounds", id="one_round"),
        pytest.param(result(point(9, 100, 1, 2, 3)), "in common", id="other_load"),
        pytest.param(result(point(8, 100, 1, 2, 3), cpu="b"), "measured on", id="other_machine"),
    ],
)
def test_a_baseline_that_says_nothing_is_refused(baseline: LoadResult, words: str) -> None:
    """Instead of passing."""
    with pytest.raises(UsageError, match=words):
        compare(baseline, result(point(8, 100)))


def test_a_busy_or_late_generator_is_the_limit() -> None:
    """One moment is not enough for it."""
    calm = [(float(moment), 0.3, 2.0) for moment in range(9)]
    assert limits_found([*calm, (9.0, 1.0, 500.0)], 0, 10) == []
    assert "core" in limits_found([(moment, 0.97, lag) for moment, _, lag in calm], 0, 10)[0]
    assert "lagged" in limits_found([(moment, share, 80.0) for moment, share, _ in calm], 0, 10)[0]


@pytest.mark.parametrize("loads", ["", "0", "8,", "-1", "8/m", "fast"])
def test_loads_that_are_none_are_refused(loads: str) -> None:
    """Before anything is started."""
    with pytest.raises(UsageError, match="loads"):
        parse_loads(loads, (1,))


def test_an_open_loop_needs_a_peak() -> None:
    """And says where to take it from."""
    with pytest.raises(UsageError, match="--peak"):
        named_profile("steady", stage_s=10)
    assert named_profile("steady", stage_s=10, peak=100).stages[0].load == pytest.approx(70)
