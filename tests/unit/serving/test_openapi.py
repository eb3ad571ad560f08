import json
from pathlib import Path

import openapi_spec_validator
import pytest
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from fruitstand.contract import API_KEY_HEADER, Preprocessing
from fruitstand.repository.model_names import CLASSIFIER_NAME
from serving.page import answer, kserve, web
from serving.page.classify import DEFAULT_TOP_K, FORM, MAX_TOP_K, RAW_TYPES

DOCUMENT = json.loads(Path(web.__file__).with_name("openapi.json").read_text())
CLASSIFY = DOCUMENT["paths"]["/classify"]["post"]


def test_the_document_is_openapi_3_1() -> None:
    """By the specification's own schema; one that is spoilt is refused."""
    assert DOCUMENT["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(DOCUMENT)
    with pytest.raises(OpenAPIValidationError):
        openapi_spec_validator.validate(DOCUMENT | {"paths": {"/classify": {"post": {"responses": 5}}}})


def test_its_limits_are_those_of_the_code() -> None:
    """They stand in the document because it is static."""
    top_k, _, model = CLASSIFY["parameters"]
    assert (top_k["schema"]["default"], top_k["schema"]["maximum"]) == (DEFAULT_TOP_K, MAX_TOP_K)
    assert str(Preprocessing().max_encoded_bytes) in CLASSIFY["requestBody"]["description"]
    infer = DOCUMENT["paths"]["/v2/models/{model}/infer"]["post"]
    names = (model, DOCUMENT["components"]["parameters"]["Model"])
    assert {one["schema"]["pattern"] for one in names} == {f"^{CLASSIFIER_NAME}$"}
    assert str(kserve.MAX_JSON_BYTES) in infer["parameters"][0]["description"]
    assert infer["parameters"][0]["name"] == kserve.HEADER_LENGTH
    assert DOCUMENT["components"]["securitySchemes"]["apiKey"]["name"] == API_KEY_HEADER


def test_it_names_what_is_taken_and_every_status() -> None:
    """Content types of a body, and what each failure becomes."""
    assert set(CLASSIFY["requestBody"]["content"]) <= {*RAW_TYPES, FORM, "image/*"}
    statuses = {str(status) for _, status, _ in answer.STATUSES} | {"500"}
    assert statuses <= set(CLASSIFY["responses"])
    for path, methods in DOCUMENT["paths"].items():
        concrete = path.replace("{version}", "1").replace("{model}", "birds_classifier")
        assert (
            concrete in web.FILES
            or concrete in (*web.ANSWERS, "/v2")
            or (kserve.is_health(concrete) or kserve.MODEL.fullmatch(concrete))
        ), path
        assert set(methods) - {"parameters"} <= {"get", "post"}
