"""`fruitstand evaluate`: how good a run is, or a server; the same numbers for both."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fruitstand.errors import DataError, UsageError
from fruitstand.manifest import read_prepared
from fruitstand.runs import read_run


def evaluate_run(run_directory: Path, *, data_directory: Path | None, split: str) -> dict:
    """Evaluate a run offline, in PyTorch.

    Args:
        run_directory: a finished run.
        data_directory: a prepared folder; None takes the one the run was trained on.
        split: train, val or test.

    Returns:
        See `training.metrics.classification_metrics`, plus `model_name`, `split` and `data_source`.

    Raises:
        ArtefactError: the run is not usable.
        DataError: the data are not usable.
        UsageError: the data have other classes than the run.
    """
    run = read_run(run_directory)
    data = read_prepared(data_directory or run.data_directory)
    if data.labels != run.labels:
        raise UsageError(
            f"{data.directory}: has other classes than the run ({len(data.labels)} and {len(run.labels)});"
            " evaluate on data with the classes the run was trained on"
        )
    data.split(split)

    # Only now: these take seconds to import, and what can be refused has been.
    import safetensors.torch

    from training.config import TrainConfig
    from training.metrics import classification_metrics
    from training.model import Classifier, create_model
    from training.pixels import SplitPixels, pixel_cache
    from training.predict import predict_probabilities

    model = create_model(run.model_name, num_classes=len(run.labels))
    model.load_state_dict(safetensors.torch.load_file(run.weights))
    module = Classifier(model, TrainConfig(**run.meta["config"]), run.preprocessing)
    dataset = SplitPixels(data, pixel_cache(data, run.preprocessing), split)
    probabilities = predict_probabilities(module, dataset)
    metrics = classification_metrics(probabilities, dataset.targets.numpy(), run.labels)
    return {"model_name": run.model_name, "split": split, "data_source": data.source, **metrics}


def evaluate_answers(
    data_directory: Path, split: str, ask: Callable[[list[Path]], Iterable[np.ndarray | str]]
) -> dict:
    """Evaluate what a server answers for the images of a split.

    Args:
        data_directory: a prepared folder with the classes that are served.
        split: train, val or test.
        ask: gives for each image its (num_classes,) float32 probabilities, or why there are none.

    Raises:
        DataError: the data are not usable, or an image got no answer.
        UsageError: the server has other classes than the data.
    """
    data = read_prepared(data_directory)
    rows, index = data.split(split), data.label_index()
    answers = list(ask([data.directory / row.path for row in rows]))
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, str):
            raise DataError(f"{data.directory / row.path}: {answer}; prepare the data again")
    probabilities = np.stack(answers)
    if probabilities.shape[1] != len(data.labels):
        raise UsageError(
            f"the server knows {probabilities.shape[1]} classes, {data.directory} has {len(data.labels)};"
            " evaluate on data with the classes that are served"
        )
    targets = np.array([index[row.label] for row in rows])

    from training.metrics import classification_metrics

    metrics = classification_metrics(probabilities, targets, data.labels)
    return {"split": split, "data_source": data.source, **metrics}
