"""The verbs `fruitstand export` and `fruitstand models`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fruitstand.cli_options import (
    Json,
    MaxSlowdown,
    NewName,
    Repository,
    SignKey,
    TrustedKeys,
    needs,
    print_result,
)
from fruitstand.repository.tuning import read_tuning

app = typer.Typer(
    help="Publish, list, promote and remove versions.", no_args_is_help=True, rich_markup_mode=None
)

REPOSITORY = Path("model_repository")
LiveUrl = Annotated[
    str | None,
    typer.Option(
        envvar="FRUITSTAND_URL",
        help="HOST:PORT of the running server's gRPC endpoint; without it, the next server start serves it.",
    ),
]
Control = Annotated[
    Path | None,
    typer.Option(
        envvar="FRUITSTAND_CONTROL",
        help="For servers behind a gateway, instead of --url: the control file from the ready line.",
    ),
]


@app.command()
def publish(
    candidate: Annotated[Path, typer.Argument(help="Candidate made by `fruitstand export`: RUN/export.")],
    repository: Repository = REPOSITORY,
    sign: SignKey = None,
    max_slowdown: MaxSlowdown = 1.1,
    name: NewName = None,
    as_json: Json = False,
) -> None:
    """Check a candidate against the repository and publish it as the next version."""
    with needs("export"):
        from export.publish.publish import publish as run_publish

        manifest = run_publish(repository, candidate, max_slowdown=max_slowdown, sign_key=sign, name=name)
    print_result(manifest, f"published version {manifest['version']} in {repository}", as_json=as_json)


@app.command(name="list")
def list_(repository: Repository = REPOSITORY, as_json: Json = False) -> None:
    """List all versions, and which one is served."""
    with needs("export"):
        from export.publish.repository import list_versions

        rows = list_versions(repository)
    print_result(rows, *map(_row, rows), as_json=as_json)


def _row(row: dict[str, Any]) -> str:
    begin = f"{row['version']:4}  {row['role']:8}  "
    if "damaged" in row:
        return begin + row["damaged"]
    return begin + (
        f"{row['model_name']:12}  {row['size_bytes'] / 2**20:7.1f} MiB"
        f"  {row['serve']['cpu_model']} on {row['serve']['cpu_engine']}  from {row['source_run']}"
    )


@app.command()
def promote(
    version: Annotated[int, typer.Argument(help="Number of the version to serve.")],
    repository: Repository = REPOSITORY,
    url: LiveUrl = None,
    control: Control = None,
    watch_s: Annotated[
        float,
        typer.Option(min=0, help="Seconds to serve it on one server first; take it back if it is worse."),
    ] = 0.0,
    replay: Annotated[
        Path | None,
        typer.Option(help="Folder with recorded traffic: promote only if the answers stay the same."),
    ] = None,
    max_flips: Annotated[
        str, typer.Option(help="With --replay: largest share of changed answers, as 1% or 0.01.")
    ] = "1%",
    trusted_keys: TrustedKeys = None,
    as_json: Json = False,
) -> None:
    """Serve a version: load it, compare its golden answers, switch; no request fails."""
    with needs("export"):
        from export.publish.promote import promote as run_promote
        from export.publish.replay_gate import ReplayGate, read_share

        share = read_share(max_flips)
        state = run_promote(
            repository,
            version,
            url=url,
            control=control,
            watch_s=watch_s,
            gate=None if replay is None else ReplayGate(samples=replay, max_flips=share),
            trusted_keys=trusted_keys,
        )
    _print_state(state, url, control, as_json)


@app.command()
def rollback(
    repository: Repository = REPOSITORY,
    url: LiveUrl = None,
    control: Control = None,
    trusted_keys: TrustedKeys = None,
    as_json: Json = False,
) -> None:
    """Serve the previous version again."""
    with needs("export"):
        from export.publish.promote import rollback as run_rollback

        state = run_rollback(repository, url=url, control=control, trusted_keys=trusted_keys)
    _print_state(state, url, control, as_json)


@app.command()
def configure(
    tuning: Annotated[Path, typer.Argument(help="File written by `fruitstand tune`: DIR/tuning.json.")],
    repository: Repository = REPOSITORY,
    as_json: Json = False,
) -> None:
    """Write settings of queues, threads and instances into the repository, for the next start."""
    with needs("export"):
        from export.publish.repository import configure as run_configure

        settings = read_tuning(tuning)
        run_configure(repository, settings)
    line = f"{repository}: configured; restart the server to apply it"
    print_result(settings.to_dict(), line, as_json=as_json)


@app.command()
def prune(
    repository: Repository = REPOSITORY,
    keep: Annotated[int, typer.Option(help="Versions to keep besides the served and the previous one.")] = 1,
    as_json: Json = False,
) -> None:
    """Remove the oldest versions; the served and the previous version stay."""
    with needs("export"):
        from export.publish.repository import prune as run_prune

        removed = run_prune(repository, keep=keep)
    line = f"removed {', '.join(map(str, removed)) or 'nothing'}"
    print_result({"removed": removed}, line, as_json=as_json)


@app.command()
def check(
    repository: Repository = REPOSITORY, trusted_keys: TrustedKeys = None, as_json: Json = False
) -> None:
    """Check every file against its manifest, configurations against the rendered ones, and graphs."""
    with needs("export"):
        from export.gates.structure import structure_findings
        from export.publish.repository import check_repository, drifted_files, stray_files

        versions = check_repository(repository, trusted_keys=trusted_keys)
        findings = [f"{path}: is not what was rendered for it" for path in drifted_files(repository)]
        findings += [
            f"{path}: was not rendered; remove it, the next promotion would load that model again"
            for path in stray_files(repository)
        ]
        findings += structure_findings(versions)
    result = {"versions": [one.number for one in versions], "findings": findings}
    total = f"{len(versions)} versions as published, {len(findings)} findings"
    print_result(result, *findings, total, as_json=as_json)
    if findings:
        raise typer.Exit(1)


@app.command()
def keygen(
    out: Annotated[Path, typer.Argument(help="Private key to make; the public key becomes <name>.pub.")],
) -> None:
    """Make a key pair for --sign and --trusted-keys."""
    with needs("export"):
        from fruitstand.repository.signing import make_key

        print(f"private key {out}, public key {make_key(out)}: keep the first secret")


def _print_state(state: Any, url: str | None, control: Path | None, as_json: bool) -> None:
    if control is not None:
        where = "answers behind the gateway"
    else:
        where = f"answers at {url}" if url is not None else "will be served by the next server that starts"
    before = f", before it version {state.previous}" if state.previous is not None else ""
    live = url is not None or control is not None
    result = {"version": state.version, "previous": state.previous, "live": live}
    print_result(result, f"version {state.version} {where}{before}", as_json=as_json)


def export(
    run: Annotated[Path, typer.Option(help="Finished run.")],
    repository: Repository = Path("model_repository"),
    variants: Annotated[
        str | None,
        typer.Option(help="Of fp32,int8,fp16; default: those of earlier versions, or all that pass."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared folder; default: the run's own.")] = None,
    compare_int8: Annotated[
        bool, typer.Option("--compare-int8", help="Measure every way to quantise and use the best.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Let the version say why: activation maps, nearest images.")
    ] = False,
    sign: SignKey = None,
    max_slowdown: MaxSlowdown = 1.1,
    name: NewName = None,
    as_json: Json = False,
) -> None:
    """Turn a run into ONNX, check it, and publish it as the next version."""
    with needs("export"):
        from export.publish.export import export as run_export

        names = None if variants is None else tuple(name.strip() for name in variants.split(","))
        result = run_export(
            run,
            repository=repository,
            variants=names,
            data_directory=data,
            compare_int8=compare_int8,
            explain=explain,
            sign_key=sign,
            max_slowdown=max_slowdown,
            name=name,
        )
    print_result(result, *_export_lines(result), as_json=as_json)


def _export_lines(result: dict[str, Any]) -> Iterator[str]:
    for gate in result["gates"]:
        allowed = f"{gate['kind'].replace('_', ' ')} {gate['limit']:.4g}"
        yield f"passed {gate['name']}: {gate['value']:.4g}, allowed {allowed}"
    for attempt in result["reports"].get("int8", {}).get("attempts", ()):
        for engine, one in attempt["engines"].items():
            speed = f", {one['speedup_over_fp32']:.2f} x fp32" if "speedup_over_fp32" in one else ""
            yield (
                f"int8 {attempt['choice']} on {engine}: top1 {one['top1']:.4f}, agreement"
                f" {one['top1_agreement']:.4f}{speed}"
            )
    for variant in ("int8", "fp16"):
        if reason := result["reports"].get(variant, {}).get("left_out"):
            yield f"{variant}: left out, {reason}"
    yield f"without a GPU it serves {result['serve']['cpu_model']} on {result['serve']['cpu_engine']}"
    yield f"published version {result['version']} in {result['repository']}"
