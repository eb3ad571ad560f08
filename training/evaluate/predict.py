"""Compute a run's probabilities for images of a prepared folder, offline in PyTorch."""

from itertools import islice

import numpy as np
import torch

from fruitstand.images.reference_decode import decode_rows
from fruitstand.manifest import ManifestRow, PreparedData
from fruitstand.model.network import load_network
from fruitstand.progress import track
from fruitstand.runs import Run
from training.fit.model import Classifier

BATCH_SIZE = 128


def predict_probabilities(run: Run, data: PreparedData, rows: list[ManifestRow]) -> np.ndarray:
    """Probabilities of all rows, (N, C) float32, computed in fp32.

    Raises:
        DataError: an image is missing or was changed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = Classifier(load_network(run), run.preprocessing).to(device).eval()
    images = iter(track(decode_rows(data, rows, run.preprocessing), total=len(rows), description="evaluate"))
    parts = []
    with torch.inference_mode():
        while batch := list(islice(images, BATCH_SIZE)):
            pixels = torch.from_numpy(np.stack(batch)).to(device).permute(0, 3, 1, 2).float()
            parts.append(classifier(pixels).softmax(dim=1).cpu().numpy())
    return np.concatenate(parts)
