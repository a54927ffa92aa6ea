"""Mail by condition: once, again, well again; never twice, never a secret."""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import DIRECTORY, Site
from emulator import Blob, Emulator, events, faults
from hypothesis import given
from hypothesis import strategies as st
from logstash_stand_in import LogstashStandIn, refuse, take
from smtp_relay import Relay, free_port, mail_relay, silent_relay

import o365_poller as poller
from o365_poller import due

PASSWORD = "correct horse battery staple"
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
DAY = timedelta(days=1)
TROUBLE, STILL, WELL = "", "still: ", "well again: "


def mailed(site: Site, relay: Relay, **more: str | None) -> Site:
    """The site, with mail by this relay."""
    site.set(
        "alerts",
        smtp_host="127.0.0.1",
        smtp_port=str(relay.port),
        **{"from": "poller@example.net", "to": "soc@example.net, admin@example.net"},
        **more,
    )
    return site


def later(site: Site, hours: float) -> None:
    """As if all that was said had been said so much earlier."""
    with sqlite3.connect(site.state_file) as state:
        state.execute("UPDATE said SET time = time - ?", (int(hours * 3600),))
    state.close()


def publish(office: Emulator) -> Blob:
    """A blob of a minute ago: what is of this very second waits for the next poll."""
    created = datetime.now(UTC) - timedelta(minutes=1)
    return office.publish(DIRECTORY, events.make_events(1), created=created)


def say_no(office: Emulator) -> None:
    office.options.roles = ()


def say_yes(office: Emulator) -> None:
    office.options.roles = ("ActivityFeed.Read", "ActivityFeed.ReadDlp")


# -- when


@pytest.mark.parametrize(
    ("told", "lasts", "word"),
    [
        (None, False, None),
        (None, True, TROUBLE),
        (timedelta(0), True, None),
        (DAY - timedelta(seconds=1), True, None),
        (DAY, True, STILL),
        (9 * DAY, True, STILL),
        (-timedelta(hours=1), True, STILL),
        (timedelta(0), False, WELL),
        (9 * DAY, False, WELL),
    ],
)
def test_a_condition_is_told_once_then_again_then_well(
    told: timedelta | None, lasts: bool, word: str | None
) -> None:
    when = None if told is None else NOW - told
    assert due(when, NOW, DAY, lasts=lasts) == word


@given(st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=60))
def test_what_lasts_is_never_silent_for_longer_than_repeat(
    steps: list[tuple[int, bool]],
) -> None:
    now, told, last_word, trouble_known = NOW, None, None, False
    for minutes, lasts in steps:
        now += timedelta(minutes=minutes)
        word = due(told, now, DAY, lasts=lasts)
        if word == WELL:
            assert trouble_known
            told, trouble_known = None, False
        elif word is not None:
            assert lasts
            assert word == (STILL if trouble_known else TROUBLE)
            told = last_word = now
            trouble_known = True
        if lasts:
            assert last_word is not None
            assert now - last_word < DAY
        else:
            assert not trouble_known


def test_a_refusal_is_told_once_repeated_and_told_well_once(site: Site) -> None:
    with mail_relay() as relay:
        mailed(site, relay)
        say_no(site.office)
        assert site.run().code == 4
        assert site.run().code == 4
        assert relay.subjects == ["access is refused"]
        later(site, 24)
        site.run()
        site.run()
        say_yes(site.office)
        assert site.run().code == 0
        site.run()
        assert relay.subjects == [
            "access is refused",
            "still: access is refused",
            "well again: access is refused",
        ]


def test_the_null_token_case_is_mailed_with_what_entra_id_said(site: Site) -> None:
    site.office.fail("token", faults.aadsts(700027, "The key used is expired."))
    with mail_relay() as relay:
        result = mailed(site, relay).run()
        assert result.code == 4
        text, mail = relay.text(), relay.mails[-1]
    assert "What happened:  no access token: Entra ID does not know this cert" in text
    assert "AADSTS700027" in text
    assert "What it means:  nothing was asked; the watermark stays" in text
    assert "What to do:     upload the certificate to the app registration" in text
    assert str(site.config) in text
    assert "Exit code:      4 REFUSED" in text
    assert site.office.tenant_id in str(mail["Subject"])
    # The end of the log, as it went on this time.
    tail = text.partition("The end of this run's log:")[2]
    assert re.search(r"ERROR   \[\d+\] no access token", tail)
    assert "no access token" in tail


def test_headers_say_that_a_machine_writes(site: Site) -> None:
    say_no(site.office)
    with mail_relay() as relay:
        mailed(site, relay).run()
        mail = relay.mails[-1]
        assert relay.recipients == [["soc@example.net", "admin@example.net"]]
    assert mail["From"] == "poller@example.net"
    assert mail["To"] == "soc@example.net, admin@example.net"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert str(mail["Message-ID"]).endswith("@example.net>")
    written = parsedate_to_datetime(str(mail["Date"]))
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)
    assert mail.get_content_type() == "text/plain"


def test_a_network_that_is_down_is_neither_trouble_nor_well(site: Site) -> None:
    with mail_relay() as relay:
        mailed(site, relay)
        say_no(site.office)
        site.run()
        say_yes(site.office)
        site.office.fail("token", faults.status(400, style="html"))
        assert site.run().code == 3
        assert relay.subjects == ["access is refused"]
        site.office.heal()
        site.office.fail("list", faults.status(400))
        site.office.fail("content", faults.status(400))
        assert site.run().code == 3
        assert relay.subjects == ["access is refused"]


def test_one_content_type_s_permission_is_its_own_condition(site: Site) -> None:
    site.set("poll", content_types=f"{DIRECTORY}, DLP.All")
    site.office.options.roles = ("ActivityFeed.Read",)
    with mail_relay() as relay:
        mailed(site, relay)
        assert site.run().code == 4
        assert relay.subjects == ["access is refused"]
        assert "ActivityFeed.ReadDlp" in relay.text()
        say_no(site.office)
        site.run()
        assert len(relay.mails) == 2, "another condition, another mail"
        say_yes(site.office)
        site.run()
        assert relay.subjects[2:] == ["well again: access is refused"]
        assert "DLP.All is polled again." in relay.text()


def test_auditing_off_for_all_content_types_is_one_mail(site: Site) -> None:
    types = (DIRECTORY, "Audit.Exchange", "Audit.SharePoint")
    site.set("poll", content_types=", ".join(types))
    site.office.subscriptions.clear()
    site.office.options.auditing_off = True
    with mail_relay() as relay:
        assert mailed(site, relay).run().code == 4
        assert len(relay.mails) == 1
        for content_type in types:
            assert f"to {content_type}: auditing is off" in relay.text()


# -- the certificate's end


def test_the_certificate_s_end_is_told_and_its_renewal(site: Site) -> None:
    short = site.office.credentials(valid_days=10)
    site.set(
        "azure",
        private_key=str(short.key_file),
        certificate=str(short.certificate_file),
    )
    with mail_relay() as relay:
        mailed(site, relay)
        assert site.run().code == 0
        site.run()
        assert relay.subjects == ["the certificate is about to end"]
        assert f"{short.not_after:%Y-%m-%d}, in 9 days" in relay.text()
        good = site.credentials
        site.set(
            "azure",
            private_key=str(good.key_file),
            certificate=str(good.certificate_file),
        )
        site.run()
        site.run()
        assert relay.subjects[1:] == ["well again: the certificate is about to end"]
        assert f"{good.not_after:%Y-%m-%d}" in relay.text()


# -- losses


def test_each_loss_is_told_once(site: Site) -> None:
    office = site.office
    gone = [publish(office), publish(office)]
    office.fail("blob", faults.af("AF20051"), match=gone[0].content_id)
    with mail_relay() as relay:
        mailed(site, relay)
        assert site.run().code == 6
        assert site.run().code == 0
        later(site, 1000)
        assert site.run().code == 0
        assert relay.subjects == ["audit events are lost"]
        assert gone[0].content_id in relay.text()
        assert gone[1].content_id not in relay.text().partition("The end of")[0]
        gone.append(publish(office))
        office.fail("blob", faults.af("AF20051"), match=gone[2].content_id)
        assert site.run().code == 6
        assert relay.subjects == ["audit events are lost"] * 2
        told = relay.text().partition("The end of")[0]
        assert gone[2].content_id in told
        assert gone[0].content_id not in told


# -- no Logstash


def test_no_logstash_is_told_after_an_hour_and_when_it_is_back(
    site: Site, logstash: LogstashStandIn
) -> None:
    publish(site.office)
    logstash.mode = refuse()
    with mail_relay() as relay:
        mailed(site, relay)
        assert site.run().code == 5
        later(site, 0.9)
        assert site.run().code == 5
        assert relay.subjects == []
        later(site, 0.2)
        assert site.run().code == 5
        assert site.run().code == 5
        assert relay.subjects == ["no Logstash takes the events"]
        assert "Connection refused" in relay.text()
        logstash.mode = take()
        assert site.run().code == 0
        assert site.run().code == 0
        assert relay.subjects[1:] == ["well again: no Logstash takes the events"]
        # An hour counts from the first failure after a success.
        logstash.mode = refuse()
        assert site.run().code == 5
        assert len(relay.mails) == 2


# -- the relay


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
def test_every_kind_of_relay_gets_the_mail(
    site: Site, tmp_path: Path, security: str
) -> None:
    say_no(site.office)
    ca_file = tmp_path / "relay-ca.pem"
    login = None if security == "none" else ("poller", PASSWORD)
    with mail_relay(security, login=login, ca_file=ca_file) as relay:
        mailed(site, relay, smtp_security=security)
        if login:
            site.set("alerts", username=login[0], password=login[1])
        result = site.run("-vv", env={"SSL_CERT_FILE": str(ca_file)})
        assert result.code == 4
        assert relay.encrypted == [security != "none"]
        whole = relay.mails[0].as_string() + relay.text()
    key = site.credentials.key_file.read_text().splitlines()[1]
    state = site.state_file.read_bytes().decode("latin-1")
    for place in (whole, result.out, result.err, site.log, state):
        assert PASSWORD not in place
        assert key not in place
        assert "eyJ" not in place, "a token or an assertion"


@pytest.fixture
def tail() -> Iterator[None]:
    """Only the tail hears what the program logs."""
    handlers, level = poller.log.handlers, poller.log.level
    poller.log.handlers = [poller.LogTail()]
    poller.log.setLevel(logging.INFO)
    yield
    poller.log.handlers = handlers
    poller.log.setLevel(level)


@pytest.mark.usefixtures("tail")
def test_a_password_in_the_log_does_not_get_into_the_mail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(poller.Secret, "known", {PASSWORD})
    poller.log.error("it said %s", PASSWORD)
    assert "it said ***" in poller.log_tail()


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_relay_that_is_not_trusted_gets_nothing(
    site: Site, tmp_path: Path, security: str
) -> None:
    say_no(site.office)
    ca_file = tmp_path / "relay-ca.pem"
    with mail_relay(security, login=("poller", PASSWORD), ca_file=ca_file) as relay:
        mailed(
            site, relay, smtp_security=security, username="poller", password=PASSWORD
        )
        result = site.run()
        assert result.code == 4
        assert relay.mails == []
        assert "its certificate is not trusted" in result.err
        # It was not taken, so it is sent once it can be.
        site.run(env={"SSL_CERT_FILE": str(ca_file)})
        assert relay.subjects == ["access is refused"]


def test_a_wrong_password_is_said_and_not_repeated(site: Site, tmp_path: Path) -> None:
    say_no(site.office)
    ca_file = tmp_path / "relay-ca.pem"
    with mail_relay("tls", login=("poller", "another"), ca_file=ca_file) as relay:
        mailed(site, relay, smtp_security="tls", username="poller", password=PASSWORD)
        result = site.run(env={"SSL_CERT_FILE": str(ca_file)})
        assert result.code == 4
        assert relay.mails == []
    assert "refuses username or password (535)" in result.err
    assert PASSWORD not in result.err + site.log


@pytest.mark.parametrize("code", [0, 4, 6])
def test_a_dead_relay_changes_no_outcome(site: Site, code: int) -> None:
    blob = publish(site.office)
    short = site.office.credentials(valid_days=5)  # something to tell at code 0 too
    site.set(
        "azure",
        private_key=str(short.key_file),
        certificate=str(short.certificate_file),
    )
    if code == 4:
        say_no(site.office)
    if code == 6:
        site.office.fail("blob", faults.af("AF20051"), match=blob.content_id)
    port = free_port()
    mailed(site, Relay(port))
    result = site.run()
    assert result.code == code
    assert (
        f"mail relay 127.0.0.1:{port}: Connection refused; the mail is not"
        in result.err
    )
    with mail_relay(port=port) as relay:
        site.run()
        assert relay.mails, "not noted as told before a relay took it"


def test_a_mail_that_is_refused_is_tried_again(site: Site) -> None:
    say_no(site.office)
    with mail_relay() as relay:
        mailed(site, relay)
        relay.refuse_data = "451 try later"
        result = site.run()
        assert result.code == 4
        assert "it answers 451 try later" in result.err
        relay.refuse_data = ""
        site.run()
        site.run()
        assert relay.subjects == ["access is refused"]


def test_one_bad_address_does_not_keep_the_others_waiting(site: Site) -> None:
    say_no(site.office)
    with mail_relay() as relay:
        relay.refuse_addresses = ("soc@example.net",)
        result = mailed(site, relay).run()
        assert relay.recipients == [["admin@example.net"]]
        assert "the relay refuses the address soc@example.net (550)" in result.err
        relay.refuse_addresses = ("soc@example.net", "admin@example.net")
        later(site, 24)
        assert "it refuses every address of to (550)" in site.run().err


def test_a_silent_relay_is_left_after_the_bound() -> None:
    with silent_relay() as port:
        alerts = poller.Alerts(
            "127.0.0.1", port, "none", "", poller.Secret(""), "a@b", ("c@d",), DAY, 30
        )
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            poller.within(0.3, lambda: poller.post(alerts, None))
        assert time.monotonic() - began < 3


# -- where there is none


def test_no_mail_for_a_try_out_a_check_or_a_wrong_configuration(site: Site) -> None:
    say_no(site.office)
    with mail_relay() as relay:
        mailed(site, relay)
        assert site.run("--stdout").code == 4
        assert site.run("--check").code == 4
        site.set("poll", workers="none")
        assert site.run().code == 2
        assert relay.mails == []


@pytest.mark.usefixtures("tail")
def test_the_tail_of_the_log_is_the_newest_and_bounded() -> None:
    for number in range(3000):
        poller.log.info("line %d", number)
    text = poller.log_tail().rstrip()
    assert len(text.encode()) < poller.TAIL_LENGTH + 100
    assert text.startswith("(earlier lines are left out)")
    assert text.endswith("line 2999")
    assert "line 1\n" not in text


def test_a_secret_in_what_happened_does_not_get_into_the_mail() -> None:
    poller.Secret("hush-hush-of-a-server")
    who: Any = SimpleNamespace(sender="a@example.net", to=("b@example.net",))
    azure = SimpleNamespace(tenant_id="t")
    settings: Any = SimpleNamespace(alerts=who, azure=azure, file=Path("c.ini"))
    run: Any = SimpleNamespace(exit=poller.Exit.REFUSED)
    letter = poller.Letter("access is refused", "it said hush-hush-of-a-server")
    mail = poller.compose(letter, settings, run, datetime.now(UTC))
    assert "it said ***" in mail.get_content()
    assert "hush-hush-of-a-server" not in mail.as_string()
