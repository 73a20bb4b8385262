"""The files of the Elec2 benchmark fit both of its apps, and a label comes only when its delay is over."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tidemill.config import load_app
from tidemill.io.files import read_records

ROOT = Path(__file__).parents[1]


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("elec2", ROOT / "benchmarks" / "elec2.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["immediate", "48_rows_late"])
def test_files_are_records_of_the_app_and_labels_come_after_their_delay(name: str, tmp_path: Path):
    elec2 = program()
    run = elec2.RUNS[name]
    rows = "".join(f"0.1,0.2,0.3,0.4,0.5,{at},{at % 2}\n" for at in range(100))
    (tmp_path / "source.csv").write_text("period,nswprice,nswdemand,vicprice,vicdemand,transfer,class\n" + rows)

    paths = elec2.write_files(tmp_path / "source.csv", tmp_path, run.delay_ms)

    topics = {topic.name: topic for topic in load_app(run.config).topics}
    (events,) = read_records(topics["elec2.periods"], [paths["elec2.periods"]])
    (labels,) = read_records(topics["elec2.moves"], [paths["elec2.moves"]])
    assert events.keys == labels.keys == [str(at).encode() for at in range(100)]
    assert (labels.time - events.time == run.delay_ms).all()
    known_before = (labels.time[:, None] <= events.time[None, :]).sum(axis=0)  # at equal times labels come first
    assert known_before[99] == {"immediate": 99, "48_rows_late": 52}[name]
