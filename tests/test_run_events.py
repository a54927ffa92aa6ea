"""run_events: one more line about the run itself."""

from __future__ import annotations

import json
import socket
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Any

from conftest import DIRECTORY, Site
from emulator import events, faults
from logstash_stand_in import LogstashStandIn, refuse, reset_at_end, take

import o365_poller as poller


def publish(site: Site, count: int) -> None:
    created = datetime.now(UTC) - timedelta(minutes=1)
    site.office.publish(DIRECTORY, events.make_events(count), created=created)


def told(logstash: LogstashStandIn) -> list[dict[str, Any]]:
    """What the lines about runs say."""
    lines = [json.loads(line) for line in logstash.lines]
    return [line["o365_poller"] for line in lines if "o365_poller" in line]


def test_the_line_says_what_the_run_did(site: Site, logstash: LogstashStandIn) -> None:
    site.set("poll", content_types=f"{DIRECTORY}, DLP.All")
    site.set("logstash", run_events="yes")
    site.office.enable("DLP.All")
    publish(site, 3)
    before = datetime.now(UTC).replace(microsecond=0)
    assert site.run().code == 0
    (line,) = told(logstash)
    start, end = (datetime.fromisoformat(line[key]) for key in ("start", "end"))
    assert line["start"].endswith("Z")
    assert line["end"].endswith("Z")
    assert before <= start <= end <= datetime.now(UTC)
    assert line["exit"] == 0
    assert line["exit_name"] == "OK"
    assert line["host"] == socket.gethostname()
    assert line["version"] == poller.__version__
    assert 0 < line["seconds"] < 60
    directory, dlp = line["content_types"]
    assert directory["content_type"] == DIRECTORY
    assert directory["window"]["end"] >= directory["window"]["start"]
    assert directory["window"]["end"].endswith("Z")
    counted = {key: directory[key] for key in ("blobs", "events", "pending", "lost")}
    assert counted == {"blobs": 1, "events": 3, "pending": 0, "lost": 0}
    assert 0 <= directory["lag_seconds"] < 60
    assert dlp["content_type"] == "DLP.All"
    assert dlp["blobs"] == 0


def test_it_has_a_connection_of_its_own_after_the_events(
    site: Site, logstash: LogstashStandIn
) -> None:
    site.set("logstash", run_events="yes")
    publish(site, 3)
    site.run()
    counts = [len(one.lines) for one in logstash.connections]
    assert counts == [3, 1]
    assert b'"o365_poller"' in logstash.connections[1].lines[0]
    with sqlite3.connect(site.state_file) as state:
        assert state.execute("SELECT count(*) FROM watermark").fetchone() == (1,)
    state.close()


def test_empty_and_refused_polls_send_it_too(
    site: Site, logstash: LogstashStandIn
) -> None:
    site.set("logstash", run_events="yes")
    assert site.run().code == 0
    site.office.options.roles = ()
    assert site.run().code == 4
    site.office.fail("token", faults.aadsts(700016))
    assert site.run().code == 4
    empty, no_role, no_token = told(logstash)
    assert (empty["exit"], no_role["exit"], no_token["exit"]) == (0, 4, 4)
    assert no_token["exit_name"] == "REFUSED"
    # A refused poll has no window, and its lag grows.
    row = no_token["content_types"][0]
    assert "window" not in row
    assert row["lag_seconds"] >= empty["content_types"][0]["lag_seconds"]


def test_its_failure_changes_nothing(site: Site, logstash: LogstashStandIn) -> None:
    site.set("logstash", run_events="yes")
    publish(site, 3)
    logstash.script = [take(), reset_at_end(), reset_at_end()]
    result = site.run()
    assert (result.code, result.err) == (0, "")
    assert "the line about this run (run_events) was not delivered" in site.log
    assert told(logstash) == []
    # Without an event, nothing but the line wants a Logstash.
    site.office.activity.blobs.clear()
    logstash.mode = refuse()
    result = site.run()
    assert (result.code, result.err) == (0, "")


def test_only_a_poll_that_was_asked_to_sends_it(
    site: Site, logstash: LogstashStandIn
) -> None:
    publish(site, 3)
    site.run()
    site.set("logstash", run_events="yes")
    site.run("--start", "1h")
    assert site.run("--stdout").out.count("o365_poller") == 0
    site.run("--check")
    site.run("--end", "1h")
    assert told(logstash) == []
