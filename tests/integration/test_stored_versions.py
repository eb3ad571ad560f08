"""A repository's versions before and after they are served: signatures, altered files, pruning."""

import functools
import shutil
from pathlib import Path

import pytest

from export.publish.promote import promote, rollback
from export.publish.publish import publish
from export.publish.render import WARMUP_IMAGE
from export.publish.repository import prune
from fruitstand.contract import FRUIT_RESNET
from fruitstand.errors import ArtefactError, ServerError, UsageError
from fruitstand.repository.audit_log import read_audit
from fruitstand.repository.signing import make_key
from fruitstand.repository.versions import MANIFEST_NAME, published_versions
from serving.triton.embedded import EmbeddedServer
from tests.callers import ask_once, padded_batch
from tests.repositories import place_version

NUM_REFUSALS = 5
ANY_SLOWDOWN = 100.0
"""On a busy machine a gate on time would decide these tests."""


def test_a_signature_is_asked_for_when_keys_are_trusted(
    two_versions: Path, second_run: Path, test_images: list[Path], tmp_path: Path
) -> None:
    """Unsigned, signed by a stranger, altered: refused by promote and serve; signed and trusted: served."""
    copy = shutil.copytree(two_versions, tmp_path / "repository")
    for name in ("ours", "strange"):
        make_key(tmp_path / name)
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    (tmp_path / "ours.pub").rename(trusted / "ours.pub")
    with pytest.raises(ArtefactError, match="not signed"):
        promote(copy, 2, url=None, trusted_keys=trusted)
    published = functools.partial(publish, copy, second_run / "export", max_slowdown=ANY_SLOWDOWN)
    by_stranger = published(sign_key=tmp_path / "strange")["version"]
    with pytest.raises(ArtefactError, match="unknown key"):
        promote(copy, by_stranger, url=None, trusted_keys=trusted)
    ours = published(sign_key=tmp_path / "ours")["version"]
    assert promote(copy, ours, url=None, trusted_keys=trusted).version == ours
    with EmbeddedServer(copy, trusted_keys=trusted, log_path=tmp_path / "triton.log") as server:
        for _ in range(NUM_REFUSALS):  # a Triton that fails such a load itself dies of one in ten
            with pytest.raises(ServerError, match=r"answer: 2/manifest\.json: not signed"):
                promote(copy, 2, url=server.url)  # whoever promotes may not ask; the server does
            assert ask_once(server, padded_batch(test_images[:1]))[0] == ours
    manifest = copy / FRUIT_RESNET / str(ours) / MANIFEST_NAME
    manifest.write_text(manifest.read_text().replace('"passed": true', '"passed":  true', 1))
    with pytest.raises(ArtefactError, match="altered"):
        EmbeddedServer(copy, trusted_keys=trusted)


def test_an_altered_version_is_not_started(two_versions: Path, tmp_path: Path) -> None:
    """Nor one with a file more, or a file less."""
    copy = shutil.copytree(two_versions, tmp_path / "repository")
    extra = copy / FRUIT_RESNET / "1" / "extra.bin"
    extra.write_bytes(b"")
    with pytest.raises(ArtefactError, match="not in the manifest"):
        EmbeddedServer(copy)
    extra.unlink()
    (copy / FRUIT_RESNET / "1" / "model.onnx").unlink()
    with pytest.raises(ArtefactError, match="missing"):
        EmbeddedServer(copy)


def test_prune_keeps_what_is_served_and_what_was(tmp_path: Path) -> None:
    """The oldest go first; a rollback stays possible."""
    copy, (older, old, new) = tmp_path / "repository", (3, 4, 5)
    for number in range(1, new + 1):
        place_version(copy, number)
    promote(copy, older, url=None)
    promote(copy, 1, url=None)
    assert prune(copy, keep=1) == [2, old]
    assert published_versions(copy) == [1, older, new]
    assert rollback(copy, url=None).version == older
    with pytest.raises(UsageError, match="no version 2"):
        promote(copy, 2, url=None)
    actions = [(entry["action"], entry["done"]) for entry in read_audit(copy)[-4:]]
    assert actions == [("promote", True), ("prune", True), ("rollback", True), ("promote", False)]
    assert read_audit(copy)[-3]["removed"] == [2, old]


def test_ready_waits_for_a_real_inference_of_each_step(two_versions: Path, tmp_path: Path) -> None:
    """A warm-up image that does not decode keeps the server from becoming ready (2.51 even ends)."""
    copy = shutil.copytree(two_versions, tmp_path / "repository")
    sample = copy / WARMUP_IMAGE
    sample.write_bytes(bytes(sample.stat().st_size))
    with pytest.raises(ServerError, match=r"exited while starting|not ready in time|failed to load"):
        EmbeddedServer(copy, log_path=tmp_path / "triton.log").start()
