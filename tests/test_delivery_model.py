"""The model of delivery, against the product."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from delivery_model import MINUTE, TYPES, Trouble, make_machine
from hypothesis import HealthCheck, settings

import o365_poller

TestDelivery = make_machine(o365_poller).TestCase
TestDelivery.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def machine() -> Any:
    """The model, its world empty and both subscriptions enabled."""
    made: Any = make_machine(o365_poller)()
    made.begin(subscribed=TYPES)
    yield made
    made.teardown()


def poll_after(machine: Any, by: timedelta, fresh: int = 4) -> None:
    machine.world.now += by
    machine.appear(fresh, "ok")
    machine.run("poll", Trouble())


def missing(machine: Any) -> list[Any]:
    """The blobs of the first type that no poll has brought."""
    blobs = machine.world.blobs
    return [b for b in blobs if b.content_type == TYPES[0] and not b.taken]


@pytest.mark.parametrize("off", [5 * MINUTE, 50 * MINUTE, timedelta(hours=30)])
def test_a_spot_where_each_listing_breaks_keeps_nothing_else_waiting(
    machine: Any, off: timedelta
) -> None:
    world = machine.world
    poll_after(machine, MINUTE)
    before = world.now
    while world.now < before + off:  # cron is off, and blobs appear
        world.now += off / 10
        machine.appear(4, "ok")
        if len(world.sick) == 0 and world.now >= before + off / 2:
            world.sick = [(TYPES[0], world.now - timedelta(seconds=1))]
    spot = world.sick[0][1]
    for number in range(14):
        poll_after(machine, 5 * MINUTE)
        # What came since the poll before is there by now, whatever breaks behind it.
        recent = [b for b in missing(machine) if b.created > world.now - 4 * MINUTE]
        asked = [(start, end) for t, start, end in world.windows if t == TYPES[0]]
        assert sum(start <= spot < end for start, end in asked) <= 1
        assert recent == [] or number == 0
        assert machine.ledger()["watermark"][TYPES[1]] == machine.world.now.replace(
            microsecond=0
        )
    late = missing(machine)
    assert all(abs(blob.created - spot) <= MINUTE for blob in late), "it blocks others"
    (open_,) = machine.ledger()["given_up"]
    assert open_[1] <= spot < open_[2]
    assert open_[2] - open_[1] <= MINUTE


def test_an_outage_leaves_one_span_and_two_listings_a_run(machine: Any) -> None:
    world = machine.world
    poll_after(machine, MINUTE)
    start = world.now
    for _ in range(5):
        world.now += 5 * MINUTE
        world.sick = [(TYPES[0], start), (TYPES[0], world.now)]
        machine.appear(4, "ok")
        machine.run("poll", Trouble())
        assert [t for t, _, _ in world.windows].count(TYPES[0]) <= 2
        assert machine.ledger()["given_up"] == []
    world.sick.clear()
    poll_after(machine, 5 * MINUTE)
    assert missing(machine) == []
