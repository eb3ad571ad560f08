"""How one model is trained; saved with the run, so that `--resume` and the export know it."""

from dataclasses import asdict, dataclass
from typing import Any

PRECISIONS = ("auto", "32-true", "bf16-mixed")
SMALL_SCALE = 0.64
"""Side of the small images; below it the last stage's maps are too small to be computed efficiently."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Settings of one training run."""

    model_name: str = "resnet18"
    """A timm ResNet."""
    epochs: int = 8
    """Passes over the train split."""
    batch_size: int = 32
    """Images a step."""
    lr: float = 0.05
    """Peak of the one-cycle schedule, for SGD with Nesterov momentum."""
    weight_decay: float = 5e-4
    """On weights, not on biases and norms."""
    label_smoothing: float = 0.1
    """Share of each target spread over all classes."""
    input_size: int = 100
    """Height and width of the model's input, pixels."""
    progressive: bool = True
    """Train on smaller images in the first half of the epochs."""
    pretrained: bool = False
    """Start from timm's ImageNet weights."""
    precision: str = "auto"
    """auto takes bf16-mixed where the processor computes bf16 in hardware, else 32-true."""
    seed: int = 0
    """Of initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        if not self.model_name.startswith("resnet"):
            raise ValueError(f"model_name: got {self.model_name!r}, allowed a timm ResNet such as resnet18")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, allowed 1 or more")
        if not 32 <= self.input_size <= 1024:
            raise ValueError(f"input_size: got {self.input_size}, allowed 32 to 1024 pixels")
        if self.lr <= 0 or self.weight_decay < 0:
            raise ValueError(f"lr, weight_decay: got {self.lr}, {self.weight_decay}, allowed > 0 and >= 0")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: got {self.label_smoothing}, allowed 0 to below 1")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: got {self.precision!r}, allowed {PRECISIONS}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)

    def train_size(self, epoch: int) -> int:
        """Side of the training images in this epoch (from 0), pixels.

        Small images teach most of what is to be learned at less than half of the cost; the second half lets
        the network settle on the size that is served. One epoch is too short for that, see docs/DECISIONS.md.
        """
        if not self.progressive or epoch >= self.epochs / 2 or epoch == self.epochs - 1:
            return self.input_size
        return max(32, round(self.input_size * SMALL_SCALE / 16) * 16)


def resolved_precision(precision: str) -> str:
    """Replace "auto" by what this machine computes in hardware."""
    if precision != "auto":
        return precision
    import torch

    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        flags = file.read().split()
    # Without these, bf16 is emulated: 2.5 against 38 images/s, resnet18, 2 cores with AVX2 only.
    return "bf16-mixed" if {"amx_bf16", "avx512_bf16"} & set(flags) else "32-true"
