"""Ed25519 keys: who made a model.

In: a key file, public keys as text, bytes. Out: signatures, and whether one is good. Invariant: a signature is one text
and no other: a changed character of it is never accepted; the private key leaves its file by `load_or_create_key` only.
"""

from __future__ import annotations

import os
import tempfile
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tidemill.errors import ConfigError

SCHEME = "ed25519:"
PUBLIC_BYTES, SIGNATURE_BYTES = 32, 64
OTHERS_BITS = 0o077  # of a file's mode: what group and others may do


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One who signs; `text` names them: "ed25519:" and base64 of 32 bytes."""

    raw: bytes

    @property
    def text(self) -> str:
        return SCHEME + b64encode(self.raw).decode()

    def is_signature(self, signature: bytes, data: bytes) -> bool:
        """Whether this key made the 64 bytes for `data`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True


class SigningKey:
    """The private half. Its representation says whose it is, and nothing more."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"SigningKey({self.public_key().text})"

    def public_key(self) -> PublicKey:
        return PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        """64 bytes; the same for the same data."""
        return self._key.sign(data)


def load_or_create_key(path: Path) -> SigningKey:
    """The key of a PEM file (PKCS #8, unencrypted); made with mode 600 when there is none.

    Of several processes that make it at the same time one wins, and all return its key.

    Raises:
        ConfigError: TM-1601 not the key that it should be, or it cannot be read or written; TM-1602 others may read it.
    """
    try:
        if not path.exists():
            _create(path)
        if path.stat().st_mode & OTHERS_BITS:
            raise ConfigError(
                "TM-1602",
                f"signing key {path} can be read or changed by others: whoever has it makes models that are trusted; "
                f"run chmod 600 {path}, or delete it if it may have been copied",
            )
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(path, str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable(path, f"it is a {type(key).__name__}, not an Ed25519 key")
    return SigningKey(key)


def parse_public_key(text: str) -> PublicKey:
    """The inverse of `PublicKey.text`.

    Raises:
        ConfigError: TM-1603 not such a text, or of another scheme.
    """
    scheme, _, encoded = text.strip().partition(":")
    try:
        key = PublicKey(b64decode(encoded, validate=True))
        Ed25519PublicKey.from_public_bytes(key.raw)
    except ValueError as error:
        raise ConfigError("TM-1603", f"trusted key {text!r} is not a public key: {error}; {_HOW_KEYS_LOOK}") from error
    if key.text != f"{scheme}:{encoded}":
        raise ConfigError("TM-1603", f"trusted key {text!r} is not a public key of Ed25519; {_HOW_KEYS_LOOK}")
    return key


def format_signature(key: PublicKey, signature: bytes) -> bytes:
    """One line: whose it is, and the signature in base64."""
    return f"{key.text} {b64encode(signature).decode()}\n".encode()


def parse_signature(line: bytes) -> tuple[PublicKey, bytes]:
    """The inverse; nothing else is accepted, though base64 has several spellings.

    Raises:
        ValueError: not such a line.
    """
    text, _, encoded = line.decode("ascii").removesuffix("\n").partition(" ")
    key, signature = PublicKey(b64decode(text.removeprefix(SCHEME), validate=True)), b64decode(encoded, validate=True)
    if (len(key.raw), len(signature)) != (PUBLIC_BYTES, SIGNATURE_BYTES) or format_signature(key, signature) != line:
        raise ValueError(f"{len(line)} bytes that are not an Ed25519 key and its signature")
    return key, signature


_HOW_KEYS_LOOK = f'it looks like "{SCHEME}" and 44 characters of base64'


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mode 600 from the start
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)  # whole or not at all, and never over another's
        except FileExistsError:
            return
    finally:
        os.unlink(name)


def _unusable(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        "TM-1601", f"signing key {path} cannot be used: {reason}; put the former back, or delete it to have a new one"
    )
