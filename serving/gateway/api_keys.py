"""A file of API keys with expiry and quota. It holds the hashes of the keys, not the keys.

{"keys": [{"name": "camera-7", "sha256": "...", "expires": "2027-01-31T00:00:00+00:00",
           "disabled": false, "requests_per_s": 50}]}
"""

import hashlib
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fruitstand.artefacts import read_json, write_json
from fruitstand.errors import ArtefactError, UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
KEY_BYTES = 32
"""Random bytes in a key: too many to guess, so that a fast hash is enough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """One caller's key."""

    name: str
    """Identifies the caller in logs and quotas."""
    sha256: str
    """Hash of the key, 64 hexadecimal digits."""
    expires: str | None = None
    """ISO 8601 with time zone; None never expires."""
    disabled: bool = False
    requests_per_s: int | None = None
    """Sustained rate; a burst may take one second's worth. None sets no limit."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"name: got {self.name!r}, allowed 1 to 64 letters, digits, '.', '_' and '-'")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 of {self.name}: not 64 hexadecimal digits")
        if not isinstance(self.disabled, bool):
            raise ValueError(f"disabled of {self.name}: got {self.disabled!r}, allowed true and false")
        quota = self.requests_per_s
        if quota is not None and (type(quota) is not int or not 1 <= quota <= 1_000_000):
            raise ValueError(f"requests_per_s of {self.name}: got {quota!r}, allowed 1 to 1000000")
        self.expires_s()

    def expires_s(self) -> float | None:
        """Time of expiry, seconds since 1970; None never expires."""
        if self.expires is None:
            return None
        try:
            when = datetime.fromisoformat(self.expires)
        except (TypeError, ValueError):
            when = None
        if when is None or when.tzinfo is None:
            raise ValueError(f"expires of {self.name}: got {self.expires!r}, allowed a time with a time zone")
        return when.timestamp()


def read_api_keys(path: Path) -> list[ApiKey]:
    """Read a key file.

    Raises:
        ArtefactError: the file cannot be read, or an entry is malformed.
    """
    listed = read_json(path).get("keys")
    try:
        if not isinstance(listed, list):
            raise ValueError("no list of keys")
        keys = [ApiKey(**one) for one in listed]
        for field in ("name", "sha256"):
            values = [getattr(key, field) for key in keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {field}")
    except (TypeError, ValueError) as exc:
        raise ArtefactError(f"{path}: not a file of API keys ({exc}); see 'fruitstand keys --help'") from exc
    return keys


def add_api_key(path: Path, name: str, *, days: int | None, requests_per_s: int | None) -> str:
    """Add a caller and return its key, which is not stored.

    Raises:
        UsageError: the name is taken or not allowed.
        ArtefactError: the file cannot be read.
    """
    keys = read_api_keys(path) if path.exists() else []
    if any(key.name == name for key in keys):
        raise UsageError(f"{path}: already has a key named {name}; choose another name")
    secret = secrets.token_urlsafe(KEY_BYTES)
    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat()
    try:
        key = ApiKey(
            name=name,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            expires=expires,
            requests_per_s=requests_per_s,
        )
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    _write(path, [*keys, key])
    return secret


def disable_api_key(path: Path, name: str) -> None:
    """Disable a caller's key; a running gateway notices within a second.

    Raises:
        UsageError: there is no key of that name.
        ArtefactError: the file cannot be read.
    """
    keys = read_api_keys(path)
    if all(key.name != name for key in keys):
        raise UsageError(f"{path}: has no key named {name}")
    _write(path, [replace(key, disabled=True) if key.name == name else key for key in keys])


def _write(path: Path, keys: list[ApiKey]) -> None:
    write_json(path, {"keys": [asdict(key) for key in keys]})
