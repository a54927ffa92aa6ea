"""The state: watermarks, slices, pending, the ledger, the lock."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from making import NOW, OTHER_TENANT, TYPE, ago, make_azure, make_blob, waiting

from o365_poller import (
    RETENTION_MARGIN,
    BusyError,
    Changes,
    Delivered,
    Lost,
    Pending,
    Purpose,
    Slice,
    State,
    StateError,
    UnreadableStateError,
    Window,
    blob_window,
    earliest,
    fingerprint,
    set_aside,
    state_lock,
)

HOUR = timedelta(hours=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.db"


@pytest.fixture
def state(file: Path) -> State:
    return open_state(file)


# A state that replaces another begins a little later than what can still be asked.
A_WEEK_AGO = earliest(NOW) + RETENTION_MARGIN


def open_state(file: Path, *, now: datetime = NOW, replaces: bool = False) -> State:
    return State.open(file, make_azure(), [TYPE, "DLP.All"], now, replaces=replaces)


def window(start: float, end: float) -> Window:
    """A window by hours before NOW."""
    return Window(ago(hours=start), ago(hours=end))


def delivered(id_: str, created: datetime = NOW) -> Delivered:
    return Delivered(make_blob(id_, created=created), 3, 99)


def pending(id_: str, created: datetime = NOW) -> Pending:
    return Pending(
        make_blob(id_, created=created, expires=NOW + HOUR, uri="u"), NOW, 1, "why"
    )


def table(file: Path, statement: str) -> list[Any]:
    connection = sqlite3.connect(file)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


# -- opening


def test_a_new_state_is_private_and_belongs_to_its_tenant(file: Path) -> None:
    old = os.umask(0)
    try:
        open_state(file).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert dict(table(file, "SELECT key, value FROM meta WHERE key != 'opened'")) == {
        "tenant_id": make_azure().tenant_id,
        "api_root": "https://manage.office.com",
    }


def test_an_old_state_is_made_private(file: Path) -> None:
    open_state(file).close()
    file.chmod(0o644)
    open_state(file).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_new_state_has_no_watermark_and_one_that_replaces_begins_at_seven_days(
    tmp_path: Path,
) -> None:
    assert open_state(tmp_path / "a").watermark(TYPE) is None
    assert open_state(tmp_path / "b", replaces=True).watermark(TYPE) == A_WEEK_AGO


def test_a_state_of_zero_length_was_more_than_a_first_run(file: Path) -> None:
    file.touch()
    assert open_state(file).watermark(TYPE) == A_WEEK_AGO


def test_another_tenants_state_is_refused(file: Path) -> None:
    open_state(file).close()
    azure = make_azure()
    other = azure._replace(tenant_id=OTHER_TENANT)
    with pytest.raises(StateError) as caught:
        State.open(file, other, [TYPE], NOW)
    assert str(caught.value) == (
        f"state file {file} belongs to tenant_id {azure.tenant_id}, not {OTHER_TENANT}; "
        "nothing was asked or sent; give each tenant a state_file of its own"
    )


def test_a_state_that_is_refused_is_left_as_it_was(file: Path) -> None:
    open_state(file).close()
    before = table(file, "SELECT * FROM meta ORDER BY key")
    other = make_azure()._replace(tenant_id=OTHER_TENANT)
    with pytest.raises(StateError):
        State.open(file, other, [TYPE], NOW + HOUR)
    assert table(file, "SELECT * FROM meta ORDER BY key") == before


def test_a_state_that_another_program_holds_is_no_full_disk(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("o365_poller.BUSY_SECONDS", 0.01)
    state = open_state(file)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StateError) as caught:
        state.set_watermark(TYPE, NOW)
    assert "see which program holds it open" in str(caught.value)
    assert "disk" not in str(caught.value)
    other.close()


def test_a_root_in_other_letters_is_the_same_root(file: Path) -> None:
    open_state(file).close()
    connection = sqlite3.connect(file)
    connection.execute("UPDATE meta SET value = upper(value) WHERE key = 'api_root'")
    connection.commit()
    connection.close()
    open_state(file).close()


def test_another_clouds_state_is_refused(file: Path) -> None:
    open_state(file).close()
    with pytest.raises(
        StateError, match="belongs to api_root https://manage.office.com"
    ):
        State.open(file, make_azure("https://manage-gcc.office.com"), [TYPE], NOW)


def test_a_newer_versions_state_is_refused(file: Path) -> None:
    open_state(file).close()
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateError, match="was written by a newer version"):
        open_state(file)


@pytest.mark.parametrize(
    "content", [b"not a database, but text\n" * 99, os.urandom(9999)]
)
def test_what_is_no_database_is_unreadable(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(UnreadableStateError):
        open_state(file)


def test_a_malformed_database_is_unreadable(file: Path) -> None:
    state = open_state(file)
    state.confirm(
        Slice(TYPE, window(1, 0)),
        Changes(delivered=[delivered(str(n)) for n in range(2000)]),
        NOW,
    )
    state.close()
    data = bytearray(file.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    file.write_bytes(data)
    with pytest.raises(UnreadableStateError):
        waiting(open_state(file), TYPE)


def test_a_busy_database_is_an_error_and_not_unreadable(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("o365_poller.BUSY_SECONDS", 0.1)
    open_state(file).close()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateError, match="database is locked"):
        open_state(file)
    other.close()


@pytest.mark.parametrize("where", ["folder", "nowhere/config.db", "own.txt/config.db"])
def test_a_state_that_cannot_be_made_is_said(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "own.txt").touch()
    with pytest.raises(StateError, match="this user may write the file"):
        open_state(tmp_path / where)


def test_a_state_for_a_try_out_leaves_nothing(tmp_path: Path) -> None:
    state = State.nowhere(make_azure(), NOW)
    state.set_watermark(TYPE, NOW)
    assert state.watermark(TYPE) == NOW
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_state_is_set_aside_with_its_companions(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text("garbage")
    file.with_name("config.db-journal").write_text("j")
    file.with_name("config.db-wal").write_text("w")
    state = set_aside(file, make_azure(), [TYPE], NOW, "file is not a database")
    assert state.watermark(TYPE) == A_WEEK_AGO
    state.close()
    names = {entry.name for entry in file.parent.iterdir()}
    aside = "config.db.unreadable-20260302T100000Z"
    assert names == {"config.db", aside, f"{aside}-journal", f"{aside}-wal"}


# -- watermark and slices


def test_the_watermark_only_moves_forward_by_itself(state: State) -> None:
    state.finish(Slice(TYPE, window(3, 1)), Changes(), NOW, moves_watermark=True)
    assert state.watermark(TYPE) == ago(hours=1)
    state.finish(Slice(TYPE, window(3, 2)), Changes(), NOW, moves_watermark=True)
    assert state.watermark(TYPE) == ago(hours=1)
    assert state.watermark("DLP.All") is None


def test_a_slice_of_a_backfill_moves_no_watermark(state: State) -> None:
    state.finish(Slice(TYPE, window(3, 1)), Changes(), NOW)
    assert state.watermark(TYPE) is None
    assert state.polled(TYPE, window(9, 0)) == [window(3, 1)]


@pytest.mark.parametrize(
    ("spans", "joined"),
    [
        ([(5, 4), (3, 2)], [(5, 4), (3, 2)]),
        ([(5, 4), (4, 3)], [(5, 3)]),
        ([(4, 3), (5, 4)], [(5, 3)]),
        ([(5, 3), (4, 2)], [(5, 2)]),
        ([(5, 2), (4, 3)], [(5, 2)]),
        ([(4, 3), (5, 2)], [(5, 2)]),
        ([(5, 4), (3, 2), (4, 3)], [(5, 2)]),
        ([(9, 8), (5, 4), (3, 2), (4.5, 2.5)], [(9, 8), (5, 2)]),
    ],
)
def test_polled_spans_are_joined_where_they_meet(
    state: State, spans: list[tuple[float, float]], joined: list[tuple[float, float]]
) -> None:
    for span in spans:
        state.finish(Slice(TYPE, window(*span)), Changes(), NOW)
    assert state.polled(TYPE, window(20, 0)) == [window(*span) for span in joined]


def test_a_confirmed_batch_keeps_its_slice_open(state: State) -> None:
    job = state.confirm(
        Slice(TYPE, window(2, 1)),
        Changes(delivered=[delivered("a", ago(hours=2))]),
        NOW,
    )
    assert job.id > 0
    known = state.known(TYPE, Purpose.POLL)
    assert known(make_blob("a", created=ago(hours=2)))
    assert not known(make_blob("b", created=ago(hours=2)))
    assert state.watermark(TYPE) is None
    assert state.polled(TYPE, window(9, 0)) == []


def test_a_finished_slices_blobs_are_taken_again(state: State) -> None:
    done = delivered("a", ago(hours=2))
    job = state.confirm(Slice(TYPE, window(2, 1)), Changes(delivered=[done]), NOW)
    state.finish(job, Changes(), NOW, moves_watermark=True)
    assert not state.known(TYPE, Purpose.POLL)(done.blob)
    assert state.known(TYPE, Purpose.RECONCILE)(done.blob)
    assert not state.known(TYPE, Purpose.BACKFILL)(done.blob)


def test_slices_given_up_come_back_oldest_first_and_alone(state: State) -> None:
    first = state.give_up(Slice(TYPE, window(5, 4)), Changes(), NOW)
    second = state.give_up(
        Slice(TYPE, window(4, 3)),
        Changes(delivered=[delivered("a", ago(hours=4))]),
        NOW,
    )
    assert state.given_up(TYPE) == []
    state.finish(
        Slice(TYPE, window(3, 2)),
        Changes(),
        NOW,
        moves_watermark=True,
        before=[second, first],
    )
    assert state.watermark(TYPE) == ago(hours=2)
    found = state.given_up(TYPE)
    assert [job.window for job in found] == [window(5, 4), window(4, 3)]
    assert all(job.reopened and job.id for job in found)
    assert state.known(TYPE, Purpose.POLL)(make_blob("a", created=ago(hours=4)))
    state.finish(found[0], Changes(), NOW)
    assert [job.window for job in state.given_up(TYPE)] == [window(4, 3)]


def test_a_slice_that_a_killed_run_left_goes_when_the_watermark_passes_it(
    file: Path, state: State
) -> None:
    state.confirm(Slice(TYPE, window(3, 2)), Changes(delivered=[delivered("a")]), NOW)
    state.finish(Slice(TYPE, window(3, 1)), Changes(), NOW, moves_watermark=True)
    assert table(file, "SELECT * FROM slice") == []


def test_a_slice_that_ages_out_begins_later_and_goes_when_nothing_is_left(
    state: State,
) -> None:
    batch = Changes(delivered=[delivered("a")])
    job = state.give_up(Slice(TYPE, window(5, 4)), batch, NOW)
    state.finish(
        Slice(TYPE, window(4, 3)), Changes(), NOW, moves_watermark=True, before=[job]
    )
    job = state.given_up(TYPE)[0]
    state.lose_span(TYPE, window(5, 4.5), NOW, job=job)
    assert state.given_up(TYPE)[0].window == window(4.5, 4)
    state.lose_span(TYPE, window(4.5, 4), NOW, job=job)
    assert state.given_up(TYPE) == []


def test_bringing_back_takes_spans_and_slices_along(file: Path, state: State) -> None:
    job = state.give_up(
        Slice(TYPE, window(2, 1)), Changes(delivered=[delivered("a")]), NOW
    )
    state.finish(
        Slice(TYPE, window(9, 0)), Changes(), NOW, moves_watermark=True, before=[job]
    )
    state.bring_back(TYPE, ago(hours=5))
    assert state.watermark(TYPE) == ago(hours=5)
    assert state.polled(TYPE, window(20, 0)) == [window(9, 5)]
    assert state.given_up(TYPE) == []


def test_the_newest_delivery_before_a_moment_is_known(state: State) -> None:
    blobs = [delivered("a", ago(hours=3)), delivered("b", ago(hours=1))]
    state.settle(TYPE, Changes(delivered=blobs), NOW)
    assert state.newest_created(TYPE, NOW) == ago(hours=1)
    assert state.newest_created(TYPE, ago(hours=1)) == ago(hours=3)
    assert state.newest_created(TYPE, ago(hours=4)) is None


# -- pending, lost, ledger


def test_a_pending_blob_waits_is_counted_and_is_left_out_of_slices(
    state: State,
) -> None:
    one = pending("a", ago(hours=1))
    state.settle(TYPE, Changes(pending=[one]), NOW)
    assert waiting(state, TYPE) == [one]
    assert state.pending_count(TYPE) == 1
    assert state.pending_count("DLP.All") == 0
    assert state.known(TYPE, Purpose.POLL)(one.blob)
    assert not state.known(TYPE, Purpose.BACKFILL)(one.blob)
    state.settle(TYPE, Changes(pending=[pending("a", ago(hours=1))]), NOW + HOUR)
    (again,) = waiting(state, TYPE)
    assert (again.tries, again.since) == (2, NOW)


def test_a_round_of_pending_blobs_is_that_of_its_beginning_and_read_by_the_page(
    state: State,
) -> None:
    many = [pending(f"{n:04}", ago(seconds=5000 - n)) for n in range(1200)]
    state.settle(TYPE, Changes(pending=many), NOW)
    met = []
    state.begin_round()
    for waits in state.pending(TYPE):
        met.append(waits.blob.id)
        state.settle(TYPE, Changes(pending=[waits]), NOW)  # it fails once more
    assert met == [f"{n:04}" for n in range(1200)]
    first = many[700].blob
    state.settle(TYPE, Changes(delivered=[Delivered(first, 1, 1)]), NOW)
    assert state.waiting(first) is None
    found = state.waiting(many[3].blob)
    assert found is not None
    assert found.tries == 2


def test_pending_ends_by_delivery_or_loss(state: State) -> None:
    state.settle(TYPE, Changes(pending=[pending("a"), pending("b")]), NOW)
    lost = Lost(TYPE, blob_window(make_blob("b")), "gone", "b")
    state.settle(TYPE, Changes(delivered=[delivered("a")], lost=[lost]), NOW)
    assert waiting(state, TYPE) == []
    assert state.known(TYPE, Purpose.POLL)(make_blob("b"))


def test_a_blob_is_in_the_ledger_once_however_often_sent(
    file: Path, state: State
) -> None:
    for _ in range(3):
        state.settle(TYPE, Changes(delivered=[delivered("a")]), NOW)
    rows = table(file, "SELECT content_id, events, bytes FROM delivered")
    assert rows == [(fingerprint("a"), 3, 99)]


def test_the_ledger_is_kept_for_eight_days_by_content_created(
    file: Path, state: State
) -> None:
    old, young = ago(days=8, seconds=1), ago(days=7, hours=23)
    lost = Lost(TYPE, Window(old - HOUR, old), "gone")
    state.settle(TYPE, Changes(lost=[lost]), NOW)  # kept from the day it was said
    state.settle(
        TYPE, Changes(delivered=[delivered("old", old), delivered("young", young)]), NOW
    )
    state.finish(Slice(TYPE, Window(old - HOUR, old)), Changes(), NOW)
    assert len(table(file, "SELECT * FROM lost")) == 1
    later = NOW + timedelta(days=8, seconds=1)
    state.settle(TYPE, Changes(delivered=[delivered("young", young)]), NOW)
    state.finish(Slice(TYPE, Window(later - HOUR, later)), Changes(), later)
    assert table(file, "SELECT * FROM lost") == []
    state.settle(TYPE, Changes(delivered=[delivered("young", young)]), NOW)
    assert table(file, "SELECT content_id FROM delivered") == [(fingerprint("young"),)]


def test_a_lost_span_is_said_once_and_not_where_it_was_polled(state: State) -> None:
    state.finish(Slice(TYPE, window(6, 5)), Changes(), NOW)
    first = state.lose_span(TYPE, window(8, 4), NOW)
    assert [lost.window for lost in first] == [window(8, 6), window(5, 4)]
    assert str(first[0]) == (
        f"{TYPE}: [2026-03-02T02:00:00, 2026-03-02T04:00:00) UTC: content of more than "
        "7 days ago can no longer be had"
    )
    assert state.watermark(TYPE) == ago(hours=4)
    assert state.lose_span(TYPE, window(8, 3), NOW) == [
        Lost(TYPE, window(4, 3), first[0].reason)
    ]
    assert state.watermark(TYPE) == ago(hours=3)


def test_a_lost_blob_is_named() -> None:
    lost = Lost(TYPE, blob_window(make_blob("a")), "gone", "a\nb")
    assert str(lost) == f"{TYPE}: blob a b: gone"


def test_what_was_said_is_known_until_it_is_well_again(state: State) -> None:
    assert state.said("x") is None
    state.say("x", NOW, "text")
    assert state.said("x") == NOW
    state.unsay("x")
    assert state.said("x") is None


def test_a_transaction_that_breaks_leaves_nothing(state: State) -> None:
    broken = Pending(make_blob("b"), NOW, 1, None)  # type: ignore[arg-type]
    with pytest.raises(StateError):
        state.settle(TYPE, Changes(delivered=[delivered("a")], pending=[broken]), NOW)
    assert not state.known(TYPE, Purpose.RECONCILE)(make_blob("a"))
    state.settle(TYPE, Changes(delivered=[delivered("a")]), NOW)


def test_a_full_disk_is_an_error_that_says_what_to_do(state: State) -> None:
    state._connection.execute("PRAGMA max_page_count = 12")
    many = [delivered(f"{n:0500}") for n in range(3000)]
    with pytest.raises(StateError) as caught:
        state.settle(TYPE, Changes(delivered=many), NOW)
    assert str(caught.value) == (
        f"state file {state.path}: database or disk is full; what is not recorded as "
        "delivered is sent again by the next run; see that the disk has room and that "
        "this user may write the file and its folder"
    )


def test_the_questions_of_a_poll_use_an_index(file: Path, state: State) -> None:
    questions = [
        "SELECT 1 FROM delivered WHERE content_type='a' AND created=1 AND content_id=x'00'",
        "SELECT max(created) FROM delivered WHERE content_type='a' AND created < 5",
        "DELETE FROM delivered WHERE content_type='a' AND created < 5",
        "SELECT 1 FROM pending WHERE content_type='a' AND content_id='x'",
        "SELECT 1 FROM lost WHERE content_type='a' AND start=1 AND end=2 AND content_id='x'",
    ]
    for question in questions:
        plan = str(table(file, f"EXPLAIN QUERY PLAN {question}"))
        assert re.search("SEARCH", plan), plan
        assert "SCAN" not in plan


# -- the lock

HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from o365_poller import state_lock
with state_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_lets_one_in_and_dies_with_its_process(file: Path) -> None:
    root = str(Path(__file__).resolve().parents[1])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file), root], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError) as caught, state_lock(file):
            pass
        assert str(caught.value) == (
            f"another poll holds the lock {file}.lock; it delivers what there is; "
            "nothing to do, unless this repeats for hours: then look at that run"
        )
    finally:
        holder.kill()
        holder.communicate()
    with state_lock(file):
        mode = file.with_name("config.db.lock").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
    with state_lock(file):
        pass


def test_a_lock_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    file = tmp_path / "nowhere" / "config.db"
    said = "lock file .*: No such file or directory"
    with pytest.raises(StateError, match=said), state_lock(file):
        pass
