"""SIGKILL at every system call that matters, at random times, and a full disk.

After each: the state is whole, and the next run brings what had not arrived.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import DIRECTORY, SCRIPT, TESTS, Result, Site, cron_environment
from emulator.events import make_event, make_events

BIG = 30  # blobs, of which each batch takes some
KILLED = -9


def fill(site: Site, *, blobs: int = 8, size: int = 1000) -> set[str]:
    """Blobs of the last minutes; gives the ids of their events."""
    now = site.office.clock.now()
    made = [
        site.office.publish(
            DIRECTORY,
            [make_event("login", 100 * n + each, Filler="f" * size) for each in (1, 2)],
            created=now - timedelta(seconds=10 + n),
        )
        for n in range(blobs)
    ]
    return {str(id_) for blob in made for id_ in blob.ids}


def run_to_death(
    site: Site, call: str, moment: str, number: int, limit: int = 0
) -> Result:
    site.write()
    port = site.logstash.address.rpartition(":")[2]
    process = subprocess.run(
        [sys.executable, str(TESTS / "die.py"), call, moment, str(number)]
        + [str(SCRIPT), "-c", str(site.config)],
        cwd="/",
        env=cron_environment({"DIE_PORT": port, "DIE_LIMIT": str(limit)}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Result(process.returncode, process.stdout, process.stderr)


def check_state(site: Site) -> None:
    """The state is whole, and says delivered only of what Logstash has taken."""
    if not site.state_file.exists() or not site.state_file.stat().st_size:
        return
    with sqlite3.connect(site.state_file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT total(events) FROM delivered").fetchall()
    connection.close()
    assert rows[0][0] <= len(set(site.logstash.taken_ids()))


def check_nothing_is_lost(site: Site, ids: set[str]) -> None:
    result = site.run()
    assert (result.code, result.err) == (0, "")
    assert set(site.logstash.taken_ids()) == ids
    result = site.run("--report")
    assert result.code == 0, result.out
    check_state(site)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The script with batches of some blobs, so that a slice takes several."""
    copy = tmp_path / "script" / "o365_poller.py"
    copy.parent.mkdir()
    shutil.copy(SCRIPT, copy)
    text = copy.read_text()
    was = "BATCH_ROWS = 5_000\n"
    assert text.count(was) == 1
    copy.write_text(text.replace(was, "BATCH_ROWS = 3\n"))
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", copy)
    return copy


DEATHS = [
    (call, moment, number)
    for call in ("connect", "send", "shutdown")
    for moment in ("before", "after")
    for number in (1, 2)
] + [
    ("commit", moment, number)
    for moment in ("before", "after")
    for number in range(1, 6)
]


@pytest.mark.parametrize(("call", "moment", "number"), DEATHS)
def test_killed_at_a_system_call(
    site: Site, batches: Path, call: str, moment: str, number: int
) -> None:
    ids = fill(site)
    result = run_to_death(site, call, moment, number)
    assert result.code == KILLED, result.err
    check_state(site)
    check_nothing_is_lost(site, ids)


def test_what_a_killed_run_has_confirmed_is_not_sent_again(
    site: Site, batches: Path
) -> None:
    fill(site)
    # 1 opens the state, 2 makes the watermark, 3 and 4 confirm a batch each.
    assert run_to_death(site, "commit", "after", 4).code == KILLED
    confirmed = len(site.logstash.taken_ids())
    assert confirmed
    site.logstash.clear()
    assert site.run().code == 0
    assert len(site.logstash.taken_ids()) == 16 - confirmed


def test_killed_again_and_again_at_random_times(site: Site) -> None:
    chance = random.Random(4)
    site.office.latency = 0.01
    ids = fill(site, blobs=BIG, size=20_000)
    deaths = 0
    for _ in range(12):
        process = site.start()
        time.sleep(chance.uniform(0.15, 0.9))
        process.kill()
        process.communicate()
        deaths += process.returncode == KILLED
        check_state(site)
    assert deaths
    check_nothing_is_lost(site, ids)


@pytest.mark.parametrize("limit", [1, 4096, 20_000, 40_000, 60_000])
def test_a_full_disk_ends_with_a_sentence_and_loses_nothing(
    site: Site, limit: int
) -> None:
    site.set("logging", file=None)
    assert run(site) == 0
    site.logstash.clear()
    ids = fill(site, blobs=400, size=10)
    result = run_to_death(site, "nothing", "before", 0, limit)
    assert result.code == 2, result.err
    assert "state file" in result.err
    assert "Traceback" not in result.err
    assert "disk" in result.err
    check_nothing_is_lost(site, ids)


def test_a_full_disk_under_a_first_run(site: Site) -> None:
    site.set("logging", file=None)
    ids = fill(site)
    result = run_to_death(site, "nothing", "before", 0, 2000)
    assert result.code == 2, result.err
    assert site.office.journal.requests == []
    # A state cut down to nothing was more than a first run, for all that it can know.
    assert site.run().code == 0
    assert set(site.logstash.taken_ids()) == ids


def test_a_full_disk_under_the_log_changes_nothing(site: Site) -> None:
    ids = fill(site)
    assert site.run().code == 0
    log = site.folder / "poller.log"
    log.write_text("x" * 300_000)
    later = fill_later(site)
    result = run_to_death(site, "nothing", "before", 0, 250_000)
    assert result.code == 0, result.err
    assert set(site.logstash.taken_ids()) == ids | later


def fill_later(site: Site) -> set[str]:
    now = site.office.clock.now()
    events = make_events(2, first=90_000)
    blob = site.office.publish(DIRECTORY, events, created=now - timedelta(seconds=5))
    return {str(id_) for id_ in blob.ids}


def run(site: Site, *arguments: str) -> int:
    return site.run(*arguments).code
