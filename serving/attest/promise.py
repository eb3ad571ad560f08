"""What the model repository promises: its versions, their golden answers and their own ONNX files."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fruitstand.contract import FRUIT_RESNET, Preprocessing
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.images.reference_decode import decode_reference
from fruitstand.machine.threads import thread_budget
from fruitstand.model.session import has_engine, open_session, run_batches
from fruitstand.repository.versions import (
    Version,
    published_versions,
    read_version,
    serving_state,
    verify_version,
)


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
