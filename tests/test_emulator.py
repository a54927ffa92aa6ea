"""The emulator is as strict as the service, and its faults are what they say."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from emulator import CONTENT_TYPES, Credentials, Emulator, Options, events, faults
from emulator.control import Control
from emulator.scenarios import SCENARIOS
from emulator.wire import accepts_gzip

AAD = "Audit.AzureActiveDirectory"
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
msal: Any = importlib.import_module("msal")


class Client:
    """A client that does exactly what it is told."""

    def __init__(self, office: Emulator) -> None:
        self.office = office
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(office.ca_file)
        self.credentials = office.credentials()
        self.token = ""

    def sign_in(self, **changes: Any) -> requests.Response:
        answer = self.ask_token(assertion(self.office, self.credentials), **changes)
        if answer.ok:
            self.token = answer.json()["access_token"]
        return answer

    def ask_token(self, signed: str, **changes: Any) -> requests.Response:
        form = {
            "client_id": self.office.client_id,
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION,
            "client_assertion": signed,
            "scope": f"{self.office.api_root}/.default",
        } | changes
        form = {name: value for name, value in form.items() if value is not None}
        return self.session.post(self.office.token_endpoint, data=form, timeout=5)

    def call(
        self, method: str, path: str, *, root: str | None = None, **query: str
    ) -> requests.Response:
        """Publisher and token are added; `PublisherIdentifier=""` leaves it out."""
        query = {"PublisherIdentifier": self.office.tenant_id} | query
        query = {name: value for name, value in query.items() if value}
        return self.session.request(
            method,
            f"{root or self.office.feed_root}/{path}",
            params=query,
            headers={"Authorization": f"Bearer {self.token}"},
            allow_redirects=False,
            timeout=5,
        )

    def start(self, content_type: str = AAD) -> requests.Response:
        return self.call("POST", "subscriptions/start", contentType=content_type)

    def content(self, **query: str) -> requests.Response:
        now = self.office.clock.now() + timedelta(seconds=1)
        window = {
            "contentType": AAD,
            "startTime": text(now - timedelta(minutes=10)),
            "endTime": text(now),
        }
        return self.call("GET", "subscriptions/content", **(window | query))

    def blob(self, content_id: str) -> requests.Response:
        return self.call("GET", f"audit/{content_id}")

    def follow(self, answer: requests.Response) -> requests.Response:
        url = answer.headers["NextPageUri"]
        if "publisheridentifier" not in url.lower():
            url += f"&PublisherIdentifier={self.office.tenant_id}"
        headers = {"Authorization": f"Bearer {self.token}"}
        return self.session.get(url, headers=headers, timeout=5)


def text(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%S}"


def thumbprint(credentials: Credentials, algorithm: str, *, padded: bool) -> str:
    hexadecimal = (
        credentials.thumbprint_sha1_hex
        if algorithm == "RS256"
        else credentials.thumbprint_sha256_hex
    )
    encoded = base64.urlsafe_b64encode(bytes.fromhex(hexadecimal)).decode()
    return encoded if padded else encoded.rstrip("=")


def assertion(
    office: Emulator,
    credentials: Credentials,
    *,
    algorithm: str = "PS256",
    padded: bool = True,
    key: Any = None,
    header: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    now = time.time()
    claims = {
        "aud": office.token_endpoint,
        "iss": office.client_id,
        "sub": office.client_id,
        "exp": now + 600,
        "iat": now,
        "jti": str(uuid.uuid4()),
    } | changes
    member = "x5t" if algorithm == "RS256" else "x5t#S256"
    named = {member: thumbprint(credentials, algorithm, padded=padded)}
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None},
        key or credentials.key,
        algorithm,
        headers=named if header is None else header,
    )


def code(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture
def office() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def client(office: Emulator) -> Iterator[Client]:
    made = Client(office)
    assert made.sign_in().status_code == 200
    yield made
    made.session.close()


@pytest.fixture
def reader(office: Emulator, client: Client) -> Client:
    """Subscribed, with three blobs of two events."""
    office.enable(AAD)
    for n in range(3):
        office.publish(AAD, events.make_events(2, first=1 + 2 * n), created=ago(office))
    return client


def ago(office: Emulator, seconds: float = 60) -> datetime:
    return office.clock.now() - timedelta(seconds=seconds)


# == Login =============================================================================


@pytest.mark.parametrize("thumbprint_given", [True, False])
def test_msal_gets_a_token_with_either_form(
    office: Emulator, *, thumbprint_given: bool
) -> None:
    made = office.credentials(passphrase="open sesame", encoding="PKCS1", combined=True)
    credential = {"private_key": made.private_key_pem, "passphrase": "open sesame"}
    if thumbprint_given:
        credential["thumbprint"] = made.thumbprint_sha1_hex
    else:
        credential["public_certificate"] = made.certificate_pem
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(office.ca_file)
        app = msal.ConfidentialClientApplication(
            office.client_id,
            authority=f"{office.login_root}/{office.tenant_id}",
            client_credential=credential,
            instance_discovery=False,
            http_client=session,
        )
        token = app.acquire_token_for_client([f"{office.api_root}/.default"])
    claims = jwt.decode(token["access_token"], options={"verify_signature": False})
    assert claims["aud"] == office.api_root
    assert claims["tid"] == office.tenant_id
    assert claims["roles"] == ["ActivityFeed.Read", "ActivityFeed.ReadDlp"]
    assert office.journal.violations == []


@pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
@pytest.mark.parametrize("padded", [True, False])
def test_both_assertions_with_and_without_padding(
    client: Client, algorithm: str, *, padded: bool
) -> None:
    made = client.credentials
    signed = assertion(client.office, made, algorithm=algorithm, padded=padded)
    assert client.ask_token(signed).status_code == 200


def test_a_signature_by_another_key_is_700027(client: Client) -> None:
    stranger = client.office.credentials(register=False)
    signed = assertion(client.office, client.credentials, key=stranger.key)
    answer = client.ask_token(signed)
    assert answer.status_code == 401
    body = answer.json()
    assert body["error"] == "invalid_client"
    assert body["error_codes"] == [700027]
    assert "signature value did not match" in body["error_description"]
    assert set(body) >= {"timestamp", "trace_id", "correlation_id", "error_uri"}


def test_an_unknown_certificate_is_700027(client: Client) -> None:
    stranger = client.office.credentials(register=False)
    answer = client.ask_token(assertion(client.office, stranger))
    assert "The key was not found" in answer.json()["error_description"]


def test_an_expired_certificate_is_700027(client: Client) -> None:
    old = client.office.credentials(valid_days=-1)
    answer = client.ask_token(assertion(client.office, old))
    assert "The key used is expired" in answer.json()["error_description"]


REFUSED: dict[str, tuple[dict[str, Any], int, int]] = {
    "audience": ({"aud": "https://localhost/token"}, 401, 700023),
    "issuer": ({"iss": "someone"}, 401, 700021),
    "subject": ({"sub": "someone"}, 401, 700021),
    "over": ({"exp": 1000.0, "iat": 500.0}, 401, 700024),
    "too_long": ({"exp": time.time() + 7200}, 401, 700024),
    "no_end": ({"exp": None}, 400, 50027),
    "no_name": ({"jti": None}, 400, 50027),
    "two_thumbprints": ({"header": {"x5t": "a", "x5t#S256": "b"}}, 401, 5002730),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_assertion_is_refused(client: Client, case: str) -> None:
    changes, status, number = REFUSED[case]
    answer = client.ask_token(assertion(client.office, client.credentials, **changes))
    assert (answer.status_code, answer.json()["error_codes"]) == (status, [number])


WRONG_FORMS: dict[str, tuple[dict[str, Any], int, int]] = {
    "grant": ({"grant_type": "password"}, 400, 70003),
    "app": ({"client_id": str(uuid.UUID(int=9))}, 400, 700016),
    "assertion_type": ({"client_assertion_type": "jwt"}, 400, 90023),
    "none": ({"client_assertion": None}, 401, 7000218),
    "secret": ({"client_assertion": None, "client_secret": "x"}, 401, 7000215),
    "scope": ({"scope": "https://localhost/Read"}, 400, 1002012),
    "two_scopes": ({"scope": "a/.default b/.default"}, 400, 70011),
    "resource": ({"scope": "https://manage.office.com/.default"}, 400, 500011),
}


@pytest.mark.parametrize("case", WRONG_FORMS)
def test_a_wrong_token_request_is_refused(client: Client, case: str) -> None:
    changes, status, number = WRONG_FORMS[case]
    answer = client.sign_in(**changes)
    assert (answer.status_code, answer.json()["error_codes"]) == (status, [number])


def test_a_client_secret_is_good_when_there_is_one(client: Client) -> None:
    client.office.options.client_secret = "s3cret"
    answer = client.sign_in(client_assertion=None, client_secret="s3cret")
    assert answer.status_code == 200


def test_ps256_can_be_refused(client: Client) -> None:
    client.office.options.ps256_refused = True
    assert client.sign_in().json()["error_codes"] == [5002730]


def test_discovery_of_an_unknown_tenant(client: Client) -> None:
    url = "{}/{}/v2.0/.well-known/openid-configuration"
    root = client.office.login_root
    answer = client.session.get(url.format(root, uuid.UUID(int=7)), timeout=5)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_tenant")
    known = client.session.get(url.format(root, "emu.test"), timeout=5).json()
    assert known["token_endpoint"] == client.office.token_endpoint


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_instance_discovery_answers_and_is_noted(client: Client, version: str) -> None:
    url = f"{client.office.login_root}/common/discovery/instance"
    query = {"api-version": version, "authorization_endpoint": "https://x/authorize"}
    answer = client.session.get(url, params=query, timeout=5)
    assert "tenant_discovery_endpoint" in answer.json()
    assert ("metadata" in answer.json()) == (version == "1.1")
    assert len(client.office.journal.violations) == 1


# == Credentials on calls ==============================================================


def test_without_a_good_token_the_frameworks_401(reader: Client) -> None:
    good = reader.token
    reader.token = "x" + good
    answer = reader.content()
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert len(answer.content) == 61
    reader.token = good
    assert reader.content().status_code == 200
    reader.office.revoke_tokens()
    assert reader.content().status_code == 401
    assert reader.office.journal.violations == []


def test_a_token_runs_out(reader: Client) -> None:
    reader.office.clock.advance(timedelta(seconds=3600))
    assert reader.content().status_code == 401


def test_a_token_for_graph_is_no_token_for_the_api(reader: Client) -> None:
    reader.sign_in(scope=f"{reader.office.graph_root}/.default")
    assert reader.content().status_code == 401
    assert "another resource" in reader.office.journal.violations[0]


def test_the_journal_holds_no_token(reader: Client) -> None:
    reader.content()
    assert reader.token not in repr(reader.office.journal.requests)
    assert (
        reader.office.journal.of("content")[0]
        .headers["authorization"]
        .startswith("sha256:")
    )


@pytest.mark.parametrize(
    ("roles", "content_type", "said"),
    [
        ((), AAD, "()"),
        (("ServiceHealth.Read",), AAD, "(ServiceHealth.Read)"),
        (("ActivityFeed.Read",), "DLP.All", "(ActivityFeed.Read)"),
    ],
)
def test_a_missing_role_is_af10001(
    client: Client, roles: tuple[str, ...], content_type: str, said: str
) -> None:
    client.office.enable()
    client.office.options.roles = roles
    client.sign_in()
    answer = client.content(contentType=content_type)
    assert code(answer) == (401, "AF10001")
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("tenant", "expected"),
    [
        ("emu.test", (400, "AF20013")),
        (str(uuid.UUID(int=5)), (400, "AF20010")),
    ],
)
def test_a_wrong_tenant_in_the_address(
    reader: Client, tenant: str, expected: tuple[int, str]
) -> None:
    root = f"{reader.office.api_root}/api/v1.0/{tenant}/activity/feed"
    assert code(reader.call("GET", "subscriptions/list", root=root)) == expected


@pytest.mark.parametrize(
    ("state", "expected"), [("deleted", "AF20011"), ("misconfigured", "AF20012")]
)
def test_a_tenant_in_a_bad_state(reader: Client, state: str, expected: str) -> None:
    reader.office.options.tenant_state = state
    assert code(reader.content()) == (400, expected)


# == Subscriptions =====================================================================


def test_start_list_and_start_again(client: Client) -> None:
    client.office.options.cool_down = timedelta(0)
    assert client.call("GET", "subscriptions/list").json() == []
    first = client.start("audit.azureactivedirectory")
    assert first.json() == {
        "contentType": "audit.azureactivedirectory",
        "status": "enabled",
        "webhook": None,
    }
    assert client.office.journal.violations == []
    again = client.start()
    assert code(again) == (400, "AF20024")
    assert len(again.content) == 97
    assert "which is enabled" in client.office.journal.violations[0]


def test_a_start_without_a_look_is_noted(client: Client) -> None:
    client.start()
    assert "without a listing" in client.office.journal.violations[0]


@pytest.mark.parametrize("status", [403, 429])
def test_the_cool_down_of_start(client: Client, status: int) -> None:
    client.office.options.cool_down_status = status
    client.call("GET", "subscriptions/list")
    client.start()
    client.office.subscriptions[AAD] = "disabled"
    client.office.clock.advance(timedelta(seconds=4))
    answer = client.start()
    assert code(answer) == (status, "429")
    assert "retry again after 14m 5" in answer.json()["error"]["message"]
    client.office.clock.advance(timedelta(minutes=15))
    assert client.start().status_code == 200


def test_without_a_subscription_there_is_no_content(client: Client) -> None:
    assert code(client.content()) == (400, "AF20022")
    client.office.subscriptions[AAD] = "disabled"
    assert code(client.content()) == (400, "AF20023")
    assert code(client.content(contentType="Audit.Nothing")) == (400, "AF20020")
    assert code(client.content(contentType="")) == (400, "AF20001")


def test_auditing_off_has_a_sentence_for_a_code(client: Client) -> None:
    client.office.options.auditing_off = True
    status, said = code(client.start())
    assert status == 400
    assert said.startswith("StartSubscription [TenantId=")


def test_stop_is_noted_and_leaves_limbo(client: Client) -> None:
    client.office.options.limbo_after_stop = True
    client.office.enable(AAD)
    answer = client.call("POST", "subscriptions/stop", contentType=AAD)
    assert (answer.status_code, answer.content) == (200, b"")
    assert client.office.journal.violations[0].startswith(f"stop of {AAD}")
    client.start()
    assert client.call("GET", "subscriptions/list").json() == []
    assert code(client.content()) == (400, "AF20023")


# == Windows ===========================================================================


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (timedelta(hours=24, seconds=1), timedelta(0), 400),
        (timedelta(hours=24), timedelta(0), 400),
        (timedelta(hours=23, minutes=59), timedelta(0), 200),
        (timedelta(days=7, seconds=1), timedelta(days=6, hours=12), 400),
        (timedelta(days=6, hours=23), timedelta(days=6), 200),
        (timedelta(0), timedelta(0), 400),
        (timedelta(0), timedelta(minutes=1), 400),
        (timedelta(minutes=1), timedelta(hours=-1), 200),
    ],
)
def test_windows(
    reader: Client, start: timedelta, end: timedelta, expected: int
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    reader.office.clock.set(now)
    answer = reader.content(startTime=text(now - start), endTime=text(now - end))
    assert answer.status_code == expected
    if expected == 400:
        assert code(answer) == (400, "AF20055")
    noted = "24 h" in " ".join(reader.office.journal.violations)
    assert noted == (start - end >= timedelta(hours=24))


def test_over_24_hours_can_be_answered_in_part(reader: Client) -> None:
    reader.office.options.over_24h = "partial"
    now = reader.office.clock.now()
    answer = reader.content(startTime=text(now - timedelta(hours=30)))
    assert (answer.status_code, answer.json()) == (200, [])


def test_start_is_inclusive_and_end_exclusive(reader: Client) -> None:
    at = ago(reader.office, 200).replace(microsecond=0)
    blob = reader.office.publish(AAD, [], created=at)

    def listed(start: datetime, end: datetime) -> bool:
        rows = reader.content(startTime=text(start), endTime=text(end)).json()
        return blob.content_id in [row["contentId"] for row in rows]

    second = timedelta(seconds=1)
    assert listed(at, at + second)
    assert not listed(at - second, at)


@pytest.mark.parametrize(
    ("form", "status", "rows"),
    [
        ("2026-05-23", 200, 1),
        ("2026-05-23T00:00", 200, 1),
        ("2026-05-23T00:00:00Z", 200, 1),
        ("2026-05-23T00:00:00.123", 200, 1),
        ("2026-05-23T00:00:00 00:00", 200, 0),
        ("23.05.2026", 400, None),
        ("2026-02-30T00:00:00", 400, None),
    ],
)
def test_forms_of_times(
    reader: Client, form: str, status: int, rows: int | None
) -> None:
    office = reader.office
    office.clock.set(datetime(2026, 5, 23, 1, tzinfo=UTC))
    reader.sign_in()
    office.publish(AAD, [], created=datetime(2026, 5, 23, 0, 30, tzinfo=UTC))
    answer = reader.content(startTime=form, endTime="2026-05-23T00:40:00")
    assert answer.status_code == status
    if rows is not None:
        assert len(answer.json()) == rows
    assert len(office.journal.violations) == 1


def test_one_time_alone_is_refused(reader: Client) -> None:
    assert code(reader.content(endTime="")) == (400, "AF20055")
    assert reader.content(startTime="", endTime="").status_code == 200
    assert len(reader.office.journal.violations) == 2


def test_a_missing_publisher_is_noted(reader: Client) -> None:
    reader.office.options.rate_limit = 1
    assert reader.content(PublisherIdentifier="").status_code == 200
    answer = reader.content(PublisherIdentifier="")
    assert code(answer) == (403, "AF429")
    assert "PublisherId=00000000-" in answer.json()["error"]["message"]
    assert reader.content().status_code == 200
    assert len(reader.office.journal.violations) == 2
    answer = reader.content(PublisherIdentifier="me")
    assert code(answer) == (400, "AF20002")


# == Listings and blobs ================================================================


def test_rows_and_headers(reader: Client) -> None:
    answer = reader.content()
    assert answer.headers["Server"] == "Microsoft-IIS/10.0"
    row = answer.json()[0]
    assert set(row) == {
        "contentType",
        "contentId",
        "contentUri",
        "contentCreated",
        "contentExpiration",
    }
    assert row["contentUri"].endswith(f"/activity/feed/audit/{row['contentId']}")
    assert len(row["contentCreated"]) == len("2026-05-23T17:35:00.123Z")
    assert "$audit_azureactivedirectory$" in row["contentId"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"next_page_path": "v1.0", "next_page_publisher": True},
        {"next_page_lower_case": True, "next_page_header": "nextpageuri"},
    ],
)
def test_pages(reader: Client, changes: dict[str, Any]) -> None:
    reader.office.page_size = 2
    for name, value in changes.items():
        setattr(reader.office.options, name, value)
    first = reader.content()
    second = reader.follow(first)
    rows = first.json() + second.json()
    assert len({row["contentId"] for row in rows}) == 3
    assert "NextPageUri" not in second.headers
    url = first.headers["NextPageUri"]
    assert ("nextpage=" in url) == bool(changes.get("next_page_lower_case"))
    assert ("/api/v1/" in url) == (changes.get("next_page_path") is None)
    assert reader.office.journal.violations == []
    reader.follow(first)
    assert "same page" in reader.office.journal.violations[0]


def test_a_next_page_that_was_rebuilt_is_noted(reader: Client) -> None:
    reader.office.page_size = 2
    url = reader.content().headers["NextPageUri"]
    token = url.rpartition("nextPage=")[2]
    assert reader.content(nextPage=token).status_code == 200
    assert "not used as given" in reader.office.journal.violations[0]
    assert code(reader.content(nextPage="made-up")) == (400, "AF20031")


def test_a_next_page_token_grows_old(reader: Client) -> None:
    reader.office.page_size = 2
    reader.office.options.next_page_age = timedelta(seconds=30)
    first = reader.content()
    reader.office.clock.advance(timedelta(seconds=31))
    assert code(reader.follow(first)) == (400, "AF20031")


def test_blobs_that_cannot_be_had(reader: Client) -> None:
    office = reader.office
    assert code(reader.blob("2026$x")) == (400, "AF20052")
    old = office.publish(AAD, [], expires=ago(office))
    assert code(reader.blob(old.content_id)) == (400, "AF20051")
    office.options.status_of = (("AF20051", 410),)
    assert code(reader.blob(old.content_id)) == (410, "AF20051")
    office.activity.remove(office.blobs[0].content_id)
    assert code(reader.blob(office.blobs[0].content_id)) == (404, "AF20050")
    other = f"{office.api_root}/api/v1.0/{office.other_tenant_id}/activity/feed"
    wrong = reader.call("GET", f"audit/{office.blobs[1].content_id}", root=other)
    assert code(wrong) == (400, "AF20052")
    assert office.journal.violations == []


def test_a_blob_shows_late_and_another_grows(reader: Client) -> None:
    office = reader.office
    now = datetime.now(UTC).replace(microsecond=0)
    office.clock.set(now)
    at = now - timedelta(seconds=100)
    later = now + timedelta(seconds=30)
    late = office.publish(AAD, [], created=at, visible=later)
    grown = office.publish(AAD, events.make_events(4), created=at, grows=True)

    def listed(**query: str) -> list[str]:
        return [row["contentId"] for row in reader.content(**query).json()]

    assert late.content_id not in listed()
    office.clock.set(later)
    assert late.content_id in listed()
    assert len(reader.blob(grown.content_id).json()) == 4
    assert grown.content_id in listed(startTime=text(at))
    assert len(reader.blob(grown.content_id).json()) == 2


def test_gzip_only_when_it_is_allowed(reader: Client) -> None:
    blob = reader.office.blobs[0]
    for allowed in ("gzip", "identity", "gzip;q=0"):
        reader.session.headers["Accept-Encoding"] = allowed
        answer = reader.blob(blob.content_id)
        assert ("Content-Encoding" in answer.headers) == (allowed == "gzip")
        assert answer.content == blob.body


def test_weights_of_codings() -> None:
    assert accepts_gzip("gzip, deflate")
    assert accepts_gzip("br;q=1.0, *;q=0.1")
    assert not accepts_gzip("")
    assert not accepts_gzip("*, gzip;q=0")


def test_a_post_without_a_length_is_411(client: Client) -> None:
    host, port = client.office.api_root.removeprefix("https://").split(":")
    context = ssl.create_default_context(cafile=str(client.office.ca_file))
    path = client.office.feed_root.removeprefix(client.office.api_root)
    head = (
        f"POST {path}/subscriptions/start?contentType={AAD} HTTP/1.1\r\n"
        f"Host: {host}\r\nAuthorization: Bearer {client.token}\r\n\r\n"
    )
    with (
        socket.create_connection((host, int(port)), 5) as raw,
        context.wrap_socket(raw, server_hostname=host) as sock,
    ):
        sock.sendall(head.encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 411 Length Required")


def test_events_served_are_counted_by_id(reader: Client) -> None:
    for blob in reader.office.blobs:
        assert reader.blob(blob.content_id).status_code == 200
    assert reader.office.journal.events_served == 6
    reader.blob(reader.office.blobs[0].content_id)
    first = reader.office.blobs[0].ids[0]
    assert reader.office.journal.ids_served[first] == 2
    assert "blob       200  4" in reader.office.journal.report()


def test_most_requests_in_flight(reader: Client) -> None:
    reader.office.latency = 0.2
    blob = reader.office.blobs[0].content_id

    def fetch() -> None:
        other = requests.Session()
        other.trust_env = False
        with other:
            other.get(
                f"{reader.office.feed_root}/audit/{blob}",
                verify=str(reader.office.ca_file),
                timeout=5,
            )

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reader.office.journal.high_water == 4


# == Faults ============================================================================


def failing(client: Client, fault: faults.Fault, operation: str = "content") -> Any:
    """The answer to a listing, or the name of the exception."""
    client.office.fail(operation, fault, times=1)
    try:
        return client.content()
    except requests.RequestException as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (faults.reset(), {"ConnectionError"}),
        (faults.reset(processed=True), {"ConnectionError"}),
        (faults.close_without_answer(), {"ConnectionError"}),
        (faults.reset_mid_body(), {"ChunkedEncodingError", "ConnectionError"}),
        (faults.short_body(), {"ChunkedEncodingError", "ConnectionError"}),
        (faults.bad_chunking(), {"ChunkedEncodingError"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_broken_connections(
    reader: Client, fault: faults.Fault, expected: set[str]
) -> None:
    assert failing(reader, fault) in expected
    assert reader.content().status_code == 200
    assert reader.office.journal.of("content")[0].fault == fault.name


@pytest.mark.parametrize("style", ["json", "single_quotes", "html", "text", "empty"])
def test_styles_of_errors(reader: Client, style: str) -> None:
    answer = failing(reader, faults.status(503, style=style, retry_after=7))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "7"
    starts = {"json": b'{"', "single_quotes": b"{'", "html": b"<!", "text": b"AF"}
    assert answer.content.startswith(starts.get(style, b""))
    assert bool(answer.content) == (style != "empty")


@pytest.mark.parametrize(
    "fault",
    [
        faults.half_json(),
        faults.html(),
        faults.cut_gzip(),
        faults.empty_body(),
        faults.not_utf8(),
    ],
    ids=lambda fault: fault.name,
)
def test_200_without_json(reader: Client, fault: faults.Fault) -> None:
    for _ in range(8):
        reader.office.publish(AAD, [], created=ago(reader.office))
    answer = failing(reader, fault)
    assert answer.status_code == 200
    assert int(answer.headers["Content-Length"]) == answer.raw.tell()
    with pytest.raises(ValueError):
        json.loads(answer.content.decode("utf-8"))


def test_other_bodies(reader: Client) -> None:
    assert failing(reader, faults.not_array({"a": 1})).json() == {"a": 1}
    assert failing(reader, faults.raw("[1]")).json() == [1]
    assert failing(reader, faults.bom()).content.startswith(b"\xef\xbb\xbf[")
    assert len(failing(reader, faults.listing("twice")).json()) == 6
    row = failing(reader, faults.listing("without", "contentUri")).json()[0]
    assert "contentUri" not in row
    assert failing(reader, faults.edit(lambda rows: rows[:1])).json()[0]["contentId"]


def test_throttling_by_host(reader: Client) -> None:
    answer = failing(reader, faults.throttle(429, retry_after=30, as_date=True))
    assert code(answer) == (429, "AF429")
    assert answer.headers["Retry-After"].endswith(" GMT")
    assert code(failing(reader, faults.throttle())) == (403, "AF429")
    reader.office.fail("token", faults.throttle(retry_after=3), times=1)
    refused = reader.sign_in()
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "3")


def test_a_pause_that_was_not_kept_is_noted(reader: Client) -> None:
    now = reader.office.clock.now()
    times = {"startTime": text(now - timedelta(minutes=5)), "endTime": text(now)}
    reader.office.fail("content", faults.throttle(429, retry_after=30), times=1)
    reader.content(**times)
    reader.content(**times)
    assert len(reader.office.journal.impatient) == 1


@pytest.mark.parametrize("number", [700016, 90033, 53003, 123456])
def test_any_aadsts_number(client: Client, number: int) -> None:
    client.office.fail("token", faults.aadsts(number, crlf=True), times=1)
    body = client.sign_in().json()
    assert body["error_codes"] == [number]
    assert body["error_description"].startswith(f"AADSTS{number}")
    assert "\r\nTrace ID" in body["error_description"]


def test_slow_answers(reader: Client) -> None:
    began = time.monotonic()
    reader.office.fail("content", faults.latency(0.2), times=1)
    reader.office.fail("content", faults.hang(0.2, part="body"), times=1)
    reader.office.fail("content", faults.drip(0.0005), times=1)
    for _ in range(3):
        assert len(reader.content().json()) == 3
    assert time.monotonic() - began > 0.5


def test_a_hang_ends_with_the_client(reader: Client) -> None:
    reader.office.fail("content", faults.hang(60), times=1)
    with pytest.raises(requests.ReadTimeout):
        reader.session.get(
            f"{reader.office.feed_root}/subscriptions/content", timeout=0.2
        )
    assert reader.content().status_code == 200
    assert reader.office.journal.of("content")[0].status == 0


def test_endless_and_enormous_bodies(reader: Client) -> None:
    reader.office.fail("blob", faults.endless_body(), times=1)
    url = reader.office.blobs[0].content_uri
    headers = {"Authorization": f"Bearer {reader.token}"}
    with reader.session.get(url, headers=headers, stream=True, timeout=5) as answer:
        assert sum(len(p) for _, p in zip(range(40), answer.iter_content(1 << 16))) > (
            1 << 20
        )
    reader.office.fail("blob", faults.gzip_bomb(20), times=1)
    answer = reader.blob(reader.office.blobs[0].content_id)
    assert len(answer.content) == 2 + (20 << 20)
    assert int(answer.headers["Content-Length"]) < 1 << 18


def test_a_redirect_is_a_trap(reader: Client) -> None:
    office = reader.office
    answer = failing(reader, faults.redirect("trap"))
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith(office.trap_root)
    assert office.journal.violations == []
    headers = {"Authorization": f"Bearer {reader.token}"}
    for root in (office.trap_root, office.trap_http_root):
        reader.session.get(f"{root}/x", headers=headers, timeout=5)
    assert (office.trap.tokens, len(office.journal.violations)) == (2, 2)
    answer = failing(reader, faults.redirect("self"))
    reader.session.get(answer.headers["Location"], headers=headers, timeout=5)
    assert "a redirect was followed" in office.journal.violations[2]


@pytest.mark.parametrize("kind", faults.NEXT_PAGES)
def test_next_pages_of_every_kind(reader: Client, kind: str) -> None:
    office = reader.office
    office.page_size = 2
    office.fail("content", faults.next_page(kind), times=2)
    answer = reader.content()
    assert answer.status_code == 200
    name = "NextPageUrl" if kind == "url_header" else "NextPageUri"
    url = answer.headers[name]
    if kind in ("other_host", "other_port"):
        assert url.startswith(office.trap_root)
    elif kind == "http":
        assert url.startswith("http://")
    elif kind == "loop":
        assert url.startswith(office.api_root)
    elif kind.startswith("endless"):
        second = reader.follow(answer)
        assert second.headers["NextPageUri"] != url
        ids = [{row["contentId"] for row in a.json()} for a in (answer, second)]
        assert bool(ids[0] & ids[1]) == (kind == "endless_same")
        assert bool(ids[0]) == (kind != "endless_empty")
    elif kind == "expired":
        office.heal()
        assert code(reader.follow(answer)) == (400, "AF20031")
    elif kind == "empty_page":
        office.heal()
        assert answer.json() == []
        assert len(reader.follow(answer).json()) == 2


def test_faults_in_order_by_match_and_after(reader: Client) -> None:
    office, ids = reader.office, [blob.content_id for blob in reader.office.blobs]
    office.fail("blob", faults.status(500), times=1, match=ids[1])
    office.fail("blob", faults.status(502), times=1, after=1)
    office.fail("any", faults.status(503), times=1, match=lambda ask: ask.method == "X")
    statuses = [reader.blob(i).status_code for i in (ids[0], ids[1], ids[2], ids[1])]
    assert statuses == [200, 500, 502, 200]
    with pytest.raises(ValueError, match="no such operation"):
        office.fail("blobs", faults.reset())
    office.fail("blob", faults.status(500))
    assert reader.blob(ids[0]).status_code == 500
    office.heal()
    assert reader.blob(ids[0]).status_code == 200


def test_a_host_can_be_down(reader: Client) -> None:
    reader.office.take_down("api")
    with pytest.raises(requests.ConnectionError):
        reader.content()
    reader.office.bring_up("api")
    assert reader.content().status_code == 200


def test_a_certificate_of_another_authority(reader: Client) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        reader.session.get(reader.office.untrusted_root, timeout=5)


# == Graph, clock, events, scenarios ===================================================


def test_graph_by_key_and_by_filter(client: Client) -> None:
    office = client.office
    client.sign_in(scope=f"{office.graph_root}/.default")
    root = f"{office.graph_root}/v1.0"
    app = events.PAYROLL
    found = client.call("GET", f"servicePrincipals(appId='{app}')", root=root)
    assert found.json()["displayName"] == "Emulated payroll"
    unknown = str(uuid.UUID(int=3))
    missing = client.call("GET", f"servicePrincipals(appId='{unknown}')", root=root)
    assert code(missing) == (404, "Request_ResourceNotFound")
    bad = client.call("GET", "servicePrincipals(appId='x')", root=root)
    assert code(bad) == (400, "Request_BadRequest")
    query = {"$filter": f"appId eq '{app}'"}
    assert len(
        client.call("GET", "servicePrincipals", root=root, **query).json()["value"]
    )
    office.options.graph_roles = ()
    client.sign_in(scope=f"{office.graph_root}/.default")
    denied = client.call("GET", f"servicePrincipals(appId='{app}')", root=root)
    assert code(denied) == (403, "Authorization_RequestDenied")
    client.token = "none"
    denied = client.call("GET", f"servicePrincipals(appId='{app}')", root=root)
    assert code(denied) == (401, "InvalidAuthenticationToken")


def test_the_date_header_is_the_emulators(reader: Client) -> None:
    reader.office.clock.set(datetime(2026, 5, 23, 17, 31, 8, tzinfo=UTC))
    answer = reader.call("GET", "subscriptions/list")
    assert answer.headers["Date"] == "Sat, 23 May 2026 17:31:08 GMT"


def test_events_are_stable_and_of_real_size() -> None:
    made = [e for t in CONTENT_TYPES for e in events.make_events(40, t)]
    sizes = [len(json.dumps(event, separators=(",", ":"))) for event in made]
    assert 1000 < sum(sizes) / len(sizes) < 1700
    assert len({event["Id"] for event in made}) == len(made)
    one, two = events.make_event("file", 7), events.make_event("file", 7)
    assert one["Id"] == two["Id"]


def test_the_zoo_is_json_on_one_line() -> None:
    longest = max(len(text) for text in events.ZOO)
    assert longest > 3_000_000
    for beast in events.ZOO:
        assert "\n" not in beast.replace("\r\n", "")
        json.loads(beast, parse_int=str)
    assert dict(events.zoo_by_name())["emoji_raw"] in events.ZOO


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_sets_up(name: str) -> None:
    scenario = SCENARIOS[name]
    assert scenario.story
    assert scenario.source
    office = Emulator()
    try:
        office.open()
        expected = scenario.set_up(office)
        if expected.between is not None:
            expected.between(office)
    finally:
        office.close()
    published = {i for blob in office.blobs for i in blob.ids}
    assert expected.arrive | expected.never <= published
    assert not expected.arrive & expected.never


def test_options_are_separate() -> None:
    first, second = Options(), Options()
    first.status_of = (("AF20051", 404),)
    assert second.status_of == ()


# == As a process ======================================================================


def test_serving_as_a_process() -> None:
    command = [sys.executable, "-m", "emulator", "--serve", "--enable", "--blobs", "4"]
    with (
        subprocess.Popen(
            command,
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
        requests.Session() as session,
    ):
        session.trust_env = False
        assert process.stdout is not None
        state = json.loads(process.stdout.readline())
        root = state["control"]
        assert state["blobs"] == 4
        body = {"blobs": 2, "count": 3, "age": 60}
        made = session.post(f"{root}/publish", json=body, timeout=5).json()
        assert [row["events"] for row in made] == [3, 3]
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=10) == 0
    assert not Path(state["directory"]).exists()


def test_the_control_port(office: Emulator) -> None:
    client = Client(office)
    control = Control(office)
    session = requests.Session()
    session.trust_env = False

    def post(path: str, **body: Any) -> requests.Response:
        return session.post(f"{control.root}{path}", json=body, timeout=5)

    try:
        post("/enable", content_types=[AAD])
        post("/options", expires_in=60, cool_down=5, status_of=[["AF20051", 410]])
        assert office.options.cool_down == timedelta(seconds=5)
        assert office.options.status_of == (("AF20051", 410),)
        post("/settings", page_size=7, latency=0.01)
        assert (office.page_size, office.latency) == (7, 0.01)
        args = {"code": 503}
        post("/fail", operation="content", fault="status", args=args, times=1)
        client.sign_in()
        assert client.content().status_code == 503
        post("/heal")
        assert post("/scenario", name="healthy").json()["whole"] is True
        assert post("/between").status_code == 200
        assert len(client.content().json()) == 3
        post("/clock", set="2026-05-23T00:00:00Z")
        assert post("/clock", advance=60).json()["now"] == "2026-05-23T00:01:00.000Z"
        post("/clock", follow=True)
        journal = session.get(f"{control.root}/journal", timeout=5).json()
        assert journal["counts"]["content 503"] == 1
        assert len(session.get(f"{control.root}/requests", timeout=5).json()) == 3
        post("/revoke")
        assert client.content().status_code == 401
        post("/journal/clear")
        assert office.journal.requests == []
        assert Path(post("/credentials", key="ec256").json()["key_file"]).exists()
        assert post("/fail", operation="x", fault="reset").status_code == 400
        assert post("/options", nothing=1).status_code == 400
        assert session.get(f"{control.root}/nowhere", timeout=5).status_code == 404
        assert session.get(f"{control.root}/trap", timeout=5).json() == []
        assert "healthy" in session.get(f"{control.root}/scenarios", timeout=5).json()
    finally:
        session.close()
        client.session.close()
        control.close()


def test_closing_ends_every_thread() -> None:
    before = threading.active_count()
    with Emulator() as office:
        client = Client(office)
        client.sign_in()
        host, port = office.api_root.removeprefix("https://").split(":")
        with socket.create_connection((host, int(port))):
            assert threading.active_count() > before
            office.close()
        client.session.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert not office.directory.exists()


def test_hashes_of_certificates(office: Emulator) -> None:
    made = office.credentials()
    der = made.certificate.fingerprint
    hashes = importlib.import_module("cryptography.hazmat.primitives.hashes")
    assert der(hashes.SHA1()).hex() == made.thumbprint_sha1_hex
    assert der(hashes.SHA256()).hex() == made.thumbprint_sha256_hex
    assert hashlib.sha256(made.key_file.read_bytes()).digest()
