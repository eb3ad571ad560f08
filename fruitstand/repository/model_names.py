"""The names of a repository's models, which are the names of their folders.

    fruit_classifier, fruit_resnet, image_decode      the default
    birds_classifier, birds_model, birds_decode       `fruitstand export --name birds`

A server may hold several repositories as long as their names differ. A repository's name is chosen when its
first version is published and read from its folders ever after.
"""

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from fruitstand.contract import (
    EXPLAINER_FEATURES,
    EXPLAINER_HEAD,
    EXPLAINER_MODELS,
    FRUIT_CLASSIFIER,
    FRUIT_EXPLAINER,
    FRUIT_RESNET,
    IMAGE_DECODE,
    IMAGE_DECODE_DALI,
    IMAGE_GUARD,
    MODELS,
)
from fruitstand.errors import ArtefactError, UsageError

DEFAULT_NAME = "fruit"
CLASSIFIER = "_classifier"
"""Suffix of ensembles and of no other model. HTTP lets callers ask these models only."""
NAME = "[a-z][a-z0-9_]{0,47}"
"""A regular expression for a repository's name."""
CLASSIFIER_NAME = f"[a-z][a-z0-9_]*{CLASSIFIER}"
"""A regular expression for its ensemble's name, unbounded: Envoy refuses what RE2 makes of {0,47}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelNames:
    """The models of one repository."""

    guard: str = IMAGE_GUARD
    decode_dali: str = IMAGE_DECODE_DALI
    decode: str = IMAGE_DECODE
    model: str = FRUIT_RESNET
    classifier: str = FRUIT_CLASSIFIER
    explainer_features: str = EXPLAINER_FEATURES
    explainer_head: str = EXPLAINER_HEAD
    explainer: str = FRUIT_EXPLAINER

    @property
    def all(self) -> tuple[str, ...]:
        """The folder of every model but the explainer's, in the order of `contract.MODELS`."""
        return astuple(self)[: len(MODELS)]

    @property
    def explaining(self) -> tuple[str, ...]:
        """The folders that only a version with an explainer has, in the order of `EXPLAINER_MODELS`."""
        return astuple(self)[len(MODELS) :]

    @property
    def loaded(self) -> tuple[str, str, str]:
        """The models that the embedded server always loads, in that order."""
        return self.decode, self.model, self.classifier

    def place(self, default: Path) -> Path:
        """A file's path relative to the repository, from its path under the default names."""
        renamed = dict(zip((*MODELS, *EXPLAINER_MODELS), astuple(self), strict=True))
        first, *rest = default.parts
        return Path(renamed[first], *rest)


def names_for(name: str) -> ModelNames:
    """The models of a repository with this name.

    Raises:
        UsageError: it cannot be part of a model's name, or would take a name of the default's.
    """
    if name == DEFAULT_NAME:
        return ModelNames()
    if not re.fullmatch(NAME, name):
        raise UsageError(f"--name: got {name!r}, allowed a lowercase letter, then up to 47 of a-z, 0-9 and _")
    if name == IMAGE_DECODE.partition("_")[0]:
        raise UsageError(f"--name: {name!r} is taken by {IMAGE_DECODE}, the default's decode step")
    keys = ("guard", "decode", "decode_dali", "model", "explainer", "explainer_features", "explainer_head")
    parts = {key: f"{name}_{key}" for key in keys}
    return ModelNames(**parts, classifier=f"{name}{CLASSIFIER}")


def repository_names(repository: Path, name: str | None = None) -> ModelNames:
    """The names a repository has.

    `name` is for a repository in which nothing was published yet; None gives it the default.

    Raises:
        UsageError: the repository has another name already, or the name is not allowed.
        ArtefactError: it holds several classifiers.
    """
    asked = None if name is None else names_for(name)
    folders = (path.name for path in repository.glob(f"*{CLASSIFIER}") if path.is_dir())
    found = sorted(filter(re.compile(CLASSIFIER_NAME).fullmatch, folders))
    if len(found) > 1:
        raise ArtefactError(f"{repository}: holds {' and '.join(found)}; each needs a repository of its own")
    if not found:
        return asked or ModelNames()
    names = names_for(found[0].removesuffix(CLASSIFIER))
    if asked not in (None, names):
        raise UsageError(
            f"{repository}: serves {names.classifier}, not {name}{CLASSIFIER}; leave --name out or"
            " name another --repository"
        )
    return names


def distinct_names(repositories: Sequence[Path]) -> list[ModelNames]:
    """The names of the repositories of one server, in their order.

    Raises:
        UsageError: two are the same.
        ArtefactError: one holds several classifiers.
    """
    named = [repository_names(repository) for repository in repositories]
    for number, names in enumerate(named):
        if names in named[:number]:
            first = repositories[named.index(names)]
            raise UsageError(
                f"{repositories[number]}: serves {names.classifier}, as {first} does; publish the"
                " first version of one of them with --name"
            )
    return named
