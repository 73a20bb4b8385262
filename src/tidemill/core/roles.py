"""Which model version has which role, as a function of the commands in the examples log.

In: commands in log order. Out: roles after each. Invariant: nothing but the commands decides; so "which version scored
X" is answered by the N and the id of the prediction X and the log alone.

The commands, each about its `model_version`:

- `prepare`: it becomes the challenger, which is folded and scored beside the champion;
- `canary`: the challenger serves a share of the events from now on;
- `promote`: the challenger becomes the champion, the former one goes;
- `swap`: the challenger becomes the champion, the former one becomes the challenger (probation, or back again);
- `drop`: the challenger goes;
- `freeze`, `thaw`: the champion's learner stops, and goes on;
- `excise`: the models become what they would be had the examples at offsets "<from>-<to>" never been learned.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tidemill.core.records import Command

INITIAL = "initial"  # the champion before the first promotion: a learner without a booster

OffsetRange = tuple[int, int]  # [from, to) of the examples log


@dataclass(frozen=True, slots=True)
class Roles:
    """challenger, parent: "" = none; the parent is the champion before this one.

    is_frozen: the champion's learner. is_canary: the challenger serves a share. excised: ranges that nothing is learned
    from, in the order of their commands.
    """

    champion: str = INITIAL
    challenger: str = ""
    parent: str = ""
    is_frozen: bool = False
    is_canary: bool = False
    excised: tuple[OffsetRange, ...] = ()

    def after(self, command: Command) -> Roles | None:
        """The roles once the command is obeyed; None when it is ignored.

        A command is ignored when it expects another champion, when it is about a challenger that is not the present
        one, when it would excise what is not in the log yet, or when its kind is not known.
        """
        if command.expects != self.champion:
            return None
        if command.kind == "prepare":
            return replace(self, challenger=command.model_version, is_canary=False)
        if command.kind in ("freeze", "thaw"):
            return replace(self, is_frozen=command.kind == "freeze")
        if command.kind == "excise":
            range_ = offsets_of(command.model_version)
            return None if range_ is None or range_[1] > command.offset else self._without(range_)
        if self.challenger and command.model_version == self.challenger:
            return self._after_challenge(command.kind)
        return None

    @property
    def excised_text(self) -> str:
        """The ranges as text: "<from>-<to>", separated by commas."""
        return ",".join(map(text_of, self.excised))

    def _after_challenge(self, kind: str) -> Roles | None:
        """After a command about the challenger."""
        ended = replace(self, challenger="", is_canary=False)
        risen = replace(ended, champion=self.challenger, parent=self.champion, is_frozen=False)
        return {
            "canary": replace(self, is_canary=True),
            "drop": ended,
            "promote": risen,
            "swap": replace(risen, challenger=self.champion),
        }.get(kind)

    def _without(self, range_: OffsetRange) -> Roles:
        return replace(self, excised=(*self.excised, range_))


def text_of(range_: OffsetRange) -> str:
    """As `model_version` of the command `excise` names it."""
    return f"{range_[0]}-{range_[1]}"


def offsets_of(text: str) -> OffsetRange | None:
    """The inverse; None when it is not a range of offsets with something in it."""
    start, _, end = text.partition("-")
    if not (start.isdecimal() and end.isdecimal()) or int(start) >= int(end):
        return None
    return int(start), int(end)


def ranges_of(text: str) -> tuple[OffsetRange, ...]:
    """The inverse of `Roles.excised_text`."""
    found = [offsets_of(one) for one in text.split(",")] if text else []
    return tuple(range_ for range_ in found if range_ is not None)


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
        """The commands that changed the champion, a swap back among them."""
        return tuple(command for command, _ in self.obeyed if command.kind in ("promote", "swap"))
