"""Load the pipeline definition of a `dali.py`, as NVIDIA's dali backend does for autoserialisation."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fruitstand.errors import ArtefactError


def load_pipeline_definition(path: Path) -> Callable[..., Any]:
    """The one function under `@autoserialize` in a file; it takes `batch_size`, `device_id`, `num_threads`.

    Raises:
        ArtefactError: no such file, or not exactly one such function in it.
    """
    if not path.is_file():
        raise ArtefactError(f"{path.name}: no DALI pipeline file in the model's version folder")
    spec = importlib.util.spec_from_file_location("fruitstand_dali_pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    marked = [value for value in vars(module).values() if getattr(value, "_is_autoserialize", False)]
    if len(marked) != 1:
        raise ArtefactError(
            f"{path.name}: has {len(marked)} functions under @autoserialize, expected exactly one"
        )
    definition: Callable[..., Any] = marked[0]
    return definition
