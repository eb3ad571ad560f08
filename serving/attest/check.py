"""One check's result: a line of the report."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    WARNING = "warning"
    NOT_SEEN = "not seen"
    """What it needs is out of reach; the reason says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    expected: str
    """What the repository promises."""
    got: str
    """What the server did, in numbers."""
    advice: str = ""
    """What to do; empty where nothing is to be done."""

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)


def judged(name: str, *, ok: bool, expected: str, got: str, advice: str) -> Check:
    """A check that passes or fails; the advice is kept only where it fails."""
    status = Status.PASSED if ok else Status.FAILED
    return Check(name=name, status=status, expected=expected, got=got, advice="" if ok else advice)


def not_seen(name: str, expected: str, reason: str) -> Check:
    """A check that cannot be made here."""
    return Check(name=name, status=Status.NOT_SEEN, expected=expected, got=reason)
