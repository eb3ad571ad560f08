"""The `fruitstand` command: one verb a stage.

stdout is the result, stderr the log. Exit 0 done, 1 failed, 2 used wrongly. A stage is imported when its verb
is called, so that `--help` is quick and no verb needs another's packages.
"""

import importlib
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fruitstand import __version__, cli_client, cli_loadtests, cli_serving, cli_training, cli_tune
from fruitstand.cli_access import certs_app, keys_app
from fruitstand.cli_data import app as data_app
from fruitstand.cli_drift import app as drift_app
from fruitstand.cli_models import app as models_app
from fruitstand.cli_score import score
from fruitstand.cli_shared import Json, MaxSlowdown, Repository, SignKey, needs, print_json
from fruitstand.errors import FruitstandError

LAZY = {"attest": ("serving.attest.commands", "serve-cpu")}
"""Verbs whose code lives with their stage: module, and the extra that brings its packages."""


class Verbs(TyperGroup):
    """The verbs; those in `LAZY` are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names."""
        return [*super().list_commands(ctx), *LAZY]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One verb; from an installation without its stage, one that says so."""
        if cmd_name not in LAZY:
            return super().get_command(ctx, cmd_name)
        module, extra = LAZY[cmd_name]
        verb = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        try:
            verb.command(cmd_name)(getattr(importlib.import_module(module), cmd_name))
        except ModuleNotFoundError as exc:
            verb.command(cmd_name, help="Not in this installation.")(_missing(exc, extra))
        return typer.main.get_command(verb)


def _missing(error: ModuleNotFoundError, extra: str) -> Any:
    def verb() -> None:
        with needs(extra):
            raise error

    return verb


app = typer.Typer(
    cls=Verbs,
    help="Train an image classifier, prove it, and serve it at high throughput.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
app.add_typer(certs_app, name="certs")
app.add_typer(keys_app, name="keys")
app.add_typer(drift_app, name="drift")
app.command()(cli_training.train)
app.command()(cli_training.evaluate)
app.command()(cli_serving.serve)
app.command()(cli_serving.gateway)
app.command()(cli_serving.doctor)
app.command()(cli_client.classify)
app.command()(score)
app.command()(cli_loadtests.loadtest)
app.command()(cli_loadtests.profile)
app.command()(cli_tune.tune)
app.command()(cli_loadtests.diagnose)


def main() -> None:
    """Run the command; turn every error of ours into one line and an exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("onnxscript").setLevel(logging.WARNING)
    logging.getLogger("onnx_ir").setLevel(logging.WARNING)
    if hasattr(sys.stdout, "reconfigure"):  # a file name may hold bytes that are no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except FruitstandError as exc:
        print(f"fruitstand: error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except OSError as exc:
        print(f"fruitstand: error: {exc.filename or 'input or output'}: {exc.strerror}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of the command itself."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="Finished run.")],
    repository: Repository = Path("model_repository"),
    variants: Annotated[str, typer.Option(help="Comma-separated.")] = "fp32,int8,fp16",
    data: Annotated[Path | None, typer.Option(help="Prepared folder; default: the run's own.")] = None,
    compare_int8: Annotated[
        bool, typer.Option("--compare-int8", help="Measure every way to quantise, take the best.")
    ] = False,
    sign: SignKey = None,
    max_slowdown: MaxSlowdown = 1.1,
    as_json: Json = False,
) -> None:
    """Turn a run into ONNX, check it, and publish it as the next version."""
    with needs("export"):
        from export.export import export as run_export

        names = tuple(name.strip() for name in variants.split(","))
        result = run_export(
            run,
            repository=repository,
            variants=names,
            data_directory=data,
            compare_int8=compare_int8,
            sign_key=sign,
            max_slowdown=max_slowdown,
        )
    if as_json:
        print_json(result)
        return
    for gate in result["gates"]:
        allowed = f"{gate['kind'].replace('_', ' ')} {gate['limit']:.4g}"
        print(f"passed {gate['name']}: {gate['value']:.4g}, allowed {allowed}")
    if int8 := result["reports"].get("int8"):
        for attempt in int8["attempts"]:
            for engine, one in attempt["engines"].items():
                print(
                    f"int8 {attempt['choice']} on {engine}: top1 {one['top1']:.4f}, agreement"
                    f" {one['top1_agreement']:.4f}, {one['speedup_over_fp32']:.2f} x fp32"
                )
        print(f"int8: {int8['choice']}, served by {int8['engine']}")
    print(f"published version {result['version']} in {result['repository']}")
