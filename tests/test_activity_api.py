"""Subscriptions, listings and blobs, over a scripted HTTP."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
from making import NOW, TENANT, TYPE, WORLD, make_answer, make_blob
from test_http import Pool, make_response

from o365_poller import (
    BLOB_BYTES,
    EMPTY_PAGES_MOST,
    MEGABYTE,
    PAGES_MOST,
    TRIES,
    ActivityApi,
    AnswerError,
    Blob,
    Exit,
    Feed,
    Http,
    PollerError,
    RefusedError,
    Secret,
    SeenIds,
    SourceError,
    TokenError,
    TooLargeError,
    Verdict,
    Window,
    judge,
    refusal,
)

WINDOW = Window(NOW - timedelta(hours=1), NOW)
NEXT = f"{WORLD.api_root}/api/v1/{TENANT}/activity/feed/subscriptions/content?nextPage="


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("o365_poller.PAUSE_FIRST", 0.001)


class OneToken:
    """A token that nobody can replace."""

    def token(self) -> Secret:
        return Secret("the-token")

    def renew(self, refused: Secret) -> None:
        del refused


class Room:
    """Room without end, which is counted."""

    def __init__(self) -> None:
        self.taken = self.most = 0

    def __call__(self, amount: int) -> None:
        self.taken = amount
        self.most = max(self.most, amount)


def make_api(
    *answers: Any, decorate: Callable[[Mapping[str, Any], str], str] | None = None
) -> tuple[ActivityApi, Pool]:
    pool = Pool(*answers)
    http = Http(lambda _: pool, 5)  # type: ignore[arg-type, return-value]
    feed = Feed(WORLD.api_root, TENANT, TENANT)
    return ActivityApi(feed, http, OneToken(), decorate), pool


def af(code: str, status: int = 400) -> Any:
    return make_response(status, json.dumps({"error": {"code": code}}).encode())


def page(*ids: str, following: str = "") -> Any:
    rows = [{"contentId": i, "contentCreated": "2026-03-02T09:30:00Z"} for i in ids]
    headers = {"NextPageUri": NEXT + following} if following else {}
    return make_response(200, json.dumps(rows).encode(), headers)


def listed(api: ActivityApi) -> list[str]:
    return [blob.id for blob in api.listing(TYPE, WINDOW, threading.Event())]


# -- refusals


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (401, "AF10001", RefusedError, "thing: the application lacks the permission ActivityFeed.ReadDlp (HTTP 401 AF10001); nothing of it is polled; its watermark stays, so 7 days remain to mend it; add the application permission ActivityFeed.ReadDlp of Office 365 Management APIs to the app registration and grant admin consent"),
        (401, "", TokenError, "thing: HTTP 401: the API refuses the token that Entra ID gave; nothing of it is polled; its watermark stays, so 7 days remain to mend it; check that cloud, api_root and tenant_id in [azure] fit the tenant"),
        (400, "AF20011", RefusedError, "thing: HTTP 400 AF20011; nothing of it is polled; its watermark stays, so 7 days remain to mend it; check tenant_id, cloud and the licence"),
        (400, "AF20055", SourceError, "thing: HTTP 400 AF20055: the times are refused, so a clock may be wrong; the span stays open and the next run asks again; compare this machine's clock with UTC (NTP)"),
        (400, "AF99999", SourceError, "thing: HTTP 400 AF99999; what was listed is delivered; the span stays open and the next run asks again; nothing to do, unless it repeats: then look at Microsoft's service health"),
    ],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_a_refusal_is_told_whole(
    status: int, code: str, kind: type[PollerError], words: str
) -> None:
    body = json.dumps({"error": {"code": code}}) if code else ""
    judgement = judge(make_answer(status, body), NOW)
    error = refusal("thing", "ActivityFeed.ReadDlp", judgement)
    assert type(error) is kind
    assert str(error) == words


def test_auditing_that_is_off_is_told_in_plain_words() -> None:
    body = json.dumps({"error": {"code": "x", "message": "DataServiceException: no"}})
    error = refusal("thing", "p", judge(make_answer(400, body), NOW))
    assert error.exit is Exit.REFUSED
    assert error.what.startswith(
        "thing: auditing is off in this tenant, or not in its licence ("
    )
    assert error.fix == (
        "switch unified auditing on in the Purview portal; it takes up to an hour"
    )


# -- subscriptions


def test_the_subscriptions_are_listed() -> None:
    body = json.dumps([{"contentType": TYPE, "status": "enabled"}]).encode()
    api, pool = make_api(make_response(200, body))
    assert api.subscriptions() == {TYPE.lower()}
    assert pool.asked[0].target == (
        f"/api/v1.0/{TENANT}/activity/feed/subscriptions/list"
        f"?PublisherIdentifier={TENANT}"
    )
    assert pool.asked[0].headers["Authorization"] == "Bearer the-token"


def test_a_refused_list_of_subscriptions_is_an_error() -> None:
    api, _ = make_api(af("AF10001", 401))
    with pytest.raises(RefusedError, match="permission ActivityFeed.Read "):
        api.subscriptions()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (make_response(200, b"{}"), "started; its first content may take up to 12 hours"),
        (af("AF20024"), "was enabled already"),
        (af("429", 403), "was asked for a short while ago; Microsoft wants a pause"),
        (af("429", 429), "was asked for a short while ago; Microsoft wants a pause"),
    ],
    ids=["started", "already", "403", "429"],
)  # fmt: skip
def test_a_subscription_is_started(answer: Any, told: str) -> None:
    api, pool = make_api(answer)
    assert api.start("DLP.All") == told
    assert pool.asked[0].method == "POST"


def test_a_start_that_is_refused_names_the_permission_of_its_type() -> None:
    api, _ = make_api(af("AF10001", 401))
    with pytest.raises(RefusedError, match=r"permission ActivityFeed.ReadDlp "):
        api.start("DLP.All")


# -- listings


def test_a_listing_follows_its_pages_and_names_each_blob_once() -> None:
    api, pool = make_api(
        page("a", "b", following="1"), page("b", "c", following="2"), page("c", "d")
    )
    assert listed(api) == ["a", "b", "c", "d"]
    assert (
        WORLD.api_root + pool.asked[1].target == f"{NEXT}1&PublisherIdentifier={TENANT}"
    )


def test_an_empty_page_in_the_midst_is_followed() -> None:
    api, _ = make_api(page("a", following="1"), page(following="2"), page("b"))
    assert listed(api) == ["a", "b"]


@pytest.mark.parametrize(
    "pages",
    [
        [page("a", following="1"), page("b", following="1")],
        [page("a", following="1"), page("a", following="2")],
        [page("a", following="0"), *(page(following=str(n)) for n in range(1, 20))],
    ],
    ids=["same address", "nothing new", "empty for ever"],
)
def test_a_circle_of_pages_ends(pages: list[Any]) -> None:
    api, pool = make_api(*pages)
    with pytest.raises(SourceError, match="the pages go in a circle at page"):
        listed(api)
    assert len(pool.asked) <= EMPTY_PAGES_MOST + 2


def test_a_list_without_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PAGES_MOST <= 100_000
    monkeypatch.setattr("o365_poller.PAGES_MOST", 5)
    api, pool = make_api(*(page(str(n), following=str(n)) for n in range(9)))
    with pytest.raises(SourceError, match="no end after 5 pages"):
        listed(api)
    assert len(pool.asked) == 5


def test_a_page_outside_the_feed_is_not_asked_and_said() -> None:
    answer = page("a")
    answer.headers["NextPageUri"] = "https://evil.example.net/x"
    api, pool = make_api(answer)
    found: list[Blob] = []
    with pytest.raises(SourceError) as caught:
        found.extend(api.listing(TYPE, WINDOW, threading.Event()))
    assert [blob.id for blob in found] == ["a"]
    assert (
        "page 1 names a next page outside this tenant's feed, which was not asked: "
        in (str(caught.value))
    )
    assert len(pool.asked) == 1


def test_a_lost_page_begins_the_listing_again_once() -> None:
    api, _ = make_api(
        page("a", "b", following="1"), af("AF20031"), page("a", "b", following="2"), page("c")
    )  # fmt: skip
    assert listed(api) == ["a", "b", "c"]


def test_a_page_that_is_lost_again_breaks_the_listing() -> None:
    api, _ = make_api(
        page("a", following="1"), af("AF20031"), page("a", following="2"), af("AF20031")
    )
    with pytest.raises(SourceError, match="AF20031"):
        listed(api)


@pytest.mark.parametrize("code", ["AF20022", "AF20023"])
def test_a_missing_subscription_is_started_and_the_listing_asked_again(
    code: str,
) -> None:
    api, pool = make_api(af(code), make_response(200, b"{}"), page("a"))
    assert listed(api) == ["a"]
    assert [asked.method for asked in pool.asked] == ["GET", "POST", "GET"]


def test_a_subscription_that_stays_inactive_leaves_the_span_open() -> None:
    api, pool = make_api(af("AF20023"), make_response(200, b"{}"), af("AF20023"))
    with pytest.raises(SourceError, match="the subscription is not active yet"):
        listed(api)
    assert len(pool.asked) == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda: af("AF10001", 401), RefusedError),
        (lambda: af("AF20020"), RefusedError),
        (lambda: af("AF20030"), SourceError),
        (lambda: make_response(404), SourceError),
        (lambda: make_response(302), SourceError),
        (lambda: make_response(200, b"<html>"), SourceError),
        (lambda: make_response(200, b"{}"), SourceError),
        (lambda: make_response(503), SourceError),
    ],
    ids=range(8),
)
def test_a_listing_that_breaks_is_an_error(
    answer: Callable[[], Any], kind: type[PollerError]
) -> None:
    api, _ = make_api(*(answer() for _ in range(TRIES)))
    with pytest.raises(kind, match=rf"^{TYPE}: listing of \[2026"):
        listed(api)


def test_seen_ids_tell_the_new_from_the_known() -> None:
    seen = SeenIds()
    a, b = make_blob("a"), make_blob("b")
    assert seen.add([a, a]) == ([a], True)
    assert seen.add([a]) == ([], False)
    seen.begin_again()
    assert seen.add([a]) == ([], True)
    assert seen.add([a, b]) == ([b], True)


# -- blobs


def fetch(api: ActivityApi, room: Room | None = None, tries: int = TRIES) -> Any:
    return api.fetch(make_blob(), room or Room(), threading.Event(), tries)


def test_a_blob_is_fetched_as_lines() -> None:
    body = b'\xef\xbb\xbf[\r\n {"Id":"1"},\r\n {"Id":"\xc3\xa9"}\r\n]'
    room = Room()
    api, _ = make_api(
        make_response(200, gzip.compress(body), {"Content-Encoding": "gzip"})
    )
    found = fetch(api, room)
    assert b"".join(found.lines) == b'{"Id":"1"}\n{"Id":"\xc3\xa9"}\n'
    assert (found.events, found.bytes, room.taken) == (2, 23, 23)


def test_an_empty_blob_is_fetched_too() -> None:
    api, _ = make_api(make_response(200, b"[]"))
    found = fetch(api)
    assert (found.lines, found.events, found.bytes) == ((), 0, 0)


def test_a_lone_surrogate_in_the_text_stays_as_it_was_escaped() -> None:
    api, _ = make_api(make_response(200, b'[{"a":"\\ud83d"}]'))
    assert b"".join(fetch(api).lines) == b'{"a":"\\ud83d"}\n'


@pytest.mark.parametrize(
    "broken",
    [b"<html>", b"[{}", b"{}", b"", b'[{"a":"\xff"}]', b"\xc3", b'[{"a":"\xc3'],
)
def test_a_blob_that_is_broken_is_asked_again_from_its_beginning(broken: bytes) -> None:
    room = Room()
    api, _ = make_api(make_response(200, broken), make_response(200, b'[{"a":1}]'))
    assert b"".join(fetch(api, room).lines) == b'{"a":1}\n'
    assert room.taken == 8


@pytest.mark.parametrize("status", [404, 400, 403, 408, 429, 503])
def test_a_blob_gets_at_least_four_tries_whatever_the_answer(status: int) -> None:
    api, pool = make_api(*(make_response(status) for _ in range(9)))
    with pytest.raises((AnswerError, SourceError)):
        fetch(api)
    assert len(pool.asked) >= 4


def test_a_blob_that_is_gone_is_gone_at_once() -> None:
    api, pool = make_api(af("AF20051", 404))
    with pytest.raises(AnswerError) as caught:
        fetch(api)
    assert caught.value.judgement.verdict is Verdict.GONE
    assert len(pool.asked) == 1


def test_a_pending_blob_gets_one_try() -> None:
    api, pool = make_api(make_response(404), make_response(200, b"[]"))
    with pytest.raises(AnswerError):
        fetch(api, tries=1)
    assert len(pool.asked) == 1


def test_a_blob_that_is_refused_is_that_blobs_trouble() -> None:
    api, pool = make_api(af("AF10001", 401))
    with pytest.raises(AnswerError) as caught:
        fetch(api)
    assert caught.value.judgement.verdict is Verdict.FORBIDDEN
    assert len(pool.asked) == 1


def test_a_blob_over_the_bound_is_too_large_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert BLOB_BYTES == 256 << 20
    monkeypatch.setattr("o365_poller.BLOB_BYTES", 20)
    api, pool = make_api(make_response(200, b'[{"a":"1234567890123456"}]'))
    with pytest.raises(TooLargeError):
        fetch(api)
    assert len(pool.asked) == 1


def test_events_can_be_decorated() -> None:
    api, _ = make_api(
        make_response(200, b'[{"a":1}]'),
        decorate=lambda event, text: f"{event['a']}{text}",
    )
    assert b"".join(fetch(api).lines) == b'1{"a":1}\n'


def test_the_apis_clock_is_the_newest_date() -> None:
    api, _ = make_api(
        make_response(200, b"[]", {"Date": "Mon, 02 Mar 2026 10:00:00 GMT"})
    )
    assert api.date() is None
    api.subscriptions()
    assert api.date() == NOW


def test_an_event_that_is_not_whole_yet_takes_room_as_well() -> None:
    body = b'[{"a":"' + b"x" * (3 * MEGABYTE) + b'"}]'
    asked: list[int] = []
    api, _ = make_api(make_response(200, body))
    found = api.fetch(make_blob(), asked.append, threading.Event(), TRIES)
    assert asked == sorted(asked[:-1]) + [found.bytes]
    assert len(asked) > 20, "it was taken at the end alone"
    assert max(asked) == len(body)
