"""ApplicationDisplayName: the right name, in the event's own text, never in its way."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import DIRECTORY, Site
from emulator import Emulator, events, faults
from emulator.faults import Fault
from hypothesis import given
from hypothesis import strategies as st
from logstash_stand_in import LogstashStandIn

import o365_poller as poller
from o365_poller import (
    AnswerError,
    ApplicationNames,
    EventSlicer,
    Judgement,
    Verdict,
)

TENANT = "3f1c2b7e-0000-4000-8000-00000000a001"
PAYROLL = "0a0a0a0a-1b1b-4c2c-8d3d-4e4e4e4e4e4e"
UNKNOWN = "0b0b0b0b-1b1b-4c2c-8d3d-4e4e4e4e4e4e"
PORTAL = "c44b4083-3bb0-49c1-b47d-974e53cbdf3c"
FACTS = Path("/work/shared/office365-management-api.md")


def publish(office: Emulator, *app_ids: str) -> None:
    """A blob of a minute ago with one event of each application."""
    created = datetime.now(UTC) - timedelta(minutes=1)
    made = [
        events.make_event("login", n, ApplicationId=app_id)
        for n, app_id in enumerate(app_ids, 1)
    ]
    office.publish(DIRECTORY, made, created=created)


def names_of(logstash: LogstashStandIn) -> list[str | None]:
    """The names that the newest taken lines carry, in order of their events."""
    found = [json.loads(line) for line in logstash.lines]
    logstash.clear()
    found.sort(key=lambda event: str(event["Id"]))
    order = {events.event_id("login", n): n for n in range(1, 100)}
    found.sort(key=lambda event: order.get(event["Id"], 0))
    return [event.get("ApplicationDisplayName") for event in found]


def named(site: Site) -> Site:
    site.set("graph", application_names="yes")
    return site


# -- the text of an event


class FakeDirectory:
    """Knows some names; may hang or raise."""

    def __init__(
        self,
        names: Mapping[str, str] | None = None,
        *,
        error: Exception | None = None,
        hangs: threading.Event | None = None,
    ) -> None:
        self.known = dict(names or {})
        self.error = error
        self.hangs = hangs
        self.asked: list[list[str]] = []

    def names(self, app_ids: Sequence[str]) -> dict[str, str]:
        self.asked.append(list(app_ids))
        if self.hangs:
            self.hangs.wait(20)
        if self.error:
            raise self.error
        return {app_id: self.known.get(app_id, "") for app_id in app_ids}


def make(directory: FakeDirectory, file: Path) -> ApplicationNames:
    return ApplicationNames(directory.names, file, TENANT)


def cache_text(name: str, asked: float, quiet_until: float = 0.0) -> str:
    """A cache file that knows the payroll application."""
    applications = {PAYROLL: {"name": name, "asked": asked}}
    whole = {
        "tenant_id": TENANT,
        "quiet_until": quiet_until,
        "applications": applications,
    }
    return json.dumps(whole)


def knowing(tmp_path: Path, name: str) -> ApplicationNames:
    """Names with the payroll application in their cache."""
    file = tmp_path / "names.json"
    file.write_text(cache_text(name, time.time()))
    return make(FakeDirectory(), file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f'{{"b": 1.50,"ApplicationId":"{PAYROLL}","b":2}}',
            f'{{"b": 1.50,"ApplicationId":"{PAYROLL}","b":2,"ApplicationDisplayName":"Pay"}}',
        ),
        (
            f'{{ "ApplicationId" : "{PAYROLL.upper()}" \t}}',
            f'{{ "ApplicationId" : "{PAYROLL.upper()}" \t,"ApplicationDisplayName":"Pay"}}',
        ),
    ],
)
def test_the_name_is_the_last_member_and_the_rest_stays(
    tmp_path: Path, text: str, expected: str
) -> None:
    slicer = EventSlicer(knowing(tmp_path, "Pay").decorate)
    assert slicer.feed(f"[{text}]", last=True) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"ApplicationId":""}',
        '{"ApplicationId":null}',
        '{"ApplicationId":5}',
        f'{{"ApplicationId":["{PAYROLL}"]}}',
        f'{{"x":{{"ApplicationId":"{PAYROLL}"}}}}',
        f'{{"ApplicationId":"{UNKNOWN}"}}',
        '{"ApplicationId":"no such form\'"}',
        f'{{"ApplicationId":"{PAYROLL}","ApplicationDisplayName":"theirs"}}',
        f'{{"ApplicationId":"{PAYROLL}","ApplicationDisplayName":null}}',
        f'{{"ApplicationId":"{PAYROLL}","d":{"[" * 100_000}{"]" * 100_000}}}',
    ],
    ids=range(11),
)
def test_other_events_stay_as_they_are(tmp_path: Path, text: str) -> None:
    slicer = EventSlicer(knowing(tmp_path, "Pay").decorate)
    assert slicer.feed(f"[{text}]", last=True) == [text]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> ApplicationNames:
    return make(FakeDirectory(), tmp_path_factory.mktemp("names") / "names.json")


@given(
    st.dictionaries(
        st.text().filter(lambda name: name != "ApplicationDisplayName"),
        st.none() | st.booleans() | st.text() | st.integers(),
    ),
    st.text(min_size=1),
    st.sampled_from(["", " ", "\n  "]),
)
def test_any_name_makes_one_line_of_ascii_json(
    names: ApplicationNames, other: dict[str, Any], name: str, blank: str
) -> None:
    event = other | {"ApplicationId": PAYROLL}
    names._known[PAYROLL] = (name, time.time())
    text = json.dumps(event)[:-1] + blank + "}"
    more = names.decorate(event, text)
    assert more.startswith(text[:-1])
    assert json.loads(more) == event | {"ApplicationDisplayName": name}
    added = more[len(text) - 1 :]
    assert added.isascii()
    assert "\n" not in added


def test_microsoft_s_own_are_those_of_the_fact_sheet() -> None:
    known = poller.WELL_KNOWN_APPLICATIONS
    assert len(known) == 45
    assert known[PORTAL] == "Azure Portal"
    assert all(poller.GUID.fullmatch(key) and key == key.lower() for key in known)
    if FACTS.exists():
        rows = re.findall(r"^\| ([0-9a-f-]{36}) \| (.*) \|$", FACTS.read_text(), re.M)
        assert known == dict(rows)


# -- asking, on the side


def test_names_are_asked_in_batches_and_known_ones_are_not(tmp_path: Path) -> None:
    ids = [f"{n:08d}-1b1b-4c2c-8d3d-4e4e4e4e4e4e" for n in range(40)]
    directory = FakeDirectory({ids[3]: "Three"})
    names = make(directory, tmp_path / "names.json")
    for app_id in [*ids, *ids, PORTAL, "not a guid", ids[0].upper()]:
        names.decorate({"ApplicationId": app_id}, "{}")
    names.finish()
    asked = [app_id for batch in directory.asked for app_id in batch]
    assert sorted(asked) == ids
    assert max(map(len, directory.asked)) <= 15
    assert len(directory.asked) <= 4
    again = make(directory, tmp_path / "names.json")
    assert again.decorate({"ApplicationId": ids[3]}, "{}") == (
        '{,"ApplicationDisplayName":"Three"}'
    )
    for app_id in ids:
        again.decorate({"ApplicationId": app_id}, "{}")
    again.finish()
    assert len(directory.asked) <= 4, "positive and negative answers are kept"


@pytest.mark.parametrize(
    ("name", "age", "asked"),
    [
        ("Pay", timedelta(days=29), False),
        ("Pay", timedelta(days=31), True),
        ("", timedelta(hours=23), False),
        ("", timedelta(hours=25), True),
        ("Pay", timedelta(days=-1), True),
    ],
)
def test_answers_have_an_age_and_an_old_name_serves_meanwhile(
    tmp_path: Path, name: str, age: timedelta, asked: bool
) -> None:
    then = time.time() - age.total_seconds()
    file = tmp_path / "names.json"
    file.write_text(cache_text(name, then))
    directory = FakeDirectory({PAYROLL: "New"})
    names = make(directory, file)
    text = names.decorate({"ApplicationId": PAYROLL}, '{"a":1}')
    assert ("Pay" in text) == bool(name)
    names.finish()
    assert bool(directory.asked) == asked
    told = json.loads(file.read_text())["applications"][PAYROLL]["name"]
    assert told == ("New" if asked else name)


def test_no_event_waits_for_graph_and_the_end_waits_but_a_little(
    tmp_path: Path,
) -> None:
    hangs = threading.Event()
    directory = FakeDirectory(hangs=hangs)
    names = make(directory, tmp_path / "names.json")
    began = time.monotonic()
    for n in range(1000):
        app_id = f"{n:08d}-1b1b-4c2c-8d3d-4e4e4e4e4e4e"
        names.decorate({"ApplicationId": app_id}, "{}")
    assert time.monotonic() - began < 1
    names.finish(0.2)
    assert time.monotonic() - began < 2
    # The next runs leave it alone for a while: no run is to wait each time.
    after = make(directory, tmp_path / "names.json")
    count = len(directory.asked)
    after.decorate({"ApplicationId": PAYROLL}, "{}")
    after.finish()
    assert len(directory.asked) == count
    hangs.set()


@pytest.mark.parametrize(
    "error",
    [
        AnswerError(Judgement(Verdict.REFUSED, "HTTP 403")),
        AnswerError(Judgement(Verdict.THROTTLED, "HTTP 429", 60.0)),
        poller.SourceError("down", "nothing", "nothing"),
        poller.TokenError("no token", "nothing", "nothing"),
        RecursionError(),
        KeyError("x"),
    ],
)
def test_no_exception_escapes_and_the_rest_of_the_run_does_not_ask(
    tmp_path: Path, error: Exception
) -> None:
    directory = FakeDirectory(error=error)
    names = make(directory, tmp_path / "names.json")
    names.decorate({"ApplicationId": PAYROLL}, "{}")
    names.finish()
    assert names.decorate({"ApplicationId": UNKNOWN}, "{}") == "{}"
    names.finish()
    assert len(directory.asked) == 1
    refused = isinstance(error, AnswerError) and (
        error.judgement.verdict is Verdict.REFUSED
    )
    assert ("Application.Read.All" in names.trouble) == refused


@pytest.mark.parametrize("pause", [1e9, 1e308, float("inf"), float("nan"), -1e308])
def test_an_absurd_retry_after_keeps_no_run_from_asking_for_long(
    tmp_path: Path, pause: float
) -> None:
    error = AnswerError(Judgement(Verdict.THROTTLED, "HTTP 429", pause))
    names = make(FakeDirectory(error=error), tmp_path / "names.json")
    names.decorate({"ApplicationId": PAYROLL}, "{}")
    names.finish()
    told = json.loads((tmp_path / "names.json").read_text())
    assert not told["quiet_until"] > time.time() + 900
    after = make(FakeDirectory(), tmp_path / "names.json")
    assert not after._quiet_until > time.time() + 900


# -- the cache on disk


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\0\xff",
        b"[]",
        b'{"applications":{}}',
        b"[" * 100_000,
        b'{"tenant_id":"%s","quiet_until":0,"applications":{"x":{"name":1}}}'
        % TENANT.encode(),
        b'{"tenant_id":"other","quiet_until":0,"applications":{}}',
        b'{"tenant_id":"%s","quiet_until":1%s,"applications":{}}'
        % (TENANT.encode(), b"0" * 400),  # more than a float holds
    ],
    ids=range(8),
)
def test_a_damaged_cache_is_ignored_said_and_written_anew(
    site: Site, damage: bytes
) -> None:
    cache = site.folder / "config.names.json"
    cache.write_bytes(damage)
    publish(site.office, PAYROLL)
    result = named(site).run()
    assert (result.code, result.out, result.err) == (0, "", "")
    assert "INFO    [" in site.log
    assert f"cache of application names {cache} is not used: " in site.log
    told = json.loads(cache.read_text())
    assert told["applications"][PAYROLL]["name"] == "Emulated payroll"


def test_the_cache_is_for_this_user_and_replaced_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(site.office, PAYROLL, UNKNOWN)
    named(site).run()
    file = site.folder / "config.names.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in site.folder.glob("*.new")] == []
    before = file.read_bytes()
    umask = os.umask(0)
    try:
        poller.replace_file(site.folder / "other.json", "{}")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((site.folder / "other.json").stat().st_mode) == 0o600

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("o365_poller.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        poller.replace_file(file, "{}")
    assert file.read_bytes() == before
    assert [each.name for each in site.folder.glob("*.new")] == []


def test_a_cache_that_cannot_be_written_changes_nothing(site: Site) -> None:
    publish(site.office, PAYROLL)
    blocked = site.folder / "blocked"
    blocked.mkdir()
    site.set("graph", cache_file=str(blocked / "names.json"))
    process = named(site).run()
    assert process.code == 0
    (blocked / "names.json").unlink()
    blocked.rename(site.folder / "gone")
    # Configured and not there is a wrong configuration; it may vanish in mid-run too.
    names = make(FakeDirectory({PAYROLL: "Pay"}), blocked / "names.json")
    names.decorate({"ApplicationId": PAYROLL}, "{}")
    names.finish()


# -- against Graph


def test_the_next_run_knows_the_names(site: Site, logstash: LogstashStandIn) -> None:
    publish(site.office, PAYROLL, UNKNOWN, PORTAL, PAYROLL.upper())
    named(site)
    assert site.run().code == 0
    first = names_of(logstash)
    assert first[2] == "Azure Portal", "Microsoft's own need no Graph"
    assert site.run().code == 0
    payroll = "Emulated payroll"
    assert names_of(logstash) == [payroll, None, "Azure Portal", payroll]
    asked = len(site.office.journal.of("graph"))
    assert site.run().code == 0
    assert len(site.office.journal.of("graph")) == asked, "all of it is kept"
    assert site.office.journal.violations == []


def test_ids_travel_together(site: Site, logstash: LogstashStandIn) -> None:
    ids = [f"{n:08d}-1b1b-4c2c-8d3d-4e4e4e4e4e4e" for n in range(20)]
    site.office.graph.names |= {app_id: f"App {app_id[:8]}" for app_id in ids}
    publish(site.office, *ids, UNKNOWN)
    named(site).run()
    asked = site.office.journal.of("graph")
    assert {one.status for one in asked} == {200}
    assert len(asked) <= 3, "the first alone, the others in batches of 15"
    logstash.clear()
    site.run()
    assert names_of(logstash) == [f"App {app_id[:8]}" for app_id in ids] + [None]
    assert len(site.office.journal.of("graph")) == len(asked)


def test_where_graph_takes_no_filter_each_is_asked_for_by_its_key(
    site: Site, logstash: LogstashStandIn
) -> None:
    site.office.fail(
        "graph", faults.status(400), match=lambda ask: bool(ask.value("$filter"))
    )
    publish(site.office, PAYROLL, UNKNOWN)
    assert named(site).run().code == 0
    logstash.clear()
    assert site.run().code == 0
    assert names_of(logstash) == ["Emulated payroll", None]
    asked = [one.status for one in site.office.journal.of("graph")]
    assert sorted(asked) in ([200, 400, 404], [200, 400, 400, 404])


def test_the_permission_that_is_missing_is_noted_once(
    site: Site, logstash: LogstashStandIn
) -> None:
    site.office.options.graph_roles = ()
    publish(site.office, PAYROLL, PORTAL)
    first, second = named(site).run(), site.run()
    assert (first.code, second.code) == (0, 0)
    assert "Application.Read.All" in first.err
    assert first.err.count("\n") == 1
    assert second.err == ""
    assert names_of(logstash) == [None, None, "Azure Portal", "Azure Portal"]


@pytest.mark.parametrize(
    "fault",
    [
        faults.throttle(429, 60),
        faults.status(503, style="html"),
        faults.status(404),
        faults.redirect("trap"),
        faults.html(),
        faults.half_json(),
        faults.not_array([1]),
        faults.reset(),
        faults.hang(),
    ],
    ids=lambda fault: fault.name,
)
def test_whatever_graph_does_the_events_arrive_in_time(
    site: Site, logstash: LogstashStandIn, fault: Fault
) -> None:
    site.office.fail("graph", fault)
    publish(site.office, PAYROLL, PORTAL)
    began = time.monotonic()
    result = named(site).run()
    assert time.monotonic() - began < 8
    assert (result.code, result.err) == (0, "")
    assert names_of(logstash) == [None, "Azure Portal"]
    assert site.office.trap.requests == []


def test_without_the_wish_graph_is_not_asked(
    site: Site, logstash: LogstashStandIn
) -> None:
    publish(site.office, PAYROLL, PORTAL)
    site.run()
    assert names_of(logstash) == [None, None]
    assert site.office.journal.of("graph") == []
    assert not (site.folder / "config.names.json").exists()
