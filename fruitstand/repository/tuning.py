"""CPU settings for queues, instances and threads of the two steps, as `fruitstand tune` finds them.

`export/publish/render.py` writes the settings of `tuning.json` into `config.pbtxt`; a promotion keeps them.
Without the file the defaults apply. The largest batch is not a setting, because the contract lets clients
send that many images in a request.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fruitstand.artefacts import read_json
from fruitstand.contract import MAX_BATCH_SIZE
from fruitstand.errors import ArtefactError

TUNING_NAME = "tuning.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """Settings of the decode and the infer step."""

    decode_queue_delay_us: int = 1000
    """Longest time an image waits for others to be decoded in the same batch."""
    decode_instances: int = 1
    decode_threads: int = -1
    """Decode threads per instance; -1 uses the thread budget."""
    infer_queue_delay_us: int = 1000
    """Longest time decoded images wait for others in Triton's dynamic batcher."""
    infer_preferred_batch: int = 0
    """Batch size that ends this wait early; 0 waits for the largest batch."""
    infer_instances: int = 1
    infer_threads: int = 0
    """Intra-op threads per instance; 0 uses an equal share of the thread budget."""
    infer_workers: int = 0
    """Batches that our C++ backend computes at the same time; 0 uses as many as the threads allow."""
    infer_threads_per_worker: int = 1
    infer_part_images: int = 16
    """Images that a worker of our C++ backend computes at a time."""
    infer_wait_us: int = 4000
    """Longest time decoded images wait for others in our C++ backend, if others are still being decoded."""
    max_queue_size: int = 1024
    """Requests that may wait for the first step; further requests are rejected immediately."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("decode_queue_delay_us", 0, 1_000_000),
            ("decode_instances", 1, 64),
            ("decode_threads", -1, 1024),
            ("infer_queue_delay_us", 0, 1_000_000),
            ("infer_preferred_batch", 0, MAX_BATCH_SIZE),
            ("infer_instances", 1, 64),
            ("infer_threads", 0, 1024),
            ("infer_workers", 0, 1024),
            ("infer_threads_per_worker", 1, 1024),
            ("infer_part_images", 1, MAX_BATCH_SIZE),
            ("infer_wait_us", 0, 1_000_000),
            ("max_queue_size", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if (
                type(value) is not int
                or not least <= value <= most
                or (name == "decode_threads" and not value)
            ):
                raise ValueError(f"{name}: got {value!r}, allowed a whole number from {least} to {most}")

    def to_dict(self) -> dict[str, int]:
        """Convert to JSON-ready values."""
        return asdict(self)


DEFAULTS = Tuning()


def read_tuning(path: Path) -> Tuning:
    """Read settings.

    A model repository without the file has the defaults.

    Raises:
        ArtefactError: no such file, or invalid settings.
    """
    if path.is_dir():
        path = path / TUNING_NAME
        if not path.is_file():
            return DEFAULTS
    settings = read_json(path)
    known = {field.name for field in fields(Tuning)}
    if unknown := set(settings) - known:
        raise ArtefactError(
            f"{path}: unknown settings {', '.join(sorted(unknown))}; allowed {', '.join(sorted(known))}"
        )
    try:
        return Tuning(**settings)
    except ValueError as exc:
        raise ArtefactError(f"{path}: {exc}") from exc
