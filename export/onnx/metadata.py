"""Metadata of an ONNX file: its origin and licence.

It contains no times and no paths, so that the same checkpoint gives the same bytes.
"""

import json
from pathlib import Path

import onnx

from fruitstand import __version__
from fruitstand.labels import labels_sha256
from fruitstand.runs import Run


def file_metadata(run: Run) -> dict[str, str]:
    """The `metadata_props` of every file that is made from a run."""
    metadata = {
        "fruitstand_version": __version__,
        "labels_sha256": labels_sha256(run.labels),
        "license_code": "Apache-2.0",
        "preprocessing": json.dumps(run.preprocessing.to_dict(), sort_keys=True),
        "source_run": run.directory.resolve().name,
        "weights_sha256": run.meta["weights_sha256"],
    }
    if adopted := run.meta.get("adopted"):
        metadata |= {"adopted_from": adopted["from"], **adopted["licence"]}
    elif run.meta["data"]["source"] != "generated":
        metadata["license_weights"] = "trained on Fruits-360, CC BY-SA 4.0"
    return metadata


def set_metadata(model: onnx.ModelProto, metadata: dict[str, str]) -> None:
    """Replace what the tools before left in the model by `metadata`, in order of its keys."""
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    model.producer_name, model.producer_version = "fruitstand", __version__
    model.doc_string = model.graph.doc_string = ""


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as one file; the same model gives the same bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))
