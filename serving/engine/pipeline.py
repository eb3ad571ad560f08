"""A DALI pipeline built from a Triton model configuration: inputs by name, outputs by order."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fruitstand.errors import ArtefactError, ServerError
from fruitstand.images.dali_pipeline import load_pipeline_definition


class Pipeline:
    """A built DALI pipeline; not thread-safe."""

    def __init__(
        self,
        path: Path,
        *,
        max_batch_size: int,
        num_threads: int | None = None,
        device_id: int | None = None,
    ) -> None:
        """Build the pipeline.

        Args:
            path: a `dali.py` with one function under `@autoserialize`, or a serialised pipeline.
            max_batch_size: samples in one run.
            num_threads: CPU threads; None keeps the pipeline's own number.
            device_id: GPU to run on; None runs on the CPU.

        Raises:
            ArtefactError: the file does not hold exactly one pipeline.
            ServerError: the pipeline cannot be built, for example one with GPU operators on a CPU.
        """
        self._name = path.name
        self._options: dict[str, Any] = {"batch_size": max_batch_size, "device_id": device_id}
        if num_threads is not None:
            self._options["num_threads"] = num_threads
        if device_id is not None:
            os.environ["FRUITSTAND_DECODE_DEVICE"] = "gpu"
        definition = load_pipeline_definition(path)
        self._define, self.preprocessing = definition.define, definition.preprocessing
        self.rebuild()

    def rebuild(self) -> None:
        """Replace the pipeline by a new one."""
        try:
            self._pipeline = self._define(**self._options)
            self._pipeline.build()
        except ArtefactError:
            raise
        except Exception as exc:  # DALI raises RuntimeError, ValueError and TypeError here
            reason = str(exc).strip().splitlines()[-1]
            raise ServerError(f"{self._name}: the pipeline cannot be built: {reason}") from exc

    @property
    def output_types(self) -> list[np.dtype]:
        """The output types that the pipeline declares in `output_dtype`."""
        declared = [dtype for dtype in self._pipeline.output_dtype() if dtype is not None]
        return [np.dtype(_numpy_name(dtype.name)) for dtype in declared]

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return len(self._pipeline.output_dtype())

    def run(self, feeds: Mapping[str, Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Process one batch.

        Args:
            feeds: the samples of each input.

        Returns:
            One (N, ...) array per output, a view that the next run overwrites.

        Raises:
            Exception: anything that DALI and its decoders raise, such as RuntimeError and MemoryError.
        """
        for name, samples in feeds.items():
            self._pipeline.feed_input(name, samples)
        return [np.asarray(output.as_cpu().as_tensor()) for output in self._pipeline.run()]


def check_outputs(config: dict[str, Any], pipeline: Pipeline) -> None:
    """Check a configuration's outputs against the pipeline's, as the native backend does.

    Raises:
        ServerError: the number of outputs or a declared type differs.
    """
    asked = config["output"]
    if len(asked) != pipeline.num_outputs:
        raise ServerError(
            f"{config['name']}: {len(asked)} outputs configured, the pipeline has {pipeline.num_outputs}"
        )
    for tensor, declared in zip(asked, pipeline.output_types, strict=False):
        wanted = np.dtype(_numpy_name(tensor["data_type"].removeprefix("TYPE_")))
        if wanted != declared:
            raise ServerError(f"{config['name']}: {tensor['name']} is {wanted}, the pipeline's is {declared}")


def _numpy_name(name: str) -> str:
    """NumPy's name of a type from DALI's or Triton's."""
    special = {"FLOAT": "float32", "FP32": "float32", "FLOAT16": "float16", "FP16": "float16"}
    return {**special, "FLOAT64": "float64", "FP64": "float64"}.get(name, name.lower())
