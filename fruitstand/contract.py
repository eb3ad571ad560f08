"""The contract between training, export, serving and the client: names, shapes and preprocessing.

Decode and resize happen in front of the model (DALI when serving, `fruitstand.images.reference_decode`
elsewhere); mean and std live inside the ONNX graph. So between the two steps travel raw RGB bytes, and no
caller can normalise wrongly.
"""

from dataclasses import asdict, dataclass
from typing import Any

IMAGE_DECODE = "image_decode"
"""The first step: the embedded server's decoder; in NVIDIA's container the guard, then the decoder."""
IMAGE_GUARD = "image_guard"
"""Refuses images that are not whole, in front of NVIDIA's dali backend."""
IMAGE_DECODE_DALI = "image_decode_dali"
"""The decoder behind the guard."""
FRUIT_RESNET = "fruit_resnet"
FRUIT_CLASSIFIER = "fruit_classifier"

MODELS = (IMAGE_GUARD, IMAGE_DECODE_DALI, IMAGE_DECODE, FRUIT_RESNET, FRUIT_CLASSIFIER)
"""Every folder of a model repository."""

IMAGE = "IMAGE"
ENCODED = "ENCODED"
PIXELS = "PIXELS"
PROBABILITIES = "PROBABILITIES"
FEATURES = "FEATURES"
"""Pooled features, the second output of a model's file. No `config.pbtxt` names it: an ensemble would have
to carry it along; the embedded server's sampler asks for it."""

API_KEY_HEADER = "x-api-key"
"""In which a request carries its key."""
API_KEY_VARIABLE = "FRUITSTAND_API_KEY"
"""Where commands read a caller's API key from: no flag, for others see those."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Of the files that are taken for images when a folder is searched, lower case."""

CPU_ENGINES = ("openvino", "cpu")
"""What computes a model without a GPU, the preferred first: OpenVINO, or ONNX Runtime's own kernels."""

CPU_CONFIG = "cpu"
"""The `--model-config-name` of the embedded server without a GPU."""

CPU_NATIVE_CONFIG = "cpu-native"
"""The same for a server with NVIDIA's own backends, which need the guard."""

HOST_CONFIG = "host"
"""The same for the embedded server's own backend, which queues and batches by itself."""

MAX_BATCH_SIZE = 64
"""Images in one request, and in one batch on the server."""

EMBEDDED_SERVER_VERSION = "2.51.0"
"""The Triton version in nvidia-pytriton 0.7.0; every config.pbtxt stays inside its schema (24.10)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How an encoded image becomes the model's input; saved beside the weights.

    Source:
        timm `resolve_model_data_config`: same keys, same order of operations. `crop_pct` is 1.0 on
        purpose: a Fruits-360 picture ends at the fruit's edge, so nothing may be cut off.
    """

    input_size: tuple[int, int] = (100, 100)
    """Height and width in pixels."""
    resize_mode: str = "not_smaller"
    """Scale so that both sides reach `input_size`, keeping the aspect ratio."""
    interpolation: str = "bilinear"
    """Filter of the resize. Only bilinear: DALI and Pillow disagree on the others' overshoot."""
    antialias: bool = True
    """Widen the filter when shrinking, as Pillow does."""
    crop: str = "center"
    """What is kept after the resize; a half pixel rounds up."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of RGB in 0 to 1; inside the ONNX graph."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of RGB in 0 to 1; inside the ONNX graph."""
    max_encoded_bytes: int = 8 * 2**20
    """A larger file is refused unread."""
    max_pixels: int = 50_000_000
    """An image whose header announces more is refused before it is decoded."""

    def __post_init__(self) -> None:
        if len(self.input_size) != 2 or not all(
            isinstance(n, int) and 16 <= n <= 1024 for n in self.input_size
        ):
            raise ValueError(f"input_size: got {self.input_size}, allowed two integers from 16 to 1024")
        if self.resize_mode != "not_smaller":
            raise ValueError(f"resize_mode: got {self.resize_mode!r}, allowed 'not_smaller'")
        if self.interpolation != "bilinear":
            raise ValueError(f"interpolation: got {self.interpolation!r}, allowed 'bilinear'")
        if not self.antialias:
            raise ValueError("antialias: got False, allowed True (DALI and Pillow agree only with it)")
        if self.crop != "center":
            raise ValueError(f"crop: got {self.crop!r}, allowed 'center'")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean, std: got {self.mean}, {self.std}, allowed three numbers each, std > 0")
        if self.max_encoded_bytes <= 0 or self.max_pixels <= 0:
            raise ValueError("max_encoded_bytes, max_pixels: allowed positive integers")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`.

        Raises:
            ValueError: a value is outside what is allowed.
            TypeError: a key is missing or unknown.
        """
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**arguments)

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize and before the crop, in pixels, rounded half up as DALI does."""
        out_height, out_width = self.input_size
        # Integers throughout: a float ratio would round 12.499999 and 12.5 differently than DALI.
        if width * out_height >= height * out_width:
            return max(out_width, (2 * width * out_height + height) // (2 * height)), out_height
        return out_width, max(out_height, (2 * height * out_width + width) // (2 * width))
