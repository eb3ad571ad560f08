"""Golden images: a few validation images with recorded answers, which a server has to reproduce.

They are replayed through the server before a version is promoted.
"""

from pathlib import Path

import numpy as np

from export.gates.validation import Validation
from fruitstand.artefacts import write_bytes, write_json
from fruitstand.model.session import open_session, run_batches
from fruitstand.repository.tolerances import MIN_MARGIN
from fruitstand.repository.versions import GOLDEN_LIST

NUM_IMAGES = 8


def write_golden(directory: Path, model: Path, engine: str, validation: Validation, labels: list[str]) -> int:
    """Choose golden images and write them with their answers.

    The answers are those to the served decode's pixels, by the file and engine that will be served on a CPU.

    Returns:
        The number of images; below `NUM_IMAGES` if too few answers are correct.
    """
    answers = run_batches(open_session(model, engine), validation.served_nhwc_u8)
    right = (answers.argmax(axis=1) == validation.targets) & (
        validation.reference.argmax(axis=1) == validation.targets
    )
    first_two = np.sort(answers, axis=1)[:, -2:]
    chosen = choose_golden(right, first_two[:, 1] - first_two[:, 0], validation.targets)
    golden = []
    for number, index in enumerate(chosen):
        name = f"{number}{Path(validation.rows[index].path).suffix}"
        write_bytes((directory / GOLDEN_LIST).with_name(name), validation.encoded[index])
        golden.append(
            {
                "file": name,
                "label": validation.rows[index].label,
                "top1": labels[int(answers[index].argmax())],
                "probabilities": [float(value) for value in answers[index]],
            }
        )
    write_json(directory / GOLDEN_LIST, {"images": golden})
    return len(golden)


def choose_golden(right: np.ndarray, margins: np.ndarray, targets: np.ndarray) -> list[int]:
    """Indices of images with clear, correct answers, from as many classes as possible.

    Args:
        right: (N,) bool.
        margins: (N,) first probability minus second.
        targets: (N,) classes.
    """
    by_margin = [int(index) for index in np.argsort(-margins, kind="stable") if right[index]]
    clear = [index for index in by_margin if margins[index] >= MIN_MARGIN]
    pool = clear if len(clear) >= NUM_IMAGES else by_margin[:NUM_IMAGES]
    turns: dict[int, int] = {}
    placed = []
    for index in pool:  # each class's best image in the first round, its next in the second
        turn = turns.get(targets[index], 0)
        turns[targets[index]] = turn + 1
        placed.append((turn, int(targets[index]), index))
    placed.sort()
    in_first_turn = [index for turn, _, index in placed if turn == 0]
    if len(in_first_turn) <= NUM_IMAGES:
        return [index for _, _, index in placed[:NUM_IMAGES]]
    evenly = np.linspace(0, len(in_first_turn) - 1, NUM_IMAGES).round().astype(int)
    return [in_first_turn[position] for position in evenly]
