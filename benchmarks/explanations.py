"""Does an explainer look at the object, and does it know what it was trained on?

    python -m benchmarks.explanations --repository runs/explained/model_repository \
        --images ../shared/fruits-360_dataset/fruits-360/Test

Fruits-360 has a white background, so what is not white is the fruit. The result says which share of a map's
mass lies on it; beside it stands the share of the picture that the fruit covers, which a uniform map would
reach. The maps are enlarged bilinearly, as the page and `classify --explain` do.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw

from fruitstand.artefacts import write_json
from fruitstand.contract import ACTIVATION, FEATURE_MAP, NEIGHBOURS, PIXELS, PROBABILITIES
from fruitstand.errors import UsageError
from fruitstand.images.reference_decode import decode_reference
from fruitstand.images.thumbnail import MAX_DIFFERENCE
from fruitstand.machine.provenance import provenance
from fruitstand.model.session import open_session, run_batches
from fruitstand.repository.version_record import EXPLAINER_MODEL, FP32_MODEL
from fruitstand.repository.versions import read_version, serving_state
from fruitstand.stages import command_line

WHITE_DISTANCE = 60
"""Sum over the channels by which a background pixel may differ from white; JPEG moves it."""
TARGET = 0.9


def measure(
    repository: Annotated[Path, typer.Option(help="Its served version has an explainer.")],
    images: Annotated[Path, typer.Option(help="Class folders of pictures on white.")],
    out: Annotated[Path, typer.Option(help="JSON file for the result.")],
    count: Annotated[int, typer.Option(min=1, help="Images, evenly from all.")] = 200,
) -> None:
    """Explain images offline with the served version's files, and look at where the mass lies."""
    state = serving_state(repository)
    if state is None or not (version := read_version(repository, state.version)).serve.explains:
        raise UsageError(f"{repository}: serves no version that explains; make one with 'export --explain'")
    paths = sorted(images.rglob("*.jpg"))
    paths = [paths[at] for at in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)]
    pixels = np.stack([decode_reference(path.read_bytes(), version.preprocessing) for path in paths])
    feature_maps = run_batches(open_session(version.directory / FP32_MODEL), pixels, FEATURE_MAP)
    wanted = [PROBABILITIES, ACTIVATION, NEIGHBOURS]
    explainer = open_session(version.directory / EXPLAINER_MODEL)
    found = dict(zip(wanted, explainer.run(wanted, {FEATURE_MAP: feature_maps, PIXELS: pixels}), strict=True))
    masks = np.stack([object_mask(one) for one in pixels])
    inside = np.array(
        [mass_inside(map_[0], mask) for map_, mask in zip(found[ACTIVATION], masks, strict=True)]
    )
    labels = [version.labels[index] for index in found[PROBABILITIES].argmax(axis=1)]
    nearest = found[NEIGHBOURS]
    truth = [path.parent.name for path in paths]
    result = {
        **provenance(),
        "settings": {"images": str(Path(*images.parts[-2:])), "model_name": version.record.model_name},
        "samples": {"mass_inside": inside.round(4).tolist()},
        "summary": {
            "num_images": len(paths),
            "top1": _share(a == b for a, b in zip(labels, truth, strict=True)),
            "mass_inside_mean": round(float(inside.mean()), 4),
            "mass_inside_median": round(float(np.median(inside)), 4),
            "mass_inside_p10": round(float(np.quantile(inside, 0.1)), 4),
            f"share_of_images_at_least_{TARGET}": _share(inside >= TARGET),
            "area_of_objects": round(float(masks.mean()), 4),
            "num_training_images": version.record.reports["explainer"]["num_training_images"],
            "nearest_has_the_right_class": _share(
                version.labels[int(row[0, 0])] == name for row, name in zip(nearest, truth, strict=True)
            ),
            "nearly_identical_to_one_kept": _share((nearest[:, :, 2] <= MAX_DIFFERENCE).any(axis=1)),
        },
    }
    write_json(out, result)
    print(out)


def object_mask(pixels_hwc_u8: np.ndarray) -> np.ndarray:
    """(H, W) bool, false on the white that reaches the picture's edge; highlights are the object's."""
    height, width = pixels_hwc_u8.shape[:2]
    framed = Image.new("RGB", (width + 2, height + 2), "white")
    framed.paste(Image.fromarray(pixels_hwc_u8), (1, 1))
    marked = (255, 0, 255)
    ImageDraw.floodfill(framed, (0, 0), marked, thresh=WHITE_DISTANCE)
    return (np.asarray(framed)[1:-1, 1:-1] != marked).any(axis=2)


def mass_inside(activation: np.ndarray, mask: np.ndarray) -> float:
    """Share of a map's mass that lies on the object, 0 to 1.

    Args:
        activation: (h, w) float32, not negative.
        mask: (H, W) bool.
    """
    size = mask.shape[1], mask.shape[0]
    whole = np.asarray(Image.fromarray(activation).resize(size, Image.Resampling.BILINEAR))
    return float(whole[mask].sum() / max(float(whole.sum()), 1e-12))


def _share(hits) -> float:
    return round(float(np.mean(list(hits))), 4)


if __name__ == "__main__":
    command_line(measure)
