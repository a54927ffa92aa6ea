"""--check: each thing that can be wrong is found and told with its remedy."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import DIRECTORY, Result, Site, cron_environment
from emulator import Emulator, events, faults
from emulator.faults import Fault
from logstash_stand_in import (
    LogstashStandIn,
    accept_and_stall,
    refuse,
    stall_confirm,
    tls_alert,
)
from smtp_relay import free_port, mail_relay

import o365_poller as poller
from o365_poller import AADSTS, AADSTS_PASSING, CONTENT_TYPES, Exit

SUBSCRIPTION, LISTING = f"subscription {DIRECTORY}", f"listing {DIRECTORY}"
STACK_TRACE = (
    '{"error":{"code":"StartSubscription [TenantId=x,ContentType=y] failed. Exception",'
    '"message":"Microsoft.Office.Compliance.Audit.DataServiceException: Tenant x does '
    'not exist.\\r\\n   at Microsoft.Office"}}'
)


def publish(site: Site, count: int = 1, **back: float) -> None:
    """Blobs that became available so long ago."""
    created = datetime.now(UTC) - timedelta(**back or {"minutes": 7.5})
    for n in range(count):
        made = events.make_events(1, first=n + 1)
        site.office.publish(DIRECTORY, made, created=created)


def steps(result: Result) -> dict[str, tuple[str, str]]:
    """By step: the mark, and what was found with its remedy."""
    found = {}
    for line in result.out.splitlines():
        mark, rest = line[:6].rstrip(), line[6:]
        assert mark in ("ok", "warn", "FAIL"), line
        name, colon, told = rest.partition(": ")
        assert colon, line
        found[name] = (mark, told)
    return found


def check(site: Site, *arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """A check's code and steps; it says nothing on stderr, and breaks no rule."""
    result = site.run("--check", *arguments)
    assert result.err == ""
    assert site.office.journal.violations == []
    assert site.office.journal.of("start") == []
    return result.code, steps(result)


# -- all is well


def test_all_is_well_and_nothing_is_changed(
    site: Site, logstash: LogstashStandIn
) -> None:
    publish(site, 3)
    site.set("logging", file=str(site.folder / "other.log"))
    site.write()
    before = sorted(site.folder.rglob("*"))
    code, found = check(site)
    assert code == 0
    assert {mark for mark, _ in found.values()} == {"ok"}
    assert list(found) == [
        "configuration",
        "key and certificate",
        "token",
        "permissions",
        SUBSCRIPTION,
        LISTING,
        "clock",
        f"Logstash {logstash.address}",
        "state",
        "log",
    ]
    ends = f"{site.credentials.not_after:%Y-%m-%d}"
    assert found["configuration"][1] == str(site.config)
    assert (
        f"the certificate ends on {ends}, in 364 days"
        in found["key and certificate"][1]
    )
    assert "ActivityFeed.Read" in found["permissions"][1]
    assert found[SUBSCRIPTION] == ("ok", "enabled")
    assert found[LISTING][1] == "3 blobs in the last 24 hours, the newest 7 min old"
    assert "none yet" in found["state"][1]
    assert sorted(site.folder.rglob("*")) == before, "no state, no lock, no log"
    assert logstash.all_lines == []
    assert logstash.total_bytes == 0
    assert site.office.journal.of("blob") == []


def test_a_check_leaves_a_state_as_it_is_and_waits_for_no_lock(site: Site) -> None:
    publish(site)
    assert site.run().code == 0
    with sqlite3.connect(site.state_file) as state:
        state.execute(
            "INSERT INTO pending VALUES (?,'id','',0,NULL,0,1,'why')", (DIRECTORY,)
        )
    state.close()
    before = site.state_file.read_bytes()
    with poller.state_lock(site.state_file):
        code, found = check(site)
    assert code == 0
    told = found[f"state {DIRECTORY}"]
    assert told[0] == "ok"
    assert "last good poll up to " in told[1]
    assert told[1].endswith("0 min ago; 1 blobs pending")
    assert site.state_file.read_bytes() == before


def test_content_types_of_the_command_line_count(site: Site) -> None:
    site.office.enable("Audit.Exchange")
    _, found = check(site, "--content-type", "audit.exchange")
    assert "subscription Audit.Exchange" in found
    assert SUBSCRIPTION not in found


# -- configuration, key, certificate


def test_a_wrong_configuration_is_told_line_by_line(site: Site) -> None:
    other = site.office.credentials()
    site.set("azure", certificate=str(other.certificate_file), client_id="me")
    site.set("poll", workers="many")
    result = site.run("--check")
    assert result.code == 2
    assert result.err == ""
    lines = result.out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("FAIL  configuration: ") for line in lines)
    assert "[azure] client_id: expected a GUID" in lines[0]
    assert "expected the certificate that belongs to the private key" in lines[1]
    assert "[poll] workers: expected a whole number" in lines[2]
    assert site.office.journal.requests == []


@pytest.mark.parametrize(
    ("valid_days", "mark", "code", "text"),
    [
        (31.5, "ok", 0, "in 31 days"),
        (29.5, "warn", 0, "in 29 days; make a new key and certificate, upload"),
        (-0.5, "FAIL", 4, "the certificate ended on "),
    ],
)
def test_the_certificate_s_end(
    site: Site, valid_days: float, mark: str, code: int, text: str
) -> None:
    begun = datetime.now(UTC) - timedelta(days=100)
    made = site.office.credentials(not_before=begun, valid_days=100 + valid_days)
    site.set(
        "azure", private_key=str(made.key_file), certificate=str(made.certificate_file)
    )
    exit_code, found = check(site)
    assert exit_code == code
    assert found["key and certificate"][0] == mark
    assert text in found["key and certificate"][1]
    if code:
        assert found["token"][0] == "FAIL"
        assert "The key used is expired" in found["token"][1]


def test_what_is_not_known_of_a_thumbprint_or_a_secret_is_said(site: Site) -> None:
    site.set("azure", certificate=None, thumbprint=site.credentials.thumbprint_sha1_hex)
    code, found = check(site)
    assert (code, found["key and certificate"][0]) == (0, "warn")
    assert "name the certificate" in found["key and certificate"][1]
    site.office.options.client_secret = "s3cr3t-of-the-app"
    site.set("azure", thumbprint=None, private_key=None)
    result = site.run(
        "--check", env={"O365_POLLER_AZURE_CLIENT_SECRET": "s3cr3t-of-the-app"}
    )
    assert result.code == 0
    assert steps(result)["key and certificate"][0] == "warn"
    assert "s3cr3t" not in result.out + result.err


# -- token


def in_process(site: Site, environ: dict[str, str] | None = None) -> list[poller.Step]:
    """The steps, without the price of a process."""
    site.write()
    settings = poller.read_settings(site.config, {}, named=True)
    return list(poller.check_steps(settings, (DIRECTORY,), environ or {}))


def test_every_refusal_of_entra_id_has_its_sentence_and_remedy(site: Site) -> None:
    site.set("logstash", timeout_seconds="1")
    for number, (sentence, remedy) in AADSTS.items():
        site.office.fail("token", faults.aadsts(number, status=400))
        by_name = {step.name: step for step in in_process(site)}
        site.office.heal()
        step = by_name["token"]
        assert step.mark == "FAIL", number
        assert step.exit is Exit.REFUSED, number
        assert sentence in step.found
        assert f"AADSTS{number}" in step.found
        assert step.fix == remedy
        assert by_name["subscriptions and listings"].mark == "warn"


def test_a_token_that_is_refused_is_told_with_the_remedy(site: Site) -> None:
    site.office.fail("token", faults.aadsts(700016, "'x' in 'y'"))
    code, found = check(site)
    assert code == 4
    mark, told = found["token"]
    assert mark == "FAIL"
    assert told.startswith(
        "no access token: the application is not in this tenant: AAD"
    )
    assert told.endswith(
        "check client_id and tenant_id, and that an admin has consented"
    )
    assert found["subscriptions and listings"][0] == "warn"


@pytest.mark.parametrize(
    "fault",
    [faults.aadsts(min(AADSTS_PASSING)), faults.html(), faults.status(503)],
    ids=lambda fault: fault.name,
)
def test_a_sign_in_that_does_not_answer_is_no_refusal(site: Site, fault: Fault) -> None:
    site.office.fail("token", fault)
    code, found = check(site)
    assert code == 3
    assert found["token"][0] == "FAIL"


def test_hosts_that_are_down_are_told(site: Site) -> None:
    site.office.take_down("api")
    code, found = check(site)
    assert code == 3
    assert found["token"][0] == "ok"
    assert found["subscriptions"][0] == "warn", "a poll goes on to the content"
    assert "Connection refused (2 tries)" in found["subscriptions"][1]
    assert found[LISTING][0] == "FAIL"
    assert found[LISTING][1].startswith("listing of [")


@pytest.mark.parametrize("host", ["login", "api"])
def test_a_certificate_that_is_not_trusted_points_to_ca_bundle(
    site: Site, host: str
) -> None:
    if host == "login":
        site.set("azure", ca_bundle=None)
        code, found = check(site)
        assert code == 3
        told = found["token"]
        assert told[1].startswith("no access token: ")
        assert "certificate not trusted: " in told[1]
        poll = site.run()
        assert (poll.code, "ca_bundle in [azure]" in poll.err) == (3, True)
        assert "msal" not in poll.err
    else:
        judgement = poller.Judgement(
            poller.Verdict.UNTRUSTED, "certificate not trusted"
        )
        step = poller.failed_step("x", poller.refusal("listing", "role", judgement))
        told = (step.mark, f"{step.found}; {step.fix}")
    assert told[0] == "FAIL"
    assert "if a proxy opens TLS here, name its CA in ca_bundle in [azure]" in told[1]


# -- permissions


def test_the_permission_that_is_missing_is_named(site: Site) -> None:
    site.office.options.roles = ("ServiceHealth.Read",)
    code, found = check(site)
    assert code == 4
    mark, told = found["permissions"]
    assert mark == "FAIL"
    assert told.startswith(
        f"ActivityFeed.Read is missing, without which {DIRECTORY} cannot"
    )
    assert "grant admin consent" in told
    assert found["subscriptions"][0] == "FAIL"


def test_dlp_wants_its_own_permission(site: Site) -> None:
    site.set("poll", content_types=f"{DIRECTORY}, DLP.All")
    site.office.options.roles = ("ActivityFeed.Read",)
    code, found = check(site)
    assert code == 4
    assert found["permissions"][0] == "FAIL"
    assert (
        "ActivityFeed.ReadDlp is missing, without which DLP.All"
        in found["permissions"][1]
    )
    assert found[LISTING][0] in ("ok", "warn"), "the other content type goes on"
    assert site.run().code == 4, "the poll says so too"


def test_a_token_that_cannot_be_read_is_a_warning(site: Site) -> None:
    site.office.options.opaque_tokens = True
    code, found = check(site)
    assert code == 0
    assert found["permissions"][0] == "warn"
    assert "see by the listings below" in found["permissions"][1]


# -- clock


@pytest.mark.parametrize(
    ("seconds", "mark"), [(-300, "warn"), (10, "ok"), (300, "warn")]
)
def test_the_clock_is_compared(site: Site, seconds: int, mark: str) -> None:
    site.office.clock.advance(timedelta(seconds=seconds))
    code, found = check(site)
    assert code == 0
    assert found["clock"][0] == mark
    assert int(found["clock"][1].split(" s ")[0]) == pytest.approx(-seconds, abs=3)
    assert ("set this machine's clock (NTP)" in found["clock"][1]) == (mark == "warn")


# -- subscriptions and listings


@pytest.mark.parametrize("status", ["missing", "disabled"])
def test_a_subscription_that_is_not_there_is_left_to_the_first_poll(
    site: Site, status: str
) -> None:
    site.office.subscriptions.clear()
    if status == "disabled":
        site.office.subscriptions[DIRECTORY] = "disabled"
    code, found = check(site)
    assert code == 0
    mark, told = found[SUBSCRIPTION]
    assert mark == "warn"
    assert told.startswith("not enabled; --check starts none; the first poll starts it")
    assert "12 hours" in told
    assert LISTING not in found
    assert site.run().code == 0


def test_a_subscription_that_is_enabled_and_gives_nothing_is_not_started(
    site: Site,
) -> None:
    site.office.fail("content", faults.af("AF20022"))
    code, found = check(site)
    assert code == 3
    assert found[SUBSCRIPTION][0] == "ok"
    assert found[LISTING][0] == "FAIL"
    assert (
        "the subscription is enabled, and the API says it is not" in found[LISTING][1]
    )


@pytest.mark.parametrize("operation", ["list", "content"])
def test_auditing_that_is_off_is_said_in_plain_words(
    site: Site, operation: str
) -> None:
    site.office.fail(operation, faults.status(400, STACK_TRACE))
    code, found = check(site)
    assert code == 4
    mark, told = found["subscriptions" if operation == "list" else LISTING]
    assert mark == "FAIL"
    assert "auditing is off in this tenant, or not in its licence" in told
    assert "switch unified auditing on in the Purview portal" in told


def test_an_empty_listing_is_a_warning_with_what_to_look_at(site: Site) -> None:
    publish(site, days=2)
    code, found = check(site)
    assert code == 0
    assert found[LISTING][0] == "warn"
    assert "no blob in the last 24 hours" in found[LISTING][1]
    assert "Purview" in found[LISTING][1]


def test_the_newest_blob_is_found_in_a_long_listing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(site, 30, hours=20)
    publish(site, 2, minutes=9.5)
    monkeypatch.setattr(poller, "LISTED_MOST", 10)
    (step,) = [one for one in in_process(site) if one.name == LISTING]
    assert step.found == "10 or more blobs in the last 24 hours, the newest 9 min old"


@pytest.mark.parametrize(
    ("fault", "code"),
    [(faults.status(500), 3), (faults.denied(), 4), (faults.af("AF20012"), 4)],
    ids=lambda one: getattr(one, "name", ""),
)
def test_a_listing_that_fails_is_told(site: Site, fault: Fault, code: int) -> None:
    site.office.fail("content", fault)
    exit_code, found = check(site)
    assert exit_code == code
    assert "FAIL" in {
        found.get(LISTING, ("",))[0],
        found.get("subscriptions", ("",))[0],
    }


# -- Logstash


def test_a_host_that_refuses_is_told(site: Site, logstash: LogstashStandIn) -> None:
    logstash.mode = refuse()
    code, found = check(site)
    assert code == 5
    mark, told = found[f"Logstash {logstash.address}"]
    assert mark == "FAIL"
    assert "failed while connecting: Connection refused; see that the tcp input" in told


def test_a_host_that_does_not_resolve_is_told(site: Site) -> None:
    site.set("logstash", hosts="no-such-host.invalid:5514")
    code, found = check(site)
    assert code == 5
    assert "failed while connecting: " in found["Logstash no-such-host.invalid:5514"][1]


def test_one_host_of_two_is_enough_for_a_poll(
    site: Site, logstash: LogstashStandIn
) -> None:
    dead = f"127.0.0.1:{free_port()}"
    site.set("logstash", hosts=f"{dead}, {logstash.address}")
    code, found = check(site)
    assert code == 0
    assert found[f"Logstash {dead}"][0] == "warn"
    assert found[f"Logstash {logstash.address}"] == ("ok", "connects")


@pytest.mark.parametrize(
    "mode", [accept_and_stall(), stall_confirm()], ids=lambda m: m.name
)
def test_a_host_that_does_not_end_its_side_is_told(
    site: Site, logstash: LogstashStandIn, mode: object
) -> None:
    logstash.mode = mode  # type: ignore[assignment]
    site.set("logstash", timeout_seconds="0.5")
    code, found = check(site)
    assert code == 5
    told = found[f"Logstash {logstash.address}"][1]
    assert told.startswith("made no progress in 0.5 s while confirming; ")


@pytest.fixture
def tls_logstash() -> Iterator[LogstashStandIn]:
    with LogstashStandIn(mutual=True) as stand_in:
        yield stand_in


def test_tls_to_logstash_is_looked_at(
    site: Site, tls_logstash: LogstashStandIn
) -> None:
    stand_in = tls_logstash
    name = f"Logstash {stand_in.address}"
    site.set("logstash", hosts=stand_in.address, tls="yes", timeout_seconds="2")
    certificate = str(stand_in.client_certificate_file)
    key = str(stand_in.client_key_file)
    code, found = check(site)
    assert code == 5
    assert "its certificate is not trusted" in found[name][1]
    site.set("logstash", ca_file=str(stand_in.ca_file))
    code, found = check(site)
    assert code == 5, "it wants a certificate of ours"
    site.set("logstash", cert_file=certificate, key_file=key)
    code, found = check(site)
    assert code == 0
    assert "connects, TLSv1.3, its certificate ends on 3000-01-01" in found[name][1]
    stand_in.mode = tls_alert()
    code, found = check(site)
    assert code == 5
    assert stand_in.all_lines == []


def test_a_certificate_that_is_wanted_is_never_overlooked(
    site: Site, tls_logstash: LogstashStandIn
) -> None:
    """OpenSSL takes an alert that comes with the end for an orderly close."""
    host = poller.Host(tls_logstash.host, tls_logstash.port)
    settings = poller.Logstash(
        (host,), True, tls_logstash.ca_file, None, None, 5, run_events=False
    )
    for _ in range(40):
        (step,) = poller.check_logstash(settings)
        assert step.exit is Exit.SINK
        with pytest.raises(poller.SinkError):
            poller.LogstashSink(settings).deliver([b"{}\n"])
    assert tls_logstash.all_lines == []


# -- state


def test_a_state_of_another_tenant_or_version_is_told(site: Site) -> None:
    site.run()
    with sqlite3.connect(site.state_file) as state:
        state.execute("UPDATE meta SET value = 'another' WHERE key = 'tenant_id'")
    code, found = check(site)
    assert code == 2
    assert found["state"][0] == "FAIL"
    assert "belongs to tenant_id another" in found["state"][1]
    assert "give each tenant a state_file of its own" in found["state"][1]
    state.execute("PRAGMA user_version = 99")
    state.close()
    code, found = check(site)
    assert code == 2
    assert "was written by a newer version" in found["state"][1]


@pytest.mark.parametrize(
    ("content", "text"), [(b"", "is empty"), (b"no database " * 500, "is unreadable")]
)
def test_a_state_of_no_use_is_told_and_left_to_the_poll(
    site: Site, content: bytes, text: str
) -> None:
    site.state_file.write_bytes(content)
    code, found = check(site)
    assert code == 0
    assert found["state"][0] == "warn"
    assert text in found["state"][1]
    assert "the next poll polls the last 7 days again" in found["state"][1]
    assert site.state_file.read_bytes() == content


def test_what_a_killed_poll_left_is_not_touched(site: Site) -> None:
    """A rollback journal: SQLite would undo the half-written transaction on reading."""
    site.run()
    journal = site.folder / "config.db-journal"
    with sqlite3.connect(site.state_file, isolation_level=None) as state:
        state.execute("PRAGMA cache_size = 1")
        state.execute("BEGIN IMMEDIATE")
        for n in range(2000):
            state.execute("INSERT INTO said VALUES (?, 0, ?)", (f"key {n}", "x" * 100))
        half, undo = site.state_file.read_bytes(), journal.read_bytes()
        state.execute("ROLLBACK")
    state.close()
    site.state_file.write_bytes(half)
    journal.write_bytes(undo)
    code, found = check(site)
    assert code == 0
    assert found["state"][0] == "warn"
    assert (
        "the next poll undoes what a killed one left half-written" in found["state"][1]
    )
    assert (site.state_file.read_bytes(), journal.read_bytes()) == (half, undo)
    assert site.run().code == 0


def test_polls_that_no_longer_come_are_told(site: Site) -> None:
    site.run()
    with sqlite3.connect(site.state_file) as state:
        state.execute("UPDATE watermark SET time = time - 7200")
    state.close()
    code, found = check(site, "--content-type", DIRECTORY, "--content-type", "dlp.all")
    assert code == 0
    assert found[f"state {DIRECTORY}"][0] == "warn"
    assert "120 min ago" in found[f"state {DIRECTORY}"][1]
    assert "that cron runs them" in found[f"state {DIRECTORY}"][1]
    assert found["state DLP.All"] == ("ok", "not polled yet")


@pytest.mark.parametrize("what", ["lock", "link", "long"])
def test_what_a_poll_would_fail_at_beside_the_state_is_told(
    site: Site, what: str
) -> None:
    if what == "lock":
        (site.folder / "config.db.lock").mkdir()
    elif what == "link":
        (site.folder / "config.db").symlink_to(site.folder / "nowhere" / "x")
    else:
        site.set("poll", state_file="x" * 255)
    checked, polled = site.run("--check"), site.run()
    assert (checked.code, polled.code) == (2, 2)
    assert "FAIL  state: " in checked.out


def test_a_state_that_cannot_be_written_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def may_not(path: object, mode: int) -> bool:
        return False

    monkeypatch.setattr("o365_poller.os.access", may_not)  # root may write anything
    found = [one for one in in_process(site) if one.name in ("state", "log")]
    assert len(found) == 2
    for step in found:
        assert step.exit is Exit.USAGE
        assert "cannot be written; see that this user may write the file" in str(step)


# -- what never fails a poll


def test_the_mail_relay_is_met_and_gets_no_mail(site: Site, tmp_path: Path) -> None:
    ca_file = tmp_path / "relay-ca.pem"
    mail = {"from": "a@example.net", "to": "b@example.net", "smtp_host": "127.0.0.1"}
    with mail_relay("tls", login=("poller", "right one"), ca_file=ca_file) as relay:
        name = f"mail relay 127.0.0.1:{relay.port}"
        site.set("alerts", smtp_port=str(relay.port), smtp_security="tls", **mail)
        site.set("alerts", username="poller", password="right one")
        trusted = {"SSL_CERT_FILE": str(ca_file)}
        result = site.run("--check", env=trusted)
        assert (result.code, steps(result)[name][0]) == (0, "ok")
        site.set("alerts", password="wrong one")
        result = site.run("--check", env=trusted)
        assert (result.code, steps(result)[name][0]) == (0, "warn")
        assert (
            "it refuses username or password (535); check [alerts]"
            in steps(result)[name][1]
        )
        assert "wrong one" not in result.out
        result = site.run("--check")
        assert "its certificate is not trusted" in steps(result)[name][1]
        assert relay.mails == []
    code, found = check(site)
    assert code == 0
    assert "Connection refused" in found[name][1]


def test_graph_is_asked_where_names_are_wanted(site: Site) -> None:
    site.set("graph", application_names="yes")
    code, found = check(site)
    assert (code, found["application names"]) == (0, ("ok", "Graph tells them"))
    site.office.options.graph_roles = ()
    code, found = check(site)
    assert (code, found["application names"][0]) == (0, "warn")
    assert "Application.Read.All" in found["application names"][1]
    site.office.take_down("graph")
    code, found = check(site)
    assert (code, found["application names"][0]) == (0, "warn")
    assert not (site.folder / "config.names.json").exists()


# -- as a whole


def no_role(office: Emulator) -> None:
    office.options.roles = ()


def no_tenant(office: Emulator) -> None:
    office.fail("token", faults.aadsts(90002))


def api_broken(office: Emulator) -> None:
    office.fail("content", faults.status(400))


def list_broken(office: Emulator) -> None:
    office.fail("list", faults.status(400))


def no_types(office: Emulator) -> None:
    office.subscriptions.clear()


def suspended(office: Emulator) -> None:
    office.options.tenant_state = "deleted"


def well(office: Emulator) -> None:
    pass


@pytest.mark.parametrize(
    "trouble",
    [well, no_role, no_tenant, api_broken, list_broken, no_types, suspended],
)
def test_the_code_is_the_one_a_poll_ends_with(
    site: Site, trouble: Callable[[Emulator], None]
) -> None:
    publish(site)
    trouble(site.office)
    code, _ = check(site)
    assert site.run().code == code


def test_three_things_wrong_are_all_told(site: Site, logstash: LogstashStandIn) -> None:
    soon = site.office.credentials(valid_days=9.5)
    site.set(
        "azure", private_key=str(soon.key_file), certificate=str(soon.certificate_file)
    )
    site.set("poll", content_types=", ".join(CONTENT_TYPES))
    site.office.enable()
    site.office.options.roles = ("ActivityFeed.Read",)
    logstash.mode = refuse()
    code, found = check(site)
    assert code == 4
    wrong = [name for name, (mark, _) in found.items() if mark == "FAIL"]
    assert "permissions" in wrong
    assert f"Logstash {logstash.address}" in wrong
    assert found["key and certificate"][0] == "warn"


@pytest.mark.parametrize(
    "arguments",
    [("--stdout",), ("--start", "1h"), ("--start", "2h", "--end", "1h"), ("--report",)],
)
def test_what_does_not_go_with_a_check_is_a_usage_error(
    site: Site, arguments: tuple[str, ...]
) -> None:
    result = site.run("--check", *arguments)
    assert (result.code, result.out) == (2, "")
    assert arguments[0] in result.err
    assert site.office.journal.requests == []


def test_a_reader_that_goes_away_is_no_defect(site: Site) -> None:
    site.write()
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        site.command("--check"),
        env=cron_environment(),
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writing)
    assert process.stderr == b""
    assert process.returncode == 0


def test_no_secret_is_shown(site: Site) -> None:
    result = site.run("--check", "-vv")
    key = site.credentials.key_file.read_text().splitlines()[1]
    for text in (result.out, result.err):
        assert key not in text
        assert "eyJ" not in text
