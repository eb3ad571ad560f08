"""What several verbs share."""

from pathlib import Path

import pytest

from fruitstand.cli_options import connection
from fruitstand.contract import API_KEY_VARIABLE
from fruitstand.errors import UsageError
from fruitstand_client import Tls


@pytest.mark.parametrize(
    ("ca", "cert", "expected"),
    [
        pytest.param(None, None, None, id="clear_text"),
        pytest.param("system", None, Tls(), id="usual_authorities"),
        pytest.param("ca.crt", None, Tls(ca=Path.cwd() / "ca.crt"), id="own_authority"),
        pytest.param(None, "me.pem", Tls(certificate=Path.cwd() / "me.pem"), id="client_certificate"),
    ],
)
def test_flags_and_the_environment_say_how_to_connect(
    ca: str | None, cert: str | None, expected: Tls | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files by their whole paths: a worker that starts in another folder opens them too."""
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    found = connection("a:1", *(None if one is None else Path(one) for one in (ca, cert)))
    assert found == {"tls": expected, "api_key": "secret"}


def test_certificates_without_a_server_are_refused() -> None:
    """They would have no effect."""
    with pytest.raises(UsageError, match="--url"):
        connection(None, Path("ca.crt"), None)
