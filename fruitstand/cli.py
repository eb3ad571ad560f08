"""The `fruitstand` command: a table of verbs, whose code is imported when it is called.

stdout carries the result, stderr the log. Exit code 0 is success, 1 failure, 2 wrong usage. The code of a
verb is in the `commands.py` of its stage. `--help` imports none of it, so a verb needs only its own packages.
"""

import importlib
import logging
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from fruitstand import __version__
from fruitstand.errors import FruitstandError


@dataclass(frozen=True, slots=True)
class Verb:
    """Where the code of a verb is, and its line in `fruitstand --help`."""

    module: str
    attribute: str
    """A Typer app with subcommands, or the function of a single command."""
    help: str


VERBS: dict[str, dict[str, Verb]] = {
    "Start": {
        "demo": Verb("loadtests.demo", "demo", "Prepare, train, export, serve and classify, with one table."),
        "doctor": Verb("serving.commands", "doctor", "Check whether this machine can serve."),
    },
    "Data and training": {
        "data": Verb("training.commands", "data_app", "Prepare image folders, and check them."),
        "train": Verb("training.commands", "train", "Train a timm image classifier."),
        "evaluate": Verb("training.commands", "evaluate", "Measure the accuracy of a run or of a server."),
    },
    "Versions": {
        "export": Verb("export.commands", "export", "Turn a run into ONNX, check it, and publish it."),
        "adopt": Verb("export.adopt.commands", "adopt", "Publish an ONNX classifier from elsewhere."),
        "replay": Verb("scoring.commands", "replay", "Send recorded traffic to two versions and compare."),
        "models": Verb("export.commands", "app", "Publish, list, promote and remove versions."),
    },
    "Serving": {
        "serve": Verb("serving.commands", "serve", "Serve a model repository in the foreground."),
        "gateway": Verb("serving.commands", "gateway", "Put Envoy in front of running servers."),
        "attest": Verb("serving.attest.commands", "attest", "Check a running server against its repository."),
        "certs": Verb("serving.gateway.commands", "certs_app", "Make certificates for TLS."),
        "keys": Verb("serving.gateway.commands", "keys_app", "Manage the gateway's API keys."),
    },
    "Answers": {
        "classify": Verb("fruitstand_client.commands", "classify", "Classify images with a served model."),
        "score": Verb("scoring.commands", "score", "Score any number of images offline, exactly once."),
    },
    "Measuring": {
        "loadtest": Verb("loadtests.commands", "loadtest", "Run a load profile with Locust."),
        "profile": Verb("loadtests.commands", "profile", "Sweep loads and batches with perf_analyzer."),
        "tune": Verb("loadtests.commands", "tune", "Find the fastest settings within a p99 budget."),
        "diagnose": Verb("loadtests.commands", "diagnose", "Find what limits a server under load."),
        "drift": Verb("monitoring.commands", "app", "Compare served images with the training data."),
    },
}
"""The verbs by heading of `--help`, in the order of a project."""


class LazyGroup(TyperGroup):
    """Imports the code of a verb when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All verbs, in the order of the table."""
        return [name for verbs in VERBS.values() for name in verbs]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import one verb; None if there is no such verb."""
        verb = next((verbs[cmd_name] for verbs in VERBS.values() if cmd_name in verbs), None)
        return None if verb is None else load(verb)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Let Typer suggest the verbs of the table for a misspelt one."""
        self.commands = dict.fromkeys(self.list_commands(ctx))  # type: ignore[assignment]  # only keys are read
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Print the table without importing any verb."""
        for heading, verbs in VERBS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, verb.help) for name, verb in verbs.items()])


def load(verb: Verb) -> Any:
    """Import a verb as a click command.

    Raises:
        UsageError: its stage is not installed; only a checkout has all stages.
    """
    from fruitstand.cli_options import needs

    with needs():
        found = getattr(importlib.import_module(verb.module), verb.attribute)
    if isinstance(found, typer.Typer):
        return get_command(found)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command()(found)
    return get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    help="Train an image classifier, check it, and serve it at high throughput.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Handle the options of the command itself."""
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command; a `FruitstandError` becomes one line on stderr and an exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for chatty in ("matplotlib", "onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if hasattr(sys.stdout, "reconfigure"):  # a file name may hold bytes that are not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except FruitstandError as exc:
        print(f"fruitstand: error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except OSError as exc:
        print(f"fruitstand: error: {exc.filename or 'input or output'}: {exc.strerror}", file=sys.stderr)
        sys.exit(1)
