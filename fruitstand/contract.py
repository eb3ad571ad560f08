"""The contract between training, export, serving and the client: names, shapes and preprocessing.

Decode and resize happen in front of the model (DALI when serving, `fruitstand.images.reference_decode`
elsewhere); mean and std live inside the ONNX graph. Between the two steps pixels are raw RGB bytes, so no
caller can normalise wrongly.
"""

import math
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

FRUIT_EXPLAINER = "fruit_explainer"
"""The ensemble that says why: the same decode step, then the two models below."""
EXPLAINER_FEATURES = "explainer_features"
"""The version's fp32 file, asked for its last feature map instead of probabilities."""
EXPLAINER_HEAD = "explainer_head"
"""Makes class activation maps and nearest training images of that feature map."""
MAX_MAPS, NUM_NEIGHBOURS, PICTURE_BYTES = 5, 5, 1024
"""Classes with an activation map at most, nearest training images, and bytes of the picture of each."""
EXPLAINER_MODELS = (EXPLAINER_FEATURES, EXPLAINER_HEAD, FRUIT_EXPLAINER)
"""In the order in which a server loads them; only in a repository whose versions explain."""

IMAGE = "IMAGE"
ENCODED = "ENCODED"
PIXELS = "PIXELS"
PROBABILITIES = "PROBABILITIES"
FEATURES = "FEATURES"
"""Pooled features, the second output of a model's file. No `config.pbtxt` names it: an ensemble would have
to carry it along; the embedded server's sampler asks for it."""
KNOWN = "KNOWN"
"""How like the training images an image is, 0 to 1; an output of versions that were calibrated at export."""
KNOWN_LIMIT = 0.5
"""Below it an image is not of a known class."""
SET_SIZE = "SET_SIZE"
"""How many of the most probable classes make up the label set; comes with `KNOWN`."""
FEATURE_MAP = "FEATURE_MAP"
"""What the pooling reads, (N, D, h, w); an output of the fp32 file of a version that explains."""
ACTIVATION = "ACTIVATION"
"""(N, k, h, w) class activation maps of the k most probable classes, 0 to 1."""
NEIGHBOURS = "NEIGHBOURS"
"""(N, 5, 3) for the nearest training images: class, cosine similarity, and difference of the thumbnails."""
THUMBNAILS = "THUMBNAILS"
"""(N, 5, L) uint8, their pictures as WebP files, padded with zeros."""
CROP = "CROP"
"""(N, 3) which part of the picture the maps cover: width / height, share that is kept, 1 for squash."""

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


INTERPOLATIONS = ("bilinear", "bicubic")
CROP_MODES = ("center", "squash")
_RETIRED = {"resize_mode": "not_smaller", "antialias": True, "crop": "center"}
"""Keys that allowed one value only, and that value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How an encoded image becomes the model's input; saved beside the weights.

    Source:
        timm `resolve_model_data_config`: same keys, same order of operations. The defaults are those of
        Fruits-360, whose pictures end at the fruit's edge, so nothing is cropped off.
    """

    input_size: tuple[int, int] = (100, 100)
    """Height and width in pixels."""
    interpolation: str = "bilinear"
    """Filter of the resize: bilinear or bicubic, widened when it shrinks, as Pillow does."""
    crop_pct: float = 1.0
    """Share of the resized sides that the center crop keeps: the resize goes to `input_size / crop_pct`."""
    crop_mode: str = "center"
    """center keeps the aspect ratio and resizes the shorter side; squash resizes both sides."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of RGB in 0 to 1; inside the ONNX graph."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of RGB in 0 to 1; inside the ONNX graph."""
    max_encoded_bytes: int = 8 * 2**20
    """A larger file is refused unread."""
    max_pixels: int = 50_000_000
    """An image whose header announces more is refused before it is decoded."""
    reduced_decode: float = 3.0
    """A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size where both sides stay at least this many times
    those of the resize; 0 always decodes at full size."""

    def __post_init__(self) -> None:
        if len(self.input_size) != 2 or not all(
            isinstance(n, int) and 16 <= n <= 1024 for n in self.input_size
        ):
            raise ValueError(f"input_size: got {self.input_size}, allowed two integers from 16 to 1024")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation: got {self.interpolation!r}, allowed {', '.join(INTERPOLATIONS)}"
            )
        if not 0.5 <= self.crop_pct <= 1:
            raise ValueError(f"crop_pct: got {self.crop_pct}, allowed 0.5 to 1")
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f"crop_mode: got {self.crop_mode!r}, allowed {', '.join(CROP_MODES)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean, std: got {self.mean}, {self.std}, allowed three numbers each, std > 0")
        if self.max_encoded_bytes <= 0 or self.max_pixels <= 0:
            raise ValueError("max_encoded_bytes, max_pixels: allowed positive integers")
        if self.reduced_decode != 0 and self.reduced_decode < 1:
            raise ValueError(f"reduced_decode: got {self.reduced_decode}, allowed 0 or at least 1")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`; reads the keys of older versions as well.

        Raises:
            ValueError: a value is outside what is allowed.
            TypeError: a key is missing or unknown.
        """
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        for key, only_value in _RETIRED.items():
            if (got := arguments.pop(key, only_value)) != only_value:
                raise ValueError(f"{key}: got {got!r}, allowed {only_value!r}")
        return cls(**arguments)

    @property
    def resize_size(self) -> tuple[int, int]:
        """Height and width that the resize aims at, pixels; the crop then keeps `input_size` of it."""
        height, width = self.input_size
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize and before the crop, in pixels, rounded half up as DALI does."""
        out_height, out_width = self.resize_size
        if self.crop_mode == "squash":
            return out_width, out_height
        # Integers throughout: a float ratio would round 12.499999 and 12.5 differently than DALI.
        if width * out_height >= height * out_width:
            return max(out_width, (2 * width * out_height + height) // (2 * height)), out_height
        return out_width, max(out_height, (2 * height * out_width + width) // (2 * width))

    def jpeg_scale(self, width: int, height: int) -> int:
        """Factor by which a JPEG of this size is reduced during decoding: 8, 4, 2, or 1 for full size.

        libjpeg then computes fewer pixels of each block, which costs a fraction of a full decode and of its
        memory.
        """
        if not self.reduced_decode:
            return 1
        out_width, out_height = self.resized_size(width, height)
        margin = min(width / out_width, height / out_height) / self.reduced_decode
        return next((scale for scale in (8, 4, 2) if scale <= margin), 1)
