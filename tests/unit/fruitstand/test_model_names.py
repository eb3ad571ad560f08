from pathlib import Path

import pytest

from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE_DECODE, MODELS
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.repository.model_names import DEFAULT_NAME, distinct_names, names_for, repository_names


def serving(repository: Path, *classifiers: str) -> Path:
    """A repository with these ensembles."""
    for classifier in classifiers:
        (repository / classifier).mkdir(parents=True)
    return repository


def test_the_default_keeps_its_names() -> None:
    """A server, a client and a dashboard of an older release find the models where they were."""
    names = names_for(DEFAULT_NAME)
    assert names.all == MODELS
    assert names.loaded == (IMAGE_DECODE, FRUIT_RESNET, FRUIT_CLASSIFIER)


def test_two_names_share_no_model() -> None:
    """Also where one name is how a model of the other ends."""
    names = [names_for(one) for one in (DEFAULT_NAME, "birds", "birds_decode", "fruit_image", "classifier")]
    models = [model for one in names for model in one.all]
    assert len(models) == len(set(models))
    ending = [model for model in models if model.endswith("_classifier")]
    assert ending == [one.classifier for one in names], "of all models callers reach the ensembles alone"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("Birds", id="capital"),
        pytest.param("2birds", id="digit_first"),
        pytest.param("my-birds", id="dash"),
        pytest.param("../birds", id="path"),
        pytest.param("birds\n", id="line_end"),
        pytest.param("b" * 49, id="too_long"),
        pytest.param("image", id="of_the_default"),
    ],
)
def test_a_name_that_makes_no_model_names_is_refused(name: str) -> None:
    """It becomes folders, a metric's label and part of a URL."""
    with pytest.raises(UsageError, match="--name: "):
        names_for(name)


def test_a_repository_keeps_the_name_of_its_first_version(tmp_path: Path) -> None:
    """An empty one takes any name; one that serves birds serves nothing else."""
    assert repository_names(tmp_path / "new") == names_for(DEFAULT_NAME)
    assert repository_names(tmp_path / "new", "birds") == names_for("birds")
    birds = serving(tmp_path / "birds", "birds_classifier")
    assert repository_names(birds) == repository_names(birds, "birds") == names_for("birds")
    with pytest.raises(UsageError, match="serves birds_classifier, not fruit_classifier"):
        repository_names(birds, DEFAULT_NAME)


def test_one_repository_holds_one_classifier(tmp_path: Path) -> None:
    """Two of them side by side would share a lock, a log of changes and a tuning."""
    both = serving(tmp_path, "birds_classifier", "fish_classifier")
    with pytest.raises(ArtefactError, match="birds_classifier and fish_classifier"):
        repository_names(both)


def test_a_server_takes_repositories_of_different_names(tmp_path: Path) -> None:
    """Triton would load neither of two models with the same name."""
    fruit, birds, copy = (
        serving(tmp_path / folder, classifier)
        for folder, classifier in (
            ("fruit", FRUIT_CLASSIFIER),
            ("birds", "birds_classifier"),
            ("copy", FRUIT_CLASSIFIER),
        )
    )
    assert distinct_names([fruit, birds]) == [names_for(DEFAULT_NAME), names_for("birds")]
    with pytest.raises(UsageError, match=r"copy: serves fruit_classifier, as .*fruit does"):
        distinct_names([fruit, birds, copy])
