"""Named places in the cycle where a test may kill or hang the process: `TIDEMILL_FAILPOINT=F4:kill@37`.

In: the name of the place that is passed. Out: nothing, unless the variable names it. Invariant: without the variable
each pass costs one comparison.

fill-replayed, fill-state, fill-rows, fill-switched: what a fill of features has done.
trainer.before_training, trainer.after_training (registered, nothing written), trainer.before_commit (all is sent, the
transaction is open), trainer.after_commit (nothing is told to anybody yet).
F1 polled · F2 scored, script not sent · F4 script applied · F8 transaction committed, store not told.
"""

from __future__ import annotations

import os
import signal
import time

_NAME, _, _REST = os.environ.get("TIDEMILL_FAILPOINT", "").partition(":")
_ACTION, _, _AT = _REST.partition("@")
_passes = 0


def failpoint(name: str) -> None:
    """At the wanted pass of the wanted place: `kill` ends the process as kill -9 would, `hang` sleeps for an hour."""
    global _passes
    if name != _NAME:
        return
    _passes += 1
    if _passes == int(_AT or 1):
        if _ACTION == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)
