"""The schema registry that an app declares.

In: settings. Out: a client, and what a decoder looks schemas up in. Invariant: an app that declares no registry asks
nobody.
"""

from __future__ import annotations

from collections.abc import Callable

from tidemill.config import Settings
from tidemill.errors import ConfigError
from tidemill.io.schema_cache import SchemaCache
from tidemill.io.schema_registry import SchemaRegistry


def open_registry(settings: Settings) -> SchemaRegistry:
    """The declared registry.

    Raises:
        ConfigError: TM-1318 the app declares none.
    """
    found = settings.schema_registry
    if found is None:
        raise ConfigError(
            "TM-1318",
            f"app {settings.app.name} declares no schema registry; write `schema_registry: {{url: ...}}` into its YAML",
        )
    return SchemaRegistry(found.url, basic_auth=found.basic_auth, ca_file=found.ca_file, timeout_s=found.timeout_s)


def open_schemas(settings: Settings, report: Callable[[str], None]) -> SchemaCache | None:
    """Where a decoder of this app looks schemas up; None = the app declares no registry."""
    if settings.schema_registry is None:
        return None
    return SchemaCache(
        open_registry(settings),
        topics=[topic.name for topic in settings.app.topics],
        folder=settings.data_folder / "schemas",
        if_unreachable=settings.schema_registry.if_unreachable,
        report=report,
    )
