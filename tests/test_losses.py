"""Ways to lose events, or to block others, that a hostile reading of the code found."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from delivery_model import (
    BIRTH,
    DAY,
    HOUR,
    MINUTE,
    ROOT,
    TENANT,
    TYPES,
    Edges,
    Trouble,
    World,
    WorldBlob,
    WorldSink,
    a_tenant,
)

import o365_poller as op

KIND = TYPES[0]


class Site:
    """A world with the product's run in it, one poll at a time."""

    def __init__(self, folder: Path) -> None:
        self.world = World(op, enabled=set(TYPES))
        self.azure, self.settings = a_tenant(op, folder / "s.db")
        self.taken: set[str] = set()

    def publish(self, name: str, health: str = "ok", **ago: float) -> WorldBlob:
        created = self.world.now - timedelta(**ago)
        blob = WorldBlob(
            KIND, name, created, created, created, created + 7 * DAY, health
        )
        self.world.blobs.append(blob)
        return blob

    def poll(self, trouble: Trouble = Trouble(), at: timedelta = MINUTE) -> Any:
        self.world.now += at
        self.world.begin(trouble)
        state = op.State.open(
            self.settings.state_file, self.azure, (), self.world.clock()
        )
        sink = WorldSink(self.world, Edges(None))
        api = op.ActivityApi(op.Feed(ROOT, TENANT, TENANT), self.world, None)  # type: ignore[arg-type]
        run = op.Run(op.Ports(api, sink, state, self.world.clock, 1), self.settings)
        try:
            run.poll_all(TYPES)
        except op.PollerError as error:
            run.note(error)
        finally:
            self.taken |= {line.partition("#")[0] for line in sink.confirmed}
            state.close()
        return run

    def watermark(self) -> Any:
        state = op.State.open(self.settings.state_file, self.azure, (), BIRTH)
        try:
            return state.watermark(KIND)
        finally:
            state.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield Site(tmp_path)


def test_many_bad_blobs_that_wait_do_not_keep_a_good_one_waiting(site: Site) -> None:
    """Twenty failures in a row end the round of what is pending; the next round begins
    with those that were tried least, so that each has its turn."""
    for n in range(45):
        site.publish(f"bad{n}", "cut", seconds=120 - n)
    mended = site.publish("mended", "ill", seconds=10)
    for _ in range(4):
        site.poll()
    mended.health = "ok"
    for _ in range(4):
        site.poll()
    assert "mended" in site.taken


def test_a_watermark_of_a_wrong_clock_is_brought_back(site: Site) -> None:
    site.world.offset = 2 * DAY
    first = site.publish("first", seconds=5)
    site.poll(Trouble(no_date=True))
    assert site.watermark() > site.world.now + DAY
    site.world.offset = timedelta(0)
    site.publish("second", seconds=0)
    run = site.poll(at=HOUR)
    assert run.exit == 0
    assert site.taken == {first.id, "second"}
    assert site.watermark() == site.world.now


def test_a_clock_that_is_behind_costs_a_catch_up_no_slice(site: Site) -> None:
    """The API refuses what is older than 7 days by its own clock: that bit alone."""
    site.poll()
    site.publish("old", minutes=-5)
    site.world.now += 7 * DAY - HOUR
    site.world.offset = -HOUR
    site.publish("new", hours=3)
    site.poll()
    assert {"old", "new"} <= site.taken


def test_a_state_closed_under_a_listing_is_an_error_and_no_crash(
    tmp_path: Path,
) -> None:
    """Without the lock SQLite took the process down (SIGSEGV) now and then."""
    azure, _ = a_tenant(op, tmp_path / "s.db")
    blob = op.Blob(KIND, "x", "", BIRTH, None)
    for _ in range(200):
        state = op.State.nowhere(azure, BIRTH)
        known = state.known(KIND, op.Purpose.RECONCILE)
        ended: list[BaseException] = []

        def ask(known: Any = known, ended: list[BaseException] = ended) -> None:
            try:
                while True:
                    known(blob)
            except op.StateError as error:
                ended.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        state.close()
        thread.join(5)
        assert ended


def test_a_span_polled_by_a_clock_that_ran_ahead_is_polled_again(site: Site) -> None:
    """Our clock is ahead and the list of subscriptions cannot be reached, so that no
    Date tells; then cron is off until that time has come."""
    site.poll()
    site.world.offset = 2 * HOUR
    site.poll(Trouble(list_fails=True))
    site.world.offset = timedelta(0)
    site.publish("between", minutes=-30)
    site.poll(at=3 * HOUR)
    assert "between" in site.taken


def test_one_blob_that_answers_401_does_not_stop_the_others(site: Site) -> None:
    """The listing has just been given for the same token."""
    site.publish("denied", "denied", seconds=40)
    site.publish("good", seconds=30)
    for _ in range(3):
        site.poll()
    assert "good" in site.taken
