"""Does the scaling rule of deploy/kubernetes hold the objective? Load curves against a measured replica.

    python -m benchmarks.autoscale_sim --ramp runs/ramp/result.json --startup-s 45,300
    python -m benchmarks.autoscale_sim --capacity 1500

A replica is a queue that answers `capacity` images/s; what does not fit is refused, what is answered later
than the limit misses the objective. The rule is read from autoscale.yaml, and is KEDA's: the largest of what
its triggers want, asked every `pollingInterval`, within the policies of the autoscaler. The flow is even:
chance in the arrivals, which makes short queues below the capacity, is not in it.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from fruitstand.artefacts import read_json, write_json
from fruitstand.errors import UsageError
from fruitstand.machine.provenance import provenance
from fruitstand.stages import command_line

RULE = Path(__file__).parents[1] / "deploy" / "kubernetes" / "base" / "autoscale.yaml"
STEP_S = 1.0
LENGTH_S = 3600
LOAD_SHARE = 0.6
"""Of a replica's capacity: to what docs/scale.md says to set the trigger on load."""
OBJECTIVE = 0.99
"""Of the images, answered within the limit: the objective on latency in docs/runbook.md."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """The autoscaler's settings."""

    waiting_per_replica: float
    load_share: float
    """Of a replica's capacity at which another one is wanted; 0 looks at what waits only."""
    min_replicas: int
    max_replicas: int
    polling_s: float
    up_percent: float
    up_period_s: float
    down_pods: int
    down_period_s: float
    down_window_s: float


def read_knee(path: Path) -> float:
    """Images/s of a replica, by the result of `fruitstand loadtest --profile ramp`.

    Raises:
        UsageError: it has no knee, or the load had not reached it.
    """
    knees = read_json(path).get("knees") or [{"reached": False}]
    if not knees[0]["reached"]:
        raise UsageError(f"{path}: has no knee: more load would have given more images/s; ramp higher")
    return float(knees[0]["images_per_s"])


def read_rule(path: Path = RULE) -> Rule:
    """The rule that is deployed, its trigger on load set as it has to be for the replicas at hand."""
    spec = yaml.safe_load(path.read_text())["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    (up,), (down,) = behavior["scaleUp"]["policies"], behavior["scaleDown"]["policies"]
    pending = next(one for one in spec["triggers"] if one["name"] == "pending")
    return Rule(
        load_share=LOAD_SHARE,
        waiting_per_replica=float(pending["metadata"]["threshold"]),
        min_replicas=spec["minReplicaCount"],
        max_replicas=spec["maxReplicaCount"],
        polling_s=spec["pollingInterval"],
        up_percent=up["value"],
        up_period_s=up["periodSeconds"],
        down_pods=down["value"],
        down_period_s=down["periodSeconds"],
        down_window_s=behavior["scaleDown"]["stabilizationWindowSeconds"],
    )


def curves(capacity: float, rule: Rule) -> dict[str, Callable[[float], float]]:
    """Offered images/s over time, s; all start at what the fewest replicas carry."""
    base = 0.6 * capacity * rule.min_replicas
    return {
        "steady": lambda t: base,
        "day": lambda t: base * (1 + 2 * math.sin(math.pi * t / LENGTH_S) ** 2),
        "ramp_2x_in_10_min": lambda t: base * (1 + min(max(t - 600, 0) / 600, 1)),
        "step_3x": lambda t: base * (3 if 600 <= t < 2400 else 1),
    }


def simulate(
    offered: Callable[[float], float], *, capacity: float, max_queue: float, startup_s: float, limit_s: float,
    rule: Rule,
) -> dict[str, float]:  # fmt: skip
    """One load curve.

    Args:
        offered: images/s at a time, s.
        capacity: images/s of a replica.
        max_queue: images that may wait at a replica; more are refused.
        startup_s: from the decision to the first answer of a new replica.
        limit_s: an answer later than this misses the objective.
        rule: of the autoscaler.

    Returns:
        Shares of all images: within the limit, late, refused; the most replicas, and replica hours.
    """
    ready, starting = rule.min_replicas, []
    waiting = total = good = refused = replica_s = 0.0
    wanted_before: list[tuple[float, int]] = []
    last_up, last_down, most = -math.inf, -math.inf, ready
    for step in range(int(LENGTH_S / STEP_S)):
        now = step * STEP_S
        ready += sum(1 for at in starting if at <= now)
        starting = [at for at in starting if at > now]
        arriving = offered(now) * STEP_S
        # What waits keeps later images waiting: those that come now have it before them.
        space = ready * (capacity * STEP_S + max_queue) - waiting
        admitted = min(arriving, max(space, 0.0))
        good += admitted if waiting / (ready * capacity) <= limit_s else 0.0
        refused += arriving - admitted
        total += arriving
        waiting = max(0.0, waiting + admitted - ready * capacity * STEP_S)
        replicas = ready + len(starting)
        replica_s, most = replica_s + replicas * STEP_S, max(most, replicas)
        if now % rule.polling_s:
            continue
        served = min(arriving / STEP_S, ready * capacity)  # all that a counter of answers can show
        by_load = math.ceil(served / (rule.load_share * capacity) - 1e-9) if rule.load_share else 0
        wanted = max(math.ceil(waiting / rule.waiting_per_replica), by_load)
        wanted = min(max(wanted, rule.min_replicas), rule.max_replicas)
        wanted_before = [one for one in wanted_before if one[0] > now - rule.down_window_s] + [(now, wanted)]
        if wanted > replicas and now - last_up >= rule.up_period_s:
            allowed = math.floor(replicas * (1 + rule.up_percent / 100))
            starting += [now + startup_s] * (min(wanted, allowed) - replicas)
            last_up = now
        elif max(one for _, one in wanted_before) < replicas and now - last_down >= rule.down_period_s <= now:
            ready -= min(rule.down_pods, ready - rule.min_replicas)
            last_down = now
    return {
        "within_limit": good / total,
        "late": 1 - (good + refused) / total,
        "refused": refused / total,
        "most_replicas": most,
        "replica_hours": replica_s / 3600,
    }


def main(
    capacity: Annotated[float | None, typer.Option(help="Images/s of a replica.")] = None,
    ramp: Annotated[Path | None, typer.Option(help="Result of a ramp that has it as its knee.")] = None,
    max_queue: Annotated[float, typer.Option(help="Images that may wait at a replica.")] = 1024,
    startup_s: Annotated[str, typer.Option(help="Pod on a warm node, and with a new node.")] = "45,300",
    limit_s: Annotated[float, typer.Option(help="Of an answer.")] = 0.5,
    out: Annotated[Path | None, typer.Option(help="Result file.")] = None,
) -> None:
    """Print a row for each rule, load curve and start-up time."""
    if (capacity is None) == (ramp is None):
        raise typer.BadParameter("give one of --capacity and --ramp")
    capacity = read_knee(ramp) if ramp is not None else capacity
    deployed = read_rule()
    print(f"{capacity:g} images/s a replica: threshold of the trigger 'load' {LOAD_SHARE * capacity:.0f}\n")
    rows: list[dict[str, Any]] = []
    for start in map(float, startup_s.split(",")):
        for words, rule in {"waiting": replace(deployed, load_share=0.0), "and load": deployed}.items():
            for name, offered in curves(capacity, rule).items():
                row = simulate(
                    offered,
                    capacity=capacity,
                    max_queue=max_queue,
                    startup_s=start,
                    limit_s=limit_s,
                    rule=rule,
                )
                rows.append(
                    {
                        "rule": words,
                        "curve": name,
                        "startup_s": start,
                        **row,
                        "met": row["within_limit"] >= OBJECTIVE,
                    }
                )
    print("| rule | load | start-up s | within limit | late | refused | replicas | hours | objective |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['rule']} | {row['curve']} | {row['startup_s']:.0f} | {row['within_limit']:.4f} |"
            f" {row['late']:.4f} | {row['refused']:.4f} | {row['most_replicas']} |"
            f" {row['replica_hours']:.1f} | {'met' if row['met'] else 'MISSED'} |"
        )
    if out is not None:
        settings = {
            "capacity": capacity,
            "max_queue": max_queue,
            "limit_s": limit_s,
            "rule": asdict(deployed),
        }
        write_json(out, {**provenance(), "settings": settings, "rows": rows})


if __name__ == "__main__":
    command_line(main)
