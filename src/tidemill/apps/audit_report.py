"""What an audit found: checks with their first findings, and the counts that they are about.

In: findings, as the parts of an audit make them. Out: a report as tables and as JSON values. Invariant: an audit is
sound when no check has a finding; what could not be compared is counted apart and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FINDINGS_KEPT = 5  # in words, of each check; the rest is counted
SCHEMA_VERSION = 1  # of the JSON; grows when a name changes

CHECKS = {
    "ranges": "commits tile each input partition",
    "counts": "outcomes counted in a commit are those found for its records",
    "missing": "every input record has an outcome",
    "duplicate": "no input record has two outcomes, no prediction two examples",
    "extra": "every outcome has its input record",
    "inputs": "times and labels are those of the input records",
    "copies": "features and scores of an example are those of its prediction",
    "scores": "recomputed scores are those published",
    "models": "stored models and snapshots are those that the log makes",
}


@dataclass(slots=True)
class Check:
    """One rule of the audit. first: the first findings in words."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, text: str, count: int = 1) -> None:
        self.count += count
        if len(self.first) < FINDINGS_KEPT:
            self.first.append(text)


@dataclass(slots=True, kw_only=True)
class AuditReport:
    """What an audit looked at, and what it found.

    start, next: the offsets of the commits log. unprocessed: input records behind the last commit. predictions: those
    recomputed; mismatched: how many of them differ, close: how many of the differing ones by no more than the
    tolerance. degraded: those a worker served without the champion's model, and said so. earlier_features: those of an
    earlier declaration, which cannot be recomputed. tolerance: 0 = bit for bit. without_commits: input partitions that
    hold records and that no commit speaks of. not_checked: parts of the checks that were left out, not_checked_because:
    why, and what to do to have them.
    """

    app: str
    start: int = 0
    next: int = 0
    commits: int = 0
    records: int = 0
    unprocessed: int = 0
    examples: int = 0
    predictions: int = 0
    mismatched: int = 0
    close: int = 0
    degraded: int = 0
    earlier_features: int = 0
    models: tuple[str, ...] = ()
    snapshots: int = 0
    tolerance: float = 0.0
    without_commits: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    not_checked_because: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=lambda: {name: Check() for name in CHECKS})

    @property
    def is_sound(self) -> bool:
        return not any(check.count for check in self.checks.values())

    @property
    def comparison(self) -> str:
        """How scores were compared."""
        return "bit for bit" if not self.tolerance else f"within {self.tolerance:g}"


def report_as_json(report: AuditReport) -> dict[str, Any]:
    """JSON values."""
    names = (
        "app", "commits", "records", "unprocessed", "examples", "predictions", "mismatched", "close", "degraded",
        "earlier_features", "snapshots", "comparison",
    )  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION,
        "is_sound": report.is_sound,
        "from": report.start,
        "to": report.next,
        **{name: getattr(report, name) for name in names},
        "models": list(report.models),
        "without_commits": list(report.without_commits),
        "not_checked": list(report.not_checked),
        "not_checked_because": report.not_checked_because,
        "seconds": report.seconds,
        "checks": {name: {"findings": check.count, "first": check.first} for name, check in report.checks.items()},
    }


def report_rows(report: AuditReport) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Rows of the two tables: what was looked at, and the checks."""
    looked_at: dict[str, Any] = {
        f"commits [{report.start}, {report.next})": report.commits,
        "input records": report.records,
        "behind the last commit": report.unprocessed,
        "partitions with records and no commit": ", ".join(report.without_commits) or "none",
        "examples": report.examples,
        f"predictions recomputed, {report.comparison}": report.predictions,
        "mismatched": report.mismatched,
        "  of those within 1e-5": report.close,
        "served degraded, not compared": report.degraded,
        "of earlier features, not compared": report.earlier_features,
        "models": ", ".join(report.models) or "none",
        "snapshots": report.snapshots,
        "not checked": "\n".join([*report.not_checked, report.not_checked_because]).strip() or "nothing",
        "seconds": round(sum(report.seconds.values()), 1),
    }
    checks = [
        {
            "check": name,
            "means": CHECKS[name],
            "findings": check.count,
            "first": "\n".join(check.first),
        }
        for name, check in report.checks.items()
    ]
    return [{"what": what, "value": value} for what, value in looked_at.items()], checks
