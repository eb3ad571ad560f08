"""`make retrain`: new data or drift -> train -> gates -> publish -> canary -> promote, or roll back.

    python -m deploy.retrain --data DATA --repository REPOSITORY --runs RUNS [--url HOST:PORT] [--samples DIR]

Every step is a `fruitstand` command, so that a failed step can be repeated by hand. Nothing happens unless
the data is new or the served images have drifted. The canary is a separate server with the new version; the
version is promoted only if it is at least as accurate on the test images as the old one, and only if it
answers recorded images alike, where the samples have some. After the promotion the live server classifies the
same images, and a worse result is rolled back.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from export.publish.repository import check_same_contract
from fruitstand.artefacts import write_json
from fruitstand.cli_options import MaxSlowdown
from fruitstand.errors import GateFailed, UsageError
from fruitstand.labels import labels_sha256
from fruitstand.manifest import read_prepared
from fruitstand.repository.model_names import CLASSIFIER, repository_names
from fruitstand.repository.versions import read_version, serving_state
from fruitstand.sampling.recording import RECORDING_FOLDER
from fruitstand.stages import command_line, step
from monitoring.drift.report import drift_report
from serving.triton.embedded import EmbeddedServer

MAX_TOP1_LOSS = 0.005
DRIFT_WINDOW = 500
"""Images, as `fruitstand drift report` takes them."""


def retrain(
    data: Annotated[Path, typer.Option(help="Prepared folder that includes the new data.")],
    runs: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("runs"),
    repository: Annotated[Path, typer.Option(help="Model repository.")] = Path("model_repository"),
    url: Annotated[
        str | None,
        typer.Option(help="The live server; without one, the next server start serves the version."),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="Samples of the live server: checked for drift, recorded images replayed."),
    ] = None,
    max_flips: Annotated[
        str, typer.Option(help="Largest share of recorded images that may change their answer.")
    ] = "5%",
    settings: Annotated[list[str] | None, typer.Option("--set", help="Settings passed to train.")] = None,
    model: Annotated[str | None, typer.Option(help="A timm ResNet; default: the served version's.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: the recipe's.")] = None,
    max_slowdown: MaxSlowdown = 1.1,
) -> None:
    """Run the loop once; exit 0 if a good version is served, 1 if a candidate was refused."""
    state = serving_state(repository)
    if state is None:
        raise UsageError(f"{repository}: serves nothing yet; make the first version with 'fruitstand export'")
    old = read_version(repository, state.version)
    reason = why(data, old.manifest, repository, samples)
    if reason is None:
        print(f"nothing to do: version {old.number} was trained on this data and nothing has drifted")
        return
    print(f"retrain: {reason}", flush=True)
    prepared = read_prepared(data)
    # Export checks this too, but only after the training.
    check_same_contract(repository, old, labels_sha256=labels_sha256(prepared.labels))
    known = prepared.manifest_sha256[:12]
    run = runs / f"retrain-{known}-after-{old.number}"
    arguments: list[object] = ["--model", model or old.manifest["model_name"]]
    arguments += ["--epochs", epochs] if epochs else []
    for one in settings or []:
        arguments += ["--set", one]
    if not (run / "meta.json").is_file():
        step("train", "--data", data, "--out", run, *arguments, "--overwrite")
    gates = ("--max-slowdown", max_slowdown)
    number = step("export", "--run", run, "--repository", repository, *gates)["version"]
    verdict = canary(repository, old.number, number, data)
    verdict["reason"] = reason
    write_json(run / "canary.json", verdict)
    if verdict["new_top1"] < verdict["old_top1"] - MAX_TOP1_LOSS:
        raise GateFailed(
            f"version {number} is not promoted: top1 {verdict['new_top1']:.4f}, version {old.number} has"
            f" {verdict['old_top1']:.4f}"
        )
    promote(repository, number, url=url, samples=samples, max_flips=max_flips)
    if url:
        served = top1(url, repository, data, run / "live")
        if served < verdict["new_top1"] - MAX_TOP1_LOSS:
            step("models", "rollback", "--repository", repository, "--url", url)
            raise GateFailed(
                f"rolled back to version {old.number}: version {number} had top1 {served:.4f} live"
            )
    print(f"version {number} is served: top1 {verdict['new_top1']:.4f}, before {verdict['old_top1']:.4f}")


def why(data: Path, manifest: dict[str, Any], repository: Path, samples: Path | None) -> str | None:
    """The reason to train again; None if there is none."""
    prepared = read_prepared(data)
    if prepared.manifest_sha256 != manifest["source_run"]["data"]["manifest_sha256"]:
        return "the data is new"
    if samples is None:
        return None
    with tempfile.TemporaryDirectory() as out:
        report = drift_report(
            samples, repository=repository, reference=None, window_size=DRIFT_WINDOW, out=Path(out)
        )
    moved = [name for name, one in report["measures"].items() if one["drifted"]]
    return f"served images have drifted: {', '.join(moved)}" if moved else None


def canary(repository: Path, old: int, new: int, data: Path) -> dict[str, Any]:
    """Top-1 accuracy of both versions on the test images, each on its own server."""
    result: dict[str, Any] = {"old_version": old, "new_version": new}
    with tempfile.TemporaryDirectory(prefix="fruitstand-canary-") as name:
        copy = Path(name) / "model_repository"
        shutil.copytree(repository, copy, symlinks=True, ignore=shutil.ignore_patterns(".lock", ".tmp-*"))
        for which, number in (("old", old), ("new", new)):
            if serving_state(copy).version != number:  # type: ignore[union-attr]
                step("models", "promote", number, "--repository", copy)
            with EmbeddedServer(copy, log_path=Path(name) / "triton.log") as server:
                result[f"{which}_top1"] = top1(server.url, copy, data, Path(name) / which)
    return result


def promote(repository: Path, number: int, *, url: str | None, samples: Path | None, max_flips: str) -> None:
    """Promote through the replay gate if the samples have recorded images."""
    live = ["--url", url] if url else []
    recorded = samples is not None and (samples / RECORDING_FOLDER).is_dir()
    gate = ["--replay", samples, "--max-flips", max_flips] if recorded else []
    step("models", "promote", number, "--repository", repository, *live, *gate)


def top1(url: str, repository: Path, data: Path, out: Path) -> float:
    """Top-1 on the test split of the repository's classifier, as a server answers."""
    name = repository_names(repository).classifier.removesuffix(CLASSIFIER)
    asked = ("--url", url, "--name", name, "--data", data, "--split", "test", "--out", out)
    return float(step("evaluate", *asked)["top1"])


if __name__ == "__main__":
    command_line(retrain)
