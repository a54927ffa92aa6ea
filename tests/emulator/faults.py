"""Everything that can go wrong on the way, by name.

A fault is armed with `office.fail(operation, fault)`; see `Emulator.fail`.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from emulator import entra
from emulator.activity import api_headers, error_body
from emulator.clock import http_date, stamp
from emulator.content import BOM
from emulator.wire import Answer, Ask, GoneError, Outgoing, Wire

if TYPE_CHECKING:
    from emulator.office import Emulator


@dataclass(frozen=True)
class Scene:
    """Where a fault acts."""

    office: Emulator
    wire: Wire
    ask: Ask
    proceed: Callable[[], Answer]

    def error(
        self, status: int, body: bytes, media_type: str = "application/json"
    ) -> Answer:
        headers = api_headers(self.office.clock.now())
        if media_type == "application/json":
            media_type += "; charset=utf-8"
        return Answer(status, body, headers, media_type)


@dataclass(frozen=True)
class Fault:
    name: str
    act: Callable[[Scene], Answer]


HTML = (
    b"<!DOCTYPE html>\r\n<html><head><title>Service Unavailable</title></head>\r\n"
    b"<body><h2>Our services aren't available right now</h2></body></html>\r\n"
)


# -- answers that are errors


def status(
    code: int,
    body: bytes | str | None = None,
    *,
    af: str | None = None,
    message: str = "An error occurred. Retry the request.",
    retry_after: float | datetime | str | None = None,
    style: str = "json",
) -> Fault:
    """An error status; styles: json, single_quotes, html, text, empty, framework, bom."""

    def act(scene: Scene) -> Answer:
        name = af or ("AF50000" if code >= 500 else "AF429" if code == 429 else "")
        text, media = _styled(style, name or f"HTTP{code}", message)
        if body is not None:
            text = body.encode() if isinstance(body, str) else body
        answer = scene.error(code, text, media)
        return replace(answer, headers=answer.headers + _retry(scene, retry_after))

    return Fault(f"status {code}", act)


def _styled(style: str, code: str, message: str) -> tuple[bytes, str]:
    plain = error_body(code, message)
    if style == "json":
        return plain, "application/json"
    if style == "bom":
        return BOM + plain, "application/json"
    if style == "single_quotes":
        return plain.replace(b'"', b"'"), "application/json"
    if style == "html":
        return HTML, "text/html"
    if style == "text":
        return f"{code}: {message}".encode(), "text/plain"
    if style == "empty":
        return b"", "text/plain"
    if style == "framework":
        return json.dumps({"Message": message}).encode(), "application/json"
    known = "json, single_quotes, html, text, empty, framework, bom"
    text = f"no such style: {style!r} ({known})"
    raise ValueError(text)


def _retry(
    scene: Scene, after: float | datetime | str | None
) -> tuple[tuple[str, str], ...]:
    if after is None:
        return ()
    if isinstance(after, datetime):
        after = http_date(after)
    return (("Retry-After", str(after)),)


def throttle(
    status: int | None = None,
    retry_after: int | datetime | str | None = None,
    *,
    as_date: bool = False,
) -> Fault:
    """AF429; on the Graph host its own 429, at the token endpoint Entra's."""

    def act(scene: Scene) -> Answer:
        wait = retry_after
        if as_date and isinstance(wait, int):
            wait = http_date(scene.office.clock.now() + timedelta(seconds=wait))
        if scene.ask.host == "graph":
            answer = scene.office.graph.error(429, "TooManyRequests", "Too many.")
        elif scene.ask.host == "login":
            answer = entra.refusal(90055, status=429)
        else:
            error = scene.office.activity.throttled(scene.ask, status)
            body = error_body(error.code, error.message)
            answer = scene.error(error.status or 403, body)
        return replace(answer, headers=answer.headers + _retry(scene, wait))

    return Fault("throttle", act)


def af(code: str, status: int | None = None, message: str = "") -> Fault:
    """One of the API's own errors, with the status that it has elsewhere."""
    family = {"AF10001": 401, "AF20050": 404, "AF429": 403}
    usual = family.get(code, 500 if code.startswith("AF5") else 400)

    def act(scene: Scene) -> Answer:
        number = status or scene.office.options.status(code, usual)
        return scene.error(number, error_body(code, message or f"{code} was asked for"))

    return Fault(code, act)


def denied() -> Fault:
    """The framework's 401, as for a token that has run out."""

    def act(scene: Scene) -> Answer:
        body = b'{"Message":"Authorization has been denied for this request."}'
        answer = scene.error(401, body)
        headers = (*answer.headers, ("WWW-Authenticate", "Bearer"))
        return replace(answer, headers=headers)

    return Fault("denied", act)


def aadsts(
    number: int,
    reason: str = "",
    *,
    status: int | None = None,
    error: str | None = None,
    retry_after: int | None = None,
    crlf: bool = False,
) -> Fault:
    """A refusal by Entra ID with this number."""

    def act(scene: Scene) -> Answer:
        return entra.refusal(
            number,
            reason,
            error=error,
            status=status,
            retry_after=retry_after,
            crlf=crlf,
            correlation_id=scene.ask.headers.get("client-request-id"),
        )

    return Fault(f"AADSTS{number}", act)


def revoke() -> Fault:
    """Every token ends just before this request is looked at."""

    def act(scene: Scene) -> Answer:
        scene.office.revoke_tokens()
        return scene.proceed()

    return Fault("revoke", act)


# -- the connection


def _none(_: Wire, __: Outgoing) -> bool:
    return False


def reset(*, processed: bool = False) -> Fault:
    """RST before a byte is answered; `processed`: after the work was done."""

    def manner(wire: Wire, _: Outgoing) -> bool:
        wire.reset()
        return False

    def act(scene: Scene) -> Answer:
        if processed:
            scene.proceed()
        return Answer(0, manner=manner)

    return Fault("reset", act)


def close_without_answer() -> Fault:
    """FIN in place of an answer."""

    def manner(wire: Wire, _: Outgoing) -> bool:
        wire.finish()
        return False

    return Fault("close_without_answer", lambda _: Answer(0, manner=manner))


def _damaged(scene: Scene, manner: Callable[[Wire, Outgoing], bool]) -> Answer:
    return replace(scene.proceed(), manner=manner, ids=())


def reset_mid_body() -> Fault:
    """Head, half of the body, RST."""

    def manner(wire: Wire, out: Outgoing) -> bool:
        wire.send(out.head() + out.body[: len(out.body) // 2])
        wire.wait(0.02)
        wire.reset()
        return False

    return Fault("reset_mid_body", lambda scene: _damaged(scene, manner))


def short_body() -> Fault:
    """Less than Content-Length says, then FIN."""

    def manner(wire: Wire, out: Outgoing) -> bool:
        wire.send(out.head() + out.body[: len(out.body) // 2])
        wire.finish()
        return False

    return Fault("short_body", lambda scene: _damaged(scene, manner))


def odd_length(value: str) -> Fault:
    """A whole body under a Content-Length that is none or not its own, then FIN."""

    def manner(wire: Wire, out: Outgoing) -> bool:
        headers = (*out.without("Content-Length"), ("Content-Length", value))
        wire.send(replace(out, headers=headers).head() + out.body)
        wire.finish()
        return False

    return Fault(f"odd_length {value[:20]}", lambda scene: _damaged(scene, manner))


def bad_chunking() -> Fault:
    """A chunk, then a chunk size that is none."""

    def manner(wire: Wire, out: Outgoing) -> bool:
        headers = (*out.without("Content-Length"), ("Transfer-Encoding", "chunked"))
        half = out.body[: max(1, len(out.body) // 2)]
        wire.send(replace(out, headers=headers).head())
        wire.send(f"{len(half):x}\r\n".encode() + half + b"\r\nzz\r\n")
        wire.finish()
        return False

    return Fault("bad_chunking", lambda scene: _damaged(scene, manner))


def _half(body: bytes) -> bytes:
    return body[: len(body) // 2]


def cut_gzip() -> Fault:
    """Half of the gzip stream with a Content-Length that fits."""

    def act(scene: Scene) -> Answer:
        answer = scene.proceed()
        return replace(answer, encoding="gzip", mangle=_half, ids=())

    return Fault("cut_gzip", act)


def drip(seconds_per_byte: float, part: str = "body") -> Fault:
    """A byte at a time; no single read ever times out."""

    def manner(wire: Wire, out: Outgoing) -> bool:
        head = out.head()
        if part == "body":
            wire.send(head)
            slow = out.body
        else:
            slow = head + out.body
        for place in range(len(slow)):
            wire.send(slow[place : place + 1])
            wire.wait(seconds_per_byte)
        return out.keep_alive

    return Fault("drip", lambda scene: replace(scene.proceed(), manner=manner, ids=()))


def hang(seconds: float = 3600, part: str = "headers") -> Fault:
    """Silence before the headers, or after them and half of the body."""

    def manner(wire: Wire, out: Outgoing) -> bool:
        half = len(out.body) // 2
        wire.send(out.head() + out.body[:half])
        wire.wait(seconds)
        wire.send(out.body[half:])
        return out.keep_alive

    def act(scene: Scene) -> Answer:
        if part == "headers":
            scene.wire.wait(seconds)
            return scene.proceed()
        return replace(scene.proceed(), manner=manner, ids=())

    return Fault("hang", act)


def latency(seconds: float) -> Fault:
    """The right answer, later."""

    def act(scene: Scene) -> Answer:
        scene.wire.wait(seconds)
        return scene.proceed()

    return Fault("latency", act)


def endless_body(event: str = '{"Id":"endless"}') -> Fault:
    """A chunked array that never ends."""

    def manner(wire: Wire, out: Outgoing) -> bool:
        headers = (
            *out.without("Content-Length", "Content-Encoding"),
            ("Transfer-Encoding", "chunked"),
        )
        wire.send(replace(out, headers=headers).head())
        piece = (event + ",").encode() * max(1, 65536 // (len(event) + 1))
        wire.send(b"1\r\n[\r\n")
        while not wire.stopping.is_set():
            wire.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        raise GoneError

    return Fault("endless_body", lambda scene: _damaged(scene, manner))


def gzip_bomb(megabytes: int = 300) -> Fault:
    """A small answer that unpacks to this much."""

    def act(scene: Scene) -> Answer:
        answer = scene.proceed()
        return replace(
            answer, encoding="gzip", mangle=lambda _: _bomb(megabytes), ids=()
        )

    return Fault("gzip_bomb", act)


_bombs: dict[int, bytes] = {}


def _bomb(megabytes: int) -> bytes:
    if megabytes not in _bombs:
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        blank = b" " * (1 << 20)
        parts = [packer.compress(b"[")]
        parts += [packer.compress(blank) for _ in range(megabytes)]
        _bombs[megabytes] = b"".join([*parts, packer.compress(b"]"), packer.flush()])
    return _bombs[megabytes]


# -- bodies that are not what they should be


def _body(
    name: str, change: Callable[[bytes], bytes], media: str | None = None
) -> Fault:
    def act(scene: Scene) -> Answer:
        answer = scene.proceed()
        kind = media or answer.media_type
        body = change(answer.body)
        return replace(answer, body=body, gzipped=None, media_type=kind, ids=())

    return Fault(name, act)


def half_json() -> Fault:
    """The first half of the text, otherwise in order."""
    return _body("half_json", lambda body: body[: max(1, len(body) // 2)])


def html() -> Fault:
    """200 with a page of a proxy."""

    def act(scene: Scene) -> Answer:
        return scene.error(200, HTML, "text/html")

    return Fault("html", act)


def not_array(value: Any = None) -> Fault:
    """200 with this JSON value in place of the array."""
    return _body("not_array", lambda _: json.dumps(value).encode())


def raw(
    body: bytes | str, media_type: str = "application/json; charset=utf-8"
) -> Fault:
    """200 with this body."""
    data = body.encode() if isinstance(body, str) else body
    return _body("raw", lambda _: data, media_type)


def empty_body() -> Fault:
    """200 with nothing in it."""
    return _body("empty_body", lambda _: b"")


def bom() -> Fault:
    """A UTF-8 BOM before the JSON; the answer is otherwise whole (beats#44327)."""

    def act(scene: Scene) -> Answer:
        answer = scene.proceed()
        return replace(answer, body=BOM + answer.body, gzipped=None)

    return Fault("bom", act)


def not_utf8() -> Fault:
    """A byte in the middle that is no UTF-8."""

    def change(body: bytes) -> bytes:
        return body[: len(body) // 2] + b"\xff" + body[len(body) // 2 :]

    return _body("not_utf8", change)


def edit(change: Callable[[Any], Any]) -> Fault:
    """The answer's JSON, changed by a function."""
    return _body("edit", lambda body: json.dumps(change(json.loads(body))).encode())


def listing(kind: str, value: Any = None) -> Fault:
    """Rows of a listing, spoiled: twice, without, type_spelling, set, more."""

    def twice(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows for _ in range(2)]

    def without(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != value} for row in rows]

    def spelling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # asked Audit.SharePoint, told Audit.Sharepoint (docs#479)
        return [
            row | {"contentType": row["contentType"].replace("Point", "point")}
            for row in rows
        ]

    def fixed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | dict(value) for row in rows]

    def more(rows: list[Any]) -> list[Any]:
        return [*rows, value]

    kinds: dict[str, Callable[[Any], Any]] = {
        "twice": twice,
        "without": without,
        "type_spelling": spelling,
        "set": fixed,
        "more": more,
    }
    return replace(edit(kinds[kind]), name=f"listing {kind}")


# -- where to


def redirect(to: str = "trap", status: int = 302) -> Fault:
    """A redirect: to a URL, or to `trap`, `trap_http`, `self`."""

    def act(scene: Scene) -> Answer:
        office, target = scene.office, scene.ask.target
        root = {"login": office.login_root, "api": office.api_root}.get(
            scene.ask.host, office.graph_root
        )
        url = {
            "trap": office.trap_root + target,
            "trap_http": office.trap_http_root + target,
            "self": f"{root}{target}{'&' if '?' in target else '?'}redirected=1",
        }.get(to, to)
        office.journal.redirected(url)
        answer = scene.error(status, b"<h2>Object moved</h2>", "text/html")
        return replace(answer, headers=(*answer.headers, ("Location", url)))

    return Fault("redirect", act)


_fresh = itertools.count(1)

NEXT_PAGES = (
    "other_host",
    "http",
    "user_info",
    "other_port",
    "other_tenant",
    "relative",
    "garbage",
    "loop",
    "endless_same",
    "endless_fresh",
    "endless_empty",
    "empty_page",
    "expired",
    "url_header",
    "odd_case",
    "twice",
)


def next_page(kind: str) -> Fault:
    """A NextPageUri that is wrong, hostile or without end; kinds: NEXT_PAGES."""
    if kind not in NEXT_PAGES:
        message = f"no such kind: {kind!r} {NEXT_PAGES}"
        raise ValueError(message)

    def act(scene: Scene) -> Answer:
        return _next_page(scene, kind)

    return Fault(f"next_page {kind}", act)


def _next_page(scene: Scene, kind: str) -> Answer:
    ask = scene.ask
    if kind in ("url_header", "odd_case"):
        names = {"url_header": "NextPageUrl", "odd_case": "nextpageURI"}
        return _renamed(scene.proceed(), names[kind])
    if kind.startswith("endless") and ask.next_page is not None:
        answer = scene.error(200, _endless_page(scene, kind))
    else:
        answer = scene.proceed()
    if answer.status != 200:
        return answer
    if kind in ("empty_page", "endless_empty"):
        answer = replace(answer, body=b"[]", gzipped=None)
    elif kind == "endless_fresh":
        answer = replace(answer, body=_endless_page(scene, kind), gzipped=None)
    url = _next_url(scene, kind)
    headers = tuple(
        p for p in answer.headers if not p[0].lower().startswith("nextpage")
    )
    times = 2 if kind == "twice" else 1
    return replace(answer, headers=headers + (("NextPageUri", url),) * times)


def _renamed(answer: Answer, name: str) -> Answer:
    headers = tuple(
        (name if key.lower().startswith("nextpage") else key, value)
        for key, value in answer.headers
    )
    return replace(answer, headers=headers)


def _endless_page(scene: Scene, kind: str) -> bytes:
    office = scene.office
    content_type = scene.ask.content_type
    if kind == "endless_empty":
        return b"[]"
    if kind == "endless_same":
        same = [b for b in office.activity.blobs if b.content_type == content_type]
        return json.dumps(office.activity.rows(same[: office.page_size])).encode()
    now = stamp(office.clock.now() - timedelta(minutes=1))
    rows = []
    for _ in range(3):
        identity = (
            f"20260101000000000000000$20260101000000000000001$fresh{next(_fresh)}"
        )
        uri = f"{office.feed_root}/audit/{identity}"
        rows.append(
            {
                "contentUri": uri,
                "contentId": identity,
                "contentType": content_type,
                "contentCreated": now,
                "contentExpiration": stamp(office.clock.now() + timedelta(days=7)),
            }
        )
    return json.dumps(rows).encode()


def _next_url(scene: Scene, kind: str) -> str:
    office, ask = scene.office, scene.ask
    own = f"{office.api_root}{ask.target}"
    target = f"{ask.target}&nextPage=2026010100R000001001761"
    if kind.startswith("endless"):
        return (
            f"{own.split('&nextPage=', maxsplit=1)[0]}&nextPage=endless{next(_fresh)}"
        )
    if kind in ("empty_page", "twice"):
        return office.activity.first_page_url(ask)
    host = office.api_root.removeprefix("https://")
    trap = office.trap_root.removeprefix("https://")
    return {
        "other_host": office.trap_root + target,
        "http": office.trap_http_root + target,
        "user_info": f"https://{host}@{trap}{target}",
        "other_port": office.trap_root + target,
        "other_tenant": office.api_root
        + target.replace(office.tenant_id, office.other_tenant_id),
        "relative": target,
        "garbage": "ht!tp:/[nowhere",
        "loop": own,
        "expired": office.api_root + target,
    }[kind]


CONSTRUCTORS: dict[str, Callable[..., Fault]] = {
    maker.__name__: maker
    for maker in (
        status,
        throttle,
        af,
        denied,
        revoke,
        aadsts,
        reset,
        close_without_answer,
        reset_mid_body,
        short_body,
        odd_length,
        bad_chunking,
        cut_gzip,
        drip,
        hang,
        latency,
        endless_body,
        gzip_bomb,
        half_json,
        html,
        not_array,
        raw,
        empty_body,
        bom,
        not_utf8,
        listing,
        redirect,
        next_page,
    )
}
