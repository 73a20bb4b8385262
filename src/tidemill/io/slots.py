"""Slots give a worker an identity that survives restarts: the lowest free lock file of the data folder.

In: the data folder. Out: a number held until the process ends. Invariant: no two living processes on one machine hold
the same slot of one app; across machines give `--slot` by hand (Kafka fences the older of two workers with one slot).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from tidemill.errors import ConfigError

SLOTS_MAX = 256  # more workers of one app on one machine are a mistake


class Slot:
    """A held lock file; released when the process ends or at `release`."""

    def __init__(self, number: int, descriptor: int) -> None:
        self.number = number
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


def take_slot(folder: Path, wanted: int | None = None) -> Slot:
    """Lock slot `wanted`, or the lowest free one.

    Raises:
        ConfigError: the wanted slot is held by another process, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "TM-1040", f"cannot write {folder}: {error.strerror}; choose another folder with --data"
        ) from None
    for number in range(SLOTS_MAX) if wanted is None else [wanted]:
        try:
            descriptor = os.open(folder / f"slot-{number}.lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise ConfigError(
                "TM-1040", f"cannot write {folder}: {error.strerror}; choose another folder with --data"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        return Slot(number, descriptor)
    raise ConfigError(
        "TM-1041",
        f"slot {'0 to ' + str(SLOTS_MAX - 1) if wanted is None else wanted} of {folder} is held by another worker; "
        "stop it, or leave --slot out to take a free one",
    )
