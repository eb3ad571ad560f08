"""The file that `fruitstand models promote` uses to reach the servers behind a gateway.

`fruitstand serve --gateway` writes it, readable only by its own user, prints its path in the ready line, and
removes it when it stops.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from fruitstand.artefacts import read_json, write_json
from fruitstand.errors import UsageError


@dataclass(frozen=True, slots=True)
class ModelControl:
    """Addresses of the servers, and the headers that authorise model changes."""

    servers: tuple[str, ...]
    """HOST:PORT of each server's gRPC endpoint."""
    metrics: tuple[str, ...]
    """URL of each server's Prometheus page."""
    headers: dict[str, str]

    @property
    def key(self) -> str:
        """The secret in the header."""
        return next(iter(self.headers.values()))

    def write(self, path: Path) -> None:
        """Write the file; the folder must be accessible only to its owner."""
        write_json(path, asdict(self))


def read_control(path: Path) -> ModelControl:
    """Read the file.

    Raises:
        UsageError: the file is missing or of another kind.
    """
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; its path is in the ready line of 'fruitstand serve --gateway'"
        )
    document = read_json(path)
    try:
        servers, metrics = (tuple(map(str, document[key])) for key in ("servers", "metrics"))
        return ModelControl(servers, metrics, dict(document["headers"]))
    except (KeyError, TypeError, ValueError) as exc:
        raise UsageError(f"{path}: was not written by 'fruitstand serve --gateway'") from exc
