from pathlib import Path

import pytest

from fruitstand.manifest import PreparedData
from training.fit.config import TrainConfig, classic, object_disjoint, resolve_config, with_settings


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param({"epochs": 0}, "epochs", id="epochs"),
        pytest.param({"lr": -1.0}, "lr", id="lr"),
        pytest.param({"lr": float("nan")}, "lr", id="lr_is_no_number"),
        pytest.param({"input_size": 16}, "input_size", id="input_size"),
        pytest.param({"precision": "int4"}, "precision", id="precision"),
        pytest.param({"random_erasing": 1.5}, "random_erasing", id="a_share_above_one"),
        pytest.param({"min_scale": 1.5}, "max_scale", id="scales_the_wrong_way_round"),
        pytest.param({"grad_accum_steps": 5}, "grad_accum_steps", id="pieces_of_unequal_size"),
        pytest.param({"mixup": 0.2, "batch_size": 15}, "batch_size", id="mixup_of_an_odd_batch"),
    ],
)
def test_settings_outside_what_is_allowed_are_named(values: dict, says: str) -> None:
    """A wrong setting is refused before anything starts."""
    with pytest.raises(ValueError, match=says):
        TrainConfig(**values)


def test_settings_take_the_type_of_their_field() -> None:
    """Numbers, words, truth and lists."""
    config = with_settings(
        TrainConfig(),
        ["lr=1e-3", "batch_size=64", "pretrained=true", "loggers=tensorboard,mlflow", "opt=adamw"],
    )
    assert (config.lr, config.batch_size, config.pretrained) == (1e-3, 64, True)
    assert (config.loggers, config.opt) == (("tensorboard", "mlflow"), "adamw")
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        pytest.param("lr", "FIELD=VALUE.*batch_size", id="no_value"),
        pytest.param("learning_rate=1", "FIELD=VALUE.*batch_size", id="no_such_field"),
        pytest.param("recipe=object", "FIELD=VALUE", id="the_recipe_has_a_flag"),
        pytest.param("epochs=many", "epochs: got 'many', expected int", id="wrong_type"),
        pytest.param("pretrained=maybe", "allowed true or false", id="neither_true_nor_false"),
        pytest.param("loggers=wandb", "allowed tensorboard, mlflow", id="no_such_logger"),
    ],
)
def test_a_setting_that_cannot_be_is_answered_with_what_can(setting: str, says: str) -> None:
    """The field, what was got, and what is allowed."""
    with pytest.raises(ValueError, match=says):
        with_settings(TrainConfig(), [setting])


def test_auto_takes_the_recipe_for_the_datas_split(prepared: PreparedData, tmp_path: Path) -> None:
    """Flags and settings go before the preset, whichever it is."""
    config = resolve_config("auto", prepared.directory, ["lr=0.3"], {"epochs": 3})
    assert config == classic(epochs=3, lr=0.3)
    assert config.recipe == "classic"
    assert resolve_config("object", prepared.directory, [], {}) == object_disjoint()
    with pytest.raises(ValueError, match="auto, classic, object"):
        resolve_config("best", prepared.directory, [], {})


def test_progressive_sizes_end_at_the_full_size() -> None:
    """Small first, the served size last; without it always the full size."""
    assert [TrainConfig(epochs=7).train_size(epoch) for epoch in range(7)] == [64] * 4 + [100] * 3
    assert [TrainConfig(epochs=10, small_share=0.7).train_size(epoch) for epoch in (6, 7)] == [64, 100]
    assert TrainConfig(epochs=1).train_size(0) == 100
    assert TrainConfig(small_share=0.0).train_size(0) == 100
    assert [TrainConfig(epochs=2, input_size=224).train_size(epoch) for epoch in range(2)] == [144, 224]
