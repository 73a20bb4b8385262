"""Which process of a run in parallel takes which file.

Tests with servers mostly wait: two processes of them fill two cores, three make them so busy that time-outs are tried
by chance. What only computes fills the gaps in a lane of its own, with what the others leave of the cores.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

QUIET = "gw2"  # the third process
POLITENESS = 10  # of `os.nice`


def be_polite() -> None:
    """Called in every process, before its first test."""
    if os.environ.get("PYTEST_XDIST_WORKER") == QUIET:
        os.nice(POLITENESS)


class Lanes(LoadFileScheduling):
    """For three processes: the third takes the files without servers, the others those with servers first."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        self._root = config.rootpath

    def _assign_work_unit(self, node: Any) -> None:
        fitting = self._fitting(node)
        if fitting is not None:
            self.workqueue.move_to_end(fitting, last=False)
        super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        if node.gateway.id == QUIET and self._fitting(node) is None and not node.shutting_down:
            node.shutdown()  # after what it has: files with servers are for two
        else:
            super()._reschedule(node)

    def _fitting(self, node: Any) -> str | None:
        is_quiet = node.gateway.id == QUIET
        return next((file for file in self.workqueue if _has_servers(self._root / file) != is_quiet), None)


@functools.cache
def _has_servers(file: Path) -> bool:
    return "servers" in file.read_text()  # the fixture or the marker
