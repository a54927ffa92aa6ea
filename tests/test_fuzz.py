"""Hypothesis against every border: events, configuration, times, Microsoft's answers.

Whatever comes in: the documented exceptions, no other; no token to another host.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import ssl
import string
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from delivery_model import BIRTH, ROOT, TENANT, a_tenant
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from making import waiting

import o365_poller as op

settings.register_profile(
    "fuzz",
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FUZZ = settings.get_profile("fuzz")
NOW = BIRTH
FEED = op.Feed(ROOT, TENANT, TENANT)

# -- events ------------------------------------------------------------------------------

TEXT = st.text(max_size=12)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
    ),
    max_leaves=8,
)
EVENTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), max_size=6)
BLANKS = st.text(" \t\r\n", max_size=3)


def cut(text: str, places: list[int]) -> list[str]:
    """The text in pieces, cut at any places."""
    edges = sorted({place % (len(text) + 1) for place in places})
    return [text[a:b] for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]


def sliced(pieces: list[str]) -> list[str]:
    slicer = op.EventSlicer()
    found = []
    for piece in pieces:
        found += slicer.feed(piece)
    return found + slicer.feed("", last=True)


@FUZZ
@given(
    events=EVENTS,
    blanks=st.lists(BLANKS, min_size=8, max_size=8),
    ascii_=st.booleans(),
    indent=st.sampled_from([None, 0, 1]),
    places=st.lists(st.integers(0, 5000), max_size=8),
)
def test_the_slicer_finds_what_json_finds(
    events: list[Any],
    blanks: list[str],
    ascii_: bool,
    indent: int | None,
    places: list[int],
) -> None:
    texts = [json.dumps(event, ensure_ascii=ascii_, indent=indent) for event in events]
    separators = [f"{blanks[n]},{blanks[-n]}" for n in range(len(texts))]
    body = "".join(
        text + (separators[n] if n + 1 < len(texts) else "")
        for n, text in enumerate(texts)
    )
    whole = f"{blanks[0]}[{blanks[1]}{body}{blanks[2]}]{blanks[3]}"
    assert json.loads(whole) == events
    lines = sliced(cut(whole, places))
    assert [json.loads(line) for line in lines] == events
    assert not any("\n" in line or "\r" in line for line in lines)


@FUZZ
@given(
    value=VALUES | EVENTS,
    damage=st.tuples(st.integers(0, 400), st.text(max_size=2), st.integers(0, 3)),
    places=st.lists(st.integers(0, 400), max_size=3),
)
def test_a_damaged_blob_is_refused_or_means_what_json_says(
    value: Any, damage: tuple[int, str, int], places: list[int]
) -> None:
    text = json.dumps(value)
    place = damage[0] % (len(text) + 1)
    text = text[:place] + damage[1] + text[place + damage[2] :]
    try:
        lines = sliced(cut(text, places))
    except op.BrokenAnswerError:
        return
    assert [json.loads(line) for line in lines] == json.loads(text)


@pytest.mark.parametrize("tail", ['"}', '"]', '"\\"}', "]", "}", '{"a":"'])
def test_a_deep_event_is_whole_wherever_it_is_cut(tail: str) -> None:
    deep = "[" * 3000 + "]" * 3000
    event = f'{{"a":{deep},"b":{json.dumps(tail)},"c":"\\\\"}}'
    whole = f"[{event},{event}]"
    for place in [*range(6000, len(event) + 3), len(whole) - 3]:
        assert sliced([whole[:place], whole[place:]]) == [event, event]


@FUZZ
@given(
    body=st.binary(max_size=300),
    cut_at=st.integers(0, 300),
    encoding=st.sampled_from(["", "gzip", "deflate", "identity", "br", "x-gzip"]),
    packed=st.booleans(),
)
def test_a_body_unpacks_or_is_broken(
    body: bytes, cut_at: int, encoding: str, packed: bool
) -> None:
    data = gzip.compress(body) if packed else body
    pieces = [data[:cut_at], data[cut_at:]]
    with contextlib.suppress(op.BrokenAnswerError):
        found = b"".join(op.unpacked(pieces, encoding))
        if packed and encoding == "gzip":
            assert found == body
    with contextlib.suppress(op.BrokenAnswerError):
        short = b"".join(op.unpacked([data[:cut_at]], "gzip"))
        assert cut_at >= len(data) or not packed or len(short) <= len(body)
        assert not (packed and cut_at < len(data) and cut_at > 0), (
            "cut, and not noticed"
        )


# -- Microsoft's answers -----------------------------------------------------------------

JSON_BODIES = VALUES.map(lambda value: json.dumps(value).encode())
ERRORS = st.builds(
    lambda code, message, key: json.dumps({"error": {"code": code, key: message}}),
    st.sampled_from([*op.VERDICTS, "AF50005", "", "x"]) | st.integers(),
    VALUES,
    st.sampled_from(["message", "Message"]),
).map(str.encode)
BODIES = st.binary(max_size=200) | JSON_BODIES | ERRORS | st.just(b"[" * 100_000)
HEADER_TEXT = st.text(string.printable, max_size=30)


@FUZZ
@given(
    status=st.integers(100, 999),
    body=BODIES,
    after=HEADER_TEXT
    | st.sampled_from(["9" * 30, "-1", "Fri, 31 Dec 9999 23:59:59 -2359", "²"]),
)
def test_every_answer_gets_a_verdict(status: int, body: bytes, after: str) -> None:
    answer = op.Answer(status, {"retry-after": after}, body)
    judgement = op.judge(answer, NOW)
    assert isinstance(judgement.verdict, op.Verdict)
    assert "\n" not in judgement.reason
    assert judgement.retry_after is None or judgement.retry_after >= 0
    assert (judgement.verdict is op.Verdict.OK) == (200 <= status < 300)
    assert len(op.read_error(body)[1]) <= 300
    assert op.backoff(1, judgement.retry_after, 0.5) <= op.PAUSE_LONGEST


TIMES = st.sampled_from(
    [
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.9999999Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "2026-05-20T11:59:59.999Z",
        "2026-05-20",
        "",
    ]
) | st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.isoformat())
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "contentId": TEXT
        | VALUES
        | st.sampled_from(["..", "a/b", "\ud83d", "$", "?x=1"]),
        "contentUri": TEXT | VALUES | st.sampled_from(["\ud83d", ROOT]),
        "contentCreated": TIMES | VALUES,
        "contentExpiration": TIMES | VALUES,
    },
)


@FUZZ
@given(
    body=BODIES | st.lists(ENTRIES, max_size=4).map(lambda e: json.dumps(e).encode())
)
@example(body=b'[{"contentId": "\\ud83d"}]')
@example(body=b'[{"contentId": "a", "contentUri": "\\ud83d"}]')
@example(body=b'[{"contentId":"a","contentExpiration":"9999-12-31T23:59:59.9999999Z"}]')
@example(body=b'[{"contentId":"a","contentCreated":"0001-01-01T00:00:00"}]')
def test_a_listing_is_broken_or_can_be_lived_with(body: bytes) -> None:
    """What a listing gives can be asked for, waited for, lost, and read back."""
    with contextlib.suppress(op.BrokenAnswerError):
        op.parse_subscriptions(body)
    try:
        blobs, _ = op.parse_listing(body, "Audit.Exchange", NOW)
    except op.BrokenAnswerError:
        return
    with tempfile.TemporaryDirectory() as folder:
        azure, _ = a_tenant(op, Path(folder) / "s.db")
        state = op.State.nowhere(azure, NOW)
        fresh, _ = op.SeenIds().add(blobs)
        for blob in fresh:
            check_ours(FEED.blob(blob))
            assert not state.known("Audit.Exchange", op.Purpose.POLL)(blob)
            missing = op.Failed(blob, op.Verdict.RETRY, "HTTP 503")
            waits = op.fate(missing, None, NOW - timedelta(days=400 * 365))
            gone = op.fate(op.Failed(blob, op.Verdict.GONE, "AF20051"), None, NOW)
            assert isinstance(gone, op.Lost)
            assert isinstance(waits, op.Pending | op.Lost)
            if isinstance(waits, op.Pending):
                state.settle("Audit.Exchange", op.Changes(pending=[waits]), NOW)
            assert waiting(state, "Audit.Exchange") is not None
            state.settle("Audit.Exchange", op.Changes(lost=[gone]), NOW)
            done = [op.Delivered(blob, 1, 1)]
            state.settle("Audit.Exchange", op.Changes(delivered=done), NOW)
            assert "\n" not in str(gone)
        state.close()


POOL_FOR = op.make_pools(ssl.create_default_context(), 1)


def check_ours(url: str) -> None:
    """A URL that may carry the token: our root, our tenant, our publisher id."""
    parts = urlsplit(url)
    assert f"{parts.scheme}://{parts.netloc}" == ROOT
    assert parts.path.lower().startswith("/api/v1")
    assert TENANT in parts.path
    assert "publisheridentifier=" in url.lower()
    assert all("!" <= c <= "~" for c in url)
    pool = POOL_FOR(url)
    assert (pool.scheme, pool.host, pool.port) == ("https", "manage.office.com", 443)


PARTS = st.sampled_from(
    [
        ROOT,
        "https://evil.example",
        "http://manage.office.com",
        "//evil.example",
        "https:\\\\evil.example",
        "https://manage.office.com@evil.example",
        "https://manage.office.com:443",
        "https://manage.office.com:444",
        "https://MANAGE.office.com",
        "https://manage.office.com.evil.example",
        "/api/v1.0/",
        "/api/v1/",
        TENANT,
        TENANT.replace("a", "b"),
        TENANT.upper(),
        "/activity/feed/audit/",
        "/activity/feed/subscriptions/content",
        "/../",
        "%2e%2e/",
        "?nextPage=1",
        "&endtime=x",
        "?PublisherIdentifier=",
        "#",
        "@",
        ":",
        "[",
        "]",
        "%",
        "\t",
        " ",
        "\u0661",
        "\u3002",
    ]
)


@FUZZ
@given(uri=st.lists(PARTS | TEXT, max_size=8).map("".join))
def test_no_address_of_an_answer_takes_the_token_elsewhere(uri: str) -> None:
    following = FEED.next_page(uri)
    if following:
        check_ours(following)
    blob = op.Blob("Audit.Exchange", "2026$a b/..%", uri, NOW, None)
    check_ours(FEED.blob(blob))


@FUZZ
@given(
    date=HEADER_TEXT
    | st.sampled_from(
        [
            "Fri, 31 Dec 9999 23:59:59 -2359",
            "Mon, 01 Jan 0001 00:00:00 +2359",
            "Wed, 20 May 2026 12:00:00 GMT",
            "Wed, 20 May 2026 12:00:00 +9999999999",
            "32 Foo 99999",
        ]
    )
)
def test_no_date_header_ends_the_run(date: str) -> None:
    class Reply:
        headers = {"Date": date}  # noqa: RUF012

    http = op.Http(lambda url: None, 5)  # type: ignore[arg-type, return-value]
    noted = http._note_date(ROOT, Reply())  # type: ignore[arg-type]
    assert noted.tzinfo is not None


@FUZZ
@given(status=st.integers(0, 600), told=VALUES | st.dictionaries(TEXT, VALUES))
def test_every_answer_of_the_token_endpoint_is_explained(
    status: int, told: Any
) -> None:
    error = op.token_error(status, told)
    assert error.exit in (op.Exit.REFUSED, op.Exit.INCOMPLETE)
    assert "\n" not in str(error)
    token = told if isinstance(told, str) else json.dumps(told)
    assert isinstance(op.read_claims(op.Secret(token)), dict)
    assert isinstance(op.read_claims(op.Secret(f"a.{token}.b")), dict)


# -- what an operator types --------------------------------------------------------------

SECTIONS = st.sampled_from([*op.KEYS, "poll ", "", "DEFAULT", "nonsense"])
KEYS = st.sampled_from([key for keys in op.KEYS.values() for key in keys]) | TEXT
CHOSEN = st.sampled_from(
    [
        "",
        "yes",
        "0",
        "-1",
        "1e400",
        "nan",
        "inf",
        "~nobody/x",
        "/dev/null",
        "[::1]:5000",
    ]
    + [
        TENANT,
        "a:1, b:2",
        "host:99999",
        "\u0661",
        "https://x",
        "https://[",
        "%(a)s",
        "/",
    ]
)
LINES = st.builds(
    lambda section, pairs: "\n".join(
        [f"[{section}]", *(f"{key} = {value}" for key, value in pairs)]
    ),
    SECTIONS,
    st.lists(st.tuples(KEYS, CHOSEN | TEXT), max_size=5),
)


@FUZZ
@given(
    content=st.binary(max_size=200)
    | st.lists(LINES | TEXT, max_size=5).map(
        lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
    )
)
def test_every_configuration_is_read_or_complained_about(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.ini"
        file.write_bytes(content)
        with pytest.raises(op.ConfigError) as caught:  # there is no key and no tenant
            op.read_settings(file, {}, named=True)
    assert caught.value.complaints
    for complaint in caught.value.complaints:
        assert "\n" not in complaint
        assert "expected" in complaint or "unknown" in complaint, complaint


@FUZZ
@given(
    start=st.none() | TEXT | TIMES | st.text("0123456789-:TZ+.smhdw", max_size=20),
    end=st.none() | TEXT | TIMES | st.text("0123456789-:TZ+.smhdw", max_size=20),
)
@example(start="999999w", end=None)
@example(start="0001-01-01T00:00:00+23:59", end=None)
@example(start="6h", end="0m")
def test_every_time_is_a_window_or_a_complaint(
    start: str | None, end: str | None
) -> None:
    complaints: list[str] = []
    window = op.read_times(start, end, NOW, complaints)
    if complaints:
        assert all("expected" in each and "\n" not in each for each in complaints)
    elif window is not None:
        assert NOW - op.RETENTION <= window.start < window.end <= NOW
        parts = list(op.slices(window))
        assert parts[0].start == window.start
        assert parts[-1].end == window.end
        assert all(part.end - part.start < timedelta(hours=24) for part in parts)
        assert op.without(window, parts) == []
    else:
        assert start is None


@FUZZ
@given(moment=st.datetimes(min_value=datetime(1971, 1, 1)))
def test_times_survive_the_state(moment: datetime) -> None:
    aware = op.read_api_time(moment.isoformat())
    if aware is not None:
        back = op.moment(op.milliseconds(aware) / 1000)
        assert abs(back - aware) <= timedelta(milliseconds=1)
