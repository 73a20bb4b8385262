"""The files that ship with the package: schemas and example configuration.

In: a name. Out: a path or the text. The layout is the same in a checkout (`config/`, `schemas/` at the top) and in an
installed wheel (`tidemill/shipped/`), so a YAML file finds its schemas by the same relative path in both.
"""

from __future__ import annotations

from pathlib import Path

from tidemill.errors import ConfigError

_PACKAGE = Path(__file__).parent
_ROOTS = (_PACKAGE / "shipped", _PACKAGE.parents[1])


def shipped_path(name: str) -> Path:
    """The path of a shipped file, for example `config/flights.yaml`.

    Raises:
        ConfigError: TM-1307, there is no such file.
    """
    for root in _ROOTS:
        if (root / name).is_file():
            return root / name
    raise ConfigError("TM-1307", f"{name} does not ship with this tidemill ({_PACKAGE}); reinstall it")


def schema_text(name: str) -> str:
    """The text of `schemas/tidemill/<name>.avsc`; `name` carries the version: `prediction.v1`."""
    return shipped_path(f"schemas/tidemill/{name}.avsc").read_text(encoding="utf-8")
