"""Checks and their report: JSON for programs, Markdown to send on, lines for a terminal."""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fruitstand.artefacts import write_bytes, write_json

JSON_NAME, MARKDOWN_NAME = "attest.json", "attest.md"
SCHEMA = 1


class Status(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    WARNING = "warning"
    NOT_SEEN = "not seen"
    """The check could not run; its line says what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The result of one check, which is one line of the report."""

    name: str
    status: Status
    expected: str
    """What the repository promises."""
    got: str
    """What the server did, in numbers."""
    advice: str = ""
    """What to do about it; empty when the check passed."""


def judged(name: str, *, ok: bool, expected: str, got: str, advice: str) -> Check:
    """A check that passed or failed; the advice is kept only when it failed."""
    status = Status.PASSED if ok else Status.FAILED
    return Check(name=name, status=status, expected=expected, got=got, advice="" if ok else advice)


def not_seen(name: str, expected: str, reason: str) -> Check:
    """A check that could not run, and why."""
    return Check(name=name, status=Status.NOT_SEEN, expected=expected, got=reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """One closed-loop run of single-image requests."""

    in_flight: int
    images_per_s: float
    p50_ms: float
    """NaN when no request was answered; the same for `p99_ms`."""
    p99_ms: float
    failed: int

    def to_json(self) -> dict[str, float | None]:
        """Values rounded to two decimals; NaN becomes null."""
        values = asdict(self).items()
        return {key: round(value, 2) if math.isfinite(value) else None for key, value in values}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All checks of one attestation, with the facts about the server and the machine that asked."""

    url: str
    time: str
    """UTC, ISO 8601."""
    seconds: float
    quick: bool
    fruitstand_version: str
    server: dict[str, Any]
    """Name, version and extensions; whether Envoy answers; the devices that the model configurations name."""
    model_version: int | None
    """The version that answers; None when the repository does not have it."""
    speeds: tuple[Speed, ...]
    hardware: dict[str, object]
    """The machine that ran attest, which need not be the server's."""
    checks: tuple[Check, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of checks by status."""
        found = Counter(check.status for check in self.checks)
        return {str(status): found[status] for status in Status}

    def passed(self, *, strict: bool = False) -> bool:
        """Whether no check failed; `strict` counts a warning as a failure."""
        bad = {Status.FAILED, Status.WARNING} if strict else {Status.FAILED}
        return not any(check.status in bad for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The content of attest.json."""
        return {
            "schema": SCHEMA,
            "url": self.url,
            "time": self.time,
            "seconds": self.seconds,
            "quick": self.quick,
            "fruitstand_version": self.fruitstand_version,
            "server": self.server,
            "model_version": self.model_version,
            "counts": self.counts,
            "checks": [asdict(check) for check in self.checks],
            "speed": [speed.to_json() for speed in self.speeds],
            "hardware": self.hardware,
        }

    @property
    def summary(self) -> str:
        """One line: the server, the number of checks by status, the time taken."""
        counts = ", ".join(f"{number} {status}" for status, number in self.counts.items() if number)
        name = f"{self.server.get('name', 'server')} {self.server.get('version', '')}".strip()
        return f"{self.url} ({name}): {counts}, in {self.seconds:.0f} s"

    def lines(self) -> list[str]:
        """A line for each check; failures and warnings get two more: what was expected and what to do."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{check.status:8}  {check.name:{width}}  {check.got}")
            if check.status in (Status.FAILED, Status.WARNING):
                indent = " " * (width + 12)
                lines += [f"{indent}expected: {check.expected}", f"{indent}do: {check.advice}"]
        return [*lines, self.summary]

    def markdown(self) -> str:
        """The content of attest.md: a table of the checks, the server and the hardware."""
        rows = [
            "| " + " | ".join(map(_cell, (one.status, one.name, one.expected, one.got, one.advice))) + " |"
            for one in self.checks
        ]
        return "\n".join(
            [
                f"# Attestation of {self.url}",
                "",
                f"{self.summary}. {self.time}, fruitstand {self.fruitstand_version},"
                f" {'quick' if self.quick else 'full'}, model version {self.model_version}.",
                "",
                "| status | check | expected | got | what to do |",
                "|---|---|---|---|---|",
                *rows,
                "",
                f"- server: {_cell(str(self.server))}",
                f"- hardware of the machine that asked: {_cell(str(self.hardware))}",
                "",
            ]
        )

    def write(self, directory: Path) -> None:
        """Write attest.json and attest.md; each file appears whole or not at all."""
        write_json(directory / JSON_NAME, self.to_json())
        write_bytes(directory / MARKDOWN_NAME, self.markdown().encode())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
