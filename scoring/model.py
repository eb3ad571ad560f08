"""The models that score a job: a repository's served version in this process, or a server.

The model is pinned before the job starts. Every worker loads the pinned model and refuses any other, so a
promotion during a job cannot mix two versions.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fruitstand.artefacts import sha256_file
from fruitstand.contract import (
    API_KEY_VARIABLE,
    ENCODED,
    FRUIT_CLASSIFIER,
    MAX_BATCH_SIZE,
    PIXELS,
    PROBABILITIES,
    Preprocessing,
)
from fruitstand.errors import ArtefactError, ImageRejected, ServerError
from fruitstand.images.conversion import as_supported
from fruitstand.images.dali_pipeline import served_pipeline
from fruitstand.network.tls import Tls
from fruitstand.repository.model_names import repository_names
from fruitstand.repository.versions import LOADED_CONFIG, MANIFEST_NAME, Version, read_version

ALL_CLASSES = 2**16
"""More classes than any model has; Triton then returns all of them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The most probable classes of one image."""

    labels: Sequence[str]
    """Most probable first."""
    probabilities: Sequence[float]
    """Probabilities in the same order, 0 to 1."""


Model: TypeAlias = Callable[[Sequence[bytes]], list[Answer | str]]
"""Classifies up to 64 encoded images; returns an answer or an error message for each."""


@dataclass(frozen=True, slots=True)
class PinnedVersion:
    """A published version in a model repository."""

    repository: Path
    version: int
    manifest_sha256: str
    """sha256 of its manifest, which holds the sha256 of every file."""
    pipeline: Path
    """The DALI pipeline in front of it, relative to the repository."""
    pipeline_sha256: str
    config: dict[str, Any]
    """The classifier's configuration, in the form that Triton passes to a backend."""

    def identity(self) -> dict[str, str | None]:
        """The values that must not change during a job."""
        return {
            "version": str(self.version),
            "manifest_sha256": self.manifest_sha256,
            "pipeline_sha256": self.pipeline_sha256,
        }

    def open(self, *, num_threads: int, top_k: int) -> Model:
        """Load decoder and session of the embedded server's backends into this process; not thread-safe.

        The decoder and the session have `num_threads` each.

        Raises:
            ArtefactError: the repository no longer holds what was pinned.
            ServerError: the model cannot be loaded here.
        """
        from serving.engine.decoder import Decoder
        from serving.engine.onnx_session import open_session

        version, pipeline = read_version(self.repository, self.version), self.repository / self.pipeline
        for path, expected in (
            (version.directory / MANIFEST_NAME, self.manifest_sha256),
            (pipeline, self.pipeline_sha256),
        ):
            if not path.is_file() or sha256_file(path) != expected:
                raise ArtefactError(
                    f"{path}: differs from the start of the job; all machines need equal files"
                )
        labels, preprocessing = np.array(version.labels, dtype=object), version.preprocessing
        decoder = Decoder(
            pipeline, input_name=ENCODED, max_batch_size=MAX_BATCH_SIZE, num_threads=num_threads
        )
        # This checks the model file against the manifest again, on the machine that loads it.
        session = open_session(version.directory, self.config, device_id=None, num_threads=num_threads)

        def answer(encoded: Sequence[bytes]) -> list[Answer | str]:
            files = [_as_the_client_sends(one, preprocessing) for one in encoded]
            taken = [one for one in files if not isinstance(one, ImageRejected)]
            results = iter(decoder.decode(taken) if taken else [])
            decoded = [one if isinstance(one, ImageRejected) else next(results) for one in files]
            pixels = [one for one in decoded if not isinstance(one, ImageRejected)]
            if not pixels:
                return list(map(str, decoded))
            (probabilities,) = session.run([PROBABILITIES], {PIXELS: np.stack(pixels)})
            order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
            ranked = np.take_along_axis(probabilities, order, axis=1)
            answers = map(Answer, labels[order].tolist(), ranked.tolist())
            return [str(one) if isinstance(one, ImageRejected) else next(answers) for one in decoded]

        return answer


@dataclass(frozen=True, slots=True)
class PinnedServer:
    """The version that a server answers with."""

    url: str
    version: str
    labels_sha256: str
    """Hash of its classes; the version number alone does not identify the model repository."""
    model: str = FRUIT_CLASSIFIER
    """The classifier that is asked."""
    tls: Tls | None = None
    """TLS settings of the connection. The API key is not pinned; each machine reads it from its
    environment."""

    def identity(self) -> dict[str, str | None]:
        """The values that must not change during a job; a server does not expose its manifest's hash."""
        return {
            "version": self.version,
            "manifest_sha256": None,
            "url": self.url,
            "labels_sha256": self.labels_sha256,
            "model": self.model,
        }

    def open(self, *, num_threads: int, top_k: int) -> Model:
        """Connect to it.

        Its answers raise `ServerError` if another version answers than the job began with, and `ClientError`
        if the server does not answer.
        """
        from fruitstand_client import Client

        key = os.environ.get(API_KEY_VARIABLE)
        client = Client(self.url, model=self.model, batch_size=MAX_BATCH_SIZE, tls=self.tls, api_key=key)

        def answer(encoded: Sequence[bytes]) -> list[Answer | str]:
            answers: list[Answer | str] = []
            for one in client.classify_stream(encoded, top_k=top_k):
                # Rejected images go to the error table. Other errors end the job, which can be continued.
                if one.failure is not None and not isinstance(one.failure, ImageRejected):
                    raise one.failure
                if one.error is not None:
                    answers.append(one.error)
                    continue
                if one.model_version != self.version:
                    raise ServerError(
                        f"{self.url}: answers with version {one.model_version}, but the job began with"
                        f" {self.version}; roll back, or score into another --out"
                    )
                answers.append(
                    Answer([rank.label for rank in one.top_k], [rank.probability for rank in one.top_k])
                )
            return answers

        return answer


def pin_repository(repository: Path, trusted_keys: Path | None) -> PinnedVersion:
    """Verify the version that a repository serves, as the server does at its start, and pin it.

    Raises:
        UsageError: no repository, or nothing published in it.
        ArtefactError: a version was altered, has no trusted signature, or has no DALI pipeline.
    """
    from serving.triton.embedded import checked_repository

    return pin_version(*checked_repository(repository, trusted_keys))


def pin_version(repository: Path, version: Version) -> PinnedVersion:
    """Pin a verified version, served or not: all share the repository's pipeline and configuration.

    Raises:
        ArtefactError: there is no DALI pipeline, or the configuration cannot be read.
    """
    pipeline = served_pipeline(repository)
    return PinnedVersion(
        repository=repository,
        version=version.number,
        manifest_sha256=sha256_file(version.directory / MANIFEST_NAME),
        pipeline=pipeline.relative_to(repository),
        pipeline_sha256=sha256_file(pipeline),
        config=read_config(repository / repository_names(repository).place(LOADED_CONFIG)),
    )


def pin_server(url: str, tls: Tls | None, model: str) -> PinnedServer:
    """Send a canary image to a server, and pin the version and the classes that answer.

    Raises:
        ClientError: the server does not answer.
        ServerError: the server rejects a valid image.
    """
    from fruitstand.images.synthetic import canary_image
    from fruitstand_client import Client

    with Client(url, model=model, tls=tls, api_key=os.environ.get(API_KEY_VARIABLE)) as client:
        (prediction,) = client.classify([canary_image()], top_k=ALL_CLASSES)
    if prediction.error or prediction.model_version is None:
        raise ServerError(f"{url}: a canary image was not answered: {prediction.error}")
    # Sorted, because rounding may change the order of nearly equal probabilities.
    labels = "\n".join(sorted(rank.label for rank in prediction.top_k))
    labels_sha256 = hashlib.sha256(labels.encode()).hexdigest()
    return PinnedServer(url, prediction.model_version, labels_sha256, model, tls)


def _as_the_client_sends(encoded: bytes, preprocessing: Preprocessing) -> np.ndarray | ImageRejected:
    """Convert an image to a supported format if necessary; (N,) uint8, or the error."""
    try:
        return np.frombuffer(as_supported(encoded, preprocessing).content, np.uint8)
    except ImageRejected as exc:
        return exc


def read_config(path: Path) -> dict[str, Any]:
    """Read a `config.pbtxt` into the form that Triton passes to a backend."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    try:
        message = text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
        raise ArtefactError(f"{path}: cannot be read ({exc}); run 'fruitstand models check'") from exc
    config: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return config
