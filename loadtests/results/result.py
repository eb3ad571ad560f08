"""One form for the results of both load generators: `result.schema.json`."""

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema

from fruitstand.artefacts import read_json, write_json
from fruitstand.errors import ArtefactError, UsageError

SCHEMA = Path(__file__).with_name("result.schema.json")
RESULT = "result.json"
"""Name of the result in the folder of a run."""


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result that keeps to the schema; `ValidationError` is our own bug."""
    _validator().validate(result)
    write_json(path, result)


def read_result(path: Path) -> dict[str, Any]:
    """Read a result: the file, or the folder of a run with one.

    Raises:
        UsageError: not there, or not a result of a load test.
    """
    path = path / RESULT if path.is_dir() else path
    try:
        result = read_json(path)
        _validator().validate(result)
    except ArtefactError as exc:
        raise UsageError(str(exc)) from exc
    except jsonschema.ValidationError as exc:
        raise UsageError(
            f"{path}: not a result of loadtest or profile: {exc.json_path}: {exc.message}"
        ) from exc
    return result


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
