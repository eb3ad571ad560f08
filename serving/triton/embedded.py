"""Run the tritonserver of the wheel nvidia-pytriton on our model repository.

The wheel contains the server and Triton's Python backend, but no native ONNX Runtime or DALI backend;
`serving/triton/backend_directory.py` supplies ours under the same names.
"""

import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from fruitstand.contract import CPU_CONFIG
from fruitstand.errors import ServerError, UsageError
from fruitstand.machine.threads import thread_budget, thread_environment
from fruitstand.network.ports import LOOPBACK, claim_ports
from fruitstand.repository.model_names import distinct_names, repository_names
from fruitstand.repository.versions import Version, serving_state, verify_version
from serving.tracing import Tracing
from serving.triton.backend_directory import (
    Backends,
    choose_backends,
    installed_triton,
    make_backend_directory,
)
from serving.triton.child_process import forbids_programs, start_process, stop_process

START_TIMEOUT_S = 60.0
GPU_START_TIMEOUT_S = 900.0
"""TensorRT builds its engine at each load, which can take minutes."""
EXIT_TIMEOUT_S = 10
SHARED_MEMORY = Path("/dev/shm")
PREFIX = "fruitstand-serve-"
"""Prefix of scratch folders and shared-memory regions; this process's id follows."""
RESTRICTED_GRPC = "shared-memory,model-config,model-repository,statistics,trace,logging"
CONTROL_HEADER = "fruitstand-control"
"""Header that carries the key for restricted methods; in gRPC, Triton adds a prefix."""


class EmbeddedServer:
    """A tritonserver process with its files and shared memory.

    Use as a context manager, or call `start` and `stop`.
    """

    def __init__(
        self,
        *repositories: Path,
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        config_name: str = CPU_CONFIG,
        log_path: Path | None = None,
        trusted_keys: Path | None = None,
        threads: int | None = None,
        control_key: str | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """Check the repository and claim the ports; `start` starts the server.

        Args:
            repositories: model repositories of different names, each of which serves a version.
            grpc_port: port of gRPC; 0 takes a free one, as for the other ports.
            http_port: port of the KServe V2 REST endpoint.
            metrics_port: port of the Prometheus endpoint.
            config_name: name of `configs/<name>.pbtxt`; a model without it takes `config.pbtxt`.
            log_path: file for the server's log; None writes to this process's stderr.
            trusted_keys: folder of public keys, one of which must have signed the served version; None
                requires no signature.
            threads: the server's share of the machine's threads; None takes them all.
            control_key: required for model control, shared memory, trace, log settings and statistics; None
                leaves them open to this machine.
            tracing: collector for spans; None turns tracing off.

        Raises:
            UsageError: no repository, no served version, two of one name, or a port is taken.
            ArtefactError: the served version was altered, or lacks the required signature.
        """
        checked = [checked_repository(repository, trusted_keys) for repository in repositories]
        self.repositories = [path for path, _ in checked]
        self.names = distinct_names(self.repositories)
        self.grpc_port, self.http_port, self.metrics_port = claim_ports(
            {"--grpc-port": grpc_port, "--http-port": http_port, "--metrics-port": metrics_port}
        )
        self._config_name = config_name
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
            timeout_s: seconds to wait; None waits as long as the configuration may need.

        Raises:
            UsageError: the temporary folder is mounted noexec.
            ArtefactError: a version to be loaded was altered, or lacks the required signature.
            ServerError: it exited or was not ready in time; the message quotes its log.
        """
        from serving.triton.readiness import wait_until_ready

        if timeout_s is None:
            timeout_s = GPU_START_TIMEOUT_S if self._config_name.startswith("gpu") else START_TIMEOUT_S
        # Checked again: another version may have been promoted since the last start.
        golden = {
            names.classifier: checked_repository(repository, self._trusted_keys)[1].golden()
            for names, repository in zip(self.names, self.repositories, strict=True)
        }
        _sweep_leftovers()
        if forbids_programs(temporary := Path(tempfile.gettempdir())):
            raise UsageError(
                f"{temporary}: is mounted noexec, so the server cannot load its backends from there; set"
                " TMPDIR to a folder on another file system"
            )
        try:
            self._scratch = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
            chosen = choose_backends(self.repositories, self._config_name)
            backends = make_backend_directory(self._scratch, chosen)
            self._launch(installed_triton() / "bin" / "tritonserver", backends, chosen)
            wait_until_ready(
                self.url,
                deadline=time.monotonic() + timeout_s,
                is_alive=self.is_alive,
                golden=golden,
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
        """Whether the server's process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id of the server; None when it does not run."""
        return self._process.pid if self._process else None

    def wait(self) -> int:
        """Wait until the server exits, and return its status."""
        if self._process is None:
            raise ServerError("the server was not started")
        return self._process.wait()

    def stop(self, *, at_once: bool = False) -> None:
        """Let requests in flight finish, stop the server, and remove its files and shared memory.

        Args:
            at_once: do not wait for requests in flight, for a server that hangs.
        """
        if self._process is not None:
            # This also kills the backends' processes, which belong to the server's process group.
            stop_process(self._process, timeout_s=0 if at_once else EXIT_TIMEOUT_S + 5)
            self._process = None
        for region in SHARED_MEMORY.glob(f"{self._region_prefix}*"):
            region.unlink(missing_ok=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _arguments(self, backends: Path, config_name: str) -> list[str]:
        arguments = [
            *(f"--model-repository={repository}" for repository in self.repositories),
            f"--backend-directory={backends}",
            f"--grpc-address={LOOPBACK}",
            f"--grpc-port={self.grpc_port}",
            f"--http-address={LOOPBACK}",
            f"--http-port={self.http_port}",
            f"--metrics-address={LOOPBACK}",
            f"--metrics-port={self.metrics_port}",
            f"--model-config-name={config_name}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self._models()),
            # With strict readiness a server is not ready while a further version loads, so that a gateway
            # would drop every replica during a promotion. It listens only after all models are loaded anyway.
            f"--strict-readiness={'true' if self._control_key is None else 'false'}",
            "--disable-auto-complete-config",  # the rendered files are complete, and the start is faster
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--backend-config=python,shm-region-prefix-name={self._region_prefix}",
            "--backend-config=python,stub-timeout-seconds=60",
        ]
        if self._control_key is not None:
            secret = f"{CONTROL_HEADER}={self._control_key}"
            arguments += [
                f"--grpc-restricted-protocol={RESTRICTED_GRPC}:{secret}",
                f"--http-restricted-api={RESTRICTED_GRPC}:{secret}",
                "--allow-sagemaker=false",
                "--allow-vertex-ai=false",
                "--grpc-http2-max-ping-strikes=0",  # the gateway pings every second
            ]
        if self._tracing is not None:
            # Triton traces every Nth request that has no trace of the caller's.
            every = round(1 / self._tracing.share) if self._tracing.share else 0
            arguments += [
                "--trace-config=mode=opentelemetry",
                f"--trace-config=opentelemetry,url={self._tracing.url}",
                "--trace-config=opentelemetry,resource=service.name=fruitstand-triton",
                "--trace-config=level=TIMESTAMPS",
                f"--trace-config=rate={every}",
            ]
        return arguments

    def _models(self) -> list[str]:
        """The models to load; a repository's explainer where it has one."""
        models = []
        for repository, names in zip(self.repositories, self.names, strict=True):
            models += names.loaded
            if (repository / names.explainer / "config.pbtxt").is_file():
                models.append(names.explainer)
        return models

    def _last_error(self) -> str:
        """The first relevant error of the log, for the error message."""
        if self._log_path is None:
            return "; see its log above"
        log = self._log_path.read_bytes()[self._log_start :]
        lines = log.decode(errors="replace").splitlines()
        errors = [line for line in lines if "failed to load" in line] or [
            # Every server without a GPU logs the error about CUDA.
            line
            for line in lines
            if line[:1] == "E" and "CudaDriverHelper" not in line
        ]
        return f"; its log says: {errors[0].split('] ', 1)[-1].strip()}" if errors else ""


def checked_repository(repository: Path, trusted_keys: Path | None = None) -> tuple[Path, Version]:
    """Verify every version to be loaded; returns the repository's absolute path and the served version.

    Raises:
        UsageError: no repository there, or it serves no version.
        ArtefactError: a version was altered, or lacks the required signature.
    """
    names = repository_names(repository)
    for model in names.loaded:
        if not (repository / model / "config.pbtxt").is_file():
            raise UsageError(
                f"{repository}: no model repository, {model}/config.pbtxt is missing; make one with"
                f" 'fruitstand export --run RUN --repository {repository}'"
            )
    state = serving_state(repository)
    if state is None:
        raise UsageError(
            f"{repository}: serves no version of {names.model}; publish one with 'fruitstand export --run"
            f" RUN --repository {repository}', or promote one with 'fruitstand models promote'"
        )
    loaded = {
        number: verify_version(repository, number, trusted_keys=trusted_keys) for number in state.loaded
    }
    return repository.resolve(), loaded[state.version]


def _environment(trusted_keys: Path | None, threads: int) -> dict[str, str]:
    """Environment variables that tell the backends the Python, its libraries and the trusted keys."""
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
    """Remove files and shared memory of servers whose `fruitstand serve` was killed."""
    for directory in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        for path in directory.glob(f"{PREFIX}*"):
            owner = path.name.removeprefix(PREFIX).partition("-")[0]
            if owner.isdecimal() and not Path("/proc", owner).exists():
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
