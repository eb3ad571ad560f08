from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from fruitstand.errors import ArtefactError, UsageError
from fruitstand.manifest import PreparedData
from training.fit.config import TrainConfig, resolve_config
from training.fit.fit import without_refused_sizes
from training.fit.model import Classifier, create_model, load_from_file, resolve_preprocessing
from training.fit.train import train


@pytest.mark.parametrize(
    "model_name",
    [
        *("resnet10t", "resnet50", "convnext_atto", "efficientnet_b0", "mobilenetv3_small_050"),
        *("test_vit", "deit_tiny_distilled_patch16_224", "test_byobnet", "vit_tiny_patch16_224"),
    ],
)
def test_any_image_classifier_of_timm_can_be_made(model_name: str) -> None:
    """It answers our size with our classes; mean and std are timm's."""
    model = create_model(model_name, num_classes=7, input_size=64).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    timms = timm.data.resolve_model_data_config(model)
    assert resolve_preprocessing(model, 64).mean == tuple(timms["mean"])


@pytest.mark.parametrize(
    ("model_name", "size", "says"),
    [
        pytest.param("convnext_ato", 64, "such as .*convnext_atto", id="misspelt"),
        pytest.param("qqqq", 64, "such as resnet18", id="like_nothing"),
        pytest.param(
            "inception_v3", 32, "does not take images of 32 x 32 .*--set input_size=299", id="too_small"
        ),
        pytest.param("maxvit_nano_rw_256", 100, "maxvit_nano_rw_256: .*100 x 100", id="fixed_size"),
    ],
)
def test_a_name_or_size_that_does_not_fit_gets_one_line(model_name: str, size: int, says: str) -> None:
    """With near names, or the size that the model was made for."""
    with pytest.raises(UsageError, match=says) as caught:
        create_model(model_name, num_classes=3, input_size=size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_name", ["repvgg_a0", "mobileone_s0"])
def test_networks_with_branches_that_are_folded_can_be_trained(model_name: str) -> None:
    """Their backward pass crashed the process in another memory format."""
    model = create_model(model_name, num_classes=4, input_size=64).train()
    Classifier(model, resolve_preprocessing(model, 64))(torch.zeros(4, 3, 64, 64)).sum().backward()
    assert all(one.grad is not None for one in model.parameters())


def test_networks_without_batch_norm_start_with_adamw(prepared: PreparedData) -> None:
    """What the user sets goes before it; ResNets keep the recipe's optimiser."""
    resolve = resolve_config
    assert resolve("auto", prepared.directory, [], {"model_name": "convnext_atto"}).opt == "adamw"
    assert resolve("auto", prepared.directory, ["opt=sgd"], {"model_name": "convnext_atto"}).opt == "sgd"
    assert resolve("auto", prepared.directory, [], {"model_name": "resnet18"}) == TrainConfig()


def test_a_transformer_trains_at_one_size(caplog: pytest.LogCaptureFixture) -> None:
    """A model with a fixed input size trains without small images and logs a warning; a ResNet does not."""
    config = TrainConfig(model_name="vit_tiny_patch16_224", input_size=100)
    model = create_model(config.model_name, num_classes=3, input_size=100)
    assert "patches of 16 pixels cover only 96 of 100" in caplog.text
    assert without_refused_sizes(config, model).small_share == 0
    assert "takes images of one size only" in caplog.text
    assert without_refused_sizes(config, create_model("resnet10t", num_classes=3, input_size=100)) is config


def _vit(num_classes: int, size: int = 64) -> torch.nn.Module:
    return create_model("test_vit", num_classes=num_classes, input_size=size)


def _as_safetensors(state: dict[str, torch.Tensor], path: Path) -> Path:
    safetensors.torch.save_file(state, path / "weights.safetensors")
    return path / "weights.safetensors"


def _as_checkpoint(state: dict[str, torch.Tensor], path: Path) -> Path:
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": one for name, one in state.items()}}, path / "a.pth"
    )
    return path / "a.pth"


def _as_lightning(state: dict[str, torch.Tensor], path: Path) -> Path:
    torch.save({"state_dict": {f"model.{name}": one for name, one in state.items()}}, path / "a.ckpt")
    return path / "a.ckpt"


@pytest.mark.parametrize("write", [_as_safetensors, _as_checkpoint, _as_lightning])
@pytest.mark.parametrize(
    ("num_classes", "size", "keeps_head"), [(3, 64, True), (5, 64, False), (3, 96, True)]
)
def test_weights_of_a_file_are_taken_over(
    write, num_classes: int, size: int, keeps_head: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A head of another size is replaced and named; positions are fitted to another size of image."""
    theirs, ours = _vit(num_classes, size), _vit(3)
    fresh = ours.head.weight.detach().clone()
    assert load_from_file(ours, write(theirs.state_dict(), tmp_path)) is keeps_head
    assert torch.equal(ours.patch_embed.proj.weight, theirs.patch_embed.proj.weight)
    assert torch.equal(ours.head.weight, theirs.head.weight if keeps_head else fresh)
    assert ("head has another number of classes" in caplog.text) is not keeps_head


class _Trap:
    def __reduce__(self):
        return Path.touch, (Path("trap"),)


def test_weights_that_cannot_be_used_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: PreparedData
) -> None:
    """Those of another model, damaged ones, none at all; nothing in a checkpoint is executed."""
    monkeypatch.chdir(tmp_path)
    model = _vit(3)
    other = create_model("resnet10t", num_classes=3, input_size=64)
    with pytest.raises(ArtefactError, match="not the weights of this model"):
        load_from_file(model, _as_safetensors(other.state_dict(), tmp_path))
    (tmp_path / "a.safetensors").write_bytes(b"no weights at all")
    (tmp_path / "a.pt").write_bytes(b"no weights at all")
    for name in ("a.safetensors", "a.pt"):
        with pytest.raises(ArtefactError, match=name):
            load_from_file(model, tmp_path / name)
    torch.save({"state_dict": model.state_dict(), "more": _Trap()}, "trap.pt")
    with pytest.raises(ArtefactError, match="more than tensors"):
        load_from_file(model, tmp_path / "trap.pt")
    assert not Path("trap").exists()
    with pytest.raises(UsageError, match=r"--weights nothing\.pt: no such file"):
        train(TrainConfig(weights="nothing.pt"), data_directory=prepared.directory, out=tmp_path / "run")
    with pytest.raises(ValueError, match="one source"):
        TrainConfig(weights="a.pt", pretrained=True)
