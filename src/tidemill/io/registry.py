"""The registry of boosters on an object store: a folder, S3, GCS or Azure.

In: a model with its manifest, signed. Out: models that were checked. Invariant: nothing is parsed before it is known to
be what a trusted key signed: the signature covers the manifest's bytes, the manifest's digest covers the model's.

Layout: <app>/<version>/model.ubj, manifest.json, signature. The signature is written last: without it there is no such
version. A version's name is a digest of its manifest, so writing one twice writes the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from obstore.exceptions import BaseError, NotFoundError

from tidemill.core.manifest import Manifest, model_digest
from tidemill.errors import ModelRefusedError, UnavailableError
from tidemill.io.object_store import open_store
from tidemill.io.signing import PublicKey, SigningKey, format_signature, parse_signature

MODEL, MANIFEST, SIGNATURE = "model.ubj", "manifest.json", "signature"
VERSION_FORM = re.compile(r"m[0-9a-f]{12}")  # of Manifest.version: nothing that could leave the app's folder


@dataclass(frozen=True, slots=True)
class Listed:
    """A version of the registry; `manifest` is None where it is refused, for the reason that `refused` gives."""

    version: str
    manifest: Manifest | None
    refused: str = ""


class Registry:
    """Versions by app. Any number of processes may write and read."""

    def __init__(self, url_or_folder: str | Path) -> None:
        """`url_or_folder`: a folder, made when absent, or a URL such as s3://bucket/prefix."""
        self._place = str(url_or_folder)
        self._store = open_store(url_or_folder)

    def put(self, manifest: Manifest, model: bytes, key: SigningKey) -> bool:
        """Write a version; what is there already and equal stays, what is cut or changed gives way.

        Returns:
            False when all of it was there.
        Raises:
            ModelRefusedError: TM-5011, the model is not that of the manifest.
            UnavailableError: TM-3401, the object store does not answer.
        """
        _refuse_other_bytes(manifest, model)
        folder, data = f"{manifest.app}/{manifest.version}/", manifest.to_bytes()
        signature = format_signature(key.public_key(), key.sign(data))
        has_changed = False
        for name, content in ((MODEL, model), (MANIFEST, data), (SIGNATURE, signature)):
            if self._found(folder + name) != content:
                with self._answers(f"write {folder}{name}"):
                    self._store.put(folder + name, content, mode="overwrite")
                has_changed = True
        return has_changed

    def load(self, app: str, version: str, trusted: Sequence[PublicKey]) -> tuple[Manifest, bytes]:
        """The manifest and the model's bytes, checked.

        Raises:
            ModelRefusedError: TM-5011 the model's bytes are not those of the manifest; TM-5014 not signed by a trusted
                key; TM-5015 absent or incomplete; TM-5016 the manifest is of another version or app, TM-5010 no
                manifest at all, though signed.
            UnavailableError: TM-3401, the object store does not answer.
        """
        manifest = self._manifest(app, version, trusted)
        model = self._whole(app, version, MODEL)
        _refuse_other_bytes(manifest, model)
        return manifest, model

    def versions(self, app: str) -> list[str]:
        """Names of the versions, good or not, those that were put last first."""
        with self._answers(f"list {app}/"):
            found = [meta for page in self._store.list(prefix=f"{app}/") for meta in page]
        signed = [(meta["last_modified"], meta["path"].split("/")) for meta in found]
        named = [(at, parts[1]) for at, parts in signed if len(parts) == 3 and parts[2] == SIGNATURE]
        return [version for _, version in sorted(named, reverse=True)]

    def ls(self, app: str, trusted: Sequence[PublicKey]) -> list[Listed]:
        """All versions, each checked as by `load`: the good ones by their `created`, newest first, then the refused."""
        good, refused = [], []
        for version in self.versions(app):
            try:
                good.append(Listed(version, self.load(app, version, trusted)[0]))
            except ModelRefusedError as error:
                refused.append(Listed(version, None, str(error)))
        return sorted(good, key=_created, reverse=True) + refused

    def _manifest(self, app: str, version: str, trusted: Sequence[PublicKey]) -> Manifest:
        if VERSION_FORM.fullmatch(version) is None:
            raise ModelRefusedError(
                "TM-5015", f"{version!r} is not the name of a model version; see tidemill models ls"
            )
        name = f"model {app}/{version}"
        line = self._whole(app, version, SIGNATURE)
        data = self._whole(app, version, MANIFEST)
        try:
            key, signature = parse_signature(line)
        except ValueError as error:
            raise _not_signed(name, f"its signature cannot be read: {error}") from error
        if key not in trusted:
            raise _not_signed(name, f"it is signed by {key.text}, which is not among the {len(trusted)} trusted keys")
        if not key.is_signature(signature, data):
            raise _not_signed(name, f"its manifest is not what {key.text} signed")
        manifest = Manifest.from_bytes(data, name)
        if (manifest.app, manifest.version) != (app, version):
            raise ModelRefusedError(
                "TM-5016",
                f"{name}: its manifest is that of {manifest.app}/{manifest.version}; files were swapped, put it again",
            )
        return manifest

    def _whole(self, app: str, version: str, name: str) -> bytes:
        content = self._found(f"{app}/{version}/{name}")
        if content is None:
            raise ModelRefusedError(
                "TM-5015",
                f"model {app}/{version}: there is no {name} in {self._place}; train it again, or check that trainer "
                "and workers have the same object store",
            )
        return content

    def _found(self, path: str) -> bytes | None:
        with self._answers(f"read {path}"):
            try:
                return bytes(self._store.get(path).bytes())
            except (FileNotFoundError, NotFoundError):
                return None

    @contextmanager
    def _answers(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise UnavailableError(
                "TM-3401", f"registry {self._place}: cannot {what}: {error}; check its address, access and network"
            ) from error


def _refuse_other_bytes(manifest: Manifest, model: bytes) -> None:
    if model_digest(model) != manifest.model_digest:
        raise ModelRefusedError(
            "TM-5011",
            f"model {manifest.app}/{manifest.version}: its {len(model)} bytes are not those of its manifest; "
            "they were cut or changed, put or train it again",
        )


def _not_signed(name: str, reason: str) -> ModelRefusedError:
    return ModelRefusedError(
        "TM-5014", f"{name}: {reason}; if you know who made it, add their key to trusted_keys, else train it again"
    )


def _created(listed: Listed) -> tuple[int, str]:
    return (0 if listed.manifest is None else listed.manifest.created, listed.version)
