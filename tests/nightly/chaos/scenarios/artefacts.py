"""E. Artefacts, training, batch: what is interrupted leaves the old or the new, and goes on where it was."""

import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fruitstand.artefacts import sha256_file
from fruitstand.contract import FRUIT_RESNET
from fruitstand.errors import ServerError
from fruitstand.machine.memory import process_tree
from fruitstand.manifest import read_prepared
from fruitstand.repository.versions import published_versions, serving_state
from fruitstand.runs import WEIGHTS_NAME
from fruitstand_client import Client
from tests.crash import Crasher
from tests.nightly.chaos.commands import fruitstand, must
from tests.nightly.chaos.load import Load
from tests.nightly.chaos.material import ANY_SPEED
from tests.nightly.chaos.pictures import many_pictures
from tests.nightly.chaos.setting import Claim, Outcome, Setting, at_most, equals, none_failed, none_of
from tests.nightly.chaos.wholeness import litter, small_disk, torn, tree_sha256

DISK_MIB = 400
WAYS = ("kill", "EIO", "ENOSPC")
KILLS = 3
WALL_CLOCK = ("seconds", "images_per_s", "data_wait_pct")
MAX_GROWTH_MIB = 10.0
TRAINING_TIMEOUT_S = 600


def export_killed(setting: Setting) -> Outcome:
    """20: export and publish are killed, or their disk fails or is full, at random points."""
    scratch = setting.folder / "scratch"
    scratch.mkdir(parents=True)
    with small_disk(setting.folder / "disk", DISK_MIB) as no_disk, Crasher(scratch) as crasher:
        disk = setting.folder / "disk"
        repository = shutil.copytree(setting.material.repository, disk / "repository")
        run = shutil.copytree(setting.material.first, disk / "run")
        job = _Job(crasher, repository, run, random.Random(20), is_small=not no_disk)
        for number in range(setting.tier.crashes):
            job.interrupt(WAYS[number % len(WAYS)], ("export", "publish")[number % 2])
        cleaned = job.export()["status"] == 0 and job.publish()["status"] == 0
        left = [str(path.relative_to(disk)) for path in litter(repository, run)]
        left += [path.name for path in scratch.iterdir()]
        kept = shutil.copytree(repository, setting.folder / "kept")
    # A server compares the golden answers of what it serves before it is ready.
    with setting.stack(kept, replicas=1) as stack, Client(stack.url) as client:
        serves = client.classify([many_pictures(1)[0]])[0].failure is None
        stack.answered += 1
    numbers = {
        "interrupted": len(job.ends), "ends": dict(Counter(job.ends)), "faults": job.faults,
        "disk": no_disk or f"a tmpfs of {DISK_MIB} MiB", "next_command_succeeds": cleaned, "litter": left,
        "old_version_serves": serves,
    }  # fmt: skip
    claims = (
        none_of("an interruption leaves the old or the new", job.faults),
        Claim("the next command succeeds", cleaned, "True", cleaned),
        none_of("no temporaries are left", left),
        Claim("the old version serves", serves, "True", serves),
        none_of("a disk could be filled", no_disk),
    )
    return Outcome(claims, numbers)


class _Job:
    """Export and publish on a small disk, interrupted."""

    def __init__(
        self, crasher: Crasher, repository: Path, run: Path, dice: random.Random, *, is_small: bool
    ) -> None:
        self.ends: list[str] = []
        self.faults: list[str] = []
        self._crasher, self._repository, self._run, self._dice = crasher, repository, run, dice
        self._is_small = is_small
        self._whole = {action: getattr(self, action)() for action in ("export", "publish")}
        for action, result in self._whole.items():
            if result["status"] != 0:
                raise ServerError(f"{action} fails undisturbed: {result['stderr'].strip()[-200:]}")
        self._drop_new()

    def export(self, **how: Any) -> dict[str, Any]:
        """Of the run, into the repository."""
        words = ("--run", self._run, "--repository", self._repository, "--variants", "fp32,int8")
        return self._crasher.run("export", *words, "--max-slowdown", ANY_SPEED, **how)

    def publish(self, **how: Any) -> dict[str, Any]:
        """The candidate that the last export left."""
        words = (self._run / "export", "--repository", self._repository)
        return self._crasher.run("models", "publish", *words, "--max-slowdown", ANY_SPEED, **how)

    def interrupt(self, way: str, action: str) -> None:
        """Once, and look at what is left."""
        before, state = published_versions(self._repository), serving_state(self._repository)
        old = {number: tree_sha256(self._version(number)) for number in before}
        whole = self._whole[action]
        with _Filler(self._run.parent, self._dice, way == "ENOSPC" and self._is_small):
            how: dict[str, Any] = {}
            if way == "kill" and self._dice.random() < 0.5:
                how = {"limit_s": self._dice.uniform(0.0, whole["seconds"])}
            elif way != "ENOSPC":
                how = {"at": self._dice.randint(1, whole["changes"]), "error": "EIO" if way == "EIO" else ""}
            result = getattr(self, action)(**how)
        self.ends.append(f"{action}, {way}: {result['status']}")
        self.faults += [f"{self.ends[-1]}: {one}" for one in torn(self._repository)]
        if {number: tree_sha256(self._version(number)) for number in before} != old:
            self.faults.append(f"{self.ends[-1]}: an old version changed")
        if serving_state(self._repository) != state:
            self.faults.append(f"{self.ends[-1]}: another version is served")
        if "Traceback" in result["stderr"]:
            self.faults.append(f"{self.ends[-1]}: {result['stderr'].strip().splitlines()[-1]}")
        if action == "export" and self.export()["status"] != 0:
            self.faults.append(f"{self.ends[-1]}: the next export failed")
        self._drop_new()

    def _drop_new(self) -> None:
        """Room for the next: only the two first versions stay."""
        for number in published_versions(self._repository)[2:]:
            shutil.rmtree(self._version(number))

    def _version(self, number: int) -> Path:
        return self._repository / FRUIT_RESNET / str(number)


class _Filler:
    """A file that leaves a little room on a disk."""

    def __init__(self, disk: Path, dice: random.Random, wanted: bool) -> None:
        self._path, self._dice, self._wanted = disk / "filler", dice, wanted

    def __enter__(self) -> None:
        if self._wanted:
            free = shutil.disk_usage(self._path.parent).free
            with self._path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - self._dice.randrange(4096, 24 << 20))

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


def training_killed(setting: Setting) -> Outcome:
    """21: training is killed at random steps and resumed; the weights are those of an undisturbed run."""
    dice, log = random.Random(21), setting.folder / "train.log"
    words = ("train", "--model", "resnet10t", "--epochs", 3, "--set", "batch_size=8", "--set",
             "checkpoint_seconds=0", "--data", setting.material.data, "--out")  # fmt: skip
    whole, cut, ends = setting.folder / "whole", setting.folder / "cut", []
    must(*words, whole)
    for number in range(KILLS):
        command = fruitstand("train", "--resume", "--out", cut) if number else fruitstand(*words, cut)
        ends.append(_killed_after(command, cut / "last.ckpt", dice.randint(1, 5), log))
    must("train", "--resume", "--out", cut)
    same = sha256_file(cut / WEIGHTS_NAME) == sha256_file(whole / WEIGHTS_NAME)
    metrics = [_without_times(path / "metrics.csv") for path in (cut, whole)]
    numbers = {"ends": ends, "weights_identical": same, "metrics_identical": metrics[0] == metrics[1]}
    claims = (
        Claim("the weights are those of an undisturbed run", same, "True", same),
        equals("the metrics are those of an undisturbed run", metrics[0], metrics[1]),
        equals("every training was killed", set(ends), {-9}),
    )
    return Outcome(claims, numbers)


def _without_times(path: Path) -> list[dict[str, str]]:
    """A table of metrics without what only a clock decides."""
    with path.open() as file:
        return [
            {key: value for key, value in row.items() if key not in WALL_CLOCK}
            for row in csv.DictReader(file)
        ]


def _killed_after(command: list[str], file: Path, changes: int, log: Path) -> int:
    """Start a command and kill it once a file has changed so often; its exit status."""
    seen = {file.stat().st_mtime_ns if file.exists() else 0}
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    deadline = time.monotonic() + TRAINING_TIMEOUT_S
    while len(seen) <= changes and process.poll() is None and time.monotonic() < deadline:
        if file.exists():
            seen.add(file.stat().st_mtime_ns)
        time.sleep(0.002)
    return _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> int:
    """With everything below it; its exit status."""
    for pid in process_tree(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return process.wait()


def made_twice(setting: Setting) -> Outcome:
    """22: the same commands twice from nothing give the same data, weights and ONNX files."""
    made = []
    for name in ("one", "two"):
        folder = setting.folder / name
        must("data", "prepare", "--source", "generated", "--num-classes", 4, "--images-per-class", 40,
             "--out", folder / "data")  # fmt: skip
        must("train", "--model", "resnet10t", "--epochs", 1, "--set", "batch_size=8", "--data",
             folder / "data", "--out", folder / "run")  # fmt: skip
        must("export", "--run", folder / "run", "--repository", folder / "repository", "--variants", "fp32",
             "--max-slowdown", ANY_SPEED)  # fmt: skip
        made.append({
            "data": read_prepared(folder / "data").manifest_sha256,
            "weights": sha256_file(folder / "run" / WEIGHTS_NAME),
            "metrics": _without_times(folder / "run" / "metrics.csv"),
            "onnx": sha256_file(folder / "repository" / FRUIT_RESNET / "1" / "model.onnx"),
        })  # fmt: skip
    same = {key: made[0][key] == made[1][key] for key in made[0]}
    claims = tuple(equals(f"{key} comes out the same", made[0][key], made[1][key]) for key in made[0])
    return Outcome(claims, {"identical": same, "onnx_sha256": made[0]["onnx"]})


def scoring_killed(setting: Setting) -> Outcome:
    """23: offline scoring is killed, workers and all, and called again: every image once."""
    import pyarrow.parquet as pq

    source, out, number = setting.folder / "images", setting.folder / "scores", setting.tier.score_images
    source.mkdir(parents=True)
    pictures = [*many_pictures(min(number, 100)), b"this is no image"]
    for position in range(number):
        (source / f"{position:06}.jpg").write_bytes(pictures[position % len(pictures)])
    words = ("score", source, "--out", out, "--repository", setting.material.repository, "--workers", 2,
             "--partition-size", max(8, number // 50))  # fmt: skip
    ends, dice = [], random.Random(23)
    for _ in range(KILLS - 1):
        with (setting.folder / "score.log").open("ab") as log:
            process = subprocess.Popen(fruitstand(*words), stdout=log, stderr=log)
        time.sleep(dice.uniform(12, 20))
        ends.append(_kill(process))
    must(*words)
    rows = {
        table: [row for path in (out / table).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        for table in ("predictions", "errors")
    }
    seen = Counter(Path(row["path"]).name for table in rows.values() for row in table)
    with setting.stack(setting.material.repository, replicas=1) as stack, Client(stack.url) as client:
        online = {one: client.classify([content])[0] for one, content in enumerate(pictures[:-1])}
        stack.answered += len(online)
    differing = [
        row["path"] for row in rows["predictions"]
        if row["label"] != online[int(Path(row["path"]).stem) % len(pictures)].label
    ]  # fmt: skip
    bad = sum(position % len(pictures) == len(pictures) - 1 for position in range(number))
    numbers = {
        "images": number, "ends_of_killed": ends, "lost": number - len(seen),
        "twice": sum(count > 1 for count in seen.values()), "in_error_table": len(rows["errors"]),
        "differing_from_online": len(differing),
    }  # fmt: skip
    claims = (
        equals("images that were lost", numbers["lost"], 0),
        equals("images that were scored twice", numbers["twice"], 0),
        equals("bad images in the error table", len(rows["errors"]), bad),
        none_of("answers differ from the server's", differing),
    )
    return Outcome(claims, numbers)


def soak(setting: Setting) -> Outcome:
    """24: a long steady load; memory, files and threads stay, and answers are as fast as at first."""
    duration_s = setting.tier.soak_s
    pictures, rate = [[one] for one in many_pictures(32)], setting.tier.rate
    with setting.stack() as stack, Load(stack, pictures, rate=rate) as load:
        time.sleep(duration_s / 3)
        before, began = _held(stack.pids()), time.monotonic()
        memory = [stack.rss_mib()]
        while time.monotonic() < began + 2 * duration_s / 3:
            time.sleep(duration_s / 30)
            memory.append(stack.rss_mib())
        after, ended = _held(stack.pids()), time.monotonic()
    first, last = (
        load.ledger.quantile_ms(0.99, after=began + at, before=began + at + (ended - began) / 3)
        for at in (0, 2 * (ended - began) / 3)
    )
    numbers = {
        **load.ledger.numbers(), "seconds": round(duration_s),
        "rss_growth_mib": round(memory[-1] - memory[0], 1),
        "files_and_threads_before": before, "files_and_threads_after": after, "first_p99_ms": first,
        "last_p99_ms": last,
    }  # fmt: skip
    allowed = 2 * len(stack.pids() or [0]) + 2
    claims = (
        none_failed("no call fails", load.ledger),
        *(at_most(f"{key} more or fewer", abs(after[key] - before[key]), allowed) for key in before),
        at_most("memory grows, MiB", memory[-1] - memory[0], MAX_GROWTH_MIB),
        at_most("p99 of the last third, ms", last or 0, 1.1 * (first or 0)),
    )
    return Outcome(claims, numbers)


def _held(pids: list[int]) -> dict[str, int]:
    """Open files and threads of all processes."""
    found = Counter[str]()
    for pid in pids:
        for kind, folder in (("files", "fd"), ("threads", "task")):
            try:
                found[kind] += len(os.listdir(f"/proc/{pid}/{folder}"))
            except OSError:
                continue
    return dict(found)
