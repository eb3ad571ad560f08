"""The scenarios that are built, by their number in the scoreboard."""

from collections.abc import Callable

from tests.nightly.chaos.scenarios import (
    artefacts,
    availability,
    bad_input,
    model_change,
    observability,
    overload,
    security,
)
from tests.nightly.chaos.setting import Outcome, Setting

SCENARIOS: dict[int, Callable[[Setting], Outcome]] = {
    1: availability.replica_killed,
    2: availability.replica_killed_large,
    3: availability.replica_hangs,
    4: availability.rolling_restart,
    5: availability.gateway_restarted,
    6: availability.cold_start,
    7: availability.all_replicas_down,
    8: availability.path_goes_dead,
    9: overload.overloaded,
    10: overload.deadlines_pass,
    11: overload.noisy_neighbour,
    12: overload.inner_step_full,
    13: bad_input.bad_images,
    14: bad_input.malformed_requests,
    15: bad_input.too_large,
    16: model_change.swapped_answers,
    17: model_change.hot_swap,
    18: model_change.bad_version,
    19: model_change.canary,
    20: artefacts.export_killed,
    21: artefacts.training_killed,
    22: artefacts.made_twice,
    23: artefacts.scoring_killed,
    24: artefacts.soak,
    25: security.control_refused,
    26: security.certificates,
    27: security.api_keys,
    28: security.least_privilege,
    29: observability.alerts,
    30: observability.drift,
}
NUM_SCENARIOS = 30
BLOCKERS = (1, 4, 9, 13, 16, 17, 20, 25)
