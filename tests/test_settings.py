"""The configuration: what is read, and every complaint about it, word by word."""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from emulator.credentials import Credentials, make_credentials, pooled_key
from making import CLIENT, TENANT, WORLD

from o365_poller import (
    CONTENT_TYPES,
    KEYS,
    ConfigError,
    Host,
    Redactor,
    Secret,
    Settings,
    plain,
    read_host,
    read_settings,
    read_thumbprint,
)

Sections = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Place:
    """A folder with everything that a configuration can name."""

    folder: Path
    own: Credentials
    other: Credentials
    locked: Credentials
    elliptic: Credentials

    @property
    def config(self) -> Path:
        return self.folder / "config.ini"

    def sections(self) -> Sections:
        """A configuration that is right."""
        return {
            "azure": {
                "tenant_id": TENANT,
                "client_id": CLIENT,
                "private_key": self.own.key_file.name,
                "certificate": self.own.certificate_file.name,
            },
            "logstash": {"hosts": "logstash.example.net:5514"},
        }

    def read(
        self,
        changes: Mapping[str, Mapping[str, str | None]] | None = None,
        env: Mapping[str, str] | None = None,
        *,
        sink_needed: bool = True,
    ) -> Settings:
        """The settings of the right configuration with changes; None takes a key out."""
        sections = self.sections()
        for section, keys in (changes or {}).items():
            for key, value in keys.items():
                sections.setdefault(section, {}).pop(key, None)
                if value is not None:
                    sections[section][key] = value
        text = "".join(
            f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items())
            for name, keys in sections.items()
        )
        return self.read_text(text, env, sink_needed=sink_needed)

    def read_text(
        self,
        text: str | bytes,
        env: Mapping[str, str] | None = None,
        *,
        sink_needed: bool = True,
    ) -> Settings:
        """The settings of a file with this text."""
        data = text.encode() if isinstance(text, str) else text
        self.config.write_bytes(data)
        return read_settings(
            self.config, env or {}, named=True, sink_needed=sink_needed
        )

    def complaints(self, *given: object, **named: object) -> list[str]:
        """What is complained of, without the folder."""
        with pytest.raises(ConfigError) as caught:
            self.read(*given, **named)  # type: ignore[arg-type]
        return [c.replace(f"{self.folder}/", "") for c in caught.value.complaints]

    def complaints_of_text(self, text: str | bytes) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.read_text(text)
        return [c.replace(f"{self.folder}/", "") for c in caught.value.complaints]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("settings")
    place = Place(
        folder,
        make_credentials(folder, "own", pooled_key("rsa2048", 1)),
        make_credentials(folder, "other", pooled_key("rsa2048", 2)),
        make_credentials(
            folder, "locked", pooled_key("rsa2048", 3), passphrase="open sesame"
        ),
        make_credentials(folder, "elliptic", pooled_key("ec256", 0)),
    )
    (folder / "folder").mkdir()
    (folder / "garbage.pem").write_text("this is no PEM\n")
    (folder / "binary").write_bytes(bytes(range(256)))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    client = authority.issue_cert("poller.example.net")
    client.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
    client.private_key_pem.write_to_path(str(folder / "client.key"))
    (folder / "client.locked").write_bytes(
        pooled_key("rsa2048", 1).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )
    return place


# -- what is read


def test_the_defaults_are_the_contracts(place: Place) -> None:
    found = place.read()
    assert found.azure.tenant_id == found.azure.publisher_id == TENANT
    assert found.azure.client_id == CLIENT
    assert found.azure.login_root == WORLD.login_root
    assert found.azure.api_root == WORLD.api_root
    assert found.azure.graph_root == WORLD.graph_root
    assert found.azure.ca_bundle is None
    assert found.azure.credential.thumbprint == ""
    assert found.azure.credential.certificate == place.own.certificate_pem
    assert found.azure.credential.expires == place.own.not_after
    assert found.poll.content_types == ("Audit.AzureActiveDirectory",)
    assert found.poll.window == timedelta(minutes=10)
    assert found.poll.overlap == timedelta(minutes=5)
    assert found.poll.state_file == place.folder / "config.db"
    assert found.poll.workers == 8
    assert found.poll.timeout_seconds == 60
    assert found.logstash.hosts == (Host("logstash.example.net", 5514),)
    assert not found.logstash.tls
    assert found.logstash.ca_file is None
    assert found.logstash.timeout_seconds == 120
    assert not found.logstash.run_events
    assert found.logging.file is None
    assert found.logging.level == "INFO"
    assert not found.graph.application_names
    assert found.alerts.smtp_host == ""
    assert found.alerts.smtp_security == "none"
    assert found.alerts.smtp_port == 25
    assert found.alerts.repeat == timedelta(hours=24)
    assert found.alerts.certificate_days == 30


def test_every_key_can_come_from_the_environment_alone(
    place: Place, tmp_path: Path
) -> None:
    given = {
        "azure": {
            "tenant_id": TENANT.upper(),
            "client_id": CLIENT,
            "private_key": str(place.locked.key_file),
            "private_key_passphrase": "open sesame",
            "certificate": str(place.locked.certificate_file),
            "thumbprint": place.locked.thumbprint_sha1_hex,
            "cloud": "GCC-High",
            "login_root": "https://login.example.net:8443/path/",
            "api_root": "https://api.example.net",
            "graph_root": "https://graph.example.net",
            "ca_bundle": str(place.folder / "ca.pem"),
            "publisher_id": CLIENT,
        },
        "poll": {
            "content_types": "dlp.all, AUDIT.sharepoint,dlp.all",
            "window_minutes": "30",
            "overlap_minutes": "0",
            "state_file": "elsewhere.db",
            "workers": "2",
            "timeout_seconds": "0.5",
        },
        "logstash": {
            "hosts": "[::1]:5000, 192.0.2.1:65535",
            "tls": "Yes",
            "ca_file": str(place.folder / "ca.pem"),
            "cert_file": str(place.folder / "client.pem"),
            "key_file": str(place.folder / "client.key"),
            "timeout_seconds": "7.5",
            "run_events": "on",
        },
        "logging": {"file": "poller.log", "level": "debug"},
        "graph": {"application_names": "1", "cache_file": "names.json"},
        "alerts": {
            "smtp_host": "mail.example.net",
            "smtp_port": "2525",
            "smtp_security": "starttls",
            "username": "poller",
            "password": "hunter2",
            "from": "poller@example.net",
            "to": "soc@example.net, ops@example.net",
            "repeat_hours": "12",
            "certificate_days": "60",
        },
    }
    assert {s: set(keys) for s, keys in given.items()} == {
        s: set(keys) - {"client_secret"} for s, keys in KEYS.items()
    }
    env = {
        f"O365_POLLER_{section}_{key}".upper(): value
        for section, keys in given.items()
        for key, value in keys.items()
    }
    found = read_settings(tmp_path / "config.ini", env, named=False)
    assert found.azure.tenant_id == TENANT
    assert found.azure.publisher_id == CLIENT
    assert found.azure.credential.thumbprint == place.locked.thumbprint_sha1_hex
    assert found.azure.credential.private_key.key_size == 2048
    assert found.azure.login_root == "https://login.example.net:8443/path"
    assert found.azure.api_root == "https://api.example.net"
    assert found.azure.graph_root == "https://graph.example.net"
    assert found.azure.ca_bundle == place.folder / "ca.pem"
    assert found.poll.content_types == ("DLP.All", "Audit.SharePoint")
    assert found.poll.window == timedelta(minutes=30)
    assert found.poll.overlap == timedelta(0)
    assert found.poll.state_file == tmp_path / "elsewhere.db"
    assert (found.poll.workers, found.poll.timeout_seconds) == (2, 0.5)
    assert found.logstash.hosts == (Host("::1", 5000), Host("192.0.2.1", 65535))
    assert [str(host) for host in found.logstash.hosts] == [
        "[::1]:5000",
        "192.0.2.1:65535",
    ]
    assert found.logstash.tls
    assert found.logstash.ca_file == place.folder / "ca.pem"
    assert found.logstash.cert_file == place.folder / "client.pem"
    assert found.logstash.key_file == place.folder / "client.key"
    assert found.logstash.timeout_seconds == 7.5
    assert found.logstash.run_events
    assert found.logging.file == tmp_path / "poller.log"
    assert found.logging.level == "DEBUG"
    assert found.graph.application_names
    assert found.graph.cache_file == tmp_path / "names.json"
    assert found.alerts.smtp_host == "mail.example.net"
    assert (found.alerts.smtp_port, found.alerts.smtp_security) == (2525, "starttls")
    assert found.alerts.username == "poller"
    assert found.alerts.password.reveal() == "hunter2"
    assert found.alerts.sender == "poller@example.net"
    assert found.alerts.to == ("soc@example.net", "ops@example.net")
    assert found.alerts.repeat == timedelta(hours=12)
    assert found.alerts.certificate_days == 60


@pytest.mark.parametrize("key", ["login_root", "api_root", "graph_root"])
def test_a_roots_scheme_and_host_are_in_lower_case_whatever_was_typed(
    place: Place, key: str
) -> None:
    """Msal lower-cases the host; an answer that names it would be called another's."""
    typed = "HTTPS://Gateway.EXAMPLE.net:8443/O365/Path"
    found = place.read({"azure": {key: typed}}).azure
    assert getattr(found, key) == "https://gateway.example.net:8443/O365/Path"


def test_hosts_that_are_only_commas_are_missed(place: Place) -> None:
    said = f"config.ini: [logstash] hosts: expected {HOSTS}, got ','"
    assert place.complaints({"logstash": {"hosts": ","}}) == [said]


def test_every_wrong_character_of_a_root_is_refused(place: Place) -> None:
    for odd in ("a b", "a\\b", "a#b", "a@b", "a?b", "\u00e9", 'a"b'):
        said = place.complaints({"azure": {"api_root": f"https://x.example/{odd}"}})
        assert len(said) == 1, odd
        assert f"[azure] api_root: expected {ROOT}" in said[0]


def test_the_environment_wins_over_the_file(place: Place) -> None:
    env = {"O365_POLLER_POLL_WORKERS": "3"}
    assert place.read({"poll": {"workers": "5"}}, env).poll.workers == 3


def test_an_empty_variable_is_not_set(place: Place) -> None:
    env = {"O365_POLLER_POLL_WORKERS": " ", "O365_POLLER_POLL_NOTHING": ""}
    assert place.read({"poll": {"workers": "5"}}, env).poll.workers == 5


@pytest.mark.parametrize(
    "name",
    [
        "O365_POLLER_CONFIG",
        "O365_POLLER_COLOUR_SCHEME",
        "O365_POLLER_IMAGE",
        "O365_POLLER",
        "POLL_WORKERS",
        "o365_poller_poll_workers",
    ],
)
def test_a_variable_outside_the_known_sections_is_not_ours(
    place: Place, name: str
) -> None:
    assert place.read(env={name: "whatever"}).poll.workers == 8


def test_a_value_is_taken_as_it_stands_without_interpolation(place: Place) -> None:
    found = place.read(
        {
            "alerts": {
                "username": "poller",
                "password": "100%(sure)s %% ;#",
                "smtp_security": "tls",
            }
        }
    )
    assert found.alerts.password.reveal() == "100%(sure)s %% ;#"
    assert found.alerts.smtp_port == 465


def test_comments_and_a_byte_order_mark_and_crlf_are_read(place: Place) -> None:
    text = place.read  # the right file first, then the same in another dress
    text()
    undressed = place.config.read_text()
    dressed = "\ufeff# a comment\n; another\n" + undressed
    found = place.read_text(dressed.replace("\n", "\r\n").encode())
    assert found.azure.client_id == CLIENT


def test_a_list_may_go_over_lines(place: Place) -> None:
    value = "a.example.net:1,\n  b.example.net:2\n  c.example.net:3"
    found = place.read({"logstash": {"hosts": value}}).logstash
    assert [host.name for host in found.hosts] == [
        "a.example.net",
        "b.example.net",
        "c.example.net",
    ]


def test_paths_start_at_the_files_folder_and_a_tilde_is_home(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place.folder / "folder"))
    found = place.read({"poll": {"state_file": "~/s.db"}, "logging": {"file": "a.log"}})
    assert found.poll.state_file == place.folder / "folder" / "s.db"
    assert found.logging.file == place.folder / "a.log"


def test_the_default_file_need_not_exist_but_what_is_required_must_come(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "config.ini", {}, named=False)
    file = tmp_path / "config.ini"
    guid = "a GUID such as 11111111-2222-3333-4444-555555555555; it is missing"
    assert caught.value.complaints == (
        f"{file}: [azure] tenant_id: expected {guid}",
        f"{file}: [azure] client_id: expected {guid}",
        f"{file}: [azure] private_key: expected the path of a PEM file; it is missing",
        (
            f"{file}: [azure] certificate: expected the path of a PEM file, or a "
            "thumbprint; it is missing"
        ),
        (
            f"{file}: [logstash] hosts: expected host:port, such as "
            "logstash.example.net:5514 or [::1]:5514; it is missing"
        ),
    )


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "no.ini", {}, named=True)
    assert caught.value.complaints[0] == (
        f"{tmp_path / 'no.ini'}: cannot be read: No such file or directory"
    )


def test_stdout_needs_no_host(place: Place) -> None:
    found = place.read({"logstash": {"hosts": None}}, sink_needed=False)
    assert found.logstash.hosts == ()


# -- credentials


def thumbprints(hexadecimal: str) -> dict[str, str]:
    """One thumbprint in the forms in which people have it."""
    raw = bytes.fromhex(hexadecimal)
    pairs = [hexadecimal[i : i + 2] for i in range(0, 40, 2)]
    return {
        "hex": hexadecimal,
        "upper": hexadecimal.upper(),
        "colons": ":".join(pairs).upper(),
        "blanks": " ".join(pairs),
        "windows": "\u200e" + " ".join(pairs),
        "base64": base64.b64encode(raw).decode(),
        "base64url": base64.urlsafe_b64encode(raw).decode(),
        "base64 bare": base64.b64encode(raw).decode().rstrip("="),
    }


FORMS = sorted(thumbprints("ab" * 20))


@pytest.mark.parametrize("form", FORMS)
def test_a_thumbprint_is_taken_in_every_form(place: Place, form: str) -> None:
    own = place.own.thumbprint_sha1_hex
    found = place.read({"azure": {"thumbprint": thumbprints(own)[form]}})
    assert found.azure.credential.thumbprint == own


def test_a_thumbprint_without_a_certificate_will_do(place: Place) -> None:
    own = place.own.thumbprint_sha1_hex
    found = place.read({"azure": {"thumbprint": own, "certificate": None}})
    assert found.azure.credential.certificate == ""
    assert found.azure.credential.thumbprint == own
    assert found.azure.credential.expires is None


@pytest.mark.parametrize(
    "text", ["", "zz", "ab" * 32, "ab" * 19, "=" * 28, "a b c", "+/" * 20]
)
def test_what_is_no_thumbprint_is_none(text: str) -> None:
    assert read_thumbprint(text) == ""


@pytest.mark.parametrize("encoding", ["PKCS8", "PKCS1"])
@pytest.mark.parametrize("passphrase", [None, "p\u00e4ss phrase"])
def test_a_key_is_read_in_every_form(
    place: Place, tmp_path: Path, encoding: str, passphrase: str | None
) -> None:
    made = make_credentials(
        tmp_path,
        "made",
        pooled_key("rsa2048", 1),
        encoding=encoding,
        passphrase=passphrase,
    )
    env = {"O365_POLLER_AZURE_PRIVATE_KEY_PASSPHRASE": passphrase or ""}
    found = place.read(
        {
            "azure": {
                "private_key": str(made.key_file),
                "certificate": str(made.certificate_file),
            }
        },
        env,
    )
    assert found.azure.credential.private_key.key_size == 2048


def test_one_file_may_hold_key_and_certificate(place: Place, tmp_path: Path) -> None:
    made = make_credentials(tmp_path, "both", pooled_key("rsa2048", 1), combined=True)
    both = {"private_key": str(made.key_file), "certificate": str(made.key_file)}
    assert place.read({"azure": both}).azure.credential.expires == made.not_after


def test_a_client_secret_is_taken_from_the_environment(place: Place) -> None:
    found = place.read(
        {"azure": {"private_key": None, "certificate": None}},
        {"O365_POLLER_AZURE_CLIENT_SECRET": "s3cret"},
    )
    assert found.azure.credential.client_secret.reveal() == "s3cret"


# -- complaints: one change, the whole line

GUIDS = "a GUID such as 11111111-2222-3333-4444-555555555555"
HOSTS = "host:port, such as logstash.example.net:5514 or [::1]:5514"
ROOT = "an https:// address without a tenant in it"
TYPES = ", ".join(CONTENT_TYPES)
SECTIONS = ", ".join(KEYS)
PAIR = "a PEM certificate and its key, which is not encrypted"
MAIL = "a mail address such as soc@example.net"
LOGIN = (
    "username and password together, with smtp_security starttls or tls, so that the "
    "password travels encrypted"
)
SECRET = (
    "it in the environment alone, never in the file, and with no private_key, "
    "certificate, thumbprint beside it"
)

# section, key, value, what the complaint says after "config.ini: [section] key: "
ONE_LINERS: list[tuple[str, str, str, str]] = [
    ("azure", "tenant_id", "contoso.example", f"expected {GUIDS}, got 'contoso.example'"),
    ("azure", "client_id", "12345", f"expected {GUIDS}, got '12345'"),
    ("azure", "publisher_id", "me", f"expected {GUIDS}, got 'me'"),
    ("azure", "tenat_id", "x", "unknown key; did you mean tenant_id?"),
    ("azure", "zzzzzz", "x", "unknown key"),
    ("azure", "cloud", "gcc-hihg", "expected one of worldwide, gcc, gcc-high, dod, got 'gcc-hihg'"),
    ("azure", "cloud", "", "expected a value, got none; leave the line out for the default"),
    ("azure", "private_key", "missing.pem", "expected a readable file (missing.pem: No such file or directory), got 'missing.pem'"),
    ("azure", "private_key", "folder", "expected a readable file (folder: Is a directory), got 'folder'"),
    ("azure", "certificate", "missing.pem", "expected a readable file (missing.pem: No such file or directory), got 'missing.pem'"),
    ("azure", "certificate", "garbage.pem", "expected a certificate in PEM form (ValueError), got 'garbage.pem'"),
    ("azure", "certificate", "binary", "expected a certificate in PEM form (ValueError), got 'binary'"),
    ("azure", "certificate", "other.crt.pem", "expected the certificate that belongs to the private key, got 'other.crt.pem'"),
    ("azure", "private_key", "other.key.pem", "expected the certificate that belongs to the private key, got 'own.crt.pem'"),
    ("azure", "private_key", "elliptic.key.pem", "expected an RSA key, as Entra ID takes, got 'elliptic.key.pem'"),
    ("azure", "private_key", "own.crt.pem", "expected a private key in PEM form (ValueError), got 'own.crt.pem'"),
    ("azure", "private_key", "garbage.pem", "expected a private key in PEM form (ValueError), got 'garbage.pem'"),
    ("azure", "private_key_passphrase", "xyzzy", "expected the passphrase of the encrypted key, and none for another"),
    ("azure", "thumbprint", "ab:cd", "expected a SHA-1 thumbprint: 40 hex digits, or 28 characters of base64, got 'ab:cd'"),
    ("azure", "login_root", "http://login.example.net", f"expected {ROOT}, got 'http://login.example.net'"),
    ("azure", "login_root", "login.example.net", f"expected {ROOT}, got 'login.example.net'"),
    ("azure", "api_root", "https://", f"expected {ROOT}, got 'https://'"),
    ("azure", "api_root", f"https://api.example.net/{TENANT}", f"expected {ROOT}, got 'https://api.example.net/{TENANT}'"),
    ("azure", "api_root", "https://user:pw@api.example.net", f"expected {ROOT}, got 'https://user:pw@api.example.net'"),
    ("azure", "api_root", "https://api.example.net?x=1", f"expected {ROOT}, got 'https://api.example.net?x=1'"),
    ("azure", "api_root", "https://api.example.net:99999", f"expected {ROOT}, got 'https://api.example.net:99999'"),
    ("azure", "api_root", "https://api.example.net:0", f"expected {ROOT}, got 'https://api.example.net:0'"),
    ("azure", "api_root", "https://[::1", f"expected {ROOT}, got 'https://[::1'"),
    ("azure", "graph_root", "ftp://graph.example.net", f"expected {ROOT}, got 'ftp://graph.example.net'"),
    ("azure", "ca_bundle", "garbage.pem", "expected certificates in PEM form (SSLError), got 'garbage.pem'"),
    ("azure", "ca_bundle", "missing.pem", "expected a readable file (missing.pem: No such file or directory), got 'missing.pem'"),
    ("azure", "ca_bundle", "folder", "expected a readable file (folder: Is a directory), got 'folder'"),
    ("poll", "content_types", "Audit.Sharpoint", f"expected some of {TYPES}, got 'Audit.Sharpoint'"),
    ("poll", "content_types", ",", f"expected some of {TYPES}, got ','"),
    ("poll", "window_minutes", "0", "expected a whole number from 1 to 1439, got '0'"),
    ("poll", "window_minutes", "1440", "expected a whole number from 1 to 1439, got '1440'"),
    ("poll", "window_minutes", "ten", "expected a whole number from 1 to 1439, got 'ten'"),
    ("poll", "window_minutes", "1.5", "expected a whole number from 1 to 1439, got '1.5'"),
    ("poll", "overlap_minutes", "-1", "expected a whole number from 0 to 1439, got '-1'"),
    ("poll", "workers", "1_0", "expected a whole number from 1 to 64, got '1_0'"),
    ("poll", "workers", "\u0663", "expected a whole number from 1 to 64, got '\u0663'"),
    ("poll", "timeout_seconds", "nan", "expected a number from 0.1 to 3600, got 'nan'"),
    ("poll", "workers", "0", "expected a whole number from 1 to 64, got '0'"),
    ("poll", "workers", "65", "expected a whole number from 1 to 64, got '65'"),
    ("poll", "workers", "\u0663", "expected a whole number from 1 to 64, got '\u0663'"),
    ("poll", "timeout_seconds", "nan", "expected a number from 0.1 to 3600, got 'nan'"),
    ("poll", "timeout_seconds", "0", "expected a number from 0.1 to 3600, got '0'"),
    ("poll", "timeout_seconds", "inf", "expected a number from 0.1 to 3600, got 'inf'"),
    ("poll", "timeout_seconds", "60s", "expected a number from 0.1 to 3600, got '60s'"),
    ("poll", "state_file", "folder", "expected a file, in a folder that exists (folder), got 'folder'"),
    ("poll", "state_file", "none/s.db", "expected a file, in a folder that exists (none/s.db), got 'none/s.db'"),
    ("logstash", "host", "a:1", "unknown key; did you mean hosts?"),
    ("logstash", "hosts", "logstash", f"expected {HOSTS}, got 'logstash'"),
    ("logstash", "hosts", "logstash:0", f"expected {HOSTS}, got 'logstash:0'"),
    ("logstash", "hosts", "logstash:65536", f"expected {HOSTS}, got 'logstash:65536'"),
    ("logstash", "hosts", "a:1, b:two", f"expected {HOSTS}, got 'a:1, b:two'"),
    ("logstash", "hosts", "[:::::]:5000", f"expected {HOSTS}, got '[:::::]:5000'"),
    ("logstash", "hosts", "[1.2.3.4]:5000", f"expected {HOSTS}, got '[1.2.3.4]:5000'"),
    ("logstash", "hosts", "::1:5000", f"expected {HOSTS}, got '::1:5000'"),
    ("logstash", "hosts", "tcp://a:1", f"expected {HOSTS}, got 'tcp://a:1'"),
    ("logstash", "tls", "maybe", "expected yes or no, got 'maybe'"),
    ("logstash", "run_events", "2", "expected yes or no, got '2'"),
    ("logstash", "ca_file", "garbage.pem", "expected certificates in PEM form (SSLError), got 'garbage.pem'"),
    ("logstash", "cert_file", "missing.pem", "expected a readable file (missing.pem: No such file or directory), got 'missing.pem'"),
    ("logstash", "cert_file", "client.pem", f"expected {PAIR} (SSLError), got 'client.pem'"),
    ("logstash", "key_file", "client.key", "expected the key's certificate; it is missing"),
    ("logstash", "timeout_seconds", "0.01", "expected a number from 0.1 to 86400, got '0.01'"),
    ("logging", "level", "LOUD", "expected one of DEBUG, INFO, WARNING, ERROR, got 'LOUD'"),
    ("logging", "level", "warn", "expected one of DEBUG, INFO, WARNING, ERROR, got 'warn'"),
    ("logging", "file", "folder", "expected a file, in a folder that exists (folder), got 'folder'"),
    ("logging", "file", "none/a.log", "expected a file, in a folder that exists (none/a.log), got 'none/a.log'"),
    ("graph", "application_names", "perhaps", "expected yes or no, got 'perhaps'"),
    ("graph", "cache_file", "none/c.json", "expected a file, in a folder that exists (none/c.json), got 'none/c.json'"),
    ("alerts", "smtp_port", "70000", "expected a whole number from 1 to 65535, got '70000'"),
    ("alerts", "smtp_security", "start-tls", "expected one of none, starttls, tls, got 'start-tls'"),
    ("alerts", "smtp_security", "ssl", "expected one of none, starttls, tls, got 'ssl'"),
    ("alerts", "username", "poller", f"expected {LOGIN}; it is missing"),
    ("alerts", "from", "soc", f"expected {MAIL}, got 'soc'"),
    ("alerts", "from", "a@example.net, b@example.net", f"expected {MAIL}, got 'a@example.net, b@example.net'"),
    ("alerts", "to", "soc@", f"expected {MAIL}, got 'soc@'"),
    ("alerts", "repeat_hours", "0", "expected a number from 0.01 to 8760, got '0'"),
    ("alerts", "certificate_days", "-1", "expected a whole number from 0 to 3650, got '-1'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    ONE_LINERS,
    ids=[f"{s}.{k}={v[:24]!a}" for s, k, v, _ in ONE_LINERS],
)
def test_a_wrong_value_is_one_whole_line(
    place: Place, section: str, key: str, value: str, said: str
) -> None:
    complaints = place.complaints({section: {key: value}})
    named = {
        ("azure", "private_key", "other.key.pem"): "certificate",
        ("logstash", "key_file", "client.key"): "cert_file",
        ("alerts", "username", "poller"): "password",
    }.get((section, key, value), key)
    assert complaints == [f"config.ini: [{section}] {named}: {said}"]


CHANGES: list[tuple[str, Mapping[str, Mapping[str, str | None]], dict[str, str], list[str]]] = [
    (
        "wrong passphrase",
        {"azure": {"private_key": "locked.key.pem", "certificate": "locked.crt.pem"}},
        {"O365_POLLER_AZURE_PRIVATE_KEY_PASSPHRASE": "wrong one"},
        ["environment: O365_POLLER_AZURE_PRIVATE_KEY_PASSPHRASE: [azure] private_key_passphrase: expected the passphrase of the encrypted key, and none for another"],
    ),
    (
        "no passphrase",
        {"azure": {"private_key": "locked.key.pem", "certificate": "locked.crt.pem"}},
        {},
        ["config.ini: [azure] private_key_passphrase: expected the passphrase of the encrypted key, and none for another; it is missing"],
    ),
    (
        "neither certificate nor thumbprint",
        {"azure": {"certificate": None}},
        {},
        ["config.ini: [azure] certificate: expected the path of a PEM file, or a thumbprint; it is missing"],
    ),
    (
        "no key",
        {"azure": {"private_key": None}},
        {},
        ["config.ini: [azure] private_key: expected the path of a PEM file; it is missing"],
    ),
    (
        "secret in the file",
        {"azure": {"private_key": None, "certificate": None, "client_secret": "hush-hush"}},
        {},
        [f"config.ini: [azure] client_secret: expected {SECRET}"],
    ),
    (
        "secret beside certificate and key",
        {},
        {"O365_POLLER_AZURE_CLIENT_SECRET": "hush-hush"},
        [f"environment: O365_POLLER_AZURE_CLIENT_SECRET: [azure] client_secret: expected {SECRET}"],
    ),
    (
        "secret beside thumbprint",
        {"azure": {"private_key": None, "certificate": None, "thumbprint": "ab" * 20}},
        {"O365_POLLER_AZURE_CLIENT_SECRET": "hush-hush"},
        [f"environment: O365_POLLER_AZURE_CLIENT_SECRET: [azure] client_secret: expected {SECRET}"],
    ),
    (
        "unknown section",
        {"logstahs": {"hosts": "a:1"}},
        {},
        [f"config.ini: [logstahs]: unknown section; expected one of {SECTIONS}; did you mean logstash?"],
    ),
    (
        "unknown variable",
        {},
        {"O365_POLLER_LOGSTASH_HOST": "a:1"},
        ["environment: O365_POLLER_LOGSTASH_HOST: [logstash] host: unknown key; did you mean hosts?"],
    ),
    (
        "wrong value in a variable",
        {},
        {"O365_POLLER_POLL_WORKERS": "many"},
        ["environment: O365_POLLER_POLL_WORKERS: [poll] workers: expected a whole number from 1 to 64, got 'many'"],
    ),
    (
        "no hosts",
        {"logstash": {"hosts": None}},
        {},
        [f"config.ini: [logstash] hosts: expected {HOSTS}; it is missing"],
    ),
    (
        "client certificate with an encrypted key",
        {"logstash": {"cert_file": "client.pem", "key_file": "client.locked"}},
        {},
        [f"config.ini: [logstash] cert_file: expected {PAIR} (SSLError), got 'client.pem'"],
    ),
    (
        "client certificate of another key",
        {"logstash": {"cert_file": "client.pem", "key_file": "own.key.pem"}},
        {},
        [f"config.ini: [logstash] cert_file: expected {PAIR} (SSLError), got 'client.pem'"],
    ),
    (
        "mail without addresses",
        {"alerts": {"smtp_host": "mail.example.net"}},
        {},
        [
            f"config.ini: [alerts] from: expected {MAIL}; it is missing",
            f"config.ini: [alerts] to: expected {MAIL}; it is missing",
        ],
    ),
    (
        "mail host with port",
        {"alerts": {"smtp_host": "mail.example.net:25", "from": "a@example.net", "to": "b@example.net"}},
        {},
        ["config.ini: [alerts] smtp_host: expected a host name, without port, got 'mail.example.net:25'"],
    ),
    (
        "password in the clear",
        {"alerts": {"username": "poller", "password": "hunter2"}},
        {},
        [f"config.ini: [alerts] password: expected {LOGIN}"],
    ),
    (
        "password without user",
        {"alerts": {"password": "hunter2", "smtp_security": "tls"}},
        {},
        [f"config.ini: [alerts] password: expected {LOGIN}"],
    ),
    (
        "two lines where one belongs",
        {"azure": {"cloud": "gcc\n  dod"}},
        {},
        ["config.ini: [azure] cloud: expected one line, got 'gcc dod'"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "env", "said"),
    [case[1:] for case in CHANGES],
    ids=[case[0] for case in CHANGES],
)
def test_what_does_not_go_together_is_said_in_whole_lines(
    place: Place,
    changes: Mapping[str, Mapping[str, str | None]],
    env: dict[str, str],
    said: list[str],
) -> None:
    assert place.complaints(changes, env) == said


def test_a_thumbprint_that_is_not_the_certificates_is_said(place: Place) -> None:
    typed, own = place.other.thumbprint_sha1_hex, place.own.thumbprint_sha1_hex
    assert place.complaints({"azure": {"thumbprint": typed}}) == [
        (
            "config.ini: [azure] thumbprint: expected the certificate's own, "
            f"{own}, got '{typed}'"
        )
    ]


def test_every_complaint_comes_at_once(place: Place) -> None:
    text = (
        "[azure]\ntenant_id = x\nclient_id = y\nclod = z\n[poll]\nworkers = 0\n"
        "workers = 1\n[nowhere]\na = 1\n[logging]\nlevel =\n"
    )
    assert place.complaints_of_text(text) == [
        "config.ini: [poll] workers: expected once, given again in line 7",
        "config.ini: [azure] clod: unknown key; did you mean cloud?",
        f"config.ini: [nowhere]: unknown section; expected one of {SECTIONS}",
        (
            "config.ini: [logging] level: expected a value, got none; leave the line out "
            "for the default"
        ),
        f"config.ini: [azure] tenant_id: expected {GUIDS}, got 'x'",
        f"config.ini: [azure] client_id: expected {GUIDS}, got 'y'",
        "config.ini: [azure] private_key: expected the path of a PEM file; it is missing",
        (
            "config.ini: [azure] certificate: expected the path of a PEM file, or a "
            "thumbprint; it is missing"
        ),
        "config.ini: [poll] workers: expected a whole number from 1 to 64, got '0'",
        f"config.ini: [logstash] hosts: expected {HOSTS}; it is missing",
    ]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (b"\xff\xfe\x00", "config.ini: expected a text file (INI, UTF-8)"),
        (b"[azure]\0", "config.ini: expected a text file (INI, UTF-8)"),
        (b"tenant_id = x\n", "config.ini: line 1: expected a [section] before any key"),
        (b"\n# c\n\nhello\n", "config.ini: line 4: expected a [section] before any key"),
        (b"[azure]\nwhat is this\n", "config.ini: line 2: expected 'key = value'"),
        (b"[azure]\n[azure]\n", "config.ini: [azure]: expected once, given again in line 2"),
        (b"[poll]\nworkers=1\nWORKERS=2\n", "config.ini: [poll] workers: expected once, given again in line 3"),
        (b"[DEFAULT]\nworkers=1\n", f"config.ini: [DEFAULT]: unknown section; expected one of {SECTIONS}"),
    ],
    ids=["utf-16", "nul", "no section", "no section later", "no key", "section twice", "key twice", "default"],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_said(
    place: Place, text: bytes, first: str
) -> None:
    assert place.complaints_of_text(text)[0] == first


def test_a_folder_in_place_of_the_file_is_said(place: Place) -> None:
    folder = place.folder / "folder"
    with pytest.raises(ConfigError) as caught:
        read_settings(folder, {}, named=True)
    assert caught.value.complaints[0] == f"{folder}: cannot be read: Is a directory"


def test_a_path_through_a_file_is_said(place: Place) -> None:
    path = f"{place.own.key_file.name}/key.pem"
    assert place.complaints({"azure": {"private_key": path}}) == [
        (
            "config.ini: [azure] private_key: expected a readable file "
            f"({path}: Not a directory), got '{path}'"
        )
    ]


def test_no_complaint_shows_a_secret(place: Place) -> None:
    secrets = {
        "O365_POLLER_AZURE_PRIVATE_KEY_PASSPHRASE": "passphrase-word",
        "O365_POLLER_AZURE_CLIENT_SECRET": "secret-word",
        "O365_POLLER_ALERTS_PASSWORD": "password\nword",
    }
    said = "\n".join(place.complaints({"azure": {"thumbprint": "x"}}, secrets))
    assert "word\n" not in said
    for word in ("passphrase-word", "secret-word", "password word"):
        assert word not in said


# -- hosts and secrets


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("a:1", Host("a", 1)),
        ("a.b-c.example.net:65535", Host("a.b-c.example.net", 65535)),
        ("192.0.2.7:5514", Host("192.0.2.7", 5514)),
        ("[::1]:5514", Host("::1", 5514)),
        ("[fe80::1%eth0]:5514", Host("fe80::1%eth0", 5514)),
        ("example.net.:1", Host("example.net.", 1)),
        ("a", None),
        ("a:", None),
        (":1", None),
        ("a:0", None),
        ("a:65536", None),
        ("a:-1", None),
        ("a:1:2", None),
        ("[::1]", None),
        ("[nothing]:1", None),
        ("[12345::1]:1", None),
        ("a b:1", None),
        ("-a:1", None),
    ],
)
def test_a_host_is_read(text: str, host: Host | None) -> None:
    assert read_host(text) == host


def test_a_secret_shows_itself_to_nobody_who_does_not_ask() -> None:
    secret = Secret("correct horse")
    assert (str(secret), repr(secret), f"{secret}") == ("***", "***", "***")
    assert secret
    assert not Secret("")
    assert secret.reveal() == "correct horse"


def test_the_passphrase_and_the_encoded_client_secret_are_known_to_the_redactor(
    place: Place,
) -> None:
    """A form carries the secret encoded, and who refuses the form may echo it."""
    locked = {"private_key": "locked.key.pem", "certificate": "locked.crt.pem"}
    env = {"O365_POLLER_AZURE_PRIVATE_KEY_PASSPHRASE": "open sesame"}
    place.read({"azure": locked}, env)
    assert plain("it is open sesame!") == "it is ***!"
    none = {"private_key": None, "certificate": None}
    env = {"O365_POLLER_AZURE_CLIENT_SECRET": "a/b c~d+e"}
    place.read({"azure": none}, env)
    for form in ("a/b c~d+e", "a%2Fb+c~d%2Be", "a%2Fb%20c~d%2Be"):
        assert plain(f"secret={form}&x") == "secret=***&x"


def test_a_secret_that_is_no_utf_8_is_blacked_out_too() -> None:
    Secret("ill\udcffformed")  # as the environment gives a byte that is none
    assert plain("it is ill\udcffformed") == "it is ***"


def test_a_secret_that_begins_another_leaves_nothing_of_it() -> None:
    Secret("lavender")
    Secret("lavender-blue")
    assert plain("lavender-blue, lavender") == "***, ***"


@pytest.mark.parametrize("before", [0, 280, 290, 299, 300, 1190, 1199])
@pytest.mark.parametrize("blank", ["", "\r\n"])
def test_a_secret_that_would_be_cut_is_blacked_out_before(
    before: int, blank: str
) -> None:
    Secret(f"winter{blank} tale{blank}-2611")
    line = plain("." * before + f"winter{blank} tale{blank}-2611" + "." * 2000)
    assert not {"winter", "wint", "2611"} & set(re.findall(r"\w+", line))
    assert len(line) <= 300


def test_the_redactor_blacks_out_secrets_in_message_arguments_and_traceback() -> None:
    Secret("battery staple")
    try:
        raise ValueError("battery staple inside")
    except ValueError:
        record = logging.getLogger("x").makeRecord(
            "x", logging.ERROR, "f", 1, "a %s b", ("battery staple",), None
        )
        record.exc_info = sys.exc_info()
    assert Redactor().filter(record)
    text = logging.Formatter().format(record)
    assert "battery staple" not in text
    assert text.startswith("a *** b\n")
    assert "ValueError: *** inside" in text


def test_a_file_named_like_the_environment_is_a_file_all_the_same(
    tmp_path: Path,
) -> None:
    (tmp_path / "environment.ini").write_text("[azure]\nclient_secret = hush-hush\n")
    with contextlib.chdir(tmp_path), pytest.raises(ConfigError) as caught:
        read_settings(Path("environment.ini"), {}, named=True)
    assert "never in the file" in str(caught.value)


def test_a_key_whose_private_numbers_are_damaged_is_no_pair(place: Place) -> None:
    """Half of a key file may be as it was: its public numbers still fit."""
    assert isinstance(place.own.key, rsa.RSAPrivateKey)
    own = place.own.key.private_numbers()
    d = own.d + 2
    damaged = rsa.RSAPrivateNumbers(
        own.p,
        own.q,
        d,
        rsa.rsa_crt_dmp1(d, own.p),
        rsa.rsa_crt_dmq1(d, own.q),
        own.iqmp,
        own.public_numbers,
    ).private_key(unsafe_skip_rsa_key_validation=True)
    pem = damaged.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    (place.folder / "damaged.key.pem").write_bytes(pem)
    found = place.complaints({"azure": {"private_key": "damaged.key.pem"}})
    assert len(found) == 1
    assert "the certificate that belongs to the private key" in found[0]
