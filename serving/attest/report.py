"""The report of an attestation: JSON for machines, Markdown to send on, lines for a terminal."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fruitstand.artefacts import write_bytes, write_json
from serving.attest.check import Check, Status
from serving.attest.load_checks import Speed

JSON_NAME, MARKDOWN_NAME = "attest.json", "attest.md"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was found, and about what."""

    url: str
    time: str
    """UTC, ISO 8601."""
    seconds: float
    quick: bool
    fruitstand_version: str
    server: dict[str, Any]
    """Name, version, extensions, whether Envoy answers, and the devices its configuration names."""
    model_version: int | None
    """The one that answers, where the repository has it."""
    speeds: tuple[Speed, ...]
    hardware: dict[str, object]
    """Of the machine that asked; the server's own where both are one."""
    checks: tuple[Check, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many checks ended in which way."""
        found = Counter(check.status for check in self.checks)
        return {str(status): found[status] for status in Status}

    def passed(self, *, strict: bool = False) -> bool:
        """Whether nothing failed; with `strict` nothing warned either."""
        bad = {Status.FAILED, Status.WARNING} if strict else {Status.FAILED}
        return not any(check.status in bad for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values."""
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
            "checks": [check.to_json() for check in self.checks],
            "speed": [speed.to_json() for speed in self.speeds],
            "hardware": self.hardware,
        }

    @property
    def summary(self) -> str:
        """One line."""
        counts = ", ".join(f"{number} {status}" for status, number in self.counts.items() if number)
        name = f"{self.server.get('name', 'server')} {self.server.get('version', '')}".strip()
        return f"{self.url} ({name}): {counts}, in {self.seconds:.0f} s"

    def lines(self) -> list[str]:
        """For a terminal: a line a check, what was expected and what to do below the bad ones."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{check.status:8}  {check.name:{width}}  {check.got}")
            if check.status in (Status.FAILED, Status.WARNING):
                indent = " " * (width + 12)
                lines += [f"{indent}expected: {check.expected}", f"{indent}do: {check.advice}"]
        return [*lines, self.summary]

    def markdown(self) -> str:
        """As a page."""
        rows = [
            "| " + " | ".join(map(_cell, (one.status, one.name, one.expected, one.got, one.advice))) + " |"
            for one in self.checks
        ]
        facts = {"server": self.server, "hardware of the machine that asked": self.hardware}
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
                *(f"- {what}: {_cell(str(value))}" for what, value in facts.items()),
                "",
            ]
        )

    def write(self, directory: Path) -> None:
        """Write both files into a folder, each whole or not at all."""
        write_json(directory / JSON_NAME, self.to_json())
        write_bytes(directory / MARKDOWN_NAME, self.markdown().encode())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
