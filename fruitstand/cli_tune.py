"""The verb `tune`."""

from pathlib import Path
from typing import Annotated

import typer

from fruitstand.cli_loadtests import Images
from fruitstand.cli_shared import Json, Repository, needs, print_json


def tune(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for the result; the same one goes on with a search.")],
    p99_ms: Annotated[float, typer.Option(help="Budget: of 100 requests one may take longer.")],
    repository: Repository = Path("model_repository"),
    in_flight: Annotated[int, typer.Option(help="Requests in flight.")] = 64,
    request_batch: Annotated[int, typer.Option(help="Images in a request.")] = 1,
    trials: Annotated[int, typer.Option(help="Settings to try.")] = 24,
    seconds: Annotated[float, typer.Option(help="Of load for each.")] = 6.0,
    as_json: Json = False,
) -> None:
    """Find the settings with the most images/s under a p99 budget; `models configure` takes them."""
    with needs("tune"):
        from loadtests.tune import Search
        from loadtests.tune import tune as run_tune

        search = Search(
            p99_ms=p99_ms, in_flight=in_flight, request_batch=request_batch, trials=trials, seconds=seconds
        )
        result = run_tune(repository, images, out=out, search=search)
    if as_json:
        print_json(result)
        return
    print(f"{'p99 ms':>8} {'images/s':>9}  settings on the frontier")
    for one in result["summary"]["frontier"]:
        settings = ", ".join(f"{name} {value}" for name, value in one["settings"].items())
        print(f"{one['p99_ms']:8.1f} {one['images_per_s']:9.1f}  {settings}")
    ratio = result["summary"]["best_over_in_use"]
    if result["summary"]["changed"]:
        print(f"{ratio} times the images/s of the settings in use, in every round. To take them:")
        print(f"fruitstand models configure {out / 'tuning.json'} --repository {repository}")
    else:
        print("nothing beat the settings in use in every round; they stay")
