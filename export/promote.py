"""`fruitstand models promote` and `rollback`: another version is served, without a failed request.

On a running server: load the new version beside the old one, replay its golden images on it, switch the
ensemble, unload the old one. The old version answers until the switch and the new one after it; Triton keeps
a queue for each version, so no batch mixes them. Whatever goes wrong before the switch is undone, and the old
version answers throughout.
"""

import contextlib
from pathlib import Path

from export.live import LiveServer
from export.repository import audited, locked, served, write_served
from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET
from fruitstand.errors import FruitstandError, ServerError, UsageError
from fruitstand.versions import ServingState, verify_version


def promote(
    repository: Path, number: int, *, url: str | None, trusted_keys: Path | None = None
) -> ServingState:
    """Serve another version.

    Args:
        repository: the model repository, the same folder that the server reads.
        number: of a published version.
        url: HOST:PORT of the running server's gRPC endpoint; None when no server runs: the next one to
            start serves it.
        trusted_keys: a folder with public keys, one of which must have signed the version.

    Returns:
        What is served now, and what was.

    Raises:
        UsageError: no such version, or nothing is published.
        ArtefactError: the version was altered or is not signed as asked, or somebody else changes the
            repository.
        GateFailed: the golden images got other answers.
        ServerError: the server refuses or does not answer.
    """
    with locked(repository), audited(repository, "promote", number) as details:
        return _switch(repository, number, url, trusted_keys, details)


def rollback(repository: Path, *, url: str | None, trusted_keys: Path | None = None) -> ServingState:
    """Serve the version that was served before; as `promote`.

    Raises:
        UsageError: there is none.
    """
    with locked(repository), audited(repository, "rollback", None) as details:
        previous = served(repository).previous
        if previous is None:
            raise UsageError(f"{repository}: nothing was served before the present version")
        details["version"] = previous
        return _switch(repository, previous, url, trusted_keys, details)


def _switch(
    repository: Path, number: int, url: str | None, trusted_keys: Path | None, details: dict
) -> ServingState:
    old = served(repository)
    version = verify_version(repository, number, trusted_keys=trusted_keys)
    new = old if number == old.version else ServingState(number, previous=old.version)
    details["previous"], details["live"] = old.version, url is not None
    if url is None:
        write_served(repository, new)
        return new
    with LiveServer(url) as server:
        try:
            write_served(repository, old, also_loaded=(number,))
            server.load(FRUIT_RESNET)
            server.check_golden(version)
            write_served(repository, new, also_loaded=(old.version,))
            server.load(FRUIT_CLASSIFIER)
            server.check_served(version)
        except FruitstandError:
            _undo(repository, server, old)
            raise
        write_served(repository, new)
        server.load(FRUIT_RESNET)
    return new


def _undo(repository: Path, server: LiveServer, old: ServingState) -> None:
    """Serve the old version as before; a server that is gone reads it when it starts again."""
    write_served(repository, old)
    with contextlib.suppress(ServerError):
        server.load(FRUIT_CLASSIFIER)
        server.load(FRUIT_RESNET)
