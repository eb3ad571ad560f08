"""`MODEL_CARD.md` of a run: what it is for, how good it is, and how it came to be, all from `meta.json`."""

from pathlib import Path

from fruitstand.artefacts import write_bytes

CARD_NAME = "MODEL_CARD.md"
NUM_WORST = 5
"""Classes, confusions and slices a card names."""

FRUITS_360 = """\
Fruits-360, copyright 2017- Mihai Oltean, licence CC BY-SA 4.0: whoever passes on the images, or works derived
from them, names the author and keeps the licence."""
GENERATED = """\
Generated: painted by a program of this project, no real fruit. The numbers below show that the pipeline
works and say nothing about fruit."""
USE = """\
Tells {num_classes} classes of single fruits apart, on pictures as those it was trained on: one fruit, cut
out, on white. To try, measure and load-test the serving stack around it. Not for sorting, selling or judging
real fruit without an evaluation on pictures from where it is to work."""
BASELINES = """\
1-NN answers with the class of the train image whose thumbnail is nearest; majority always answers with the
commonest class of the train split."""
NOT_MEASURED = {
    "leaked films": "On the films it was trained on (the classic split): not measured.",
    "unseen objects": """\
On objects it has never seen (object-disjoint): not measured. Prepare data of the same classes with
`fruitstand data prepare --split object`, then `fruitstand evaluate --run RUN --data DATA`.""",
}
LEAKED = """\
- Where test images are of films it was trained on, accuracy says that the pipeline works, not that the model
  knows fruit: neighbouring frames are nearly the same picture. Compare with 1-NN."""
ONE_OBJECT = """\
- A class of Fruits-360 is usually one single object on a turntable: what sets it apart may be that object's
  own marks."""
LIMITS = """\
- Every picture has a white background. Others are out of its domain: it answers them too, and may be sure.
- It always answers with one of its classes; there is no answer for something else.
- The intervals take images as independent. Frames of one film are not: the true ones are wider."""
REPRODUCE = """\
At that commit, after `make setup`. The manifest has to be the one above; every setting above that is no flag
of its own goes into `--set NAME=VALUE`.

```bash
fruitstand data prepare --source PATH --split {split_kind} --out DATA
fruitstand train --data DATA --out RUN --model {model_name} --epochs {epochs} --set seed={seed}
fruitstand evaluate --run RUN
```"""


def add_evaluation(run_directory: Path, meta: dict, result: dict) -> dict:
    """Add an evaluation to what is known of a run, and render its model card.

    Args:
        run_directory: the run.
        meta: what its `meta.json` holds, or is to hold.
        result: see `training.evaluate.report.report_answers`.

    Returns:
        What `meta.json` is to hold now; an earlier evaluation of the same data and split is replaced.
    """
    name = f"{result['data']}-{result['split']}"
    meta = {**meta, "evaluations": {**meta.get("evaluations", {}), name: _brief(result)}}
    write_bytes(run_directory / CARD_NAME, render_card(meta).encode())
    return meta


def _brief(result: dict) -> dict:
    """An evaluation without its long tables: those are in the report's folder."""
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


def render_card(meta: dict) -> str:
    """The card.

    Args:
        meta: what `meta.json` holds, with at least one evaluation.
    """
    evaluations, source = meta["evaluations"], meta["data"]["source"]
    num_classes = len(meta["labels"])
    sections = {
        "Intended use": [USE.format(num_classes=num_classes)],
        "Data and licence": [_licence(source)],
        "Accuracy, beside what needs no training": _accuracy(evaluations, num_classes),
        "Calibration": _calibration(evaluations),
        "Slices": _slices(evaluations),
        "Limits": _limits(evaluations, source),
        "How it was trained": _training(meta),
        "How to reproduce it": [_reproduction(meta)],
        "Versions": [f"- {name} {version}" for name, version in _versions(meta).items()],
    }
    lines = [
        f"# Model card: {meta['config']['model_name']} on {source}",
        "",
        "Rendered from `meta.json`, and again by every `fruitstand evaluate --run`; do not edit.",
    ]
    for title, content in sections.items():
        lines += ["", f"## {title}", "", *content]
    return "\n".join(lines) + "\n"


def _licence(source: str) -> str:
    if source == "generated":
        return GENERATED
    if "fruits" in source.lower():
        return f"`{source}`. {FRUITS_360}"
    return f"`{source}`: a folder of the user's own; its licence is not known to this project."


def _accuracy(evaluations: dict, num_classes: int) -> list[str]:
    lines = [
        BASELINES,
        "",
        _row(
            *("evaluated on", "what is new in it", "images", "top-1 (95 % interval)", "1-NN", "majority"),
            *("top-5", "macro F1", "1-NN macro F1"),
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in evaluations.items():
        nearest, majority = one["baseline"]["nearest_neighbour"], one["baseline"]["majority"]
        lines.append(
            _row(
                f"{name}: {one['data_source']}, {one['split_kind']} split",
                _novelty(one),
                one["num_images"],
                f"{one['top1']:.4f} ({_interval(one['top1_interval'])})",
                f"{nearest['top1']:.4f}",
                f"{majority['top1']:.4f} ({majority['label']})",
                f"{one['top5']:.4f}" if num_classes > 5 else f"all, of {num_classes} classes",
                f"{one['macro_f1']:.4f}",
                f"{nearest['macro_f1']:.4f}",
            )
        )
    kinds = {_kind(one) for one in evaluations.values()}
    return lines + [line for kind, text in NOT_MEASURED.items() if kind not in kinds for line in ("", text)]


def _kind(one: dict) -> str:
    seen = one["seen_in_training"]
    if seen is None:
        return "unknown"
    if seen["objects"] == 0:
        return "unseen objects"
    return "leaked films" if seen["films"] else "unseen films"


def _novelty(one: dict) -> str:
    """What of the evaluated images the run has not met in training."""
    seen, num_images = one["seen_in_training"], one["num_images"]
    if seen is None:
        return "not known: the training data are gone"
    if seen["objects"] == 0:
        return "every object: none was in training (object-disjoint)"
    return (
        f"{num_images - seen['objects']} images show a new object, {num_images - seen['films']} are of a new"
        f" film, {num_images - seen['files']} are new files"
    )


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _interval(interval: list[float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _calibration(evaluations: dict) -> list[str]:
    lines = [_row("evaluated on", "ECE", "mean confidence", "top-1"), "|---|---|---|---|"]
    for name, one in evaluations.items():
        confidence = sum(row["count"] * row["confidence"] for row in one["reliability"]) / one["num_images"]
        lines.append(_row(name, f"{one['ece']:.4f}", f"{confidence:.4f}", f"{one['top1']:.4f}"))
    return lines


def _slices(evaluations: dict) -> list[str]:
    lines = [
        "All are in `slices.csv` of each report.",
        "",
        _row("evaluated on", "slice", "images", "top-1 (95 % interval)", "1-NN"),
        "|---|---|---|---|---|",
    ]
    for name, one in evaluations.items():
        for kind, members in one["slices"].items():
            which = kind if len(members) == one["num_slices"][kind] else f"{kind}, lowest {len(members)}"
            lines += [
                _row(
                    name,
                    f"{which}: {member['name']}",
                    f"{member['num_images']}{' (few)' if member['small'] else ''}",
                    f"{member['top1']:.4f} ({_interval(member['interval'])})",
                    f"{member['nearest_neighbour']:.4f}",
                )
                for member in members
            ]
    for name, one in evaluations.items():
        worst = "; ".join(
            f"{pair['truth']} for {pair['answer']}, {pair['count']} times" for pair in one["worst_confusions"]
        )
        lines += ["", f"Most often mistaken in {name}: {worst or 'nothing'}."]
    return lines


def _limits(evaluations: dict, source: str) -> list[str]:
    leaked = any(_kind(one) == "leaked films" for one in evaluations.values())
    return [*([LEAKED] if leaked else []), *([ONE_OBJECT] if source != "generated" else []), LIMITS]


def _training(meta: dict) -> list[str]:
    tuned = meta.get("finetuned_from")
    facts = {
        "time": f"{len(meta['epochs'])} epochs in {meta['train_s']:.0f} s",
        "hardware": _listed(meta.get("hardware") or {}),
        "finished": meta.get("date"),
        "fine-tuned from": tuned and f"{tuned['run']}, weights {tuned['weights_sha256']}",
        "commit": meta["git_commit"],
        "data": f"{meta['data']['source']}, manifest {meta['data']['manifest_sha256']}",
        "weights": meta["weights_sha256"],
        "settings": _listed(meta["config"]),
    }
    return [f"- {name}: {fact}" for name, fact in facts.items() if fact]


def _listed(values: dict) -> str:
    """Name and value of each; what is empty is left out."""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in ([], (), None))


def _reproduction(meta: dict) -> str:
    return REPRODUCE.format(**meta["config"], split_kind=meta["data"].get("split_kind", "KIND"))


def _versions(meta: dict) -> dict[str, str]:
    return {**meta["versions"], "fruitstand": meta["fruitstand_version"]}
