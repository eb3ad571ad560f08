"""The pictures of a run: learning curves and the confusion matrix."""

from pathlib import Path

import matplotlib
import numpy as np

from fruitstand.artefacts import atomic_file

matplotlib.use("Agg")

from matplotlib import pyplot as plt

MAX_TICK_LABELS = 40


def plot_curves(path: Path, epochs: list[dict[str, float]]) -> None:
    """Loss and validation top-1 over the epochs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    x = [row["epoch"] + 1 for row in epochs]
    left.plot(x, [row["train_loss"] for row in epochs], marker="o", label="train (smoothed targets)")
    left.plot(x, [row["val_loss"] for row in epochs], marker="o", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.legend()
    right.plot(x, [row["val_top1"] for row in epochs], marker="o", color="tab:green")
    right.set(xlabel="epoch", ylabel="validation top-1")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path)


def plot_confusion(path: Path, matrix: np.ndarray, labels: list[str], title: str) -> None:
    """The confusion matrix, each row as shares of its class."""
    side = min(20.0, 4 + 0.18 * len(labels))
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    axes.set(xlabel="answer", ylabel="truth", title=title)
    step = -(-len(labels) // MAX_TICK_LABELS)
    ticks = range(0, len(labels), step)
    axes.set_xticks(ticks, [labels[i] for i in ticks], rotation=90, fontsize=6)
    axes.set_yticks(ticks, [labels[i] for i in ticks], fontsize=6)
    figure.colorbar(image, label="share of the class", shrink=0.8)
    _save(figure, path)


def plot_pictures(path: Path, pictures_nhwc_u8: np.ndarray) -> None:
    """A sheet of pictures, eight in a row, each in its own pixels."""
    columns = min(8, len(pictures_nhwc_u8))
    rows = -(-len(pictures_nhwc_u8) // columns)
    _, height, width, _ = pictures_nhwc_u8.shape
    sheet = np.full((rows * (height + 4), columns * (width + 4), 3), 128, np.uint8)
    for number, picture in enumerate(pictures_nhwc_u8):
        top, left = (height + 4) * (number // columns) + 2, (width + 4) * (number % columns) + 2
        sheet[top : top + height, left : left + width] = picture
    with atomic_file(path) as temporary:
        plt.imsave(temporary, sheet, format="png")


def _save(figure: plt.Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
