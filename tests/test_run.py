"""A run: what is asked, what becomes of it, what is recorded, in which order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from making import NOW, TYPE, ago, make_azure, make_blob, make_poll, waiting

from o365_poller import (
    OUTAGE_FAILURES,
    TRIES,
    AnswerError,
    Batch,
    Blob,
    Changes,
    Delivered,
    Exit,
    Failed,
    Fetched,
    Judgement,
    Lost,
    Pending,
    Ports,
    Purpose,
    RefusedError,
    Room,
    Run,
    SinkError,
    Slice,
    SourceError,
    State,
    Tally,
    TokenError,
    Verdict,
    Window,
    earliest,
    fate,
    worst,
)

DAY = timedelta(days=1)


# -- what becomes of a blob

EXPIRES = NOW + DAY


@pytest.mark.parametrize(
    ("verdict", "since", "expires", "lost"),
    [
        (Verdict.RETRY, None, EXPIRES, ""),
        (Verdict.RETRY, ago(days=5), None, ""),
        (Verdict.FAILED, ago(days=5), EXPIRES, ""),
        (Verdict.GONE, None, EXPIRES, "the API no longer has it (why)"),
        (Verdict.GONE, None, None, "the API no longer has it (why)"),
        (Verdict.MISSING, None, EXPIRES, ""),
        (Verdict.MISSING, ago(hours=23, minutes=59), EXPIRES, ""),
        (Verdict.MISSING, ago(hours=24), EXPIRES, "the API no longer has it (why)"),
        (Verdict.RETRY, None, NOW, "its contentExpiration has passed (why)"),
        (Verdict.RETRY, None, ago(days=1), "its contentExpiration has passed (why)"),
        (Verdict.FAILED, ago(days=5), ago(days=1), "its contentExpiration has passed (why)"),
    ],
)  # fmt: skip
def test_a_failed_blob_waits_or_is_lost(
    verdict: Verdict, since: datetime | None, expires: datetime | None, lost: str
) -> None:
    blob = make_blob(created=ago(days=6), expires=expires)
    was = Pending(blob, since, 3, "before") if since else None
    found = fate(Failed(blob, verdict, "why"), was, NOW)
    if lost:
        assert isinstance(found, Lost)
        assert (found.reason, found.content_id) == (lost, blob.id)
        assert found.window.start == ago(days=6)
    else:
        assert found == Pending(blob, since or NOW, 4 if since else 1, "why")


# -- a run with fakes at its edges


@dataclass
class FakeApi:
    """Microsoft, as a run sees it."""

    blobs: list[Blob] = field(default_factory=list)
    enabled: set[str] | Exception = field(default_factory=lambda: {TYPE.lower()})
    clock: datetime | None = None
    breaks: dict[int, Exception] = field(default_factory=dict)  # by listing number
    failing: dict[str, Exception] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    tries: list[tuple[str, int]] = field(default_factory=list)
    empty: bool = False
    starting: dict[str, Exception] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)

    def date(self) -> datetime | None:
        return self.clock

    def subscriptions(self) -> set[str]:
        if isinstance(self.enabled, Exception):
            raise self.enabled
        return self.enabled

    def start(self, content_type: str) -> str:
        self.started.append(content_type)
        if content_type in self.starting:
            raise self.starting[content_type]
        return "started"

    def listing(
        self, content_type: str, window: Window, stop: threading.Event
    ) -> Iterator[Blob]:
        number = len(self.windows)
        self.windows.append(window)
        for blob in self.blobs:
            if blob.content_type == content_type and (
                window.start <= blob.created < window.end
            ):
                yield blob
        if number in self.breaks:
            raise self.breaks[number]

    def fetch(
        self, blob: Blob, room: Room, stop: threading.Event, tries: int
    ) -> Fetched:
        self.tries.append((blob.id, tries))
        if blob.id in self.failing:
            raise self.failing[blob.id]
        if self.empty:
            return Fetched(blob, (), 0, 0)
        line = f'{{"Id":"{blob.id}"}}\n'.encode()
        room(len(line))
        return Fetched(blob, (line,), 1, len(line))


@dataclass
class FakeSink:
    """Logstash, as a run sees it; and what the state held when a batch came."""

    lines: list[bytes] = field(default_factory=list)
    refuses: bool = False

    def deliver(self, pieces: Sequence[bytes]) -> None:
        if self.refuses:
            raise SinkError("nobody took it", "b", "c")
        self.lines += [line for piece in pieces for line in piece.splitlines()]


@dataclass
class World:
    api: FakeApi
    sink: FakeSink
    state: State
    folder: Path
    now: datetime = NOW

    def run(self) -> Run:
        ports = Ports(self.api, self.sink, self.state, lambda: self.now, 2)
        return Run(ports, make_poll(self.folder))

    def poll(self, *types: str) -> Run:
        run = self.run()
        run.poll_all(types or (TYPE,))
        return run

    def ids(self) -> list[str]:
        return sorted(line.decode().split('"')[3] for line in self.sink.lines)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    state = State.open(tmp_path / "s.db", make_azure(), [TYPE], NOW)
    yield World(FakeApi(), FakeSink(), state, tmp_path)
    state.close()


def broken(what: str = "the list broke") -> SourceError:
    return SourceError(what, "b", "c")


def test_a_poll_delivers_records_and_moves_the_watermark(world: World) -> None:
    world.api.blobs = [make_blob("a", created=ago(minutes=3))]
    run = world.poll()
    assert run.exit is Exit.OK
    assert world.ids() == ["a"]
    assert world.state.watermark(TYPE) == NOW
    assert world.state.polled(TYPE, Window(ago(hours=1), NOW)) == [
        Window(ago(minutes=10), NOW)
    ]
    assert str(run.tallies[TYPE]) == (
        f"{TYPE}: window [2026-03-02T09:50:00, 2026-03-02T10:00:00) UTC, 1 blobs, 1 "
        "events, 0 pending, 0 lost, lag 0 s"
    )


def test_a_first_poll_keeps_its_start_though_its_listing_breaks(world: World) -> None:
    world.api.breaks = {0: broken()}
    assert world.poll().exit is Exit.INCOMPLETE
    assert world.state.watermark(TYPE) == ago(minutes=10)
    world.now += timedelta(hours=1)
    assert world.poll().exit is Exit.OK
    assert world.api.windows[1].start <= ago(minutes=10)


def test_nothing_is_recorded_when_the_sink_refuses(world: World) -> None:
    world.api.blobs = [make_blob("a", created=ago(minutes=3))]
    world.sink.refuses = True
    with pytest.raises(SinkError):
        world.poll()
    assert world.state.polled(TYPE, Window(ago(hours=1), NOW)) == []
    assert not world.state.known(TYPE, Purpose.RECONCILE)(world.api.blobs[0])


def test_now_is_the_earlier_of_both_clocks(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("o365_poller"), "propagate", True)
    world.api.clock = ago(minutes=2)
    world.poll()
    assert world.state.watermark(TYPE) == ago(minutes=2)
    assert "this machine's clock is +120 s from the API's" in caplog.text
    world.api.clock = NOW + timedelta(hours=1)
    world.poll()
    assert world.state.watermark(TYPE) == NOW


@pytest.mark.parametrize(
    ("age", "start", "lost"),
    [
        (timedelta(minutes=1), ago(minutes=10), 0),
        (timedelta(hours=3), ago(hours=3, minutes=5), 0),
        (timedelta(days=8), earliest(NOW), 1),
    ],
)
def test_a_plan_begins_behind_the_watermark_and_names_what_aged_out(
    world: World, age: timedelta, start: datetime, lost: int
) -> None:
    world.state.set_watermark(TYPE, NOW - age)
    run = world.poll()
    assert world.api.windows[0].start == start
    assert world.api.windows[-1].end == NOW
    assert run.tallies[TYPE].lost == lost
    assert run.exit is (Exit.GAP if lost else Exit.OK)
    assert world.poll().exit is Exit.OK


def test_a_watermark_ahead_of_now_comes_back_to_the_newest_delivery(
    world: World,
) -> None:
    done = Delivered(make_blob("a", created=ago(hours=2)), 1, 1)
    world.state.settle(TYPE, Changes(delivered=[done]), NOW)
    world.state.set_watermark(TYPE, NOW + timedelta(hours=5))
    world.poll()
    assert world.api.windows[0].start <= ago(hours=2)
    assert world.state.watermark(TYPE) == NOW


def test_a_watermark_of_seconds_ahead_is_no_matter(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NTP has put the clock back a little between two polls."""
    monkeypatch.setattr(logging.getLogger("o365_poller"), "propagate", True)
    world.poll()
    world.api.windows.clear()
    world.now -= timedelta(seconds=50)
    assert world.poll().exit is Exit.OK
    assert "is ahead of now" not in caplog.text
    assert world.state.watermark(TYPE) == NOW
    assert world.api.windows == [Window(ago(minutes=10, seconds=50), world.now)]


def test_a_slice_that_breaks_stays_open_later_ones_go_on_and_it_is_asked_alone(
    world: World,
) -> None:
    world.state.set_watermark(TYPE, NOW - 3 * DAY)
    world.api.blobs = [
        make_blob(str(n), created=ago(days=n, hours=1)) for n in range(3)
    ]
    world.api.breaks = {0: broken()}
    assert world.poll().exit is Exit.INCOMPLETE
    first = world.api.windows[0]
    assert world.ids() == ["0", "1", "2"]
    assert world.state.watermark(TYPE) == NOW
    assert [job.window for job in world.state.given_up(TYPE)] == [first]
    world.api.windows.clear()
    world.api.breaks = {}
    assert world.poll().exit is Exit.OK
    assert world.api.windows[0] == first
    assert world.api.windows[1].start >= ago(minutes=10)
    assert world.state.given_up(TYPE) == []


@pytest.mark.parametrize(("later", "left"), [(5, 1), (8, 0)])
def test_a_slice_given_up_that_ages_out_is_named_once_and_its_rest_is_asked(
    world: World, later: int, left: int
) -> None:
    world.state.set_watermark(TYPE, NOW - 3 * DAY)
    world.api.breaks = {0: broken()}
    assert world.poll().exit is Exit.INCOMPLETE
    span = world.state.given_up(TYPE)[0].window
    world.now += timedelta(days=later, hours=-10 if left else 0)
    world.state.set_watermark(TYPE, world.now)
    world.api.breaks = {}
    world.api.windows.clear()
    run = world.poll()
    limit = earliest(world.now)
    lost, asked = Window(span.start, min(span.end, limit)), Window(limit, span.end)
    assert (run.exit, run.tallies[TYPE].lost) == (Exit.GAP, 1)
    assert [each.window for each in world.state.losses()] == [lost]
    assert [each for each in world.api.windows if each.end == span.end] == [asked][
        :left
    ]
    assert world.state.given_up(TYPE) == []
    assert world.poll().exit is Exit.OK


def test_a_refusal_ends_its_content_type_and_no_other(world: World) -> None:
    other = "DLP.All"
    world.api.enabled = {TYPE.lower(), other.lower()}
    world.api.breaks = {0: RefusedError("no", "b", "c")}
    run = world.poll(TYPE, other)
    assert run.exit is Exit.REFUSED
    assert len(world.api.windows) == 2
    assert world.state.watermark(other) == NOW


def test_a_refused_token_ends_the_run(world: World) -> None:
    world.api.enabled = TokenError("no token", "b", "c")
    with pytest.raises(TokenError):
        world.poll()
    assert world.api.windows == []


def test_a_refused_list_of_subscriptions_asks_for_nothing(world: World) -> None:
    world.api.enabled = RefusedError("no", "b", "c")
    assert world.poll().exit is Exit.REFUSED
    assert world.api.windows == []


def test_only_what_is_missing_is_started(world: World) -> None:
    world.poll(TYPE, "DLP.All")
    assert world.api.started == ["DLP.All"]


def test_a_failing_blob_waits_and_is_tried_once_by_the_next_run(world: World) -> None:
    world.api.blobs = [make_blob(x, created=ago(minutes=3)) for x in "ab"]
    world.api.failing = {"b": broken("HTTP 503")}
    assert world.poll().exit is Exit.INCOMPLETE
    assert world.state.watermark(TYPE) == NOW
    assert [p.blob.id for p in waiting(world.state, TYPE)] == ["b"]
    world.api.tries.clear()
    assert world.poll().exit is Exit.INCOMPLETE
    assert ("b", 1) in world.api.tries
    assert len([one for one in world.api.tries if one[0] == "b"]) == 1
    world.api.failing = {}
    assert world.poll().exit is Exit.OK
    assert waiting(world.state, TYPE) == []
    assert "b" in world.ids()


@pytest.mark.parametrize(("count", "exit_"), [(OUTAGE_FAILURES - 1, True), (60, False)])
def test_an_outage_is_told_from_poison(world: World, count: int, exit_: bool) -> None:
    world.api.blobs = [make_blob(str(n), created=ago(minutes=3)) for n in range(count)]
    world.api.failing = {str(n): broken("HTTP 503") for n in range(count)}
    assert world.poll().exit is Exit.INCOMPLETE
    moved = world.state.watermark(TYPE) == NOW
    assert moved is exit_
    world.api.failing = {}
    assert world.poll().exit is Exit.OK
    assert set(world.ids()) == {str(n) for n in range(count)}


def gone() -> AnswerError:
    return AnswerError(Judgement(Verdict.GONE, "HTTP 404 AF20051"))


def test_twenty_failures_that_others_part_are_no_outage(world: World) -> None:
    names = [str(n) for n in range(3 * OUTAGE_FAILURES)]
    world.api.blobs = [make_blob(name, created=ago(minutes=3)) for name in names]
    bad = set(names[::2])
    world.api.failing = {name: broken("HTTP 503") for name in bad}
    assert world.poll().exit is Exit.INCOMPLETE
    assert world.state.watermark(TYPE) == NOW
    assert {one.blob.id for one in waiting(world.state, TYPE)} == bad
    assert set(world.ids()) == set(names) - bad


def test_many_blobs_that_are_gone_are_losses_and_no_outage(world: World) -> None:
    names = [str(n) for n in range(2 * OUTAGE_FAILURES)]
    world.api.blobs = [make_blob(name, created=ago(minutes=3)) for name in names]
    world.api.failing = {name: gone() for name in names}
    assert world.poll().exit is Exit.GAP
    assert world.state.watermark(TYPE) == NOW
    assert {each.content_id for each in world.state.losses()} == set(names)
    assert world.poll().exit is Exit.OK


def test_a_lost_blob_is_not_named_again_by_a_backfill_and_comes_if_it_can(
    world: World,
) -> None:
    world.api.blobs = [make_blob("a", created=ago(minutes=3))]
    world.api.failing = {"a": gone()}
    assert world.poll().exit is Exit.GAP
    for purpose in (Purpose.BACKFILL, Purpose.RECONCILE):
        run = world.run()
        run.backfill((TYPE,), Window(ago(hours=1), NOW), purpose)
        assert (run.exit, run.tallies[TYPE].lost) == (Exit.OK, 0)
    world.api.failing = {}
    run = world.run()
    run.backfill((TYPE,), Window(ago(hours=1), NOW), Purpose.RECONCILE)
    assert world.ids() == ["a"]


def test_a_defect_at_one_blob_is_1_and_the_others_are_delivered(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("o365_poller"), "propagate", True)
    world.api.blobs = [make_blob(x, created=ago(minutes=3)) for x in "abc"]
    world.api.failing = {"b": KeyError("no such thing")}
    assert world.poll().exit is Exit.UNEXPECTED
    assert "a defect of this program at blob b; the blob waits" in caplog.text
    assert "KeyError: 'no such thing'" in caplog.text
    assert world.ids() == ["a", "c"]
    assert [one.blob.id for one in waiting(world.state, TYPE)] == ["b"]
    assert world.state.watermark(TYPE) == NOW


def test_a_start_that_is_refused_leaves_its_type_alone_and_one_that_fails_does_not(
    world: World,
) -> None:
    types = ("Audit.General", "Audit.SharePoint", TYPE)
    world.api.starting = {types[0]: RefusedError("no", "b", "c"), types[1]: broken()}
    world.api.blobs = [
        make_blob(each, created=ago(minutes=3), content_type=each) for each in types
    ]
    run = world.poll(*types)
    assert (run.exit, world.api.started) == (Exit.REFUSED, list(types[:2]))
    assert world.ids() == sorted(types[1:])
    assert world.state.watermark(types[0]) is None


def test_a_refused_content_type_is_asked_no_more_in_this_run(world: World) -> None:
    world.api.blobs = [make_blob("a", created=ago(minutes=3))]
    world.api.failing = {"a": broken("HTTP 503")}
    assert world.poll().exit is Exit.INCOMPLETE
    world.state.set_watermark(TYPE, NOW - 3 * DAY)
    world.api.windows.clear()
    world.api.tries.clear()
    world.api.breaks = {0: RefusedError("no", "b", "c")}
    assert world.poll().exit is Exit.REFUSED
    assert (len(world.api.windows), world.api.tries) == (1, [])
    assert world.state.watermark(TYPE) == NOW - 3 * DAY


def test_a_backfill_asks_for_nothing_that_the_api_cannot_have(world: World) -> None:
    run = world.run()
    window = Window(ago(days=9), NOW + timedelta(hours=1))
    run.backfill((TYPE,), window, Purpose.BACKFILL)
    assert run.exit is Exit.OK
    assert world.api.windows[0].start == earliest(NOW)
    assert world.api.windows[-1].end == NOW


def test_in_an_outage_no_blob_is_named_and_else_ten_at_most(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("o365_poller"), "propagate", True)
    names = [str(n) for n in range(OUTAGE_FAILURES)]
    world.api.blobs = [make_blob(name, created=ago(minutes=3)) for name in names]
    world.api.failing = {name: broken("HTTP 503") for name in names}
    world.poll()
    assert "it waits and each run tries it again" not in caplog.text
    assert "20 blobs failed in a row" in caplog.text
    caplog.clear()
    world.state.set_watermark(TYPE, ago(minutes=2))
    world.now += timedelta(hours=1)
    world.api.blobs = [
        make_blob(f"later {n}", created=NOW, content_type=TYPE) for n in range(15)
    ]
    world.api.failing = {f"later {n}": broken("HTTP 503") for n in range(15)}
    world.poll()
    assert caplog.text.count("it waits and each run tries it again") == 10
    assert "5 more blobs wait in the same way" in caplog.text


def test_a_backfill_moves_no_watermark_and_sends_all_again(world: World) -> None:
    world.api.blobs = [make_blob("a", created=ago(hours=30))]
    for purpose in (Purpose.BACKFILL, Purpose.BACKFILL, Purpose.RECONCILE):
        run = world.run()
        run.backfill((TYPE,), Window(ago(days=7), NOW), purpose)
        assert run.exit is Exit.OK
    assert world.ids() == ["a", "a"]
    assert world.state.watermark(TYPE) is None
    assert world.api.windows[0].start >= earliest(NOW)
    assert all(window.end - window.start < DAY for window in world.api.windows)


def test_a_batch_is_full_by_bytes_or_by_rows() -> None:
    batch = Batch()
    assert not batch.is_full()
    batch.add(Fetched(make_blob(), (b"x",), 1, 8 << 20))
    assert batch.is_full()
    many = Batch()
    for n in range(5000):
        many.add(Fetched(make_blob(str(n)), (), 0, 0))
    assert many.is_full()


def test_batches_without_an_event_are_recorded_and_not_sent(world: World) -> None:
    """More blobs than a batch has rows: a connection without a line proves nothing."""
    world.api.empty = True
    world.sink.refuses = True
    count = 5_100
    world.api.blobs = [make_blob(str(n), created=ago(minutes=3)) for n in range(count)]
    run = world.poll()
    assert (run.exit, run.tallies[TYPE].blobs) == (Exit.OK, count)
    assert world.state.watermark(TYPE) == NOW


def test_a_run_ends_with_the_worst_of_its_content_types(world: World) -> None:
    run = world.run()
    run.exits = {Exit.INCOMPLETE}
    run.tallies = {
        "a": Tally("a", exits={Exit.GAP}),
        "b": Tally("b", exits={Exit.SINK}),
    }
    assert run.exit is Exit.GAP is worst({Exit.GAP, Exit.SINK, Exit.INCOMPLETE})


# -- spans that stay open


def open_spans(world: World, *ends_and_lengths: tuple[timedelta, timedelta]) -> None:
    """Slices that earlier runs gave up, by how long ago they ended and how long."""
    before = [
        Slice(TYPE, Window(NOW - ended - length, NOW - ended))
        for ended, length in ends_and_lengths
    ]
    window = Window(ago(minutes=5), NOW)
    world.state.finish(
        Slice(TYPE, window), Changes(), NOW, moves_watermark=True, before=before
    )


def test_after_a_broken_listing_what_came_later_is_asked_for_apart(
    world: World,
) -> None:
    world.poll()
    world.now += timedelta(minutes=5)
    world.api.breaks = {1: broken(), 2: broken()}
    world.poll()
    world.now += timedelta(minutes=5)
    world.poll()
    until = NOW + timedelta(minutes=5)
    asked = [Window(ago(minutes=5), until), Window(until, world.now)]
    assert world.api.windows[2:] == asked
    assert world.state.watermark(TYPE) == world.now
    assert [job.window for job in world.state.given_up(TYPE)] == asked[:1]
    world.now += timedelta(minutes=1)
    world.poll()  # the window but for the span that is open
    assert world.api.windows[4:] == [asked[0], Window(until, world.now)]
    assert world.state.given_up(TYPE) == []
    world.now += timedelta(minutes=5)
    world.poll()
    assert world.api.windows[6:] == [Window(NOW + timedelta(minutes=6), world.now)]


def test_an_open_span_that_breaks_again_while_others_go_well_is_halved(
    world: World,
) -> None:
    open_spans(world, (timedelta(hours=1), timedelta(minutes=8)))
    world.api.breaks = {0: broken()}
    world.poll()
    assert [job.window for job in world.state.given_up(TYPE)] == [
        Window(ago(minutes=68), ago(minutes=64)),
        Window(ago(minutes=64), ago(minutes=60)),
    ]
    world.api.breaks = {2: broken(), 3: broken(), 4: broken()}  # an outage
    world.poll()
    assert len(world.state.given_up(TYPE)) == 2


def test_an_open_span_that_is_refused_is_not_halved(world: World) -> None:
    open_spans(world, (timedelta(hours=1), timedelta(minutes=8)))
    world.api.breaks = {0: RefusedError("no permission", "b", "c")}
    world.poll()
    assert len(world.state.given_up(TYPE)) == 1


def test_a_span_of_less_than_a_minute_is_not_halved(world: World) -> None:
    open_spans(world, (timedelta(hours=1), timedelta(seconds=59)))
    world.api.breaks = {0: broken()}
    world.poll()
    assert len(world.state.given_up(TYPE)) == 1


@pytest.mark.parametrize(
    ("open_", "then"), [(1, 2), (10, 16), (15, 16), (16, 16), (40, 40)]
)
def test_halving_makes_no_more_than_sixteen_open_spans(
    world: World, open_: int, then: int
) -> None:
    hour = timedelta(hours=1)
    open_spans(world, *((n * hour, hour / 2) for n in range(1, open_ + 1)))
    world.api.breaks = {n: broken() for n in range(open_)}
    world.poll()
    assert len(world.state.given_up(TYPE)) == then


def test_a_blob_that_begins_to_wait_is_tried_once_more_by_the_next_run(
    world: World,
) -> None:
    world.api.blobs = [make_blob("a", created=ago(minutes=3))]
    world.api.failing = {"a": broken("HTTP 503")}
    world.poll()
    assert world.api.tries == [("a", TRIES)]
    world.poll()
    assert world.api.tries[1:] == [("a", 1)]
