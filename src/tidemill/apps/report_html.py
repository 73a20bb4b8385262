"""Words and numbers of the backtest's page.

In: values. Out: short pieces of HTML. Invariant: whatever a user can name passes through `text`, which cuts and escapes
it; a number that was not measured is a dash.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

NAME_CHARACTERS = 60  # of a name that is shown; what is longer ends in an ellipsis
DASH = '<span class="none">–</span>'  # noqa: RUF001 - an en dash is meant
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000


def text(value: object, characters: int = NAME_CHARACTERS) -> str:
    """Escaped for HTML content and quoted attributes; what cannot be printed becomes U+FFFD."""
    printable = "".join(one if one.isprintable() else "\ufffd" for one in str(value)[: characters + 1])
    return escape(printable if len(printable) <= characters else printable[: characters - 1] + "…")


def number(value: float | None, digits: int = 4) -> str:
    """A figure with a real minus sign."""
    return DASH if _is_unknown(value) else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, digits: int = 4) -> str:
    return DASH if _is_unknown(value) else f"{value:+,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    return DASH if value is None or _is_unknown(value) else f"{100 * value:.1f}\u202f%"


def duration(milliseconds: float | None) -> str:
    return DASH if _is_unknown(milliseconds) else duration_words(milliseconds).replace(" ", "\u202f")


def duration_words(milliseconds: float | None) -> str:
    """As plain text, in the unit in which it is easiest to say."""
    if milliseconds is None or _is_unknown(milliseconds):
        return "-"
    for unit, name in ((DAY_MS, "d"), (HOUR_MS, "h"), (MINUTE_MS, "min"), (1_000, "s")):
        if abs(milliseconds) >= unit * (2 if unit == DAY_MS else 1):
            return f"{milliseconds / unit:.3g} {name}"
    return f"{milliseconds:.3g} {'ms' if milliseconds else 'h'}"


def day(time_ms: int) -> str:
    """`7 Jan 2013`, UTC."""
    when = date_of(time_ms)
    return f"{when.day} {when:%b} {when.year}"


def moment(time_ms: int) -> str:
    return f"{date_of(time_ms):%Y-%m-%d %H:%M}"


def date_of(time_ms: int) -> datetime:
    """UTC; a time before year 1 or after 9999 is the nearest one that has a date."""
    seconds = min(max(time_ms / 1_000, -62_135_596_800), 253_402_300_799)
    return datetime.fromtimestamp(seconds, UTC)


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, css: str = "", is_first_text: bool = True
) -> str:
    """A table of ready HTML cells in a box that scrolls by itself; the first cell of a row is its header."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(
        f'<tr{_row_css(row)}><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    words = "words " if is_first_text else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="{words}{css}">'
        f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, content: str) -> str:
    """Folded until it is asked for."""
    return f"<details><summary>{summary}</summary>{content}</details>"


def data(key: str, value: Mapping[str, Any]) -> str:
    """JSON for the page's script; no text of it can end the element."""
    plain = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for one in "<>&":
        plain = plain.replace(one, f"\\u{ord(one):04x}")
    return f'<script type="application/json" id="{key}">{plain}</script>'


def _row_css(row: Sequence[str]) -> str:
    return ' class="served"' if "is-served" in row[0] else ""


def _is_unknown(value: float | None) -> bool:
    return value is None or not math.isfinite(value)
