"""The timm network of a run, and the normalisation of its input.

torch, timm and safetensors are imported inside the functions, so importing this module is cheap.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fruitstand.contract import Preprocessing
from fruitstand.runs import Run

if TYPE_CHECKING:
    import torch


def create_network(
    model_name: str, *, num_classes: int, input_size: tuple[int, int], **arguments: Any
) -> "torch.nn.Module":
    """Create a timm model.

    `input_size` (height and width, pixels) is used for models with a fixed one, such as a ViT. Other
    arguments go to timm, such as pretrained and drop_rate.
    """
    import timm

    known = timm.get_pretrained_cfg(model_name)
    if known is not None and known.fixed_input_size:
        try:
            return timm.create_model(model_name, num_classes=num_classes, img_size=input_size, **arguments)
        except TypeError as exc:
            if "img_size" not in str(exc):
                raise
    return timm.create_model(model_name, num_classes=num_classes, **arguments)


def read_weights(path: Path) -> "dict[str, torch.Tensor]":
    """Read the tensors of a safetensors file, keyed by name."""
    import safetensors.torch

    return safetensors.torch.load_file(path)


def load_network(run: Run) -> "torch.nn.Module":
    """Load a run's network with its weights, on the CPU and in training mode, as timm creates it."""
    size = run.preprocessing.input_size
    network = create_network(run.model_name, num_classes=len(run.labels), input_size=size)
    network.load_state_dict(read_weights(run.weights))
    return network


def mean_and_std(preprocessing: Preprocessing) -> "tuple[torch.Tensor, torch.Tensor]":
    """Mean and std for pixels from 0 to 255, each (1, 3, 1, 1) float32."""
    import torch

    mean, std = (
        255 * torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    return mean, std


def normalise(batch_nchw_f32: "torch.Tensor", mean: "torch.Tensor", std: "torch.Tensor") -> "torch.Tensor":
    """Normalise pixels from 0 to 255 to the network's input."""
    return (batch_nchw_f32 - mean) / std


def scale_and_shift(preprocessing: Preprocessing) -> "tuple[torch.Tensor, torch.Tensor]":
    """`normalise` as pixels * scale + shift, for the ONNX graph; each (1, 3, 1, 1) float32."""
    mean, std = mean_and_std(preprocessing)
    return 1 / std, -mean / std
