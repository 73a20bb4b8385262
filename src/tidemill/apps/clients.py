"""What every Kafka client of an app is made with.

In: settings. Out: librdkafka's settings. Invariant: all of them begin here, so one `kafka:` block reaches every client.
"""

from __future__ import annotations

from typing import Any

from tidemill.config import Settings
from tidemill.io import kafka


def clients_of(settings: Settings) -> dict[str, Any]:
    """The servers' address, what all clients share, and the user's `kafka:` block."""
    return kafka.client_settings(settings.bootstrap_servers or "", settings.kafka)
