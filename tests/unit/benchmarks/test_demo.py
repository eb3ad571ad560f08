import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from fruitstand.cli import app
from fruitstand.errors import GateFailed
from fruitstand.machine.provenance import provenance
from loadtests.demo import _check, next_steps

GOOD = {"top1_offline": 0.995, "top1_served": 0.9935, "num_images": 3495, "server_version": "2.51.0"}


def test_a_demo_succeeds_when_the_served_model_is_the_trained_one() -> None:
    """Within 0.002, or within one image of a small test split."""
    _check(GOOD)
    _check({**GOOD, "num_images": 100, "top1_offline": 1.0, "top1_served": 0.99})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"top1_served": 0.9925}, id="accuracy_lost"),
        pytest.param({"top1_served": 0.998}, id="accuracy_too_good"),
        pytest.param({"server_version": "2.50.0"}, id="another_server"),
    ],
)
def test_a_demo_fails_when_something_else_is_served(change: dict) -> None:
    """The exit status says so, not only the table."""
    with pytest.raises(GateFailed):
        _check({**GOOD, **change})


def test_what_a_demo_proposes_works_as_printed(tmp_path: Path) -> None:
    """Paths with blanks are quoted, programs are there, verbs take the flags, and curl sends the image."""
    out, image = tmp_path / "a demo", tmp_path / "an apple.jpg"
    serve, ask, evaluate = (shlex.split(command) for _, command in next_steps(out, image))
    for words in (serve, evaluate):
        assert Path(words[0]).is_file()
        verb = get_command(app).get_command(None, words[1])  # type: ignore[attr-defined]
        assert verb.make_context(words[1], words[2:]).params
    assert serve[-1] == str(out / "model_repository")
    assert evaluate[-1] == str(out / "run")
    assert ask[:3] == ["curl", "--data-binary", f"@{image}"]
    assert ask[3] == f"http://127.0.0.1:{verb_default('serve', 'http_port')}/classify"


def verb_default(verb: str, option: str) -> object:
    """What an option is when it is not given."""
    command = get_command(app).get_command(None, verb)  # type: ignore[attr-defined]
    return next(one.default for one in command.params if one.name == option)


def test_a_result_says_where_when_and_how_it_was_measured() -> None:
    """Hardware, date, commit and command."""
    found = provenance()
    assert set(found) == {"hardware", "date", "commit", "command"}
    assert found["hardware"]["num_cores"] >= 1
    assert found["hardware"]["cpu"]
