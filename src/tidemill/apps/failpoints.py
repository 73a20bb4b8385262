"""Named places where a test may kill, hang or fail the process: `TIDEMILL_FAILPOINT=F4:kill@37`.

In: the name of the place that is passed. Out: nothing, unless the variable names it. Invariant: without the variable
each pass costs one comparison.

F1 polled · F2 scored, script not sent · F3 script applied, its reply lost · F4 script applied · F5 outputs with the
broker · F6 offsets sent as well · F7 transaction committed, its reply lost · F8 transaction committed, store not told ·
F9 a partition's outbox is sent, the others' and the word to the store are not · F10 half a snapshot written · F11
commands folded, models swapped, nobody told · F12 inside a revoke.
fill-replayed, fill-state, fill-rows, fill-switched: what a fill of features has done.
trainer.before_training, trainer.after_training (registered, nothing written), trainer.before_commit (all is sent, the
transaction is open), trainer.after_commit (nothing is told to anybody yet).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from tidemill.errors import UnavailableError

_NAME, _, _REST = os.environ.get("TIDEMILL_FAILPOINT", "").partition(":")
_ACTION, _, _AT = _REST.partition("@")
_passes = 0


def failpoint(name: str, bring_about: Callable[[], object] | None = None) -> None:
    """At the wanted pass of the wanted place: `kill` ends the process as kill -9 would, `stop` freezes it until
    somebody sends CONT, `error` is a server that does not answer, `hang` sleeps for an hour.

    Args:
        bring_about: makes true what the place's name says, before the action; not called otherwise.
    Raises:
        UnavailableError: TM-3199, the action is `error`.
    """
    global _passes
    if name != _NAME:
        return
    _passes += 1
    if _passes == int(_AT or 1):
        if bring_about is not None:
            bring_about()
        if _ACTION == "error":
            raise UnavailableError("TM-3199", f"failpoint {name} of TIDEMILL_FAILPOINT: as if a reply were lost")
        if _ACTION == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        if _ACTION == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)
