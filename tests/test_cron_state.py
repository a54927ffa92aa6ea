"""Issue 2, point 7: the state over runs, kills, wrong clocks and broken files."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import logstash_stand_in as stand_in
import pytest
from conftest import DIRECTORY, SCRIPT, Site, cron_environment
from cron_support import (
    EXCHANGE,
    GENERAL,
    assert_delivered,
    assert_quiet,
    ids,
    publish,
    rows,
    run_changed,
    set_watermark,
    taken,
    watermark,
    windows,
)
from emulator import faults
from emulator.wire import Answer

# -- watermark


def test_the_watermark_is_the_end_of_the_window_that_was_asked(site: Site) -> None:
    publish(site)
    assert_quiet(site.run())
    mark = watermark(site)
    assert mark is not None
    assert windows(site)[-1][1] == f"{mark:%Y-%m-%dT%H:%M:%S}"
    assert rows(site, "SELECT content_type, start < end FROM polled") == [
        (DIRECTORY, 1)
    ]


def test_the_watermark_stays_when_the_sink_fails(site: Site) -> None:
    assert_quiet(site.run())
    before = watermark(site)
    blobs = publish(site, minutes=0.05)
    time.sleep(4)
    site.logstash.mode = stand_in.reset_at(0)
    assert site.run().code == 5
    assert watermark(site) == before
    site.logstash.mode = stand_in.take()
    assert_quiet(site.run())
    assert_delivered(site, blobs)


def test_spans_polled_one_after_the_other_are_joined_to_one(site: Site) -> None:
    for _ in range(3):
        assert_quiet(site.run())
    assert rows(site, "SELECT count(*) FROM polled") == [(1,)]


# -- kill and resume


def test_a_run_that_is_killed_goes_on_and_does_not_send_confirmed_batches_again(
    site: Site,
) -> None:
    """Batches are of 8 MB: three of them, the second on its way when the kill comes."""
    fill = "x" * 500_000
    created = site.office.clock.now() - timedelta(minutes=3)
    blobs = [
        site.office.publish(
            DIRECTORY,
            [{"Id": f"big{n}", "Fill": fill}],
            created=created + timedelta(milliseconds=n),
        )
        for n in range(45)
    ]
    site.logstash.script = [stand_in.take(), stand_in.stall_confirm()]
    site.set("logstash", timeout_seconds="60")
    process = site.start()
    site.logstash.wait_for(2, timeout=60)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    confirmed = taken(site)
    assert 0 < len(confirmed) < 45
    assert len(rows(site, "SELECT * FROM delivered")) == len(confirmed)
    assert watermark(site) is not None
    assert_quiet(site.run())
    assert_delivered(site, blobs)
    assert rows(site, "SELECT * FROM slice") == []


def test_a_catch_up_that_is_killed_goes_on_at_the_slice_where_it_was(
    site: Site,
) -> None:
    set_watermark(site, timedelta(days=3))
    old = publish(site, minutes=60 * 70)
    new = publish(site, minutes=60 * 2)
    site.office.fail("content", faults.hang(), times=1, after=1)
    process = site.start()
    site.logstash.wait_for(1, timeout=60)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert taken(site) == ids(old)
    mark = watermark(site)
    assert mark is not None
    age = site.office.clock.now() - mark
    assert timedelta(days=1, hours=12) < age < timedelta(days=2, hours=12)
    site.office.journal.clear()
    assert_quiet(site.run())
    asked_from = min(windows(site))[0]  # what was killed may be noted late
    assert asked_from == f"{mark - timedelta(minutes=5):%Y-%m-%dT%H:%M:%S}"
    assert_delivered(site, old + new)


# -- listings that break off


def test_a_listing_that_breaks_off_delivers_what_it_listed_and_is_asked_by_itself(
    site: Site,
) -> None:
    site.set("poll", window_minutes="2", overlap_minutes="0")
    assert_quiet(site.run())
    site.office.page_size = 2
    set_watermark(site, timedelta(hours=30))
    site.office.page_size = 2
    first = publish(site, 4, minutes=60 * 29)
    second = publish(site, 2, minutes=60)
    site.office.fail("content", faults.next_page("garbage"), times=1)
    result = site.run()
    assert result.code == 3
    assert taken(site) == ids(first[:2]) | ids(second)
    span = windows(site)[0]
    mark = watermark(site)
    assert mark is not None
    assert f"{mark:%Y-%m-%dT%H:%M:%S}" == windows(site)[-1][1]
    assert len(rows(site, "SELECT * FROM slice WHERE given_up")) == 1
    site.office.journal.clear()
    assert_quiet(site.run())
    asked = windows(site)
    assert asked[0] == span
    assert all(start > span[1] for start, _ in asked[1:])
    assert_delivered(site, first + second)
    assert rows(site, "SELECT * FROM slice") == []
    site.office.journal.clear()
    assert_quiet(site.run())
    assert span not in windows(site)


def test_a_newest_slice_that_breaks_off_keeps_the_watermark(site: Site) -> None:
    assert_quiet(site.run())
    before = watermark(site)
    blobs = publish(site, minutes=1)
    site.office.fail("content", faults.not_array({}), match=DIRECTORY)
    result = site.run()
    assert result.code == 3
    assert "what was listed is delivered; the span stays open" in result.err or (
        "what is missing stays open" in result.err
    )
    assert watermark(site) == before
    site.office.heal()
    assert_quiet(site.run())
    assert_delivered(site, blobs)


# -- outage or poison


@pytest.mark.timeout(180)
def test_twenty_failing_blobs_are_an_outage_and_the_slice_is_asked_again(
    site: Site,
) -> None:
    assert_quiet(site.run())
    before = watermark(site)
    blobs = publish(site, 60)
    site.set("poll", workers="20")
    site.office.fail("blob", faults.close_without_answer())
    result = site.run()
    assert result.code == 3
    assert "20 blobs failed in a row, the last with " in result.err
    assert "the service is ill" in result.err
    assert watermark(site) == before
    tried = {r.content_id for r in site.office.journal.of("blob")}
    assert len(tried) <= 45
    site.office.heal()
    assert_quiet(site.run())
    assert_delivered(site, blobs)


# -- pending and lost


def test_a_pending_blob_is_tried_once_a_run_holds_nothing_back_and_is_delivered(
    site: Site,
) -> None:
    good, bad = publish(site, 2)
    site.office.fail("blob", faults.status(404, style="html"), match=bad.content_id)
    result = site.run()
    assert result.code == 3
    assert re.match(
        rf"o365_poller: warning: {DIRECTORY}: blob {re.escape(bad.content_id)}: HTTP 404 "
        r".*; it waits and each run tries it again; nothing to do, unless it repeats "
        rf"for days\no365_poller: warning: {DIRECTORY}: 1 blobs could not be fetched yet; ",
        result.err,
    )
    tries = [
        r for r in site.office.journal.of("blob") if r.content_id == bad.content_id
    ]
    assert len(tries) >= 4
    assert watermark(site)
    window = windows(site)[0]
    site.office.journal.clear()
    again = site.run()
    assert (again.code, again.err) == (3, "")
    tries = [
        r for r in site.office.journal.of("blob") if r.content_id == bad.content_id
    ]
    assert len(tries) == 1
    assert windows(site)[0][0] > window[0]
    site.office.heal()
    assert_quiet(site.run())
    assert taken(site) == ids([good, bad])
    assert rows(site, "SELECT * FROM pending") == []


def test_a_pending_blob_that_expires_is_lost_and_named_once(site: Site) -> None:
    good, bad = publish(site, 2)
    site.office.fail("blob", faults.half_json(), match=bad.content_id)
    assert site.run().code == 3
    age_pending(site, "expires = 1000")
    result = site.run()
    assert result.code == 6
    assert f"lost: {DIRECTORY}: blob {bad.content_id}: its contentExpiration has" in (
        result.err
    )
    assert_quiet(site.run())
    assert taken(site) == ids([good])


def age_pending(site: Site, change: str) -> None:
    connection = sqlite3.connect(site.state_file, isolation_level=None)
    connection.execute(f"UPDATE pending SET {change}")
    connection.close()


def test_a_blob_that_is_missing_for_a_day_is_lost_and_not_before(site: Site) -> None:
    publish(site, 1)
    site.office.fail("blob", faults.af("AF20050"))
    assert site.run().code == 3
    age_pending(site, "since = since - 85000")
    assert site.run().code == 3
    age_pending(site, "since = since - 2000")
    result = site.run()
    assert result.code == 6
    assert "the API no longer has it" in result.err
    assert_quiet(site.run())


def test_an_expired_blob_is_tried_all_the_same_and_delivered_if_it_can_be_had(
    site: Site,
) -> None:
    """Never lost by our clock alone."""
    blob = publish(site, 1)[0]
    past = {"contentExpiration": "2001-01-01T00:00:00.000Z"}
    site.office.fail("content", faults.listing("set", past))
    assert_quiet(site.run())
    assert_delivered(site, [blob])


@pytest.mark.parametrize("status", [404, 400, 410])
def test_what_the_api_says_is_gone_is_lost_at_once_and_named_once(
    site: Site, status: int
) -> None:
    good, gone = publish(site, 2)
    site.office.fail("blob", faults.af("AF20051", status=status), match=gone.content_id)
    first = site.run()
    assert first.code == 6
    assert first.err.count(gone.content_id) >= 1
    assert first.err.count("\n") == 1
    assert len([r for r in site.office.journal.of("blob") if r.content_id == gone.content_id]) == 1  # fmt: skip
    assert_quiet(site.run())
    assert taken(site) == ids([good])
    found = rows(site, "SELECT content_id FROM lost")
    assert found == [(gone.content_id,)]


# -- gaps


def test_a_gap_of_more_than_seven_days_is_clipped_and_said_once_with_its_range(
    site: Site,
) -> None:
    set_watermark(site, timedelta(days=9))
    mark = watermark(site)
    assert mark is not None
    blobs = publish(site, 1, minutes=60 * 24 * 6)
    result = site.run()
    assert result.code == 6
    assert re.match(
        rf"o365_poller: error: lost: {DIRECTORY}: \[{mark:%Y-%m-%dT%H:%M:%S}, "
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\) UTC: content of more than 7 days ago can no "
        r"longer be had; this API cannot give these events any more; .*\n$",
        result.err,
    )
    assert_delivered(site, blobs)
    assert_quiet(site.run())


def test_a_gap_is_said_once_whatever_becomes_of_the_run(site: Site) -> None:
    set_watermark(site, timedelta(days=9))
    publish(site)
    site.logstash.mode = stand_in.refuse()
    result = site.run()
    assert result.code == 6
    assert "lost: " in result.err
    again = site.run()
    assert again.code == 5
    assert "lost: " not in again.err
    site.logstash.mode = stand_in.take()
    assert_quiet(site.run())


def test_a_gap_is_said_for_each_content_type(site: Site) -> None:
    site.office.enable(EXCHANGE)
    site.set("poll", content_types=f"{DIRECTORY},{EXCHANGE}")
    assert_quiet(site.run())
    set_watermark(site, timedelta(days=8))
    result = site.run()
    assert result.code == 6
    assert result.err.count("lost: ") == 2


# -- clocks


def test_a_machine_that_is_ahead_of_microsoft_goes_by_microsofts_clock(
    site: Site,
) -> None:
    office = site.office
    office.options.login_clock = "real"
    office.clock.run_from(office.clock.now() - timedelta(minutes=30))
    blobs = publish(site)
    result = site.run()
    assert result.code == 0
    assert re.match(
        r"o365_poller: warning: this machine's clock is \+1(799|80\d) s from the API's; "
        r"windows go by the earlier of the two, so nothing is lost; set the clock "
        r"\(NTP\)\n$",
        result.err,
    )
    assert_delivered(site, blobs)
    end = datetime.fromisoformat(windows(site)[0][1] + "+00:00")
    assert abs(end - office.clock.now()) < timedelta(seconds=30)
    assert_quiet(site.run())


def test_a_machine_that_is_behind_asks_up_to_its_own_now_and_loses_nothing(
    site: Site,
) -> None:
    office = site.office
    real = office.clock.now()
    office.options.expires_in = 7200
    office.clock.run_from(real + timedelta(minutes=30))
    blobs = publish(site, minutes=1)
    result = site.run()
    assert result.code == 0
    assert "this machine's clock is -1" in result.err
    assert taken(site) == set()
    office.clock.follow()
    site.office.activity.blobs.clear()
    assert blobs


def test_clocks_a_minute_apart_are_no_matter(site: Site) -> None:
    site.office.clock.run_from(site.office.clock.now() - timedelta(seconds=40))
    assert_quiet(site.run())


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_of_another_year_is_not_believed_and_moves_nothing(
    site: Site, days: int
) -> None:
    set_watermark(site, timedelta(days=1))
    blobs = publish(site, minutes=60 * 20)
    before = contents(site)
    now = site.office.clock.now()
    site.office.clock.run_from(now + timedelta(days=days))
    result = site.run()
    assert result.code == 3
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d UTC"
    assert re.fullmatch(
        rf"o365_poller: warning: the API's clock says {stamp}, this machine's {stamp}; "
        r"nothing was asked, and nothing in the state has moved; set the clock \(NTP\), "
        r"or see who answers in Microsoft's place\n",
        result.err,
    )
    assert windows(site) == []
    assert contents(site) == before
    site.office.clock.follow()
    assert_quiet(site.run())
    assert_delivered(site, blobs)


def contents(site: Site) -> dict[str, list[tuple[object, ...]]]:
    """All that the state holds, but for when it was opened."""
    tables = rows(site, "SELECT name FROM sqlite_master WHERE type = 'table'")
    return {
        str(table): rows(site, f"SELECT * FROM {table}")
        for (table,) in tables
        if table != "meta"
    }


def test_a_watermark_ahead_of_now_is_brought_back_and_the_span_is_polled_again(
    site: Site,
) -> None:
    known = publish(site, 1, minutes=4)
    assert_quiet(site.run())
    set_watermark(site, -timedelta(hours=3))
    missed = publish(site, 1, minutes=3)
    result = site.run()
    assert result.code == 0
    assert "is ahead of now" in result.err
    assert "set the clock" in result.err
    assert taken(site) == ids(known + missed)
    mark = watermark(site)
    assert mark is not None
    assert mark <= site.office.clock.now()
    created = known[0].created
    assert windows(site)[0][0] <= f"{created:%Y-%m-%dT%H:%M:%S}"
    assert_quiet(site.run())


# -- the file


def make_state(site: Site) -> None:
    assert_quiet(site.run())
    site.office.journal.clear()


GARBAGE = {
    "text": b"this is no database\n" * 500,
    "bytes": bytes(range(256)) * 64,
}


@pytest.mark.parametrize("kind", [*GARBAGE, "cut", "torn"])
def test_an_unreadable_state_is_set_aside_and_the_last_seven_days_are_polled(
    site: Site, kind: str
) -> None:
    publish(site)
    make_state(site)
    if kind == "cut":
        data = site.state_file.read_bytes()
        site.state_file.write_bytes(data[: len(data) // 2 + 100])
    elif kind == "torn":
        data = site.state_file.read_bytes()
        site.state_file.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
    else:
        site.state_file.write_bytes(GARBAGE[kind])
    old = publish(site, 1, minutes=60 * 24 * 5)
    result = site.run()
    if result.code == 3:  # seen in mid-run: the next run goes back
        assert_quiet(site.run())
    else:
        assert result.code == 0
    assert re.search(
        r"o365_poller: warning: state file \S+config\.db is unreadable \(.*\) and was "
        r"set aside as config\.db\.unreadable-\d{8}T\d{6}Z; the last 7 days are polled "
        r"again and Elasticsearch drops the copies; look at the disk\n",
        result.err,
    )
    aside = list(site.folder.glob("config.db.unreadable-*"))
    assert len([file for file in aside if re.search(r"Z$", file.name)]) == 1
    assert ids(old) <= taken(site)
    assert_quiet(site.run())


def spoil(site: Site, how: str, table: str = "watermark") -> None:
    """Make the state unreadable: at opening, or where a run reads it later."""
    if how == "in mid-run":
        place, size = rows(
            site,
            "SELECT rootpage, (SELECT page_size FROM pragma_page_size) "
            f"FROM sqlite_master WHERE name = '{table}'",
        )[0]
        with site.state_file.open("r+b") as file:
            file.seek((int(str(place)) - 1) * int(str(size)))
            file.write(b"\xff" * int(str(size)))
    else:
        site.state_file.write_bytes(b"" if how == "empty" else GARBAGE["text"])


@pytest.mark.parametrize("flags", [[], ["--start", "1h"]], ids=["poll", "backfill"])
@pytest.mark.parametrize("how", ["at opening", "in mid-run", "empty"])
def test_a_state_begun_anew_by_a_run_of_one_content_type_goes_back_for_every_one(
    site: Site, how: str, flags: list[str]
) -> None:
    every = (DIRECTORY, EXCHANGE, GENERAL)
    site.office.enable(*every)
    site.set("poll", content_types=f"{DIRECTORY},{EXCHANGE}")
    assert_quiet(site.run("--content-type", GENERAL))
    old = [publish(site, 1, minutes=60 * 24 * 5, content_type=one)[0] for one in every]
    spoil(site, how)
    # GENERAL is not configured: it is the command line that names it.
    result = site.run("--content-type", GENERAL, *flags)
    assert result.code == 0
    assert ("set aside" in result.err) == (how != "empty")
    assert ids(old[:2]) & taken(site) == set()
    assert_quiet(site.run("--content-type", EXCHANGE))
    assert_quiet(site.run("--content-type", GENERAL))
    assert_quiet(site.run())
    assert_delivered(site, old)


def test_a_reconciliation_leaves_the_state_alone_that_a_poll_has_begun_anew(
    site: Site,
) -> None:
    make_state(site)
    publish(site)
    goes_on = threading.Event()

    def wait(scene: faults.Scene) -> Answer:
        assert goes_on.wait(30)
        return scene.proceed()

    site.office.fail("content", faults.Fault("wait", wait), times=1)
    reconciling = site.start("--reconcile", "--start", "1h")
    while not site.office.journal.of("list"):
        time.sleep(0.02)
    spoil(site, "in mid-run", "delivered")
    assert "was set aside" in site.run().err
    assert_quiet(site.run())
    before = contents(site)
    goes_on.set()
    _, err = reconciling.communicate(timeout=30)
    assert (reconciling.returncode, err) == (0, "")
    assert contents(site) == before
    assert len(list(site.folder.glob("*.unreadable-*"))) == 1


def test_a_file_system_without_locks_is_said_with_the_remedy(site: Site) -> None:
    """NFS without its lock service answers ENOLCK."""
    no_locks = """
import errno, fcntl, os
def flock(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
"""
    result = run_changed(site, no_locks)
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"o365_poller: error: lock file {site.state_file}.lock: No locks available; "
        "nothing was asked or sent; put state_file on a local file system\n"
    )
    assert site.office.journal.requests == []


@pytest.mark.parametrize("flags", [(), ("--start", "1h"), ("--reconcile",)])
def test_what_is_malformed_in_mid_run_is_set_aside_once_and_the_run_goes_on(
    site: Site, flags: tuple[str, ...]
) -> None:
    blobs = publish(site)
    make_state(site)
    spoil(site, "in mid-run", "delivered")
    result = site.run(*flags)
    assert result.code == 0
    assert result.err.count("was set aside as config.db.unreadable-") == 1
    assert len(list(site.folder.glob("config.db.unreadable-*"))) == 1
    assert ids(blobs) <= taken(site)
    assert_quiet(site.run())


def test_a_state_of_zero_length_is_no_first_run(site: Site) -> None:
    site.state_file.touch()
    old = publish(site, 1, minutes=60 * 24 * 5)
    result = site.run()
    assert result.code == 0
    assert_delivered(site, old)


def test_no_state_is_a_first_run_of_the_plain_window(site: Site) -> None:
    publish(site, 1, minutes=60)
    new = publish(site, 1)
    assert_quiet(site.run())
    assert_delivered(site, new)


def test_a_newer_state_is_refused_and_left_alone(site: Site) -> None:
    make_state(site)
    connection = sqlite3.connect(site.state_file)
    connection.execute("PRAGMA user_version = 77")
    connection.close()
    before = site.state_file.read_bytes()
    result = site.run()
    assert result.code == 2
    assert "was written by a newer version" in result.err
    assert site.state_file.read_bytes() == before
    assert site.office.journal.requests == []


def test_another_tenants_state_is_refused_and_left_alone(site: Site) -> None:
    make_state(site)
    site.set("azure", tenant_id=site.office.other_tenant_id)
    result = site.run()
    assert result.code == 2
    assert (
        f"belongs to tenant_id {site.office.tenant_id}, not {site.office.other_tenant_id}"
        in result.err
    )
    assert "give each tenant a state_file of its own" in result.err
    assert site.office.journal.requests == []
    assert not list(site.folder.glob("*unreadable*"))


def test_another_api_roots_state_is_refused(site: Site) -> None:
    make_state(site)
    site.set("azure", api_root="https://localhost:1")
    result = site.run()
    assert result.code == 2
    assert "belongs to api_root " in result.err


def test_a_busy_state_is_an_error_and_is_not_set_aside(site: Site) -> None:
    make_state(site)
    source = SCRIPT.read_text()
    assert "BUSY_SECONDS = 60\n" in source
    hasty = site.folder / "hasty.py"
    hasty.write_text(source.replace("BUSY_SECONDS = 60\n", "BUSY_SECONDS = 0.2\n"))
    other = sqlite3.connect(site.state_file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    site.write()
    done = subprocess.run(
        [sys.executable, str(hasty), "-c", str(site.config)],
        env=cron_environment(),
        capture_output=True,
        text=True,
    )
    other.close()
    assert done.returncode == 2
    assert "database is locked" in done.stderr
    assert not list(site.folder.glob("*unreadable*"))
    assert site.office.journal.requests == []


@pytest.mark.parametrize("where", ["state_file", "lock"])
def test_a_folder_in_the_states_place_is_said_before_any_request(
    site: Site, where: str
) -> None:
    name = "config.db" if where == "state_file" else "config.db.lock"
    (site.folder / name).mkdir()
    result = site.run()
    assert result.code == 2
    assert name in result.err
    assert site.office.journal.requests == []


def small_file_system(folder: Path, size: str) -> bool:
    mount = shutil.which("mount")
    if mount is None:
        return False
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
    )
    return done.returncode == 0


def test_a_full_disk_is_code_2_before_any_request_and_the_state_is_not_set_aside(
    site: Site,
) -> None:
    disk = site.folder / "disk"
    disk.mkdir()
    site.set("poll", state_file=str(disk / "s.db"))
    if not small_file_system(disk, "16k"):
        pytest.skip("no small file system can be mounted here")
    try:
        (disk / "fill").write_bytes(b"x" * 12288)
        result = site.run()
        assert result.code == 2
        assert re.search(
            r"state file \S+s\.db: (database or disk is full|No space left on device|disk I/O error|unable to open)",
            result.err,
        )
        assert site.office.journal.requests == []
        assert not list(disk.glob("*unreadable*"))
        (disk / "fill").unlink()
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_a_disk_that_fills_up_in_mid_run_is_code_2_and_the_events_come_again(
    site: Site,
) -> None:
    make_state(site)
    source = SCRIPT.read_text()
    mark = "            self._record(job.content_type, changes, now, 0)\n            self._polled("
    assert mark in source
    full = site.folder / "full.py"
    page_limit = "            self._connection.execute('PRAGMA max_page_count = 1')\n            self._connection.execute('CREATE TABLE filler (x)')\n"
    full.write_text(source.replace(mark, page_limit + mark))
    blobs = publish(site)
    site.write()
    done = subprocess.run(
        [sys.executable, str(full), "-c", str(site.config)],
        env=cron_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert (
        "database or disk is full; what is not recorded as delivered is sent again"
        in (done.stderr)
    )
    assert "Traceback" not in done.stderr
    assert_quiet(site.run())
    assert taken(site) == ids(blobs)


# -- the ledger


def test_the_ledger_holds_each_blob_once_with_events_bytes_and_times(
    site: Site,
) -> None:
    blobs = publish(site, 3, per=2)
    assert_quiet(site.run())
    assert_quiet(site.run())
    found = rows(site, "SELECT created, events, bytes FROM delivered ORDER BY created")
    assert [row[0] for row in found] == [
        round(blob.created.timestamp() * 1000) for blob in blobs
    ]
    assert all(events == 2 for _, events, _ in found)
    lines = sum(len(line) + 1 for line in site.logstash.lines[: 3 * 2])
    assert sum(int(str(size)) for _, _, size in found) == lines


def test_what_left_the_ledgers_eight_days_is_forgotten(site: Site) -> None:
    publish(site)
    make_state(site)
    connection = sqlite3.connect(site.state_file, isolation_level=None)
    connection.execute("UPDATE delivered SET created = created - 9 * 86400000")
    connection.close()
    site.office.activity.blobs.clear()
    assert_quiet(site.run())
    assert rows(site, "SELECT * FROM delivered") == []


def test_a_delivered_blob_that_the_overlap_finds_gone_is_no_loss(site: Site) -> None:
    publish(site, 1)
    assert_quiet(site.run())
    site.office.fail("blob", faults.af("AF20051"))
    assert_quiet(site.run())


@pytest.mark.parametrize("flags", [(), ("--start", "1h"), ("--report",), ("--check",)])
def test_a_state_file_that_cannot_be_looked_at_is_no_defect(
    site: Site, flags: tuple[str, ...]
) -> None:
    site.set("poll", state_file="x" * 300)
    result = site.run(*flags)
    assert "Traceback" not in result.err
    assert result.code == 2
    assert "File name too long" in result.err + result.out
    if "--check" not in flags:
        assert site.office.journal.requests == []
