"""Write the flights of 2013 as files, one per topic: what a backtest reads instead of Kafka.

In: an app whose topics carry the schemas of the flights. Out: Parquet files in a folder, by topic. Invariant: the rows
are the records that the producer would send, in the order of their times, which stand in the column `_time`.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from tidemill.apps.flights import topics_by_kind
from tidemill.apps.flights_data import flight_records
from tidemill.core.spec import AppSpec
from tidemill.errors import ConfigError

TIME_COLUMN = "_time"
GROUP_ROWS = 10_000  # a reader holds one at a time


def write_files(app: AppSpec, folder: Path, until: date | None = None) -> dict[str, Path]:
    """The path of each topic's file; the folder is made when absent.

    Raises:
        ConfigError: TM-1012, a file cannot be written.
    """
    topics = topics_by_kind(app)
    paths: dict[str, Path] = {}
    for kind, records in flight_records(until).items():
        topic = topics[kind].name
        paths[topic] = folder / f"{topic}.parquet"
        columns = [pa.array(records.time), *records.columns.columns]
        table = pa.table(columns, names=[TIME_COLUMN, *records.columns.schema.names])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            parquet.write_table(table, paths[topic], compression="zstd", row_group_size=GROUP_ROWS)
        except OSError as error:
            raise ConfigError("TM-1012", f"{paths[topic]} cannot be written: {error}; name another folder") from error
    return paths
