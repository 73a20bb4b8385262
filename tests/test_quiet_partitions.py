"""Partitions without records, owned by different workers: the app's time goes on without them."""

from __future__ import annotations

import pytest

from tests.simulation.process import Process, Workshop
from tests.simulation.stream import Sent
from tests.simulation.world import Left, World

WORKSHOP = Workshop()


class Shared(World):
    """Nothing comes before both workers have their part."""

    def _arrive(self) -> None:
        if len([one for one in self.processes if one.engine and one.engine.positions]) == 2:
            super()._arrive()


@pytest.mark.parametrize("seed", range(5))
def test_workers_do_not_wait_for_each_others_quiet_partitions(seed: int) -> None:
    """Only events come: predictions can expire only if time passes in the partitions of the two other topics."""
    world = Shared(seed, WORKSHOP.spec, WORKSHOP.bodies, Left(), Process)
    world.plan, world.store_plan = [], []
    world._slots, world._speed = ["0", "1"], {"0": 1.0, "1": 1.0}
    world.sent = events_alone()
    assert WORKSHOP.play(world) is None
    marks = {place: record.mark() for place, record in world.backend.partitions.items()}
    owners = {mark.owner.partition(":")[0] for place, mark in marks.items() if place.topic != "events"}
    assert owners == {"0", "1"}, "each worker has to own a quiet partition, or nothing is shown"


def events_alone() -> list[Sent]:
    sent = []
    for number in range(20):
        fields = {"id": f"e{number}", "shop": "s", "user": 1, "amount": 1.0}
        time = 1_000 * (number + 1)
        sent.append(Sent(number, "events", number % 2, time, float(number), fields=fields))
    return [*sent, *(Sent(20 + at, "events", at, 90_000, 21.0 + at, "end") for at in range(2))]
