"""How large each measure may be: thresholds from clean windows, drawn from the reference itself.

The measures are looked at together, so their thresholds are set together: of the clean windows no more than
the wanted share may pass any of them. A table's value for one test would give a false alarm for each.
"""

from dataclasses import replace

import numpy as np

from fruitstand.errors import UsageError
from fruitstand.samples import Samples
from monitoring.drift.measures import measure, principal_axes

FALSE_ALARMS = 0.02
"""Of clean windows; below the 5 % that are allowed, because the reference is a sample as well."""
NUM_CLEAN = 1000
MIN_SAMPLES = 50
"""Of a window, and of a reference: below it nothing but an accident is found."""


def thresholds(reference: Samples, window_size: int, *, num_classes: int, seed: int = 0) -> dict[str, float]:
    """The value of each measure above which a window of that size has drifted.

    Args:
        reference: clean samples.
        window_size: of the windows to come.
        num_classes: of the model.
        seed: of the draws.

    Raises:
        UsageError: too few samples.

    Source:
        Westfall and Young, Resampling-Based Multiple Testing (1993): the smallest p of all tests is compared
        with its own distribution. Efron: windows are drawn with replacement, and so is the reference, whose
        chance is part of every comparison.
    """
    for what, size in (("reference", len(reference)), ("window", window_size)):
        if size < MIN_SAMPLES:
            raise UsageError(f"the {what} holds {size} samples, at least {MIN_SAMPLES} are needed")
    # Once and not for each window: nothing else here takes as long.
    reference = replace(reference, features=reference.features @ principal_axes(reference.features))
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(NUM_CLEAN):
        window = reference.rows(draw.integers(len(reference), size=window_size))
        other = reference.rows(draw.integers(len(reference), size=len(reference)))
        rows.append(measure(window, other, num_classes=num_classes))
    names = list(rows[0])
    values = np.array([[row[name] for name in names] for row in rows])
    larger_or_equal = np.array([(values >= row).mean(axis=0) for row in values])
    level = np.quantile(larger_or_equal.min(axis=1), FALSE_ALARMS)
    limits = np.quantile(values, 1 - level, axis=0, method="higher")
    return {name: float(limit) for name, limit in zip(names, limits, strict=True)}
