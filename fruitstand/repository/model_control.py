"""The file by which `fruitstand models promote` reaches the servers behind a gateway.

`fruitstand serve --gateway` writes it, readable for its own user alone, and names it in its ready line; it is
gone when the servers are.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from fruitstand.artefacts import read_json, write_json
from fruitstand.errors import UsageError


@dataclass(frozen=True, slots=True)
class ModelControl:
    """Where the servers are, and what a call has to carry that changes their models."""

    servers: tuple[str, ...]
    """HOST:PORT of each one's gRPC endpoint."""
    metrics: tuple[str, ...]
    """URL of each one's Prometheus page."""
    headers: dict[str, str]

    @property
    def key(self) -> str:
        """What the servers ask for, whatever the header is called."""
        return next(iter(self.headers.values()))

    def write(self, path: Path) -> None:
        """Write the file into a folder that nobody else may enter."""
        write_json(path, asdict(self))


def read_control(path: Path) -> ModelControl:
    """Read the file.

    Raises:
        UsageError: it is not there, or is another kind of file.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; the ready line of 'fruitstand serve --gateway' names it")
    document = read_json(path)
    try:
        servers, metrics = (tuple(map(str, document[key])) for key in ("servers", "metrics"))
        return ModelControl(servers, metrics, dict(document["headers"]))
    except (KeyError, TypeError, ValueError) as exc:
        raise UsageError(f"{path}: is not written by 'fruitstand serve --gateway'") from exc
