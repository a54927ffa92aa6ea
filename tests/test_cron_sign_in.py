"""Issue 2, points 1 and 2: the token and the subscriptions, by the script itself."""

from __future__ import annotations

import base64
import contextlib
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import trustme
from conftest import DIRECTORY, Result, Site
from cron_support import (
    DLP,
    EXCHANGE,
    HURRY,
    SHAREPOINT,
    assert_delivered,
    assert_quiet,
    ids,
    publish,
    rows,
    run_changed,
    taken,
    watermark,
)
from emulator import faults

SECRET = "the-secret-of-the-application"


def with_secret(site: Site) -> dict[str, str]:
    """A site without a certificate; gives the environment that it needs."""
    site.office.options.client_secret = SECRET
    site.set("azure", private_key=None, certificate=None)
    return {"O365_POLLER_AZURE_CLIENT_SECRET": SECRET}


# -- credentials


def test_a_certificate_signs_in_with_ps256_where_no_thumbprint_is_given(
    site: Site,
) -> None:
    site.office.options.ps256_refused = True
    result = site.run()
    assert result.code == 4
    assert "AADSTS5002730" in result.err
    assert "give thumbprint in [azure]: then RS256 is used" in result.err


def thumbprint_forms(hexadecimal: str) -> list[str]:
    pairs = [hexadecimal[i : i + 2] for i in range(0, 40, 2)]
    return [
        hexadecimal,
        ":".join(pairs).upper(),
        base64.b64encode(bytes.fromhex(hexadecimal)).decode(),
    ]


@pytest.mark.parametrize("form", [0, 1, 2], ids=["hex", "colons", "base64"])
def test_a_thumbprint_signs_in_with_rs256_with_or_without_the_certificate(
    site: Site, form: int
) -> None:
    site.office.options.ps256_refused = True
    thumbprint = thumbprint_forms(site.credentials.thumbprint_sha1_hex)[form]
    blobs = publish(site)
    site.set("azure", thumbprint=thumbprint, certificate=None if form else str(site.credentials.certificate_file))  # fmt: skip
    assert_quiet(site.run())
    assert_delivered(site, blobs)


@pytest.mark.parametrize("encoding", ["PKCS8", "PKCS1"])
def test_an_encrypted_key_is_opened_by_its_passphrase(
    site: Site, encoding: str
) -> None:
    made = site.office.credentials(passphrase="open sesame", encoding=encoding)
    site.set(
        "azure", private_key=str(made.key_file), certificate=str(made.certificate_file)
    )
    blobs = publish(site)
    env = {"O365_POLLER_AZURE_PRIVATE_KEY_PASSPHRASE": "open sesame"}
    assert_quiet(site.run(env=env))
    assert_delivered(site, blobs)


def test_a_client_secret_comes_from_the_environment_alone(site: Site) -> None:
    env = with_secret(site)
    blobs = publish(site)
    assert_quiet(site.run(env=env))
    assert_delivered(site, blobs)
    site.set("azure", client_secret=SECRET)
    result = site.run()
    assert result.code == 2
    assert "client_secret: expected it in the environment alone" in result.err
    assert SECRET not in result.err


def test_another_key_than_the_registered_one_is_refused_with_the_remedy(
    site: Site,
) -> None:
    stranger = site.office.credentials(register=False)
    site.set(
        "azure",
        private_key=str(stranger.key_file),
        certificate=str(stranger.certificate_file),
    )
    result = site.run()
    assert result.code == 4
    assert re.match(
        r"o365_poller: error: no access token: Entra ID does not know this certificate, "
        r"or the key does not fit it: AADSTS700027: .*; nothing was asked; the watermark "
        r"stays, so nothing is lost for 7 days; upload the certificate to the app "
        r"registration, and compare thumbprints\n$",
        result.err,
    )
    assert site.office.journal.of("list") == []


@pytest.mark.parametrize(
    ("number", "code", "remedy"),
    [
        (90002, 4, "check tenant_id and cloud"),
        (700024, 4, r"set the clock \(NTP\)"),
        (7000222, 4, "make another, or use a certificate"),
        (53003, 4, "except it, or allow this machine's address"),
        (900432, 4, r"set cloud in \[azure\]"),
        (999999, 4, "look the code up at https://login.microsoftonline.com/error"),
    ],
)
def test_no_token_is_told_with_entras_code_and_the_usual_remedy(
    site: Site, number: int, code: int, remedy: str
) -> None:
    """The null-token case: msal gives a dictionary without access_token."""
    site.office.fail("token", faults.aadsts(number, crlf=True))
    result = site.run()
    assert result.code == code
    assert re.search(rf"no access token: .*AADSTS{number}: .*; {remedy}\n$", result.err)
    assert result.err.count("\n") == 1
    assert site.office.journal.of("list") == []


def test_an_unknown_tenant_is_refused_at_discovery(site: Site) -> None:
    site.set("azure", tenant_id="00000000-1111-4222-8333-444444444444")
    result = site.run()
    assert result.code == 4
    assert "AADSTS90002" in result.err


# -- failures to reach Entra ID: 3, never 4


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("token", faults.status(503)),
        ("token", faults.throttle()),
        ("token", faults.raw("<html>not json")),
        ("discovery", faults.status(500)),
        ("discovery", faults.html()),
        ("token", faults.reset()),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_sign_in_that_fails_twice_is_ridden_out(
    site: Site, operation: str, fault: faults.Fault
) -> None:
    blobs = publish(site)
    site.office.fail(operation, fault, times=2)
    assert_quiet(site.run())
    assert_delivered(site, blobs)


def test_a_sign_in_that_cannot_be_reached_is_incomplete_and_not_refused(
    site: Site,
) -> None:
    site.office.take_down("login")
    result = site.run()
    assert result.code == 3
    assert re.match(
        r"o365_poller: warning: .*Connection refused \(5 tries\); nothing was asked; the "
        r"watermark stays, so nothing is lost for 7 days; nothing to do, unless it "
        r"repeats: then look at the network and at Microsoft's service health\n$",
        result.err,
    )
    site.office.bring_up("login")
    assert_quiet(site.run())


def test_a_sign_in_that_hangs_is_bounded_by_timeout_seconds(site: Site) -> None:
    blobs = publish(site)
    site.set("poll", timeout_seconds="1")
    site.office.fail("token", faults.hang(), times=1)
    site.office.fail("discovery", faults.hang(part="body"), times=1)
    began = time.monotonic()
    assert_quiet(site.run())
    assert time.monotonic() - began < 20
    assert_delivered(site, blobs)


def test_retry_after_of_the_token_endpoint_is_kept(site: Site) -> None:
    site.office.fail("token", faults.throttle(retry_after=2), times=1)
    began = time.monotonic()
    assert_quiet(site.run())
    assert time.monotonic() - began >= 2
    assert site.office.journal.impatient == []


# -- renewal


def test_a_401_in_mid_run_renews_the_token_once(site: Site) -> None:
    blobs = publish(site, 6)
    site.office.fail("blob", faults.revoke(), times=1, after=2)
    assert_quiet(site.run())
    assert_delivered(site, blobs)
    assert len(site.office.journal.of("token")) == 2


def test_a_401_that_stays_is_a_refusal_after_one_renewal(site: Site) -> None:
    site.office.fail("list", faults.denied())
    result = site.run()
    assert result.code == 4
    assert "the API refuses the token that Entra ID gave" in result.err
    assert "check that cloud, api_root and tenant_id in [azure] fit" in result.err
    assert len(site.office.journal.of("token")) == 2


@pytest.mark.parametrize("operation", ["list", "content", "blob"])
def test_a_sign_in_that_is_lost_in_mid_run_ends_the_run_and_is_said_once(
    site: Site, operation: str
) -> None:
    types = (DIRECTORY, EXCHANGE, SHAREPOINT)
    site.office.enable(*types)
    site.set("poll", content_types=",".join(types))
    blobs = [one for each in types for one in publish(site, 2, content_type=each)]
    site.office.fail("token", faults.status(404, style="html"), after=1)
    site.office.fail(operation, faults.revoke(), times=1)
    assert_lost(site.run())
    asked = {one.content_type for one in site.office.journal.of("content")}
    assert len(asked) == (operation != "list")
    if operation == "blob":
        assert rows(site, "SELECT * FROM pending") == []
    assert rows(site, "SELECT * FROM polled") == []
    site.office.heal()
    assert_quiet(site.run())
    assert_delivered(site, blobs)


def assert_lost(result: Result) -> None:
    """One line says that the sign-in could not be had."""
    assert result.code == 3
    assert re.fullmatch(
        r"o365_poller: warning: no access token: HTTP 404, not an answer of Entra ID; "
        r"nothing was asked; the watermark stays, so nothing is lost for 7 days; "
        r"nothing to do, unless it repeats: .*\n",
        result.err,
    )


def test_a_sign_in_that_is_lost_among_blobs_that_wait_is_said_once(site: Site) -> None:
    types = (DIRECTORY, EXCHANGE)
    site.office.enable(*types)
    site.set("poll", content_types=",".join(types))
    blobs = [one for each in types for one in publish(site, 1, content_type=each)]
    site.office.fail("blob", faults.not_array())
    assert run_changed(site, HURRY).code == 3
    site.office.heal()
    site.office.journal.clear()
    waiting = rows(site, "SELECT content_id, tries FROM pending")
    assert len(waiting) == 2
    site.office.fail("token", faults.status(404, style="html"), after=1)
    site.office.fail("blob", faults.revoke(), times=1)
    assert_lost(site.run())
    assert rows(site, "SELECT content_id, tries FROM pending") == waiting
    site.office.heal()
    assert_quiet(site.run())
    assert_delivered(site, blobs)


def test_a_token_of_seconds_is_renewed_as_the_run_goes_on(site: Site) -> None:
    # Its end is a whole second: of the four, more than three are left, and two are used.
    site.office.options.expires_in = 4
    site.set("poll", workers="1")
    blobs = publish(site, 8)
    site.office.fail("blob", faults.latency(0.7))
    assert_quiet(site.run())
    assert_delivered(site, blobs)
    assert len(site.office.journal.of("token")) >= 2
    assert [r.status for r in site.office.journal.of("blob")] == [200] * 8


def test_a_token_of_sixty_seconds_serves_a_run(site: Site) -> None:
    site.office.options.expires_in = 60
    blobs = publish(site, 6)
    assert_quiet(site.run())
    assert_delivered(site, blobs)
    assert len(site.office.journal.of("token")) == 1


def test_a_token_that_cannot_be_read_is_used_all_the_same(site: Site) -> None:
    site.office.options.opaque_tokens = True
    blobs = publish(site)
    assert_quiet(site.run())
    assert_delivered(site, blobs)


# -- the environment: what counts and what never does


def test_the_configured_bundle_wins_over_requests_ca_bundle(site: Site) -> None:
    wrong = site.folder / "wrong.pem"
    trustme.CA().cert_pem.write_to_path(str(wrong))
    blobs = publish(site)
    env = {"REQUESTS_CA_BUNDLE": str(wrong), "CURL_CA_BUNDLE": str(wrong)}
    assert_quiet(site.run(env=env))
    assert_delivered(site, blobs)


def test_without_a_configured_bundle_requests_ca_bundle_is_used(site: Site) -> None:
    site.set("azure", ca_bundle=None)
    blobs = publish(site)
    assert_quiet(site.run(env={"REQUESTS_CA_BUNDLE": str(site.office.ca_file)}))
    assert_delivered(site, blobs)


def test_an_untrusted_certificate_gets_nothing_and_is_named(site: Site) -> None:
    site.set("azure", ca_bundle=None)
    result = site.run()
    assert result.code == 3
    assert "no access token: sign-in: certificate not trusted: " in result.err
    assert "name its CA in ca_bundle in [azure]" in result.err
    assert site.office.journal.requests == []


def test_an_impostor_of_the_api_gets_no_token(site: Site) -> None:
    site.set("azure", api_root=site.office.untrusted_root)
    result = site.run()
    assert result.code in (3, 4)
    assert site.office.trap.requests == []


def test_a_netrc_entry_never_replaces_the_token(site: Site) -> None:
    home = site.folder / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine localhost login intruder password intruder\n")
    (home / ".netrc").chmod(0o600)
    blobs = publish(site)
    assert_quiet(site.run(env={"HOME": str(home), "NETRC": str(home / ".netrc")}))
    assert_delivered(site, blobs)


def test_msal_force_region_does_not_move_the_sign_in(site: Site) -> None:
    blobs = publish(site)
    assert_quiet(site.run(env={"MSAL_FORCE_REGION": "westeurope"}))
    assert_delivered(site, blobs)


# -- proxies


@dataclass
class ConnectProxy:
    """A proxy that knows CONNECT, and remembers to where."""

    server: socket.socket
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._tunnel, args=(client,), daemon=True).start()

    def _tunnel(self, client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(4096)
                if not data:
                    return
                head += data
            first = head.split(b"\r\n")[0].decode()
            self.asked.append(first)
            if b"authorization: bearer" in head.lower():
                self.asked.append("A TOKEN IN THE CLEAR")
            host, _, port = first.split()[1].rpartition(":")
            with socket.create_connection((host, int(port))) as office:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                pair = [client, office]
                while True:
                    for ready in select.select(pair, [], [], 30)[0]:
                        data = ready.recv(65536)
                        if not data:
                            return
                        pair[ready is client].sendall(data)


@contextmanager
def connect_proxy() -> Iterator[ConnectProxy]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = ConnectProxy(server)
        thread = threading.Thread(target=proxy.serve, daemon=True)
        thread.start()
        yield proxy


def test_a_proxy_of_the_environment_is_used_for_all_of_microsofts_hosts(
    site: Site,
) -> None:
    blobs = publish(site)
    with connect_proxy() as proxy:
        assert_quiet(site.run(env={"HTTPS_PROXY": proxy.url}))
    asked = {line.split()[1] for line in proxy.asked}
    roots = (site.office.login_root, site.office.api_root)
    assert asked == {root.removeprefix("https://") for root in roots}
    assert {line.split()[0] for line in proxy.asked} == {"CONNECT"}
    assert_delivered(site, blobs)


def test_no_proxy_keeps_hosts_off_it(site: Site) -> None:
    blobs = publish(site)
    with connect_proxy() as proxy:
        env = {"HTTPS_PROXY": proxy.url, "NO_PROXY": "example.net,localhost"}
        assert_quiet(site.run(env=env))
    assert proxy.asked == []
    assert_delivered(site, blobs)


def test_a_proxy_that_is_not_there_is_said_and_nothing_goes_around_it(
    site: Site,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    result = site.run(env={"HTTPS_PROXY": f"http://127.0.0.1:{port}"})
    assert result.code == 3
    assert "Connection refused" in result.err
    assert site.office.journal.requests == []


PROXY_PASSWORD = "hunter2secret"


def test_a_proxy_that_echoes_its_password_shows_it_to_nobody(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with peer:
                        asked = peer.recv(65536).decode()
                        said = asked.partition("Proxy-Authorization: ")[2].split("\r")[
                            0
                        ]
                        answer = f"HTTP/1.1 407 {said} is {PROXY_PASSWORD}\r\n\r\n"
                        peer.sendall(answer.encode())

        threading.Thread(target=serve, daemon=True).start()
        proxy = f"http://user:{PROXY_PASSWORD}@127.0.0.1:{server.getsockname()[1]}"
        result = run_changed(site, HURRY, "-vv", env={"HTTPS_PROXY": proxy})
    assert result.code == 3
    assert "407 Basic *** is ***" in result.err
    encoded = base64.b64encode(f"user:{PROXY_PASSWORD}".encode()).decode()
    for shown in (result.err, (site.folder / "poller.log").read_text()):
        assert PROXY_PASSWORD not in shown
        assert encoded not in shown


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("socks5h://127.0.0.1:1", "HTTPS_PROXY: Missing dependencies for SOCKS"),
        ("nonsense://127.0.0.1:1", "HTTPS_PROXY: Proxy URL had unsupported scheme"),
        ("http://", "an address cannot be read; if it is HTTPS_PROXY"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_said(
    site: Site, address: str, words: str
) -> None:
    result = run_changed(site, HURRY, env={"HTTPS_PROXY": address})
    assert result.code == 3
    assert words in result.err
    assert site.office.journal.requests == []


@pytest.mark.parametrize(
    "address",
    [
        "http://user:{}@127.0.0.1:{port}",
        "http://user:{}@127.0.0.1:99999",
        "http://user:{}/x@127.0.0.1:{port}",
        "http://user:{}@x@127.0.0.1:{port}",
        "http://user:{}@[127.0.0.1",
        "http://user:{}\u0663@127.0.0.1:\u0663",
        "https://user:{}@127.0.0.1:{port}",
        "socks5h://user:{}@127.0.0.1:{port}",
        "nonsense://user:{}@127.0.0.1:{port}",
        "user:{}",
    ],
)
def test_the_password_of_a_proxy_is_never_shown(site: Site, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    proxy = address.format(PROXY_PASSWORD, port=port)
    for flag in ("-vv", "--check"):
        result = run_changed(site, HURRY, flag, env={"HTTPS_PROXY": proxy})
        assert result.code == 3
        assert PROXY_PASSWORD not in result.out + result.err + site.log
        assert "Traceback" not in result.err + site.log
    assert site.office.journal.requests == []


def test_the_password_of_a_proxy_that_refuses_it_is_not_shown(site: Site) -> None:
    def refuse(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                with client:
                    asked = client.recv(4096)
                    client.sendall(
                        b"HTTP/1.1 407 No " + asked.split(b"\r\n")[0] + b"\r\n"
                        b"Content-Length: 0\r\n\r\n"
                    )

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=refuse, args=(server,), daemon=True).start()
        proxy = f"http://user:{PROXY_PASSWORD}@127.0.0.1:{server.getsockname()[1]}"
        result = run_changed(site, HURRY, "-vv", env={"HTTPS_PROXY": proxy})
    assert result.code == 3
    assert "Tunnel connection failed: 407" in result.err
    assert PROXY_PASSWORD not in result.err + site.log


# -- subscriptions


def operations(site: Site) -> list[str]:
    return [request.operation for request in site.office.journal.requests]


def test_subscriptions_are_listed_first_and_only_the_missing_are_started(
    site: Site,
) -> None:
    site.office.enable(EXCHANGE)
    site.set("poll", content_types=f"{DIRECTORY}, {EXCHANGE}, {SHAREPOINT}")
    result = site.run("-v")
    assert result.code == 0
    assert f"{SHAREPOINT}: subscription started; its first content may take up to" in (
        result.err
    )
    assert operations(site)[2] == "list"
    starts = site.office.journal.of("start")
    assert [start.content_type for start in starts] == [SHAREPOINT]
    assert site.office.subscriptions[SHAREPOINT] == "enabled"
    assert site.office.journal.of("stop") == []
    assert site.office.journal.violations == []
    site.office.journal.clear()
    assert_quiet(site.run())
    assert "start" not in operations(site)


def test_a_disabled_subscription_is_started(site: Site) -> None:
    site.office.subscriptions[DIRECTORY] = "disabled"
    blobs = publish(site)
    assert_quiet(site.run())
    assert site.office.subscriptions[DIRECTORY] == "enabled"
    assert_delivered(site, blobs)


def test_a_subscription_without_a_status_counts_as_enabled(site: Site) -> None:
    site.office.options.subscription_without_status = True
    assert_quiet(site.run())
    assert "start" not in operations(site)


def test_enabled_already_is_success(site: Site) -> None:
    site.office.subscriptions.clear()
    site.office.fail("start", faults.af("AF20024"), times=1)
    site.office.options.lenient_start = True
    result = site.run("-v")
    assert "subscription was enabled already" in result.err
    assert result.code in (0, 3)


@pytest.mark.parametrize("status", [403, 429])
def test_the_cool_down_of_a_start_is_noted_and_the_run_goes_on(
    site: Site, status: int
) -> None:
    site.office.options.cool_down_status = status
    site.office.activity.asked_before(EXCHANGE)
    blobs = publish(site)
    result = site.run("-v", "--content-type", EXCHANGE, "--content-type", DIRECTORY)
    assert "was asked for a short while ago; Microsoft wants a pause" in result.err
    assert result.code == 3
    assert taken(site) == ids(blobs)
    assert watermark(site, DIRECTORY) is not None


@pytest.mark.parametrize("code", ["AF20022", "AF20023"])
def test_a_listing_without_a_subscription_starts_it_and_asks_again(
    site: Site, code: str
) -> None:
    blobs = publish(site)
    site.office.fail("content", faults.af(code), times=1)
    site.office.options.lenient_start = True
    assert_quiet(site.run())
    assert taken(site) == ids(blobs)
    assert len(site.office.journal.of("start")) == 1


def test_a_list_of_subscriptions_that_fails_does_not_stop_the_poll(site: Site) -> None:
    blobs = publish(site)
    site.office.fail("list", faults.half_json())
    result = site.run()
    assert result.code == 0
    assert result.err == (
        "o365_poller: warning: list of subscriptions: the list of subscriptions is not "
        "a JSON array (5 tries); going on to the content\n"
    )
    assert_delivered(site, blobs)


def test_auditing_that_is_off_is_a_refusal_in_plain_words(site: Site) -> None:
    site.office.subscriptions.clear()
    site.office.options.auditing_off = True
    result = site.run()
    assert result.code == 4
    assert "auditing is off in this tenant, or not in its licence" in result.err
    assert "switch unified auditing on in the Purview portal" in result.err
    assert "\r" not in result.err
    assert result.err.count("\n") == 1


def test_no_permission_at_all_is_a_refusal_that_names_it(site: Site) -> None:
    site.office.options.roles = ()
    result = site.run()
    assert result.code == 4
    assert "the application lacks the permission ActivityFeed.Read (" in result.err
    assert len(site.office.journal.of("token")) == 1


def test_a_permission_missing_for_one_type_stops_that_one_alone(site: Site) -> None:
    site.office.options.roles = ("ActivityFeed.Read",)
    site.office.enable(DLP)
    blobs = publish(site)
    result = site.run("--content-type", DLP, "--content-type", DIRECTORY)
    assert result.code == 4
    assert result.err.count("\n") == 1
    assert "the application lacks the permission ActivityFeed.ReadDlp (" in result.err
    assert "grant admin consent" in result.err
    assert taken(site) == ids(blobs)
    assert watermark(site, DIRECTORY)
    assert len(site.office.journal.of("token")) == 1


@pytest.mark.parametrize("state", ["deleted", "misconfigured"])
def test_a_tenant_that_the_api_does_not_know_is_a_refusal(
    site: Site, state: str
) -> None:
    site.office.options.tenant_state = state
    result = site.run()
    assert result.code == 4
    assert "check tenant_id, cloud and the licence" in result.err


def test_the_publisher_is_on_every_request_and_can_be_configured(site: Site) -> None:
    publisher = "12345678-0000-4000-8000-000000000000"
    site.set("azure", publisher_id=publisher)
    site.office.page_size = 2
    publish(site, 5)
    assert_quiet(site.run())
    asked = [r for r in site.office.journal.requests if r.host == "api"]
    assert {request.publisher_id for request in asked} == {publisher}
    assert {r.operation for r in asked} == {"list", "content", "blob"}
    assert site.office.journal.violations == []
