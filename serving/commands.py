"""The verbs `serve`, `gateway` and `doctor`."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fruitstand.cli_options import Json, Port, ServedNames, TrustedKeys, needs, print_json
from fruitstand.contract import CPU_CONFIG
from fruitstand.errors import UsageError
from fruitstand.network.ports import LOOPBACK
from fruitstand.repository.model_names import names_for

Access = Annotated[Path | None, typer.Option(help="Folder of the gateway's certificates and API keys.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Listen on FRUITSTAND_LISTEN without TLS.")]


def serve(
    repository: Annotated[
        list[Path] | None, typer.Option(help="Model repository; repeat it for several. [model_repository]")
    ] = None,
    grpc_port: Port = 8001,
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of POST /classify, REST and the web page.")
    ] = 8000,
    metrics_port: Port = 8002,
    config_name: Annotated[str, typer.Option(help="Name of configs/NAME.pbtxt, such as gpu.")] = CPU_CONFIG,
    log: Annotated[
        Path | None,
        typer.Option(help="Append tritonserver's log to this file. [stderr; a file if that is a terminal]"),
    ] = None,
    trusted_keys: TrustedKeys = None,
    replicas: Annotated[
        int, typer.Option(min=1, max=64, help="Number of servers; more than one needs --gateway.")
    ] = 1,
    gateway: Annotated[
        bool, typer.Option("--gateway", help="Put Envoy in front, on --grpc-port and --http-port.")
    ] = False,
    access: Access = None,
    insecure: Insecure = False,
) -> None:
    """Serve model repositories in the foreground; print one JSON line when ready."""
    repositories = repository or [Path("model_repository")]
    listen = os.environ.get("FRUITSTAND_LISTEN", LOOPBACK)
    if not gateway and (replicas > 1 or access is not None or insecure or listen != LOOPBACK):
        raise UsageError("--replicas, --access, --insecure and FRUITSTAND_LISTEN need --gateway")
    with needs("serve-cpu"):
        if gateway:
            from serving.replicas.serve_replicas import serve_replicas

            serve_replicas(
                repositories,
                replicas=replicas,
                listen=listen,
                port=grpc_port,
                http_port=http_port,
                metrics_port=metrics_port,
                config_name=config_name,
                log_path=log,
                trusted_keys=trusted_keys,
                access_directory=access,
                insecure=insecure,
                tracing=_tracing(),
            )
            return

        from serving.triton.serve import log_for_terminal
        from serving.triton.serve import serve as run_server

        run_server(
            repositories,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            config_name=config_name,
            log_path=log or log_for_terminal(http_port),
            trusted_keys=trusted_keys,
            control_key=_control_key(),
            tracing=_tracing(),
        )


def gateway(
    replica: Annotated[
        list[int], typer.Option(min=1, max=65535, help="gRPC port of a server on this machine; repeatable.")
    ],
    port: Port = 8001,
    http_port: Port = 8000,
    metrics_port: Port = 9901,
    access: Access = None,
    log: Annotated[
        Path | None, typer.Option(help="Append Envoy's log and the access log to this file.")
    ] = None,
    insecure: Insecure = False,
    name: ServedNames = None,
) -> None:
    """Put Envoy in front of running servers; print one JSON line when it listens."""
    with needs("gateway"):
        from serving.gateway.serve_gateway import serve_gateway

        serve_gateway(
            replica,
            listen=os.environ.get("FRUITSTAND_LISTEN", LOOPBACK),
            port=port,
            http_port=http_port,
            metrics_port=metrics_port,
            log_path=log,
            access_directory=access,
            insecure=insecure,
            tracing=_tracing(),
            models=[names_for(one).classifier for one in name or ()],
        )


def _control_key() -> str | None:
    """The key that `fruitstand models` sends, for a server behind a separate gateway, as in compose."""
    control = os.environ.get("FRUITSTAND_CONTROL")
    if not control:
        return None

    from fruitstand.repository.model_control import read_control

    return read_control(Path(control)).key


def _tracing() -> Any:
    from serving.tracing import read_tracing

    return read_tracing(os.environ.get("FRUITSTAND_TRACES"), os.environ.get("FRUITSTAND_TRACES_SHARE"))


def doctor(as_json: Json = False) -> None:
    """Check whether this machine can serve; exit 1 if it cannot."""
    with needs("serve-cpu"):
        from serving.triton.doctor import FAIL, examine

        findings = examine()
    if as_json:
        print_json({"findings": [asdict(one) for one in findings]})
    else:
        for one in findings:
            print(
                f"{one.verdict:4}  {one.name}: {one.found}" + (f"\n      fix: {one.fix}" if one.fix else "")
            )
    if any(one.verdict == FAIL for one in findings):
        raise typer.Exit(1)
