"""What a version knows: how far an image is from its training images, and which classes are likely enough.

Calibrated at export and written into the ONNX graph as two more outputs:

    KNOWN      0 to 1; below 0.5 the image is unlike the training images, whatever the probabilities say
    SET_SIZE   how many of the most probable classes hold the right one in the chosen share of images

The distance is Mahalanobis' on the pooled features: to the nearest class mean, with one covariance for all
classes. Features are scaled to length 1 first. The covariance keeps its largest directions; the others share
one variance, so that what leaves the space of the training images counts too.

Source:
    Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples (2018): class means and
    shared covariance. Tipping and Bishop, Probabilistic PCA (1999): one variance for the directions left out.
    Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued Classifiers (2019): the threshold of the sets.
    Guo et al., On Calibration of Modern Neural Networks (2017): the temperature.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.onnx.metadata import write_model
from fruitstand.contract import FEATURES, KNOWN, PROBABILITIES, SET_SIZE

COVERAGE = 0.95
"""Share of the images whose label set is to hold the right class."""
MAX_UNKNOWN = 0.01
"""Share of the validation images that may get a KNOWN below one half."""
TYPICAL = 0.99
"""KNOWN of the median validation image."""
MAX_COMPONENTS = 128
"""Directions in which the covariance is kept; docs/decisions/evaluation.md has the numbers."""
_TEMPERATURES = np.geomspace(0.2, 5.0, 129)
_TINY = 1e-9
_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureModel:
    """Class means and one covariance, fitted to features of training images."""

    centre: np.ndarray
    """(D,) float32, the mean of all features of length 1."""
    axes: np.ndarray
    """(D, K) float32, orthonormal: the directions that are kept."""
    whitening: np.ndarray
    """(K, K) float32: coordinates along the axes to coordinates with unit variance inside each class."""
    means: np.ndarray
    """(C, K) float32, the class means in those."""
    residual_scale: float
    """One over the variance along a direction that is not kept."""

    def distances(self, features: np.ndarray) -> np.ndarray:
        """(N,) squared distances of (N, D) features to their nearest class, as the graph computes them."""
        parts = [features[start : start + _BATCH] for start in range(0, len(features), _BATCH)]
        return np.concatenate([self._distances(one) for one in parts])

    def _distances(self, features: np.ndarray) -> np.ndarray:
        offset = _unit(features) - self.centre
        inside = offset @ self.axes
        residual = ((offset - inside @ self.axes.T) ** 2).sum(axis=1)
        to_classes = (((inside @ self.whitening)[:, None] - self.means) ** 2).sum(axis=2)
        nearest: np.ndarray = to_classes.min(axis=1) + residual * self.residual_scale
        return nearest


def _unit(features: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = features / np.sqrt(np.maximum((features**2).sum(axis=1, keepdims=True), _TINY))
    return scaled


def fit_features(
    features: np.ndarray, targets: np.ndarray, *, max_components: int = MAX_COMPONENTS
) -> FeatureModel:
    """Fit class means and shared covariance.

    Args:
        features: (N, D) pooled features of training images.
        targets: (N,) their classes.
        max_components: directions in which the covariance is kept.
    """
    unit = _unit(features.astype(np.float64))
    centre = unit.mean(axis=0)
    offset = unit - centre
    classes, members = np.unique(targets, return_inverse=True)
    means = np.stack([offset[members == one].mean(axis=0) for one in range(len(classes))])
    within = offset - means[members]
    # Of all features, not of those inside the classes: the directions between the classes are kept too.
    degrees = max(1, len(unit) - len(classes))
    # With more directions than that, hardly any spread would be left to see in the others.
    num_axes = max(1, min(max_components, degrees // 4))
    axes = np.linalg.svd(offset, full_matrices=False)[2][:num_axes].T
    num_left_out = max(1, offset.shape[1] - axes.shape[1])
    inside = within @ axes
    variance = max(((within**2).sum() - (inside**2).sum()) / degrees / num_left_out, _TINY)
    # The floor keeps few training images from making a direction look exact.
    values, vectors = np.linalg.eigh(inside.T @ inside / degrees + variance * np.eye(axes.shape[1]))
    whitening = vectors / np.sqrt(values)
    return FeatureModel(
        centre=centre.astype(np.float32),
        axes=axes.astype(np.float32),
        whitening=whitening.astype(np.float32),
        means=(means @ axes @ whitening).astype(np.float32),
        residual_scale=float(1 / variance),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """What is calibrated for one file on the engine that serves it."""

    distance_limit: float
    """The distance at which KNOWN is one half."""
    slope: float
    """Of KNOWN's logit against the logarithm of the distance."""
    set_threshold: float
    """The least probability of a class in the label set."""

    def known(self, distances: np.ndarray) -> np.ndarray:
        """(N,) KNOWN for (N,) distances."""
        logit = self.slope * (math.log(self.distance_limit) - np.log(np.maximum(distances, _TINY)))
        values: np.ndarray = 1 / (1 + np.exp(-logit))
        return values


def calibrate(
    distances: np.ndarray, probabilities: np.ndarray, targets: np.ndarray, *, coverage: float = COVERAGE
) -> Thresholds:
    """Thresholds from held-back images.

    Args:
        distances: (N,) of the validation images.
        probabilities: (N, C) of the validation images.
        targets: (N,) their classes.
        coverage: share of the images whose label set is to hold the right class, 0 to 1.
    """
    limit = max(_upper_quantile(distances, 1 - MAX_UNKNOWN) or float(distances.max()), _TINY)
    middle = min(float(np.median(distances)), limit * 0.9)
    slope = math.log(TYPICAL / (1 - TYPICAL)) / (math.log(limit) - math.log(max(middle, _TINY)))
    missing = _upper_quantile(1 - probabilities[np.arange(len(targets)), targets], coverage)
    # Too few images to vouch for the coverage: a set holds every class.
    return Thresholds(
        distance_limit=limit, slope=slope, set_threshold=0.0 if missing is None else 1 - missing
    )


def _upper_quantile(values: np.ndarray, share: float) -> float | None:
    """What another value like these stays below with the given probability; None where N is too small."""
    rank = math.ceil((len(values) + 1) * share)
    return float(np.sort(values)[rank - 1]) if rank <= len(values) else None


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """What the logits are divided by, so that a probability is the share of right answers.

    Args:
        probabilities: (N, C) at temperature 1.
        targets: (N,) the right classes.

    Source:
        Platt, Probabilistic Outputs for Support Vector Machines (1999): of N images no more than N + 1 in
        N + 2 count as right. Otherwise N right answers would ask for probabilities of exactly 1.
    """
    if not np.isfinite(probabilities).all():
        return 1.0  # the gates refuse it
    num_images, num_classes = probabilities.shape
    unsure = 1 / (num_images + 2)
    wanted = np.full(probabilities.shape, unsure / num_classes)
    wanted[np.arange(num_images), targets] += 1 - unsure
    losses = [-(wanted * np.log(temper(probabilities, one) + 1e-30)).sum() for one in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(N, C) probabilities as they are after the logits were divided by the temperature."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), 1e-30)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    tempered: np.ndarray = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return tempered


def add_known(path: Path, model: FeatureModel, thresholds: Thresholds) -> None:
    """Add KNOWN and SET_SIZE to a finished ONNX file.

    They are computed from the file's own outputs in float, whatever type the network computes in.

    Args:
        path: of the file; it has PROBABILITIES and FEATURES.
        model: of the features.
        thresholds: of this file.
    """
    proto = onnx.load(path)
    graph = proto.graph
    (batch, _) = graph.output[0].type.tensor_type.shape.dim
    constants = {
        "centre": model.centre,
        "axes": model.axes,
        "axes_back": np.ascontiguousarray(model.axes.T),
        "whitening": model.whitening,
        "means": model.means[None],
        "residual_scale": np.float32(model.residual_scale),
        "tiny": np.float32(_TINY),
        "log_limit": np.float32(math.log(thresholds.distance_limit)),
        "slope": np.float32(thresholds.slope),
        "set_threshold": np.float32(thresholds.set_threshold),
        "axis_1": np.array([1]),
        "axis_2": np.array([2]),
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), _name(key)) for key, value in constants.items()
    )
    # Differences, and no expanded squares: GPUs multiply matrices with 10 bits of mantissa.
    nodes = (
        ("Mul", (FEATURES, FEATURES), "squares", {}),
        ("ReduceSum", ("squares", "axis_1"), "length_squared", {}),
        ("Max", ("length_squared", "tiny"), "length_positive", {}),
        ("Sqrt", ("length_positive",), "length", {}),
        ("Div", (FEATURES, "length"), "unit", {}),
        ("Sub", ("unit", "centre"), "offset", {}),
        ("MatMul", ("offset", "axes"), "inside", {}),
        ("MatMul", ("inside", "axes_back"), "explained", {}),
        ("Sub", ("offset", "explained"), "left_over", {}),
        ("Mul", ("left_over", "left_over"), "left_over_squared", {}),
        ("ReduceSum", ("left_over_squared", "axis_1"), "residual", {}),
        ("Mul", ("residual", "residual_scale"), "residual_distance", {}),
        ("MatMul", ("inside", "whitening"), "white", {}),
        ("Unsqueeze", ("white", "axis_1"), "white_row", {}),
        ("Sub", ("white_row", "means"), "to_means", {}),
        ("Mul", ("to_means", "to_means"), "to_means_squared", {}),
        ("ReduceSum", ("to_means_squared", "axis_2"), "to_classes", {"keepdims": 0}),
        ("ReduceMin", ("to_classes", "axis_1"), "to_nearest", {}),
        ("Add", ("to_nearest", "residual_distance"), "distance", {}),
        ("Max", ("distance", "tiny"), "distance_positive", {}),
        ("Log", ("distance_positive",), "log_distance", {}),
        ("Sub", ("log_limit", "log_distance"), "margin", {}),
        ("Mul", ("margin", "slope"), "logit", {}),
        ("Sigmoid", ("logit",), KNOWN, {}),
        ("GreaterOrEqual", (PROBABILITIES, "set_threshold"), "in_set", {}),
        ("Cast", ("in_set",), "in_set_float", {"to": onnx.TensorProto.FLOAT}),
        ("ReduceSum", ("in_set_float", "axis_1"), SET_SIZE, {}),
    )
    for operator, inputs, output, attributes in nodes:
        graph.node.append(
            helper.make_node(
                operator, [_name(one) for one in inputs], [_name(output)], name=_name(output), **attributes
            )
        )
    for name in (KNOWN, SET_SIZE):
        graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch.dim_param, 1]))
    write_model(proto, path)


def _name(name: str) -> str:
    """Outputs keep their names; what is between them gets a prefix that no network uses."""
    return name if name in (FEATURES, PROBABILITIES, KNOWN, SET_SIZE) else f"known/{name}"
