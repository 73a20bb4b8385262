"""Keys and signatures: one key a folder, for its owner alone; one spelling of a signature."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tidemill.errors import ConfigError
from tidemill.io.signing import (
    PublicKey,
    SigningKey,
    format_signature,
    load_or_create_key,
    parse_public_key,
    parse_signature,
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[SigningKey, SigningKey]:
    """Ours, and a stranger's."""
    folder = tmp_path_factory.mktemp("keys")
    return load_or_create_key(folder / "ours.pem"), load_or_create_key(folder / "theirs.pem")


def test_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.pem"
    key = load_or_create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert load_or_create_key(path).public_key() == key.public_key()
    assert load_or_create_key(tmp_path / "another.pem").public_key() != key.public_key()
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert repr(key) == f"SigningKey({key.public_key().text})"


def test_key_that_many_make_at_once_is_one_key(tmp_path: Path) -> None:
    found: list[PublicKey] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        found.append(load_or_create_key(tmp_path / "signing.pem").public_key())

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_key_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    load_or_create_key(tmp_path / "signing.pem")
    (tmp_path / "signing.pem").chmod(mode)
    with pytest.raises(ConfigError, match="TM-1602"):
        load_or_create_key(tmp_path / "signing.pem")


def test_file_that_is_no_key_is_refused_and_stays(tmp_path: Path) -> None:
    other = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "signing.pem"
    for content in (b"", b"no key", pem):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="TM-1601"):
            load_or_create_key(path)
        assert path.read_bytes() == content


def test_public_key_survives_the_way_to_text_and_back(keys: tuple[SigningKey, SigningKey]) -> None:
    for key in keys:
        public = key.public_key()
        assert parse_public_key(public.text) == parse_public_key(f" {public.text}\n") == public
        assert public.text.startswith("ed25519:") and len(public.text) == 52


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "ed25519:" + "!" * 44, "rsa:" + "A" * 43 + "=", "é"])
def test_text_that_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="TM-1603"):
        parse_public_key(text)


def test_signature_has_one_spelling_only(keys: tuple[SigningKey, SigningKey]) -> None:
    """Base64 ignores spare bits and some decoders more; a signature line that differs in one character is another."""
    line = format_signature(keys[0].public_key(), keys[0].sign(b"data"))
    assert parse_signature(line) == (keys[0].public_key(), keys[0].sign(b"data"))
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/= \n\t-_:"
    for at in range(len(line)):
        for other in alphabet:
            changed = line[:at] + bytes([other]) + line[at + 1 :]
            if changed == line:
                continue
            try:
                key, signature = parse_signature(changed)
            except ValueError:
                continue
            assert not (key == keys[0].public_key() and key.is_signature(signature, b"data"))


def test_signature_is_of_one_key_and_one_text(keys: tuple[SigningKey, SigningKey]) -> None:
    ours, theirs = keys
    signature = ours.sign(b"data")
    assert ours.public_key().is_signature(signature, b"data")
    assert not ours.public_key().is_signature(signature, b"other")
    assert not theirs.public_key().is_signature(signature, b"data")
    assert not ours.public_key().is_signature(signature[:-1], b"data")
