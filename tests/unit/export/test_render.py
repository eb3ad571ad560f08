from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.render import LABELS_FILE, render_repository, write_repository
from fruitstand.contract import FRUIT_RESNET, IMAGE_DECODE, Preprocessing
from fruitstand.labels import read_labels

COMMITTED = Path(__file__).parents[3] / "model_repository"
LABELS = read_labels(COMMITTED / LABELS_FILE)
CONFIGS = [str(path) for path in render_repository(Preprocessing(), LABELS) if path.suffix == ".pbtxt"]


def test_the_committed_repository_is_what_the_contract_renders() -> None:
    """Neither the files nor the contract can drift from the other."""
    for relative, content in render_repository(Preprocessing(), LABELS).items():
        assert (COMMITTED / relative).read_text() == content, f"{relative}: run python -m export.render"


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_parses_with_the_official_proto(config: str) -> None:
    """And keeps clear of the traps that cost people weeks."""
    parsed = text_format.Parse(
        render_repository(Preprocessing(), LABELS)[Path(config)], model_config_pb2.ModelConfig()
    )
    assert parsed.name == Path(config).parts[0]
    if parsed.platform == "ensemble":
        return
    assert parsed.HasField("dynamic_batching"), "batching has to be asked for"
    assert [group.count for group in parsed.instance_group] == [1], "the default would start two processes"
    if parsed.name == IMAGE_DECODE:
        assert parsed.input[0].allow_ragged_batch, "without it no batch of images forms"
        policy = parsed.dynamic_batching.default_queue_policy
        assert policy.max_queue_size > 0
        assert policy.default_timeout_microseconds > 0
    if parsed.name == FRUIT_RESNET:
        assert parsed.output[0].dims == [len(LABELS)]


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    """A second rendering of the same contract touches nothing."""
    assert write_repository(tmp_path, Preprocessing(), LABELS)
    assert write_repository(tmp_path, Preprocessing(), LABELS) == []
    changed = write_repository(tmp_path, Preprocessing(input_size=(128, 128)), LABELS)
    assert Path(IMAGE_DECODE, "1", "dali.py") in changed
    assert LABELS_FILE not in changed


def test_mean_and_std_live_in_one_place() -> None:
    """Only the contract names them; configs and pipelines never normalise."""
    root = Path(__file__).parents[3]
    places = [
        path
        for folder in (
            "fruitstand",
            "training",
            "export",
            "serving",
            "client",
            "model_repository",
            "benchmarks",
        )
        for path in (root / folder).rglob("*")
        if path.suffix in (".py", ".pbtxt") and "0.485" in path.read_text()
    ]
    assert places == [root / "fruitstand" / "contract.py"]
