"""One retry policy, bounded time and size, verified TLS."""

from __future__ import annotations

import gzip
import io
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from emulator import Emulator, faults
from hypothesis import given
from hypothesis import strategies as st
from making import make_azure
from urllib3 import BaseHTTPResponse, HTTPResponse, Retry
from urllib3.exceptions import (
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from o365_poller import (
    ANSWER_TIMEOUTS,
    MEGABYTE,
    PAUSE_LONGEST,
    PAUSES_IN_ALL,
    TRIES,
    AbandonedError,
    AnswerError,
    BrokenAnswerError,
    Call,
    ConfigError,
    Http,
    Secret,
    SourceError,
    Throttle,
    Verdict,
    backoff,
    ca_bundle,
    clean_reason,
    make_pools,
    read_answer,
    read_pieces,
    tls_context,
)

URL = "https://api.example.net/x"


def make_response(
    status: int = 200, body: bytes = b"fine", headers: Mapping[str, str] | None = None
) -> HTTPResponse:
    """A response as the pool gives it, its body not read yet."""
    named = {"Content-Length": str(len(body)), **(headers or {})}
    return HTTPResponse(
        io.BytesIO(body), headers=named, status=status, preload_content=False
    )


class Asked(NamedTuple):
    """A request as it came to the pool."""

    method: str
    target: str
    body: str | None
    headers: Mapping[str, str]
    named: Mapping[str, Any]


class Pool:
    """Gives one answer after the other and remembers what was asked."""

    def __init__(self, *answers: HTTPResponse | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Asked] = []

    def urlopen(
        self,
        method: str,
        target: str,
        body: str | None,
        headers: Mapping[str, str],
        retries: Retry,
        **named: Any,
    ) -> HTTPResponse:
        assert retries.total is False
        self.asked.append(Asked(method, target, body, headers, named))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Bearer:
    """A token that can be renewed."""

    def __init__(self) -> None:
        self.renewed = 0

    def token(self) -> Secret:
        return Secret(f"token{self.renewed}")

    def renew(self, refused: Secret) -> None:
        assert refused.reveal() == self.token().reveal()
        self.renewed += 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("o365_poller.PAUSE_FIRST", 0.001)


def make_http(*answers: HTTPResponse | Exception) -> tuple[Http, Pool]:
    pool = Pool(*answers)
    return Http(lambda _: pool, 5), pool  # type: ignore[arg-type, return-value]


def body_of(response: BaseHTTPResponse) -> bytes:
    return read_answer(response).body


def call(**changes: Any) -> Call:
    return Call(**{"method": "GET", "url": URL, "what": "the thing", **changes})


# -- pauses


@pytest.mark.parametrize(
    ("failures", "after", "chance", "pause"),
    [
        (1, None, 0.0, 0.0005),
        (1, None, 1.0, 0.001),
        (2, None, 1.0, 0.002),
        (4, None, 0.0, 0.004),
        (99, None, 1.0, 1.024),
        (1, 7.0, 0.5, 7.0),
        (1, 600.0, 0.5, PAUSE_LONGEST),
        (1, 0.0, 1.0, 0.001),
    ],
)
def test_a_pause_grows_is_jittered_and_capped(
    failures: int, after: float | None, chance: float, pause: float
) -> None:
    assert backoff(failures, after, chance) == pytest.approx(pause)


def test_the_first_pause_is_half_a_second_to_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    assert backoff(1, None, 0.0) == 0.5
    assert backoff(1, None, 0.999) < 1
    assert backoff(9, None, 0.5) == PAUSE_LONGEST


@given(st.integers(1, 10**6), st.none() | st.floats(0, 1e12), st.floats(0, 1))
def test_no_pause_is_longer_than_the_cap(
    failures: int, after: float | None, chance: float
) -> None:
    assert 0 < backoff(failures, after, chance) <= PAUSE_LONGEST


def test_the_gate_holds_all_requests_back_and_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Throttle()
    gate.slow_down(0.15)
    gate.slow_down(0.01)  # a shorter one does not open it
    began = time.monotonic()
    gate.wait(threading.Event())
    assert 0.14 <= time.monotonic() - began < 2
    gate.slow_down(60)
    stop = threading.Event()
    stop.set()
    gate.wait(stop)
    assert time.monotonic() - began < 3


def test_throttling_of_one_call_slows_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = make_response(429, b"", {"Retry-After": "1"})
    http, pool = make_http(limited, make_response(), make_response())
    began = time.monotonic()
    thread = threading.Thread(target=http.ask, args=(call(), body_of))
    thread.start()
    while not pool.asked:
        time.sleep(0.001)
    time.sleep(0.05)
    http.ask(call(), body_of)
    assert time.monotonic() - began >= 0.95
    thread.join()


# -- tries


@pytest.mark.parametrize(
    "fault",
    [
        make_response(500),
        make_response(503, b"<html>"),
        make_response(408),
        make_response(429),
        make_response(403, b'{"error":{"code":"AF429"}}'),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        NewConnectionError(None, "no"),  # type: ignore[arg-type]
        ReadTimeoutError(None, "/", "timed out"),  # type: ignore[arg-type]
        ProtocolError("broken"),
        RemoteDisconnected("gone"),
        make_response(200, b"cut", {"Content-Encoding": "gzip"}),
    ],
    ids=lambda fault: getattr(fault, "status", type(fault).__name__),
)
def test_what_may_pass_is_tried_again(fault: HTTPResponse | Exception) -> None:
    http, pool = make_http(fault, make_response())
    assert http.ask(call(), body_of) == b"fine"
    assert len(pool.asked) == 2


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (400, b"", Verdict.FAILED),
        (401, b"", Verdict.UNAUTHORIZED),
        (403, b"<html>", Verdict.FAILED),
        (404, b"", Verdict.MISSING),
        (302, b"", Verdict.FAILED),
        (400, b'{"error":{"code":"AF20022"}}', Verdict.NO_SUBSCRIPTION),
    ],
)
def test_a_final_no_is_not_tried_again(
    status: int, body: bytes, verdict: Verdict
) -> None:
    http, pool = make_http(make_response(status, body))
    with pytest.raises(AnswerError) as caught:
        http.ask(call(), body_of)
    assert caught.value.judgement.verdict is verdict
    assert len(pool.asked) == 1


def test_the_tries_are_counted_and_said() -> None:
    http, pool = make_http(*(make_response(503) for _ in range(9)))
    with pytest.raises(SourceError) as caught:
        http.ask(call(), body_of)
    assert len(pool.asked) == TRIES >= 4
    assert str(caught.value) == (
        f"the thing: HTTP 503 fine ({TRIES} tries); what is missing stays open and the "
        "next run asks again; nothing to do, unless it repeats: then look at the "
        "network and at Microsoft's service health"
    )


def test_one_try_is_one_try() -> None:
    http, pool = make_http(make_response(503))
    with pytest.raises(SourceError, match=r"\(1 try\)"):
        http.ask(call(tries=1), body_of)
    assert len(pool.asked) == 1


def test_the_pauses_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, pause: slept.append(pause))
    http, _ = make_http(
        *(make_response(503, b"", {"Retry-After": "99"}) for _ in range(9))
    )
    with pytest.raises(SourceError):
        http.ask(call(tries=99), body_of)
    assert sum(slept) <= PAUSES_IN_ALL
    assert slept == [PAUSE_LONGEST] * 3


def test_a_missing_blob_keeps_its_verdict_after_all_tries() -> None:
    http, pool = make_http(*(make_response(404) for _ in range(5)))
    with pytest.raises(AnswerError) as caught:
        http.ask(call(retried=frozenset({Verdict.MISSING})), body_of)
    assert caught.value.judgement.verdict is Verdict.MISSING
    assert len(pool.asked) == TRIES


def test_a_final_no_brings_its_answer_whole() -> None:
    http, _ = make_http(make_response(503), make_response(401, b"told"))
    with pytest.raises(AnswerError) as caught:
        http.ask(call(), body_of)
    answer = caught.value.answer
    assert answer is not None
    assert (answer.status, answer.body) == (401, b"told")


def test_a_set_stop_ends_it() -> None:
    http, pool = make_http()
    stop = threading.Event()
    stop.set()
    with pytest.raises(AbandonedError):
        http.ask(call(), body_of, stop=stop)
    assert pool.asked == []


def test_a_certificate_that_is_not_trusted_is_not_tried_again() -> None:
    error = SSLError(
        MaxRetryError(None, "/", ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"))  # type: ignore[arg-type]
    )  # fmt: skip
    http, pool = make_http(error)
    with pytest.raises(AnswerError) as caught:
        http.ask(call(), body_of)
    assert caught.value.judgement.reason.startswith("certificate not trusted: ")
    assert len(pool.asked) == 1


# -- the token


def test_a_refused_token_is_renewed_once() -> None:
    http, pool = make_http(make_response(401), make_response())
    bearer = Bearer()
    assert http.ask(call(), body_of, bearer) == b"fine"
    assert [asked.headers["Authorization"] for asked in pool.asked] == [
        "Bearer token0",
        "Bearer token1",
    ]


def test_a_token_that_is_refused_again_is_final() -> None:
    http, pool = make_http(make_response(401), make_response(401))
    with pytest.raises(AnswerError) as caught:
        http.ask(call(), body_of, Bearer())
    assert caught.value.judgement.verdict is Verdict.UNAUTHORIZED
    assert len(pool.asked) == 2


def test_without_a_bearer_no_token_is_sent() -> None:
    http, pool = make_http(make_response())
    http.ask(call(), body_of)
    assert "Authorization" not in pool.asked[0].headers


# -- what is sent


def test_every_request_asks_for_gzip_has_a_time_out_and_follows_nothing() -> None:
    http, pool = make_http(make_response())
    http.ask(call(url=URL + "?a=b%20c"), body_of)
    (asked,) = pool.asked
    assert (asked.method, asked.target) == ("GET", "/x?a=b%20c")
    assert asked.headers["Accept-Encoding"] == "gzip"
    assert asked.headers["User-Agent"].startswith("o365_poller/")
    assert asked.named["timeout"] == 5
    assert asked.named["redirect"] is False
    assert asked.named["preload_content"] is False


@pytest.mark.parametrize(
    ("environment", "proxy", "authorization"),
    [
        ({}, None, None),
        ({"HTTPS_PROXY": "http://proxy.test:3128"}, "proxy.test:3128", None),
        ({"HTTPS_PROXY": "proxy.test:3128"}, "proxy.test:3128", None),
        (
            {"HTTPS_PROXY": "http://me:p%40ss@proxy.test:3128"},
            "proxy.test:3128",
            "Basic bWU6cEBzcw==",
        ),
        (
            {"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": "api.example.net"},
            None,
            None,
        ),
    ],
)
def test_the_environment_names_the_proxy_once_for_each_host(
    monkeypatch: pytest.MonkeyPatch,
    environment: Mapping[str, str],
    proxy: str | None,
    authorization: str | None,
) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    context = tls_context(None)
    pool_for = make_pools(context, 3)
    pool = pool_for(URL)
    assert (pool.host, pool.scheme) == ("api.example.net", "https")
    assert (pool.proxy and f"{pool.proxy.host}:{pool.proxy.port}") == proxy
    assert pool.proxy_headers.get("Proxy-Authorization") == authorization
    assert pool.conn_kw["ssl_context"] is context
    monkeypatch.setenv("HTTPS_PROXY", "http://other.test:1")
    assert pool_for(URL + "y") is pool


def test_the_servers_clock_is_remembered() -> None:
    date = "Mon, 02 Mar 2026 10:00:00 GMT"
    http, _ = make_http(
        make_response(headers={"Date": date}), make_response(headers={"Date": "soon"})
    )
    http.ask(call(), body_of)
    http.ask(call(), body_of)
    assert http.dates == {"api.example.net": datetime(2026, 3, 2, 10, tzinfo=UTC)}


# -- bodies


def test_an_answer_is_unpacked_and_its_header_names_are_lower_case() -> None:
    response = make_response(
        200, gzip.compress(b"[]"), {"Content-Encoding": "GZIP", "NextPageURI": "x"}
    )
    answer = read_answer(response)
    assert (answer.status, answer.body, answer.headers["nextpageuri"]) == (
        200,
        b"[]",
        "x",
    )


def test_an_answer_without_end_is_broken() -> None:
    packed = gzip.compress(b" " * (2 * MEGABYTE))
    response = make_response(200, packed, {"Content-Encoding": "gzip"})
    with pytest.raises(BrokenAnswerError, match="^an answer of more than 1 MB$"):
        read_answer(response, MEGABYTE)


def test_of_an_error_without_end_no_more_than_a_megabyte_is_read() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            if self.given > 64 * MEGABYTE:
                return 0
            self.given += len(buffer)
            return len(buffer)

    bodies = [Endless(), Endless()]
    answers = [HTTPResponse(b, status=503, preload_content=False) for b in bodies]
    http, _ = make_http(*answers)
    with pytest.raises(SourceError, match=r"an answer of more than 1 MB \(2 tries\)"):
        http.ask(call(tries=2), body_of)
    assert max(body.given for body in bodies) < 2 * MEGABYTE


def test_a_length_beside_chunks_is_of_no_meaning() -> None:
    body = b"x" * (3 * MEGABYTE)
    headers = {"Transfer-Encoding": "chunked", "Content-Length": "10"}
    response = make_response(200, body, headers)
    pieces = list(read_pieces(response))
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) < MEGABYTE


def test_a_long_answer_without_a_length_is_read_in_pieces() -> None:
    response = make_response(200, b"x" * (3 * MEGABYTE))
    del response.headers["Content-Length"]
    assert len(read_answer(response).body) == 3 * MEGABYTE


# -- words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(111, "Connection refused"), "Connection refused"),
        (TimeoutError("timed out"), "timed out"),
        (TimeoutError(), "TimeoutError"),
        (ProtocolError("Connection aborted.", ConnectionResetError(104, "Connection reset by peer")), "Connection reset by peer"),
        (ProxyError("no", MaxRetryError(None, "/", OSError(113, "No route to host"))), "No route to host"),  # type: ignore[arg-type]
        (NewConnectionError(None, "<obj at 0x1>: Failed to resolve"), "None: Failed to resolve"),  # type: ignore[arg-type]
        (ValueError("a\nb"), "a b"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_an_error_is_told_in_its_own_words(error: Exception, words: str) -> None:
    assert clean_reason(error) == words


# -- trust


def test_the_configured_bundle_wins_over_the_environments() -> None:
    azure = make_azure()
    environ = {"REQUESTS_CA_BUNDLE": "/a.pem", "CURL_CA_BUNDLE": "/b.pem"}
    assert ca_bundle(azure, {}) is None
    assert ca_bundle(azure, environ) == Path("/a.pem")
    assert ca_bundle(azure, {"CURL_CA_BUNDLE": "/b.pem"}) == Path("/b.pem")
    own = azure._replace(ca_bundle=Path("/own.pem"))
    assert ca_bundle(own, environ) == Path("/own.pem")


def test_a_context_verifies(tmp_path: Path) -> None:
    for bundle in (None, tmp_path):
        context = tls_context(bundle)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname


@pytest.mark.parametrize("content", [None, "garbage"])
def test_a_bundle_of_the_environment_that_is_none_is_said(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        tls_context(file)
    assert caught.value.complaints[0].startswith(
        f"environment: REQUESTS_CA_BUNDLE: expected a PEM file or folder, got {file} ("
    )


def real_http(office: Emulator, timeout: float) -> Http:
    return Http(make_pools(tls_context(office.ca_file), 2), timeout)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_dripping_answer_is_bounded_by_ten_times_the_time_out(
    office: Emulator, part: str
) -> None:
    office.fail("discovery", faults.drip(0.05, part))
    http = real_http(office, 0.1)
    url = (
        f"{office.login_root}/{office.tenant_id}/v2.0/.well-known/openid-configuration"
    )
    began = time.monotonic()
    with pytest.raises(SourceError, match="timed out"):
        http.ask(call(url=url, tries=1), body_of)
    assert 0.5 < time.monotonic() - began < ANSWER_TIMEOUTS * 0.1 + 2


def test_a_host_with_a_certificate_of_another_ca_is_not_asked(office: Emulator) -> None:
    http = Http(make_pools(tls_context(None), 2), 5)  # knows the public CAs alone
    with pytest.raises(AnswerError) as caught:
        http.ask(call(url=office.api_root + "/x"), body_of, Bearer())
    assert caught.value.judgement.verdict is Verdict.UNTRUSTED
    assert office.journal.requests == []


def test_a_silent_host_is_given_up_after_the_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}/"
        http = Http(make_pools(tls_context(None), 2), 0.2)
        began = time.monotonic()
        with pytest.raises(SourceError):
            http.ask(call(url=url, tries=1), body_of)
        assert time.monotonic() - began < 2
