"""What a row of the matrix is, and what came of it.

In: a function that plays one seed on a stage. Out: results by seed, and the line of the table. Invariant: only "ok" is
ok; whatever a row raised is its verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.stage import Stage

OK = "ok"


@dataclass(frozen=True, slots=True)
class RowResult:
    """Of one seed.

    Attributes:
        injected: how often the fault was brought about; a row that injects nothing has shown nothing.
        recovered_s: from the fault, or from its end where the row says so, to committed progress; the longest of all.
        missing, duplicated: records, as the independent verifier counts them.
        verdict: "ok" or what is wrong.
        note: what else is worth a word, such as which fault the seed drew.
    """

    injected: int
    recovered_s: float | None
    missing: int
    duplicated: int
    verdict: str
    note: str = ""

    @property
    def is_ok(self) -> bool:
        return self.verdict == OK and self.injected > 0 and not self.missing and not self.duplicated


@dataclass(frozen=True, slots=True)
class Row:
    """A fault of RELIABILITY's matrix.

    Attributes:
        number: as in the matrix.
        seeds: how many a full run plays.
        run: one seed on a fresh stage.
        has_own_servers: it breaks its servers, so it gets some that nobody else has.
    """

    number: int
    name: str
    seeds: int
    run: Callable[[Stage, int], RowResult]
    has_own_servers: bool = False


@dataclass(frozen=True, slots=True)
class Played:
    """One seed of one row."""

    row: Row
    seed: int
    seconds: float
    result: RowResult

    def as_json(self) -> dict[str, Any]:
        named = {"row": self.row.number, "name": self.row.name, "seed": self.seed, "seconds": round(self.seconds, 1)}
        return {**named, **asdict(self.result), "ok": self.result.is_ok}


def failed(error: BaseException) -> RowResult:
    """What a row that raised has shown."""
    text = f"{type(error).__name__}: {error}".strip()
    return RowResult(0, None, 0, 0, text, "raised")


TITLES = ("row", "fault", "seeds", "injected", "recovered s", "missing", "duplicated", "verdict")


def table(played: Sequence[Played]) -> str:
    """A line per row, its seeds taken together: sums, and the longest recovery."""
    lines = [TITLES]
    for row in sorted({one.row.number: one.row for one in played}.values(), key=lambda row: row.number):
        results = [(one.seed, one.result) for one in played if one.row.number == row.number]
        times = [result.recovered_s for _, result in results if result.recovered_s is not None]
        wrong = [f"seed {seed}: {_what(result)}" for seed, result in results if not result.is_ok]
        lines.append(
            (
                str(row.number),
                row.name,
                " ".join(str(seed) for seed, _ in results),
                str(sum(result.injected for _, result in results)),
                f"{max(times):.1f}" if times else "-",
                str(sum(result.missing for _, result in results)),
                str(sum(result.duplicated for _, result in results)),
                "; ".join(wrong)[:300] or OK,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(TITLES) - 1)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[-1]]) for line in lines
    )


def _what(result: RowResult) -> str:
    if result.verdict != OK:
        return result.verdict.splitlines()[0]
    if not result.injected:
        return "nothing was injected"
    return f"{result.missing} missing, {result.duplicated} duplicated"
