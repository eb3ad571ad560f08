"""Where a scenario runs: what it may use, how much of everything, and what it left behind."""

import contextlib
import shutil
from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.nightly.chaos.load import Ledger
from tests.nightly.chaos.material import Material
from tests.nightly.chaos.stack import Stack


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """How much of everything."""

    rate: float
    """Calls/s of the load."""
    repeats: int
    """Of a fault."""
    steady_s: float
    """Before and after each fault."""
    malformed: int
    """Requests."""
    overload_s: float
    images: int
    """To be compared one by one."""
    swaps: int
    """Of the served version, there and back."""
    crashes: int
    """Of export and publish."""
    soak_s: float
    score_images: int


TIERS = {
    # To see that a scenario works; its numbers say nothing.
    "brief": Tier(
        rate=10, repeats=1, steady_s=3, malformed=2_000, overload_s=5, images=1_000, swaps=1, crashes=3,
        soak_s=15, score_images=150,
    ),
    "ci": Tier(
        rate=20, repeats=2, steady_s=4, malformed=4_000, overload_s=15, images=6_000, swaps=20, crashes=9,
        soak_s=60, score_images=400,
    ),
    "full": Tier(
        rate=100, repeats=20, steady_s=20, malformed=100_000, overload_s=60, images=50_000, swaps=20,
        crashes=100, soak_s=1_800, score_images=50_000,
    ),
}  # fmt: skip


UNCOUNTED = ("gateway",)
"""Of a stack whose callers' ledgers are not whole: counters that began again, or callers that keep none."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One assertion of a scenario: what is claimed, what was seen, what is allowed."""

    claim: str
    got: Any
    limit: str
    held: bool


def at_most(claim: str, got: float | None, limit: float) -> Claim:
    """A number is there and is no larger than its limit."""
    return Claim(claim, got, f"at most {limit:g}", got is not None and got <= limit)


def at_least(claim: str, got: float | None, limit: float) -> Claim:
    """A number is there and is no smaller than its limit."""
    return Claim(claim, got, f"at least {limit:g}", got is not None and got >= limit)


def none_of(claim: str, got: Sized) -> Claim:
    """What was found of something that must not be is empty."""
    return Claim(claim, got, "none", not len(got))


def equals(claim: str, got: object, wanted: object) -> Claim:
    """Two values are the same."""
    return Claim(claim, got, f"{wanted}", got == wanted)


def none_failed(claim: str, ledger: Ledger) -> Claim:
    """There were calls, and every one was answered well."""
    got = f"{ledger.failed} of {len(ledger.records)} failed"
    return Claim(claim, got, "0 failed, some calls", ledger.failed == 0 and bool(ledger.records))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one scenario."""

    claims: tuple[Claim, ...]
    numbers: dict[str, Any]


@dataclass
class Setting:
    """What a scenario gets."""

    tier: Tier
    folder: Path
    """Its own: logs, copies."""
    material: Material
    repository: Path
    """To be served; never to be written to."""
    left_behind: list[str] = field(default_factory=list)
    audits: list[dict[str, Any]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What no stack may do, whatever the scenario."""

    def copy(self, source: Path, name: str) -> Path:
        """A copy to be written to."""
        return shutil.copytree(source, self.folder / name)

    @contextlib.contextmanager
    def stack(
        self,
        repository: Path | None = None,
        *,
        name: str = "stack",
        hurt: tuple[str, ...] = (),
        **options: Any,
    ) -> Iterator[Stack]:
        """A running stack; at the end it is held against its callers' ledgers and its own logs.

        Args:
            repository: None: the setting's.
            name: of its folder of logs.
            hurt: which of its processes are killed or stopped, so that their counters are no longer whole:
                "replicas", "gateway"; "models" are loaded and unloaded, and asked behind the gateway.
            options: see `Stack`.
        """
        stack = Stack(repository or self.repository, self.folder / name, **options)
        try:
            yield stack
            audit = stack.audit()
            self.audits.append(audit)
            self.complaints += _complaints(audit, hurt)
        finally:
            left = stack.stop()
            self.left_behind += [f"{kind}: {one}" for kind, found in left.items() for one in found]
        log = stack.log()
        self.complaints += [f"a log holds {one[:4]}..." for one in stack.secrets if one in log]
        if "Traceback (most recent call last)" in log:
            self.complaints.append("a log holds a stack trace")


def _complaints(audit: dict[str, Any], hurt: tuple[str, ...]) -> list[str]:
    """Where the callers and the servers disagree."""
    found = []
    surplus = audit["gateway_answered"] - audit["callers_answered"]
    if "gateway" not in hurt and not 0 <= surplus <= audit["callers_gave_up"]:
        found.append(f"the gateway counts {surplus} answers more than its callers")
    own = audit["triton_answered"] - audit["gateway_answered"]
    # A try that the gateway gave up may have been answered all the same.
    abandoned = audit["callers_gave_up"] + audit["gateway_repeated"]
    if not hurt and not 0 <= own <= audit["canaries_at_most"] + abandoned:
        found.append(f"the servers count {own} answers more than the gateway")
    if not {"replicas", "gateway"} & set(hurt) and audit["restarts"]:
        found.append(f"{audit['restarts']} processes were restarted")
    return found
