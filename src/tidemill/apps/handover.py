"""What a process hands to its own child and back: lines of JSON, read against the type that they must have.

In: a frozen value of dataclasses, and its type. Out: the line, or the equal value. Invariant: reading builds values of
the named type and nothing else; no line can name code, so what comes through a pipe is data (docs/security.md).
"""

from __future__ import annotations

import queue
import subprocess
import threading
from contextlib import suppress
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from tidemill.errors import InvariantError

Value = TypeVar("Value")


def write_line(kind: type[Value], value: Value) -> bytes:
    """The value as a line that ends in a newline. It holds what the value holds, passwords too: for a pipe only."""
    return bytes(TypeAdapter(kind).dump_json(value)) + b"\n"


def read_line(kind: type[Value], line: bytes) -> Value:
    """The value that `write_line` was given.

    Raises:
        InvariantError: TM-9050 the line is no value of this type. It says where, never what it holds.
    """
    try:
        value: Value = TypeAdapter(kind).validate_json(line)
    except ValidationError as error:
        wrong = ", ".join(
            f"{'.'.join(map(str, one['loc']))} ({one['type']})" for one in error.errors(include_input=False)
        )
        raise InvariantError(
            "TM-9050", f"a line between parent and child is no {kind.__name__}: {wrong}; do both run the same version?"
        ) from None
    return value


def lines_of(child: subprocess.Popen[bytes]) -> queue.SimpleQueue[bytes]:
    """What the child says, line by line as it comes; b"" once there is no more. Who asks can stop waiting."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        assert child.stdout is not None
        with child.stdout:
            for line in child.stdout:
                lines.put(line)
        lines.put(b"")

    threading.Thread(target=listen, daemon=True).start()
    return lines


def end_child(child: subprocess.Popen[bytes]) -> None:
    """Kill it, and wait until it is gone."""
    child.kill()
    child.wait()
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # what it did not read is still to be flushed
        child.stdin.close()
