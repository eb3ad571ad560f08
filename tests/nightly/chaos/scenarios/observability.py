"""G. Observability: the right alert in time and no other; drift is found and clean traffic is not."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.nightly.chaos.commands import must
from tests.nightly.chaos.drift_injection import CHANGES, write_windows
from tests.nightly.chaos.drift_power import drift_power
from tests.nightly.chaos.load import Load
from tests.nightly.chaos.monitor import MONITORING, prometheus
from tests.nightly.chaos.pictures import picture
from tests.nightly.chaos.setting import UNCOUNTED, Claim, Outcome, Setting, at_least, at_most, none_of

FIRES_S, RESOLVES_S = 120.0, 300.0
ALERT = "MostReplicasDown"
IMAGES_PER_CLASS = 600
MAX_FALSE_ALARMS, MIN_POWER = 0.05, 0.95
WINDOW_SIZE = 500


def alerts(setting: Setting) -> Outcome:
    """29: promtool's cases pass; in a real Prometheus the right alert fires in time, and resolves."""
    promtool = shutil.which("promtool")
    cases = {}
    for path in sorted((MONITORING / "tests").glob("*.yml")) if promtool else []:
        done = subprocess.run(
            [str(promtool), "test", "rules", str(path)], capture_output=True, text=True, check=False
        )
        cases[path.name] = done.returncode == 0
    with (
        setting.stack(hurt=("replicas",)) as stack,
        prometheus(stack, setting.folder) as monitor,
        Load(stack, [[picture()]], rate=setting.tier.rate) as load,
    ):
        time.sleep(max(30.0, setting.tier.steady_s))
        false_alarms = monitor.firing()
        os.kill(stack.pid, signal.SIGSTOP)  # nobody starts them again meanwhile
        for number in range(len(stack.replicas) - 1):
            stack.signal(number, signal.SIGKILL)
        fired_s = monitor.wait(ALERT, fires=True, within_s=FIRES_S)
        beside = monitor.firing()
        os.kill(stack.pid, signal.SIGCONT)
        stack.wait_healthy(len(stack.replicas), RESOLVES_S)
        resolved_s = monitor.wait(ALERT, fires=False, within_s=RESOLVES_S)
    numbers = {
        **load.ledger.numbers(), "promtool": cases, "false_alarms": sorted(false_alarms),
        "fired_after_s": fired_s, "beside_it": sorted(beside), "resolved_after_s": resolved_s,
    }  # fmt: skip
    claims = (
        Claim("promtool's cases pass", cases, "all, and some", bool(cases) and all(cases.values())),
        none_of("alerts of a sound stack", sorted(false_alarms)),
        at_most(f"{ALERT} fires after, s", fired_s, FIRES_S),
        at_most(f"{ALERT} resolves after, s", resolved_s, RESOLVES_S),
    )
    return Outcome(claims, numbers)


def drift(setting: Setting) -> Outcome:
    """30: changed images are found in windows of 500, clean windows are not taken for them."""
    folder = setting.folder / "painted"
    must("data", "prepare", "--source", "generated", "--num-classes", 4, "--images-per-class",
         IMAGES_PER_CLASS, "--seed", 5, "--out", folder / "known")  # fmt: skip
    must("data", "prepare", "--source", "generated", "--num-classes", 8, "--images-per-class", 200,
         "--seed", 6, "--out", folder / "more")  # fmt: skip
    unseen = folder / "unseen"
    unseen.mkdir()
    for split in (folder / "more" / "images").iterdir():
        for number, label in enumerate(sorted(split.iterdir())):
            if number >= 4:
                label.rename(unseen / f"{split.name}-{label.name}")
    result = _power(setting, sorted((folder / "known" / "images").rglob("*.*")), sorted(unseen.rglob("*.*")))
    found = {kind: one["share_found"] for kind, one in result["kinds"].items()}
    missed = [kind for kind, share in found.items() if kind != "clean" and share < MIN_POWER]
    numbers = {"share_found": found, "missed": missed, "window_size": result["window_size"]}
    claims = (
        *(at_least(f"windows with {kind} that are found", share, MIN_POWER)
          for kind, share in found.items() if kind != "clean"),
        at_most("clean windows taken for drift", found["clean"], MAX_FALSE_ALARMS),
    )  # fmt: skip
    return Outcome(claims, numbers)


def _power(setting: Setting, known: list[Path], unseen: list[Path]) -> dict[str, Any]:
    """Served as they are and changed; every other known image is the reference."""
    windows, repository = setting.folder / "windows", setting.material.repository
    windows.mkdir()
    kinds = write_windows(windows, reference=known[::2], clean=known[1::2], unseen=unseen)
    with setting.stack(repository, name="drift", hurt=UNCOUNTED) as stack:
        for kind in kinds:
            must("drift", "record", windows / kind, "--out", windows / f"{kind}.npz", "--url", stack.url,
                 "--repository", repository)  # fmt: skip
    reference, clean, unseen_file = (windows / f"{kind}.npz" for kind in kinds[:3])
    changed = [windows / f"{kind}.npz" for kind in CHANGES]
    return drift_power(reference, clean, changed, unseen_file, window_size=WINDOW_SIZE)
