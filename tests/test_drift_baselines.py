"""River's detectors count their alarms on the same blocks."""

from __future__ import annotations

import numpy as np

from tidemill.models.drift_baselines import DriftBaselines


def blocks(count: int) -> np.ndarray:
    return 0.45 + 0.06 * np.random.Generator(np.random.PCG64(4)).normal(size=count)


def test_large_change_is_called_by_both_and_a_quiet_stream_hardly() -> None:
    quiet, changed = DriftBaselines(), DriftBaselines()
    stream = blocks(200)
    for loss in stream.tolist():
        quiet.add(loss)
    stream[100:] += 0.7
    for loss in stream.tolist():
        changed.add(loss)
    assert quiet.adwin == 0 and quiet.page_hinkley <= 1
    assert changed.adwin >= 1 and changed.page_hinkley >= 1
