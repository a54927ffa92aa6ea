"""Access tokens: what Entra ID's answers mean, and how msal is kept on a leash."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qs

import pytest
from emulator import Credentials, Emulator, faults
from emulator.wire import Answer
from making import make_azure

import o365_poller
from o365_poller import (
    AADSTS,
    AADSTS_PASSING,
    Azure,
    Credential,
    Exit,
    Http,
    MsalHttp,
    PollerError,
    Secret,
    SourceError,
    TokenError,
    TokenSource,
    UnreachedError,
    UnusableCredentialError,
    blacked_out,
    make_pools,
    read_claims,
    tls_context,
    token_error,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("o365_poller.PAUSE_FIRST", 0.001)


def refusal(number: int, error: str = "invalid_client") -> dict[str, Any]:
    return {
        "error": error,
        "error_description": f"AADSTS{number}: Words.\r\nTrace ID: 0a-1b",
        "error_codes": [number],
        "trace_id": "0a-1b",
    }


# -- answers


@pytest.mark.parametrize("number", sorted(AADSTS))
def test_a_known_refusal_is_told_with_its_meaning_words_and_remedy(number: int) -> None:
    error = token_error(401, refusal(number))
    meaning, fix = AADSTS[number]
    assert isinstance(error, TokenError)
    assert error.exit is Exit.REFUSED
    assert str(error) == (
        f"no access token: {meaning}: AADSTS{number}: Words. Trace ID: 0a-1b; nothing "
        f"was asked; the watermark stays, so nothing is lost for 7 days; {fix}"
    )


def test_an_unknown_refusal_is_told_in_entras_own_words() -> None:
    error = token_error(400, refusal(123456))
    assert isinstance(error, TokenError)
    assert str(error) == (
        "no access token: Entra ID refused the sign-in: AADSTS123456: Words. Trace ID: "
        "0a-1b; nothing was asked; the watermark stays, so nothing is lost for 7 days; "
        "look the code up at https://login.microsoftonline.com/error"
    )


@pytest.mark.parametrize(
    ("status", "told"),
    [
        *[(400, refusal(number)) for number in sorted(AADSTS_PASSING)],
        (500, None),
        (502, "<html>"),
        (503, refusal(700027)),
        (429, refusal(700027)),
        (408, None),
        (403, None),
        (404, {}),
        (400, []),
        (200, {"token_type": "Bearer"}),
    ],
    ids=str,
)
def test_what_may_pass_is_a_failure_to_reach_and_no_refusal(
    status: int, told: object
) -> None:
    error = token_error(status, told)
    assert isinstance(error, SourceError)
    assert error.exit is Exit.INCOMPLETE
    assert str(error).startswith("no access token: ")


def test_a_failure_without_words_names_the_status() -> None:
    error = token_error(403, None)
    assert error.what == "no access token: HTTP 403, not an answer of Entra ID"


def test_a_bare_401_is_a_refusal() -> None:
    assert isinstance(token_error(401, None), TokenError)


@pytest.mark.parametrize(
    ("told", "refused", "what"),
    [
        ({"error": "x"}, False, "x"),
        ({"error_codes": [1, "2", "x", None]}, True, "Entra ID refused the sign-in: "),
        ({"error_codes": ["x", 50012]}, True, "the assertion was refused: "),
        ({"error_codes": 50012}, True, "the assertion was refused: "),
        ({"error_codes": ["\u00b2"]}, False, "HTTP 400, not an answer of Entra ID"),
        ({"error_description": "AADSTS50012: a AADSTS700016: b"}, True, "the assertion was refused: AADSTS50012: a AADSTS700016: b"),
        ({"error_description": None, "error_codes": [50012]}, True, "the assertion was refused: None"),
        (None, False, "HTTP 400, not an answer of Entra ID"),
        ("text", False, "HTTP 400, not an answer of Entra ID"),
    ],
    ids=str,
)  # fmt: skip
def test_an_oauth_error_is_read_whatever_it_is(
    told: object, refused: bool, what: str
) -> None:
    error = token_error(400, told)
    assert error.what == f"no access token: {what}"
    assert isinstance(error, TokenError) == refused


def test_a_long_description_with_controls_is_one_short_line() -> None:
    error = token_error(400, {"error_description": "a\r\nb\x1b[31m" + "x" * 9000})
    message = error.what.removeprefix("no access token: ")
    assert len(message) == 400
    assert message.startswith("a b [31mx")


# -- claims


def jwt(payload: bytes) -> Secret:
    part = base64.urlsafe_b64encode(payload).decode().rstrip("=")
    return Secret(f"head.{part}.tail")


@pytest.mark.parametrize(
    ("token", "claims"),
    [
        (jwt(b'{"roles":["a"]}'), {"roles": ["a"]}),
        (jwt(b'{"aud":"\xc3\xa9"}'), {"aud": "\u00e9"}),
        (jwt(b"[1]"), {}),
        (jwt(b"nothing"), {}),
        (jwt(b"\xff\xfe"), {}),
        (Secret("opaque"), {}),
        (Secret("a.b.c"), {}),
        (Secret("a.\u00e9.c"), {}),
        (Secret(""), {}),
    ],
    ids=range(9),
)
def test_a_token_is_read_for_people_or_not_at_all(
    token: Secret, claims: dict[str, Any]
) -> None:
    assert read_claims(token) == claims


# -- msal, against the emulator


def make_source(
    office: Emulator, credential: Credential, **changes: Any
) -> TokenSource:
    azure = Azure(
        tenant_id=changes.pop("tenant_id", office.tenant_id),
        client_id=changes.pop("client_id", office.client_id),
        credential=credential,
        login_root=changes.pop("login_root", office.login_root),
        api_root=office.api_root,
        graph_root=office.graph_root,
        ca_bundle=office.ca_file,
        publisher_id=office.tenant_id,
    )
    return TokenSource(azure, make_http(office), office.api_root)


def make_http(office: Emulator, timeout: float = 5) -> Http:
    return Http(make_pools(tls_context(office.ca_file), 4), timeout)


def by_key(made: Credentials, *, thumbprint: bool = False) -> Credential:
    if thumbprint:
        return Credential(made.key, "", made.thumbprint_sha1_hex, Secret(""))
    return Credential(made.key, made.certificate_pem, "", Secret(""))


def by_secret(secret: str) -> Credential:
    return Credential(None, "", "", Secret(secret))


@pytest.mark.parametrize("thumbprint", [True, False])
def test_both_forms_of_assertion_are_taken(office: Emulator, thumbprint: bool) -> None:
    source = make_source(office, by_key(office.credentials(), thumbprint=thumbprint))
    claims = read_claims(source.token())
    assert claims["aud"] == office.api_root
    assert "ActivityFeed.Read" in claims["roles"]
    assert office.journal.violations == []


@pytest.mark.parametrize(
    ("thumbprint", "answer"),
    [(True, None), (False, "AADSTS5002730")],
)
def test_where_ps256_is_refused_a_thumbprint_helps(
    office: Emulator, thumbprint: bool, answer: str | None
) -> None:
    office.options.ps256_refused = True
    source = make_source(office, by_key(office.credentials(), thumbprint=thumbprint))
    if answer is None:
        assert source.token()
        return
    with pytest.raises(TokenError, match=answer) as caught:
        source.token()
    assert caught.value.fix == "give thumbprint in [azure]: then RS256 is used"


def test_a_client_secret_is_taken(office: Emulator) -> None:
    office.options.client_secret = "the-secret-of-the-app"
    assert make_source(office, by_secret("the-secret-of-the-app")).token()
    with pytest.raises(TokenError, match="AADSTS7000215"):
        make_source(office, by_secret("another")).token()


def test_a_token_is_asked_for_once_and_renewed_before_its_end(office: Emulator) -> None:
    source = make_source(office, by_key(office.credentials()))
    first = source.token()
    assert source.token() is first
    assert len(office.journal.of("token")) == 1
    source._good_until = 0
    assert source.token().reveal()
    assert len(office.journal.of("token")) >= 1


def test_a_refused_token_is_replaced_by_a_new_one_but_once_for_all_threads(
    office: Emulator,
) -> None:
    source = make_source(office, by_key(office.credentials()))
    first = source.token()
    source.renew(first)
    second = source.token()
    assert second.reveal() != first.reveal()
    source.renew(first)
    assert source.token() is second
    assert len(office.journal.of("token")) == 2


@pytest.mark.parametrize(("life", "left"), [(3599, 3299), (600, 300), (60, 30), (0, 0)])
def test_a_token_is_renewed_five_minutes_early_or_halfway(
    office: Emulator, life: int, left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.options.expires_in = life
    source = make_source(office, by_key(office.credentials()))
    monkeypatch.setattr("o365_poller.time.monotonic", lambda: 1000.0)
    source.token()
    assert source._good_until == 1000 + left


# Python's json gives up on it with a RecursionError.
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("operation", "fault", "kind", "words"),
    [
        ("discovery", faults.status(503), SourceError, "HTTP 503"),
        ("discovery", faults.status(400, b"no"), SourceError, "HTTP 400"),
        ("discovery", faults.raw("not json"), SourceError, "the sign-in answer is not JSON"),
        ("discovery", faults.raw("{}"), PollerError, "no access token"),
        ("discovery", faults.html(), SourceError, "the sign-in answer is not JSON"),
        ("discovery", faults.aadsts(90002), TokenError, "AADSTS90002"),
        ("discovery", faults.reset(), SourceError, "reset|closed connection"),
        ("token", faults.status(503), SourceError, "HTTP 503"),
        ("token", faults.throttle(), SourceError, "HTTP 429"),
        ("token", faults.aadsts(90033), SourceError, "503"),
        ("token", faults.aadsts(90024), SourceError, "AADSTS90024"),
        ("token", faults.aadsts(50196), SourceError, "AADSTS50196"),
        ("token", faults.raw("not json"), SourceError, "the sign-in answer is not JSON"),
        ("token", faults.raw("[]"), PollerError, "no access token"),
        ("token", faults.raw('{"access_token":null}'), SourceError, "no access token"),
        ("token", faults.empty_body(), SourceError, "the sign-in answer is not JSON"),
        ("token", faults.not_utf8(), SourceError, "the sign-in answer is not JSON"),
        ("discovery", faults.raw(DEEP), SourceError, "the sign-in answer is not JSON"),
        ("discovery", faults.status(400, DEEP), SourceError, "HTTP 400"),
        ("token", faults.raw(DEEP), SourceError, "the sign-in answer is not JSON"),
        ("token", faults.raw('{"access_token":' + DEEP + "}"), SourceError, "the sign-in answer is not JSON"),
        ("token", faults.status(400, DEEP), SourceError, "HTTP 400"),
        ("token", faults.status(401, DEEP), TokenError, "no access token"),
        ("token", faults.status(503, DEEP), SourceError, "HTTP 503"),
        ("token", faults.aadsts(700027), TokenError, "AADSTS700027"),
        ("token", faults.aadsts(700016), TokenError, "AADSTS700016"),
        ("token", faults.aadsts(53003), TokenError, "AADSTS53003"),
        ("token", faults.redirect("trap"), SourceError, "HTTP 302"),
        ("discovery", faults.redirect("trap"), SourceError, "HTTP 302"),
        ("token", faults.close_without_answer(), SourceError, "no access token|sign-in"),
    ],
    ids=lambda value: getattr(value, "name", None) or (value if isinstance(value, str) else ""),
)  # fmt: skip
def test_whatever_happens_ends_in_one_of_our_errors(
    office: Emulator,
    operation: str,
    fault: faults.Fault,
    kind: type[PollerError],
    words: str,
) -> None:
    office.fail(operation, fault)
    source = make_source(office, by_key(office.credentials()))
    with pytest.raises(kind, match=words):
        source.token()
    assert office.trap.requests == []


@pytest.mark.parametrize("operation", ["discovery", "token"])
def test_a_failure_that_passes_is_ridden_out_before_msal_sees_it(
    office: Emulator, operation: str
) -> None:
    office.fail(operation, faults.status(503), times=3)
    assert make_source(office, by_key(office.credentials())).token()
    assert len(office.journal.of(operation)) == 4


def test_a_key_that_msal_cannot_use_is_said_and_not_a_traceback(
    office: Emulator,
) -> None:
    bad = Credential("-----BEGIN NONSENSE-----", "", "ab" * 20, Secret(""))
    with pytest.raises(UnusableCredentialError) as caught:
        make_source(office, bad).token()
    assert caught.value.exit is Exit.USAGE
    assert caught.value.what.startswith("no access token: msal cannot use what it is")


def test_a_discovery_that_names_another_host_is_not_followed(office: Emulator) -> None:
    def elsewhere(told: Any) -> Any:
        return {**told, "token_endpoint": f"{office.trap_root}/oauth2/v2.0/token"}

    office.fail("discovery", faults.edit(elsewhere))
    with pytest.raises(TokenError, match="sends sign-ins to another host"):
        make_source(office, by_key(office.credentials())).token()
    assert office.trap.requests == []


def test_a_login_root_with_a_path_keeps_its_path() -> None:
    asked: list[str] = []

    class Fake:
        def ask(self, call: Any, take: Any) -> o365_poller.Answer:
            asked.append(call.url)
            return o365_poller.Answer(200, {}, b"{}")

    azure = make_azure(login="https://gateway.example.net/login")
    client = MsalHttp(Fake(), azure.login_root)  # type: ignore[arg-type]
    client.get("https://gateway.example.net/x/v2.0/.well-known/openid-configuration")
    client.get("https://gateway.example.net/login/y", params={"a": "b c"})
    client.close()
    assert asked == [
        "https://gateway.example.net/login/x/v2.0/.well-known/openid-configuration",
        "https://gateway.example.net/login/y?a=b+c",
    ]


@pytest.mark.parametrize("token", ["one\nline", "bl ank", "\u00e9t\u00e9", "\u65e5"])
def test_a_token_that_fits_no_header_is_no_token(
    office: Emulator, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    source = make_source(office, by_key(office.credentials()))
    told = {"access_token": token, "expires_in": 3599}
    monkeypatch.setattr(source, "_ask_msal", lambda: told)
    source._msal_http.status = 200
    with pytest.raises(UnreachedError) as caught:
        source.token()
    assert token not in str(caught.value)


@pytest.mark.parametrize("life", [10**400, "soon", None, [], "3599", 3599, -1])
def test_whatever_a_token_says_of_its_life_it_serves(
    office: Emulator, monkeypatch: pytest.MonkeyPatch, life: Any
) -> None:
    source = make_source(office, by_key(office.credentials()))
    told = {"access_token": "aaaa.bbbb.cccc", "expires_in": life}
    monkeypatch.setattr(source, "_ask_msal", lambda: told)
    assert source.token().reveal() == "aaaa.bbbb.cccc"


def test_no_instance_discovery_and_no_region(
    office: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSAL_FORCE_REGION", "westeurope")
    assert make_source(office, by_key(office.credentials())).token()
    assert office.journal.of("instance") == []
    assert {request.host for request in office.journal.requests} == {"login"}


def test_the_answer_to_a_secret_does_not_show_it(office: Emulator) -> None:
    with pytest.raises(TokenError) as caught:
        make_source(office, by_secret("hush-hush-secret")).token()
    assert "hush-hush-secret" not in str(caught.value)
    assert json.dumps(str(caught.value))


def echo(status: int, seen: list[str]) -> faults.Fault:
    """An error whose words hold the assertion that was sent."""

    def act(scene: faults.Scene) -> Answer:
        seen.extend(parse_qs(scene.ask.body.decode())["client_assertion"])
        words = f"AADSTS50012: {seen[-1]}"
        body = {"error": "invalid_client", "error_description": words}
        return scene.error(status, json.dumps(body).encode())

    return faults.Fault("echo", act)


def test_an_assertion_that_is_echoed_is_in_no_error(
    office: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    office.fail("token", echo(401, seen))
    monkeypatch.setattr(Secret, "known", set())
    with pytest.raises(TokenError) as caught:
        make_source(office, by_key(office.credentials())).token()
    assert "AADSTS50012: ***" in str(caught.value)
    assert seen[0][:32] not in str(caught.value)


def test_an_assertion_is_known_to_the_log_also_where_it_is_cut(
    office: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of a failure that is tried again are cut before the log gets them."""
    monkeypatch.setattr(Secret, "known", set())  # those of other tests overlap
    seen: list[str] = []
    office.fail("token", echo(503, seen))
    with pytest.raises(SourceError):
        make_source(office, by_key(office.credentials())).token()
    assert len(seen) > 1
    for assertion in seen:
        signature = assertion.rpartition(".")[2]
        proof = {signature[n : n + 32] for n in range(len(signature) - 31)}
        for most in (300, 500, len(assertion) - 1, len(assertion)):
            shown = blacked_out(assertion[:most])
            # The client id stands in it twice: where one piece is found in another,
            # some of that is left. It is no secret; of the signature too little is.
            assert max(map(len, shown.split("***"))) < 64
            assert not [each for each in proof if each in shown]
