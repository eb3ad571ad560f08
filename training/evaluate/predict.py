"""A run's probabilities for images of a prepared folder, offline, from its saved weights."""

from itertools import islice

import numpy as np
import safetensors.torch
import timm
import torch

from fruitstand.images.reference_decode import decode_rows
from fruitstand.manifest import ManifestRow, PreparedData
from fruitstand.progress import track
from fruitstand.runs import Run

BATCH_SIZE = 128


def predict_probabilities(run: Run, data: PreparedData, rows: list[ManifestRow]) -> np.ndarray:
    """(N, C) float32 for every row, in fp32; only a batch of images is held at a time.

    Raises:
        DataError: an image is missing or was changed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(run.model_name, num_classes=len(run.labels))
    model.load_state_dict(safetensors.torch.load_file(run.weights))
    model = model.to(device, memory_format=torch.channels_last).eval()
    mean, std = (
        255 * torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (run.preprocessing.mean, run.preprocessing.std)
    )
    images = iter(track(decode_rows(data, rows, run.preprocessing), total=len(rows), description="evaluate"))
    parts = []
    with torch.inference_mode():
        while batch := list(islice(images, BATCH_SIZE)):
            pixels = torch.from_numpy(np.stack(batch)).to(device).permute(0, 3, 1, 2).float()
            logits = model(((pixels - mean) / std).contiguous(memory_format=torch.channels_last))
            parts.append(logits.softmax(dim=1).cpu().numpy())
    return np.concatenate(parts)
