import json
from pathlib import Path

import pytest

from fruitstand.errors import ArtefactError
from fruitstand.repository.tuning import TUNING_NAME, Tuning, read_tuning


def test_settings_survive_a_file(tmp_path: Path) -> None:
    """And a repository without the file has the defaults."""
    assert read_tuning(tmp_path) == Tuning()
    settings = Tuning(infer_queue_delay_us=0, decode_instances=2)
    (tmp_path / TUNING_NAME).write_text(json.dumps(settings.to_dict()))
    assert read_tuning(tmp_path) == read_tuning(tmp_path / TUNING_NAME) == settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        pytest.param({"threads": 2}, "unknown settings threads; allowed decode_instances", id="unknown"),
        pytest.param({"decode_threads": 0}, "decode_threads: got 0", id="no_thread"),
        pytest.param(
            {"infer_preferred_batch": 65}, "got 65, allowed a whole number from 0 to 64", id="large"
        ),
        pytest.param({"infer_instances": 1.5}, "infer_instances: got 1.5", id="half"),
        pytest.param({"max_queue_size": True}, "max_queue_size: got True", id="true"),
    ],
)
def test_other_settings_are_refused(settings: dict, says: str, tmp_path: Path) -> None:
    """With the field, what was got, and what is allowed."""
    path = tmp_path / "tuning.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ArtefactError, match=says):
        read_tuning(path)
