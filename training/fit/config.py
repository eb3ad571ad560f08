"""All settings of a training run, and the presets.

`--set FIELD=VALUE` sets any field. The resolved settings are saved with the run, where `--resume` and the
export read them. The presets are functions at the end of the file.
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fruitstand.manifest import read_prepared

CHOICES = {
    "precision": ("auto", "32-true", "bf16-mixed", "16-mixed"),
    "sched": ("cosine", "tanh", "poly", "constant"),
    "preprocessing": ("whole", "timm"),
    "keep": ("last", "best"),
    "sampling": ("uniform", "balanced"),
}
LOGGERS = ("tensorboard", "mlflow")
BELOW_ONE = ("momentum", "drop_rate", "drop_path_rate", "label_smoothing", "ema_decay", "warmup_share")
_SHARES = (
    *("gray_prob", "hflip", "vflip", "quarter_turn", "random_erasing", "mix_prob", "light"),
    *("gamma", "contrast", "color", "shift", "small_scale", "small_share"),
)
_NOT_NEGATIVE = (
    *("workers", "seed", "weight_decay", "clip_grad", "min_lr", "mixup", "cutmix"),
    "checkpoint_seconds",
)
RANGES: dict[str, tuple[float, float | None]] = {
    **dict.fromkeys(("epochs", "batch_size", "grad_accum_steps"), (1, None)),
    **dict.fromkeys(_NOT_NEGATIVE, (0, None)),
    **dict.fromkeys(_SHARES, (0, 1)),
    "input_size": (32, 1024),
    "rotation_deg": (0, 180),
}
RECIPES = ("auto", "classic", "object")
NOT_A_RESNET: dict[str, Any] = {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05}
"""Defaults for transformers, ConvNeXt and mobile networks: AdamW, as their authors used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Settings of one training run."""

    recipe: str = "classic"
    """The preset that the settings started from."""
    model_name: str = "resnet18"
    """timm's name of an image classifier."""
    pretrained: bool = False
    """Start from timm's own weights for that name."""
    weights: str = ""
    """Start from the weights in a safetensors file, a torch checkpoint, or hf-hub:OWNER/NAME."""
    drop_rate: float = 0.0
    """Dropout before the classifier, share of features; 0 keeps the model's default."""
    drop_path_rate: float = 0.0
    """Stochastic depth, share of residual branches left out; 0 keeps the model's default."""
    epochs: int = 8
    """Passes over the train split."""
    batch_size: int = 32
    """Images in one update, over all processes and gradient-accumulation steps."""
    sampling: str = "uniform"
    """uniform uses each image once per epoch; balanced draws classes, and objects within them, equally
    often."""
    grad_accum_steps: int = 1
    """Gradient-accumulation steps in one update; more steps need less memory."""

    opt: str = "sgd"
    """timm's name of the optimiser; sgd has Nesterov momentum."""
    lr: float = 0.05
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum, for optimisers that have one."""
    weight_decay: float = 5e-4
    """Weight decay; biases and norm weights have none."""
    clip_grad: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    sched: str = "cosine"
    """timm's name of the learning-rate schedule, stepped each update."""
    warmup_share: float = 0.25
    """Share of all updates in which lr rises linearly from min_lr to lr."""
    min_lr: float = 1e-5
    """Learning rate at the start and the end of the schedule."""
    ema_decay: float = 0.0
    """Decay per update of a moving average of the weights, which is then evaluated and saved; 0 is off."""
    label_smoothing: float = 0.1
    """Share of each target that is spread over all classes."""
    keep: str = "last"
    """Which epoch's weights are saved: last, or best by validation top-1."""

    input_size: int = 100
    """Height and width of the model's input, pixels."""
    preprocessing: str = "whole"
    """whole resizes bilinearly and keeps all of a square image; timm uses the model's own interpolation,
    crop_pct and crop_mode."""
    small_share: float = 0.5
    """Share of the epochs that train on smaller images, from the first one; 0 trains only on full size."""
    small_scale: float = 0.64
    """Side of these smaller images, as a share of `input_size`."""
    rotation_deg: float = 8.0
    """Largest rotation in either direction, degrees."""
    min_scale: float = 0.92
    """Smallest scale factor."""
    max_scale: float = 1.08
    """Largest scale factor."""
    shift: float = 0.04
    """Largest shift as a share of the side, rounded to whole pixels."""
    light: float = 0.1
    """Largest change of brightness, as a share."""
    gamma: float = 0.0
    """Largest absolute logarithm of gamma; black and white stay as they are."""
    contrast: float = 0.0
    """Largest change of contrast, as a share."""
    color: float = 0.0
    """Largest change of each of red, green and blue, as a share."""
    gray_prob: float = 0.0
    """Share of images converted to grey."""
    hflip: float = 0.0
    """Share of images mirrored left to right."""
    vflip: float = 0.0
    """Share of images mirrored top to bottom."""
    quarter_turn: float = 0.0
    """Share of images mirrored along the diagonal; with hflip and vflip, all symmetries of the square."""
    random_erasing: float = 0.0
    """Share of images in which a rectangle is replaced by noise."""
    mixup: float = 0.0
    """Alpha of mixup's beta distribution; 0 is off."""
    cutmix: float = 0.0
    """Alpha of cutmix's beta distribution; 0 is off."""
    mix_prob: float = 1.0
    """Share of updates with mixup or cutmix, if either is on."""

    precision: str = "auto"
    """auto is bf16-mixed on CPUs with AMX and GPUs with bf16, 16-mixed on other GPUs, else 32-true."""
    workers: int = 0
    """Processes that read ahead; 0 reads in the training process, which takes under 1 % of the time on a
    CPU."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, the most work a kill can lose; 0 writes one after each update."""
    loggers: tuple[str, ...] = ()
    """Trackers besides metrics.csv: tensorboard, mlflow."""
    seed: int = 0
    """Seed of initial weights, image order and augmentation."""

    def __post_init__(self) -> None:
        if self.pretrained and self.weights:
            raise ValueError("weights: pretrained is set too; give one source of weights")
        for name, (low, high) in RANGES.items():
            self._within(name, low, high)
        self._within("max_scale", self.min_scale, 4)
        for name in ("lr", "min_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, allowed above 0")
        for name in BELOW_ONE:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, allowed 0 to below 1")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, allowed {', '.join(allowed)}")
        unknown = set(self.loggers) - set(LOGGERS)
        if unknown:
            raise ValueError(f"loggers: got {min(unknown)!r}, allowed {', '.join(LOGGERS)}")
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"grad_accum_steps: got {self.grad_accum_steps}, allowed a divisor of batch_size"
            )
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"batch_size: got {self.batch_size}, allowed even numbers with mixup or cutmix")

    def _within(self, name: str, low: float, high: float | None) -> None:
        value = getattr(self, name)
        if not (low <= value and (high is None or value <= high)):
            allowed = f"{low} or more" if high is None else f"{low} to {high}"
            raise ValueError(f"{name}: got {value}, allowed {allowed}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_dict`.

        Raises:
            ValueError: a value is outside what is allowed.
            TypeError: a key is unknown.
        """
        return cls(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        )

    def train_size(self, epoch: int) -> int:
        """Side of the training images in this epoch (from 0), pixels.

        Small images give most of the accuracy at less than half of the cost. The last epochs adapt the
        network to the size that is served; one epoch is too short for that, see docs/decisions/training.md.
        """
        if epoch >= self.epochs * self.small_share or epoch == self.epochs - 1:
            return self.input_size
        return max(32, round(self.input_size * self.small_scale / 16) * 16)


def with_settings(config: TrainConfig, settings: list[str]) -> TrainConfig:
    """Apply `FIELD=VALUE` settings, such as "lr=0.1" or "loggers=tensorboard,mlflow".

    Raises:
        ValueError: not of that form, no such field, or an invalid value.
    """
    defaults = {field.name: field.default for field in fields(TrainConfig) if field.name != "recipe"}
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in defaults:
            raise ValueError(
                f"--set {setting}: expected FIELD=VALUE, FIELD one of {', '.join(sorted(defaults))}"
            )
        values[name] = _parsed(name, text, type(defaults[name]))
    return replace(config, **values)


def _parsed(name: str, text: str, kind: type) -> Any:
    """Convert a setting's text to its field's type."""
    if kind is tuple:
        return tuple(part for part in text.split(",") if part)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name}: got {text!r}, allowed true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}: got {text!r}, expected {kind.__name__}") from None


def resolved_precision(precision: str) -> str:
    """Replace "auto" by the fastest precision that this machine has in hardware."""
    if precision != "auto":
        return precision
    import torch

    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        flags = file.read().split()
    # bf16 is faster only with AMX. With avx512_bf16 alone, fp32 is 1.18 times as fast (resnet18, batch 32,
    # one core). Without either, bf16 is emulated: 2.5 images/s against 38 for fp32 on 2 cores with AVX2.
    return "bf16-mixed" if "amx_bf16" in flags else "32-true"


def classic(**values: Any) -> TrainConfig:
    """Preset for tests on the same films: little augmentation, as the films already show every side."""
    return TrainConfig(recipe="classic", **values)


def object_disjoint(**values: Any) -> TrainConfig:
    """Preset for tests on unseen fruits: symmetries of the square and light changes, nothing that blurs.

    Source:
        docs/decisions/training.md: rotation, scaling and strong colour changes did not help on held-out
        varieties.
    """
    settings: dict[str, Any] = {
        "recipe": "object",
        "epochs": 26,
        "small_share": 0.88,
        "warmup_share": 0.1,
        "sampling": "balanced",
        "rotation_deg": 0.0,
        "min_scale": 1.0,
        "max_scale": 1.0,
        "shift": 0.06,
        "hflip": 0.5,
        "vflip": 0.5,
        "quarter_turn": 0.5,
        "gamma": 0.4,
        "light": 0.0,
        "color": 0.1,
        "gray_prob": 0.1,
        "ema_decay": 0.99,
    }
    return TrainConfig(**{**settings, **values})


def resolve_config(
    recipe: str, data_directory: Path, settings: list[str], given: dict[str, Any]
) -> TrainConfig:
    """Resolve the settings of a run: the preset, changed by the flags in `given`, changed by `--set`.

    Args:
        recipe: one of `RECIPES`; auto is object if the split holds out whole varieties, else classic.
        data_directory: a prepared folder.
        settings: such as "lr=0.1".
        given: fields and values that have a flag of their own, such as `--epochs`.

    Raises:
        ValueError: no such recipe or field, or an invalid value.
        DataError: the prepared folder is not usable.
    """
    if recipe not in RECIPES:
        raise ValueError(f"--recipe: got {recipe!r}, allowed {', '.join(RECIPES)}")
    if not given.get("model_name", "resnet").startswith("resnet"):
        given = {**NOT_A_RESNET, **given}
    # Check the values before reading the data, which takes longer.
    with_settings(TrainConfig(**given), settings)
    if recipe == "auto":
        recipe = "object" if read_prepared(data_directory).split_kind == "object" else "classic"
    preset = {"classic": classic, "object": object_disjoint}[recipe](**given)
    return with_settings(preset, settings)
