"""`fruitstand tune`: find the settings with the most images/s on this machine within a p99 budget.

Optuna proposes settings for our own C++ backend. Each proposal is written to a
copy of the repository, served by `fruitstand serve` and measured with perf_analyzer. The study is saved in
the output folder, so an interrupted search continues. On a noisy machine the best trial may be luck. So at
the end the best and the current settings are measured again in turns, and the best ones are chosen only if
they win every round.
"""

import logging
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from fruitstand.artefacts import write_json
from fruitstand.contract import CPU_CONFIG
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.machine.provenance import provenance
from fruitstand.machine.threads import thread_budget
from fruitstand.repository.model_names import repository_names
from fruitstand.repository.tuning import TUNING_NAME, Tuning, read_tuning
from fruitstand.stages import served
from loadtests.sweep import profile
from serving.triton.backend_directory import HOST, choose_backends

log = logging.getLogger("fruitstand.tune")

RESULT_NAME = "tune.json"
STUDY_NAME = "study.log"
PART_IMAGES = (4, 8, 16, 32)
WAITS_US = (0, 1000, 2000, 4000, 8000)
MAX_INSTANCES = 2
FINAL_ROUNDS = 3
MAX_FAILURES = 5
"""Failed trials in a row that end the search; single proposals may fail to start."""
QUEUE_S = 0.5
"""Length of the server's queue, in seconds of work at the measured rate; longer queues exceed deadlines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """The latency budget and the load of a search."""

    p99_ms: float
    """p99 latency budget, measured by the client."""
    in_flight: int = 64
    request_batch: int = 1
    trials: int = 24
    seconds: float = 6.0
    """Length of each measurement."""

    def __post_init__(self) -> None:
        if self.p99_ms <= 0 or self.in_flight < 1 or self.trials < 1:
            raise UsageError(
                f"p99-ms, in-flight, trials: got {self.p99_ms:g}, {self.in_flight}, {self.trials},"
                " allowed above 0"
            )

    @property
    def name(self) -> str:
        """Name of the study; another load or budget starts another one."""
        return f"p99-{self.p99_ms:g}-ms-{self.in_flight}-in-flight-batch-{self.request_batch}"


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement."""

    images_per_s: float
    p99_ms: float


def tune(repository: Path, images: Path, *, out: Path, search: Search) -> dict[str, Any]:
    """Search, measure the winner again, and write `tuning.json` and `tune.json`.

    Returns:
        The content of `tune.json`.

    Raises:
        UsageError: no repository, no images, no C++ backend, or perf_analyzer cannot be installed.
        FruitstandError: the current settings, or `MAX_FAILURES` proposals in a row, could not be measured.
    """
    out.mkdir(parents=True, exist_ok=True)
    bench = _Bench(repository, images, out, search)
    in_use = read_tuning(repository)
    if choose_backends([repository], CPU_CONFIG).kind != HOST:
        raise UsageError("tune needs the C++ backend; 'fruitstand doctor' says what it lacks here")
    space = _Space(in_use)
    study = _study(out, search, space)
    failures = 0
    while (left := search.trials - len(_finished(study))) > 0:
        log.info("%d of %d trials to go", left, search.trials)
        study.optimize(
            lambda trial: _objective(trial, bench, search, space), n_trials=1, catch=FruitstandError
        )
        failures = failures + 1 if study.trials[-1].state == TrialState.FAIL else 0
        if failures and not _finished(study):
            raise FruitstandError(f"the current settings cannot be measured; see {out / 'server.log'}")
        if failures == MAX_FAILURES:
            raise FruitstandError(
                f"{failures} settings in a row could not be measured; see {out / 'server.log'}"
            )
    found = _finished(study)
    within = [one for one in found if one.user_attrs["p99_ms"] <= search.p99_ms]
    best = max(within, key=lambda one: one.value, default=None)
    rounds = [] if best is None else _play_off(bench, in_use, space.tuning(best.params))
    wins = bool(rounds) and all(
        mine.images_per_s > other.images_per_s and mine.p99_ms <= search.p99_ms for other, mine in rounds
    )
    chosen = in_use
    if best is not None and wins:
        rate = statistics.median(mine.images_per_s for _, mine in rounds)
        size = max(64, round(QUEUE_S * rate / search.request_batch))
        chosen = replace(space.tuning(best.params), max_queue_size=size)
    result = _result(search, in_use, chosen, found, rounds)
    write_json(out / TUNING_NAME, chosen.to_dict())
    write_json(out / RESULT_NAME, result)
    shutil.rmtree(bench.copy)
    return result


class _Bench:
    """Measures settings on a copy of the repository."""

    def __init__(self, repository: Path, images: Path, out: Path, search: Search) -> None:
        self._images, self._out, self._search = images, out, search
        self.copy = out / "repository"
        shutil.rmtree(self.copy, ignore_errors=True)
        if not repository.is_dir():
            raise UsageError(f"{repository}: no model repository; give one with --repository")
        shutil.copytree(repository, self.copy)

    def measure(self, tuning: Tuning) -> Measured:
        """Configure the copy, serve it, and measure it."""
        settings = self._out / "trial.json"
        write_json(settings, tuning.to_dict())
        command = [sys.executable, "-m", "fruitstand", "models", "configure", settings]
        done = subprocess.run(
            [*map(str, command), "--repository", str(self.copy)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise FruitstandError(done.stderr.strip() or "models configure failed")
        with served(self.copy, log=self._out / "server.log") as url:
            (point,) = profile(
                url=url,
                model_name=repository_names(self.copy).classifier,
                images=self._images,
                out=self._out / "load",
                loads=str(self._search.in_flight),
                request_batches=(self._search.request_batch,),
                rounds=1,
                seconds=self._search.seconds,
            ).points
        return Measured(point.images_per_s, point.latency_ms["p99"] or 0.0)


@dataclass(frozen=True, slots=True)
class _Space:
    """The search space: the settings that our backend reads. All others keep their current values."""

    in_use: Tuning

    def propose(self, trial: Trial) -> dict[str, int]:
        """Propose the settings of one trial, with explicit thread counts."""
        budget = thread_budget()
        workers = trial.suggest_int("infer_workers", 1, budget)
        return {
            "decode_instances": trial.suggest_int("decode_instances", 1, MAX_INSTANCES),
            "decode_threads": trial.suggest_int("decode_threads", 1, budget),
            "infer_workers": workers,
            "infer_threads_per_worker": trial.suggest_int(
                "infer_threads_per_worker", 1, max(1, budget // workers)
            ),
            "infer_part_images": trial.suggest_categorical("infer_part_images", PART_IMAGES),
            "infer_wait_us": trial.suggest_categorical("infer_wait_us", WAITS_US),
        }

    def tuning(self, proposed: dict[str, int]) -> Tuning:
        """Convert a trial to settings; a count equal to the thread budget becomes "all threads"."""
        budget, values = thread_budget(), dict(proposed)
        if values["decode_threads"] == budget:
            values["decode_threads"] = -1
        if values["infer_workers"] == budget // values["infer_threads_per_worker"]:
            values["infer_workers"] = 0
        return replace(self.in_use, **values)

    def of_use(self) -> dict[str, int]:
        """The current settings as a trial, with explicit thread counts."""
        budget, values = thread_budget(), self.in_use.to_dict()
        values["decode_threads"] = budget if values["decode_threads"] == -1 else values["decode_threads"]
        workers = max(1, budget // values["infer_threads_per_worker"])
        values["infer_workers"] = values["infer_workers"] or workers
        return values


def _study(out: Path, search: Search, space: _Space) -> optuna.Study:
    """Open the study; a new one begins with the current settings."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings show tracebacks of failed trials
    storage = JournalStorage(JournalFileBackend(str(out / STUDY_NAME)))
    sampler = optuna.samplers.TPESampler(n_startup_trials=8)
    study = optuna.create_study(
        study_name=search.name,
        storage=storage,
        sampler=sampler,
        direction="maximize",
        load_if_exists=True,
    )
    if not study.trials:
        study.enqueue_trial(space.of_use())
    return study


def _objective(trial: Trial, bench: _Bench, search: Search, space: _Space) -> float:
    tuning = space.tuning(space.propose(trial))
    try:
        measured = bench.measure(tuning)
    except FruitstandError as exc:
        log.warning("%s: not measured: %s", trial.params, exc)
        raise
    trial.set_user_attr("p99_ms", measured.p99_ms)
    trial.set_constraint("p99_ms", measured.p99_ms - search.p99_ms)
    log.info("%s: %.1f images/s, p99 %.1f ms", trial.params, measured.images_per_s, measured.p99_ms)
    return measured.images_per_s


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def _play_off(bench: _Bench, in_use: Tuning, best: Tuning) -> list[tuple[Measured, Measured]]:
    """Measure the current and the best settings in turns; returns (current, best) of each round."""
    if best == in_use:
        return []
    return [(bench.measure(in_use), bench.measure(best)) for _ in range(FINAL_ROUNDS)]


def _result(
    search: Search,
    in_use: Tuning,
    chosen: Tuning,
    found: list[FrozenTrial],
    rounds: list[tuple[Measured, Measured]],
) -> dict[str, Any]:
    trials = [
        {"settings": one.params, "images_per_s": one.value, "p99_ms": one.user_attrs["p99_ms"]}
        for one in found
    ]
    ratios = [mine.images_per_s / other.images_per_s for other, mine in rounds]
    return {
        **provenance(),
        "settings": {
            "p99_ms": search.p99_ms,
            "in_flight": search.in_flight,
            "request_batch": search.request_batch,
            "trials": search.trials,
            "seconds": search.seconds,
            "thread_budget": thread_budget(),
        },
        "samples": {
            "trials": trials,
            "play_off": [
                {
                    "in_use_images_per_s": other.images_per_s,
                    "in_use_p99_ms": other.p99_ms,
                    "best_images_per_s": mine.images_per_s,
                    "best_p99_ms": mine.p99_ms,
                }
                for other, mine in rounds
            ],
        },
        "summary": {
            "changed": chosen != in_use,
            "tuning": chosen.to_dict(),
            "best_over_in_use": round(statistics.median(ratios), 3) if ratios else None,
            "best_over_in_use_spread": [round(min(ratios), 3), round(max(ratios), 3)] if ratios else None,
            "frontier": frontier(trials),
        },
    }


def frontier(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The Pareto frontier: trials that no other one beats in both images/s and p99; the lowest p99 first."""
    ordered = sorted(trials, key=lambda one: (one["p99_ms"], -one["images_per_s"]))
    best, kept = 0.0, []
    for one in ordered:
        if one["images_per_s"] > best:
            best = one["images_per_s"]
            kept.append(one)
    return kept
