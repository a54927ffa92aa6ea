"""What the API's answers mean: codes, listings, addresses."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from making import NOW, OTHER_TENANT, TENANT, make_answer, make_blob

from o365_poller import (
    BrokenAnswerError,
    Feed,
    Verdict,
    Window,
    judge,
    next_page_header,
    parse_listing,
    parse_subscriptions,
    read_error,
    retry_after,
)

ROOT = "https://manage.office.com"
FEED = Feed(ROOT, TENANT, "aaaaaaaa-0000-4000-8000-000000000001")
PUBLISHED = f"PublisherIdentifier={FEED.publisher_id}"
PAGE = f"{ROOT}/api/v1.0/{TENANT}/activity/feed/subscriptions/content?contentType=x&nextPage=1"
BLOB = f"{ROOT}/api/v1.0/{TENANT}/activity/feed/audit/abc$def"


def af(code: str, message: str = "words") -> str:
    return json.dumps({"error": {"code": code, "message": message}})


# -- verdicts

STACK_TRACE = json.dumps(
    {
        "error": {
            "code": "StartSubscription [TenantId=x,ContentType=y] failed. Exception",
            "message": "Microsoft.Office.Compliance.Audit.DataServiceException: Tenant "
            "does not exist.\r\n  at Somewhere",
        }
    }
)
JUDGED = [
    (200, b"", Verdict.OK),
    (204, b"", Verdict.OK),
    (301, b"", Verdict.FAILED),
    (302, af("AF429"), Verdict.FAILED),
    (304, b"", Verdict.FAILED),
    (400, af("AF20001"), Verdict.REFUSED),
    (400, af("AF20002"), Verdict.REFUSED),
    (400, af("AF20010"), Verdict.REFUSED),
    (400, af("AF20011"), Verdict.REFUSED),
    (400, af("AF20012"), Verdict.REFUSED),
    (400, af("AF20013"), Verdict.REFUSED),
    (403, af("AF20020"), Verdict.REFUSED),
    (400, af("AF20022"), Verdict.NO_SUBSCRIPTION),
    (400, af("AF20023"), Verdict.NO_SUBSCRIPTION),
    (400, af("AF20024"), Verdict.SUBSCRIBED),
    (400, af("AF20030"), Verdict.BAD_WINDOW),
    (400, af("AF20055"), Verdict.BAD_WINDOW),
    (400, af("AF20031"), Verdict.BAD_PAGE),
    (404, af("AF20050"), Verdict.MISSING),
    (400, af("AF20050"), Verdict.MISSING),
    (404, af("AF20051"), Verdict.GONE),
    (410, af("AF20051"), Verdict.GONE),
    (500, af("AF20051"), Verdict.GONE),
    (400, af("AF20052"), Verdict.MISSING),
    (401, af("AF10001"), Verdict.FORBIDDEN),
    (403, af("AF429"), Verdict.THROTTLED),
    (429, af("AF429"), Verdict.THROTTLED),
    (429, b"slow down", Verdict.THROTTLED),
    (403, af("429"), Verdict.COOLING_DOWN),
    (429, af("429"), Verdict.COOLING_DOWN),
    (500, af("AF50000"), Verdict.RETRY),
    (400, af("AF50005"), Verdict.RETRY),
    (500, af("AF50006"), Verdict.RETRY),
    (408, b"", Verdict.RETRY),
    (500, b"", Verdict.RETRY),
    (502, b"<html>bad gateway</html>", Verdict.RETRY),
    (503, b"", Verdict.RETRY),
    (504, b"", Verdict.RETRY),
    (599, b"", Verdict.RETRY),
    (401, b'{"Message":"Authorization has been denied for this request."}', Verdict.UNAUTHORIZED),
    (401, b"", Verdict.UNAUTHORIZED),
    (404, b"<html>not here</html>", Verdict.MISSING),
    (403, b"<html>a proxy says no</html>", Verdict.FAILED),
    (403, af("AF99999"), Verdict.REFUSED),
    (400, b"", Verdict.FAILED),
    (400, af("AF99999"), Verdict.FAILED),
    (400, STACK_TRACE, Verdict.NO_AUDITING),
    (500, STACK_TRACE, Verdict.NO_AUDITING),
    (400, b"{'error':{'code':'AF429','message':'Too many requests.'}}", Verdict.THROTTLED),
    (400, b"\xef\xbb\xbf" + af("AF20023").encode(), Verdict.NO_SUBSCRIPTION),
    (500, b"[" * 100_000, Verdict.RETRY),
    (400, b"AF20051 as plain text", Verdict.GONE),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    JUDGED,
    ids=[f"{status} {str(body)[:34]}" for status, body, _ in JUDGED],
)
def test_an_answer_gets_its_verdict(
    status: int, body: bytes | str, verdict: Verdict
) -> None:
    assert judge(make_answer(status, body), NOW).verdict is verdict


def test_a_verdict_tells_status_code_and_message() -> None:
    answer = make_answer(400, af("AF20023", "The subscription\r\nwas disabled."))
    reason = judge(answer, NOW).reason
    assert reason == "HTTP 400 AF20023 The subscription was disabled."


def test_a_redirect_says_that_it_is_never_followed() -> None:
    reason = judge(make_answer(302), NOW).reason
    assert reason == "HTTP 302, a redirect, which is never followed"


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (af("AF20022", "No subscription."), "AF20022", "No subscription."),
        ('{"Message":"Denied."}', "", "Denied."),
        ('{"error":"just text"}', "", '{"error":"just text"}'),
        ('{"error":{"code":429,"message":"later"}}', "429", "later"),
        ("{'error':{'code':'AF429'}}", "AF429", "{'error':{'code':'AF429'}}"),
        ("<html><h2>Our services</h2> aren't</html>", "", "Our services aren't"),
        ("", "", ""),
        ("[1,2]", "", "[1,2]"),
        ('"AF20051"', "AF20051", '"AF20051"'),
        (b"\xff\xfe bytes", "", "\ufffd\ufffd bytes"),
    ],
    ids=["json", "framework", "text", "number", "quotes", "html", "empty", "array", "string", "bytes"],
)  # fmt: skip
def test_an_error_body_is_read_whatever_it_is(
    body: str | bytes, code: str, message: str
) -> None:
    data = body.encode() if isinstance(body, str) else body
    assert read_error(data) == (code, message)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 30 ", 30.0),
        ("0", 0.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
        ("99999999999999999999", 999999999.0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("", None),
        ("\u0663", None),
        ("Mon, 99 Xxx 2026 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(
    header: str, seconds: float | None
) -> None:
    assert retry_after({"retry-after": header}, NOW) == seconds


def test_retry_after_may_be_absent() -> None:
    assert retry_after({}, NOW) is None


# -- listings


def row(**changes: object) -> dict[str, object]:
    found: dict[str, object] = {
        "contentType": "Audit.Exchange",
        "contentId": "id1",
        "contentUri": BLOB,
        "contentCreated": "2026-03-02T09:59:00.123Z",
        "contentExpiration": "2026-03-09T09:59:00.123Z",
    }
    found.update(changes)
    return {key: value for key, value in found.items() if value is not ...}


def test_a_listing_gives_its_blobs_in_order() -> None:
    body = json.dumps([row(), row(contentId="id2", contentType="audit.EXCHANGE")])
    (first, second), none = parse_listing(body.encode(), "Audit.Exchange", NOW)
    assert none == 0
    assert first == make_blob(
        "id1",
        uri=BLOB,
        created=datetime(2026, 3, 2, 9, 59, 0, 123000, tzinfo=UTC),
        expires=datetime(2026, 3, 9, 9, 59, 0, 123000, tzinfo=UTC),
    )
    assert (second.id, second.content_type) == ("id2", "Audit.Exchange")


@pytest.mark.parametrize("created", [..., "soon", None, 5])
def test_a_blob_without_a_readable_time_counts_as_made_when_it_was_listed(
    created: object,
) -> None:
    body = json.dumps([row(contentCreated=created)]).encode()
    assert parse_listing(body, "Audit.Exchange", NOW)[0][0].created == NOW


@pytest.mark.parametrize("expires", [..., "never", None])
def test_a_blob_may_have_no_readable_expiration(expires: object) -> None:
    body = json.dumps([row(contentExpiration=expires)]).encode()
    assert parse_listing(body, "Audit.Exchange", NOW)[0][0].expires is None


def test_a_blob_may_have_no_uri() -> None:
    body = json.dumps([row(contentUri=...)]).encode()
    assert parse_listing(body, "Audit.Exchange", NOW)[0][0].uri == ""


def test_an_empty_listing_and_one_with_a_mark_are_read() -> None:
    assert parse_listing(b"\xef\xbb\xbf[]", "Audit.Exchange", NOW) == ([], 0)


@pytest.mark.parametrize("odd", [1, None, {}, {"contentId": ""}, {"contentId": 5}])
def test_an_odd_entry_is_counted_and_the_others_are_read(odd: object) -> None:
    body = json.dumps([odd, row()]).encode()
    blobs, count = parse_listing(body, "Audit.Exchange", NOW)
    assert ([blob.id for blob in blobs], count) == (["id1"], 1)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the listing is not a JSON array"),
        (b"<html>", "the listing is not a JSON array"),
        (b"[{}", "the listing is not a JSON array"),
        (b"\xff", "the listing is not a JSON array"),
        (b"[" * 100_000, "the listing is not a JSON array"),
        (b"null", "the listing is not a JSON array"),
        (b'{"Message":"x"}', "the listing is not a JSON array"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_listing_is_broken(body: bytes, said: str) -> None:
    with pytest.raises(BrokenAnswerError, match=f"^{said}$"):
        parse_listing(body, "Audit.Exchange", NOW)


@pytest.mark.parametrize(
    ("body", "types"),
    [
        ("[]", set()),
        ('[{"contentType":"DLP.All","status":"enabled"}]', {"dlp.all"}),
        ('[{"contentType":"DLP.All","status":"Enabled"}]', {"dlp.all"}),
        ('[{"contentType":"DLP.All"}]', {"dlp.all"}),
        ('[{"contentType":"DLP.All","status":"disabled"}]', set()),
        ('[{"contentType":"Audit.Sharepoint","status":"enabled"}]', {"audit.sharepoint"}),
        ('\ufeff[{"contentType":"DLP.All","status":null}]', {"dlp.all"}),
    ],
)  # fmt: skip
def test_the_enabled_subscriptions_are_read(body: str, types: set[str]) -> None:
    assert parse_subscriptions(body.encode()) == types


def test_an_entry_that_names_no_blob_is_counted_and_hides_no_other() -> None:
    body = b'[1,{},{"contentId":""},{"contentId":5},{"contentId":"id1"},null]'
    blobs, none = parse_listing(body, "Audit.Exchange", NOW)
    assert [blob.id for blob in blobs] == ["id1"]
    assert none == 5


@pytest.mark.parametrize("body", ["", "<html>", "null", "[1]", "[{}]", "[" * 100_000])
def test_what_is_no_list_of_subscriptions_is_broken(body: str) -> None:
    with pytest.raises(BrokenAnswerError):
        parse_subscriptions(body.encode())


# -- addresses


def test_an_operation_carries_the_publisher() -> None:
    assert FEED.operation("start", contentType="DLP.All") == (
        f"{ROOT}/api/v1.0/{TENANT}/activity/feed/subscriptions/start"
        f"?contentType=DLP.All&{PUBLISHED}"
    )


def test_a_listing_names_both_times_in_whole_seconds() -> None:
    window = Window(NOW, NOW + timedelta(hours=1))
    assert FEED.listing("Audit.Exchange", window) == (
        f"{ROOT}/api/v1.0/{TENANT}/activity/feed/subscriptions/content"
        "?contentType=Audit.Exchange&startTime=2026-03-02T10:00:00"
        f"&endTime=2026-03-02T11:00:00&{PUBLISHED}"
    )


REBUILT = f"{ROOT}/api/v1.0/{TENANT}/activity/feed/audit/abc$def?{PUBLISHED}"
OTHER = BLOB.replace(TENANT, OTHER_TENANT)


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        (BLOB, f"{BLOB}?{PUBLISHED}"),
        (BLOB + "?a=b", f"{BLOB}?a=b&{PUBLISHED}"),
        (f"{BLOB}?publisheridentifier=x", f"{BLOB}?publisheridentifier=x"),
        (BLOB.replace("https://manage", "HTTPS://MANAGE"), f"{BLOB}?{PUBLISHED}"),
        (BLOB.replace(".com", ".com:443"), f"{BLOB}?{PUBLISHED}"),
        (BLOB.replace(TENANT, TENANT.upper()), BLOB.replace(TENANT, TENANT.upper()) + f"?{PUBLISHED}"),
        ("", REBUILT),
        (f"http://localhost/{OTHER_TENANT}/activity/feed/audit/abc$def", REBUILT),
        (BLOB.replace("https", "http"), REBUILT),
        (BLOB.replace("manage.office.com", "evil.example.net"), REBUILT),
        (BLOB.replace("https://", "https://manage.office.com@evil.example.net/"), REBUILT),
        (BLOB.replace("https://", "https://user@"), REBUILT),
        (BLOB.replace(".com", ".com:8443"), REBUILT),
        (BLOB.replace(".com", ".com.evil.example.net"), REBUILT),
        (BLOB.replace(".com", ".com\\@evil.example.net"), REBUILT),
        (BLOB.replace(".com/", ".com#@evil.example.net/"), REBUILT),
        (OTHER, REBUILT),
        (BLOB.replace("audit/", "../../audit/"), REBUILT),
        (BLOB.replace("audit/", "%2e%2E/audit/"), REBUILT),
        (BLOB.replace(".com", ".com:443:443"), REBUILT),
        (f"{ROOT}/elsewhere/{TENANT}/activity/feed/audit/abc", REBUILT),
        (f"{ROOT}/api/v1.0/{TENANT}/activity/feed/subscriptions/stop", REBUILT),
        (BLOB + "\r\nX: y", REBUILT),
        (BLOB + " ", REBUILT),
        (BLOB + "\u00e9", REBUILT),
        ("https://[::1", REBUILT),
        (BLOB.replace(".com", ".com:99999"), REBUILT),
    ],
)  # fmt: skip
def test_a_blob_is_asked_for_at_our_root_and_tenant_alone(uri: str, url: str) -> None:
    assert FEED.blob(make_blob("abc$def", uri=uri)) == url


def test_an_odd_content_id_is_escaped_in_a_rebuilt_address() -> None:
    url = FEED.blob(make_blob("a/../b?c#d e\u00e9"))
    assert url == (
        f"{ROOT}/api/v1.0/{TENANT}/activity/feed/audit/"
        f"a%2F..%2Fb%3Fc%23d%20e%C3%A9?{PUBLISHED}"
    )


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        (PAGE, f"{PAGE}&{PUBLISHED}"),
        (PAGE.replace("v1.0", "v1"), PAGE.replace("v1.0", "v1") + f"&{PUBLISHED}"),
        (f"{PAGE}&publisherIdentifier=x", f"{PAGE}&publisherIdentifier=x"),
        (f"{PAGE}&PublisherIdentifier=", f"{PAGE}&PublisherIdentifier="),
        (PAGE.replace("https", "http"), ""),
        (PAGE.replace("manage", "elsewhere"), ""),
        (PAGE.replace(TENANT, OTHER_TENANT), ""),
        (PAGE.removeprefix(ROOT), ""),
        ("ht!tp:/[nowhere", ""),
        ("", ""),
    ],
)
def test_a_next_page_is_used_as_given_or_not_at_all(uri: str, url: str) -> None:
    assert FEED.next_page(uri) == url


def test_a_root_with_a_path_keeps_it() -> None:
    feed = Feed("https://gateway.example.net/o365", TENANT, TENANT)
    own = f"https://gateway.example.net/o365/api/v1.0/{TENANT}/activity/feed"
    assert feed.base == own
    assert feed.next_page(f"{own}/x?y=1") == (
        f"{own}/x?y=1&PublisherIdentifier={TENANT}"
    )
    assert feed.next_page(f"https://gateway.example.net/api/{TENANT}/x") == ""


@pytest.mark.parametrize(
    ("headers", "uri"),
    [
        ({"nextpageuri": "a", "nextpageurl": "b"}, "a"),
        ({"nextpageurl": "b"}, "b"),
        ({}, ""),
    ],
)
def test_the_next_page_header_has_two_names(headers: dict[str, str], uri: str) -> None:
    assert next_page_header(headers) == uri
