"""The contract's Safety, and issue 2's point 8: secrets, and bad input told in full."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SCRIPT, Site, cron_environment
from cron_support import assert_quiet, publish
from cryptography.hazmat.primitives import serialization as s
from emulator import faults

PASSPHRASE = "passphrase-that-nobody-may-see"
SECRET = "client-secret-that-nobody-may-see"


def everything(site: Site, *outputs: str) -> bytes:
    """All that a run has left: output, log, state and whatever else is in the folder."""
    parts = [output.encode() for output in outputs]
    parts += [
        file.read_bytes()
        for file in sorted(site.folder.rglob("*"))
        if file.is_file() and file != site.config
    ]
    return b"\n".join(parts)


def pem_lines(file: Path) -> list[str]:
    """The lines of a PEM body, which appear nowhere by chance."""
    return [line for line in file.read_text().splitlines() if len(line) == 64]


TROUBLES: dict[str, list[tuple[str, faults.Fault, int | None]]] = {
    "well": [],
    "refused": [("token", faults.aadsts(700027), None)],
    "denied": [("list", faults.denied(), None)],
    "sign-in down": [("token", faults.status(503), 2)],
    "blobs fail": [("blob", faults.reset(), 2), ("content", faults.status(500), 1)],
    "odd listing": [("content", faults.next_page("other_host"), 1)],
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_no_secret_shows_in_output_log_or_state_even_with_vv(
    site: Site, trouble: str
) -> None:
    made = site.office.credentials(passphrase=PASSPHRASE)
    site.set(
        "azure", private_key=str(made.key_file), certificate=str(made.certificate_file)
    )
    site.set(
        "alerts", username="u", password="mail-password-hidden", smtp_security="tls"
    )
    publish(site)
    for operation, fault, times in TROUBLES[trouble]:
        site.office.fail(operation, fault, times=times)
    env = {"O365_POLLER_AZURE_PRIVATE_KEY_PASSPHRASE": PASSPHRASE}
    result = site.run("-vv", env=env)
    left = everything(site, result.out, result.err)
    assert len(left) > 500
    assert re.search(rb"eyJ[\w-]{20,}", left) is None
    assert b"client_assertion" not in left
    assert b"Bearer " not in left
    for word in (PASSPHRASE, "mail-password-hidden"):
        assert word.encode() not in left

    clear = made.key.private_bytes(
        s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()
    ).decode()
    for line in [*clear.splitlines()[1:-1], *pem_lines(made.key_file)]:
        assert line.encode() not in left


@pytest.mark.parametrize("right", [True, False])
def test_a_client_secret_shows_nowhere(site: Site, right: bool) -> None:
    site.office.options.client_secret = SECRET if right else "another"
    site.set("azure", private_key=None, certificate=None)
    env = {"O365_POLLER_AZURE_CLIENT_SECRET": SECRET}
    result = site.run("-vv", env=env)
    assert result.code == (0 if right else 4)
    assert SECRET.encode() not in everything(site, result.out, result.err)


def test_a_traceback_of_a_defect_shows_no_secret(site: Site) -> None:
    """msal's own log is quiet, and so is urllib3's, whatever goes wrong."""
    publish(site)
    site.office.fail("blob", faults.hang(), times=1)
    site.set("poll", timeout_seconds="0.5")
    result = site.run("-vv")
    assert "urllib3" not in result.err
    assert "msal.oauth2cli" not in result.err


def test_the_token_goes_to_the_api_alone(site: Site) -> None:
    publish(site, 2)
    site.office.page_size = 1
    assert_quiet(site.run())
    for request in site.office.journal.requests:
        assert ("authorization" in request.headers) == (request.host == "api")
    assert not [
        r for r in site.office.journal.requests if "token" in str(r.query).lower()
    ]


def test_a_foreign_word_from_the_service_cannot_write_control_characters(
    site: Site,
) -> None:
    evil = (
        '{"error":{"code":"AF20020","message":"\\u001b[31mred\\r\\nfake line\\u0007"}}'
    )
    site.office.fail("content", faults.status(400, evil))
    result = site.run()
    assert result.code == 4
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err + site.log
    assert "\x07" not in result.err + site.log


# -- bad input: every complaint at once, before any request


def refused(site: Site, text: str | bytes) -> list[str]:
    """What is said of a configuration file with this content."""
    data = text.encode() if isinstance(text, str) else text
    process = site.start()  # writes config.ini; its own run is of no interest
    process.kill()
    process.communicate()
    site.office.journal.clear()
    site.config.write_bytes(data)

    done = subprocess.run(
        site.command(), env=cron_environment(), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert site.office.journal.requests == []
    assert site.logstash.connections == []
    lines = done.stderr.splitlines()
    assert all(line.startswith("o365_poller: error: ") for line in lines)
    return [line.removeprefix(f"o365_poller: error: {site.config}: ") for line in lines]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (bytes(range(256)), "expected a text file (INI, UTF-8)"),
        (b"\x7fELF\0\0\0", "expected a text file (INI, UTF-8)"),
        ("tenant_id = x\n", "line 1: expected a [section] before any key"),
        ("[azure]\nwhat\n", "line 2: expected 'key = value'"),
        ("[azure]\ntenant_id = a\ntenant_id = b\n", "[azure] tenant_id: expected once, given again in line 3"),
        ("[azure]\n[azure]\n", "[azure]: expected once, given again in line 2"),
        ("", "[azure] tenant_id: expected a GUID such as 11111111-2222-3333-4444-555555555555; it is missing"),
    ],
    ids=["bytes", "nul", "no section", "no key", "key twice", "section twice", "empty"],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_code_2(
    site: Site, text: str | bytes, first: str
) -> None:
    assert refused(site, text)[0] == first


def test_every_complaint_is_one_line_with_file_section_key_and_what_was_expected(
    site: Site,
) -> None:
    stranger = site.office.credentials(register=False)
    site.set(
        "azure",
        tenant_id="x",
        certificate=str(stranger.certificate_file),
        cloud="moon",
        api_root="http://api.example.net",
        ca_bundle=str(site.folder),
        clientid="y",
    )
    site.set(
        "poll", window_minutes="1440", workers="0", timeout_seconds="x", state_file="."
    )
    site.set("logstash", hosts="here", tls="perhaps", key_file="/nowhere.key")
    site.set("logging", level="LOUD", file="/nowhere/x.log")
    site.set("alerts", smtp_host="mail.example.net", to="nobody")
    site.set("loging", level="INFO")
    result = site.run()
    assert result.code == 2
    assert site.office.journal.requests == []
    lines = result.err.splitlines()
    found = [
        re.fullmatch(
            rf"o365_poller: error: {re.escape(str(site.config))}: \[(\w+)\]( \w+)?: "
            r"(?:expected .*|unknown (?:key|section).*)",
            line,
        )
        for line in lines
    ]
    assert all(found), lines
    named = sorted(f"{m[1]}{m[2] or ''}" for m in found if m)
    assert named == [
        "alerts from",
        "alerts to",
        "azure api_root",
        "azure ca_bundle",
        "azure certificate",
        "azure clientid",
        "azure cloud",
        "azure tenant_id",
        "logging file",
        "logging level",
        "loging",
        "logstash cert_file",
        "logstash hosts",
        "logstash key_file",
        "logstash tls",
        "poll state_file",
        "poll timeout_seconds",
        "poll window_minutes",
        "poll workers",
    ]
    assert "did you mean client_id?" in result.err
    assert "did you mean logging?" in result.err


def test_a_file_that_does_not_exist_is_code_2(site: Site) -> None:
    result = site.run("-c", str(site.folder / "nowhere.ini"))
    assert result.code == 2
    assert "nowhere.ini: cannot be read: No such file or directory" in result.err


@pytest.mark.parametrize("file", ["~nosuchuser/config.ini", "~nosuchuser"])
def test_the_home_of_a_user_who_does_not_exist_is_code_2(site: Site, file: str) -> None:
    result = site.run("-c", file)
    assert (result.code, result.out, result.err) == (
        2,
        "",
        f"o365_poller: error: {file}: cannot be read: No such file or directory\n",
    )
    site.set("poll", state_file="~nosuchuser/s.db")
    site.set("logging", file="~nosuchuser/x.log")
    result = site.run()
    assert result.code == 2
    found = re.findall(rf"{re.escape(str(site.config))}: (\[\w+\] \w+): ", result.err)
    assert sorted(found) == ["[logging] file", "[poll] state_file"]
    assert site.office.journal.requests == []


def test_a_named_bundle_of_the_environment_that_is_missing_is_code_2(
    site: Site,
) -> None:
    site.set("azure", ca_bundle=None)
    result = site.run(env={"REQUESTS_CA_BUNDLE": "/nowhere/ca.pem"})
    assert result.code == 2
    assert (
        "environment: REQUESTS_CA_BUNDLE: expected a PEM file or folder" in result.err
    )
    assert "Traceback" not in result.err


def test_everything_can_come_from_the_environment_with_no_file(site: Site) -> None:
    """How a container runs it."""
    blobs = publish(site)
    env = {
        f"O365_POLLER_{section}_{key}".upper(): value
        for section, keys in site.settings.items()
        for key, value in keys.items()
    }
    env["O365_POLLER_POLL_STATE_FILE"] = str(site.state_file)

    script = site.folder / "poller.py"
    shutil.copy(SCRIPT, script)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=cron_environment(env),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(site.logstash.lines) == sum(len(blob.ids) for blob in blobs)
