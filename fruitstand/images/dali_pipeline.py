"""Load the pipeline definition of a `dali.py`, as NVIDIA's dali backend does for autoserialisation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fruitstand.contract import Preprocessing
from fruitstand.errors import ArtefactError
from fruitstand.repository.model_names import repository_names

PYTHON_FILE = "dali.py"
SERIALIZED_FILE = "model.dali"


def served_pipeline(repository: Path) -> Path:
    """Path of the served `dali.py` in a model repository: the one of the latest version, as Triton chooses.

    Raises:
        ArtefactError: no version has one.
    """
    directory = repository / repository_names(repository).decode
    found = [path for path in directory.glob(f"*/{PYTHON_FILE}") if path.parent.name.isdecimal()]
    if not found:
        raise ArtefactError(f"{directory}: no version with a {PYTHON_FILE}; export the run again")
    return max(found, key=lambda path: int(path.parent.name))


@dataclass(frozen=True, slots=True)
class PipelineDefinition:
    """The content of a pipeline file."""

    define: Callable[..., Any]
    """Creates the pipeline; takes `batch_size`, `device_id`, `num_threads`."""
    preprocessing: Preprocessing | None
    """The contract that the file was rendered from; None if it has none."""


def load_pipeline_definition(path: Path) -> PipelineDefinition:
    """Read a pipeline file.

    It is Python with exactly one function under `@autoserialize`, or a serialised pipeline.

    Raises:
        ArtefactError: no such file, not exactly one such function, not a pipeline, or an invalid contract.
    """
    if not path.is_file():
        raise ArtefactError(f"{path.name}: no DALI pipeline file in the model's version folder")
    content = path.read_bytes()
    if path.suffix == ".py":
        return pipeline_definition(content, path.name)
    return PipelineDefinition(_serialized(content, path.name), None)


def pipeline_definition(source: bytes, name: str) -> PipelineDefinition:
    """Read a pipeline from the content of a Python file; `name` is for error messages.

    Raises:
        ArtefactError: not exactly one function under `@autoserialize`, or an invalid contract.
    """
    module: dict[str, Any] = {"__name__": "fruitstand_dali_pipeline"}
    exec(compile(source, name, "exec"), module)
    marked = [value for value in module.values() if getattr(value, "_is_autoserialize", False)]
    if len(marked) != 1:
        raise ArtefactError(f"{name}: has {len(marked)} functions under @autoserialize, expected exactly one")
    contract = module.get("PREPROCESSING")
    try:
        preprocessing = None if contract is None else Preprocessing.from_dict(contract)
    except (AttributeError, TypeError, ValueError) as exc:
        raise ArtefactError(f"{name}: PREPROCESSING: {exc}; export the run again") from exc
    return PipelineDefinition(marked[0], preprocessing)


def _serialized(content: bytes, name: str) -> Callable[..., Any]:
    from nvidia.dali.pipeline import Pipeline

    def define(**options: Any) -> Any:
        try:
            return Pipeline.deserialize(content, **options)
        except RuntimeError as exc:
            raise ArtefactError(f"{name}: not a serialised DALI pipeline; export the run again") from exc

    return define
