"""Random faults by seed, from sign-in to Logstash's end of stream.

Whatever went wrong: when it has stopped, one clean run leaves nothing undelivered. Only
the pauses are shorter; the runs are the product's, in this process for speed.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import logstash_stand_in as stand_in
import pytest
from conftest import DIRECTORY, Site
from emulator import Emulator, faults
from emulator.events import make_events
from logstash_stand_in import LogstashStandIn

import o365_poller as op

SEEDS = range(20)
OUR_LIES = (
    "start ",
    "the same page was asked again",
    "NextPageUri was not used as given",
)
EXCHANGE = "Audit.Exchange"

ANYWHERE: tuple[Callable[[], faults.Fault], ...] = (
    lambda: faults.status(500),
    lambda: faults.status(503, style="html"),
    lambda: faults.status(504, style="empty"),
    lambda: faults.status(502, style="text"),
    lambda: faults.status(408),
    lambda: faults.throttle(429),
    lambda: faults.throttle(403, retry_after=1),
    lambda: faults.reset(),
    lambda: faults.reset(processed=True),
    lambda: faults.reset_mid_body(),
    lambda: faults.close_without_answer(),
    lambda: faults.short_body(),
    lambda: faults.bad_chunking(),
    lambda: faults.html(),
    lambda: faults.empty_body(),
    lambda: faults.redirect("trap"),
)
FEED = (
    *ANYWHERE,
    lambda: faults.cut_gzip(),
    lambda: faults.half_json(),
    lambda: faults.not_utf8(),
    lambda: faults.not_array({"value": []}),
    lambda: faults.denied(),
    lambda: faults.revoke(),
    lambda: faults.bom(),
    lambda: faults.af("AF50005"),
)
OPERATIONS: dict[str, tuple[Callable[[], faults.Fault], ...]] = {
    "token": ANYWHERE,
    "list": FEED,
    "content": (
        *FEED,
        *(
            lambda kind=kind: faults.next_page(kind)
            for kind in faults.NEXT_PAGES
            if kind not in ("endless_fresh", "other_tenant")
        ),
        lambda: faults.af("AF20031"),
        lambda: faults.af("AF20022"),
        lambda: faults.af("AF20055"),
        lambda: faults.listing("twice"),
    ),
    "blob": (
        *FEED,
        *FEED,
        lambda: faults.af("AF20050"),
        lambda: faults.af("AF20052"),
        lambda: faults.af("AF10001"),
    ),
}
# Not half_close_early and close_at: with a batch that fits into one segment their end of
# stream crosses ours, and nobody can tell it from a confirmation (test_sink has them).
SINKS = (
    stand_in.take(),
    stand_in.take(),
    stand_in.refuse(),
    stand_in.reset_at(100),
    stand_in.reset_at_end(),
)


@dataclass
class Place:
    """Both stand-ins, shared by all the seeds."""

    office: Emulator
    logstash: LogstashStandIn
    site: Site


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("schedules")
    with Emulator(page_size=4) as office, LogstashStandIn() as logstash:
        site = Site(folder, office, logstash, office.credentials())
        site.set("poll", content_types=f"{DIRECTORY}, {EXCHANGE}")
        yield Place(office, logstash, site)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(op, "PAUSE_FIRST", 0.001)
    monkeypatch.setattr(op, "PAUSE_LONGEST", 0.005)
    monkeypatch.setattr(op, "BATCH_ROWS", 5)
    monkeypatch.setattr(op.log, "level", logging.CRITICAL + 1)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    yield


def run(file: Path) -> op.Exit:
    """One poll, as the command line has it, without its signals and its console."""
    arguments = op.build_parser().parse_args(["-c", str(file)])
    order = op.read_order(arguments, {}, datetime.now(UTC))
    settings = op.read_settings(file, {}, named=True)
    try:
        return op.carry_out(order, settings)
    except op.PollerError as error:
        return error.exit


def publish(office: Emulator, chance: random.Random, first: int) -> set[str]:
    """Some blobs of the last minutes, pages full of them, for both types."""
    now = office.clock.now()
    made = [
        office.publish(
            chance.choice((DIRECTORY, EXCHANGE)),
            make_events(chance.randint(1, 3), first=first + 10 * n),
            created=now - timedelta(seconds=chance.randint(5, 400)),
        )
        for n in range(chance.randint(1, 14))
    ]
    return {str(id_) for blob in made for id_ in blob.ids}


@pytest.mark.parametrize("seed", SEEDS)
def test_after_the_faults_one_clean_run_leaves_nothing_undelivered(
    place: Place, quick: None, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    office, logstash, site = place.office, place.logstash, place.site
    office.activity.blobs.clear()
    office.heal()
    office.enable(DIRECTORY, EXCHANGE)
    office.journal.clear()
    logstash.clear()
    site.set("poll", state_file=str(tmp_path / "state.db"))
    site.set("logging", file=None)
    site.write()
    ids, codes = set(), []
    for number in range(chance.randint(1, 3)):
        ids |= publish(office, chance, 1000 * number)
        for _ in range(chance.randint(1, 5)):
            operation = chance.choice(("token", "list", *["content", "blob"] * 3))
            fault = chance.choice(OPERATIONS[operation])()
            times = chance.choice((1, 2, 3, 6, 40))
            office.fail(operation, fault, times=times, after=chance.randint(0, 6))
        logstash.script = [chance.choice(SINKS) for _ in range(chance.randint(0, 6))]
        codes.append(run(site.config))
    office.heal()
    logstash.script = []
    assert run(site.config) == op.Exit.OK, codes
    assert {str(id_) for id_ in logstash.taken_ids()} == ids, codes
    assert set(codes) <= {0, 3, 4, 5}
    # Asked for by our own lies: AF20022 of what is enabled, AF20031 of a good page, a
    # next page that was never issued. The scenarios hold these rules.
    broken = [v for v in office.journal.violations if not v.startswith(OUR_LIES)]
    assert broken == []
    assert office.trap.requests == []
