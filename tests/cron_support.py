"""What the tests of the script under cron share."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count

from conftest import DIRECTORY, Result, Site, cron_environment
from emulator import Blob
from emulator.content import Event
from emulator.events import make_events

EXCHANGE = "Audit.Exchange"
SHAREPOINT = "Audit.SharePoint"
GENERAL = "Audit.General"
DLP = "DLP.All"

_numbers = count(1)


def publish(
    site: Site,
    blobs: int = 2,
    *,
    per: int = 2,
    minutes: float = 3,
    content_type: str = DIRECTORY,
) -> list[Blob]:
    """Blobs that became available that long ago, a millisecond apart."""
    start = site.office.clock.now() - timedelta(minutes=minutes)
    made = []
    for number in range(blobs):
        first = 1 + 1000 * next(_numbers)
        events: Sequence[Event] = make_events(per, content_type, first=first)
        created = start + timedelta(milliseconds=number)
        made.append(site.office.publish(content_type, events, created=created))
    return made


def ids(blobs: Iterable[Blob]) -> set[str | None]:
    """The Ids of the events in some blobs."""
    return {one for blob in blobs for one in blob.ids}


def taken(site: Site) -> set[str | None]:
    """The Ids that Logstash has taken, each at least once."""
    return set(site.logstash.taken_ids())


def assert_quiet(result: Result) -> None:
    """A good run says nothing."""
    assert (result.code, result.out, result.err) == (0, "", "")


def assert_delivered(site: Site, blobs: Iterable[Blob]) -> None:
    """All of it arrived, each line once, and no rule was broken."""
    found = site.logstash.taken_ids()
    assert sorted(map(str, found)) == sorted(map(str, ids(blobs)))
    assert site.office.journal.violations == []


def rows(site: Site, statement: str) -> list[tuple[object, ...]]:
    """What the state holds."""
    connection = sqlite3.connect(site.state_file)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def watermark(site: Site, content_type: str = DIRECTORY) -> datetime | None:
    """The watermark of a content type."""
    found = rows(
        site,
        f"SELECT time FROM watermark WHERE content_type = '{content_type}'",
    )
    return datetime.fromtimestamp(int(str(found[0][0])), UTC) if found else None


def set_watermark(site: Site, age: timedelta, content_type: str = DIRECTORY) -> None:
    """Put the watermark that long before now, making the state by a poll if need be."""
    if not site.state_file.exists():
        assert_quiet(site.run("--content-type", content_type))
    connection = sqlite3.connect(site.state_file, isolation_level=None)
    time = int((site.office.clock.now() - age).timestamp())
    connection.execute("UPDATE watermark SET time = ?", (time,))
    connection.execute("DELETE FROM polled")
    connection.close()
    site.office.journal.clear()


def windows(site: Site, content_type: str = DIRECTORY) -> list[tuple[str, str]]:
    """startTime and endTime of every listing that was asked for, first pages only."""
    return [
        (request.value("startTime") or "", request.value("endTime") or "")
        for request in site.office.journal.of("content")
        if request.content_type == content_type and request.next_page is None
    ]


def spans(site: Site, content_type: str = DIRECTORY) -> list[timedelta]:
    """The lengths of those windows."""
    return [
        datetime.fromisoformat(end) - datetime.fromisoformat(start)
        for start, end in windows(site, content_type)
    ]


# No pause is longer than this; what counts as a try and what not stays as it is.
HURRY = """
import threading
pause = threading.Event.wait
threading.Event.wait = lambda self, left=None: pause(self, left and min(left, 0.01))
"""


def changed_command(site: Site, change: str, *arguments: str) -> list[str]:
    """The command line of the script on a machine that these lines have changed."""
    program = (
        f"import runpy, sys\n{change}\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    python, *rest = site.command(*arguments)
    return [python, "-c", program, *rest]


def start_changed(site: Site, change: str) -> subprocess.Popen[str]:
    """Start the script on a machine that these lines of Python have changed."""
    site.write()
    return subprocess.Popen(
        changed_command(site, change),
        env=cron_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_changed(
    site: Site, change: str, *arguments: str, env: Mapping[str, str] | None = None
) -> Result:
    """Run the script on a machine that these lines of Python have changed."""
    site.write()
    done = subprocess.run(
        changed_command(site, change, *arguments),
        cwd="/",
        env=cron_environment(env),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Result(done.returncode, done.stdout, done.stderr)
