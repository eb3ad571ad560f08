"""Every setting of one training run; saved with the run, so that `--resume` and the export know it.

The presets are functions at the end of the file. `--set FIELD=VALUE` reaches every field.
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fruitstand.manifest import read_prepared

CHOICES = {
    "precision": ("auto", "32-true", "bf16-mixed", "16-mixed"),
    "sched": ("cosine", "tanh", "poly", "constant"),
    "preprocessing": ("whole", "timm"),
    "loader": ("cache", "dali"),
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
    *("workers", "patience", "seed", "weight_decay", "clip_grad", "min_lr", "mixup", "cutmix"),
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
"""Transformers, ConvNeXt and mobile networks are trained with AdamW, as their authors did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Settings of one training run."""

    recipe: str = "classic"
    """The preset the other settings started from."""
    model_name: str = "resnet18"
    """timm's name of an image classifier."""
    pretrained: bool = False
    """Start from timm's own weights for that name."""
    weights: str = ""
    """Start from the weights in a safetensors file or torch checkpoint, or of hf-hub:OWNER/NAME."""
    drop_rate: float = 0.0
    """Dropout before the classifier, share of features; 0 leaves it to the model."""
    drop_path_rate: float = 0.0
    """Stochastic depth, share of residual branches left out; 0 leaves it to the model."""
    epochs: int = 8
    """Passes over the train split."""
    batch_size: int = 32
    """Images an update, over all processes and pieces together."""
    sampling: str = "uniform"
    """uniform shows each image once an epoch; balanced draws classes, and in them objects, equally often."""
    grad_accum_steps: int = 1
    """Pieces in which an update's images are computed, to need less memory."""

    opt: str = "sgd"
    """timm's name of the optimiser; its sgd has Nesterov momentum."""
    lr: float = 0.05
    """Peak learning rate."""
    momentum: float = 0.9
    """Of the optimisers that have one."""
    weight_decay: float = 5e-4
    """On weights, not on biases and norms."""
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    sched: str = "cosine"
    """timm's name of the schedule, stepped each update."""
    warmup_share: float = 0.25
    """Share of all updates in which lr rises from nothing to its peak."""
    min_lr: float = 1e-5
    """Where the schedule begins and ends."""
    ema_decay: float = 0.0
    """Of the moving average of the weights, an update; 0 keeps none. It is what is evaluated and saved."""
    label_smoothing: float = 0.1
    """Share of each target spread over all classes."""
    patience: int = 0
    """Epochs without a better validation top-1 after which training stops; 0 never stops early."""
    keep: str = "last"
    """The epoch whose weights are saved: last, or best by validation top-1."""

    input_size: int = 100
    """Height and width of the model's input, pixels."""
    preprocessing: str = "whole"
    """whole resizes bilinearly and crops nothing off a square picture; timm takes the model's own filter,
    crop_pct and crop_mode."""
    small_share: float = 0.5
    """Share of the epochs, the first ones, that train on smaller images; 0 trains on full size alone."""
    small_scale: float = 0.64
    """Side of those smaller images, as a share of `input_size`."""
    rotation_deg: float = 8.0
    """Turn by at most this much to either side."""
    min_scale: float = 0.92
    """Smallest size of the fruit, as a share of its own."""
    max_scale: float = 1.08
    """Largest size of the fruit, as a share of its own."""
    shift: float = 0.04
    """Move by at most this share of the side, in whole pixels."""
    light: float = 0.1
    """Brighter or darker by at most this share."""
    gamma: float = 0.0
    """Darker or lighter without touching black and white: the logarithm of gamma goes up to this."""
    contrast: float = 0.0
    """More or less contrast by at most this share."""
    color: float = 0.0
    """Each of red, green and blue stronger or weaker by at most this share."""
    gray_prob: float = 0.0
    """Share of images that lose their colour."""
    hflip: float = 0.0
    """Share of images mirrored left to right."""
    vflip: float = 0.0
    """Share of images mirrored top to bottom."""
    quarter_turn: float = 0.0
    """Share of images mirrored along the diagonal; with both mirrors, all symmetries of the square."""
    random_erasing: float = 0.0
    """Share of images that lose a rectangle to noise."""
    mixup: float = 0.0
    """Alpha of mixup's beta distribution; 0 is off."""
    cutmix: float = 0.0
    """Alpha of cutmix's beta distribution; 0 is off."""
    mix_prob: float = 1.0
    """Share of updates that mixup or cutmix is applied to, if either is on."""

    precision: str = "auto"
    """auto: bf16-mixed on processors with AMX and GPUs that have it, 16-mixed on other GPUs, else 32-true."""
    loader: str = "cache"
    """cache decodes every image once and keeps its pixels; dali decodes in each epoch, if it can on a GPU."""
    workers: int = 0
    """Processes that read ahead; 0 reads in the training process, which costs a CPU under 1 % of its time."""
    checkpoint_seconds: float = 60.0
    """At most so much work is lost when the process is killed; 0 writes a checkpoint each update."""
    loggers: tuple[str, ...] = ()
    """Beside metrics.csv: tensorboard, mlflow."""
    seed: int = 0
    """Of initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        if self.pretrained and self.weights:
            raise ValueError("weights: pretrained is set too, but weights come from one place")
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

        Small images teach most of what is to be learned at less than half of the cost; the rest lets
        the network settle on the size that is served. One epoch is too short for that, see
        docs/decisions/training.md.
        """
        if epoch >= self.epochs * self.small_share or epoch == self.epochs - 1:
            return self.input_size
        return max(32, round(self.input_size * self.small_scale / 16) * 16)

    def first_full_size_epoch(self) -> int:
        """The epoch (from 0) from which on the training images have the size that is served."""
        return next(epoch for epoch in range(self.epochs) if self.train_size(epoch) == self.input_size)


def with_settings(config: TrainConfig, settings: list[str]) -> TrainConfig:
    """Apply `FIELD=VALUE` settings.

    Args:
        config: what they change.
        settings: such as "lr=0.1", "pretrained=true", "loggers=tensorboard,mlflow".

    Raises:
        ValueError: not of that form, no such field, or a value of the wrong type or outside what is allowed.
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
    """A setting's text as a value of its field's type."""
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
    """Replace "auto" by what this machine computes in hardware."""
    if precision != "auto":
        return precision
    import torch

    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        flags = file.read().split()
    # Only AMX makes bf16 faster: with avx512_bf16 alone fp32 is 1.18 times as fast (resnet18, batch 32, one
    # core), and without either bf16 is emulated: 2.5 against 38 images/s on 2 cores with AVX2.
    return "bf16-mixed" if "amx_bf16" in flags else "32-true"


def classic(**values: Any) -> TrainConfig:
    """For a test split of the same films: little augmentation, as the films show every side already."""
    return TrainConfig(recipe="classic", **values)


def object_disjoint(**values: Any) -> TrainConfig:
    """For fruits that were never seen: all symmetries of the square, and light, but nothing that blurs.

    Source:
        docs/decisions/training.md: rotation and scale for all images, or strong colour changes, did not help
        on varieties that were held out.
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
    """The settings of a run: the preset, over it `--set`, over it the flags that have a name of their own.

    Args:
        recipe: one of `RECIPES`; auto takes object where whole varieties are held out, else classic.
        data_directory: a prepared folder.
        settings: such as "lr=0.1".
        given: fields and values.

    Raises:
        ValueError: no such recipe or field, or a value outside what is allowed.
        DataError: the prepared folder is not usable.
    """
    if recipe not in RECIPES:
        raise ValueError(f"--recipe: got {recipe!r}, allowed {', '.join(RECIPES)}")
    if not given.get("model_name", "resnet").startswith("resnet"):
        given = {**NOT_A_RESNET, **given}
    # What is wrong with the values themselves is said before the data are read.
    with_settings(TrainConfig(**given), settings)
    if recipe == "auto":
        recipe = "object" if read_prepared(data_directory).split_kind == "object" else "classic"
    preset = {"classic": classic, "object": object_disjoint}[recipe](**given)
    return with_settings(preset, settings)
