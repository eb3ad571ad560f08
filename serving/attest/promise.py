"""The server under test, and what its model repository promises: version, golden answers, ONNX files."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from fruitstand.contract import KNOWN, Preprocessing
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.images.reference_decode import decode_reference
from fruitstand.images.synthetic import canary_image
from fruitstand.machine.threads import thread_budget
from fruitstand.model.session import has_engine, open_session, run_batches
from fruitstand.network.statistics import ModelCounters, read_counters
from fruitstand.repository.model_names import ModelNames, repository_names
from fruitstand.repository.versions import (
    Version,
    published_versions,
    read_version,
    serving_state,
    verify_version,
)
from serving.attest.caller import Server
from serving.attest.report import Speed

NO_REPOSITORY = "no --repository to compare with"


@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """A model repository on this machine, and the version it serves."""

    repository: Path
    served: int
    """Number of the version it serves."""
    input_size: tuple[int, int]
    """Height and width of the served version's pixels."""

    def version(self, number: int | None) -> Version:
        """Read a version and verify its files' hashes; None takes the served version.

        Raises:
            FruitstandError: the repository does not have the version, or a file was altered.
        """
        return verify_version(self.repository, self.served if number is None else number)


def read_promise(repository: Path) -> Promise:
    """Read which version a repository serves.

    Raises:
        UsageError: no repository there, or it serves no version.
        ArtefactError: the served version's manifest cannot be read.
    """
    if not (repository / repository_names(repository).model).is_dir():
        raise UsageError(f"{repository}: no model repository; to attest without one, leave --repository out")
    state = serving_state(repository)
    if state is None:
        known = ", ".join(map(str, published_versions(repository))) or "none"
        raise UsageError(f"{repository}: serves no version; published: {known}")
    manifest = read_version(repository, state.version).manifest
    input_size = Preprocessing.from_dict(manifest["preprocessing"]).input_size
    return Promise(repository=repository, served=state.version, input_size=input_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Images decoded by the reference decode, and the answers of the version's own ONNX file to them."""

    file: str
    """Name of the ONNX file."""
    pixels_nhwc_u8: np.ndarray
    probabilities: np.ndarray
    """(N, C) float32."""
    images_per_s: float
    """Throughput in this process: images decoded one by one, the model run in batches."""
    image_s: float
    """Seconds for a single image in this process, decode and model."""


def decode_all(images: Sequence[bytes], preprocessing: Preprocessing) -> np.ndarray:
    """(N, H, W, 3) uint8 by the reference decode."""
    return np.stack([decode_reference(image, preprocessing) for image in images])


def reference_answers(version: Version, file: str, images: Sequence[bytes]) -> Reference:
    """Run a version's own file on the engine of its gates, or on ONNX Runtime's if that is missing here.

    Raises:
        FruitstandError: ONNX Runtime cannot load or run the file.
    """
    engine = version.manifest["serve"]["cpu_engine"]
    session = open_session(
        version.directory / file,
        engine if has_engine(engine) else "cpu",
        num_threads=thread_budget(),
        can_spin=True,
    )
    started = time.monotonic()
    pixels = decode_all(images, Preprocessing.from_dict(version.manifest["preprocessing"]))
    decoded_s = time.monotonic() - started
    run_batches(session, pixels[:1])  # warm-up: the first call of a batch size plans it
    started = time.monotonic()
    run_batches(session, pixels[:1])
    one_s = time.monotonic() - started
    started = time.monotonic()
    answers = run_batches(session, pixels)
    all_s = decoded_s + time.monotonic() - started
    return Reference(
        file=file,
        pixels_nhwc_u8=pixels,
        probabilities=answers,
        images_per_s=len(images) / all_s,
        image_s=decoded_s / len(images) + one_s,
    )


def file_known(version: Version, file: str, pixels_nhwc_u8: np.ndarray) -> np.ndarray:
    """(N, 1) KNOWN from a version's own file, on the engine it was checked with if this machine has it."""
    engine = version.serve.cpu_engine
    session = open_session(version.directory / file, engine if has_engine(engine) else "cpu")
    return run_batches(session, pixels_nhwc_u8, KNOWN)


def without_folders(error: FruitstandError) -> str:
    """An error's message without folders: the report may leave this machine."""
    return str(error).rsplit("/", 1)[-1]


@dataclass(kw_only=True, slots=True)
class Subject:
    """The server, what is known about it, and the measurements of earlier checks."""

    server: Server
    promise: Promise | None
    version: Version | None
    """The repository's version that answers; None when there is none to compare with."""
    no_version: str
    """Why `version` is None."""
    configs: dict[str, Any]
    """`ModelConfig` of the ensemble and its steps; empty when the server does not show them."""
    has_gateway: bool
    """Whether Envoy answers in front of the server."""
    quick: bool
    min_throughput: float | None
    """Images/s required at 64 in flight; None compares with `reference`."""
    reference: Reference | None = None
    """Set by the parity check."""
    speeds: list[Speed] = field(default_factory=list)
    """Set by the speed check."""

    @property
    def names(self) -> ModelNames:
        """Of the models under test."""
        return self.server.names

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the version, or the default if the version is unknown."""
        if self.version is None:
            return Preprocessing()
        return Preprocessing.from_dict(self.version.manifest["preprocessing"])

    @property
    def files(self) -> list[str]:
        """The ONNX files the server may be serving; only the configured one if the server shows it."""
        if self.version is None:
            return []
        config = self.configs.get(self.names.model)
        if config is not None and config.default_model_filename in self.version.manifest["files"]:
            return [config.default_model_filename]
        serve = self.version.manifest["serve"]
        return list(dict.fromkeys((serve["cpu_model"], serve["gpu_model"])))

    async def counters(self) -> dict[str, ModelCounters] | None:
        """Counters by model, summed over versions; None when the server does not show them."""
        answer = await self.server.call("ModelStatistics", service_pb2.ModelStatisticsRequest())
        return read_counters(answer.response.model_stats) if answer.ok else None


async def examine(
    server: Server, promise: Promise | None, *, quick: bool, min_throughput: float | None
) -> Subject:
    """Find out which version answers, which configurations are visible, and whether Envoy is in front."""
    answer = await server.classify(canary_image())
    version, reason = None, NO_REPOSITORY
    if promise is not None:
        try:
            version, reason = promise.version(answer.version), ""
        except FruitstandError as exc:
            reason = f"version {answer.version or promise.served} cannot be read here: {without_folders(exc)}"
    return Subject(
        server=server,
        promise=promise,
        version=version,
        no_version=reason,
        configs=await _configs(server),
        has_gateway=answer.through_envoy,
        quick=quick,
        min_throughput=min_throughput,
    )


async def _configs(server: Server) -> dict[str, Any]:
    configs: dict[str, Any] = {}
    names = [server.names.classifier]
    for name in names:  # the list grows in the loop: a step may be an ensemble itself
        seen = await server.call("ModelConfig", service_pb2.ModelConfigRequest(name=name))
        if seen.ok:
            configs[name] = seen.response.config
            names += [step.model_name for step in configs[name].ensemble_scheduling.step]
    return configs
