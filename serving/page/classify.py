"""`POST /classify` and `POST /explain`: one image, sent as the body or as a form file; JSON comes back."""

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from email.message import Message
from email.parser import BytesHeaderParser
from typing import TypeVar

from aiohttp import web

from fruitstand.contract import Preprocessing
from fruitstand.repository.model_names import CLASSIFIER_NAME
from fruitstand_client.errors import DecodeFailed, ModelNotFound
from fruitstand_client.exchange import backoff_s
from serving.page.answer import Refused, json_response
from serving.page.upstream import Upstream

MAX_IMAGE_BYTES = Preprocessing().max_encoded_bytes
FORM = "multipart/form-data"
RAW_TYPES = ("", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded")
"""Content types, beside image/*, of a body that is the image. The last one is curl's default."""
DEFAULT_TOP_K, MAX_TOP_K = 5, 1000
ANSWERED = ("label", "probability", "top_k", "known", "label_set", "model_version")
Answer = TypeVar("Answer")
LONE_REPEATS = 3
"""Retries after NVIDIA's DALI backend failed on a batch, perhaps because of another image in it."""


async def classify(
    request: web.BaseRequest, body: bytes, upstream: Upstream, default_model: str
) -> web.Response:
    """Classify one image.

    Args:
        request: supplies content type, `top_k`, `model` and `abstain`.
        body: the whole body.
        upstream: the model server.
        default_model: the classifier to ask where the request names none.

    Raises:
        Refused: the request is malformed.
        RequestFailed: the server refused the image or did not answer.
    """
    image = _image(request.headers.get("Content-Type", ""), body)
    top_k, model = _top_k(request), _model(request, default_model)
    prediction = await _lone(lambda: upstream.classify(image, top_k, request.headers, model))
    row = replace(prediction, abstain=_abstain(request)).to_dict()
    return json_response({key: row[key] for key in ANSWERED})


async def explain(
    request: web.BaseRequest, body: bytes, upstream: Upstream, default_model: str
) -> web.Response:
    """Answer why one image gets its labels; arguments and errors as for `classify`.

    Raises:
        Refused: also 404, where the served version has no explainer.
    """
    image = _image(request.headers.get("Content-Type", ""), body)
    model = _model(request, default_model)
    try:
        found = await _lone(lambda: upstream.explain(image, request.headers, model))
    except ModelNotFound as exc:
        raise Refused(
            404, "no explainer is served; publish a version with 'fruitstand export --explain'"
        ) from exc
    maps = zip(found.ranked, found.activations.round(4).tolist(), strict=False)
    return json_response(
        {
            "label": found.ranked[0].label,
            "probability": found.ranked[0].probability,
            "model_version": found.model_version,
            "crop": asdict(found.crop),
            "activations": [{**label._asdict(), "rows": rows} for label, rows in maps],
            "neighbours": [
                {
                    "label": one.label,
                    "similarity": round(one.similarity, 4),
                    "difference": round(one.difference, 2),
                    "is_nearly_identical": one.is_nearly_identical,
                    "picture": f"data:image/webp;base64,{base64.b64encode(one.picture).decode()}",
                }
                for one in found.neighbours
            ],
        }
    )


def check_content_type(content_type: str) -> None:
    """Refuse a body by its content type, before it is read.

    Raises:
        Refused: 415.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (*RAW_TYPES, FORM) and not kind.startswith("image/"):
        raise Refused(
            415, f"Content-Type {kind[:80]!r}: send the image as the body (image/jpeg and such) or as {FORM}"
        )


async def _lone(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer for one image; asked again where the decoder failed on a batch it was part of."""
    for attempt in range(LONE_REPEATS):
        try:
            return await ask()
        except DecodeFailed:
            await asyncio.sleep(backoff_s(attempt))
    return await ask()


def _top_k(request: web.BaseRequest) -> int:
    given = request.query.get("top_k", str(DEFAULT_TOP_K))
    if not given.isascii() or not given.isdecimal() or len(given) > 4 or not 1 <= int(given) <= MAX_TOP_K:
        raise Refused(400, f"top_k: got {given[:20]!r}, allowed 1 to {MAX_TOP_K}")
    return int(given)


def _abstain(request: web.BaseRequest) -> bool:
    given = request.query.get("abstain", "false")
    if given not in ("true", "false"):
        raise Refused(400, f"abstain: got {given[:20]!r}, allowed true or false")
    return given == "true"


def _model(request: web.BaseRequest, default: str) -> str:
    given = request.query.get("model", default)
    if not re.fullmatch(CLASSIFIER_NAME, given):
        raise Refused(400, f"model: got {given[:60]!r}, allowed the name of a classifier: birds_classifier")
    return given


def _image(content_type: str, body: bytes) -> bytes:
    """Extract the image from a body.

    Raises:
        Refused: no image, more than one, or an image that is too large.
    """
    image = _file(content_type, body) if content_type.lower().startswith(FORM) else body
    if not image:
        raise Refused(400, "no image: the body is empty")
    if len(image) > MAX_IMAGE_BYTES:
        raise Refused(413, f"too many bytes: at most {MAX_IMAGE_BYTES} are allowed")
    return image


def _file(content_type: str, body: bytes) -> bytes:
    """Extract the only file of a form.

    Source:
        RFC 7578 (multipart/form-data) and RFC 2046, section 5.1 (delimiters).
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if not boundary:
        raise Refused(400, f"{FORM} without a boundary")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise Refused(400, f"{FORM} without its end: the body is truncated, or the boundary is wrong")
    files = []
    for piece in pieces[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        if BytesHeaderParser().parsebytes(head.lstrip()).get_filename() is not None:
            files.append(content)
    if len(files) != 1:
        raise Refused(400, f"one file in a form: got {len(files)} (curl -F image=@apple.jpg)")
    return files[0]
