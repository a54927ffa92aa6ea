"""The Management Activity API host."""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from emulator.clock import http_date, stamp
from emulator.content import Blob
from emulator.entra import GUID
from emulator.options import CONTENT_TYPES
from emulator.wire import Answer, Ask

if TYPE_CHECKING:
    from emulator.office import Emulator

ZERO_GUID = "00000000-0000-0000-0000-000000000000"
DAY = timedelta(days=1)
_PATH = re.compile(
    r"/api/v1(\.0)?/(?P<tenant>[^/]+)/activity/feed/"
    r"((subscriptions/(?P<operation>start|stop|list|content|notifications))"
    r"|(audit/(?P<blob>[^/]+))"
    r"|(?P<names>resources/dlpSensitiveTypes))/?",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)"
    r"(T(?P<time>\d\d:\d\d(:\d\d)?)(?P<fraction>\.\d{1,7})?)?"
    r"(?P<zone>Z|[+-]\d\d:\d\d| \d\d:\d\d)?"
)
# AF429 names the method by words of its own (TRB).
_METHODS = {
    "content": "GetContents",
    "blob": "GetBlob",
    "list": "ListSubscriptions",
    "start": "StartSubscription",
    "stop": "StopSubscription",
}
_DEFAULT_STATUS = {"AF20050": 404, "AF50000": 500, "AF10001": 401}


@dataclass
class _Listing:
    """What a nextPage token stands for."""

    content_type: str
    start: str
    end: str
    blobs: tuple[Blob, ...]
    offset: int
    issued: datetime
    pairs: tuple[tuple[str, str], ...] = ()
    path: str = ""
    served: bool = False


@dataclass(frozen=True)
class Window:
    start: datetime
    end: datetime
    start_text: str
    end_text: str
    is_broken: bool = False  # a blank where "+00:00" lost its plus sign


class ApiError(Exception):
    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(code, message)
        self.code, self.message, self.status = code, message, status


def api_headers(now: datetime) -> tuple[tuple[str, str], ...]:
    return (
        ("Cache-Control", "no-cache"),
        ("Pragma", "no-cache"),
        ("Expires", "-1"),
        ("Server", "Microsoft-IIS/10.0"),
        ("X-AspNet-Version", "4.0.30319"),
        ("X-Powered-By", "ASP.NET"),
        ("mise-correlation-id", secrets.token_hex(16)),
        ("Date", http_date(now)),
    )


def error_body(code: str, message: str) -> bytes:
    whole = {"error": {"code": code, "message": message}}
    return json.dumps(whole, separators=(",", ":")).encode()


class Activity:
    """Subscriptions, listings and blobs of one tenant and one app."""

    def __init__(self, office: Emulator) -> None:
        self._office = office
        self.lock = threading.RLock()
        self.subscriptions: dict[str, str] = {}
        self.blobs: list[Blob] = []
        self._by_id: dict[str, Blob] = {}
        self._listings: dict[str, _Listing] = {}
        self._started_at: dict[str, datetime] = {}
        self._began: dict[str, datetime] = {}
        self._limbo: set[str] = set()
        self._foreign: set[str] = set()
        self._seen_missing: set[str] = set()
        self._hits: dict[str, deque[float]] = {}
        self._partial: set[str] = set()
        self._serial = 0

    # -- addresses

    @staticmethod
    def read(raw: Ask) -> Ask:
        found = _PATH.fullmatch(raw.path)
        if found is None:
            return raw
        tenant = unquote(found["tenant"])
        if found["blob"]:
            identity = unquote(found["blob"])
            return replace(raw, operation="blob", tenant=tenant, content_id=identity)
        if found["names"]:
            return replace(raw, operation="names", tenant=tenant)
        return replace(raw, operation=found["operation"].lower(), tenant=tenant)

    def add(self, blob: Blob) -> None:
        with self.lock:
            self.blobs.append(blob)
            self._by_id[blob.content_id] = blob

    def blob(self, content_id: str) -> Blob | None:
        with self.lock:
            return self._by_id.get(content_id)

    def remove(self, content_id: str) -> None:
        """Still listed, but no longer there (AF20050)."""
        with self.lock:
            del self._by_id[content_id]

    def show(self, content_id: str) -> None:
        """A blob that was to become visible later is visible now."""
        now = self._office.clock.now()
        with self.lock:
            for place, blob in enumerate(self.blobs):
                if blob.content_id == content_id:
                    self.blobs[place] = shown = replace(blob, visible=now)
                    self._by_id[content_id] = shown

    def enable(self, content_type: str) -> None:
        with self.lock:
            self.subscriptions[content_type] = "enabled"
            self._began[content_type] = datetime.min.replace(tzinfo=UTC)

    def asked_before(self, content_type: str) -> None:
        """As if another program had asked for a start a moment ago.

        The first start after it is no violation; one more after the refusal is.
        """
        with self.lock:
            self._foreign |= {content_type, "app"}
            self._started_at[content_type] = self._office.clock.now()
            self._started_at["app"] = self._office.clock.now()

    def forget_starts(self) -> None:
        """The cool-down is over."""
        with self.lock:
            self._started_at.clear()

    def into_limbo(self, content_type: str) -> None:
        """Enabled, not listed, and no content (docs#479)."""
        with self.lock:
            self.subscriptions[content_type] = "enabled"
            self._limbo.add(content_type)

    def out_of_limbo(self) -> None:
        with self.lock:
            self._limbo.clear()

    # -- every request

    def answer(self, ask: Ask) -> Answer:
        office = self._office
        headers = api_headers(office.clock.now())
        try:
            claims = self._authorise(ask)
            if claims is None:
                # Exactly 61 bytes, and no "error" member (fact sheet 2.11).
                body = b'{"Message":"Authorization has been denied for this request."}'
                headers += (("WWW-Authenticate", "Bearer"),)
                return Answer(401, body, headers)
            answer = self._route(ask, claims)
        except ApiError as error:
            status = error.status or office.options.status(
                error.code, _DEFAULT_STATUS.get(error.code, 400)
            )
            answer = Answer(status, error_body(error.code, error.message))
            retry = office.options.throttle_retry_after
            if error.code == "AF429" and retry is not None:
                headers += (("Retry-After", str(retry)),)
        return replace(answer, headers=headers + answer.headers)

    def _authorise(self, ask: Ask) -> dict[str, Any] | None:
        office = self._office
        claims = office.login.claims(ask.token)
        if claims is None:
            return None
        if claims["aud"] != office.api_root:
            office.journal.violate(ask, "a token for another resource was sent")
            return None
        if office.clock.now().timestamp() >= claims["exp"]:
            return None
        return claims

    def _route(self, ask: Ask, claims: dict[str, Any]) -> Answer:
        if ask.operation == "other":
            body = {"Message": "No HTTP resource was found that matches the request."}
            return Answer(404, json.dumps(body).encode())
        wanted = "POST" if ask.operation in ("start", "stop") else "GET"
        if ask.method != wanted:
            body = {"Message": f"The resource does not support method '{ask.method}'."}
            return Answer(405, json.dumps(body).encode(), (("Allow", wanted),))
        if wanted == "POST" and "content-length" not in ask.headers:
            return Answer(411, b"<h2>Length Required</h2>", media_type="text/html")
        self._check_tenant(ask, claims)
        self._check_publisher(ask)
        self._check_rate(ask)
        handlers = {
            "start": self._start,
            "stop": self._stop,
            "list": self._list,
            "content": self._content,
            "notifications": self._notifications,
            "blob": self._blob,
            "names": self._names,
        }
        return handlers[ask.operation](ask, claims)

    def _check_tenant(self, ask: Ask, claims: dict[str, Any]) -> None:
        office, tenant = self._office, ask.tenant or ""
        if not GUID.fullmatch(tenant):
            raise ApiError(
                "AF20013", f"The tenant ID passed in the URL ({tenant}) is not a GUID."
            )
        is_app = tenant.lower() == office.client_id.lower()
        if is_app and office.options.app_id_as_tenant:
            return
        if tenant.lower() != claims["tid"].lower():
            if ask.operation == "blob":
                # Wrong tenant on a blob: AF20052 in the wild (powerapps-tools#552).
                raise ApiError(
                    "AF20052", f"Blob key {ask.content_id} in the url is invalid."
                )
            raise ApiError(
                "AF20010",
                f"The tenant ID in the URL ({tenant}) is not that of the access token"
                f" ({claims['tid']}).",
            )
        if office.options.tenant_state == "deleted":
            raise ApiError("AF20011", f"Specified tenant ID ({tenant}) does not exist.")
        if office.options.tenant_state == "misconfigured":
            raise ApiError(
                "AF20012", f"Specified tenant ID ({tenant}) is incorrectly configured."
            )

    def _check_publisher(self, ask: Ask) -> None:
        publisher = ask.publisher_id
        if publisher is None:
            self._office.journal.violate(ask, "PublisherIdentifier is missing")
            return
        if not GUID.fullmatch(publisher):
            self._office.journal.violate(ask, "PublisherIdentifier is no GUID")
            raise ApiError(
                "AF20002",
                "Invalid parameter type: PublisherIdentifier. Expected type: guid",
            )
        count = sum(name.lower() == "publisheridentifier" for name, _ in ask.query)
        if count > 1:
            self._office.journal.violate(ask, "PublisherIdentifier was sent twice")

    def _check_rate(self, ask: Ask) -> None:
        options = self._office.options
        if options.rate_limit is None:
            return
        publisher = (ask.publisher_id or ZERO_GUID).lower()
        now = time.monotonic()
        with self.lock:
            hits = self._hits.setdefault(publisher, deque())
            while hits and hits[0] < now - options.rate_window_s:
                hits.popleft()
            if len(hits) >= options.rate_limit:
                raise self.throttled(ask)
            hits.append(now)

    def throttled(self, ask: Ask, status: int | None = None) -> ApiError:
        method = _METHODS.get(ask.operation, ask.operation)
        return ApiError(
            "AF429",
            f"Too many requests. Method={method},"
            f" PublisherId={ask.publisher_id or ZERO_GUID}",
            status or self._office.options.throttle_status,
        )

    # -- subscriptions

    def _content_type(self, ask: Ask, claims: dict[str, Any]) -> str:
        given = ask.content_type
        if not given:
            raise ApiError("AF20001", "Missing parameter: contentType.")
        for known in CONTENT_TYPES:
            if known.lower() == given.lower():
                self._check_role(claims, known)
                return known
        raise ApiError("AF20020", "The specified content type is not valid.")

    @staticmethod
    def _check_role(claims: dict[str, Any], content_type: str) -> None:
        roles = claims.get("roles", [])
        needed = ["ActivityFeed.Read"]
        if content_type == "DLP.All":
            needed.append("ActivityFeed.ReadDlp")
        for role in needed:
            if role not in roles:
                raise ApiError(
                    "AF10001",
                    f"The permission set ({' '.join(roles)}) sent in the request does"
                    " not include the expected permission.",
                )

    def _auditing(self, content_type: str, ask: Ask) -> None:
        office = self._office
        if not office.options.auditing_off:
            return
        code = (
            f"StartSubscription [TenantId={office.tenant_id},"
            f"ContentType={content_type},ApplicationId={office.client_id},"
            f"PublisherId={ask.publisher_id or ZERO_GUID}] failed. Exception"
        )
        message = (
            "Microsoft.Office.Compliance.Audit.DataServiceException: Tenant"
            f" {office.tenant_id} does not exist.\r\n"
            "   at Microsoft.Office.Compliance.Audit.API.AzureManager.<Get>d__1\r\n"
            "--- End of stack trace from previous location ---\r\n"
        )
        raise ApiError(code, message, 400)

    def _start(self, ask: Ask, claims: dict[str, Any]) -> Answer:
        content_type = self._content_type(ask, claims)
        journal, options = self._office.journal, self._office.options
        if ask.body:
            try:
                json.loads(ask.body)
            except ValueError:
                raise ApiError("AF20002", "Invalid parameter type: webhook.") from None
        now = self._office.clock.now()
        with self.lock:
            is_enabled = self.subscriptions.get(content_type) == "enabled"
            if is_enabled and content_type not in self._limbo:
                journal.violate(ask, f"start of {content_type}, which is enabled")
            elif content_type not in self._seen_missing and not options.lenient_start:
                journal.violate(ask, f"start of {content_type} without a listing")
            self._cool_down(content_type, now, ask)
            self._auditing(content_type, ask)
            if self.subscriptions.get(content_type) == "enabled":
                raise ApiError(
                    "AF20024",
                    "The subscription is already enabled. No property change.",
                )
            self.subscriptions[content_type] = "enabled"
            self._began[content_type] = now
        body = {
            "contentType": ask.content_type,
            "status": "enabled",
            "webhook": None,
        }
        return Answer(200, json.dumps(body).encode())

    def _cool_down(self, content_type: str, now: datetime, ask: Ask) -> None:
        options = self._office.options
        key = content_type if options.cool_down_per == "type" else "app"
        before = self._started_at.get(key)
        if before is not None and now - before < options.cool_down:
            left = int((options.cool_down - (now - before)).total_seconds())
            if key not in self._foreign:
                self._office.journal.violate(ask, "start within the cool-down")
            self._foreign.discard(key)
            raise ApiError(
                "429",
                "Too many frequent subscription start requests. Please retry again"
                f" after {left // 60}m {left % 60}s",
                options.cool_down_status,
            )
        self._started_at[key] = now

    def _stop(self, ask: Ask, claims: dict[str, Any]) -> Answer:
        content_type = self._content_type(ask, claims)
        self._office.journal.violate(ask, f"stop of {content_type}")
        with self.lock:
            if content_type not in self.subscriptions:
                raise self._no_subscription()
            self.subscriptions[content_type] = "disabled"
            if self._office.options.limbo_after_stop:
                self._limbo.add(content_type)
        return Answer(self._office.options.stop_status)

    @staticmethod
    def _no_subscription() -> ApiError:
        return ApiError(
            "AF20022", "No subscription found for the specified content type."
        )

    def _list(self, ask: Ask, claims: dict[str, Any]) -> Answer:
        self._check_role(claims, "")
        rows: list[dict[str, Any]] = []
        with self.lock:
            for content_type, status in self.subscriptions.items():
                if content_type not in self._limbo:
                    row = {"contentType": content_type, "status": status}
                    rows.append(row | {"webhook": None})
            self._seen_missing = {
                name
                for name in CONTENT_TYPES
                if self.subscriptions.get(name) != "enabled" or name in self._limbo
            }
        if rows and self._office.options.subscription_without_status:
            del rows[0]["status"]
        return Answer(200, json.dumps(rows).encode())

    def _names(self, ask: Ask, claims: dict[str, Any]) -> Answer:
        self._check_role(claims, "DLP.All")
        language = ask.headers.get("accept-language", "en-US")
        if "," in language:
            raise ApiError("AF20053", "Only one language may be present.")
        rows = [
            {"id": "50842eb7-edc8-4019-85dd-5a5c1f2bb085", "name": "Credit Card Number"}
        ]
        return Answer(200, json.dumps(rows).encode())

    # -- listings

    def _subscribed(self, content_type: str) -> None:
        status = self.subscriptions.get(content_type)
        if status is None or status == "disabled" or content_type in self._limbo:
            self._seen_missing.add(content_type)
            if status is None:
                raise self._no_subscription()
            raise ApiError("AF20023", "The subscription was disabled.")

    def _notifications(self, ask: Ask, claims: dict[str, Any]) -> Answer:
        self._content_type(ask, claims)
        self._office.journal.violate(ask, "notifications are no way to find content")
        return Answer(200, b"[]")

    def _content(self, ask: Ask, claims: dict[str, Any]) -> Answer:
        content_type = self._content_type(ask, claims)
        with self.lock:
            self._subscribed(content_type)
            if ask.next_page is not None:
                listing = self._continued(ask, content_type)
            else:
                window = self._window(ask)
                blobs = [] if window.is_broken else self._visible(content_type, window)
                listing = _Listing(
                    content_type=content_type,
                    start=window.start_text,
                    end=window.end_text,
                    blobs=tuple(blobs),
                    offset=0,
                    issued=self._office.clock.now(),
                )
            return self._page(listing)

    def _page(self, listing: _Listing) -> Answer:
        size = self._office.page_size
        page = listing.blobs[listing.offset : listing.offset + size]
        headers: tuple[tuple[str, str], ...] = ()
        if listing.offset + size < len(listing.blobs):
            url = self.next_page_url(replace(listing, offset=listing.offset + size))
            # WZ's parser took the header after it as well (wazuh#30921).
            headers = (
                (self._office.options.next_page_header, url),
                ("X-AspNet-Version", "4.0.30319"),
            )
        body = json.dumps(self.rows(page), separators=(",", ":")).encode()
        return Answer(200, body, headers)

    @staticmethod
    def rows(blobs: Sequence[Blob]) -> list[dict[str, str]]:
        return [
            {
                "contentUri": blob.content_uri,
                "contentId": blob.content_id,
                "contentType": blob.content_type,
                "contentCreated": stamp(blob.created),
                "contentExpiration": stamp(blob.expires),
            }
            for blob in blobs
        ]

    def next_page_url(self, listing: _Listing) -> str:
        """Issue a token for the rest of a listing."""
        options = self._office.options
        with self.lock:
            self._serial += 1
            now = self._office.clock.now()
            token = f"{now:%Y%m%d%H}R{self._serial:06d}{secrets.randbelow(10**8):08d}"
            pairs = [
                ("contentType", listing.content_type),
                ("startTime", listing.start),
                ("endTime", listing.end),
                ("nextPage", token),
            ]
            if options.next_page_publisher:
                pairs.append(("PublisherIdentifier", self._office.tenant_id))
            if options.next_page_lower_case:
                pairs = [(name.lower(), value) for name, value in pairs]
            path = (
                f"/api/{options.next_page_path}/{self._office.tenant_id}"
                "/activity/feed/subscriptions/content"
            )
            self._listings[token] = replace(
                listing, issued=now, pairs=tuple(pairs), path=path, served=False
            )
        query = "&".join(f"{name}={quote(value, safe=':$')}" for name, value in pairs)
        return f"{self._office.api_root}{path}?{query}"

    def first_page_url(self, ask: Ask) -> str:
        """A token that stands for the listing that is being asked, from its top."""
        content_type = ask.content_type or ""
        with self.lock:
            window = self._window(ask)
            listing = _Listing(
                content_type=content_type,
                start=window.start_text,
                end=window.end_text,
                blobs=tuple(self._visible(content_type, window)),
                offset=0,
                issued=self._office.clock.now(),
            )
            return self.next_page_url(listing)

    def _continued(self, ask: Ask, content_type: str) -> _Listing:
        token = ask.next_page or ""
        listing = self._listings.get(token)
        now = self._office.clock.now()
        if (
            listing is None
            or listing.content_type != content_type
            or now - listing.issued > self._office.options.next_page_age
        ):
            raise ApiError("AF20031", f"Invalid nextPage Input: {token}.")
        self._check_verbatim(ask, listing)
        if listing.served:
            self._office.journal.violate(ask, "the same page was asked again")
        return listing

    def _check_verbatim(self, ask: Ask, listing: _Listing) -> None:
        def plain(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
            return [pair for pair in pairs if pair[0].lower() != "publisheridentifier"]

        if ask.path != listing.path or plain(ask.query) != plain(listing.pairs):
            self._office.journal.violate(ask, "NextPageUri was not used as given")

    def page_served(self, ask: Ask) -> None:
        """The page went out whole: asking for it again is a fault of the client."""
        with self.lock:
            listing = self._listings.get(ask.next_page or "")
            if listing is not None:
                listing.served = True

    def _visible(self, content_type: str, window: Window) -> list[Blob]:
        office, now = self._office, self._office.clock.now()
        began = self._began.get(content_type)
        delay = office.options.first_content_delay
        if began is not None and delay and now < began + delay:
            return []
        found = [
            blob
            for blob in self.blobs
            if blob.content_type == content_type
            and blob.visible <= now
            and window.start <= blob.created < window.end
        ]
        found.sort(key=lambda blob: (blob.visible, blob.created))
        for blob in found:
            # A startTime at a blob's creation may show a part of it (BEATS).
            cut = blob.created - window.start < timedelta(seconds=1)
            if blob.partial is not None and cut:
                self._partial.add(blob.content_id)
            else:
                self._partial.discard(blob.content_id)
        if office.options.listing_order == "reversed":
            found.reverse()
        elif office.options.listing_order == "shuffled":
            found.sort(key=lambda blob: zlib.crc32(blob.content_id.encode()))
        return found

    # -- windows

    def _window(self, ask: Ask) -> Window:
        office, options = self._office, self._office.options
        now = office.clock.now()
        start_text, end_text = ask.value("startTime"), ask.value("endTime")
        if not start_text and not end_text:
            office.journal.violate(ask, "no startTime and no endTime")
            end = now.replace(microsecond=0)
            start = end - DAY
            if options.default_window == "today":
                start = now.replace(hour=0, minute=0, second=0, microsecond=0)
            return Window(start, end, _plain(start), _plain(end))
        if not start_text or not end_text:
            office.journal.violate(ask, "only one of startTime and endTime")
            raise self._bad_window()
        start, start_broken = self._time(ask, "startTime", start_text)
        end, end_broken = self._time(ask, "endTime", end_text)
        broken = start_broken or end_broken
        window = Window(start, end, start_text, end_text, broken)
        if end <= start:
            office.journal.violate(ask, "endTime is not after startTime")
            raise self._bad_window()
        if end - start >= DAY:
            office.journal.violate(ask, "a window of 24 h or more")
            if end - start > DAY:
                if options.over_24h == "error":
                    raise self._bad_window()
                window = replace(window, end=start + DAY)
            elif options.exact_24h == "refused":
                raise self._bad_window()
        if start < now - options.oldest_start:
            raise self._bad_window()
        return window

    def _bad_window(self) -> ApiError:
        code = self._office.options.window_code
        order = "prior to end time and start time " if code == "AF20055" else ""
        return ApiError(
            code,
            "Start time and end time must both be specified (or both omitted) and must"
            " be less than or equal to 24 hours apart, with the start time"
            f" {order}no more than 7 days in the past.",
        )

    def _time(self, ask: Ask, name: str, text: str) -> tuple[datetime, bool]:
        """The time, and whether its zone is a blank that makes it match nothing."""
        found = _TIME.fullmatch(text)
        bad = ApiError("AF20002", f"Invalid parameter type: {name}. Expected: datetime")
        if found is None:
            self._office.journal.violate(ask, f"{name} is no time: {text!r}")
            raise bad
        if found["fraction"] or found["zone"]:
            self._office.journal.violate(ask, f"{name} has a fraction or a zone")
        elif len(text) != len("2026-05-23T17:35:00"):
            self._office.journal.violate(ask, f"{name} is not given to the second")
        zone = found["zone"] or ""
        plain = f"{found['date']}T{found['time'] or '00:00'}{found['fraction'] or ''}"
        try:
            at = datetime.fromisoformat(plain).replace(tzinfo=UTC)
        except ValueError:
            self._office.journal.violate(ask, f"{name} is no time: {text!r}")
            raise bad from None
        if zone[:1] in ("+", "-"):
            hours, minutes = int(zone[1:3]), int(zone[4:6])
            shift = timedelta(hours=hours, minutes=minutes)
            at = at - shift if zone[0] == "+" else at + shift
        return at, zone.startswith(" ")

    # -- blobs

    def _blob(self, ask: Ask, claims: dict[str, Any]) -> Answer:
        with self.lock:
            blob = self._by_id.get(ask.content_id or "")
            listed = blob is not None or any(
                one.content_id == ask.content_id for one in self.blobs
            )
            partial = blob is not None and blob.content_id in self._partial
        if blob is None:
            if listed:
                raise ApiError(
                    "AF20050",
                    f"The specified content ({ask.content_id}) does not exist.",
                )
            raise ApiError("AF20052", f"Content ID {ask.content_id} is invalid.")
        self._check_role(claims, blob.content_type)
        if blob.expires <= self._office.clock.now():
            raise ApiError(
                "AF20051",
                f"Content requested with the key {ask.content_id} has already expired."
                " Content older than 7 days cannot be retrieved.",
            )
        if partial and blob.partial is not None:
            blob = blob.partial
        return Answer(200, blob.body, gzipped=blob.gzipped, ids=blob.ids)


def _plain(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%S}"


def query_of(url: str) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(url).query, keep_blank_values=True)
