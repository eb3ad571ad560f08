"""Ed25519 signatures of manifests, with the package `cryptography`.

A manifest holds the sha256 of every file of its version, so its signature covers them all. Keys are PEM
files, as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them.
"""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fruitstand.artefacts import atomic_file, write_bytes
from fruitstand.errors import ArtefactError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_NAME = "manifest.sig"


def make_key(private_key: Path) -> Path:
    """Write a new key pair: `private_key`, readable only by its owner, and beside it `<name>.pub`.

    Returns:
        The path of the public key.

    Raises:
        UsageError: one of the two files exists; keys are never replaced.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public_key = private_key.with_name(f"{private_key.name}.pub")
    for path in (private_key, public_key):
        if path.exists():
            raise UsageError(f"{path}: exists already, and keys are never replaced; choose another name")
    key = Ed25519PrivateKey.generate()
    private_bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_bytes(public_key, public_bytes)
    with atomic_file(private_key, private=True) as temporary:
        temporary.write_bytes(private_bytes)
    return public_key


def sign_manifest(manifest: Path, private_key: "Ed25519PrivateKey") -> None:
    """Write `manifest.sig` beside a manifest: base64 of its Ed25519 signature."""
    signature = private_key.sign(manifest.read_bytes())
    write_bytes(manifest.with_name(SIGNATURE_NAME), base64.b64encode(signature) + b"\n")


def check_signature(manifest: Path, trusted_keys: Path) -> None:
    """Check that a trusted key has signed a manifest.

    The keys are `*.pub` and `*.pem` files of that folder.

    Raises:
        UsageError: no key in that folder.
        ArtefactError: not signed, signed by another key, or altered since.
    """
    from cryptography.exceptions import InvalidSignature

    keys = _read_public_keys(trusted_keys)
    signature_path = manifest.with_name(SIGNATURE_NAME)
    if not signature_path.is_file():
        raise ArtefactError(
            f"{manifest}: not signed, and only signed versions are trusted here; publish it with --sign KEY"
        )
    try:
        signature = base64.b64decode(signature_path.read_bytes(), validate=False)
    except ValueError as exc:
        raise ArtefactError(f"{signature_path}: not a signature; publish the version again") from exc
    for key in keys:
        try:
            key.verify(signature, manifest.read_bytes())
        except InvalidSignature:
            continue
        return
    raise ArtefactError(
        f"{manifest}: altered, or signed by an unknown key: none of the {len(keys)} in {trusted_keys};"
        " publish it with --sign and a trusted key"
    )


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """Read a private key.

    Raises:
        UsageError: no such file, or not an Ed25519 private key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _read_pem(path, lambda pem: load_pem_private_key(pem, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"--sign {path}: no Ed25519 private key in PEM; make one with 'fruitstand models keygen'"
        )
    return key


def _read_public_keys(directory: Path) -> "list[Ed25519PublicKey]":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = []
    for path in sorted([*directory.glob("*.pub"), *directory.glob("*.pem")]):
        key = _read_pem(path, load_pem_public_key)
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError(f"{path}: no Ed25519 public key in PEM; remove it from the trusted keys")
        keys.append(key)
    if not keys:
        raise UsageError(f"--trusted-keys {directory}: no *.pub or *.pem file there")
    return keys


def _read_pem(path: Path, load: Callable[[bytes], object]) -> object:
    """A key; None if it cannot be read."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load(path.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
