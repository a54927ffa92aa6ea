"""Issue 2, points 3 to 5: listings, blobs, faults and the text of events."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta
from typing import Any

import pytest
from conftest import DIRECTORY, Site
from cron_support import (
    EXCHANGE,
    HURRY,
    assert_delivered,
    assert_quiet,
    ids,
    publish,
    rows,
    run_changed,
    set_watermark,
    spans,
    taken,
    watermark,
    windows,
)
from emulator import faults
from emulator.events import ZOO, make_events

# -- windows


def test_a_window_is_two_whole_utc_seconds_without_a_zone(site: Site) -> None:
    assert_quiet(site.run())
    [(start, end)] = windows(site)
    for text in (start, end):
        assert f"{datetime.fromisoformat(text):%Y-%m-%dT%H:%M:%S}" == text
    assert spans(site) == [timedelta(minutes=10)]
    assert site.office.journal.violations == []


def test_the_second_poll_begins_where_the_first_ended_less_the_overlap(
    site: Site,
) -> None:
    site.set("poll", window_minutes="2", overlap_minutes="3")
    assert_quiet(site.run())
    first = watermark(site)
    assert first is not None
    assert f"{first:%Y-%m-%dT%H:%M:%S}" == windows(site)[0][1]
    assert_quiet(site.run())
    assert windows(site)[1][0] == f"{first - timedelta(minutes=3):%Y-%m-%dT%H:%M:%S}"


def test_the_overlap_takes_late_blobs_and_sends_the_known_ones_again(
    site: Site,
) -> None:
    """Logstash gives the Id as document_id; a blob listed again may have grown."""
    early = publish(site, minutes=4)
    assert_quiet(site.run())
    late = publish(site, minutes=3)
    assert_quiet(site.run())
    assert taken(site) == ids(early + late)


def test_a_catch_up_goes_in_slices_shorter_than_a_day_oldest_first(site: Site) -> None:
    set_watermark(site, timedelta(days=3))
    blobs = [
        blob
        for hours in (71, 50, 30, 20, 1)
        for blob in publish(site, 1, minutes=60 * hours)
    ]
    assert_quiet(site.run())
    asked = windows(site)
    assert len(asked) >= 4
    assert [a[1] for a in asked[:-1]] == [b[0] for b in asked[1:]]
    assert all(span < timedelta(hours=24) for span in spans(site))
    assert_delivered(site, blobs)


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_of_the_listing_makes_no_difference(site: Site, order: str) -> None:
    site.office.options.listing_order = order
    site.office.page_size = 3
    blobs = publish(site, 10)
    assert_quiet(site.run())
    assert_delivered(site, blobs)


# -- pages


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"next_page_header": "NextPageUrl"},
        {"next_page_header": "nextpageuri"},
        {"next_page_header": "NEXTPAGEURI"},
        {"next_page_path": "v1.0"},
        {"next_page_publisher": True},
        {"next_page_lower_case": True},
    ],
    ids=str,
)
def test_pages_are_followed_to_the_end_in_every_variant(
    site: Site, options: dict[str, Any]
) -> None:
    for name, value in options.items():
        setattr(site.office.options, name, value)
    site.office.page_size = 3
    blobs = publish(site, 10)
    assert_quiet(site.run())
    assert len(site.office.journal.of("content")) == 4
    assert_delivered(site, blobs)


@pytest.mark.parametrize("kind", ["empty_page", "twice"])
def test_an_odd_page_loses_nothing(site: Site, kind: str) -> None:
    blobs = publish(site, 4)
    site.office.fail("content", faults.next_page(kind), times=1)
    result = site.run()
    assert result.code in (0, 3)
    if result.code == 3:
        site.office.heal()
        assert_quiet(site.run())
    assert taken(site) == ids(blobs)
    assert site.office.trap.requests == []


HOSTILE = [
    "other_host",
    "http",
    "user_info",
    "other_port",
    "other_tenant",
    "relative",
    "garbage",
]


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_next_page_elsewhere_is_refused_and_said_and_sees_no_token(
    site: Site, kind: str
) -> None:
    blobs = publish(site)
    site.office.fail("content", faults.next_page(kind), times=1)
    result = site.run()
    assert result.code == 3
    assert "names a next page outside this tenant's feed, which was not asked: " in (
        result.err
    )
    assert site.office.trap.requests == []
    assert taken(site) == ids(blobs)
    site.office.heal()
    assert_quiet(site.run())
    assert site.office.trap.requests == []


@pytest.mark.parametrize("kind", ["loop", "endless_same", "endless_empty"])
def test_a_circle_of_pages_ends_and_the_span_stays_open(site: Site, kind: str) -> None:
    blobs = publish(site)
    site.office.fail("content", faults.next_page(kind))
    result = site.run()
    assert result.code == 3
    assert "the pages go in a circle" in result.err
    assert len(site.office.journal.of("content")) < 30
    first = watermark(site)
    site.office.heal()
    site.logstash.clear()
    assert_quiet(site.run())
    assert taken(site) <= ids(blobs)
    assert rows(site, "SELECT * FROM slice") == []
    assert (watermark(site) or first) is not None


def test_a_page_token_that_has_run_out_begins_the_listing_again(site: Site) -> None:
    site.office.page_size = 2
    blobs = publish(site, 5)
    site.office.fail("content", faults.af("AF20031"), times=1, after=1)
    assert_quiet(site.run())
    assert taken(site) == ids(blobs)


def test_a_blob_listed_twice_is_fetched_once(site: Site) -> None:
    blobs = publish(site, 3)
    site.office.fail("content", faults.listing("twice"))
    assert_quiet(site.run())
    assert_delivered(site, blobs)
    assert len(site.office.journal.of("blob")) == 3


# -- addresses of blobs


@pytest.mark.parametrize(
    "uri",
    [
        "http://localhost/{other}/activity/feed/audit/{id}",
        "{trap}/api/v1.0/{tenant}/activity/feed/audit/{id}",
        "https://localhost@{trap_host}/api/v1.0/{tenant}/activity/feed/audit/{id}",
        "{api}/api/v1.0/{other}/activity/feed/audit/{id}",
        "{api}@{trap_host}/api/v1.0/{tenant}/activity/feed/audit/{id}",
        "/api/v1.0/{tenant}/activity/feed/audit/{id}",
        "garbage",
        "",
    ],
)
def test_an_odd_content_uri_is_rebuilt_and_nobody_else_sees_the_token(
    site: Site, uri: str
) -> None:
    office = site.office
    content_id = "20260523173500123000456$20260523173712789000456$audit$emea0036"
    made = uri.format(
        other=office.other_tenant_id,
        tenant=office.tenant_id,
        api=office.api_root,
        trap=office.trap_root,
        trap_host=office.trap_root.removeprefix("https://"),
        id=content_id,
    )
    blob = office.publish(
        DIRECTORY,
        make_events(2),
        created=office.clock.now() - timedelta(minutes=2),
        content_id=content_id,
        content_uri=made or "x",
    )
    if not uri:
        office.fail("content", faults.listing("without", "contentUri"))
    assert_quiet(site.run())
    assert_delivered(site, [blob])
    assert office.trap.requests == []


# -- redirects


@pytest.mark.parametrize("operation", ["discovery", "token", "list", "content", "blob"])
@pytest.mark.parametrize("to", ["trap", "self"])
def test_no_redirect_is_ever_followed(site: Site, operation: str, to: str) -> None:
    publish(site, 1)
    site.office.fail(operation, faults.redirect(to), times=1)
    assert "HTTP 302" in site.run("-vv").err
    assert site.office.trap.requests == []
    assert not [v for v in site.office.journal.violations if "redirect" in v]
    site.office.heal()
    assert_quiet(site.run())


# -- faults that pass

PASSING = [
    faults.status(500),
    faults.status(502, style="html"),
    faults.status(503, style="empty"),
    faults.status(504),
    faults.status(408),
    faults.throttle(403),
    faults.throttle(429),
    faults.throttle(403, 1),
    faults.throttle(429, 1, as_date=True),
    faults.status(429, style="single_quotes", af="AF429"),
    faults.reset(),
    faults.close_without_answer(),
    faults.reset_mid_body(),
    faults.short_body(),
    faults.bad_chunking(),
    faults.cut_gzip(),
    faults.half_json(),
    faults.html(),
    faults.empty_body(),
    faults.not_utf8(),
    faults.raw('{"Message":"x"}'),
    faults.af("AF50000"),
    faults.af("AF50005"),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.name)
def test_a_fault_that_passes_is_ridden_out_in_listing_and_blob(
    site: Site, fault: faults.Fault
) -> None:
    blobs = publish(site, 3, per=40)
    site.office.fail("content", fault, times=1)
    site.office.fail("blob", fault, times=2)
    assert_quiet(site.run())
    assert_delivered(site, blobs)
    assert site.office.journal.impatient == []


@pytest.mark.parametrize(
    "value", ["abc", "-5", "1e9", "", "+7", "0x10", "\u00b2", "9" * 19, "9" * 5000]
)
def test_a_content_length_that_is_none_loses_nothing(site: Site, value: str) -> None:
    """The body is read to its end, or it counts as cut short and is asked for again."""
    blobs = publish(site, 1)
    operations = ("list", "content", "blob")
    for operation in operations:
        site.office.fail(operation, faults.odd_length(value), times=1)
    assert_quiet(run_changed(site, HURRY))
    assert_delivered(site, blobs)
    # "+7" is a number to Python, and of 5,000 digits it reads none.
    cut = value in ("+7", "9" * 19)
    asked = [len(site.office.journal.of(operation)) for operation in operations]
    assert asked == [1 + cut] * 3


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_request_that_hangs_is_tried_again_after_timeout_seconds(
    site: Site, part: str
) -> None:
    site.set("poll", timeout_seconds="0.5")
    blobs = publish(site, 2)
    site.office.fail("content", faults.hang(part=part), times=1)
    site.office.fail("blob", faults.hang(part=part), times=1)
    assert_quiet(site.run())
    assert_delivered(site, blobs)


@pytest.mark.parametrize("operation", ["content", "blob"])
def test_a_dripping_answer_ends_after_ten_time_outs(site: Site, operation: str) -> None:
    site.set("poll", timeout_seconds="0.4")
    blobs = publish(site, 1, per=4)
    site.office.fail(operation, faults.drip(0.05), times=1)
    began = time.monotonic()
    assert_quiet(site.run())
    assert 3.5 < time.monotonic() - began < 25
    assert_delivered(site, blobs)


def test_a_body_without_end_is_given_up(site: Site) -> None:
    """256 MB of it, once; it stays pending and is named."""
    good, bad = publish(site, 2)
    event = json.dumps({"Id": "x", "Fill": " " * 60_000})
    site.office.fail("blob", faults.endless_body(event), match=bad.content_id, times=1)
    result = site.run()
    assert result.code in (0, 3)
    assert ids([good]) <= taken(site)


def test_a_blob_that_unpacks_to_more_than_256_mb_waits_and_is_named(site: Site) -> None:
    good, bad = publish(site, 2)
    site.office.fail("blob", faults.gzip_bomb(300), match=bad.content_id)
    result = site.run()
    assert result.code == 3
    assert f"blob {bad.content_id}: more than 256 MB unpacked; it waits" in result.err
    assert taken(site) == ids([good])
    assert len([r for r in site.office.journal.of("blob") if r.content_id == bad.content_id]) == 1  # fmt: skip


def test_throttling_slows_all_requests_down(site: Site) -> None:
    blobs = publish(site, 8)
    site.set("poll", workers="8")
    site.office.fail("blob", faults.throttle(429, 2), times=1)
    assert_quiet(site.run())
    asked = site.office.journal.of("blob")
    throttled = next(r for r in asked if r.status == 429)
    later = [r.started for r in asked if r.started > throttled.ended + 0.3]
    assert later
    assert min(later) - throttled.ended > 1.5
    assert_delivered(site, blobs)


def test_blobs_are_fetched_in_parallel_by_no_more_than_the_workers(site: Site) -> None:
    site.set("poll", workers="3")
    site.office.latency = 0.1
    blobs = publish(site, 12)
    assert_quiet(site.run())
    assert site.office.journal.high_water in (2, 3, 4)
    assert_delivered(site, blobs)


def test_one_content_types_trouble_does_not_stop_the_others(site: Site) -> None:
    site.office.enable(EXCHANGE)
    blobs = publish(site)
    publish(site, content_type=EXCHANGE)
    site.office.fail("content", faults.af("AF20020"), match=EXCHANGE)
    result = site.run("--content-type", EXCHANGE, "--content-type", DIRECTORY)
    assert result.code == 4
    assert taken(site) == ids(blobs)
    assert watermark(site, DIRECTORY)


@pytest.mark.parametrize("code", ["AF20030", "AF20055"])
def test_a_refused_window_speaks_of_clocks_and_stays_open(
    site: Site, code: str
) -> None:
    blobs = publish(site)
    site.office.fail("content", faults.af(code), times=1)
    result = site.run()
    assert result.code == 3
    assert "the times are refused, so a clock may be wrong" in result.err
    assert_quiet(site.run())
    assert_delivered(site, blobs)


# -- the text of events


def flat(event: str) -> str:
    return event.replace("\r", " ").replace("\n", " ")


@pytest.mark.parametrize("dress", ["plain", "bom", "pretty"])
def test_every_event_of_the_zoo_arrives_as_it_was_sent(site: Site, dress: str) -> None:
    """3 MB, 300 levels, lone surrogates, duplicate keys, numbers over 2^53 and more."""
    site.office.publish(
        DIRECTORY,
        ZOO,
        created=site.office.clock.now() - timedelta(minutes=2),
        bom=dress == "bom",
        pretty=dress == "pretty",
    )
    assert_quiet(site.run())
    assert [line.decode() for line in site.logstash.lines] == [flat(e) for e in ZOO]
    assert all(c.remainder == b"" for c in site.logstash.connections)


def test_an_empty_blob_is_delivered_without_a_line(site: Site) -> None:
    site.office.publish(
        DIRECTORY, [], created=site.office.clock.now() - timedelta(minutes=2)
    )
    assert_quiet(site.run())
    assert site.logstash.connections == []
    assert rows(site, "SELECT events FROM delivered") == [(0,)]


def test_a_bom_before_a_listing_makes_no_difference(site: Site) -> None:
    blobs = publish(site)
    for operation in ("list", "content", "blob"):
        site.office.fail(operation, faults.bom())
    assert_quiet(site.run())
    assert_delivered(site, blobs)


def test_a_blob_that_has_grown_when_listed_again_is_sent_again(site: Site) -> None:
    assert_quiet(site.run())
    mark = watermark(site)
    assert mark is not None
    start = mark - timedelta(minutes=5)
    blob = site.office.publish(
        DIRECTORY,
        make_events(6, first=77_000),
        created=start + timedelta(milliseconds=300),
        grows=True,
    )
    site.set("poll", window_minutes="1", overlap_minutes="5")
    site.run()
    site.set("poll", overlap_minutes="9")
    assert_quiet(site.run())
    assert taken(site) == ids([blob])
