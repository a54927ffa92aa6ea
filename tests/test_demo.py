"""tests/demo shows what it says it shows, and says so if it does not."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import demo
import pytest
from conftest import ROOT, TESTS
from demo import Demo
from emulator import Emulator
from logstash_stand_in import LogstashStandIn

EVENTS = sum(blobs * each for blobs, each in demo.WORLD.values()) + 3 + 2


def run_demo(
    *arguments: str, program: Path = TESTS / "demo.py"
) -> subprocess.CompletedProcess[str]:
    """The demo as a process."""
    command = [sys.executable, str(program)] if program.suffix else [str(program)]
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd="/",
    )


@pytest.mark.skipif(
    not (ROOT / ".venv/.requirements").exists(), reason="tests/venv did not make .venv"
)
def test_the_demo_is_one_command() -> None:
    done = run_demo(program=TESTS / "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"OK: all {EVENTS} events arrived, unchanged" in done.stdout
    story = done.stdout.partition("--report: ")[0]
    assert all(len(line) <= demo.WIDTH for line in story.splitlines())
    for shown in (
        "[azure]",
        "tenant_id = 3f1c2b7e",
        "AF429 Too many requests",
        "the gzip stream is cut short",
        "> Logstash has taken 54 lines",
        '> {"CreationTime":"',
        "exit code 0",
        "rules of the API broken: 0",
        "answered by a fault: 3",
        "tests/demo --logstash HOST:PORT",
    ):
        assert shown in " ".join(done.stdout.split())


@pytest.fixture
def story(
    tmp_path: Path, logstash: LogstashStandIn, capsys: pytest.CaptureFixture[str]
) -> tuple[Demo, list[str], str]:
    """The demo told in this process, what it found wrong, and what it printed."""
    with Emulator(page_size=demo.PAGE_SIZE) as office:
        told = Demo(office, tmp_path, logstash, logstash.address)
        wrong = demo.tell_story(told)
        return told, wrong, capsys.readouterr().out


def test_what_the_demo_says_is_what_the_stand_ins_saw(
    story: tuple[Demo, list[str], str],
) -> None:
    told, wrong, out = story
    assert wrong == []
    journal = told.office.journal
    assert journal.violations == []
    published = {one for known in told.published.values() for one in known}
    assert len(published) == EVENTS
    assert set(journal.ids_served) == published
    assert told.sink is not None
    taken = Counter(told.sink.taken_ids())
    assert set(taken) == published
    # The overlap brings the blobs of the first poll once more, and none a third time.
    assert set(taken.values()) == {1, 2}
    met = sorted(one.fault for one in journal.requests if one.fault)
    assert met == ["cut_gzip", "reset", "throttle"]
    assert any(one.next_page for one in journal.of("content"))
    [last] = [line.split() for line in out.splitlines() if line.startswith("all ")]
    assert last == ["all", "22", str(EVENTS), str(taken.total()), str(EVENTS)]


def test_an_event_that_is_missing_is_noticed(
    story: tuple[Demo, list[str], str],
) -> None:
    told, _, _ = story
    told.publish("Audit.Exchange", 2, timedelta(seconds=1))
    assert told.missing() == ["Audit.Exchange: 2 events are missing or changed"]


def test_a_line_that_is_no_event_is_noticed(
    story: tuple[Demo, list[str], str],
) -> None:
    told, _, _ = story
    known = told.published["Audit.SharePoint"]
    known[next(iter(known))] += " "
    assert told.missing() == [
        "Audit.SharePoint: 1 events are missing or changed",
        "1 lines arrived that are no event",
    ]


def test_a_logstash_that_is_given_gets_the_events(logstash: LogstashStandIn) -> None:
    done = run_demo("--logstash", logstash.address)
    assert done.returncode == 0
    assert f"OK: all {EVENTS} events were taken by that Logstash" in done.stdout
    assert "> Logstash has taken" not in done.stdout
    assert len(set(logstash.taken_ids())) == EVENTS


def test_a_logstash_that_is_not_there_is_said_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert tempfile.gettempdir()
    done = run_demo("--logstash", "127.0.0.1:1")
    assert done.returncode == 1
    assert "FAILED: the first poll ended with 5, not 0" in done.stdout
    assert "Next, with a tenant" not in done.stdout
    assert list(tmp_path.iterdir()) == []


# -- the script that makes .venv


def run_venv(
    folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """tests/venv, in a repository of its own without a .venv."""
    (folder / "tests").mkdir()
    script = folder / "tests" / "venv"
    script.write_bytes((TESTS / "venv").read_bytes())
    script.chmod(0o755)
    return subprocess.run(
        ["bash", str(script)],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fake_python(folder: Path, *, version: str, refuses: str) -> str:
    """An interpreter of that version which cannot do what has this word in it."""
    program = folder / "python-fake"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in\n*--version*) echo "Python {version}" ;;\n'
        f"*{refuses}*) exit 1 ;;\nesac\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_a_python_that_is_too_old_is_said(tmp_path: Path) -> None:
    python = fake_python(tmp_path, version="3.9.2", refuses="version_info")
    done = run_venv(tmp_path, {"PYTHON": python})
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"tests/venv: Python 3.11 or newer is needed, and {python} is Python 3.9.2"
    )
    assert "brew install python" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_python_without_ensurepip_is_said(tmp_path: Path) -> None:
    python = fake_python(tmp_path, version="3.11.2", refuses="ensurepip")
    done = run_venv(tmp_path, {"PYTHON": python})
    assert done.returncode == 1
    assert done.stderr == (
        f"tests/venv: {python} has no ensurepip, so it cannot make .venv; on Debian "
        "and Ubuntu: apt install python3-venv\n"
    )
    assert not (tmp_path / ".venv").exists()


def test_a_venv_that_is_complete_is_left_as_it_is(tmp_path: Path) -> None:
    """No output, and pip is not called: it would need the network."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "requirements.txt").write_text("")
    first = subprocess.run(
        [
            str(python),
            "-c",
            "import hashlib; print(hashlib.sha256(b'\\0').hexdigest())",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / ".venv/.requirements").write_text(first.stdout)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/requirements.txt").write_text("")
    (tmp_path / "tests/venv").write_bytes((TESTS / "venv").read_bytes())
    done = subprocess.run(
        ["bash", str(tmp_path / "tests/venv")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
