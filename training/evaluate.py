"""`fruitstand evaluate`: how good a run is, or a server; the same numbers for both."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from fruitstand.errors import DataError, UsageError
from fruitstand.manifest import read_prepared
from fruitstand.runs import read_run, read_run_data


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
    data = read_run_data(run, data_directory)
    data.split(split)

    # Only now: these take seconds to import, and what can be refused has been.
    import safetensors.torch

    from training.metrics import classification_metrics
    from training.model import Classifier, create_model
    from training.pixels import SplitPixels, pixel_cache
    from training.predict import predict_probabilities

    model = create_model(run.model_name, num_classes=len(run.labels))
    model.load_state_dict(safetensors.torch.load_file(run.weights))
    module = Classifier(model, run.preprocessing)
    dataset = SplitPixels(data, pixel_cache(data, run.preprocessing), split)
    probabilities = predict_probabilities(module, dataset)
    metrics = classification_metrics(probabilities, dataset.targets.numpy(), run.labels)
    return {"model_name": run.model_name, "split": split, "data_source": data.source, **metrics}


def evaluate_answers(
    data_directory: Path, split: str, ask: Callable[[list[Path], int], Iterable[Mapping[str, float] | str]]
) -> dict:
    """Evaluate what a server answers for the images of a split.

    Args:
        data_directory: a prepared folder with the classes that are served.
        split: train, val or test.
        ask: gives for each image and this many classes their probabilities by label, or why there are none.

    Raises:
        DataError: the data are not usable, or an image got no answer.
        UsageError: the server has other classes than the data.
    """
    data = read_prepared(data_directory)
    rows, index = data.split(split), data.label_index()
    probabilities = np.zeros((len(rows), len(index)), np.float32)
    answers = ask([data.directory / row.path for row in rows], len(index))
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        if isinstance(answer, str):
            raise DataError(f"{data.directory / row.path}: {answer}")
        if answer.keys() != index.keys():
            raise UsageError(
                f"the server's {len(answer)} classes are not the {len(index)} of {data.directory};"
                " evaluate on data with the classes that are served"
            )
        for label, probability in answer.items():
            probabilities[number, index[label]] = probability
    targets = np.array([index[row.label] for row in rows])

    from training.metrics import classification_metrics

    metrics = classification_metrics(probabilities, targets, data.labels)
    return {"split": split, "data_source": data.source, **metrics}
