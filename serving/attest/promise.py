"""What is under test, and what its model repository promises: versions, golden answers, ONNX files."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from fruitstand.contract import (
    FRUIT_CLASSIFIER,
    FRUIT_RESNET,
    IMAGE_DECODE,
    Preprocessing,
)
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.images.reference_decode import decode_reference
from fruitstand.machine.threads import thread_budget
from fruitstand.model.session import has_engine, open_session, run_batches
from fruitstand.network.statistics import ModelCounters, read_counters
from fruitstand.repository.versions import (
    Version,
    published_versions,
    read_version,
    serving_state,
    verify_version,
)
from serving.attest.caller import Server


@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """A repository as it lies on this machine."""

    repository: Path
    served: int
    """The version it serves."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the served version's pixels, by its manifest alone."""
        manifest = read_version(self.repository, self.served).manifest
        return Preprocessing.from_dict(manifest["preprocessing"]).input_size

    def version(self, number: int | None) -> Version:
        """A version whose files are as published; None takes the served one.

        Raises:
            FruitstandError: the repository does not have it, or a file was altered.
        """
        return verify_version(self.repository, self.served if number is None else number)


def read_promise(repository: Path) -> Promise:
    """Read which version a repository serves.

    Raises:
        UsageError: no repository there, or it serves nothing.
        ArtefactError: the served version's manifest cannot be read.
    """
    if not (repository / FRUIT_RESNET).is_dir():
        raise UsageError(f"{repository}: no model repository; leave --repository out to attest without one")
    state = serving_state(repository)
    if state is None:
        known = ", ".join(map(str, published_versions(repository))) or "none"
        raise UsageError(f"{repository}: serves no version; published: {known}")
    read_version(repository, state.version)
    return Promise(repository=repository, served=state.version)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Images decoded by the reference decode, and what the version's own file answers to them."""

    file: str
    """Of the ONNX file."""
    pixels_nhwc_u8: np.ndarray
    probabilities: np.ndarray
    """(N, C) float32."""
    images_per_s: float
    """Decoded one after the other and computed in batches, in this process."""
    image_s: float
    """Of one image alone, decode and model, in this process."""


def decode_all(images: Sequence[bytes], preprocessing: Preprocessing) -> np.ndarray:
    """(N, H, W, 3) uint8 by the reference decode."""
    return np.stack([decode_reference(image, preprocessing) for image in images])


def reference_answers(version: Version, file: str, images: Sequence[bytes]) -> Reference:
    """Answer images with a version's own file, on the engine it was checked with where this machine has it.

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
    run_batches(session, pixels[:1])  # the first call of a size plans it
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


def served_files(version: Version) -> list[str]:
    """The files a server may serve of a version: on a CPU, on a GPU."""
    serve = version.manifest["serve"]
    return list(dict.fromkeys((serve["cpu_model"], serve["gpu_model"])))


def why_not(error: FruitstandError) -> str:
    """The reason for a report that leaves this machine: without folders."""
    return str(error).rsplit("/", 1)[-1]


MODELS = (FRUIT_CLASSIFIER, IMAGE_DECODE, FRUIT_RESNET)
NO_REPOSITORY = "no --repository to compare with"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What all checks look at."""

    server: Server
    promise: Promise | None
    version: Version | None
    """The version that answers, from the repository; None where that is not to be had."""
    no_version: str
    """Why there is none."""
    configs: dict[str, Any]
    """`ModelConfig` of the ensemble and of every step below it; empty where the server does not show them."""
    has_gateway: bool
    """Envoy answers."""
    quick: bool

    @property
    def preprocessing(self) -> Preprocessing:
        """The version's, or the default where it is not known."""
        if self.version is None:
            return Preprocessing()
        return Preprocessing.from_dict(self.version.manifest["preprocessing"])

    @property
    def files(self) -> list[str]:
        """The ONNX files the server may be serving: the configured one where it can be seen."""
        if self.version is None:
            return []
        config = self.configs.get(FRUIT_RESNET)
        if config is not None and config.default_model_filename in self.version.manifest["files"]:
            return [config.default_model_filename]
        return served_files(self.version)

    async def counters(self) -> dict[str, ModelCounters] | None:
        """Each model's counters, versions added up; None where the server does not show them."""
        answer = await self.server.call("ModelStatistics", service_pb2.ModelStatisticsRequest())
        return read_counters(answer.response.model_stats) if answer.ok else None


async def examine(server: Server, promise: Promise | None, sample: bytes, *, quick: bool) -> Subject:
    """Find out which version answers, and what else can be seen.

    Args:
        server: that answers already.
        promise: the repository, where it is at hand.
        sample: an image it answers.
        quick: make fewer requests in each check.
    """
    answer = await server.classify(sample)
    version, reason = None, NO_REPOSITORY
    if promise is not None:
        try:
            version, reason = promise.version(answer.version), ""
        except FruitstandError as exc:
            reason = f"version {answer.version or promise.served} cannot be used here: {why_not(exc)}"
    return Subject(
        server=server,
        promise=promise,
        version=version,
        no_version=reason,
        configs=await _configs(server),
        has_gateway=answer.through_envoy,
        quick=quick,
    )


async def _configs(server: Server) -> dict[str, Any]:
    configs: dict[str, Any] = {}
    names = [FRUIT_CLASSIFIER]
    for name in names:  # grows while it is read: a step may be an ensemble itself
        seen = await server.call("ModelConfig", service_pb2.ModelConfigRequest(name=name))
        if seen.ok:
            configs[name] = seen.response.config
            names += [step.model_name for step in configs[name].ensemble_scheduling.step]
    return configs
