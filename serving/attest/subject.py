"""What is under test: the server, the version that answers, and what the server lets us see of itself."""

from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE_DECODE, Preprocessing
from fruitstand.errors import FruitstandError
from fruitstand.network.statistics import ModelCounters, read_counters
from fruitstand.repository.versions import Version
from serving.attest.caller import Server
from serving.attest.promise import Promise, served_files, why_not

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
