"""Which model version has which role, as a function of the commands in the examples log.

In: commands in log order. Out: roles after each. Invariant: nothing but the commands decides; so "which version scored
X" is answered by the N of the prediction X and the log alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tidemill.core.records import Command

INITIAL = "initial"  # the champion before the first promotion: a learner without a booster


@dataclass(frozen=True, slots=True)
class Roles:
    """challenger, parent: "" = none; the parent is the champion before this one. is_frozen: the champion's learner."""

    champion: str = INITIAL
    challenger: str = ""
    parent: str = ""
    is_frozen: bool = False

    def after(self, command: Command) -> Roles | None:
        """The roles once the command is obeyed; None when it is ignored.

        A command is ignored when it expects another champion, when it promotes what is not prepared, or when its kind
        is not known.
        """
        if command.expects != self.champion:
            return None
        if command.kind == "prepare":
            return replace(self, challenger=command.model_version)
        if command.kind == "promote" and command.model_version == self.challenger:
            return Roles(champion=self.challenger, parent=self.champion)
        if command.kind in ("freeze", "thaw"):
            return replace(self, is_frozen=command.kind == "freeze")
        return None


@dataclass(frozen=True, slots=True)
class RoleHistory:
    """The commands that were obeyed, each with the roles after it; `ignored` are the others."""

    obeyed: tuple[tuple[Command, Roles], ...]
    ignored: tuple[Command, ...]

    @classmethod
    def of(cls, commands: Iterable[Command]) -> RoleHistory:
        """Of all commands of a log, in its order."""
        roles = Roles()
        obeyed: list[tuple[Command, Roles]] = []
        ignored: list[Command] = []
        for command in commands:
            changed = roles.after(command)
            if changed is None:
                ignored.append(command)
            else:
                roles = changed
                obeyed.append((command, roles))
        return cls(tuple(obeyed), tuple(ignored))

    @property
    def now(self) -> Roles:
        return self.obeyed[-1][1] if self.obeyed else Roles()

    def at(self, n: int) -> Roles:
        """The roles once every record before offset `n` is folded."""
        before = bisect_left(self.obeyed, n, key=lambda each: each[0].offset)
        return self.obeyed[before - 1][1] if before else Roles()

    @property
    def promotions(self) -> tuple[Command, ...]:
        return tuple(command for command, _ in self.obeyed if command.kind == "promote")
