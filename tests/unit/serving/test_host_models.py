import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as pb

from fruitstand.contract import FRUIT_RESNET, HOST_CONFIG, IMAGE_DECODE
from fruitstand.errors import ServerError
from serving.host import models

REPOSITORY = Path(__file__).parents[3] / "model_repository"


def config(model: str, name: str = HOST_CONFIG) -> dict:
    """A rendered configuration as Triton hands it to a backend."""
    path = REPOSITORY / model / "configs" / f"{name}.pbtxt"
    if not path.is_file():
        path = REPOSITORY / model / "config.pbtxt"
    return json_format.MessageToDict(
        text_format.Parse(path.read_text(), pb.ModelConfig()), preserving_proto_field_name=True
    )


def settings(document: dict) -> SimpleNamespace:
    """What the queue is told of a configuration."""
    return models.read_settings(json.dumps(document))


@pytest.mark.parametrize(
    "name", [pytest.param(HOST_CONFIG, id="parameters"), pytest.param("cpu", id="dynamic_batching")]
)
def test_queue_limits_are_those_that_triton_would_hold(name: str) -> None:
    """Written as parameters for the host, or for Triton's batcher: the same numbers."""
    decode, infer = settings(config(IMAGE_DECODE, name)), settings(config(FRUIT_RESNET, name))
    assert (decode.max_queue_size, decode.default_timeout_us) == (1024, 2_000_000)
    assert (infer.max_queue_size, infer.default_timeout_us) == (0, 60_000_000)
    assert decode.allow_timeout_override
    assert infer.allow_timeout_override


def test_files_share_a_batch_only_where_the_configuration_allows_it() -> None:
    """Inputs of any length with allow_ragged_batch; fixed ones always."""
    document = config(IMAGE_DECODE)
    assert settings(document).is_ragged
    document["input"][0]["allow_ragged_batch"] = False
    assert not settings(document).is_ragged
    assert settings(config(FRUIT_RESNET)).is_ragged


def test_a_type_that_is_not_carried_is_named() -> None:
    """Text has no fixed size."""
    document = config(FRUIT_RESNET)
    document["input"][0]["data_type"] = "TYPE_STRING"
    with pytest.raises(ServerError, match="PIXELS is TYPE_STRING"):
        settings(document)


def test_a_refused_version_knows_its_warm_up_requests() -> None:
    """One of one image, and eight of the sample with eight."""
    assert settings(config(FRUIT_RESNET)).num_warmup_requests == 9


def test_a_configuration_that_does_not_fit_the_file_is_refused() -> None:
    """Name, type and dims as the C++ found them in the file."""
    document = json.dumps(config(FRUIT_RESNET))
    (output,) = json.loads(document)["output"]
    classes = [int(dim) for dim in output["dims"]]
    outputs = [("PROBABILITIES", 1, [-1, *classes]), ("FEATURES", 1, [-1, 512])]
    models.check_file(document, [("PIXELS", 2, [-1, 100, 100, 3])], outputs)
    with pytest.raises(ServerError, match="PIXELS is TYPE_UINT8"):
        models.check_file(document, [("PIXELS", 1, [-1, 100, 100, 3])], outputs)


def test_the_library_is_found_without_an_import() -> None:
    """The C++ opens what the wheel of onnxruntime carries."""
    assert Path(models.onnxruntime_library()).name.startswith("libonnxruntime.so.")
