"""Load the pipeline definition of a `dali.py`, as NVIDIA's dali backend does for autoserialisation."""

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
    return pipeline_definition(path.read_bytes(), path.name)


def pipeline_definition(source: bytes, name: str) -> Callable[..., Any]:
    """The same from the content of a file of this name.

    Raises:
        ArtefactError: not exactly one such function in it.
    """
    module: dict[str, Any] = {"__name__": "fruitstand_dali_pipeline"}
    exec(compile(source, name, "exec"), module)
    marked = [value for value in module.values() if getattr(value, "_is_autoserialize", False)]
    if len(marked) != 1:
        raise ArtefactError(f"{name}: has {len(marked)} functions under @autoserialize, expected exactly one")
    definition: Callable[..., Any] = marked[0]
    return definition
