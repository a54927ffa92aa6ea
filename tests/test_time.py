"""Times and windows: read, written, cut, clipped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import NOW, ago

from o365_poller import (
    RETENTION,
    RETENTION_MARGIN,
    SLICE,
    Window,
    api_time,
    as_utc,
    earliest,
    parse_time,
    poll_start,
    read_api_time,
    slices,
    whole_second,
    without,
)

MINUTE = timedelta(minutes=1)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90m", ago(minutes=90)),
        ("6h", ago(hours=6)),
        ("2d", ago(days=2)),
        ("30s", ago(seconds=30)),
        ("1w", ago(weeks=1)),
        ("0m", NOW),
        ("2026-03-01", utc(2026, 3, 1)),
        ("20260301", utc(2026, 3, 1)),
        ("2026-03-01T12:34", utc(2026, 3, 1, 12, 34)),
        ("2026-03-01 12:34", utc(2026, 3, 1, 12, 34)),
        ("2026-03-01T12:34:56", utc(2026, 3, 1, 12, 34, 56)),
        ("2026-03-01T12:34:56Z", utc(2026, 3, 1, 12, 34, 56)),
        ("2026-03-01T12:34:56.999999Z", utc(2026, 3, 1, 12, 34, 56)),
        ("2026-03-01T12:34:56+02:00", utc(2026, 3, 1, 10, 34, 56)),
        ("2026-03-01T12:34-0530", utc(2026, 3, 1, 18, 4)),
    ],
)
def test_a_time_of_the_command_line_is_read(text: str, moment: datetime) -> None:
    found = parse_time(text, NOW)
    assert found == moment
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "10",
        "2026",
        "2026-03",
        "2026-13-01",
        "2026-02-30",
        "01.03.2026",
        "1.5h",
        "-6h",
        "6 h",
        "6y",
        "2026-03-01T25:00",
        "2026-03-01T12:34:56+02:00 ",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text, NOW)


def test_an_age_beyond_all_time_is_refused() -> None:
    with pytest.raises((ValueError, OverflowError)):
        parse_time("999999w", NOW)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-05-23T17:35:00.123Z", utc(2026, 5, 23, 17, 35, 0, 123000)),
        ("2026-05-23T17:35:00", utc(2026, 5, 23, 17, 35)),
        ("2026-05-23T17:35:00+02:00", utc(2026, 5, 23, 15, 35)),
        ("2026-05-23T17:35:00.1234567Z", utc(2026, 5, 23, 17, 35, 0, 123456)),
        ("2026-05-23", utc(2026, 5, 23)),
        ("soon", None),
        ("", None),
        (None, None),
        (5, None),
        ("0001-01-01T00:00:00+14:00", None),
    ],
)
def test_a_time_of_an_answer_is_read(text: object, moment: datetime | None) -> None:
    assert read_api_time(text) == moment


def test_a_request_carries_whole_utc_seconds_without_a_zone() -> None:
    there = timezone(timedelta(hours=2))
    moment = datetime(2026, 3, 2, 1, 2, 3, 999999, tzinfo=there)
    assert api_time(moment) == "2026-03-01T23:02:03"
    assert str(Window(NOW, NOW + MINUTE)) == (
        "[2026-03-02T10:00:00, 2026-03-02T10:01:00) UTC"
    )


def test_a_naive_time_is_utc() -> None:
    assert as_utc(NOW.replace(tzinfo=None)) == NOW
    assert whole_second(NOW + timedelta(milliseconds=999)) == NOW


@pytest.mark.parametrize(
    ("watermark", "start"),
    [
        (None, ago(minutes=10)),
        (ago(minutes=1), ago(minutes=10)),
        (ago(minutes=5), ago(minutes=10)),
        (ago(minutes=6), ago(minutes=11)),
        (ago(hours=5), ago(hours=5, minutes=5)),
        (ago(days=6), ago(days=6, minutes=5)),
        (ago(days=7), ago(days=7) + RETENTION_MARGIN),
        (ago(days=70), ago(days=7) + RETENTION_MARGIN),
        (NOW + MINUTE, ago(minutes=10)),
    ],
)
def test_a_poll_begins_at_the_window_or_behind_the_watermark(
    watermark: datetime | None, start: datetime
) -> None:
    assert poll_start(watermark, NOW, 10 * MINUTE, 5 * MINUTE) == start


def test_the_oldest_start_keeps_a_margin_inside_the_seven_days() -> None:
    assert NOW - RETENTION < earliest(NOW) <= NOW - RETENTION + timedelta(hours=1)


def test_an_empty_window_has_no_slices() -> None:
    assert list(slices(Window(NOW, NOW))) == []
    assert list(slices(Window(NOW, ago(hours=1)))) == []


@given(
    st.integers(0, 7 * 86400),
    st.integers(0, 86400),
)
def test_slices_tile_the_window_without_hole_or_overlap(back: int, length: int) -> None:
    whole = Window(ago(seconds=back), ago(seconds=back) + timedelta(seconds=length))
    parts = list(slices(whole))
    edges = [whole.start, *(part.end for part in parts)]
    assert edges[-1] == whole.end
    assert [part.start for part in parts] == edges[:-1]
    assert all(timedelta(0) < part.end - part.start <= SLICE for part in parts)


SPANS = st.lists(
    st.tuples(st.integers(-50, 150), st.integers(1, 60)).map(
        lambda pair: (pair[0], pair[0] + pair[1])
    ),
    max_size=8,
)


@given(SPANS)
def test_the_holes_are_exactly_what_no_span_covers(
    spans: list[tuple[int, int]],
) -> None:
    def window(start: int, end: int) -> Window:
        return Window(NOW + start * MINUTE, NOW + end * MINUTE)

    holes = without(window(0, 100), [window(*span) for span in spans])
    covered = {m for start, end in spans for m in range(start, end)}
    left = {
        m
        for hole in holes
        for m in range(
            (hole.start - NOW) // MINUTE,
            (hole.end - NOW) // MINUTE,
        )
    }
    assert left == set(range(100)) - covered
    assert holes == sorted(holes, key=lambda hole: hole.start)
    assert all(a.end < b.start for a, b in zip(holes, holes[1:], strict=False))
