"""The script as cron runs it: each exit code, what is printed, the flags, the lock."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import logstash_stand_in as stand_in
import pytest
from conftest import DIRECTORY, SCRIPT, Site, cron_environment
from cron_support import (
    EXCHANGE,
    SHAREPOINT,
    assert_delivered,
    assert_quiet,
    ids,
    publish,
    rows,
    run_changed,
    start_changed,
    taken,
    watermark,
    windows,
)
from emulator import faults

# -- exit codes


def test_0_when_all_is_delivered_and_nothing_is_said(site: Site) -> None:
    blobs = publish(site, 5, per=20)
    assert_quiet(site.run())
    assert_delivered(site, blobs)


def test_0_when_nothing_is_new_and_no_request_more_than_needed(site: Site) -> None:
    assert_quiet(site.run())
    site.office.journal.clear()
    assert_quiet(site.run())
    asked = [request.operation for request in site.office.journal.requests]
    assert asked == ["discovery", "token", "list", "content"]
    assert site.logstash.connections == []


def run_with_a_defect(site: Site) -> subprocess.CompletedProcess[str]:
    """No defect is known: one is made, in a copy."""
    source = SCRIPT.read_text()
    mark = "    def poll_all(self, content_types: Sequence[str]) -> None:\n"
    assert mark in source
    broken = site.folder / "broken.py"
    broken.write_text(source.replace(mark, mark + "        raise KeyError('defect')\n"))
    site.write()
    return subprocess.run(
        [sys.executable, str(broken), "-c", str(site.config)],
        env=cron_environment(),
        capture_output=True,
        text=True,
    )


def test_1_for_a_defect_with_the_traceback_in_the_log_and_not_on_the_console(
    site: Site,
) -> None:
    done = run_with_a_defect(site)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr == (
        "o365_poller: error: a defect of this program; what was not confirmed is sent "
        "again by the next run; please report it with the traceback in the log file\n"
    )
    assert "KeyError: 'defect'" in site.log


def test_1_without_a_log_file_says_how_to_have_the_traceback(site: Site) -> None:
    site.set("logging", file=None)
    done = run_with_a_defect(site)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(
        "report it with the traceback in the log file (there is none: set file in "
        "[logging] and run again)\n"
    )


def test_2_for_a_wrong_flag_and_no_request_is_made(site: Site) -> None:
    result = site.run("--nonsense")
    assert result.code == 2
    assert "unrecognized arguments: --nonsense" in result.err
    assert site.office.journal.requests == []


def test_3_when_microsoft_did_not_give_all(site: Site) -> None:
    good, bad = publish(site, 2)
    site.office.fail("blob", faults.half_json(), match=bad.content_id)
    result = site.run()
    assert result.code == 3
    assert f"{DIRECTORY}: blob {bad.content_id}: " in result.err
    assert result.err.count("\n") == 2
    assert taken(site) == ids([good])


def test_4_when_there_is_no_token(site: Site) -> None:
    site.office.fail("token", faults.aadsts(700016))
    result = site.run()
    assert result.code == 4
    assert "AADSTS700016" in result.err
    assert "check client_id and tenant_id" in result.err


def test_5_when_no_logstash_takes_the_events_and_they_are_sent_by_the_next_run(
    site: Site,
) -> None:
    blobs = publish(site)
    site.logstash.mode = stand_in.refuse()
    result = site.run()
    assert result.code == 5
    assert result.err == (
        f"o365_poller: error: no Logstash took the events: {site.logstash.address} "
        "failed while connecting: Connection refused; none of this batch counts as "
        "delivered; the next run sends it again; see that the tcp input listens "
        "there, with the same TLS settings, and that its pipeline is not blocked by "
        "Elasticsearch\n"
    )
    assert rows(site, "SELECT * FROM delivered") == []
    site.logstash.mode = stand_in.take()
    assert_quiet(site.run())
    assert_delivered(site, blobs)


def test_6_when_something_can_no_longer_be_had_and_it_is_named_once(site: Site) -> None:
    good, gone = publish(site, 2)
    site.office.fail("blob", faults.af("AF20051"), match=gone.content_id)
    result = site.run()
    assert result.code == 6
    words = re.sub(r"HTTP \d+", "HTTP", result.err)
    assert words == (
        f"o365_poller: error: lost: {DIRECTORY}: blob {gone.content_id}: the API no "
        "longer has it (HTTP AF20051 AF20051 was asked for); this API cannot give these "
        "events any more; an export from the audit search of Purview may still have "
        "them\n"
    )
    assert taken(site) == ids([good])
    assert_quiet(site.run())


def test_75_when_another_poll_holds_the_lock_and_only_the_log_says_so(
    site: Site,
) -> None:
    site.write()
    with open(f"{site.state_file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = site.run()
        assert (result.code, result.out, result.err) == (75, "", "")
        assert "another poll holds the lock" in site.log
        loud = site.run("-v")
        assert loud.code == 75
        assert loud.err.startswith("o365_poller: another poll holds the lock ")
    assert site.office.journal.requests == []
    assert_quiet(site.run())


PHASES: list[tuple[str, str, Callable[[Site], None]]] = [
    ("hung discovery", "", lambda site: site.office.fail("discovery", faults.hang())),
    ("hung sign-in", "discovery", lambda site: site.office.fail("token", faults.hang())),
    ("hung listing", "list", lambda site: site.office.fail("content", faults.hang())),
    ("hung blob", "content", lambda site: site.office.fail("blob", faults.hang(part="body"))),
    ("back-off", "list", lambda site: site.office.fail("list", faults.throttle(retry_after=15))),
    ("stalled sink", "blob", lambda site: setattr(site.logstash, "mode", stand_in.stall_confirm())),
    ("silent sink", "blob", lambda site: setattr(site.logstash, "mode", stand_in.accept_and_stall())),
]  # fmt: skip


def wait_for_phase(site: Site, operation: str) -> None:
    """Wait until the request before the one that hangs was answered, and a moment."""
    end = time.monotonic() + 60
    while not (
        site.office.journal.of(operation)
        if operation
        else site.office.journal.high_water
    ):
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.4)


@pytest.mark.parametrize(
    ("operation", "arrange"), [p[1:] for p in PHASES], ids=[p[0] for p in PHASES]
)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_130_and_143_within_ten_seconds_in_every_phase_and_the_state_is_intact(
    site: Site, operation: str, arrange: Callable[[Site], None], signum: signal.Signals
) -> None:
    blobs = publish(site)
    arrange(site)
    site.set("poll", timeout_seconds="60")
    site.set("logstash", timeout_seconds="60")
    process = site.start()
    wait_for_phase(site, operation)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signum)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - began < 10
    assert (process.returncode, out, err) == (128 + signum, "", "")
    assert "stopped by a signal" in site.log
    site.office.heal()
    site.logstash.mode = stand_in.take()
    assert_quiet(site.run())
    assert taken(site) == ids(blobs)


# A signal at each of the last steps of the program, and when all is said.
SIGNALS_AT_THE_END = """
import logging, os, signal
def signalled(step):
    def wrapped(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)
    return wrapped
logging.shutdown = signalled(logging.shutdown)
os._exit = signalled(os._exit)
"""


def test_a_signal_at_the_very_end_changes_nothing(site: Site) -> None:
    assert_quiet(run_changed(site, SIGNALS_AT_THE_END))
    site.office.fail("token", faults.aadsts(700016))
    result = run_changed(site, SIGNALS_AT_THE_END)
    assert (result.code, result.err.count("\n")) == (4, 1)
    result = run_changed(site, SIGNALS_AT_THE_END, "--start", "soon")
    assert (result.code, result.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_decides_and_later_ones_are_ignored(
    site: Site, first: signal.Signals
) -> None:
    site.office.fail("content", faults.hang())
    process = start_changed(site, SIGNALS_AT_THE_END)
    wait_for_phase(site, "list")
    process.send_signal(first)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (128 + first, "", "")


def test_two_signals_at_once_are_one(site: Site) -> None:
    """Both are there before Python looks: from a terminal and from a supervisor, say."""
    both = """
import os, signal, ssl
each = (signal.SIGTERM, signal.SIGINT)
signal.pthread_sigmask(signal.SIG_BLOCK, each)  # every thread inherits it
def signalled(*arguments, **named):
    for signum in each:
        os.kill(os.getpid(), signum)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, each)
    return context(*arguments, **named)
context, ssl.create_default_context = ssl.create_default_context, signalled
"""
    result = run_changed(site, both)
    assert (result.code, result.out, result.err) in ((130, "", ""), (143, "", ""))


@pytest.mark.parametrize("place", [3, 4])
def test_a_signal_while_signals_are_being_switched_off_is_no_traceback(
    site: Site, place: int
) -> None:
    """Two are switched on; what comes then switches them off."""
    switching = f"""
import os, signal
count = 0
def signalled(*arguments):
    global count
    count += 1
    if count == {place}:
        os.kill(os.getpid(), signal.SIGTERM)
    return switch(*arguments)
switch, signal.signal = signal.signal, signalled
"""
    result = run_changed(site, switching)
    assert (result.code, result.out, result.err) == (143, "", "")


def test_a_signal_ends_a_run_that_waits_where_no_signal_reaches_it(site: Site) -> None:
    """SQLite waits for another's transaction without looking up."""
    assert_quiet(site.run())
    told = site.folder / "locked"
    quick = f"""
import fcntl, pathlib, time
sleep, flock = time.sleep, fcntl.flock
time.sleep = lambda seconds: sleep(min(seconds, 0.3))
def locked(*arguments):
    flock(*arguments)
    pathlib.Path({str(told)!r}).touch()
fcntl.flock = locked
"""
    other = sqlite3.connect(site.state_file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    process = start_changed(site, quick)
    while not told.exists():
        time.sleep(0.02)
    time.sleep(0.3)
    process.terminate()
    out, err = process.communicate(timeout=10)
    other.close()
    assert (process.returncode, out, err) == (143, "", "")
    assert_quiet(site.run())


def test_several_at_once_end_with_the_first_of_the_contracts_order(site: Site) -> None:
    """A permission is missing (4), a blob is lost (6), another fails (3)."""
    site.office.enable(EXCHANGE)
    lost, bad = publish(site, 2)
    site.office.fail("blob", faults.af("AF20051"), match=lost.content_id)
    site.office.fail("blob", faults.not_array(), match=bad.content_id)
    arguments = ["--content-type", DIRECTORY, "--content-type", EXCHANGE]
    site.office.fail("content", faults.af("AF10001"), match=EXCHANGE)
    assert site.run(*arguments).code == 4


def test_a_loss_counts_more_than_a_sink(site: Site) -> None:
    lost, _ = publish(site, 2)
    site.office.fail("blob", faults.af("AF20051"), match=lost.content_id)
    site.logstash.mode = stand_in.refuse()
    assert site.run().code in (5, 6)
    site.logstash.mode = stand_in.take()
    assert site.run().code == 6


# -- what is said, and where


def test_the_totals_line_shows_with_v_and_in_the_log_always(site: Site) -> None:
    publish(site, 3, per=2)
    result = site.run("-v")
    assert (result.code, result.out) == (0, "")
    assert "3 blobs, 6 events, 0 pending, 0 lost, lag " in result.err
    assert "o365_poller: end: exit 0, " in result.err
    assert "first poll, from " in result.err
    assert "3 blobs, 6 events" in site.log
    lines = site.log.splitlines()
    assert all(line[10] == "T" and line[19] == "Z" for line in lines)
    datetime.fromisoformat(lines[0][:20])


def test_vv_shows_what_is_retried(site: Site) -> None:
    site.office.fail("list", faults.status(503), times=1)
    result = site.run("-vv")
    assert result.code == 0
    assert "list of subscriptions: HTTP 503" in result.err


def test_a_terminal_gets_the_totals_without_v(site: Site) -> None:
    site.write()
    master, slave = pty.openpty()
    process = subprocess.Popen(
        site.command(), env=cron_environment(), stdout=subprocess.PIPE, stderr=slave
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(master)
    process.communicate()
    assert process.returncode == 0
    assert b"0 blobs, 0 events" in shown


def test_without_a_log_file_there_is_none(site: Site) -> None:
    site.set("logging", file=None, level=None)
    assert_quiet(site.run())
    assert not (site.folder / "poller.log").exists()


def test_the_log_level_is_kept(site: Site) -> None:
    site.set("logging", level="WARNING")
    assert_quiet(site.run())
    assert site.log == ""


def test_a_lasting_warning_shows_once_in_repeat_hours_and_is_logged_always(
    site: Site,
) -> None:
    soon = site.office.credentials(valid_days=10)
    site.set(
        "azure",
        private_key=str(soon.key_file),
        certificate=str(soon.certificate_file),
    )
    day = f"{soon.not_after:%Y-%m-%d}"
    first = site.run()
    assert first.code == 0
    assert first.err == (
        f"o365_poller: warning: the application's certificate ends on {day}, in 9 days; "
        "without one Entra ID gives no token, and what is not fetched within 7 days is "
        "lost; upload a new one to the app registration, then change key and "
        "certificate in [azure]\n"
    )
    assert_quiet(site.run())
    assert site.log.count(f"certificate ends on {day}") == 2
    site.set("alerts", certificate_days="5")
    assert_quiet(site.run())
    assert site.log.count(f"certificate ends on {day}") == 2


def test_a_lasting_warning_shows_again_after_repeat_hours(site: Site) -> None:
    soon = site.office.credentials(valid_days=10)
    site.set(
        "azure", private_key=str(soon.key_file), certificate=str(soon.certificate_file)
    )
    site.set("alerts", repeat_hours="0.01")
    assert site.run().err
    assert site.run().err == ""
    connection = sqlite3.connect(site.state_file, isolation_level=None)
    connection.execute("UPDATE said SET time = time - 40")
    connection.close()
    assert site.run().err


def test_a_certificate_that_has_ended_is_warned_of_and_refused_by_entra(
    site: Site,
) -> None:
    old = site.office.credentials(valid_days=-3)
    site.set(
        "azure", private_key=str(old.key_file), certificate=str(old.certificate_file)
    )
    result = site.run()
    assert result.code == 4
    assert f"certificate ended on {old.not_after:%Y-%m-%d}; " in result.err
    assert "AADSTS700027" in result.err


# -- flags


def test_without_c_the_environment_names_the_file(site: Site) -> None:
    site.write()
    blobs = publish(site)
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=cron_environment({"O365_POLLER_CONFIG": str(site.config)}),
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_delivered(site, blobs)


def test_content_type_replaces_the_configured_list_in_any_case(site: Site) -> None:
    site.office.enable(EXCHANGE, SHAREPOINT)
    site.set("poll", content_types=SHAREPOINT)
    blobs = publish(site, content_type=EXCHANGE) + publish(site)
    publish(site, content_type=SHAREPOINT)
    arguments = ["--content-type", "audit.exchange", "--content-type", DIRECTORY]
    assert_quiet(site.run(*arguments))
    assert_delivered(site, blobs)


def test_an_unknown_content_type_is_refused_with_the_nearest(site: Site) -> None:
    result = site.run("--content-type", "Audit.Exchang", "--end", "x")
    assert result.code == 2
    assert result.err == (
        "o365_poller: error: --content-type: expected one of "
        "Audit.AzureActiveDirectory, Audit.Exchange, Audit.SharePoint, Audit.General, "
        "DLP.All, got 'Audit.Exchang'; did you mean Audit.Exchange?\n"
        "o365_poller: error: --end: expected --start with it\n"
    )
    assert site.office.journal.requests == []


# -- --stdout


def test_stdout_prints_the_lines_and_touches_no_state_and_no_logstash(
    site: Site,
) -> None:
    blobs = publish(site, 3)
    site.set("logstash", hosts=None)
    result = site.run("--stdout")
    assert (result.code, result.err) == (0, "")
    found = {json.loads(line)["Id"] for line in result.out.splitlines()}
    assert found == ids(blobs)
    assert not site.state_file.exists()
    assert sorted(entry.name for entry in site.folder.glob("config*")) == ["config.ini"]
    assert site.logstash.connections == []


def test_stdout_neither_reads_nor_changes_a_state_that_is_there(site: Site) -> None:
    blobs = publish(site, 3)
    assert_quiet(site.run())
    before = site.state_file.read_bytes()
    result = site.run("--stdout")
    assert {json.loads(line)["Id"] for line in result.out.splitlines()} == ids(blobs)
    assert site.state_file.read_bytes() == before


def test_stdout_into_head_ends_without_a_traceback(site: Site) -> None:
    publish(site, 40, per=300)
    site.write()
    process = subprocess.Popen(
        site.command("--stdout"),
        env=cron_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline().startswith("{")
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() in (0, 5)
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert err in (
        "",
        (
            "o365_poller: error: standard output: Broken pipe; no state was touched; "
            "nothing to do, if the reader closed it on purpose\n"
        ),
    )


# -- backfill


def stamp(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}"


def test_a_backfill_sends_all_of_its_span_delivered_before_or_not(site: Site) -> None:
    old = publish(site, minutes=300)
    new = publish(site, minutes=3)
    assert_quiet(site.run())
    before = watermark(site)
    site.logstash.clear()
    assert_quiet(site.run("--start", "6h"))
    assert_delivered(site, old + new)
    assert watermark(site) == before
    known = rows(site, "SELECT count(*) FROM delivered")
    assert known == [(4,)]


def test_a_backfill_is_half_open_and_ends_where_it_is_told(site: Site) -> None:
    now = site.office.clock.now().replace(microsecond=0)
    start, end = now - timedelta(hours=30), now - timedelta(hours=2)
    inside = [
        site.office.publish(DIRECTORY, [{"Id": "first"}], created=start),
        site.office.publish(
            DIRECTORY, [{"Id": "last"}], created=end - timedelta(seconds=1)
        ),
    ]
    site.office.publish(DIRECTORY, [{"Id": "no1"}], created=end)
    site.office.publish(
        DIRECTORY, [{"Id": "no2"}], created=start - timedelta(seconds=1)
    )
    assert_quiet(site.run("--start", stamp(start) + "Z", "--end", stamp(end)))
    assert_delivered(site, inside)
    asked = windows(site)
    assert asked[0][0] == stamp(start)
    assert asked[-1][1] == stamp(end)
    assert len(asked) == 2
    assert asked[0][1] == asked[1][0]


def test_a_backfill_with_an_offset_is_read_in_utc_and_fractions_are_cut(
    site: Site,
) -> None:
    now = site.office.clock.now().replace(microsecond=0)
    local = now - timedelta(hours=3) + timedelta(hours=2)
    assert_quiet(site.run("--start", stamp(local) + ".987+02:00", "--end", "30m"))
    assert windows(site)[0][0] == stamp(now - timedelta(hours=3))


def test_a_backfill_takes_no_lock(site: Site) -> None:
    blobs = publish(site)
    site.write()
    with open(f"{site.state_file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_quiet(site.run("--start", "1h"))
    assert_delivered(site, blobs)


def test_seven_days_are_accepted_and_clipped_by_the_margin_and_that_is_no_gap(
    site: Site,
) -> None:
    result = site.run("--start", "7d", "-v")
    assert result.code == 0
    assert "the backfill begins at " in result.err
    assert "are left as a margin; this is no gap" in result.err
    assert_quiet(site.run("--start", "7d"))
    assert site.office.journal.violations == []


def test_a_blob_that_fails_in_a_backfill_waits_like_a_polls(site: Site) -> None:
    blob = publish(site, 1, minutes=120)[0]
    site.office.fail("blob", faults.not_array())
    result = site.run("--start", "3h")
    assert result.code == 3
    assert rows(site, "SELECT content_id FROM pending") == [(blob.content_id,)]
    site.office.heal()
    assert_quiet(site.run())
    assert taken(site) == ids([blob])


REFUSALS = [
    (["--start", "8d"], "--start: expected at most 7 days back, which is what the API keeps, got '8d'"),
    (["--start", "2001-01-01"], "--start: expected at most 7 days back, which is what the API keeps, got '2001-01-01'"),
    (["--start", "2999-01-01"], "--start: expected a time in the past, got '2999-01-01'"),
    (["--start", "1h", "--end", "2999-01-01"], "--end: expected a time in the past, got '2999-01-01'"),
    (["--start", "1h", "--end", "2h"], "--start: expected a time before --end"),
    (["--start", "1h", "--end", "1h"], "--start: expected a time before --end"),
    (["--end", "1h"], "--end: expected --start with it"),
    (["--start", "yesterday"], "--start: expected a time as ISO 8601, or an age such as 90m, 6h, 2d, got 'yesterday'"),
    (["--start", "10"], "--start: expected a time as ISO 8601, or an age such as 90m, 6h, 2d, got '10'"),
    (["--start", ""], "--start: expected a time as ISO 8601, or an age such as 90m, 6h, 2d, got ''"),
    (["--start", "999999w"], "--start: expected a time as ISO 8601, or an age such as 90m, 6h, 2d, got '999999w'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"), REFUSALS, ids=[" ".join(r[0]) for r in REFUSALS]
)
def test_a_backfill_that_cannot_be_is_refused(
    site: Site, flags: list[str], said: str
) -> None:
    result = site.run(*flags)
    assert (result.code, result.err) == (2, f"o365_poller: error: {said}\n")
    assert site.office.journal.requests == []
    assert not site.state_file.exists()


# -- files


def test_every_file_that_is_made_is_private(site: Site) -> None:
    publish(site)
    site.write()
    old = os.umask(0)
    try:
        assert_quiet(site.run())
    finally:
        os.umask(old)
    made = [
        file for file in site.folder.iterdir() if file != site.config and file.is_file()
    ]
    assert {file.name for file in made} >= {"config.db", "config.db.lock", "poller.log"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in made} == {0o600}


def test_an_unwritable_log_is_said_and_no_traceback(site: Site) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    site.set("logging", file="/dev/full")
    result = site.run()
    assert "Traceback" not in result.err
    assert result.code in (0, 2)


# -- an environment that knows ASCII only

ASCII = {
    "ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"},
    # Python itself makes UTF-8 of LC_ALL=C, unless it is told not to.
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


def in_a_folder_with_an_umlaut(site: Site) -> None:
    """Move the installation."""
    site.folder /= "Über-\u65e5\u672c"
    site.folder.mkdir()
    site.set("logging", file="poller.log")


@pytest.mark.parametrize("env", ASCII.values(), ids=list(ASCII))
def test_ascii_alone_makes_no_traceback_and_events_go_out_as_they_are(
    site: Site, env: dict[str, str]
) -> None:
    if "PYTHONIOENCODING" in env:  # else the folder's name cannot be told to the kernel
        in_a_folder_with_an_umlaut(site)
    event = '{"Id":"u","Name":"J\u00fcrgen \u65e5"}'
    site.office.publish(
        DIRECTORY, [event], created=site.office.clock.now() - timedelta(minutes=2)
    )
    gone = publish(site, 1)[0]
    said = '{"error":{"code":"AF20051","message":"G\u00e9n\u00e9ral \u65e5"}}'
    fault = faults.status(404, said.encode())
    site.office.fail("blob", fault, match=gone.content_id)

    shown = site.run("--stdout", env=env)
    assert (shown.code, shown.out) == (6, event + "\n")
    assert r"G\xe9n\xe9ral \u65e5" in shown.err
    polled = site.run("-vv", env=env)
    assert polled.code == 6
    assert r"G\xe9n\xe9ral \u65e5" in polled.err
    assert "G\u00e9n\u00e9ral \u65e5" in (site.folder / "poller.log").read_text("utf-8")
    assert site.logstash.lines[-1].decode() == event
    assert site.run("--report", env=env).code == 6

    site.set("azure", cloud="M\u00f6nd")
    for flags in ([], ["--check"]):
        wrong = site.run(*flags, env=env)
        assert wrong.code == 2
        assert r"[azure] cloud: expected " in wrong.out + wrong.err
        assert r"'M\xf6nd'" in wrong.out + wrong.err
    assert "Traceback" not in shown.err + polled.err + wrong.err


def test_check_in_an_environment_of_ascii_has_a_line_for_each_step(site: Site) -> None:
    in_a_folder_with_an_umlaut(site)
    result = site.run("--check", env=ASCII["ascii"])
    assert (result.code, result.err) == (0, "")
    assert r"\xdcber-\u65e5\u672c" in result.out


def test_a_path_that_is_no_text_is_told_in_the_log_all_the_same(site: Site) -> None:
    """A name of another encoding, from a file system that was moved here."""
    site.folder /= os.fsdecode(b"caf\xe9")
    site.folder.mkdir()
    (site.folder / "config.db.lock").mkdir()
    result = site.run()
    assert result.code == 2
    told = r"caf\udce9/config.db.lock: Is a directory"
    assert told in result.err
    assert told in (site.folder.parent / "poller.log").read_text()
