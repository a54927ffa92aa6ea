"""Progress: a live line on a terminal, a line a minute in the log, nothing for cron."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from conftest import DIRECTORY, Site, cron_environment
from emulator import events

import o365_poller as poller
from o365_poller import Blob, Changes, Delivered, Progress, Slice, Window

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def publish_days(site: Site, days: int) -> None:
    """A blob for each of the last days."""
    now = datetime.now(UTC)
    for day in range(days):
        created = now - timedelta(days=day, minutes=30)
        made = events.make_events(5, first=10 * day + 1)
        site.office.publish(DIRECTORY, made, created=created)


def on_terminal(site: Site, *arguments: str, columns: int = 100) -> tuple[int, str]:
    """Run with stderr on a terminal; gives the exit code and what was written there."""
    site.write()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        site.command(*arguments),
        cwd="/",
        env=cron_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while piece := os.read(ours, 65536):
            written += piece
    os.close(ours)
    return process.wait(60), written.decode()


def screen(written: str) -> list[str]:
    """The lines that stand on the terminal in the end."""
    lines = [""]
    for piece in re.split(r"(\r\n|\r)", written):
        if piece == "\r\n":
            lines.append("")
        elif piece == "\r":
            pass
        else:
            lines[-1] = piece + lines[-1][len(piece) :]
    return [line.rstrip() for line in lines]


# -- on a terminal


def test_a_terminal_sees_the_slices_go_by_and_nothing_of_it_stays(site: Site) -> None:
    publish_days(site, 6)
    code, written = on_terminal(site, "--start", "6d")
    assert code == 0
    assert re.search(
        r"\rAudit\.AzureActiveDirectory: slice 1 of 7, 0 blobs, 0 events, 0 events/s",
        written,
    )
    left = screen(written)
    assert left[-1] == ""
    assert all(line.startswith("o365_poller: ") for line in left[:-1])
    assert any("6 blobs, 30 events, 0 pending, 0 lost" in line for line in left)
    assert "\x1b" not in written


def test_a_narrow_terminal_gets_no_line_that_wraps(site: Site) -> None:
    _, written = on_terminal(site, "--start", "6d", columns=40)
    live = [p for p in written.split("\r") if p.startswith("Audit.Azure")]
    assert live
    assert max(map(len, live)) == 39


def test_a_warning_stands_on_a_line_of_its_own(site: Site) -> None:
    short = site.office.credentials(valid_days=5)
    site.set(
        "azure",
        private_key=str(short.key_file),
        certificate=str(short.certificate_file),
    )
    code, written = on_terminal(site)
    assert code == 0
    left = screen(written)
    assert any(line.startswith("o365_poller: warning: the appl") for line in left)
    assert all(line.startswith("o365_poller: ") for line in left[:-1])


# -- elsewhere


def test_no_terminal_no_progress(site: Site) -> None:
    publish_days(site, 3)
    quiet = site.run("--start", "3d")
    assert (quiet.out, quiet.err) == ("", "")
    told = site.run("--start", "3d", "-v")
    assert "slice" not in told.err
    assert "\r" not in told.err
    assert "slice" not in site.log
    assert "3 blobs, 15 events" in told.err, "the totals line is there"


def test_the_log_gets_a_line_a_minute_at_most() -> None:
    now = 0.0
    progress = Progress(lambda: now)
    job = Slice(DIRECTORY, Window(NOON, NOON + 23 * HOUR))
    with heard() as records:
        progress.slice(job, 1, 3)
        for _ in range(1200):
            now += 0.25
            progress.count(Changes())
        logged = [one for one in records if getattr(one, "progress", "") == "logged"]
    assert len(logged) == 5
    assert len(records) == 601, "twice a second on a terminal"


class Ear(logging.Handler):
    """Keeps what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def heard() -> Iterator[list[logging.LogRecord]]:
    """What the program logs meanwhile."""
    ear, level = Ear(), poller.log.level
    poller.log.addHandler(ear)
    poller.log.setLevel(logging.DEBUG)
    try:
        yield ear.records
    finally:
        poller.log.removeHandler(ear)
        poller.log.setLevel(level)


def test_a_log_keeps_all_but_the_live_progress() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "text", (), None)
    assert poller.is_kept(record)
    for kind in ("live", "logged"):
        record.progress = kind
        assert poller.is_kept(record) == (kind == "logged")


def test_a_terminal_rewrites_both_kinds_on_one_line() -> None:
    ours, theirs = pty.openpty()
    record = logging.LogRecord("x", logging.INFO, "", 0, "text", (), None)
    with os.fdopen(theirs, "w") as stream:
        handler = poller.TerminalHandler(stream)
        for record.progress in ("live", "logged"):
            handler.emit(record)
        del record.progress  # type: ignore[attr-defined]
        handler.emit(record)
        expected = b"\r\rtext\r    \rtext\r    \rtext\r\n"
        written = b""
        while len(written) < len(expected):
            written += os.read(ours, 1000)
        assert written == expected
    os.close(ours)


# -- what it says


def delivered(created: datetime, count: int) -> Changes:
    blob = Blob(DIRECTORY, "id", "", created, None)
    return Changes(delivered=[Delivered(blob, count, 100 * count)])


def test_the_rate_and_the_time_left_come_from_what_is_done() -> None:
    now = 100.0
    progress = Progress(lambda: now)
    jobs = [
        Slice(DIRECTORY, Window(NOON + n * HOUR, NOON + n * HOUR + HOUR))
        for n in range(4)
    ]
    progress.slice(jobs[0], 1, 4)
    assert progress.text(now) == (
        f"{DIRECTORY}: slice 1 of 4, 0 blobs, 0 events, 0 events/s"
    )
    now += 60
    progress.count(delivered(NOON + HOUR / 2, 600))
    # An eighth is done in a minute: seven are left.
    assert progress.text(now) == (
        f"{DIRECTORY}: slice 1 of 4, 1 blobs, 600 events, 10 events/s, "
        "7 min left for this content type"
    )
    now += 60
    progress.slice(jobs[3], 4, 4)
    assert progress.text(now).endswith("less than a minute left for this content type")
    exchange = Slice("Audit.Exchange", jobs[0].window)
    progress.slice(exchange, 1, 4)
    assert "left" not in progress.text(now), "nothing is known of it yet"


def test_a_common_poll_says_no_time_left() -> None:
    now = 0.0
    progress = Progress(lambda: now)
    job = Slice(DIRECTORY, Window(NOON, NOON + HOUR / 6))
    progress.slice(job, 1, 1)
    now = 5.0
    progress.count(delivered(NOON + HOUR / 12, 5))
    assert progress.text(now) == (
        f"{DIRECTORY}: slice 1 of 1, 1 blobs, 5 events, 1 events/s"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "less than a minute"), (90, "2 min"), (7000, "117 min"), (9000, "2 h 30 min")],
)
def test_spans_are_rough(seconds: float, text: str) -> None:
    assert poller.time_left(seconds) == text
