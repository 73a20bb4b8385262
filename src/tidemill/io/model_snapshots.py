"""Snapshots of the models on an object store: a folder, S3, GCS or Azure.

In: a frozen snapshot. Out: the newest good one. Invariant: an object is whole or refused (one JSON line, the learners,
16 bytes of BLAKE2b over all before), and a whole one is never overwritten: the first worker writes, others compare.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields
from hashlib import blake2b
from itertools import accumulate, pairwise
from pathlib import Path

from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError

from tidemill.core.snapshot import ModelSnapshot, digest_of
from tidemill.errors import ModelRefusedError, UnavailableError
from tidemill.io.object_store import open_store

FORMAT = "tidemill.models.v1"
SUFFIX = ".models"
CHECK_BYTES = 16
KEPT = 5  # snapshots per folder: 100,000 examples back at the default distance


def pack_snapshot(snapshot: ModelSnapshot) -> bytes:
    """One object: a line of JSON, the learners' bytes, the check."""
    header = asdict(snapshot)
    header["learners"] = [len(learner) for learner in snapshot.learners]
    line = json.dumps({"format": FORMAT, **header}, sort_keys=True).encode()
    body = b"".join([line, b"\n", *snapshot.learners])
    return body + _check(body)


def unpack_snapshot(data: bytes, name: str) -> ModelSnapshot:
    """The inverse; `name` is for messages.

    Raises:
        ModelRefusedError: cut, changed, of another format, or its weights do not have the promised digest.
    """
    body, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
    if len(data) <= CHECK_BYTES or _check(body) != check:
        raise _refusal(name, f"its {len(data)} bytes are cut or changed")
    line, _, rest = body.partition(b"\n")
    try:
        header = json.loads(line)
    except ValueError as error:
        raise _refusal(name, f"its first line is not JSON: {error}") from error
    names = {field.name for field in fields(ModelSnapshot)}
    if not isinstance(header, dict) or header.pop("format", None) != FORMAT or header.keys() != names:
        raise _refusal(name, f"it is not of format {FORMAT}")
    ends = [*accumulate(header.pop("learners"))]
    learners = tuple(rest[start:end] for start, end in pairwise([0, *ends]))
    snapshot = ModelSnapshot(learners=learners, **header)
    found = digest_of(snapshot)
    if found != snapshot.digest or len(rest) != ends[-1]:
        raise _refusal(name, f"its content has digest {found}, promised was {snapshot.digest}")
    return snapshot


def _warn(reason: str) -> None:
    warnings.warn(reason, RuntimeWarning, stacklevel=3)


class ModelSnapshots:
    """Snapshots by app, features and N; those of other features neither collide nor push out."""

    def __init__(
        self,
        url_or_folder: str | Path,
        *,
        kept: int = KEPT,
        failpoint: Callable[[str, Callable[[], object]], None] = lambda name, bring_about: None,
    ) -> None:
        """`url_or_folder`: a folder, made when absent, or a URL such as s3://bucket/prefix. `failpoint` hears "F10"
        before a snapshot is written, and how to leave half of it there."""
        self._store = open_store(url_or_folder)
        self._kept = kept
        self._failpoint = failpoint

    def put(self, app: str, snapshot: ModelSnapshot) -> bool:
        """Write the snapshot unless its N has one, then drop the oldest beyond `kept`.

        A broken one that is there gives way: the log folded again comes past this N each time.

        Returns:
            False when an equal one was there.
        Raises:
            ModelRefusedError: the one that is there has another digest: two workers folded the same log differently.
            UnavailableError: TM-3306, it was not written; those that were there still are.
        """
        try:
            return self._put(app, snapshot)
        except BaseError as error:
            raise UnavailableError(
                "TM-3306",
                f"snapshot of {app} at N = {snapshot.n} was not written: {str(error).splitlines()[0]}; serving goes "
                "on, but a worker that starts folds the log from an older one: make room, or make the store writable",
            ) from error

    def _put(self, app: str, snapshot: ModelSnapshot) -> bool:
        folder = _folder(app, snapshot.feature_digest)
        path, data = f"{folder}{snapshot.n:020d}{SUFFIX}", pack_snapshot(snapshot)
        self._failpoint("F10", lambda: self._store.put(path, data[: len(data) // 2], mode="overwrite"))
        try:
            self._store.put(path, data, mode="create")
        except AlreadyExistsError:
            if self._is_whole_beside(path, snapshot):
                return False
            self._store.put(path, data, mode="overwrite")
        for _, old in self._listed(folder)[self._kept :]:
            self._delete(old)
        return True

    def newest(
        self,
        app: str,
        at_most: int | None,
        feature_digest: str,
        *,
        on_refused: Callable[[str], None] = _warn,
    ) -> ModelSnapshot | None:
        """The good snapshot with the largest N, not above `at_most`, made of these features; None if there is none.

        Those that are broken or of other features are passed over, each with its reason to `on_refused`.
        """
        for n, path in self._listed(_folder(app, feature_digest)):
            if at_most is not None and n > at_most:
                continue
            try:
                snapshot = unpack_snapshot(bytes(self._store.get(path).bytes()), path)
            except NotFoundError:
                continue  # another worker dropped it meanwhile: there is a newer one, or it was the oldest
            except ModelRefusedError as error:
                on_refused(str(error))
                continue
            if snapshot.n != n:
                on_refused(str(_refusal(path, f"it holds N={snapshot.n}")))
            elif snapshot.feature_digest != feature_digest:
                on_refused(
                    str(_refusal(path, f"its features have digest {snapshot.feature_digest}, ours {feature_digest}"))
                )
            else:
                return snapshot
        return None

    def _is_whole_beside(self, path: str, snapshot: ModelSnapshot) -> bool:
        """Whether the one that is there can stay; False: it is broken.

        Raises:
            ModelRefusedError: it is whole and has another digest.
        """
        try:
            there = unpack_snapshot(bytes(self._store.get(path).bytes()), path)
        except NotFoundError:
            return True  # dropped between the two calls as too old: nothing to replace
        except ModelRefusedError:
            return False
        if there.digest != snapshot.digest:
            raise ModelRefusedError(
                "TM-5004",
                f"snapshot {path}: there is one with digest {there.digest} (engine {there.engine}, arguments "
                f"{there.arguments!r}), this worker has {snapshot.digest} ({snapshot.engine}, {snapshot.arguments!r}) "
                "at the same N; if the examples log or the arguments are new, delete the folder's snapshots; else "
                "platform or version differ: compare `tidemill --version` on both, restart the odd one out",
            )
        return True

    def _listed(self, folder: str) -> list[tuple[int, str]]:
        """(N, path), newest first."""
        found = []
        for page in self._store.list(prefix=folder):
            for meta in page:
                stem = meta["path"].removeprefix(folder).removesuffix(SUFFIX)
                if meta["path"].endswith(SUFFIX) and stem.isdecimal():
                    found.append((int(stem), meta["path"]))
        return sorted(found, reverse=True)

    def _delete(self, path: str) -> None:
        try:
            self._store.delete(path)
        except (FileNotFoundError, NotFoundError):
            return  # another worker was faster


def _folder(app: str, feature_digest: str) -> str:
    return f"{app}/{feature_digest}/"


def _check(body: bytes) -> bytes:
    return blake2b(body, digest_size=CHECK_BYTES).digest()


def _refusal(name: str, reason: str) -> ModelRefusedError:
    return ModelRefusedError("TM-5003", f"snapshot {name}: {reason}; passed over, delete it once its cause is known")
