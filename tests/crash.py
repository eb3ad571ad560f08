"""The verbs that change a repository, to be killed on the way; see `tests.nightly.chaos.crash`."""

from pathlib import Path
from typing import Any

from fruitstand.repository.versions import published_versions, serving_state
from tests.nightly.chaos import crash
from tests.nightly.chaos.material import ANY_SPEED
from tests.nightly.chaos.wholeness import litter, torn

__all__ = ["Crasher", "assert_whole", "litter"]


class Crasher(crash.Crasher):
    """Runs the verbs by name."""

    def do(
        self,
        action: str,
        repository: Path,
        run: Path | None = None,
        *,
        limit_s: float = 0,
        kill_at: int = 0,
        url: str | None = None,
    ) -> dict[str, Any]:
        """Export, publish, promote, rollback or prune, perhaps killed on the way; how it ended."""
        return self.run(
            *_words(action, repository, run),
            *(["--url", url] if url else []),
            "--repository",
            repository,
            limit_s=limit_s,
            at=kill_at,
        )


def _words(action: str, repository: Path, run: Path | None) -> list[object]:
    if action == "export":
        return ["export", "--run", run, "--variants", "fp32,int8", "--max-slowdown", ANY_SPEED]
    if action == "publish":
        assert run is not None
        return ["models", "publish", run / "export", "--max-slowdown", ANY_SPEED]
    if action == "promote":
        state = serving_state(repository)
        assert state is not None
        other = next(number for number in published_versions(repository) if number != state.version)
        return ["models", "promote", other]
    return ["models", action, *(["--keep", 0] if action == "prune" else [])]


def assert_whole(repository: Path) -> None:
    """Every version is complete, and the configuration serves one that exists, or nothing at all."""
    assert torn(repository) == []
