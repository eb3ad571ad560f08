"""The explainer: a small ONNX file that says why a network answered as it did.

Where a network ends in global average pooling and one linear layer, the class activation map is that layer
applied to every cell of the last feature map. Shown is by how much a cell exceeds the map's average. The file
holds the layer, and features, thumbnails and pictures of a sample of the training images, and the graph finds
the nearest of them. So any server that runs the network can run its explainer, and needs no other files.

Source:
    Zhou et al., "Learning Deep Features for Discriminative Localization" (class activation maps), CVPR 2016.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image

from export.onnx.graph import IR_VERSION, OPSET
from export.onnx.metadata import write_model
from fruitstand.contract import (
    ACTIVATION,
    CROP,
    FEATURE_MAP,
    MAX_MAPS,
    NEIGHBOURS,
    NUM_NEIGHBOURS,
    PICTURE_BYTES,
    PIXELS,
    PROBABILITIES,
    THUMBNAILS,
    Preprocessing,
)
from fruitstand.images.thumbnail import THUMBNAIL_SIDE, thumbnail

MAX_BYTES = 5_000_000
"""Of the file beside the layer's weights: it limits how many training images are kept."""
PICTURE_SIDE = 64
"""Pixels. As WebP: JPEG's tables alone would take more than half of `PICTURE_BYTES`."""
_SPATIAL = [2, 3]
_CELL_BYTES = 3 * THUMBNAIL_SIDE**2
_KEEPS_VALUES = ("Flatten", "Reshape", "Squeeze", "Identity", "Dropout")


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearHead:
    """The end of a network: the mean of each feature over the map, then one linear layer."""

    feature_map: str
    """Name of the (N, D, h, w) tensor that the pooling reads."""
    weights: np.ndarray
    """(C, D) float32."""
    bias: np.ndarray
    """(C,) float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSample:
    """M training images to compare with."""

    classes: np.ndarray
    """(M,) int64."""
    features: np.ndarray
    """(M, D) float32, pooled."""
    pixels: np.ndarray
    """(M, H, W, 3) uint8 RGB."""


def find_linear_head(graph: onnx.GraphProto) -> LinearHead | None:
    """The pooling and the linear layer that a network ends in; None where it ends in anything else.

    It is looked for from the probabilities backwards: softmax, a constant scale such as a temperature, the
    linear layer with its bias, the pooling.
    """
    makers = {name: node for node in graph.node for name in node.output}
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    node = makers[PROBABILITIES]
    scale, bias = np.ones((), np.float32), np.zeros((), np.float32)
    while node is not None and node.op_type in ("Softmax", "Div", "Mul", "Add", *_KEEPS_VALUES):
        if node.op_type in ("Div", "Mul", "Add"):
            constant = constants.get(node.input[1])
            if constant is None or (node.op_type != "Add" and constant.size != 1):
                return None
            if node.op_type == "Add":
                bias = bias + scale * constant
            else:
                scale = scale / constant if node.op_type == "Div" else scale * constant
        node = makers.get(node.input[0])
    if node is None or node.op_type not in ("Gemm", "MatMul") or node.input[1] not in constants:
        return None
    weights = constants[node.input[1]]
    if not any(one.name == "transB" and one.i for one in node.attribute):
        weights = weights.T
    if len(node.input) > 2:
        bias = bias + scale * constants[node.input[2]]
    pool = makers.get(node.input[0])
    while pool is not None and pool.op_type in _KEEPS_VALUES:
        pool = makers.get(pool.input[0])
    if pool is None or not _is_global_mean(pool, constants):
        return None
    bias = np.broadcast_to(bias.reshape(-1), len(weights))
    return LinearHead(feature_map=pool.input[0], weights=scale * weights, bias=bias)


def _is_global_mean(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    if node.op_type == "GlobalAveragePool":
        return True
    axes = [list(one.ints) for one in node.attribute if one.name == "axes"]
    axes += [constants[name].tolist() for name in node.input[1:] if name in constants]
    return node.op_type == "ReduceMean" and [sorted(one) for one in axes] in ([_SPATIAL], [[-2, -1]])


def expose_feature_map(path: Path, head: LinearHead) -> None:
    """Make the last feature map an output of a network's file; nothing more is computed for it."""
    model = onnx.load(path)
    graph = model.graph
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [FEATURE_MAP if name == head.feature_map else name for name in names]
    named = [one for one in graph.value_info if one.name != head.feature_map]
    del graph.value_info[:]
    graph.value_info.extend(named)
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param
    # ONNX Runtime infers the sizes; the manifest has them for the configuration (`ServedFiles.feature_map`).
    dims = [batch, "depth", "map_height", "map_width"]
    graph.output.append(onnx.helper.make_tensor_value_info(FEATURE_MAP, onnx.TensorProto.FLOAT, dims))
    write_model(model, path)


def max_sample(num_features: int) -> int:
    """How many training images fit into `MAX_BYTES`; the graph itself has some kilobytes."""
    return (MAX_BYTES - 50_000) // (num_features + _CELL_BYTES + PICTURE_BYTES + 12)


def write_explainer(
    path: Path, head: LinearHead, sample: TrainingSample, preprocessing: Preprocessing
) -> None:
    """Write the file.

    The sample has at least `NUM_NEIGHBOURS` images.
    """
    (_, depth), (height, width) = head.weights.shape, preprocessing.input_size
    num_maps = min(MAX_MAPS, len(head.weights))
    cell = [height // THUMBNAIL_SIDE, width // THUMBNAIL_SIDE]
    model = onnx.parser.parse_model(_graph_text(len(head.weights), depth, num_maps, [height, width], cell))
    integers = {
        "spatial": _SPATIAL,
        "num_maps": [num_maps],
        "num_neighbours": [NUM_NEIGHBOURS],
        "as_cells": [0, depth, -1],
        "as_one": [0, 1, _CELL_BYTES],
        "last_axis": [2],
        "zero": [0],
        "one": [1],
        "two": [2],
        "three": [3],
        "four": [4],
        "crop_start": [0, 0],
        "crop_end": [THUMBNAIL_SIDE * one for one in cell],
    }
    constants = {name: np.array(values, np.int64) for name, values in integers.items()}
    # What all classes share moves no probability, so it is no reason for one of them.
    arrays = {"weights": head.weights, "bias": head.bias, "mean_weights": head.weights.mean(axis=0)}
    constants |= {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}
    constants |= _sample_constants(sample)
    crop = [width / height, preprocessing.crop_pct, preprocessing.crop_mode == "squash"]
    constants |= {"crop": np.array([crop], np.float32), "tiny": np.array(1e-12, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    write_model(model, path)


def _graph_text(num_classes: int, depth: int, num_maps: int, size: list[int], cell: list[int]) -> str:
    """The graph in ONNX's textual syntax; names that no node makes are constants.

    `size` is height and width of the input, `cell` of what becomes one pixel of a thumbnail.
    """
    height, width = size
    return f"""<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>
    explainer (
      float[batch, {depth}, map_height, map_width] {FEATURE_MAP},
      uint8[batch, {height}, {width}, 3] {PIXELS}
    ) => (
      float[batch, {num_classes}] {PROBABILITIES},
      float[batch, {num_maps}, map_height, map_width] {ACTIVATION},
      float[batch, {NUM_NEIGHBOURS}, 3] {NEIGHBOURS},
      uint8[batch, {NUM_NEIGHBOURS}, {PICTURE_BYTES}] {THUMBNAILS},
      float[batch, 3] {CROP}
    ) {{
      pooled = ReduceMean <keepdims = 0> ({FEATURE_MAP}, spatial)
      logits = Gemm <transB = 1> (pooled, weights, bias)
      {PROBABILITIES} = Softmax <axis = 1> (logits)

      shares, top = TopK ({PROBABILITIES}, num_maps)
      own_weights = Gather (weights, top)
      rows = Sub (own_weights, mean_weights)
      cells = Reshape ({FEATURE_MAP}, as_cells)
      scores = MatMul (rows, cells)
      positive = Relu (scores)
      average = ReduceMean <keepdims = 1> (positive, last_axis)
      beyond = Sub (positive, average)
      excess = Relu (beyond)
      strongest = ReduceMax <keepdims = 1> (excess, last_axis)
      divisor = Max (strongest, tiny)
      relative = Div (excess, divisor)
      all_dims = Shape ({FEATURE_MAP})
      batch_dim = Slice (all_dims, zero, one)
      map_dims = Slice (all_dims, two, four)
      activation_dims = Concat <axis = 0> (batch_dim, num_maps, map_dims)
      {ACTIVATION} = Reshape (relative, activation_dims)

      length = ReduceL2 <keepdims = 1> (pooled, one)
      divisor_length = Max (length, tiny)
      unit = Div (pooled, divisor_length)
      known = Cast <to = 1> (features)
      columns = Transpose <perm = [1, 0]> (known)
      products = MatMul (unit, columns)
      similarities = Mul (products, feature_scales)
      similarity, nearest = TopK (similarities, num_neighbours)
      nearest_class = Gather (classes, nearest)
      {THUMBNAILS} = Gather (pictures, nearest)

      levels = Cast <to = 1> ({PIXELS})
      planes = Transpose <perm = [0, 3, 1, 2]> (levels)
      whole = Slice (planes, crop_start, crop_end, spatial)
      means = AveragePool <kernel_shape = {cell}, strides = {cell}> (whole)
      floored = Floor (means)
      hwc = Transpose <perm = [0, 2, 3, 1]> (floored)
      own = Reshape (hwc, as_one)
      theirs_u8 = Gather (thumbnails, nearest)
      theirs = Cast <to = 1> (theirs_u8)
      signed = Sub (theirs, own)
      distance = Abs (signed)
      difference = ReduceMean <keepdims = 0> (distance, last_axis)
      column_class = Unsqueeze (nearest_class, two)
      column_similarity = Unsqueeze (similarity, two)
      column_difference = Unsqueeze (difference, two)
      {NEIGHBOURS} = Concat <axis = 2> (column_class, column_similarity, column_difference)

      crop_dims = Concat <axis = 0> (batch_dim, three)
      {CROP} = Expand (crop, crop_dims)
    }}"""


def _sample_constants(sample: TrainingSample) -> dict[str, np.ndarray]:
    unit = sample.features / np.maximum(np.linalg.norm(sample.features, axis=1, keepdims=True), 1e-12)
    scales = np.maximum(np.abs(unit).max(axis=1), 1e-12) / 127
    return {
        "features": np.rint(unit / scales[:, None]).astype(np.int8),
        "feature_scales": scales.astype(np.float32),
        "classes": sample.classes.astype(np.float32),
        "thumbnails": np.stack([thumbnail(one) for one in sample.pixels]),
        "pictures": np.stack([_picture(one) for one in sample.pixels]),
    }


def _picture(pixels_hwc_u8: np.ndarray) -> np.ndarray:
    """A WebP file of at most `PICTURE_BYTES`, padded with zeros to that length."""
    small = Image.fromarray(pixels_hwc_u8)
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    while True:
        for quality in (80, 60, 40, 20, 5):
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=quality, method=6)
            if buffer.tell() <= PICTURE_BYTES:
                return np.frombuffer(buffer.getvalue().ljust(PICTURE_BYTES, b"\0"), np.uint8)
        small = small.resize((small.width // 2, small.height // 2))
