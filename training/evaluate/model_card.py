"""Render a run's `MODEL_CARD.md` from its `meta.json` and the template `model_card.md.jinja`."""

from pathlib import Path
from typing import Any

import jinja2

from fruitstand.artefacts import write_bytes
from fruitstand.runs import ABSTENTION_HEADING, CARD_NAME

NUM_WORST = 5
"""Number of classes, confusions and slices listed in a card."""


def add_evaluation(run_directory: Path, meta: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Add an evaluation to a run's metadata, and write its model card.

    Returns:
        The new content of `meta.json`; an earlier evaluation of the same data and split is replaced.
    """
    name = f"{result['data']}-{result['split']}"
    meta = {**meta, "evaluations": {**meta.get("evaluations", {}), name: _brief(result)}}
    card = run_directory / CARD_NAME
    # Export adds the last section; another evaluation does not change what was calibrated.
    _, heading, section = (
        card.read_text("utf-8").partition(ABSTENTION_HEADING) if card.is_file() else ("",) * 3
    )
    write_bytes(card, (render_card(meta) + ("\n" + heading + section if heading else "")).encode())
    return meta


def _brief(result: dict[str, Any]) -> dict[str, Any]:
    """An evaluation without its long tables, which are in the report's folder."""
    per_class = sorted(result["per_class"].items(), key=lambda item: (item[1]["recall"], item[0]))
    nearest = {
        key: value for key, value in result["baseline"]["nearest_neighbour"].items() if key != "recall"
    }
    slices = result["slices"]
    return {
        **{key: value for key, value in result.items() if key not in ("per_class", "confusions")},
        "baseline": {**result["baseline"], "nearest_neighbour": nearest},
        "slices": {**slices, "fruit": slices["fruit"][:NUM_WORST], "variety": slices["variety"][:NUM_WORST]},
        "num_slices": {kind: len(members) for kind, members in slices.items()},
        "lowest_recall": [{"label": label, **row} for label, row in per_class[:NUM_WORST]],
        "worst_confusions": result["confusions"][:NUM_WORST],
    }


def render_card(meta: dict[str, Any]) -> str:
    """Render the card from the content of `meta.json`, which must have at least one evaluation."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": lambda value: str(value).replace("|", "/"),
        "f4": lambda value: f"{value:.4f}",
        "interval": lambda bounds: f"{bounds[0]:.4f} to {bounds[1]:.4f}",
    }
    source = meta["data"]["source"]
    return environment.get_template("model_card.md.jinja").render(
        meta=meta,
        source=source,
        is_fruit=source == "generated" or "fruits" in source.lower(),
        num_classes=len(meta["labels"]),
        kinds={_kind(one) for one in meta["evaluations"].values()},
        novelty=_novelty,
        confidence=_confidence,
        facts=_facts(meta),
    )


def _kind(one: dict[str, Any]) -> str:
    seen = one["seen_in_training"]
    if seen is None:
        return "unknown"
    if seen["objects"] == 0:
        return "unseen objects"
    return "leaked films" if seen["films"] else "unseen films"


def _novelty(one: dict[str, Any]) -> str:
    """Describe which of the evaluated images were not in training."""
    seen, num_images = one["seen_in_training"], one["num_images"]
    if seen is None:
        return "unknown: the training data are no longer available"
    if seen["objects"] == 0:
        return "every object: none was in training (object-disjoint)"
    return (
        f"{num_images - seen['objects']} images show a new object, {num_images - seen['films']} are of a new"
        f" film, {num_images - seen['files']} are new files"
    )


def _confidence(one: dict[str, Any]) -> float:
    """Mean confidence over all images."""
    total: float = sum(row["count"] * row["confidence"] for row in one["reliability"])
    return total / one["num_images"]


def _facts(meta: dict[str, Any]) -> dict[str, str | None]:
    """Facts about the training; unknown ones are None."""
    tuned = meta.get("finetuned_from")
    return {
        "time": f"{len(meta['epochs'])} epochs in {meta['train_s']:.0f} s",
        "hardware": _listed(meta.get("hardware") or {}),
        "finished": meta.get("date"),
        "fine-tuned from": tuned and f"{tuned['run']}, weights {tuned['weights_sha256']}",
        "commit": meta["git_commit"],
        "data": f"{meta['data']['source']}, manifest {meta['data']['manifest_sha256']}",
        "weights": meta["weights_sha256"],
        "settings": _listed(meta["config"]),
    }


def _listed(values: dict[str, Any]) -> str:
    """Names and values in one line, without empty ones."""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in ([], (), None, ""))
