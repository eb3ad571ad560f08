from pathlib import Path

import pytest

from export.publish.render import write_repository
from fruitstand.artefacts import sha256_file, write_json
from fruitstand.contract import Preprocessing
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.repository.signing import (
    SIGNATURE_NAME,
    check_signature,
    make_key,
    read_private_key,
    sign_manifest,
)
from fruitstand.repository.versions import (
    GOLDEN_LIST,
    Golden,
    ServingState,
    loaded_versions,
    read_version,
    serving_state,
    transition,
    verify_file,
    verify_version,
)
from tests.repositories import place_version


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One version with two files, as publishing leaves it."""
    place_version(tmp_path / "repository", 1)
    return tmp_path / "repository"


def test_a_version_is_what_its_manifest_says(repository: Path) -> None:
    """Every file, also those below; the manifest and its signature are not listed in it."""
    (repository / "fruit_resnet" / "1" / SIGNATURE_NAME).write_bytes(b"")
    assert verify_version(repository, 1).manifest["version"] == 1


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        pytest.param("model.onnx", lambda path: path.write_bytes(b"weightz"), "altered", id="altered"),
        pytest.param("golden/0.jpg", lambda path: path.unlink(), "missing", id="missing"),
        pytest.param("more.bin", lambda path: path.write_bytes(b""), "not in the manifest", id="added"),
        pytest.param("link", lambda path: path.symlink_to("/etc/hostname"), "is a link", id="link"),
    ],
)
def test_a_version_that_was_touched_is_refused(repository: Path, name: str, change, reason: str) -> None:
    """Whatever was done to it."""
    change(repository / "fruit_resnet" / "1" / name)
    with pytest.raises(ArtefactError, match=reason):
        verify_version(repository, 1)


def test_an_unknown_version_is_named_with_the_known_ones(repository: Path) -> None:
    """The message says what there is."""
    with pytest.raises(UsageError, match="no version 2; published: 1"):
        read_version(repository, 2)


def test_nothing_is_served_where_nothing_is_rendered(repository: Path) -> None:
    """Nor where the rendered version has no folder."""
    assert serving_state(repository) is None
    config = repository / "fruit_classifier" / "config.pbtxt"
    config.parent.mkdir()
    config.write_text('parameters { key: "served_version" value: { string_value: "3" } }')
    assert serving_state(repository) is None


@pytest.mark.parametrize(
    "listed",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"images": []}, id="no image"),
        pytest.param({"images": [{"file": "0.jpg"}]}, id="no answer"),
        pytest.param({"images": [{"file": "../model.onnx", "probabilities": [1]}]}, id="another folder"),
    ],
)
def test_golden_images_are_there_and_its_own(repository: Path, listed: dict) -> None:
    """A version without them cannot be tried before it is served."""
    version = read_version(repository, 1)
    assert [one.path.name for one in version.golden()] == ["0.jpg"]
    write_json(version.directory / GOLDEN_LIST, listed)
    with pytest.raises(ArtefactError, match="golden"):
        version.golden()


def test_all_versions_that_a_server_would_load_are_known(tmp_path: Path) -> None:
    """Two of them while a promotion is under way."""
    assert loaded_versions(tmp_path) == []
    for loaded, expected in (((), [2]), ((3,), [2, 3])):
        state = ServingState(2, 1, loaded)
        write_repository(tmp_path, Preprocessing(), ["a", "b"], state=state)
        assert loaded_versions(tmp_path) == expected


def test_the_pinned_version_is_loaded_at_every_step_of_a_transition() -> None:
    """The new one is loaded beside the old one, pinned, and then alone; a first version has one step."""
    old, new = ServingState(2, 1), ServingState(3, 2)
    steps = [(one.version, one.previous, one.loaded) for one in transition(old, new)]
    assert steps == [(2, 1, (2, 3)), (3, 2, (2, 3)), (3, 2, (3,))]
    assert transition(None, ServingState(1)) == [ServingState(1)]


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Nobody can say which version it serves; the message tells the way out."""
    write_repository(tmp_path, Preprocessing(), ["a", "b"], state=ServingState(1))
    config = tmp_path / "fruit_classifier" / "config.pbtxt"
    config.write_text("parameters {")
    with pytest.raises(ArtefactError, match=r"config\.pbtxt: cannot be read .* remove it, and promote"):
        serving_state(tmp_path)


def test_golden_answers_are_compared_by_total_variation() -> None:
    """0 is equal, 1 is another class for sure, another length, or no number."""
    golden = Golden(Path("0.jpg"), [0.75, 0.25])
    assert golden.distance([0.75, 0.25]) == 0
    assert golden.distance([0.5, 0.5]) == pytest.approx(0.25)
    assert golden.distance([0.75, 0.2, 0.05]) == 1
    assert golden.distance([float("nan"), 0.25]) == 1


def test_one_file_is_held_against_its_sha256(tmp_path: Path) -> None:
    """What the backend does before it loads."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    verify_file(path, sha256_file(path))
    with pytest.raises(ArtefactError, match="altered"):
        verify_file(path, "0" * 64)


def test_signatures_are_of_trusted_keys_and_of_these_bytes(tmp_path: Path) -> None:
    """Another key, another byte, no signature, garbage: refused."""
    manifest, trusted = tmp_path / "manifest.json", tmp_path / "trusted"
    manifest.write_bytes(b"{}")
    trusted.mkdir()
    make_key(tmp_path / "ours").rename(trusted / "ours.pub")
    make_key(tmp_path / "strange")
    with pytest.raises(ArtefactError, match="not signed"):
        check_signature(manifest, trusted)
    sign_manifest(manifest, read_private_key(tmp_path / "ours"))
    check_signature(manifest, trusted)
    manifest.write_bytes(b"[]")
    with pytest.raises(ArtefactError, match="altered, or signed by an unknown key"):
        check_signature(manifest, trusted)
    sign_manifest(manifest, read_private_key(tmp_path / "strange"))
    with pytest.raises(ArtefactError, match="unknown key"):
        check_signature(manifest, trusted)
    manifest.with_name(SIGNATURE_NAME).write_bytes(b"?")
    with pytest.raises(ArtefactError):
        check_signature(manifest, trusted)


def test_keys_are_private_never_replaced_and_checked(tmp_path: Path) -> None:
    """And what is no key is named."""
    make_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="never replaced"):
        make_key(tmp_path / "key")
    for wrong in (tmp_path / "key.pub", tmp_path / "nothing"):
        with pytest.raises(UsageError, match="--sign"):
            read_private_key(wrong)
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(b"{}")
    sign_manifest(manifest, read_private_key(tmp_path / "key"))
    with pytest.raises(UsageError, match=r"no \*\.pub"):
        check_signature(manifest, tmp_path / "nowhere")
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    (trusted / "garbage.pub").write_text("no key")
    with pytest.raises(UsageError, match="no Ed25519 public key in PEM"):
        check_signature(manifest, trusted)
