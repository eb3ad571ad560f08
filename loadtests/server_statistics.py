"""Read a Triton server's model configurations and counters over gRPC."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fruitstand.contract import FRUIT_CLASSIFIER, IMAGE, PROBABILITIES
from fruitstand.errors import FruitstandError, ServerError, UsageError
from fruitstand.network.connections import open_channel
from fruitstand.network.statistics import ModelCounters, read_counters
from fruitstand_client import Client
from fruitstand_client.errors import translate

log = logging.getLogger("fruitstand.loadtest")

TIMEOUT_S = 10.0
Counters = dict[str, ModelCounters]
"""Counters of the ensemble and its steps, keyed by model."""


class ServedModel:
    """The classifier on a server; use as a context manager."""

    def __init__(self, url: str, name: str = FRUIT_CLASSIFIER, *, behind_gateway: bool = False) -> None:
        """Connect and read the configurations.

        Args:
            url: HOST:PORT of the gRPC endpoint.
            name: name of the classifier.
            behind_gateway: accept a gateway that forbids reading them; then `steps` and counters are empty.

        Raises:
            UsageError: no server answers there, or it does not serve the classifier.
        """
        self.url, self.name = url, name
        self._channel = open_channel(url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._has_answered = False
        self.steps: list[str] = []
        self.configs: dict[str, Any] = {}
        try:
            self.server_version: str = self._ask(
                "ServerMetadata", service_pb2.ServerMetadataRequest()
            ).version
            self._has_answered = True
            self._read_configs()
        except BaseException as exc:
            cause = exc.__cause__
            forbidden = isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.PERMISSION_DENIED
            if behind_gateway and forbidden:
                log.warning("%s forbids statistics: the result lacks the server's counters", url)
                return
            self.close()
            raise

    def __enter__(self) -> "ServedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def answer(self, image: bytes) -> None:
        """Check that the server classifies an image.

        Raises:
            UsageError: it does not.
        """
        try:
            with Client(self.url, model=self.name, deadline_s=TIMEOUT_S) as client:
                client.classify_batch([image])
        except FruitstandError as exc:
            raise UsageError(str(exc)) from exc

    def probabilities(self, images: Sequence[bytes]) -> list[bytes]:
        """Classify each image in a request of its own; raw float32 bytes of the answers."""
        answers = []
        for image in images:
            request = service_pb2.ModelInferRequest(model_name=self.name, raw_input_contents=[image])
            request.inputs.add(name=IMAGE, datatype="UINT8").shape.extend((1, len(image)))
            request.outputs.add(name=PROBABILITIES)
            answers.append(bytes(self._ask("ModelInfer", request).raw_output_contents[0]))
        return answers

    def read(self) -> Counters:
        """Read the current counters; empty behind a gateway."""
        if not self.configs:
            return {}
        answer = self._ask("ModelStatistics", service_pb2.ModelStatisticsRequest())
        found = read_counters(answer.model_stats)
        return {name: counters for name, counters in found.items() if name in self.configs}

    def _read_configs(self) -> None:
        ensemble = self._config(self.name)
        steps = dict(self._step_configs(ensemble))
        self.steps = list(steps)
        self.configs = {self.name: ensemble, **steps}

    def _step_configs(self, ensemble: Any) -> Iterator[tuple[str, Any]]:
        """Configurations of the steps; a step that is an ensemble is replaced by its own steps."""
        for step in ensemble.ensemble_scheduling.step:
            config = self._config(step.model_name)
            if config.ensemble_scheduling.step:
                yield from self._step_configs(config)
            else:
                yield step.model_name, config

    def _config(self, name: str) -> Any:
        return self._ask("ModelConfig", service_pb2.ModelConfigRequest(name=name)).config

    def _ask(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=TIMEOUT_S)
        except grpc.RpcError as exc:
            # A server that answered before has failed; otherwise the URL is wrong.
            is_lost = self._has_answered and exc.code() is grpc.StatusCode.UNAVAILABLE
            kind = ServerError if is_lost else UsageError
            raise kind(str(translate(exc.code().name, exc.details() or "", self.url))) from exc


class StatisticsLog:
    """Context manager that reads the counters once a second in a thread."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._readings: list[tuple[float, Counters]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "StatisticsLog":
        self._readings.append((time.time(), self._model.read()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._readings.append((time.time(), self._model.read()))

    def between(self, start: float, end: float) -> tuple[Counters, float]:
        """Growth of the counters between the readings nearest to two times, and the seconds between these."""
        first = min(self._readings, key=lambda one: abs(one[0] - start))
        last = min(self._readings, key=lambda one: abs(one[0] - end))
        return growth(first[1], last[1]), last[0] - first[0]

    def total(self) -> Counters:
        """Growth of the counters from the first reading to the last."""
        return growth(self._readings[0][1], self._readings[-1][1])

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            try:
                self._readings.append((time.time(), self._model.read()))
            except FruitstandError as exc:
                log.warning("reading the counters failed: %s", exc)
                return


def growth(before: Counters, after: Counters) -> Counters:
    """The growth of each model's counters."""
    return {name: after[name] - before[name] for name in after if name in before}


def breakdown(counters: Counters, steps: list[str], seconds: float) -> list[dict[str, Any]]:
    """The counters of each step in the form of the result files."""
    return [
        {
            "name": name,
            "num_images": counters[name].num_images,
            "num_executions": counters[name].num_executions,
            "mean_batch": round(counters[name].mean_batch, 2),
            "busy": round(counters[name].busy_ns / 1e9 / seconds, 3) if seconds else 0.0,
            "mean_ms": counters[name].stage_ms(),
        }
        for name in steps
    ]
