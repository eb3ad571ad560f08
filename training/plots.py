"""Plots of a run and of an evaluation: learning curves, confusion matrix, reliability."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np

from fruitstand.artefacts import atomic_file

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

MAX_TICK_LABELS = 100


def plot_curves(path: Path, epochs: list[dict[str, float]]) -> None:
    """Plot loss and validation top-1 over the epochs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    x = [row["epoch"] + 1 for row in epochs]
    left.plot(x, [row["train_loss"] for row in epochs], marker="o", label="train (smoothed targets)")
    left.plot(x, [row["val_loss"] for row in epochs], marker="o", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy", title="Loss: lower is better")
    left.legend()
    right.plot(x, [row["val_top1"] for row in epochs], marker="o", color="tab:green")
    right.set(xlabel="epoch", ylabel="validation top-1", title="Accuracy: higher is better")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, path)


def plot_confusion(path: Path, matrix: np.ndarray, labels: list[str], title: str) -> None:
    """Plot the confusion matrix; each row is normalised by the images of its class."""
    side = min(20.0, 5 + 0.15 * len(labels))
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    axes.set(xlabel="answer", ylabel="truth", title=f"{plain(title, 200)}\ngood: only the diagonal is bright")
    step = -(-len(labels) // MAX_TICK_LABELS)
    ticks = range(0, len(labels), step)
    names = [plain(labels[i]) for i in ticks]
    size = 9 if len(labels) <= 20 else 6
    axes.set_xticks(ticks, names, rotation=90, fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    if len(labels) <= 12:
        for (row, column), share in np.ndenumerate(shares):
            colour = "black" if share > 0.6 else "white"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    figure.colorbar(image, label="share of the class", shrink=0.8)
    save_figure(figure, path)


def plot_reliability(path: Path, bins: list[dict[str, float]], title: str) -> None:
    """Plot accuracy over confidence, and the number of images in each of `reliability_bins`."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(6, 7), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    left, width = [one["low"] for one in bins], [one["high"] - one["low"] for one in bins]
    top.bar(left, [one["accuracy"] for one in bins], width, align="edge", edgecolor="white", label="measured")
    top.plot([0, 1], [0, 1], linestyle="--", color="black", label="perfect")
    top.plot(
        [one["confidence"] for one in bins],
        [one["accuracy"] for one in bins],
        "o",
        color="tab:red",
        clip_on=False,
        label="at the bin's mean confidence",
    )
    words = f"{plain(title, 200)}\ngood: bars end at the dashed line"
    top.set(ylabel="accuracy", title=words, xlim=(0, 1), ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=3)
    bottom.bar(left, [one["count"] for one in bins], width, align="edge", edgecolor="white", color="tab:grey")
    bottom.set(xlabel="confidence of the answer", ylabel="images", yscale="log")
    bottom.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bottom.yaxis.set_major_formatter("{x:g}")
    bottom.yaxis.set_minor_formatter(NullFormatter())
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def plain(text: str, letters: int = 40) -> str:
    """Escape the dollar signs that matplotlib reads as formulas, and cut the text to `letters`."""
    return (text if len(text) <= letters else f"{text[: letters - 1]}…").replace("$", r"\$")


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a PNG atomically and free the figure."""
    with atomic_file(path) as temporary, warnings.catch_warnings():
        # The font lacks some scripts: such class names show as boxes here and correctly in the CSV tables.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
