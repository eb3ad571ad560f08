"""Triton's model statistics, as counters that can be added and subtracted."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
"""The stages of a request in one model, with Triton's names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCounters:
    """One model's counters, or their growth between two readings."""

    num_requests: int = 0
    """Answered requests."""
    num_failed: int = 0
    num_images: int = 0
    num_executions: int = 0
    request_ns: int = 0
    """Time from arrival to answer, summed over the requests."""
    queue_ns: int = 0
    """This and the next three are summed over the requests; each request counts its batch's whole time."""
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0
    busy_ns: int = 0
    """Compute time of all instances, summed over the executions."""

    def __add__(self, other: "ModelCounters") -> "ModelCounters":
        return ModelCounters(**{one: getattr(self, one) + getattr(other, one) for one in self.__slots__})

    def __sub__(self, before: "ModelCounters") -> "ModelCounters":
        return ModelCounters(**{one: getattr(self, one) - getattr(before, one) for one in self.__slots__})

    @property
    def mean_batch(self) -> float:
        """Mean number of images in one execution; 0 without executions."""
        return self.num_images / self.num_executions if self.num_executions else 0.0

    def stage_ms(self) -> dict[str, float]:
        """Mean time of a request in each of `STAGES`, ms."""
        count = max(1, self.num_requests)
        return {name: round(getattr(self, f"{name}_ns") / count / 1e6, 3) for name in STAGES}


def read_counters(model_stats: Iterable[Any]) -> dict[str, ModelCounters]:
    """Read the counters of each model from `ModelStatisticsResponse.model_stats`; versions are added up."""
    counters: dict[str, ModelCounters] = {}
    for one in model_stats:
        stats = one.inference_stats
        own = ModelCounters(
            num_requests=stats.success.count,
            num_failed=stats.fail.count,
            num_images=one.inference_count,
            num_executions=one.execution_count,
            request_ns=stats.success.ns,
            **{f"{stage}_ns": getattr(stats, stage).ns for stage in STAGES},
            busy_ns=sum(getattr(batch, stage).ns for batch in one.batch_stats for stage in STAGES[1:]),
        )
        counters[one.name] = counters.get(one.name, ModelCounters()) + own
    return counters
