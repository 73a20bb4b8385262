"""POST to a server that takes notifications.

In: an address, headers, a body. Out: the status of the answer and how long the server wants to be left alone.
Invariant: whatever happens ends as an answer or as an UnavailableError, within the time-outs; addresses and headers may
be secrets, so no message holds more of them than the host.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tidemill.errors import UnavailableError

TIMEOUT_S = 10.0  # of connecting, and of each read
TEXT_BYTES_MAX = 500  # of an answer, for a report


class Answer(NamedTuple):
    """retry_after_s: what the server asked for; None = nothing."""

    status: int
    text: str
    retry_after_s: float | None = None

    @property
    def is_taken(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_final(self) -> bool:
        """Whether asking again gives the same answer: the request is wrong, not the moment."""
        return 300 <= self.status < 500 and self.status not in (408, 425, 429)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body, and be answered with 200."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float = TIMEOUT_S) -> Answer:
    """One request; redirects are not followed.

    Raises:
        UnavailableError: TM-3040, there was no answer.
    """
    request = urllib.request.Request(url, body, dict(headers), method="POST")
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            return Answer(answer.status, _text(answer))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, _text(error), _seconds(error.headers.get("Retry-After")))
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UnavailableError(
            "TM-3040", f"{_host(url)} did not answer: {reason or type(error).__name__}; is its address right?"
        ) from None


def _text(answer: Any) -> str:
    try:
        return str(answer.read(TEXT_BYTES_MAX).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException):
        return ""  # the status is there, and it is what counts


def _seconds(text: str | None) -> float | None:
    """Of the header's two forms, the one in seconds."""
    return float(text) if text is not None and text.strip().isdecimal() else None


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
