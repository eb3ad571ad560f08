"""Recorded traffic: the encoded images that a server answered, with their arrival times.

The server writes it while it serves (`serving.engine.recorder`), `fruitstand replay` sends it to other
versions. numpy is imported inside, as everywhere in this package.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fruitstand.artefacts import atomic_file
from fruitstand.errors import ArtefactError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RECORDING_FOLDER = "encoded"
"""Below the folder of samples."""
PATTERN = "*.npz"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """N encoded images, oldest first."""

    images: list[bytes]
    """Encoded images as the decoder gets them: without metadata, except a JPEG's orientation."""
    arrived_ns: "npt.NDArray[np.int64]"
    """(N,) when each image reached the decode step, nanoseconds since 1970, ascending."""
    num_passed: int
    """Images answered in the same time; more than N if the sampling rate left some out."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last one, seconds."""
        return float(self.arrived_ns[-1] - self.arrived_ns[0]) / 1e9


def write_recording(path: Path, recording: Recording) -> None:
    """Write a recording atomically; only its owner can read it, because the images belong to callers."""
    import numpy as np

    with atomic_file(path, private=True) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            arrived_ns=recording.arrived_ns,
            size_bytes=np.array([len(one) for one in recording.images], np.int64),
            content=np.frombuffer(b"".join(recording.images), np.uint8),
            num_passed=np.array(recording.num_passed),
        )


def read_recordings(source: Path, *, max_images: int) -> Recording:
    """Read the newest recorded images.

    The source is the folder in FRUITSTAND_SAMPLES, its sub-folder `encoded`, or one file.

    Raises:
        UsageError: there is no recording.
        ArtefactError: a file is damaged.
    """
    import numpy as np

    folder = source / RECORDING_FOLDER if (source / RECORDING_FOLDER).is_dir() else source
    paths = sorted(folder.glob(PATTERN), reverse=True) if folder.is_dir() else [source]
    parts: list[Recording] = []
    for path in paths:
        if sum(map(len, parts)) >= max_images:
            break
        parts.append(_read(path))
    if not parts:
        raise UsageError(
            f"{source}: no recorded images; start the server with FRUITSTAND_SAMPLES={source} and"
            " FRUITSTAND_SAMPLES_ENCODED_MIB=256, and let it answer some"
        )
    images = [image for part in parts for image in part.images]
    arrived_ns = np.concatenate([part.arrived_ns for part in parts])
    # Servers can share the folder, so the times of different files may overlap.
    newest = np.argsort(arrived_ns, kind="stable")[-max_images:]
    share = len(newest) / len(images)
    return Recording(
        images=[images[index] for index in newest],
        arrived_ns=arrived_ns[newest],
        num_passed=round(share * sum(part.num_passed for part in parts)),
    )


def _read(path: Path) -> Recording:
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrived_ns, content = file["arrived_ns"], file["content"].tobytes()
            ends, num_passed = np.cumsum(file["size_bytes"]).tolist(), int(file["num_passed"])
    except FileNotFoundError as exc:
        raise UsageError(f"{path}: no such file or folder") from exc
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
        raise ArtefactError(f"{path}: no readable recording ({exc}); remove it") from exc
    if not len(arrived_ns) or len(arrived_ns) != len(ends) or ends[-1] != len(content):
        raise ArtefactError(f"{path}: no image, or columns of different lengths; remove it")
    starts = [0, *ends[:-1]]
    images = [content[start:end] for start, end in zip(starts, ends, strict=True)]
    return Recording(images=images, arrived_ns=arrived_ns, num_passed=num_passed)
