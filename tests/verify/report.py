"""The verdict: what was counted, what was found, and whether it may pass.

In: findings by check. Out: a `Report` that prints as a table or as JSON. Invariant: `is_ok` exactly if no check found
anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TEXTS_KEPT = 3  # of each check: enough to start looking, few enough to read


@dataclass
class Finding:
    """How often a check failed, and the first cases in words."""

    count: int = 0
    texts: list[str] = field(default_factory=list)

    def add(self, text: str, count: int = 1) -> None:
        self.count += count
        if len(self.texts) < TEXTS_KEPT:
            self.texts.append(text)


@dataclass
class Report:
    """Findings by check, in the order of the checks; a check without findings stands with 0."""

    findings: dict[str, Finding] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    balances: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def check(self, name: str) -> Finding:
        """The finding of that name; asking for it means that the check was made."""
        return self.findings.setdefault(name, Finding())

    @property
    def is_ok(self) -> bool:
        return all(finding.count == 0 for finding in self.findings.values())

    @property
    def failed(self) -> dict[str, Finding]:
        return {name: finding for name, finding in self.findings.items() if finding.count}

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.is_ok,
            "findings": {name: {"count": one.count, "first": one.texts} for name, one in self.findings.items()},
            "counts": self.counts,
            "balances": self.balances,
            "notes": self.notes,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }

    def __str__(self) -> str:
        width = max([len(name) for name in [*self.findings, *self.counts]] or [0])
        lines = [f"{name:<{width}}  {count:>10,}" for name, count in self.counts.items()]
        lines += ["", *self.balances, ""]
        for name, finding in self.findings.items():
            lines.append(f"{name:<{width}}  {finding.count:>10,}  {'' if finding.count else 'ok'}".rstrip())
            lines += [f"    {text}" for text in finding.texts]
        lines += ["", *[f"note: {note}" for note in self.notes]]
        spent = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        lines.append(f"{'PASSED' if self.is_ok else 'FAILED'} ({spent})")
        return "\n".join(lines)
