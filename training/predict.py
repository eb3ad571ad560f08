"""A model's probabilities for one split, offline."""

import numpy as np
import torch

from training.pixels import SplitPixels, eval_loader


def predict_probabilities(module: torch.nn.Module, dataset: SplitPixels) -> np.ndarray:
    """(N, C) float32 for every image of the split, in manifest order, in fp32."""
    module.eval()
    parts = []
    with torch.inference_mode():
        for pixels, _ in eval_loader(dataset):
            logits = module(pixels.permute(0, 3, 1, 2).float().to(next(module.parameters()).device))
            parts.append(logits.float().softmax(dim=1).cpu().numpy())
    return np.concatenate(parts)
