import math
import os
from pathlib import Path

import pytest

from fruitstand.errors import UsageError
from fruitstand.machine.threads import THREADS_VARIABLE, cgroup_cpus, thread_budget, thread_environment


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"cpu.max": "150000 100000\n"}, 1.5, id="version_2"),
        pytest.param({"cpu.max": "max 100000\n"}, math.inf, id="version_2_without_quota"),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0, id="version_1"
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            math.inf,
            id="version_1_without_quota",
        ),
        pytest.param({}, math.inf, id="no_cgroup"),
    ],
)
def test_the_cgroups_quota_is_read(files: dict[str, str], expected: float, tmp_path: Path) -> None:
    """Of both versions."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cgroup_cpus(tmp_path) == expected


def test_the_budget_is_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Affinity bounds it, the variable overrides it, and a server's children read it from there."""
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    assert 1 <= thread_budget() <= len(os.sched_getaffinity(0))
    monkeypatch.setenv(THREADS_VARIABLE, "7")
    assert thread_budget() == 7
    assert thread_environment(7)["OMP_NUM_THREADS"] == "7"
    monkeypatch.setenv(THREADS_VARIABLE, "none")
    with pytest.raises(UsageError, match=THREADS_VARIABLE):
        thread_budget()
