"""Run the tritonserver that the wheel nvidia-pytriton carries, on our model repository.

The wheel brings the server and Triton's Python backend, no native ONNX Runtime or DALI backend;
`serving/triton/backend_directory.py` puts ours in their place.
"""

import contextlib
import errno
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from fruitstand.contract import CPU_CONFIG, FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE_DECODE
from fruitstand.errors import ServerError, UsageError
from fruitstand.machine.threads import thread_budget, thread_environment
from fruitstand.repository.versions import Version, serving_state, verify_version
from serving.tracing import Tracing
from serving.triton.backend_directory import (
    Backends,
    choose_backends,
    installed_triton,
    make_backend_directory,
)
from serving.triton.child_process import forbids_programs, start_process

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 60.0
GPU_START_TIMEOUT_S = 900.0
"""TensorRT builds its engine at each load, which takes minutes."""
EXIT_TIMEOUT_S = 10
SHARED_MEMORY = Path("/dev/shm")
PREFIX = "fruitstand-serve-"
"""Of our scratch folders and shared-memory regions; our process id follows."""
RESTRICTED_GRPC = "shared-memory,model-config,model-repository,statistics,trace,logging"
RESTRICTED_HTTP = RESTRICTED_GRPC
CONTROL_HEADER = "fruitstand-control"
"""Of the key for the restricted parts; Triton puts a prefix of its own before it in gRPC."""


class EmbeddedServer:
    """A tritonserver process and everything it leaves behind.

    Use as a context manager, or call `start` and `stop`.
    """

    def __init__(
        self,
        repository: Path,
        *,
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        config_name: str = CPU_CONFIG,
        log_path: Path | None = None,
        trusted_keys: Path | None = None,
        auto_complete: bool = False,
        threads: int | None = None,
        control_key: str | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """Choose what to serve and where; nothing is started yet.

        Args:
            repository: a model repository with at least one published version.
            grpc_port: 0 takes a free one; so do the other ports.
            http_port: of the KServe V2 REST endpoint.
            metrics_port: of the Prometheus endpoint.
            config_name: of `configs/<name>.pbtxt` in each model; one without it takes `config.pbtxt`.
            log_path: where the server's log goes; None sends it to this process's stderr.
            trusted_keys: a folder with public keys, one of which must have signed the served version; None
                asks for no signature.
            auto_complete: let the backends fill in what a `config.pbtxt` leaves out; the rendered ones leave
                out nothing, and the start takes longer.
            threads: its share of the machine's threads; None takes them all.
            control_key: without it nobody reaches model control, shared memory, trace, log settings and
                statistics; None leaves them open to this machine.
            tracing: where spans go; None makes none.

        Raises:
            UsageError: no repository, nothing published in it, or a port is taken.
            ArtefactError: the version to be served was altered, or is not signed as asked.
        """
        self.repository, _ = checked_repository(repository, trusted_keys)
        self.grpc_port, self.http_port, self.metrics_port = claim_ports(
            {"--grpc-port": grpc_port, "--http-port": http_port, "--metrics-port": metrics_port}
        )
        self._config_name = config_name
        self._auto_complete = auto_complete
        self._log_path = log_path
        self._trusted_keys = trusted_keys
        self._threads = thread_budget() if threads is None else threads
        self._control_key = control_key
        self._tracing = tracing
        self._scratch: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._region_prefix = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}-"

    @property
    def url(self) -> str:
        """HOST:PORT of the gRPC endpoint."""
        return f"{LOOPBACK}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """URL of the REST endpoint."""
        return f"http://{LOOPBACK}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus endpoint."""
        return f"http://{LOOPBACK}:{self.metrics_port}/metrics"

    def __enter__(self) -> "EmbeddedServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout_s: float | None = None) -> None:
        """Start the server and wait until it has answered a real inference.

        Args:
            timeout_s: to wait; None waits as long as the configuration may need.

        Raises:
            UsageError: nothing can start from the temporary folder.
            ArtefactError: a version to be loaded was altered since, or is not signed as asked.
            ServerError: it ended by itself or was not ready in time; the last error of its log is named.
        """
        from serving.triton.readiness import wait_until_ready

        if timeout_s is None:
            timeout_s = GPU_START_TIMEOUT_S if self._config_name.startswith("gpu") else START_TIMEOUT_S
        # Again at each start: another version may have been promoted since.
        _, version = checked_repository(self.repository, self._trusted_keys)
        _sweep_leftovers()
        if forbids_programs(temporary := Path(tempfile.gettempdir())):
            raise UsageError(
                f"{temporary}: is mounted noexec, and the server's backends start from there; set TMPDIR to a"
                " folder on another file system"
            )
        try:
            self._scratch = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
            chosen = choose_backends(self.repository, self._config_name)
            backends = make_backend_directory(self._scratch, chosen)
            self._launch(installed_triton() / "bin" / "tritonserver", backends, chosen)
            wait_until_ready(
                self.url,
                deadline=time.monotonic() + timeout_s,
                is_alive=self.is_alive,
                golden=version.golden(),
            )
        except ServerError as exc:
            reason = self._last_error()
            self.stop()
            raise ServerError(f"{exc}{reason}") from exc
        except BaseException:
            self.stop()
            raise

    def _launch(self, binary: Path, backends: Path, chosen: Backends) -> None:
        if self._log_path is not None:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log_start = self._log_path.stat().st_size if self._log_path.exists() else 0
        environment = _environment(self._trusted_keys, self._threads)
        self._process = start_process(
            [str(binary), *self._arguments(backends, chosen.config_name)],
            env=environment,
            log_path=self._log_path,
        )

    def is_alive(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the server's process, while there is one."""
        return self._process.pid if self._process else None

    def wait(self) -> int:
        """Wait until the server ends; its exit status."""
        if self._process is None:
            raise ServerError("the server was not started")
        return self._process.wait()

    def stop(self, *, at_once: bool = False) -> None:
        """Let requests in flight finish, end the server, and remove what it left behind.

        Args:
            at_once: do not wait for requests, as when the server hangs.
        """
        if self._process is not None:
            if self._process.poll() is None and not at_once:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(EXIT_TIMEOUT_S + 5)
            # The backends' processes belong to the server's group; none may outlive it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        for region in SHARED_MEMORY.glob(f"{self._region_prefix}*"):
            region.unlink(missing_ok=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _arguments(self, backends: Path, config_name: str) -> list[str]:
        arguments = [
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            f"--grpc-address={LOOPBACK}",
            f"--grpc-port={self.grpc_port}",
            f"--http-address={LOOPBACK}",
            f"--http-port={self.http_port}",
            f"--metrics-address={LOOPBACK}",
            f"--metrics-port={self.metrics_port}",
            f"--model-config-name={config_name}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in (IMAGE_DECODE, FRUIT_RESNET, FRUIT_CLASSIFIER)),
            # With true it is not ready while a version loads beside the one that answers, and a gateway gives
            # up every replica during a promotion. It listens only when all models are loaded anyway.
            f"--strict-readiness={'true' if self._control_key is None else 'false'}",
            *([] if self._auto_complete else ["--disable-auto-complete-config"]),
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--backend-config=python,shm-region-prefix-name={self._region_prefix}",
            "--backend-config=python,stub-timeout-seconds=60",
        ]
        if self._control_key is not None:
            secret = f"{CONTROL_HEADER}={self._control_key}"
            arguments += [
                f"--grpc-restricted-protocol={RESTRICTED_GRPC}:{secret}",
                f"--http-restricted-api={RESTRICTED_HTTP}:{secret}",
                "--allow-sagemaker=false",
                "--allow-vertex-ai=false",
                "--grpc-http2-max-ping-strikes=0",  # the gateway asks every second whether it hangs
            ]
        if self._tracing is not None:
            # Triton counts the requests without a caller's trace: every so many of them are traced.
            every = round(1 / self._tracing.share) if self._tracing.share else 0
            arguments += [
                "--trace-config=mode=opentelemetry",
                f"--trace-config=opentelemetry,url={self._tracing.url}",
                "--trace-config=opentelemetry,resource=service.name=fruitstand-triton",
                "--trace-config=level=TIMESTAMPS",
                f"--trace-config=rate={every}",
            ]
        return arguments

    def _last_error(self) -> str:
        """The log's most telling line, for the error message."""
        if self._log_path is None:
            return "; see its log above"
        log = self._log_path.read_bytes()[self._log_start :]
        lines = log.decode(errors="replace").splitlines()
        errors = [line for line in lines if "failed to load" in line] or [
            # The one about CUDA stands in the log of every server without a GPU.
            line
            for line in lines
            if line[:1] == "E" and "CudaDriverHelper" not in line
        ]
        return f"; its log says: {errors[0].split('] ', 1)[-1].strip()}" if errors else ""


def checked_repository(repository: Path, trusted_keys: Path | None = None) -> tuple[Path, Version]:
    """The repository's absolute path, and the version it serves; all that will be loaded is as published.

    Raises:
        UsageError: no repository there, or nothing published in it.
        ArtefactError: a version was altered, or is not signed as asked.
    """
    for model in (IMAGE_DECODE, FRUIT_RESNET, FRUIT_CLASSIFIER):
        if not (repository / model / "config.pbtxt").is_file():
            raise UsageError(
                f"{repository}: no model repository, {model}/config.pbtxt is missing; make one with"
                f" 'fruitstand export --run RUN --repository {repository}'"
            )
    state = serving_state(repository)
    if state is None:
        raise UsageError(
            f"{repository}: serves no version of {FRUIT_RESNET}; publish one with 'fruitstand export --run"
            f" RUN --repository {repository}', or promote one with 'fruitstand models promote'"
        )
    loaded = {
        number: verify_version(repository, number, trusted_keys=trusted_keys) for number in state.loaded
    }
    return repository.resolve(), loaded[state.version]


def claim_ports(wanted: dict[str, int]) -> list[int]:
    """Replace 0 by a free port and refuse one that is taken."""
    with contextlib.ExitStack() as stack:
        ports = []
        for flag, port in wanted.items():
            probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
                probe.listen(1)  # with SO_REUSEADDR only listening finds out that somebody else listens
            except OSError as exc:
                reason = "is in use" if exc.errno == errno.EADDRINUSE else f"cannot be used ({exc.strerror})"
                raise UsageError(
                    f"port {port} {reason}; choose another with {flag}, or 0 for a free one"
                ) from exc
            ports.append(probe.getsockname()[1])
    return ports


def _environment(trusted_keys: Path | None, threads: int) -> dict[str, str]:
    """What the backends need to find this environment's Python and its libraries, and whom to trust."""
    site = installed_triton().parent.parent
    libraries = [str(site / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": ":".join(filter(None, [*libraries, inherited])),
        "FRUITSTAND_PYTHON": sys.executable,
        "PYTHONDONTWRITEBYTECODE": "1",
        "FRUITSTAND_TRUSTED_KEYS": str(trusted_keys.resolve()) if trusted_keys is not None else "",
        **thread_environment(threads),
    }


def _sweep_leftovers() -> None:
    """Remove what servers left behind whose `fruitstand serve` was killed."""
    for directory in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        for path in directory.glob(f"{PREFIX}*"):
            owner = path.name.removeprefix(PREFIX).partition("-")[0]
            if owner.isdecimal() and not Path("/proc", owner).exists():
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
