"""Checks of the exposed control methods, of the server's version, and the devices it runs on."""

from tritonclient.grpc import service_pb2

from fruitstand.contract import EMBEDDED_SERVER_VERSION
from serving.attest.caller import Answer, Server
from serving.attest.report import Check, Status, judged, not_seen

MIN_SERVER_VERSION = (2, 75, 0)
"""26.11 of 2026-11-17 fixes a use-after-free in the dynamic batcher; 26.08 (2.72) fixes its starvation."""
MIN_RELEASE = "26.11"
SERVER_EXPECTED = f"Triton {'.'.join(map(str, MIN_SERVER_VERSION))} ({MIN_RELEASE}) or newer"
LOAD_NOTHING = service_pb2.RepositoryModelLoadRequest(model_name="fruitstand_attest_no_such_model")
CONTROLS = {
    "model control": ("RepositoryModelLoad", LOAD_NOTHING),
    "model index": ("RepositoryIndex", service_pb2.RepositoryIndexRequest()),
    "shared memory": ("SystemSharedMemoryStatus", service_pb2.SystemSharedMemoryStatusRequest()),
    "CUDA shared memory": ("CudaSharedMemoryStatus", service_pb2.CudaSharedMemoryStatusRequest()),
    "trace": ("TraceSetting", service_pb2.TraceSettingRequest()),
    "logging": ("LogSettings", service_pb2.LogSettingsRequest()),
    "statistics": ("ModelStatistics", service_pb2.ModelStatisticsRequest()),
}
"""Harmless calls: they read settings or name a model that does not exist."""
SILENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
CLOSED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED")


async def check_control(server: Server, *, has_gateway: bool) -> Check:
    """Check that model control, shared memory, trace, logging and statistics are refused to callers.

    Args:
        server: the server under test.
        has_gateway: Envoy answers; then open methods fail the check even on loopback.
    """
    answers = {name: await server.call(method, request) for name, (method, request) in CONTROLS.items()}
    expected = f"refused: {', '.join(CONTROLS)}"
    if silent := next(
        (one for one in answers.values() if one.status in SILENT and not _is_closed(one)), None
    ):
        return not_seen("control", expected, str(silent))
    opened = [name for name, answer in answers.items() if not _is_closed(answer)]
    if opened and server.on_loopback and not has_gateway:
        return Check(
            name="control",
            status=Status.WARNING,
            expected=expected,
            got=f"open to everyone on this machine: {', '.join(opened)}",
            advice="before other machines may call, put the gateway in front: 'fruitstand serve --gateway'",
        )
    return judged(
        "control",
        ok=not opened,
        expected=expected,
        got=f"open: {', '.join(opened)}" if opened else "all refused",
        advice="put the gateway in front, or restrict them with --grpc-restricted-protocol",
    )


def _is_closed(answer: Answer) -> bool:
    return answer.status in CLOSED or "restricted" in answer.text or "not allowed" in answer.text


async def check_runtime(server: Server, *, has_gateway: bool) -> tuple[Check, dict[str, object]]:
    """Check the server's version against known defects of older ones.

    Returns:
        The check; name, version and extensions as the server reports them.
    """
    answer = await server.call("ServerMetadata", service_pb2.ServerMetadataRequest())
    if not answer.ok:
        return not_seen("runtime", SERVER_EXPECTED, f"the server does not report its version ({answer})"), {}
    name, version = answer.response.name, answer.response.version
    about = {"name": name, "version": version, "extensions": sorted(answer.response.extensions)}
    return judge_version(name, version, is_shielded=server.on_loopback or has_gateway), about


def judge_version(name: str, version: str, *, is_shielded: bool) -> Check:
    """Judge a server by its version; it is shielded if only this machine or a gateway can reach it."""
    expected = SERVER_EXPECTED
    got = f"{name} {version}"
    numbers = version.split(".")
    if name != "triton" or len(numbers) != 3 or not all(map(str.isdecimal, numbers)):
        return not_seen("runtime", expected, f"{got}: not a Triton release; check its own security bulletins")
    if tuple(map(int, numbers)) >= MIN_SERVER_VERSION:
        return Check(name="runtime", status=Status.PASSED, expected=expected, got=got)
    embedded = version == EMBEDDED_SERVER_VERSION
    return Check(
        name="runtime",
        status=Status.WARNING if embedded and is_shielded else Status.FAILED,
        expected=expected,
        got=f"{got}: has a use-after-free in the dynamic batcher, fixed in {MIN_RELEASE}"
        + ("; use the wheel's server only on loopback or behind the gateway" if embedded else ""),
        advice=f"serve untrusted callers with nvcr.io/nvidia/tritonserver:{MIN_RELEASE}-py3",
    )


def devices(configs: dict[str, object]) -> dict[str, list[str]]:
    """Backend, instance groups and accelerators of each model, from its configuration."""
    found = {}
    for model, config in configs.items():
        if config.ensemble_scheduling.step:
            continue
        kinds = [f"{group.count} x {type(group).Kind.Name(group.kind)}" for group in config.instance_group]
        accelerators = config.optimization.execution_accelerators
        names = [
            one.name
            for one in (*accelerators.gpu_execution_accelerator, *accelerators.cpu_execution_accelerator)
        ]
        found[model] = [f"backend {config.backend or config.platform}", *kinds, *names]
    return found
