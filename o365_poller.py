#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "msal>=1.35,<2",
#   "requests>=2.32.3,<3",
#   "python-dateutil>=2.8.2,<5",
# ]
# ///
"""Bring every Office 365 and Entra ID audit event into the Elastic stack.

    cron -> token -> subscriptions -> content list -> content blobs
         -> one JSON line an event -> TCP or TLS -> Logstash -> confirmed -> state

One run is one poll of an overlapping window; cron or Rundeck starts it every five
minutes. Events are delivered at least once: a batch of lines counts only when the
peer has taken it to its end (it closes after we shut our side down), and only then
does the state move. Run it again, kill it, unplug it: what was not confirmed is sent
again, and the event's Id as document_id collapses the copies.

What can be lost is what Microsoft no longer has: content older than seven days, or a
blob that the API says is gone. It is named once, with exit code 6.

Files: the configuration (INI), the state beside it (SQLite: watermarks, pending
blobs, the ledger of what was delivered), a lock beside that, and a log if wanted.
Exit codes stand in `--help` and in README.

The sections below follow an event from the outside in, then out to Logstash. Each
uses only what stands above it; a test holds that.
"""

from __future__ import annotations

import argparse
import base64
import codecs
import configparser
import contextlib
import enum
import errno
import fcntl
import functools
import gc
import hashlib
import itertools
import json
import logging
import os
import queue
import random
import re
import signal
import socket
import sqlite3
import ssl
import sys
import termios
import threading
import time
import warnings
import zlib
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    NamedTuple,
    Protocol,
    TextIO,
    TypeVar,
)
from urllib.parse import quote, quote_plus, urlencode, urlsplit

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse
    from urllib3.connectionpool import HTTPConnectionPool

if __name__ == "__main__":
    # Nothing that start-up makes is garbage: looking for it costs an idle poll a tenth.
    # run_with() switches it on again.
    gc.disable()

__version__ = "1.0.0"

log = logging.getLogger("o365_poller")

# == Facts ===================================================================
# What Microsoft fixes. Documented: learn.microsoft.com, "Office 365 Management
# Activity API reference" (REF) and its troubleshooting page (TRB).

CONTENT_TYPES = (
    "Audit.AzureActiveDirectory",
    "Audit.Exchange",
    "Audit.SharePoint",
    "Audit.General",
    "DLP.All",
)

# Documented (get-started page): DLP.All wants the second permission as well.
PERMISSIONS = {"DLP.All": "ActivityFeed.ReadDlp"}
PERMISSION = "ActivityFeed.Read"


class Cloud(NamedTuple):
    """Where a national cloud answers; roots without tenant or trailing slash."""

    login_root: str
    api_root: str
    graph_root: str


# Documented: REF for the API roots, Entra's and Graph's pages on national clouds.
CLOUDS = {
    "worldwide": Cloud(
        "https://login.microsoftonline.com",
        "https://manage.office.com",
        "https://graph.microsoft.com",
    ),
    "gcc": Cloud(
        "https://login.microsoftonline.com",
        "https://manage-gcc.office.com",
        "https://graph.microsoft.com",
    ),
    "gcc-high": Cloud(
        "https://login.microsoftonline.us",
        "https://manage.office365.us",
        "https://graph.microsoft.us",
    ),
    "dod": Cloud(
        "https://login.microsoftonline.us",
        "https://manage.protection.apps.mil",
        "https://dod-graph.microsoft.us",
    ),
}

# Documented: content can be listed for seven days after it became available. The
# margin keeps the first request of a catch-up inside them while it travels.
RETENTION = timedelta(days=7)
RETENTION_MARGIN = timedelta(minutes=5)

# Documented: at most 24 hours a request. Observed (May 2026): exactly 24 hours is
# refused now and then; so we stay well below.
SLICE = timedelta(hours=23)

# Observed: blobs that answer 404, AF20050 or AF20052 do come back; AF20051 never.
MISSING_IS_LOST_AFTER = timedelta(hours=24)

# Our own bounds (contract): the ledger outlives the retention by a day.
LEDGER_KEPT = timedelta(days=8)
CLOCKS_AGREE = timedelta(seconds=60)
CLOCK_IS_ABSURD = timedelta(days=366)
TRIES = 5
PAUSE_FIRST, PAUSE_LONGEST, PAUSES_IN_ALL = 1.0, 15.0, 45.0
ANSWER_TIMEOUTS = 10
OUTAGE_FAILURES = 20
OPEN_LEAST, OPEN_MOST = timedelta(seconds=30), 16  # slices that break again
PAGES_MOST = 10_000
EMPTY_PAGES_MOST = 10
MEGABYTE = 1 << 20
LISTING_BYTES = 64 * MEGABYTE
BLOB_BYTES = 256 * MEGABYTE
BUDGET_BYTES = 12 * MEGABYTE
BATCH_BYTES = 4 * MEGABYTE
CHUNK = MEGABYTE
SEND_CHUNK = 256 * 1024

# == Outcomes ================================================================


class Exit(enum.IntEnum):
    """One number for each thing that a person would have to do, and what it says."""

    OK = 0, "all that was available is delivered, or nothing was new"
    UNEXPECTED = 1, "a defect of the program; see the log"
    USAGE = 2, "command line, configuration or state file is wrong"
    INCOMPLETE = 3, "Microsoft did not give all of it; the next run retries"
    REFUSED = 4, "no token, a permission missing, or auditing off"
    SINK = 5, "no Logstash took the events; they are sent again"
    GAP = 6, "something can no longer be had; it is named, once"
    BUSY = 75, "another poll holds the lock"
    INTERRUPTED = 130, "interrupted; stopped cleanly"
    TERMINATED = 143, "terminated; stopped cleanly"

    meaning: str

    def __new__(cls, number: int, meaning: str = "") -> Exit:
        """A member of this number, with its meaning."""
        member = int.__new__(cls, number)
        member._value_, member.meaning = number, meaning
        return member


# Several at once: the first of these is the run's.
EXIT_ORDER = tuple(map(Exit, (1, 2, 4, 6, 5, 3)))


def worst(exits: Iterable[Exit]) -> Exit:
    """The code to end with when several things happened in one run."""
    found = set(exits)
    return next((code for code in EXIT_ORDER if code in found), Exit.OK)


class PollerError(Exception):
    """A fault of the outside world: what happened, what it means, what to do."""

    exit = Exit.INCOMPLETE

    def __init__(self, what: str, data: str, fix: str) -> None:
        super().__init__(f"{what}; {data}; {fix}")
        self.what, self.data, self.fix = what, data, fix


class ConfigError(PollerError):
    """The configuration is wrong; carries every complaint, a line each."""

    exit = Exit.USAGE

    def __init__(self, complaints: Iterable[str]) -> None:
        self.complaints = tuple(complaints)
        what = "\n".join(self.complaints)
        super().__init__(what, "nothing was asked or sent", "correct it")


class StateError(PollerError):
    """The state file cannot be opened, read or written."""

    exit = Exit.USAGE


class SourceError(PollerError):
    """Microsoft's side did not answer, or not with what was asked for."""


class OutageError(SourceError):
    """So many blobs failed in a row that the service, not a blob, is ill."""


class RefusedError(PollerError):
    """Entra ID or the API said no, and will until a person changes something."""

    exit = Exit.REFUSED


class UnreachedError(SourceError):
    """The sign-in could not be had: nothing can be asked in this run."""


class TokenError(RefusedError):
    """No access token, or the API refuses the one we have: ends the run."""


class SinkError(PollerError):
    """No Logstash host took the batch."""

    exit = Exit.SINK


class BusyError(PollerError):
    """Another poll holds the lock."""

    exit = Exit.BUSY


class BrokenAnswerError(Exception):
    """An answer that is not what its status says: worth another try."""


class TooLargeError(Exception):
    """A blob over BLOB_BYTES unpacked: not worth another try in this run."""


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived; BaseException, so that nothing swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit = Exit(128 + signum)


# -- what is said, without secrets --------------------------------------------


class Secret:
    """A value that no log, repr or traceback shows; the log's filter knows them all."""

    known: ClassVar[set[str]] = set()

    def __init__(self, value: str) -> None:
        self._value = value
        if len(value) >= 4:  # shorter ones would black out half of every line
            # A form carries it encoded, and whoever refuses the form may echo that.
            encoded = quote_plus(value, errors="replace")
            self.known.update((value, encoded, encoded.replace("+", "%20")))

    def reveal(self) -> str:
        """The value itself; every use can be found by this word."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "***"


def blacked_out(text: str) -> str:
    """The text with no known secret in it."""
    # The longest first: one that begins another must not leave the other's end.
    for secret in sorted(Secret.known, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


class Redactor(logging.Filter):
    """The last line of defence: no known secret passes a log handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, with the secrets in it blacked out."""
        if record.exc_info:
            traceback = logging.Formatter().formatException(record.exc_info)
            record.exc_text = blacked_out(traceback)
        record.msg, record.args = blacked_out(record.getMessage()), ()
        return True


def plain(text: str, most: int = 300) -> str:
    """Text from elsewhere made fit for one line of a log: no controls, not long.

    Secrets are blacked out before it is cut: half of one is known to nobody after.
    """
    begin = blacked_out(text)[: 4 * most]
    line = " ".join("".join(c if c.isprintable() else " " for c in begin).split())
    return line if len(line) <= most else line[: most - 3] + "..."


# == Settings ================================================================


class Credential(NamedTuple):
    """What proves the application's identity to Entra ID: a key or a secret."""

    private_key: (
        Any  # cryptography's key object, which no repr shows; None for a secret
    )
    certificate: str  # PEM, or "" with a thumbprint alone
    thumbprint: str  # SHA-1, lower-case hex, or "": then PS256 and x5t#S256
    client_secret: Secret
    expires: datetime | None = None


class Azure(NamedTuple):
    """[azure]: who asks, of whom, and where they answer."""

    tenant_id: str
    client_id: str
    credential: Credential
    login_root: str
    api_root: str
    graph_root: str
    ca_bundle: Path | None
    publisher_id: str


class Poll(NamedTuple):
    """[poll]: what is asked for, and how."""

    content_types: tuple[str, ...]
    window: timedelta
    overlap: timedelta
    state_file: Path
    workers: int
    timeout_seconds: float


class Host(NamedTuple):
    """One Logstash host."""

    name: str
    port: int

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{name}:{self.port}"


class Logstash(NamedTuple):
    """[logstash]: where the lines go."""

    hosts: tuple[Host, ...]
    tls: bool
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None
    timeout_seconds: float
    run_events: bool


class Logging(NamedTuple):
    """[logging]: the log file."""

    file: Path | None
    level: str


class Graph(NamedTuple):
    """[graph]: names of applications."""

    application_names: bool
    cache_file: Path


class Alerts(NamedTuple):
    """[alerts]: who gets mail, and when."""

    smtp_host: str
    smtp_port: int
    smtp_security: str
    username: str
    password: Secret
    sender: str
    to: tuple[str, ...]
    repeat: timedelta
    certificate_days: int


class Settings(NamedTuple):
    """The whole configuration, checked."""

    file: Path
    azure: Azure
    poll: Poll
    logstash: Logstash
    logging: Logging
    graph: Graph
    alerts: Alerts


# Every key that there is; config.example.ini and README are held to it by a test.
KEYS = {
    section: tuple(keys.split())
    for section, keys in {
        "azure": "tenant_id client_id private_key certificate thumbprint "
        "private_key_passphrase client_secret cloud login_root api_root graph_root "
        "ca_bundle publisher_id",
        "poll": "content_types window_minutes overlap_minutes state_file workers "
        "timeout_seconds",
        "logstash": "hosts tls ca_file cert_file key_file timeout_seconds run_events",
        "logging": "file level",
        "graph": "application_names cache_file",
        "alerts": "smtp_host smtp_port smtp_security username password from to "
        "repeat_hours certificate_days",
    }.items()
}
SECRET_KEYS = ("private_key_passphrase", "client_secret", "password")
SMTP_PORTS = {"none": 25, "starttls": 587, "tls": 465}
GUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
HOST_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?"
HOST = re.compile(rf"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|({HOST_NAME})):([0-9]{{1,5}})")
# https, host and port; then a path, which is not to hold a tenant.
ROOT = re.compile(
    rf"(https://{HOST_NAME}(?::([0-9]{{1,5}}))?)((?:/[\w.~!$&'()*+,;=:%-]*)*)",
    re.ASCII | re.IGNORECASE,
)
MAIL = re.compile(r"[^@\s<>]+@[^@\s<>]+")
Number = TypeVar("Number", int, float)


def nearest(word: str, known: Iterable[str]) -> str:
    """A remark on the known name that was probably meant, or nothing."""
    from difflib import get_close_matches

    choices = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), choices, n=1)
    return f"; did you mean {choices[found[0]]}?" if found else ""


def spelled(text: str, known: Iterable[str]) -> str:
    """A known word in its own spelling, from any case; "" if it is none of them."""
    return {word.lower(): word for word in known}.get(text.lower(), "")


def expanded(text: str) -> Path:
    """A path with ~ expanded, if it can be."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # a ~user that this machine does not know
        return Path(text)


def read_ini(file: Path, complaints: list[str]) -> dict[str, dict[str, str]]:
    """The file's sections and keys.

    Raises ConfigError if it cannot be read: nothing can be said of its keys then, that
    they are missing least of all.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ConfigError([f"{file}: expected a text file (INI, UTF-8)"])
    lines, strict = text.splitlines(), True
    while True:
        parser = configparser.RawConfigParser(
            default_section="\0", empty_lines_in_values=False, strict=strict
        )
        try:
            parser.read_string("\n".join(lines))
            return {name: dict(parser[name]) for name in parser.sections()}
        except configparser.MissingSectionHeaderError as missing:
            complaints.append(
                f"{file}: line {missing.lineno}: expected a [section] before any key"
            )
            raise ConfigError(complaints) from None
        except configparser.ParsingError as broken:
            complaints += [
                f"{file}: line {number}: expected 'key = value'"
                for number, _ in broken.errors
            ]
            raise ConfigError(complaints) from None
        except (
            configparser.DuplicateSectionError,
            configparser.DuplicateOptionError,
        ) as twice:
            option = getattr(twice, "option", "")
            place = f"{file}: [{twice.section}] {option}".rstrip()
            number = twice.lineno or 1
            complaints.append(f"{place}: expected once, given again in line {number}")
            if option:
                lines[number - 1] = ""
            else:
                strict = False  # the section's keys are still to be looked at


class Section:
    """Takes values out of one section, and notes complaints about them."""

    def __init__(self, name: str, file: Path, complaints: list[str]) -> None:
        self.name, self.file, self.complaints = name, file, complaints
        self.values: dict[str, str] = {}
        self.places: dict[str, str] = {}

    def take(self, key: str, value: str, place: str) -> None:
        """Note a value that the file or the environment gives for a key."""
        if key not in KEYS[self.name]:
            hint = nearest(key, KEYS[self.name])
            self.complaints.append(f"{place}: unknown key{hint}")
        elif not value:
            self.complaints.append(
                f"{place}: expected a value, got none; "
                "leave the line out for the default"
            )
        else:
            self.values[key], self.places[key] = value, place

    def complain(self, key: str, expected: str) -> None:
        """Note that a key's value is not what was expected; secrets stay unshown."""
        place = self.places.get(key, f"{self.file}: [{self.name}] {key}")
        got = "" if key in SECRET_KEYS else f", got {plain(self.values.get(key, ''))!r}"
        if key not in self.values:
            got = "; it is missing"
        self.complaints.append(f"{place}: expected {expected}{got}")

    def text(self, key: str, default: str = "") -> str:
        """The value as it stands, or the default."""
        value = self.values.get(key, default)
        if "\n" in value:
            self.complain(key, "one line")
            return default
        return value

    def items(self, key: str, default: str = "") -> list[str]:
        """The parts of a list, by comma or line."""
        parts = re.split(r"[,\n]", self.values.get(key, default))
        return [part.strip() for part in parts if part.strip()]

    def number(self, key: str, default: Number, least: float, most: float) -> Number:
        """A number of the default's kind within bounds, both included."""
        kind, text = type(default), self.text(key, str(default))
        with contextlib.suppress(ValueError):
            value = kind(text)
            # Python takes 1_000 and other digits than ours for numbers too.
            if re.fullmatch(r"[0-9.]+", text) and least <= value <= most:
                return value
        whole = "whole " if kind is int else ""
        self.complain(key, f"a {whole}number from {least:g} to {most:g}")
        return default

    def boolean(self, key: str) -> bool:
        """Yes or no; no if not given."""
        found = configparser.RawConfigParser.BOOLEAN_STATES.get(
            self.text(key, "no").lower()
        )
        if found is None:
            self.complain(key, "yes or no")
        return bool(found)

    def choice(self, key: str, default: str, known: Iterable[str]) -> str:
        """One of the known words, in any case."""
        found = spelled(self.text(key, default), known)
        if not found:
            self.complain(key, f"one of {', '.join(known)}")
        return found or default

    def guid(self, key: str) -> str:
        """A GUID in lower case."""
        text = self.text(key).lower()
        if not GUID.fullmatch(text):
            self.complain(key, "a GUID such as 11111111-2222-3333-4444-555555555555")
        return text

    def root(self, key: str, default: str) -> str:
        """An https address without a tenant, query or trailing slash.

        Scheme and host in lower case, as msal has them whatever it was given.
        """
        text = self.text(key, default).rstrip("/")
        found = ROOT.fullmatch(text)
        if not found or not 0 < int(found[2] or 443) < 65536 or GUID.search(found[3]):
            self.complain(key, "an https:// address without a tenant in it")
            return default
        return found[1].lower() + found[3]

    def path(self, key: str) -> Path | None:
        """A path, relative to the configuration file's folder; None if not given."""
        text = self.text(key)
        return self.file.absolute().parent / expanded(text) if text else None

    def loaded(self, key: str, expected: str, load: Callable[[bytes], Any]) -> Any:
        """What is made of the file that a key names; None, with a complaint if not."""
        path = self.path(key)
        if path is None:
            return None
        try:
            data = path.read_bytes()
        except OSError as error:
            self.complain(key, f"a readable file ({path}: {error.strerror})")
            return None
        try:
            return load(data)
        except Exception as error:  # noqa: BLE001 -- whatever the libraries raise
            self.complain(key, f"{expected} ({type(error).__name__})")
            return None

    def trusted(self, key: str) -> Path | None:
        """The path of a PEM file with certificates to trust; None if not given."""
        path = self.path(key)
        self.loaded(
            key,
            "certificates in PEM form",
            lambda _: ssl.create_default_context(cafile=path),
        )
        return path

    def writable(self, key: str, path: Path) -> Path:
        """A path at which a file can be made; the folder must be there."""
        is_folder = os.path.isdir  # which says no where Path.is_dir() raises
        if is_folder(path) or not is_folder(path.parent):
            self.complain(key, f"a file, in a folder that exists ({path})")
        return path


# -- key and certificate ------------------------------------------------------


def read_thumbprint(text: str) -> str:
    """A SHA-1 thumbprint as lower-case hex, from hex or base64; "" if it is neither.

    The certificate dialogue of Windows puts an invisible mark before the first digit
    when it is copied, and blanks or colons between them.
    """
    digits = re.sub(r"[^0-9A-Za-z+/=_-]", "", text)
    if re.fullmatch(r"[0-9A-Fa-f]{40}", digits):
        return digits.lower()
    if re.fullmatch(r"[A-Za-z0-9+/_-]{27}=?", digits):
        return base64.urlsafe_b64decode(digits[:27] + "=").hex()
    return ""


def read_private_key(azure: Section) -> Any:
    """The RSA key of [azure] private_key, or None with a complaint."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = azure.loaded("private_key", "", bytes)
    # A Secret, so that the redactor knows it.
    passphrase = Secret(azure.text("private_key_passphrase")).reveal()
    if pem is None:
        return None
    try:
        # The library's check of the numbers takes 30 ms at each start; signs_for()
        # checks them too, by use.
        key = load_pem_private_key(
            pem, passphrase.encode() or None, unsafe_skip_rsa_key_validation=True
        )
    except Exception as error:  # noqa: BLE001 -- any parse error of the library
        # TypeError by cryptography's documentation: given or missing wrongly.
        if isinstance(error, TypeError) or (passphrase and b"ENCRYPTED" in pem):
            expected = "the passphrase of the encrypted key, and none for another"
            azure.complain("private_key_passphrase", expected)
        else:
            reason = type(error).__name__
            azure.complain("private_key", f"a private key in PEM form ({reason})")
        return None
    if not isinstance(key, RSAPrivateKey):
        azure.complain("private_key", "an RSA key, as Entra ID takes")
        return None
    return key


def read_credential(azure: Section) -> Credential:
    """The key with its certificate or thumbprint, or the secret; checked locally.

    A key that does not fit its certificate is refused by Entra ID alone
    (AADSTS700027), with nothing said of the reason: so it is compared here.
    """
    files = ("private_key", "certificate", "thumbprint")
    given = [key for key in files if key in azure.values]
    secret = Secret(azure.text("client_secret"))
    if secret:
        if given or not azure.places["client_secret"].startswith(
            "environment: O365_POLLER_"
        ):
            azure.complain(
                "client_secret",
                "it in the environment alone, never in the file, and with no "
                f"{', '.join(files)} beside it",
            )
        return Credential(None, "", "", secret)
    if "private_key" not in given:
        azure.complain("private_key", "the path of a PEM file")
    if not {"certificate", "thumbprint"} & set(given):
        azure.complain("certificate", "the path of a PEM file, or a thumbprint")
    return read_key_pair(azure)


def read_key_pair(azure: Section) -> Credential:
    """The key and its certificate or thumbprint, checked against each other."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    key = read_private_key(azure)
    typed = azure.text("thumbprint")
    thumbprint = read_thumbprint(typed)
    if typed and not thumbprint:
        azure.complain(
            "thumbprint",
            "a SHA-1 thumbprint: 40 hex digits, or 28 characters of base64",
        )
    certificate = azure.loaded(
        "certificate", "a certificate in PEM form", x509.load_pem_x509_certificate
    )
    if certificate is None:
        return Credential(key, "", thumbprint, Secret(""))
    actual = certificate.fingerprint(hashes.SHA1()).hex()  # noqa: S303 -- a name
    if thumbprint not in ("", actual):
        azure.complain("thumbprint", f"the certificate's own, {actual}")
    if key is not None and not signs_for(key, certificate.public_key()):
        azure.complain("certificate", "the certificate that belongs to the private key")
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    expires = certificate.not_valid_after_utc
    return Credential(key, pem, thumbprint, Secret(""), expires)


def signs_for(key: Any, public_key: Any) -> bool:
    """Whether a key's signature is good by a certificate's public key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    text, how = b"o365_poller", (PKCS1v15(), SHA256())
    try:
        public_key.verify(key.sign(text, *how), text, *how)
    except (InvalidSignature, ValueError, TypeError, AttributeError):
        return False
    return True


# -- the sections ---------------------------------------------------------------


def read_azure(azure: Section) -> Azure:
    """[azure], checked."""
    tenant_id = azure.guid("tenant_id")
    cloud = CLOUDS[azure.choice("cloud", "worldwide", CLOUDS)]
    own_publisher = "publisher_id" in azure.values
    return Azure(
        tenant_id=tenant_id,
        client_id=azure.guid("client_id"),
        credential=read_credential(azure),
        login_root=azure.root("login_root", cloud.login_root),
        api_root=azure.root("api_root", cloud.api_root),
        graph_root=azure.root("graph_root", cloud.graph_root),
        ca_bundle=azure.trusted("ca_bundle"),
        publisher_id=azure.guid("publisher_id") if own_publisher else tenant_id,
    )


def read_poll(poll: Section) -> Poll:
    """[poll], checked."""
    wanted = poll.items("content_types", CONTENT_TYPES[0])
    types = [spelled(text, CONTENT_TYPES) for text in wanted]
    if not types or "" in types:
        poll.complain("content_types", f"some of {', '.join(CONTENT_TYPES)}")
    state_file = poll.path("state_file") or poll.file.absolute().with_suffix(".db")
    day = 24 * 60 - 1
    return Poll(
        content_types=tuple(dict.fromkeys(types)),
        window=timedelta(minutes=poll.number("window_minutes", 10, 1, day)),
        overlap=timedelta(minutes=poll.number("overlap_minutes", 5, 0, day)),
        state_file=poll.writable("state_file", state_file),
        workers=poll.number("workers", 8, 1, 64),
        timeout_seconds=poll.number("timeout_seconds", 60.0, 0.1, 3600),
    )


def read_host(text: str) -> Host | None:
    """A host and port from `host:port` or `[::1]:port`; None if it is neither."""
    match = HOST.fullmatch(text)
    if not match or not 0 < int(match[3]) < 65536:
        return None
    if match[1]:
        try:
            socket.inet_pton(socket.AF_INET6, match[1].partition("%")[0])
        except OSError:
            return None
    return Host(match[1] or match[2], int(match[3]))


def read_logstash(logstash: Section, *, needed: bool) -> Logstash:
    """[logstash], checked; without --stdout a host is needed."""
    hosts = [read_host(text) for text in logstash.items("hosts")]
    if None in hosts or (needed and not hosts):
        expected = "host:port, such as logstash.example.net:5514 or [::1]:5514"
        logstash.complain("hosts", expected)
    settings = Logstash(
        hosts=tuple(filter(None, hosts)),
        tls=logstash.boolean("tls"),
        ca_file=logstash.trusted("ca_file"),
        cert_file=logstash.path("cert_file"),
        key_file=logstash.path("key_file"),
        timeout_seconds=logstash.number("timeout_seconds", 120.0, 0.1, 86400),
        run_events=logstash.boolean("run_events"),
    )
    key_is_there = logstash.loaded("key_file", "", bytes) is not None
    if settings.key_file and not settings.cert_file:
        logstash.complain("cert_file", "the key's certificate")
    elif key_is_there or not settings.key_file:
        logstash.loaded(
            "cert_file",
            "a PEM certificate and its key, which is not encrypted",
            # A context that loads no CAs: those are not what is looked at here.
            lambda _: load_client_certificate(
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), settings
            ),
        )
    return settings


def load_client_certificate(context: ssl.SSLContext, settings: Logstash) -> None:
    """Give a TLS context the client certificate of [logstash], if there is one."""
    if settings.cert_file:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(settings.cert_file, settings.key_file, lambda: b"")


def read_alerts(alerts: Section) -> Alerts:
    """[alerts], checked."""
    host = alerts.text("smtp_host")
    if host and not re.fullmatch(HOST_NAME, host):
        alerts.complain("smtp_host", "a host name, without port")
    security = alerts.choice("smtp_security", "none", SMTP_PORTS)
    username, password = alerts.text("username"), Secret(alerts.text("password"))
    given = [bool(username), bool(password)]
    if any(given) and (security == "none" or not all(given)):
        alerts.complain(
            "password",
            "username and password together, with smtp_security starttls or tls, so "
            "that the password travels encrypted",
        )
    # One sender, any number of receivers.
    sender, to = alerts.text("from"), alerts.items("to")
    for key, found in (("from", [sender] if sender else []), ("to", to)):
        if (host and not found) or not all(map(MAIL.fullmatch, found)):
            alerts.complain(key, "a mail address such as soc@example.net")
    return Alerts(
        smtp_host=host,
        smtp_port=alerts.number("smtp_port", SMTP_PORTS[security], 1, 65535),
        smtp_security=security,
        username=username,
        password=password,
        sender=sender,
        to=tuple(to),
        repeat=timedelta(hours=alerts.number("repeat_hours", 24.0, 0.01, 8760)),
        certificate_days=alerts.number("certificate_days", 30, 0, 3650),
    )


def read_sections(
    file: Path, environ: Mapping[str, str], complaints: list[str], *, named: bool
) -> Iterable[Section]:
    """What the file gives for each section of KEYS, and over it the environment."""
    given = read_ini(file, complaints) if named or file.exists() else {}
    sections = {name: Section(name, file, complaints) for name in KEYS}
    for name, values in given.items():
        if name not in KEYS:
            expected = f"expected one of {', '.join(KEYS)}{nearest(name, KEYS)}"
            complaints.append(f"{file}: [{name}]: unknown section; {expected}")
            continue
        for key, value in values.items():
            sections[name].take(key, value.strip(), f"{file}: [{name}] {key}")
    for variable in sorted(environ):
        prefix, _, rest = variable.partition("O365_POLLER_")
        name, _, key = rest.lower().partition("_")
        value = environ[variable].strip()
        if value and name in KEYS and not prefix:
            place = f"environment: {variable}: [{name}] {key}"
            sections[name].take(key, value, place)
    return sections.values()


def read_settings(
    file: Path, environ: Mapping[str, str], *, named: bool, sink_needed: bool = True
) -> Settings:
    """The configuration from the file and the environment.

    Raises ConfigError with every complaint at once. A named file must exist; the
    default one need not.
    """
    complaints: list[str] = []
    sections = read_sections(file, environ, complaints, named=named)
    azure, poll, logstash, logs, graph, alerts = sections
    log_file = logs.path("file")
    cache = graph.path("cache_file") or file.absolute().with_suffix(".names.json")
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    settings = Settings(
        file=file,
        azure=read_azure(azure),
        poll=read_poll(poll),
        logstash=read_logstash(logstash, needed=sink_needed),
        logging=Logging(
            log_file and logs.writable("file", log_file),
            logs.choice("level", "INFO", levels),
        ),
        graph=Graph(
            graph.boolean("application_names"), graph.writable("cache_file", cache)
        ),
        alerts=read_alerts(alerts),
    )
    if complaints:
        # A value that is read twice is complained of once.
        raise ConfigError(dict.fromkeys(complaints))
    return settings


# == Time ====================================================================
# All times are aware and UTC; all windows are half open: start in, end out, as the
# API's are (documented: REF).

AGE = re.compile(r"(\d{1,6})([smhdw])")
AGE_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Window(NamedTuple):
    """A span of availability (contentCreated), [start, end), in whole seconds."""

    start: datetime
    end: datetime

    def __str__(self) -> str:
        return f"[{api_time(self.start)}, {api_time(self.end)}) UTC"


def whole_second(moment: datetime) -> datetime:
    """The moment without its fraction of a second."""
    return moment.replace(microsecond=0)


def api_time(moment: datetime) -> str:
    """A time as requests carry it: the one form that REF documents in full."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def read_api_time(text: object) -> datetime | None:
    """A time of an answer, such as contentCreated; None if it is none. Naive is UTC.

    None as well for .NET's DateTime.MinValue and MaxValue, which mean "not set" and
    are too near the ends of the calendar to be counted with.
    """
    try:
        moment = as_utc(datetime.fromisoformat(str(text)))
    except (ValueError, OverflowError):
        return None
    return moment if 1970 <= moment.year < 9999 else None


def as_utc(moment: datetime) -> datetime:
    """The same moment in UTC; naive is taken to be UTC."""
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC)


@functools.lru_cache(8)  # a Date changes once a second
def read_header_time(text: str) -> datetime | None:
    """The moment of a Date or Retry-After header; None where it tells none."""
    try:
        return as_utc(parsedate_to_datetime(text))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def parse_time(text: str, now: datetime) -> datetime:
    """A time of the command line: ISO 8601, or an age such as 90m, 6h, 2d.

    Whole seconds, UTC. Raises ValueError if it is neither.
    """
    age = AGE.fullmatch(text)
    if age:
        return whole_second(now - timedelta(**{AGE_UNITS[age[2]]: int(age[1])}))
    if not re.match(r"\d{4}-?\d{2}-?\d{2}", text):
        # isoparse takes a bare year as its first of January, which nobody means.
        raise ValueError("expected ISO 8601 or an age such as 90m, 6h, 2d")
    from dateutil.parser import isoparse

    return whole_second(as_utc(isoparse(text)))


def earliest(now: datetime) -> datetime:
    """The oldest start that the API takes, less our margin."""
    return now - RETENTION + RETENTION_MARGIN


def poll_start(
    watermark: datetime | None, now: datetime, window: timedelta, overlap: timedelta
) -> datetime:
    """Where a poll's window begins; it ends now."""
    start = now - window
    if watermark is not None:
        start = min(start, watermark - overlap)
    return max(start, earliest(now))


def slices(window: Window) -> Iterator[Window]:
    """The window in parts that the API takes, oldest first, without gap or overlap."""
    start = window.start
    while start < window.end:
        end = min(start + SLICE, window.end)
        yield Window(start, end)
        start = end


def without(window: Window, polled: Iterable[Window]) -> list[Window]:
    """What of the window no polled span covers: the holes, oldest first."""
    holes, start = [], window.start
    for span in sorted([*polled, Window(window.end, window.end)]):
        end = min(span.start, window.end)
        if start < end:
            holes.append(Window(start, end))
        start = max(start, span.end)
    return holes


# == Content =================================================================
# What the API's answers mean. Decisions only: nothing here touches the network.


class Blob(NamedTuple):
    """One content blob, as a listing names it."""

    content_type: str
    id: str
    uri: str
    created: datetime
    expires: datetime | None


class Verdict(enum.Enum):
    """What an answer asks of us."""

    OK = "take it"
    RETRY = "try again after a pause"
    THROTTLED = "slow down, all requests, then try again"
    UNAUTHORIZED = "renew the token, once"
    FORBIDDEN = "a permission is missing"
    NO_SUBSCRIPTION = "start the subscription"
    SUBSCRIBED = "it was enabled already"
    COOLING_DOWN = "it was asked for already"
    GONE = "lost"
    MISSING = "lost, if it lasts"
    BAD_WINDOW = "the times are refused: whose clock is wrong?"
    BAD_PAGE = "list again from the first page"
    NO_AUDITING = "auditing is off in this tenant"
    UNTRUSTED = "whoever answers has no certificate that we trust"
    REFUSED = "no, and it will stay no"
    FAILED = "not this time"


class Answer(NamedTuple):
    """An answer, whole; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Judgement(NamedTuple):
    """The verdict on an answer, with what to tell a person."""

    verdict: Verdict
    reason: str
    retry_after: float | None = None


# Documented (REF, TRB) unless said; AF20024 and AF5000x are observed. The status that
# comes with a code is not documented and differs, so the code decides alone.
VERDICTS = {
    code: verdict
    for verdict, codes in {
        Verdict.FORBIDDEN: "AF10001",
        Verdict.REFUSED: "AF20001 AF20002 AF20010 AF20011 AF20012 AF20013 AF20020",
        Verdict.NO_SUBSCRIPTION: "AF20022 AF20023",
        Verdict.SUBSCRIBED: "AF20024",
        Verdict.BAD_WINDOW: "AF20030 AF20055",
        Verdict.BAD_PAGE: "AF20031",
        Verdict.MISSING: "AF20050 AF20052 HTTP-404",
        Verdict.GONE: "AF20051",
        Verdict.THROTTLED: "AF429 HTTP-429",
        # Observed: the cool-down of subscriptions/start, as 403 or 429.
        Verdict.COOLING_DOWN: "429",
        # Where no code that we know comes with it, the status decides.
        Verdict.UNAUTHORIZED: "HTTP-401",
        Verdict.RETRY: "AF50000 HTTP-408",
    }.items()
    for code in codes.split()
}
# JSON can escape half a character ("\\ud83d"), which fits into no URL and no state.
WHOLE_TEXT = re.compile("[^\ud800-\udfff]+")
AF_CODE = re.compile(r"\bAF\d{3,6}\b", re.ASCII)
# Observed: a tenant without auditing gets no AF code but a stack trace.
AUDITING_OFF = re.compile(rb"DataServiceException|StartSubscription \[")


def read_error(body: bytes) -> tuple[str, str]:
    """The code and message of an error body: JSON, half JSON, HTML or nothing.

    The body is cut first: an error never needs more than its beginning.
    """
    text = body[:65536].decode("utf-8-sig", "replace")
    found = AF_CODE.search(text[:1024])
    code = found[0] if found else ""
    try:
        told = json.loads(text)
        error = told.get("error", told)
        own = str(error.get("code", ""))
        message = str(error.get("message", error.get("Message", "")))
        return (own if own in VERDICTS else code or own), plain(message)
    except (ValueError, AttributeError, RecursionError):  # not JSON: what can be read
        return code, plain(re.sub(r"<[^>]*>", " ", blacked_out(text)[:4096]), 120)


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """The Retry-After header in seconds, from seconds or a date; None if absent."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch("[0-9]+", text):
        return float(text[:9])
    moment = read_header_time(text)
    return max(0.0, (moment - now).total_seconds()) if moment else None


def judge(answer: Answer, now: datetime) -> Judgement:
    """What an answer asks of us, and what is said of it."""
    status = answer.status
    if 200 <= status < 300:
        return Judgement(Verdict.OK, f"HTTP {status}")
    if 300 <= status < 400:
        reason = f"HTTP {status}, a redirect, which is never followed"
        return Judgement(Verdict.FAILED, reason)
    code, message = read_error(answer.body)
    said = " ".join(filter(None, (f"HTTP {status}", plain(code, 60), message)))
    verdict = judge_error(status, code, answer.body[:4096])
    return Judgement(verdict, said, retry_after(answer.headers, now))


def judge_error(status: int, code: str, body: bytes) -> Verdict:
    """The verdict on an error: the code decides where one is known, else the status.

    Never the message: Microsoft's wording changes.
    """
    if code in VERDICTS:
        return VERDICTS[code]
    if code.startswith("AF5"):
        return Verdict.RETRY
    if AUDITING_OFF.search(body):
        return Verdict.NO_AUDITING
    if status >= 500:
        return Verdict.RETRY
    if status == 403 and code:
        return Verdict.REFUSED
    return VERDICTS.get(f"HTTP-{status}", Verdict.FAILED)


def read_array(body: bytes, what: str) -> list[Any]:
    """The entries of an answer that is an array. Raises BrokenAnswerError."""
    try:
        entries = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise BrokenAnswerError(f"{what} is not a JSON array")
    return entries


def parse_listing(
    body: bytes, content_type: str, listed: datetime
) -> tuple[list[Blob], int]:
    """The blobs of a listing, as the API names them, and how many entries are none.

    A blob without a readable contentCreated counts as made when it was listed. Raises
    BrokenAnswerError if it is no array.
    """
    entries = read_array(body, "the listing")
    blobs: list[Blob] = []
    for entry in entries:
        content_id = entry.get("contentId") if isinstance(entry, dict) else None
        if isinstance(content_id, str) and WHOLE_TEXT.fullmatch(content_id):
            uri = str(entry.get("contentUri", ""))
            blobs.append(
                Blob(
                    content_type,
                    content_id,
                    uri if uri.isascii() else "",
                    read_api_time(entry.get("contentCreated")) or listed,
                    read_api_time(entry.get("contentExpiration")),
                )
            )
    return blobs, len(entries) - len(blobs)


def parse_subscriptions(body: bytes) -> set[str]:
    """The content types, in lower case, whose subscription is there and not disabled.

    Documented by example: an entry may lack its status.
    """
    what = "the list of subscriptions"
    try:
        return {
            str(entry["contentType"]).lower()
            for entry in read_array(body, what)
            if str(entry.get("status", "enabled")).lower() != "disabled"
        }
    except (TypeError, KeyError, AttributeError):
        raise BrokenAnswerError(f"{what} lacks a content type") from None


# Printable ASCII, save what parsers of URLs take differently: # and the backslash.
URL_TEXT = re.compile(r'[!"$-\[\]-~]+')
UPWARDS = re.compile(r"(\.|%2e){2}", re.IGNORECASE)


def without_port(url: str) -> str:
    """An https URL without the port that is meant anyway."""
    return re.sub(r"^(https://[^/]+):443(?=/)", r"\1", url, flags=re.IGNORECASE)


class Feed(NamedTuple):
    """The addresses of one tenant's activity feed; every URL with a token is made here.

    PublisherIdentifier is on every one: without it all such clients in the world
    share one throttling bucket (documented: REF, TRB).
    """

    api_root: str
    tenant_id: str
    publisher_id: str

    @property
    def base(self) -> str:
        """The feed's address, up to the operation."""
        return f"{self.api_root}/api/v1.0/{self.tenant_id}/activity/feed"

    def operation(self, name: str, **query: str) -> str:
        """The URL of an operation under subscriptions/."""
        pairs = {**query, "PublisherIdentifier": self.publisher_id}
        return f"{self.base}/subscriptions/{name}?{urlencode(pairs, safe=':')}"

    def listing(self, content_type: str, window: Window) -> str:
        """The URL of the first page of a window's blobs."""
        return self.operation(
            "content",
            contentType=content_type,
            startTime=api_time(window.start),
            endTime=api_time(window.end),
        )

    def blob(self, blob: Blob) -> str:
        """The URL of a blob: contentUri if it is ours, else made from contentId.

        Observed: contentUri naming http://localhost and another tenant.
        """
        given = self.next_page(blob.uri)
        if "/activity/feed/audit/" in given.lower():
            return given
        content_id = quote(blob.id, safe="$!*'(),:@")
        return self._published(f"{self.base}/audit/{content_id}")

    def next_page(self, uri: str) -> str:
        """The URL of the next page, used as given; "" if it is not of our feed.

        Observed: any letter case in the names, /api/v1/ for /api/v1.0/, and no
        PublisherIdentifier. The root is put there anew: whatever a parser may think of
        the given one, the token goes to the configured host.
        """
        ours, given = without_port(f"{self.api_root}/api/"), without_port(uri)
        rest = given[len(ours) :]
        path = rest.partition("?")[0]
        tenant = GUID.search(path)
        if (
            not given.lower().startswith(ours.lower())
            or not URL_TEXT.fullmatch(given)
            or UPWARDS.search(path)
            or not tenant
            or tenant[0].lower() != self.tenant_id
        ):
            return ""
        return self._published(f"{self.api_root}/api/{rest}")

    def _published(self, url: str) -> str:
        if "publisheridentifier=" in url.partition("?")[2].lower():
            return url
        mark = "&" if "?" in url else "?"
        return f"{url}{mark}PublisherIdentifier={self.publisher_id}"


def next_page_header(headers: Mapping[str, str]) -> str:
    """The NextPageUri header; TRB calls it NextPageUrl in one place."""
    return headers.get("nextpageuri") or headers.get("nextpageurl") or ""


# == Events ==================================================================
# An event's text goes out as it came in. The decoder says where each value ends.

Decorate = Callable[[Mapping[str, Any], str], str]

SPACES = re.compile(r"[ \t\n\r]*")
COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*(?=\{)")  # with another event behind it
# The closing quote may not be there yet: a bracket behind it is text all the same.
STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
# Numbers are not looked at; kept as text they cost less, and no number is too long
# (int() refuses more than 4,300 digits).
DECODER = json.JSONDecoder(parse_int=str, parse_float=str)


def end_by_brackets(text: str, start: int) -> int:
    """Where the object that begins at start ends, however deep it is; -1 if nowhere."""
    depth = 0
    for token in STRUCTURE.finditer(text, start):
        mark = token[0]
        if mark in ("{", "["):
            depth += 1
        elif mark in ("}", "]"):
            depth -= 1
            if depth == 0:
                return token.end()
    return -1


class EventSlicer:
    """Cuts a JSON array of objects, fed in chunks, into the objects' own texts.

    Memory is that of one chunk and one event, whatever the blob's size.
    """

    def __init__(self, decorate: Decorate | None = None) -> None:
        self._decorate = decorate
        self._text = ""
        self._enough = 0  # do not look at an unfinished event again before that
        self._place = "start"  # start, first, element, comma, end

    def feed(self, chunk: str, *, last: bool = False) -> list[str]:
        """The texts, one line each, of the events that this chunk completes.

        Raises BrokenAnswerError where the text is no JSON array of objects.
        """
        text = self._text + chunk if self._text else chunk
        if len(text) < self._enough and not last:
            self._text = text
            return []
        found, position = self._scan(text, last=last)
        self._text = text[position:]
        self._enough = 2 * len(self._text)
        if last and self._place != "end":
            raise BrokenAnswerError("the blob's JSON array is cut short")
        if "\n" in text or "\r" in text:
            # Outside strings they are blanks, and inside none may stand unescaped.
            found = [t.replace("\r", " ").replace("\n", " ") for t in found]
        return found

    def _scan(self, text: str, *, last: bool) -> tuple[list[str], int]:
        found: list[str] = []
        position, size = 0, len(text)
        while True:
            # It matches the empty string too; mypy cannot know that.
            position = SPACES.match(text, position).end()  # type: ignore[union-attr]
            if position >= size:
                return found, position
            mark = text[position]
            if mark == "{" and self._place in ("first", "element"):
                end = self._events(text, position, found, last=last)
                if end < 0:
                    return found, position
                position, self._place = end, "comma"
                continue
            step = STEPS.get((self._place, mark))
            if step is None:
                raise BrokenAnswerError(
                    f"the blob is not a JSON array of objects ({self._place}: "
                    f"{plain(text[position : position + 20])!r})"
                )
            self._place = step
            position += 1

    def _events(self, text: str, start: int, found: list[str], *, last: bool) -> int:
        """The end of the events in a row from start, their texts added to found.

        -1 if the first of them is cut.
        """
        end = -1
        while True:
            try:
                event, end = DECODER.raw_decode(text, start)
            except ValueError as error:
                if last:
                    raise BrokenAnswerError(
                        f"the blob's JSON is broken: {error}"
                    ) from None
                return end
            except RecursionError:  # nested deeper than the decoder goes
                deep = end_by_brackets(text, start)
                if deep < 0:
                    return end
                event, end = {}, deep
            piece = text[start:end]
            found.append(self._decorate(event, piece) if self._decorate else piece)
            comma = COMMA.match(text, end)
            if not comma:
                return end
            start = comma.end()


STEPS = {
    ("start", "["): "first",
    ("first", "]"): "end",
    ("comma", ","): "element",
    ("comma", "]"): "end",
}


def unpacked(pieces: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """A body's bytes, unpacked, in chunks of CHUNK at most.

    Raises BrokenAnswerError for an encoding we did not ask for and for a gzip stream
    that is cut: observed with a Content-Length that fits, so nothing else notices.
    """
    if encoding in ("", "identity"):
        yield from pieces
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BrokenAnswerError(f"unasked-for Content-Encoding {plain(encoding, 40)}")
    unzip = zlib.decompressobj(47)  # gzip or zlib, told by the header
    try:
        for piece in pieces:
            data = piece
            while data:
                yield unzip.decompress(data, CHUNK)
                data = unzip.unconsumed_tail
                if unzip.eof and unzip.unused_data.strip(b"\0"):
                    data, unzip = unzip.unused_data, zlib.decompressobj(47)
        yield unzip.flush()
    except zlib.error:
        raise BrokenAnswerError("the gzip stream is broken") from None
    if not unzip.eof:
        raise BrokenAnswerError("the gzip stream is cut short")


# == State ===================================================================
# An SQLite database: what is confirmed, what is pending, and the ledger. Every change
# is one transaction; SQLite's journal brings it back whole after a kill.

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE watermark (content_type TEXT PRIMARY KEY, time INTEGER NOT NULL);
CREATE TABLE slice (             -- begun or given up, and not polled whole yet
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    content_type TEXT NOT NULL,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    given_up INTEGER NOT NULL);
CREATE TABLE pending (           -- listed, and could not be fetched yet
    content_type TEXT NOT NULL,
    content_id TEXT NOT NULL,
    uri TEXT NOT NULL,
    created INTEGER NOT NULL,    -- ms
    expires INTEGER,             -- ms
    since INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (content_type, content_id)) WITHOUT ROWID;
CREATE TABLE polled (            -- ledger: spans listed whole and delivered
    content_type TEXT NOT NULL,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    PRIMARY KEY (content_type, start)) WITHOUT ROWID;
CREATE TABLE delivered (         -- ledger: blobs
    content_type TEXT NOT NULL,
    created INTEGER NOT NULL,    -- ms
    content_id BLOB NOT NULL,    -- its hash: ids are long and these rows are many
    events INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    time INTEGER NOT NULL,
    slice INTEGER NOT NULL,      -- 0: of none that is still open
    PRIMARY KEY (content_type, created, content_id)) WITHOUT ROWID;
CREATE TABLE lost (              -- a span (content_id empty) or a blob
    content_type TEXT NOT NULL,
    content_id TEXT NOT NULL,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    reason TEXT NOT NULL,
    time INTEGER NOT NULL,
    PRIMARY KEY (content_type, start, end, content_id)) WITHOUT ROWID;
CREATE TABLE said (key TEXT PRIMARY KEY, time INTEGER NOT NULL, text TEXT NOT NULL);
"""
SCHEMA_VERSION = 1
ASKED_UNTIL = "asked until"  # in meta, by content type
BUSY_SECONDS = 60


def seconds(moment: datetime) -> int:
    """A moment as whole seconds since 1970."""
    return int(moment.timestamp())


def milliseconds(moment: datetime) -> int:
    """A moment as whole milliseconds since 1970."""
    return round(moment.timestamp() * 1000)


def moment(stamp: float) -> datetime:
    """The moment of a count of seconds since 1970."""
    return datetime.fromtimestamp(stamp, UTC)


def fingerprint(content_id: str) -> bytes:
    """The ledger's name for a blob."""
    text = content_id.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


class Slice(NamedTuple):
    """A window of one content type on its way to being polled.

    id is 0 until a batch of it is confirmed; reopened marks one that an earlier run
    gave up and that is asked again by itself.
    """

    content_type: str
    window: Window
    id: int = 0
    reopened: bool = False


class Delivered(NamedTuple):
    """A blob whose events the sink has confirmed."""

    blob: Blob
    events: int
    bytes: int


class Pending(NamedTuple):
    """A blob that was listed and could not be fetched yet."""

    blob: Blob
    since: datetime
    tries: int
    reason: str


class Lost(NamedTuple):
    """What can no longer be had: a span of availability, or a blob."""

    content_type: str
    window: Window
    reason: str
    content_id: str = ""

    def __str__(self) -> str:
        if self.content_id:
            return f"{self.content_type}: blob {plain(self.content_id)}: {self.reason}"
        return f"{self.content_type}: {self.window}: {self.reason}"


class Changes:
    """What one transaction writes about one content type."""

    def __init__(
        self,
        delivered: Iterable[Delivered] = (),
        pending: Iterable[Pending] = (),
        lost: Iterable[Lost] = (),
    ) -> None:
        self.delivered, self.pending = list(delivered), list(pending)
        self.lost = list(lost)


class Purpose(enum.Enum):
    """Why a span is asked for."""

    POLL = "what is new; moves the watermark"
    BACKFILL = "all of it, delivered before or not"
    RECONCILE = "what the ledger lacks"


def blob_window(blob: Blob) -> Window:
    """The second in which a blob became available."""
    start = whole_second(blob.created)
    return Window(start, start + timedelta(seconds=1))


class UnreadableStateError(Exception):
    """SQLite says that the file is no database, or malformed."""


# What can be asked of a blob.
SENT = (
    "delivered WHERE content_type = :type AND created = :created AND content_id = :hash"
)
QUESTIONS = {
    "sent": SENT,
    "open": f"{SENT} AND slice IN (SELECT id FROM slice)",  # by a slice that is open
    "pending": "pending WHERE content_type = :type AND content_id = :id",
    "lost": "lost WHERE content_type = :type AND start = :start AND end = :start + 1 "
    "AND content_id = :id",
}


@contextlib.contextmanager
def state_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours: unreadable, or cannot be used."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise UnreadableStateError(str(error)) from None
        raise StateError(
            f"state file {path}: {error}",
            "what is not recorded as delivered is sent again by the next run",
            "see which program holds it open for so long (fuser), and end that"
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            else "see that the disk has room and that this user may write the file and "
            "its folder",
        ) from None


@contextlib.contextmanager
def file_errors(path: Path, kind: str = "state") -> Iterator[None]:
    """Turn the file system's errors into ours."""
    try:
        yield
    except OSError as error:
        raise StateError(
            f"{kind} file {path}: {error.strerror}",
            "nothing was asked or sent",
            "see that this user may write the file and its folder",
        ) from None


def inode(path: Path) -> int | None:
    """The number of a state file; None if there is none. Raises StateError."""
    with file_errors(path):
        try:
            return path.stat().st_ino
        except FileNotFoundError:
            return None


class State:
    """The state database of one tenant. Times go in and out as aware UTC."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        # The listing thread asks what is known while the main thread commits.
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        path: Path,
        azure: Azure,
        content_types: Sequence[str],
        now: datetime,
        *,
        replaces: bool = False,
    ) -> State:
        """Open or make the state, and prove by a write that it can be written.

        A state that replaces an unreadable one begins with the last 7 days. Raises
        StateError, and UnreadableStateError for a file that is no database.
        """
        with file_errors(path):
            fresh = inode(path) is None
            if fresh:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            path.chmod(0o600)
            # A state cut down to nothing was more than a first run.
            replaces = replaces or (not fresh and path.stat().st_size == 0)
        with state_errors(path):
            connection = sqlite3.connect(
                path, BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            state = cls(path, connection)
            try:
                state._prepare(azure, now, content_types if replaces else ())
            except BaseException:
                connection.close()
                raise
        return state

    @classmethod
    def look(cls, path: Path, azure: Azure) -> State:
        """Open a state to read it and no more; it must exist.

        Raises StateError, also where it is another's, and UnreadableStateError.
        """
        with state_errors(path):
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro",
                BUSY_SECONDS,
                isolation_level=None,
                uri=True,
            )
            state = cls(path, connection)
            try:
                state._version()
                state._check_owner(azure)
            except BaseException:
                connection.close()
                raise
        return state

    def _version(self) -> int:
        version = int(self._one("PRAGMA user_version"))
        if version > SCHEMA_VERSION:
            raise StateError(
                f"state file {self.path} was written by a newer version",
                "nothing was asked or sent",
                "run that version, or name another state_file",
            )
        return version

    def _prepare(self, azure: Azure, now: datetime, again: Sequence[str]) -> None:
        with self._transaction():
            if self._version() == 0:
                for statement in SCHEMA.split(";\n"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                self._put("tenant_id", azure.tenant_id)
                self._put("api_root", azure.api_root)
                for content_type in again:
                    # Later than earliest: what passes until it is asked is no gap.
                    self._set_watermark(content_type, earliest(now) + RETENTION_MARGIN)
            self._check_owner(azure)
            self._put("opened", str(seconds(now)))

    def _check_owner(self, azure: Azure) -> None:
        for key in ("tenant_id", "api_root"):
            theirs, ours = self._get(key), getattr(azure, key)
            if (theirs or "").lower() != ours.lower():
                raise StateError(
                    f"state file {self.path} belongs to {key} {theirs}, not {ours}",
                    "nothing was asked or sent",
                    "give each tenant a state_file of its own",
                )

    @classmethod
    def nowhere(cls, azure: Azure, now: datetime) -> State:
        """A state for a try-out: in memory, empty, and gone with the process."""
        connection = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False
        )
        state = cls(Path(os.devnull), connection)
        state._prepare(azure, now, ())
        return state

    def close(self) -> None:
        """Let go of the file.

        Under the lock: a listing that nobody waits for any more may be asking what is
        known, and SQLite would crash the process if its connection went away.
        """
        with self._lock:
            self._connection.close()

    # -- plumbing

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, state_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _rows(self, statement: str, *values: object) -> list[Any]:
        with self._lock, state_errors(self.path):
            return self._connection.execute(statement, values).fetchall()

    def _one(self, statement: str, *values: object) -> Any:
        rows = self._rows(statement, *values)
        return rows[0][0] if rows else None

    def _get(self, key: str) -> str | None:
        value = self._one("SELECT value FROM meta WHERE key = ?", key)
        return None if value is None else str(value)

    def _put(self, key: str, value: str) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value)
        )

    # -- watermark and slices

    def watermark(self, content_type: str) -> datetime | None:
        """How far delivery is confirmed; None if it was never polled."""
        time = self._one(
            "SELECT time FROM watermark WHERE content_type = ?", content_type
        )
        return None if time is None else moment(time)

    def set_watermark(self, content_type: str, time: datetime) -> None:
        """Put the watermark where it is told to be, forward or back."""
        with self._transaction():
            self._set_watermark(content_type, time)

    def _set_watermark(self, content_type: str, time: datetime) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO watermark (content_type, time) VALUES (?, ?)",
            (content_type, seconds(time)),
        )

    def bring_back(self, content_type: str, time: datetime) -> None:
        """Take the watermark and the spans polled back to where the clocks agree."""
        with self._transaction():
            self._set_watermark(content_type, time)
            for table in ("polled", "slice"):
                self._connection.execute(
                    f"DELETE FROM {table} WHERE content_type = ? AND start >= ?",
                    (content_type, seconds(time)),
                )
                self._connection.execute(
                    f"UPDATE {table} SET end = ?1 WHERE content_type = ?2 AND end > ?1",
                    (seconds(time), content_type),
                )

    def newest_created(self, content_type: str, before: datetime) -> datetime | None:
        """The contentCreated of the newest blob delivered before a moment."""
        created = self._one(
            "SELECT max(created) FROM delivered WHERE content_type = ? AND created < ?",
            content_type,
            milliseconds(before),
        )
        return None if created is None else moment(created / 1000)

    def given_up(self, content_type: str) -> list[Slice]:
        """The slices that earlier runs gave up, oldest first."""
        rows = self._rows(
            "SELECT start, end, id FROM slice "
            "WHERE content_type = ? AND given_up ORDER BY start, id",
            content_type,
        )
        return [
            Slice(content_type, Window(moment(start), moment(end)), id_, reopened=True)
            for start, end, id_ in rows
        ]

    def confirm(self, job: Slice, changes: Changes, now: datetime) -> Slice:
        """Record a confirmed batch of a slice that is not done; gives it its id."""
        with self._transaction():
            if not job.id:
                job = self._begin(job, given_up=False)
            self._record(job.content_type, changes, now, job.id)
        return job

    def finish(
        self,
        job: Slice,
        changes: Changes,
        now: datetime,
        *,
        moves_watermark: bool = False,
        before: Sequence[Slice] = (),
    ) -> None:
        """Record the last batch of a slice, which is now polled.

        before: the slices of this run that came earlier and were given up. They stay
        open behind the watermark, to be asked again by themselves.
        """
        with self._transaction():
            self._record(job.content_type, changes, now, 0)
            self._polled(job.content_type, job.window)
            if job.id:
                self._connection.execute("DELETE FROM slice WHERE id = ?", (job.id,))
            for slice_ in before:
                self._begin(slice_, given_up=True)
            if moves_watermark:
                self._advance(job.content_type, job.window.end)
            self._prune(job.content_type, now)

    def give_up(
        self, job: Slice, changes: Changes, now: datetime, *, newest: bool = False
    ) -> Slice:
        """Record what could be had of a slice that stays open.

        newest: it ended at now. The next poll asks for what came later apart from it.
        """
        with self._transaction():
            if changes.delivered and not job.id:
                job = self._begin(job, given_up=False)
            self._record(job.content_type, changes, now, job.id)
            if newest:
                end = seconds(job.window.end)
                self._put(f"{ASKED_UNTIL} {job.content_type}", str(end))
        return job

    def asked_until(self, content_type: str) -> datetime | None:
        """Where the last poll ended, if its newest slice stayed open; else None."""
        end = self._get(f"{ASKED_UNTIL} {content_type}")
        return None if end is None else moment(int(end))

    def _begin(self, job: Slice, *, given_up: bool) -> Slice:
        start, end = seconds(job.window.start), seconds(job.window.end)
        if job.id:
            self._connection.execute(
                "UPDATE slice SET start = ?, end = ?, given_up = ? WHERE id = ?",
                (start, end, given_up, job.id),
            )
            return job
        cursor = self._connection.execute(
            "INSERT INTO slice (content_type, start, end, given_up) VALUES (?,?,?,?)",
            (job.content_type, start, end, given_up),
        )
        return Slice(job.content_type, job.window, cursor.lastrowid or 0, job.reopened)

    def _advance(self, content_type: str, end: datetime) -> None:
        self._connection.execute(
            "INSERT INTO watermark (content_type, time) VALUES (?, ?) "
            "ON CONFLICT DO UPDATE SET time = max(time, excluded.time)",
            (content_type, seconds(end)),
        )
        self._connection.execute(
            "DELETE FROM meta WHERE key = ? AND CAST(value AS INTEGER) <= ?",
            (f"{ASKED_UNTIL} {content_type}", seconds(end)),
        )
        # What a killed run left of slices that are polled by now.
        self._connection.execute(
            "DELETE FROM slice WHERE content_type = ? AND end <= ? AND NOT given_up",
            (content_type, seconds(end)),
        )

    def _clip(self, slice_: Slice, start: datetime) -> None:
        """Let a given-up slice begin later, or go if nothing is left of it."""
        self._connection.execute(
            "UPDATE slice SET start = ? WHERE id = ?", (seconds(start), slice_.id)
        )
        self._connection.execute(
            "DELETE FROM slice WHERE id = ? AND start >= end", (slice_.id,)
        )

    def split(self, slice_: Slice, early: Window) -> Slice:
        """Cut a given-up slice in two; gives the new one, its earlier part."""
        with self._transaction():
            self._clip(slice_, early.end)
            part = Slice(slice_.content_type, early, reopened=True)
            return self._begin(part, given_up=True)

    def lose_span(
        self,
        content_type: str,
        window: Window,
        now: datetime,
        job: Slice | None = None,
    ) -> list[Lost]:
        """Record that a span aged out; what of it was polled after all is not lost.

        job: the given-up slice that it belonged to, else it was the watermark's.

        Its own transaction, whatever becomes of the run: it is said once. What asked
        for the span, the watermark or a given-up slice, begins behind it from now on.
        """
        reason = "content of more than 7 days ago can no longer be had"
        lost = [
            Lost(content_type, hole, reason)
            for hole in without(
                window,
                self.polled(content_type, window)
                + self._windows(
                    "lost WHERE content_type = ? AND content_id = ''", content_type
                ),
            )
        ]
        with self._transaction():
            self._record(content_type, Changes(lost=lost), now, 0)
            if job:
                self._clip(job, window.end)
            else:
                self._set_watermark(content_type, window.end)
        return lost

    # -- ledger and pending

    def _record(
        self, content_type: str, changes: Changes, now: datetime, slice_id: int
    ) -> None:
        stamp = seconds(now)
        self._connection.executemany(
            "INSERT OR REPLACE INTO delivered VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                delivered_row(content_type, done, stamp, slice_id)
                for done in changes.delivered
            ],
        )
        self._connection.executemany(
            "DELETE FROM pending WHERE content_type = ? AND content_id = ?",
            [(content_type, done.blob.id) for done in changes.delivered]
            + [(content_type, lost.content_id) for lost in changes.lost],
        )
        self._connection.executemany(
            "INSERT INTO pending VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO "
            "UPDATE SET tries = tries + 1, reason = excluded.reason",
            [pending_row(content_type, pending) for pending in changes.pending],
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO lost VALUES (?, ?, ?, ?, ?, ?)",
            [lost_row(content_type, lost, stamp) for lost in changes.lost],
        )

    def _polled(self, content_type: str, window: Window) -> None:
        """Add a span to those polled, joined with what it meets."""
        meets = (content_type, seconds(window.end), seconds(window.start))
        where = "WHERE content_type = ? AND start <= ? AND end >= ?"
        start, end = self._rows(
            f"SELECT min(start), max(end) FROM polled {where}", *meets
        )[0]
        self._connection.execute(f"DELETE FROM polled {where}", meets)
        self._connection.execute(
            "INSERT INTO polled VALUES (?, ?, ?)",
            (
                content_type,
                min(
                    seconds(window.start),
                    seconds(window.start) if start is None else start,
                ),
                max(seconds(window.end), end or 0),
            ),
        )

    def _prune(self, content_type: str, now: datetime) -> None:
        """Forget what the ledger no longer has to prove."""
        oldest = seconds(now - LEDGER_KEPT)
        for table, column, limit in (
            ("delivered", "created", 1000 * oldest),
            ("polled", "end", oldest),
            ("lost", "time", oldest),  # what was said this week is not said again
        ):
            self._connection.execute(
                f"DELETE FROM {table} WHERE content_type = ? AND {column} < ?",
                (content_type, limit),
            )

    def polled(self, content_type: str, window: Window) -> list[Window]:
        """The spans polled that touch a window, oldest first."""
        return self._windows(
            "polled WHERE content_type = ? AND start < ? AND end > ?",
            content_type,
            seconds(window.end),
            seconds(window.start),
        )

    def _windows(self, where: str, *values: object) -> list[Window]:
        rows = self._rows(f"SELECT start, end FROM {where} ORDER BY start", *values)
        return [Window(moment(start), moment(end)) for start, end in rows]

    def settle(self, content_type: str, changes: Changes, now: datetime) -> None:
        """Record what became of blobs outside any slice: pending ones, a backfill's."""
        with self._transaction():
            self._record(content_type, changes, now, 0)

    def begin_round(self) -> None:
        """Note which blobs wait now: those that this run is to try once more."""
        with self._transaction():
            self._connection.execute(
                "CREATE TEMP TABLE IF NOT EXISTS "
                "round (n INTEGER PRIMARY KEY, type TEXT, id TEXT)"
            )
            self._connection.execute("DELETE FROM round")
            self._connection.execute(
                "INSERT INTO round (type, id) "
                "SELECT content_type, content_id FROM pending ORDER BY tries, created"
            )

    def pending(self, content_type: str) -> Iterator[Pending]:
        """The blobs that wait since before the round: first those tried least.

        An outage may end a round; in the next each has its turn. Read page by page.
        """
        last = 0
        while rows := self._rows(
            f"SELECT n, {PENDING_COLUMNS} FROM round JOIN pending "
            "ON content_type = type AND content_id = id "
            "WHERE type = ? AND n > ? ORDER BY n LIMIT 500",
            content_type,
            last,
        ):
            last = rows[-1][0]
            yield from (read_pending(content_type, row[1:]) for row in rows)

    def waiting(self, blob: Blob) -> Pending | None:
        """What is known of a blob that waits; None if it does not."""
        rows = self._rows(
            f"SELECT {PENDING_COLUMNS} FROM pending "
            "WHERE content_type = ? AND content_id = ?",
            blob.content_type,
            blob.id,
        )
        return read_pending(blob.content_type, rows[0]) if rows else None

    def pending_count(self, content_type: str) -> int:
        """How many blobs wait to be fetched."""
        return int(
            self._one(
                "SELECT count(*) FROM pending WHERE content_type = ?", content_type
            )
        )

    def known(self, content_type: str, purpose: Purpose) -> Callable[[Blob], bool]:
        """Tells of a listed blob whether it is not to be fetched with its slice.

        A poll leaves out what is pending (it is retried by itself), lost, or was
        delivered by a slice that is still open (a killed run does not send its batches
        again). It takes the blobs of closed slices again: observed, a blob that is
        listed again may have grown. A backfill leaves nothing out; a reconciliation
        what the ledger has.
        """
        if purpose is Purpose.RECONCILE:
            return functools.partial(self.has, "sent")
        if purpose is Purpose.BACKFILL:
            return lambda _: False
        # Most polls have none of these: then nothing is asked for each blob.
        tables = {"open": "slice", "pending": "pending", "lost": "lost"}
        questions = [
            question
            for question, table in tables.items()
            if self._rows(
                f"SELECT 1 FROM {table} WHERE content_type = ? LIMIT 1", content_type
            )
        ]
        return lambda blob: any(self.has(question, blob) for question in questions)

    def has(self, question: str, blob: Blob) -> bool:
        """Whether the answer to one of QUESTIONS is yes for a blob."""
        values = {
            "type": blob.content_type,
            "created": milliseconds(blob.created),
            "hash": fingerprint(blob.id),
            "id": blob.id,
            "start": seconds(blob.created),
        }
        with self._lock, state_errors(self.path):
            query = "SELECT 1 FROM " + QUESTIONS[question]
            return self._connection.execute(query, values).fetchone() is not None

    # -- what was said

    def said(self, key: str) -> datetime | None:
        """When something was last said; None if it was not, or is well again."""
        time = self._one("SELECT time FROM said WHERE key = ?", key)
        return None if time is None else moment(time)

    def say(self, key: str, now: datetime, text: str = "") -> None:
        """Note that something was said."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO said VALUES (?, ?, ?)",
                (key, seconds(now), text),
            )

    def unsay(self, key: str) -> None:
        """Note that something is well again."""
        with self._transaction():
            self._connection.execute("DELETE FROM said WHERE key = ?", (key,))

    def said_keys(self, prefix: str) -> set[str]:
        """All that was said under a prefix, which holds no % and no _."""
        rows = self._rows("SELECT key FROM said WHERE key LIKE ?", f"{prefix}%")
        return {key for (key,) in rows}

    def note_said(
        self, said: Iterable[str], unsaid: Iterable[str], now: datetime
    ) -> None:
        """Note at once all that a mail has said, and what it has said to be well."""
        with self._transaction():
            self._connection.executemany(
                "INSERT OR REPLACE INTO said VALUES (?, ?, '')",
                [(key, seconds(now)) for key in said],
            )
            self._connection.executemany(
                "DELETE FROM said WHERE key = ?", [(key,) for key in unsaid]
            )

    def losses(self) -> list[Lost]:
        """All that was lost and that the ledger still knows of, oldest first."""
        rows = self._rows(
            "SELECT content_type, start, end, reason, content_id FROM lost "
            "ORDER BY time, start, content_type, content_id"
        )
        return [
            Lost(content_type, Window(moment(start), moment(end)), reason, content_id)
            for content_type, start, end, reason, content_id in rows
        ]


def delivered_row(
    content_type: str, done: Delivered, stamp: int, slice_id: int
) -> tuple[object, ...]:
    """A delivered blob as its row."""
    created, id_ = milliseconds(done.blob.created), fingerprint(done.blob.id)
    return (content_type, created, id_, done.events, done.bytes, stamp, slice_id)


def lost_row(content_type: str, lost: Lost, stamp: int) -> tuple[object, ...]:
    """What is lost, as its row."""
    start, end = seconds(lost.window.start), seconds(lost.window.end)
    return (content_type, lost.content_id, start, end, lost.reason, stamp)


PENDING_COLUMNS = "content_id, uri, created, expires, since, tries, reason"


def read_pending(content_type: str, row: Sequence[Any]) -> Pending:
    """A blob that waits, from its row."""
    id_, uri, created, expires, since, tries, reason = row
    until = None if expires is None else moment(expires / 1000)
    blob = Blob(content_type, id_, uri, moment(created / 1000), until)
    return Pending(blob, moment(since), tries, reason)


def pending_row(content_type: str, pending: Pending) -> tuple[object, ...]:
    """A pending blob as its row."""
    blob = pending.blob
    return (
        content_type,
        blob.id,
        blob.uri,
        milliseconds(blob.created),
        None if blob.expires is None else milliseconds(blob.expires),
        seconds(pending.since),
        pending.tries,
        pending.reason,
    )


@contextlib.contextmanager
def state_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a state file; the kernel frees it if we die.

    Raises BusyError if another process holds it.
    """
    file = path.with_name(path.name + ".lock")
    with file_errors(file, "lock"):
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another poll holds the lock {file}",
                "it delivers what there is",
                "nothing to do, unless this repeats for hours: then look at that run",
            ) from None
        except OSError as error:
            raise StateError(
                f"lock file {file}: {error.strerror}",
                "nothing was asked or sent",
                "put state_file on a local file system",
            ) from None
        yield
    finally:
        os.close(descriptor)


def set_aside(
    path: Path,
    azure: Azure,
    content_types: Sequence[str],
    now: datetime,
    reason: str,
) -> State:
    """Put an unreadable state aside, under the lock, and begin one of the last 7 days.

    Duplicates collapse downstream, gaps do not.
    """
    mark = now.strftime("%Y%m%dT%H%M%SZ")
    for suffix in ("", "-journal", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        with file_errors(path), contextlib.suppress(FileNotFoundError):
            file.rename(file.with_name(f"{path.name}.unreadable-{mark}{suffix}"))
    log.warning(
        "state file %s is unreadable (%s) and was set aside as %s.unreadable-%s; "
        "the last 7 days are polled again and Elasticsearch drops the copies; "
        "look at the disk",
        path,
        plain(reason),
        path.name,
        mark,
    )
    return State.open(path, azure, content_types, now, replaces=True)


# == HTTP ====================================================================
# Every request to Microsoft goes through here: verified TLS, bounded time and size,
# pauses, and one retry policy.


T = TypeVar("T")


class AnswerClock(threading.local):
    """How long the answer that this thread waits for may still take.

    A time-out bounds the silence between two bytes; a server that drips one byte a
    minute never runs into it.
    """

    deadline = float("inf")


ANSWER_CLOCK = AnswerClock()


class AnswerSocket(ssl.SSLSocket):
    """A TLS socket that gives up when the answer's time is over."""

    def recv_into(self, *args: Any, **named: Any) -> int:
        """Receive, unless the answer has taken too long."""
        if time.monotonic() > ANSWER_CLOCK.deadline:
            raise TimeoutError("the answer took too long")
        return super().recv_into(*args, **named)


def ca_bundle(azure: Azure, environ: Mapping[str, str]) -> Path | None:
    """The CA bundle in force: the configuration's, else the environment's, if any."""
    if azure.ca_bundle:
        return azure.ca_bundle
    given = environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE")
    return Path(given) if given else None


def tls_context(bundle: Path | None) -> ssl.SSLContext:
    """A verifying TLS context; by default with the certificates that requests brings.

    Raises ConfigError if the bundle cannot be read.
    """
    from certifi import where

    path = bundle or Path(where())
    try:
        folder = path.is_dir()
        context = ssl.create_default_context(
            cafile=None if folder else str(path), capath=str(path) if folder else None
        )
    except (OSError, ssl.SSLError) as error:
        complaint = "environment: REQUESTS_CA_BUNDLE: expected a PEM file or folder, "
        raise ConfigError([f"{complaint}got {path} ({error})"]) from None
    context.sslsocket_class = AnswerSocket
    return context


def load_requests() -> None:
    """Import requests without its guesser of encodings, which it can do without.

    We read bytes and know that they are UTF-8; the guesser's tables are a tenth of what
    msal and requests cost to import.
    """
    guessers = ("chardet", "charset_normalizer")
    absent = [name for name in guessers if name not in sys.modules]
    # Documented: None in sys.modules makes an import say that there is no such module.
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # requests says that it misses them
            import requests  # noqa: F401 -- for its own sake
    finally:
        for name in absent:
            sys.modules.pop(name, None)


def environment_proxy(url: str) -> str:
    """The proxy that the environment names for a URL, "" if none. Raises ValueError.

    What it is shown of its password is a secret from now on: it may echo that.
    """
    from requests.utils import get_auth_from_url, get_environ_proxies, select_proxy
    from urllib3.util import make_headers, parse_url

    proxy = select_proxy(url, get_environ_proxies(url, no_proxy=None))
    if not proxy:
        return ""
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not parse_url(proxy).host:
        raise ValueError("no host")
    user, password = get_auth_from_url(proxy)
    if password:
        shown = make_headers(proxy_basic_auth=f"{user}:{password}")
        Secret(shown["proxy-authorization"].partition(" ")[2])
        Secret(password)
    return proxy


def make_pools(
    context: ssl.SSLContext, connections: int
) -> Callable[[str], HTTPConnectionPool]:
    """Gives the connections to a URL's host, by way of the environment's proxy, if any.

    requests finds the proxy and knows its password; the asking is urllib3's own, for
    requests reads the CA file for each connection and the environment for each request.
    """
    from requests.adapters import HTTPAdapter
    from requests.exceptions import InvalidSchema
    from urllib3 import PoolManager
    from urllib3.exceptions import LocationParseError, ProxySchemeUnknown

    adapter = HTTPAdapter(pool_maxsize=connections)
    direct = PoolManager(maxsize=connections, ssl_context=context)
    pools: dict[str, HTTPConnectionPool] = {}

    def pool_for(url: str) -> HTTPConnectionPool:
        host = urlsplit(url).netloc
        if host not in pools:
            manager = direct
            try:
                if proxy := environment_proxy(url):
                    manager = adapter.proxy_manager_for(proxy, ssl_context=context)
                pools[host] = manager.connection_from_url(url)
            except (InvalidSchema, ProxySchemeUnknown) as error:
                said = f"HTTPS_PROXY: {error}"
                raise OSError(errno.EPROTONOSUPPORT, said) from None
            except ValueError:  # it would quote the address, and with it the password
                raise LocationParseError("the proxy") from None
        return pools[host]

    return pool_for


def backoff(failures: int, retry_after: float | None, chance: float) -> float:
    """Seconds to wait after so many failures: exponential, jittered, capped.

    chance is a random number in [0, 1); Retry-After is honoured up to the cap.
    """
    pause = PAUSE_FIRST * 2.0 ** min(failures - 1, 10) * (0.5 + chance / 2)
    return min(PAUSE_LONGEST, max(pause, retry_after or 0.0))


class Throttle:
    """A gate before every request: when the service is hurt, all of them wait."""

    def __init__(self) -> None:
        self._open_at = 0.0

    def slow_down(self, pause: float) -> None:
        """Close the gate for some seconds."""
        self._open_at = max(self._open_at, time.monotonic() + pause)

    def wait(self, stop: threading.Event) -> None:
        """Wait until the gate is open, or stop is set."""
        while (left := self._open_at - time.monotonic()) > 0:
            if stop.wait(left):
                return


class Call(NamedTuple):
    """One thing to ask for, in as many tries as it may take."""

    method: str
    url: str
    what: str  # for people: "listing of Audit.Exchange"
    headers: Mapping[str, str] = MappingProxyType({})
    body: str | None = None
    tries: int = TRIES
    retried: frozenset[Verdict] = frozenset({Verdict.RETRY, Verdict.THROTTLED})


class AnswerError(Exception):
    """An answer that says no, or none; the caller knows what it means here."""

    def __init__(self, judgement: Judgement, answer: Answer | None = None) -> None:
        super().__init__(judgement.reason)
        self.judgement = judgement
        self.answer = answer


class AbandonedError(Exception):
    """The result is no longer wanted: another part of the run has ended it."""


class Bearer(Protocol):
    """Gives the access token that a request carries."""

    def token(self) -> Secret:
        """The token in force."""

    def renew(self, refused: Secret) -> None:
        """Replace a token that the API refused, unless that is done already."""


def clean_reason(error: BaseException) -> str:
    """An error's own words in a line, without the objects that libraries put in."""
    cause: BaseException = error
    while True:
        inner = getattr(cause, "reason", None)
        nested = [arg for arg in cause.args if isinstance(arg, BaseException)]
        if isinstance(inner, BaseException):
            cause = inner
        elif nested:
            cause = nested[-1]
        else:
            break
    if isinstance(cause, OSError) and cause.strerror:
        return plain(f"{cause.strerror}")
    if type(cause).__name__ in ("LocationParseError", "InvalidURL"):
        # Its words quote the address, and with it the password.
        return "an address cannot be read; if it is HTTPS_PROXY, escape / # @ in it"
    words = [str(arg) for arg in cause.args if isinstance(arg, str)]
    text = re.sub(r"<[^>]*>:? ?", "", words[-1] if words else "")
    text = re.sub(r"HTTPS?Connection\(host='([^']*)', port=(\d+)\)", r"\1:\2", text)
    return plain(text or type(cause).__name__)


def read_pieces(response: BaseHTTPResponse) -> Iterator[bytes]:
    """A body as it came over the wire, in pieces; one piece where that is small."""
    length = response.headers.get("Content-Length", "")
    if "Transfer-Encoding" in response.headers:
        length = ""  # of no meaning beside it, and not what read() goes by
    if re.fullmatch(r"[0-9]{1,9}", length) and int(length) <= CHUNK:
        yield response.read(decode_content=False)
        return
    while piece := response.read(CHUNK // 8, decode_content=False):
        yield piece


def read_answer(response: BaseHTTPResponse, most: int = LISTING_BYTES) -> Answer:
    """An answer, whole and unpacked. Raises BrokenAnswerError if it has no end."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    body = bytearray()
    for chunk in unpacked(
        read_pieces(response), headers.get("content-encoding", "").lower()
    ):
        body += chunk
        if len(body) > most:
            raise BrokenAnswerError(f"an answer of more than {most >> 20} MB")
    return Answer(response.status, headers, bytes(body))


class Http:
    """Calls to Microsoft's hosts under one policy; safe for many threads."""

    def __init__(
        self,
        pool_for: Callable[[str], HTTPConnectionPool],
        timeout_seconds: float,
    ) -> None:
        from http.client import HTTPException

        from urllib3 import Retry
        from urllib3.exceptions import HTTPError

        self._pool_for = pool_for
        self._timeout = timeout_seconds
        self._throttle = Throttle()
        # One try, and every answer as it is: a redirect is never followed.
        self._once = Retry(total=False, redirect=False)
        self._faults = (HTTPError, HTTPException, OSError)
        self.dates: dict[str, datetime] = {}  # by host: the newest Date header

    def ask(
        self,
        call: Call,
        take: Callable[[BaseHTTPResponse], T],
        bearer: Bearer | None = None,
        stop: threading.Event | None = None,
    ) -> T:
        """What take makes of a good answer, after as many tries as the call allows.

        Raises AnswerError for a final no, SourceError when the tries are used up, and
        AbandonedError once stop is set. TooLargeError of take passes through.
        """
        stop = stop or threading.Event()
        waited, failures, renewed = 0.0, 0, False
        while True:
            self._throttle.wait(stop)
            if stop.is_set():
                raise AbandonedError
            token = bearer.token() if bearer else None
            try:
                return self._try(call, take, token)
            except AnswerError as error:
                judgement = error.judgement
                if judgement.verdict is Verdict.UNAUTHORIZED and bearer and token:
                    if renewed:
                        raise
                    bearer.renew(token)
                    renewed = True
                    continue
                if judgement.verdict not in call.retried:
                    raise
            failures += 1
            chance = random.random()  # noqa: S311 -- jitter
            pause = backoff(failures, judgement.retry_after, chance)
            if failures >= call.tries or waited + pause > PAUSES_IN_ALL:
                raise gave_up(call, judgement, failures)
            log.debug("%s: %s; again in %.1f s", call.what, judgement.reason, pause)
            waited += pause
            if judgement.verdict is Verdict.THROTTLED:
                self._throttle.slow_down(pause)
            else:
                stop.wait(pause)

    def _try(
        self, call: Call, take: Callable[[BaseHTTPResponse], T], token: Secret | None
    ) -> T:
        """One try: what take made of the answer. Raises AnswerError for all others."""
        response = None
        ANSWER_CLOCK.deadline = time.monotonic() + ANSWER_TIMEOUTS * self._timeout
        try:
            response = self._send(call, token)
            date = self._note_date(call.url, response)
            if 200 <= response.status < 300:
                return take(response)
            answer = read_answer(response, MEGABYTE)
            raise AnswerError(judge(answer, date), answer)
        except BrokenAnswerError as error:
            raise AnswerError(Judgement(Verdict.RETRY, str(error))) from None
        except self._faults as error:
            verdict, reason = Verdict.RETRY, clean_reason(error)
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                verdict = Verdict.UNTRUSTED
                reason = f"certificate not trusted: {reason}"
            raise AnswerError(Judgement(verdict, reason)) from None
        finally:
            ANSWER_CLOCK.deadline = float("inf")
            if response is not None and not response.closed:
                response.close()
                response.release_conn()

    def _send(self, call: Call, token: Secret | None) -> BaseHTTPResponse:
        """Send a request; redirects are never followed, netrc is never read."""
        headers = {
            **call.headers,
            "User-Agent": f"o365_poller/{__version__}",
            "Accept-Encoding": "gzip",
        }
        if token:
            headers["Authorization"] = f"Bearer {token.reveal()}"
        parts = urlsplit(call.url)
        return self._pool_for(call.url).urlopen(
            call.method,
            f"{parts.path}?{parts.query}" if parts.query else parts.path or "/",
            call.body,
            headers,
            self._once,
            redirect=False,
            timeout=self._timeout,
            preload_content=False,
            decode_content=False,
        )

    def _note_date(self, url: str, response: BaseHTTPResponse) -> datetime:
        """Remember the server's clock; gives it, or ours where it told none."""
        date = read_header_time(response.headers.get("Date", ""))
        if date is None:
            return datetime.now(UTC)
        self.dates[urlsplit(url).netloc] = date
        return date


HttpKind = TypeVar("HttpKind", bound=Http)


def make_http(
    settings: Settings,
    environ: Mapping[str, str],
    timeout_seconds: float,
    kind: type[HttpKind],
) -> HttpKind:
    """The way to Microsoft's hosts, with the CA bundle and proxies in force.

    Raises ConfigError if the bundle cannot be read.
    """
    load_requests()
    context = tls_context(ca_bundle(settings.azure, environ))
    return kind(make_pools(context, settings.poll.workers + 2), timeout_seconds)


def gave_up(call: Call, judgement: Judgement, tries: int) -> Exception:
    """The error of a call whose tries are used up."""
    if judgement.verdict not in (Verdict.RETRY, Verdict.THROTTLED):
        return AnswerError(judgement)
    times = "1 try" if tries == 1 else f"{tries} tries"
    return SourceError(
        f"{call.what}: {judgement.reason} ({times})",
        "what is missing stays open and the next run asks again",
        "nothing to do, unless it repeats: then look at the network and at "
        "Microsoft's service health",
    )


def untrusted(what: str, judgement: Judgement) -> SourceError:
    """The error of a call to a host whose certificate is not trusted."""
    return SourceError(
        f"{what}: {judgement.reason}",
        "nothing was sent there; what is missing stays open for the next run",
        "if a proxy opens TLS here, name its CA in ca_bundle in [azure]; else find out "
        "who answers in Microsoft's place",
    )


# == Sign-in =================================================================


class UnusableCredentialError(PollerError):
    """msal cannot work with the key, though it looks right."""

    exit = Exit.USAGE


# What a person can do about Entra ID's codes. Documented: Entra's page of AADSTS
# codes; the sentences are ours. Never branched on but for "it may pass".
AADSTS = {
    700027: (
        "Entra ID does not know this certificate, or the key does not fit it",
        "upload the certificate to the app registration, and compare thumbprints",
    ),
    700024: (
        "the assertion is outside its time range: this machine's clock is wrong",
        "set the clock (NTP)",
    ),
    700021: ("the assertion names another application", "check client_id"),
    700023: (
        "the assertion was made for another address",
        "check cloud and login_root",
    ),
    50012: ("the assertion was refused", "check certificate, cloud and login_root"),
    1000502: ("the certificate is outside its validity", "renew and upload it"),
    7000274: ("the certificate is outside its validity", "renew and upload it"),
    7000214: ("the certificate is revoked", "make and upload another one"),
    7000277: ("the certificate is revoked", "make and upload another one"),
    5002730: (
        "this tenant does not take the assertion's algorithm (PS256)",
        "give thumbprint in [azure]: then RS256 is used",
    ),
    7000215: ("the client secret is wrong", "give the secret's value, not its id"),
    7000222: ("the client secret has expired", "make another, or use a certificate"),
    7000218: ("no credential reached Entra ID", "check [azure]"),
    700016: (
        "the application is not in this tenant",
        "check client_id and tenant_id, and that an admin has consented",
    ),
    70001: ("the application is not in this tenant", "check client_id and tenant_id"),
    7000112: ("the application is disabled", "enable it under Enterprise applications"),
    90002: ("the tenant does not exist here", "check tenant_id and cloud"),
    900023: ("the tenant id is malformed", "check tenant_id"),
    90023: ("the request is malformed", "check tenant_id and client_id"),
    500011: (
        "Office 365 Management APIs are not in this tenant under this address",
        "check cloud and api_root, and add the API permission",
    ),
    70011: ("the scope is refused", "check cloud and api_root"),
    1002012: ("the scope is refused", "check cloud and api_root"),
    65001: ("consent is missing", "grant admin consent to the API permissions"),
    650056: ("the API is not among the app's permissions", "add it, grant consent"),
    650057: ("the API is not among the app's permissions", "add it, grant consent"),
    53003: (
        "conditional access blocks this application",
        "except it, or allow this machine's address",
    ),
    90038: ("the tenant lives in another cloud", "set cloud in [azure]"),
    900382: ("the tenant lives in another cloud", "set cloud in [azure]"),
    900432: ("the tenant lives in another cloud", "set cloud in [azure]"),
}
AADSTS_PASSING = frozenset({90033, 90024, 90055, 50196})
AADSTS_UNKNOWN = (
    "Entra ID refused the sign-in",
    "look the code up at https://login.microsoftonline.com/error",
)
NOTHING_ASKED = "nothing was asked; the watermark stays, so nothing is lost for 7 days"


def token_error(status: int, told: object) -> PollerError:
    """The error of a run that got no token: refused, or not reached.

    told is the OAuth error that came, or whatever came in its place.
    """
    body = told if isinstance(told, Mapping) else {}
    words = str(body.get("error_description", body.get("error", "")))
    message = plain(words, 400)
    listed = re.findall(r"\d{1,9}", str(body.get("error_codes", "")))
    codes = [*map(int, listed + re.findall(r"AADSTS(\d{3,9})", message))]
    passing = status >= 500 or status in (408, 429) or AADSTS_PASSING & set(codes)
    if passing or not (codes or status == 401):
        said = message or f"HTTP {status}, not an answer of Entra ID"
        return UnreachedError(
            f"no access token: {said}",
            NOTHING_ASKED,
            "nothing to do, unless it repeats: then look at the network, the proxy "
            "(HTTPS_PROXY), ca_bundle, login_root and Microsoft's service health",
        )
    known = (AADSTS[code] for code in codes if code in AADSTS)
    meaning, fix = next(known, AADSTS_UNKNOWN)
    return TokenError(f"no access token: {meaning}: {message}", NOTHING_ASKED, fix)


class MsalAnswer(NamedTuple):
    """An answer in the form that msal asks of its HTTP client."""

    status_code: int
    headers: Mapping[str, str]
    text: str

    def raise_for_status(self) -> None:
        """Raise if the answer is a no."""
        if self.status_code >= 400:
            raise OSError(f"HTTP {self.status_code}")


def read_json(body: bytes) -> object:
    """The JSON of an answer; None where it holds none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def read_sign_in(response: BaseHTTPResponse) -> Answer:
    """An answer of Entra ID's. Raises BrokenAnswerError if it is no JSON."""
    answer = read_answer(response, MEGABYTE)
    if read_json(answer.body) is None:
        raise BrokenAnswerError("the sign-in answer is not JSON")
    return answer


class MsalHttp:
    """The HTTP client that msal is handed: ours, so that every rule of ours holds.

    msal's own has no time-out, takes the environment's CA bundle over the configured
    one, and lets a netrc entry in. Answers that may pass are retried here, before msal
    sees one: it would replay it from its cache for some seconds without asking.
    """

    def __init__(self, http: Http, login_root: str) -> None:
        self._http = http
        self._root = login_root
        self.status = 0  # of the newest answer, and its JSON
        self.told: object = None

    def get(self, url: str, **named: Any) -> MsalAnswer:
        """GET, as msal asks for it."""
        if not url.startswith(self._root + "/"):
            # msal's authority has room for a host and a tenant, not for a path.
            url = self._root + urlsplit(url).path
        return self._exchange("GET", url, **named)

    def post(self, url: str, **named: Any) -> MsalAnswer:
        """POST, as msal asks for it: the assertion goes to the configured host only."""
        return self._exchange("POST", url, **named)

    def close(self) -> None:
        """Nothing to do: the connections are the poller's."""

    def _exchange(self, method: str, url: str, **named: Any) -> MsalAnswer:
        if urlsplit(url)[:2] != urlsplit(self._root)[:2]:
            raise TokenError(
                f"no access token: {self._root} sends sign-ins to another "
                f"host ({plain(urlsplit(url).netloc, 80)})",
                "nothing was sent there",
                "check login_root and cloud in [azure]",
            )
        if named.get("params"):
            url += "?" + urlencode(named["params"])
        headers, body = {**(named.get("headers") or {})}, None
        if named.get("data"):
            body = urlencode(named["data"])
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            assertion = body.partition("client_assertion=")[2].partition("&")[0]
            # An echo may be cut anywhere, so the log's filter learns it in pieces.
            for piece in re.findall(".{16,32}", assertion):
                Secret(piece)
        call = Call(method, url, "sign-in", headers, body)
        try:
            answer = self._http.ask(call, read_sign_in)
        except AnswerError as error:
            if error.answer is None:
                raise untrusted("sign-in", error.judgement) from None
            answer = error.answer  # a no is msal's to explain
        self.status, self.told = answer.status, read_json(answer.body)
        text = answer.body.decode("utf-8-sig", "replace")
        return MsalAnswer(answer.status, answer.headers, text)


class TokenSource:
    """Access tokens for one resource, by client credentials; safe for many threads."""

    def __init__(self, azure: Azure, http: Http, resource: str) -> None:
        self._azure = azure
        self._msal_http = MsalHttp(http, azure.login_root)
        self._scope = f"{resource}/.default"
        self._lock = threading.Lock()
        self._app: Any = None
        self._token = Secret("")
        self._good_until = 0.0

    def token(self) -> Secret:
        """A token with some life left; asks for one when needed.

        Raises TokenError if Entra ID refuses, SourceError if it cannot be had now.
        """
        with self._lock:
            if not self._token or time.monotonic() > self._good_until:
                self._acquire()
            return self._token

    def renew(self, refused: Secret) -> None:
        """Ask for another token, unless another thread did so already."""
        with self._lock:
            if self._token is refused:
                # msal's cache would hand the refused one out again.
                self._app.remove_tokens_for_client()
                self._acquire()

    def _acquire(self) -> None:
        """Get a token into place."""
        told = self._ask_msal()
        value = told.get("access_token") if isinstance(told, Mapping) else None
        # What is no header's text http.client would quote in its complaint.
        if not isinstance(value, str) or not re.fullmatch("[!-~]+", value):
            raise token_error(self._msal_http.status, told)
        life = 0.0
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            life = float(told.get("expires_in") or 0)
        self._token = Secret(value)
        # Renewed five minutes early, or halfway where it lives no longer than that.
        self._good_until = time.monotonic() + max(life - 300, life / 2)

    def _ask_msal(self) -> Any:
        """What msal gives; every way that it fails ends in one of our errors.

        Documented by trial (msal 1.39): ValueError for a 4xx at discovery and for
        non-JSON, MsalServiceError for a 5xx, TypeError and more for keys.
        """
        asked = self._msal_http
        try:
            if self._app is None:
                self._app = self._make_app()
                asked.status = 0  # that was the discovery's answer
            # Else the last answer stays: msal replays a 400 without asking again.
            return self._app.acquire_token_for_client(scopes=[self._scope])
        except SourceError as error:
            what = f"no access token: {error.what}"
            raise UnreachedError(what, NOTHING_ASKED, error.fix) from None
        except PollerError:
            raise
        except Exception as error:  # noqa: BLE001 -- msal raises what its parts raise
            if asked.status:
                raise token_error(asked.status, asked.told) from None
            raise UnusableCredentialError(
                f"no access token: msal cannot use what it is given "
                f"({type(error).__name__})",
                "nothing was asked",
                "check key, certificate and thumbprint in [azure]",
            ) from None

    def _make_app(self) -> Any:
        import msal

        azure, credential = self._azure, self._azure.credential
        root = urlsplit(azure.login_root)
        kind = "thumbprint" if credential.thumbprint else "public_certificate"
        # msal documents PEM text for private_key; it hands the key on as it is, and
        # PyJWT takes the object without parsing it again.
        by_key = {
            "private_key": credential.private_key,
            kind: credential.thumbprint or credential.certificate,
        }
        return msal.ConfidentialClientApplication(
            azure.client_id,
            authority=f"https://{root.netloc}/{azure.tenant_id}",
            client_credential=credential.client_secret.reveal() or by_key,
            http_client=self._msal_http,
            # It asks login.microsoftonline.com whatever the cloud, and when it fails
            # it hides the real error.
            instance_discovery=False,
            # None would let MSAL_FORCE_REGION change the host of the token.
            azure_region=False,
        )


def read_claims(token: Secret) -> dict[str, Any]:
    """What a token says of itself, for people only; {} if it cannot be read."""
    try:
        part = token.reveal().split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=="))
    except (IndexError, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


# == Application names =======================================================
# ApplicationDisplayName beside ApplicationId, for those who asked for it. Best effort:
# no event ever waits for a name. Names come from memory; Graph is asked on the side,
# while the run goes on, and what it says is kept on disk for the next one.

NAME_FIELD = "ApplicationDisplayName"
# Documented (Graph's known issues, $filter): 15 expressions at most.
GRAPH_BATCH = 15
GRAPH_ASKED_MOST = 3_000  # a run; the next one goes on with the rest
GRAPH_TIMEOUT_SECONDS = 5.0
GRAPH_LAST_SECONDS = 4.0  # what the end of a run waits for an answer, at most
GRAPH_QUIET_SECONDS = 900.0
NAME_SECONDS, NO_NAME_SECONDS = 30 * 86400.0, 86400.0
NAME_MOST = 256
NAME_CACHE_BYTES = 32 * MEGABYTE
NAMES_FIX = (
    "add the application permission Application.Read.All of Microsoft Graph to the app "
    "registration and grant admin consent, or set application_names = no in [graph]"
)

# Microsoft's own, most of which have no service principal in a tenant. Documented:
# learn.microsoft.com, "Verify first-party Microsoft applications in sign-in reports".
WELL_KNOWN_APPLICATIONS = {
    "00000002-0000-0000-c000-000000000000": "Windows Azure Active Directory",
    "00000002-0000-0ff1-ce00-000000000000": "Office 365 Exchange Online",
    "00000003-0000-0000-c000-000000000000": "Microsoft Graph",
    "00000003-0000-0ff1-ce00-000000000000": "Office 365 SharePoint Online",
    "00000004-0000-0ff1-ce00-000000000000": "Skype for Business Online",
    "00000005-0000-0ff1-ce00-000000000000": "Viva Engage",
    "00000006-0000-0ff1-ce00-000000000000": "Microsoft Office 365 Portal",
    "00000007-0000-0000-c000-000000000000": "Dataverse",
    "00000009-0000-0000-c000-000000000000": "Power BI Service",
    "0000000c-0000-0000-c000-000000000000": "Microsoft App Access Panel",
    "00b41c95-dab0-4487-9791-b9d2c32c80f2": "Office 365 Management",
    "04b07795-8ddb-461a-bbee-02f9e1bf7b46": "Microsoft Azure CLI",
    "08e18876-6177-487e-b8b5-cf950c1e598c": (
        "SharePoint Online Web Client Extensibility"
    ),
    "14d82eec-204b-4c2f-b7e8-296a70dab67e": "Microsoft Graph Command Line Tools",
    "1950a258-227b-4e31-a9cf-717495945fc2": "Microsoft Azure PowerShell",
    "1fec8e78-bce4-4aaf-ab1b-5451cc387264": "Microsoft Teams",
    "23523755-3a2b-41ca-9315-f81f3f566a95": "ACOM Azure Website",
    "26a7ee05-5602-4d76-a7ba-eae8b7b67941": "Windows Search",
    "27922004-5251-4030-b22d-91ecd9a37ea4": "Outlook Mobile",
    "29d9ed98-a469-4536-ade2-f981bc1d605e": "Microsoft Authentication Broker",
    "2d4d3d8e-2be3-4bef-9f87-7875a61c29de": "OneNote",
    "3090ab82-f1c1-4cdf-af2c-5d7a6f3e2cc7": "Microsoft Defender for Cloud Apps",
    "4345a7b9-9a63-4910-a426-35363201d503": "O365 Suite UX",
    "4765445b-32c6-49b0-83e6-1d93765276ca": "OfficeHome",
    "47629505-c2b6-4a80-adb1-9b3a3d233b7b": "Microsoft Exchange Web Services",
    "497effe9-df71-4043-a8bb-14cf78c4b63b": "Exchange Admin Center",
    "4b233688-031c-404b-9a80-a4f3f2351f90": "Office.com",
    "5d661950-3475-41cd-a2c3-d671a3162bc1": "Microsoft Outlook",
    "5e3ce6c0-2b1f-4285-8d4b-75ee78787346": "Microsoft Teams Web Client",
    "66a88757-258c-4c72-893c-3e8bed4d6899": "Office 365 Search Service",
    "67e3df25-268a-4324-a550-0de1c7f97287": "Microsoft Office Web Apps Service",
    "74bcdadc-2fdc-4bb3-8459-76d06952a0e9": "Intune Web Company Portal",
    "797f4846-ba00-4fd7-ba43-dac1f8f63013": "Windows Azure Service Management API",
    "80ccca67-54bd-44ab-8625-4b79c4dc7775": (
        "Microsoft 365 Security and Compliance Center"
    ),
    "871c010f-5e61-4fb1-83ac-98610a7e9110": "Microsoft Power BI",
    "89bee1f7-5e6e-4d8a-9f3d-ecd601259da7": "Office365 Shell WCSS-Client",
    "93625bc8-bfe2-437a-97e0-3d0060024faa": "Microsoft password reset service",
    "98db8bd6-0cc0-4e67-9de5-f187f1cd1b41": "Microsoft Substrate Management",
    "ab9b8c07-8f02-4f72-87fa-80105867a763": "OneDrive SyncEngine",
    "c44b4083-3bb0-49c1-b47d-974e53cbdf3c": "Azure Portal",
    "c9a559d2-7aab-4f13-a6ed-e7e9c52aec87": "Microsoft Forms",
    "cc15fd57-2c6c-4117-a88c-83b1d56b4bbe": "Microsoft Teams Services",
    "d3590ed6-52b3-4102-aeff-aad2292ab01c": "Microsoft Office",
    "de8bc8b5-d9f9-48b1-a8ad-b748da725064": "Graph Explorer",
    "fb78d390-0c51-40cd-8e17-fdbfab77341b": (
        "Microsoft Exchange REST API Based PowerShell"
    ),
}


# By the id in lower case: what Graph said, "" for none, and when (Unix).
Names = dict[str, tuple[str, float]]


def load_names(file: Path, tenant_id: str) -> tuple[Names, float]:
    """The names on disk, and until when Graph is better left alone (Unix).

    None where there is no such file, or it is damaged or another tenant's.
    """
    try:
        with file.open("rb") as source:
            told = json.loads(source.read(NAME_CACHE_BYTES))
        rows = told["applications"].items()
        names = {key: (str(row["name"]), float(row["asked"])) for key, row in rows}
        if told["tenant_id"] == tenant_id:
            return names, float(told["quiet_until"])
        reason = "it belongs to another tenant"
    except FileNotFoundError:
        return {}, 0.0
    except Exception as error:  # noqa: BLE001 -- whatever may stand in it
        reason = plain(f"{type(error).__name__}: {error}")
    log.info(
        "cache of application names %s is not used: %s; events lack the names until "
        "Graph tells them again; nothing to do, the file is written anew",
        file,
        reason,
    )
    return {}, 0.0


def replace_file(file: Path, text: str) -> None:
    """Write a file whole or not at all, for this user's eyes only. Raises OSError."""
    fresh = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(descriptor, "w", encoding="ascii") as target:  # noqa: PTH123 -- an fd
            target.write(text)
            target.flush()
            os.fsync(descriptor)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def read_names(response: BaseHTTPResponse) -> dict[str, str]:
    """The names by id, in lower case, of Graph's answer: a list, or one application."""
    try:
        told = json.loads(read_answer(response).body)
        rows = told.get("value", [told])
        return {
            row["appId"].lower(): (row["displayName"] or "")[:NAME_MOST] for row in rows
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise BrokenAnswerError("Graph's answer lists no applications") from None


def ask_graph(
    graph_root: str, http: Http, bearer: Bearer, app_ids: Sequence[str]
) -> dict[str, str]:
    """The name of each application, "" where the tenant has none of that id.

    At most GRAPH_BATCH ids, in lower case. Raises AnswerError, PollerError.
    """

    def ask(rest: str) -> dict[str, str]:
        url = f"{graph_root}/v1.0/servicePrincipals{rest}$select=appId,displayName"
        # Not retried: the next run asks again, and an event does not wait for it.
        call = Call("GET", url, "names of applications", retried=frozenset())
        return http.ask(call, read_names, bearer)

    wanted = quote(" or ".join(f"appId eq '{app_id}'" for app_id in app_ids))
    try:
        found = ask(f"?$filter={wanted}&")
    except AnswerError as error:
        if error.judgement.verdict not in (Verdict.FAILED, Verdict.MISSING):
            raise
        # Documented for one id; should Graph not take several, then one by one.
        found = {}
        for app_id in app_ids:
            try:
                found |= ask(f"(appId='{app_id}')?")
            except AnswerError as missing:
                if missing.judgement.verdict is not Verdict.MISSING:
                    raise
    return {app_id: found.get(app_id, "") for app_id in app_ids}


class ApplicationNames:
    """Adds the name of the application to events; safe for many threads.

    trouble is what a person would have to mend, once the run is over.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[str]], Mapping[str, str]],
        file: Path,
        tenant_id: str,
    ) -> None:
        self._ask = ask
        self._file = file
        self._tenant_id = tenant_id
        self._now = time.time()
        self._known, self._quiet_until = load_names(file, tenant_id)
        self._off = 0 < self._quiet_until - self._now <= 2 * GRAPH_QUIET_SECONDS
        self._wanted: set[str] = set()
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()  # "" ends it
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self.trouble = ""

    def decorate(self, event: Mapping[str, Any], text: str) -> str:
        """The event's text, with the application's name if that is known by now."""
        app_id = event.get("ApplicationId")
        if not isinstance(app_id, str) or NAME_FIELD in event:
            return text
        name = self._name(app_id.lower())
        return f'{text[:-1]},"{NAME_FIELD}":{json.dumps(name)}}}' if name else text

    def _name(self, app_id: str) -> str:
        if well_known := WELL_KNOWN_APPLICATIONS.get(app_id):
            return well_known
        name, asked = self._known.get(app_id, ("", 0.0))
        kept = NAME_SECONDS if name else NO_NAME_SECONDS
        if not (self._off or 0 <= self._now - asked < kept):
            self._want(app_id)
        return name  # an old one is better than none

    def _want(self, app_id: str) -> None:
        if app_id in self._wanted or len(self._wanted) >= GRAPH_ASKED_MOST:
            return
        if GUID.fullmatch(app_id):
            self._wanted.add(app_id)
            self._waiting.put(app_id)

    def _work(self) -> None:
        """Ask Graph for what is wanted, until the run ends or Graph will not."""
        try:
            while app_id := self._waiting.get():
                batch = [app_id]
                # While Graph answers, others come to share the next request.
                while len(batch) < GRAPH_BATCH and not self._waiting.empty():
                    batch.append(self._waiting.get())
                wanted = [each for each in batch if each]
                for key, name in self._ask(wanted).items():
                    self._known[key] = (name, self._now)
                if len(wanted) < len(batch):
                    return
        except Exception as error:  # noqa: BLE001 -- a name is never worth a run
            self._give_up(error)

    def _give_up(self, error: Exception, quiet_seconds: float = 0.0) -> None:
        """Ask no more in this run, nor for some seconds; say why."""
        self._off = True
        reason = plain(getattr(error, "what", str(error)))
        if isinstance(error, AnswerError):
            if error.judgement.verdict is Verdict.REFUSED:
                self.trouble = (
                    f"Graph refuses the names of applications ({reason}); events come "
                    f"without {NAME_FIELD}, but for Microsoft's own and those known "
                    f"before; {NAMES_FIX}"
                )
                return
            quiet_seconds = error.judgement.retry_after or 0.0
        self._quiet_until = self._now + min(quiet_seconds, GRAPH_QUIET_SECONDS)
        log.info(
            "names of applications: %s; events come without the names that are not "
            "known yet; nothing to do, a later run asks again",
            reason,
        )

    def finish(self, most_seconds: float = GRAPH_LAST_SECONDS) -> None:
        """Wait a little for what is still asked, and keep what was learned on disk."""
        self._waiting.put("")
        self._thread.join(most_seconds)
        if self._thread.is_alive():
            # Where Graph hangs, runs to come are not to wait for it each time.
            late = TimeoutError("no answer of Graph in time")
            self._give_up(late, GRAPH_QUIET_SECONDS)
        if not self._wanted:
            return
        try:
            replace_file(self._file, self._text())
        except (OSError, RuntimeError) as error:  # or a name that comes in just now
            log.info(
                "cache of application names %s cannot be written: %s; a later run asks "
                "Graph again; see that this user may write the file and its folder",
                self._file,
                error,
            )

    def _text(self) -> str:
        """The cache file's content; names that nobody met for long are left out."""
        applications = {
            app_id: {"name": name, "asked": asked}
            for app_id, (name, asked) in sorted(self._known.items())
            if self._now - asked < 2 * NAME_SECONDS
        }
        whole = {
            "tenant_id": self._tenant_id,
            "quiet_until": self._quiet_until,
            "applications": applications,
        }
        return json.dumps(whole, indent=1) + "\n"


# == Activity API ============================================================


class PageLostError(Exception):
    """The API does not take a next page's token (any more)."""


class NotSubscribedError(Exception):
    """The content type has no enabled subscription."""


def permission_for(content_type: str) -> str:
    """The application permission that a content type wants."""
    return PERMISSIONS.get(content_type, PERMISSION)


def refusal(what: str, permission: str, judgement: Judgement) -> PollerError:
    """The error for an answer that says no to a listing or to a subscription."""
    said = f"{what}: {judgement.reason}"
    stays = "nothing of it is polled; its watermark stays, so 7 days remain to mend it"
    if judgement.verdict is Verdict.FORBIDDEN:
        return RefusedError(
            f"{what}: the application lacks the permission {permission} "
            f"({judgement.reason})",
            stays,
            f"add the application permission {permission} of Office 365 Management "
            "APIs to the app registration and grant admin consent",
        )
    if judgement.verdict is Verdict.UNAUTHORIZED:
        return TokenError(
            f"{said}: the API refuses the token that Entra ID gave",
            stays,
            "check that cloud, api_root and tenant_id in [azure] fit the tenant",
        )
    if judgement.verdict is Verdict.NO_AUDITING:
        return RefusedError(
            f"{what}: auditing is off in this tenant, or not in its licence "
            f"({judgement.reason})",
            stays,
            "switch unified auditing on in the Purview portal; it takes up to an hour",
        )
    if judgement.verdict is Verdict.REFUSED:
        return RefusedError(said, stays, "check tenant_id, cloud and the licence")
    if judgement.verdict is Verdict.BAD_WINDOW:
        return SourceError(
            f"{said}: the times are refused, so a clock may be wrong",
            "the span stays open and the next run asks again",
            "compare this machine's clock with UTC (NTP)",
        )
    is_trusted = judgement.verdict is not Verdict.UNTRUSTED
    broken = broken_listing(what, judgement.reason)
    return broken if is_trusted else untrusted(what, judgement)


def broken_listing(what: str, reason: str) -> SourceError:
    """The error of a listing that breaks off; its span stays open."""
    return SourceError(
        f"{what}: {reason}",
        "what was listed is delivered; the span stays open and the next run asks again",
        "nothing to do, unless it repeats: then look at Microsoft's service health",
    )


class SeenIds:
    """The contentIds of one listing; they lie in a temporary file where they are many.

    A slice of a big tenant lists half a million blobs.
    """

    def __init__(self) -> None:
        # An empty name makes SQLite keep it in memory and spill to a nameless file.
        self._connection = sqlite3.connect("", check_same_thread=False)
        self._connection.execute(
            "CREATE TABLE seen (id BLOB PRIMARY KEY, round INTEGER) WITHOUT ROWID"
        )
        self._round = 0

    def begin_again(self) -> None:
        """The listing starts over: all of it will be met again."""
        self._round += 1

    def add(self, blobs: Iterable[Blob]) -> tuple[list[Blob], bool]:
        """The blobs met for the first time, and whether the round met any new one."""
        fresh, progress = [], False
        with state_errors(Path("(temporary, of contentIds)")):
            for blob in blobs:
                key = fingerprint(blob.id)
                row = self._connection.execute(
                    "SELECT round FROM seen WHERE id = ?", (key,)
                ).fetchone()
                if row is None:
                    fresh.append(blob)
                if row is None or row[0] < self._round:
                    progress = True
                    self._connection.execute(
                        "INSERT OR REPLACE INTO seen VALUES (?, ?)", (key, self._round)
                    )
        return fresh, progress


class Fetched(NamedTuple):
    """A blob's events as lines, ready for the wire."""

    blob: Blob
    lines: tuple[bytes, ...]
    events: int
    bytes: int


# A blob that is missing may yet appear, and what a proxy answers may pass.
BLOB_RETRIED = frozenset(
    {Verdict.RETRY, Verdict.THROTTLED, Verdict.MISSING, Verdict.FAILED}
)


# Waits until there is memory for so many bytes of a download in all, and takes it.
Room = Callable[[int], None]


class ActivityApi:
    """The activity feed of one tenant: subscriptions, listings, blobs."""

    def __init__(
        self, feed: Feed, http: Http, bearer: Bearer, decorate: Decorate | None = None
    ) -> None:
        self.feed = feed
        self._http = http
        self._bearer = bearer
        self._decorate = decorate
        self._asked_to_start: set[str] = set()

    def date(self) -> datetime | None:
        """The API's clock, by the newest Date header; None before the first answer."""
        return self._http.dates.get(urlsplit(self.feed.api_root).netloc)

    def subscriptions(self) -> set[str]:
        """The content types, in lower case, whose subscription is enabled.

        Raises SourceError, RefusedError.
        """
        call = Call("GET", self.feed.operation("list"), "list of subscriptions")
        try:
            return self._http.ask(
                call,
                lambda response: parse_subscriptions(read_answer(response).body),
                self._bearer,
            )
        except AnswerError as error:
            raise refusal(call.what, PERMISSION, error.judgement) from None

    def start(self, content_type: str) -> str:
        """Start a subscription; gives what to tell of it.

        Documented: 15 minutes must pass between two starts. Observed: the refusal comes
        as 403 or 429 with code "429". Raises SourceError, RefusedError.
        """
        self._asked_to_start.add(content_type)
        url = self.feed.operation("start", contentType=content_type)
        call = Call("POST", url, f"start of the subscription to {content_type}")
        try:
            self._http.ask(call, read_answer, self._bearer)
        except AnswerError as error:
            verdict = error.judgement.verdict
            if verdict is Verdict.SUBSCRIBED:
                return "was enabled already"
            if verdict is Verdict.COOLING_DOWN:
                return "was asked for a short while ago; Microsoft wants a pause"
            raise refusal(
                call.what, permission_for(content_type), error.judgement
            ) from None
        return "started; its first content may take up to 12 hours"

    def listing(
        self, content_type: str, window: Window, stop: threading.Event
    ) -> Iterator[Blob]:
        """The blobs of a window, each once, in the order that the API lists them.

        Raises SourceError where the list breaks off, RefusedError if it is refused.
        """
        what = f"{content_type}: listing of {window}"
        seen = SeenIds()
        for _ in (1, 2):
            try:
                yield from self._pages(content_type, window, seen, stop)
                return
            except NotSubscribedError as error:
                # Documented: AF20022, AF20023. Observed: at times after a good list.
                if content_type not in self._asked_to_start:
                    note = self.start(content_type)
                    log.info("%s: subscription %s", content_type, note)
                reason = f"the subscription is not active yet ({error})"
            except PageLostError as error:
                log.info("%s: %s; listing again", what, error)
                seen.begin_again()
                reason = str(error)
        raise broken_listing(what, reason)

    def _pages(
        self,
        content_type: str,
        window: Window,
        seen: SeenIds,
        stop: threading.Event,
    ) -> Iterator[Blob]:
        what = f"{content_type}: listing of {window}"
        url, asked = self.feed.listing(content_type, window), set()
        empty = odd_entries = 0
        for number in range(1, PAGES_MOST + 1):
            asked.add(fingerprint(url))
            blobs, odd, following = self._page(url, what, content_type, stop)
            odd_entries += odd
            fresh, progress = seen.add(blobs)
            yield from fresh
            if not following:
                break
            empty = 0 if blobs else empty + 1
            url = self.feed.next_page(following)
            if not url:
                raise broken_listing(
                    what,
                    f"page {number} names a next page outside this tenant's feed, "
                    f"which was not asked: {plain(following)}",
                )
            # An empty page in the midst is conceivable; one that repeats is a circle.
            turns = bool(blobs) and not progress
            if fingerprint(url) in asked or turns or empty > EMPTY_PAGES_MOST:
                raise broken_listing(what, f"the pages go in a circle at page {number}")
        else:
            raise broken_listing(what, f"no end after {PAGES_MOST} pages")
        if odd_entries:
            raise broken_listing(what, f"{odd_entries} entries have no contentId")

    def _page(
        self, url: str, what: str, content_type: str, stop: threading.Event
    ) -> tuple[list[Blob], int, str]:
        def take(response: BaseHTTPResponse) -> tuple[list[Blob], int, str]:
            answer = read_answer(response)
            listed = self.date() or datetime.now(UTC)
            blobs, odd = parse_listing(answer.body, content_type, listed)
            return blobs, odd, next_page_header(answer.headers)

        try:
            return self._http.ask(Call("GET", url, what), take, self._bearer, stop)
        except AnswerError as error:
            judgement = error.judgement
            if judgement.verdict is Verdict.BAD_PAGE:
                raise PageLostError(judgement.reason) from None
            if judgement.verdict is Verdict.NO_SUBSCRIPTION:
                raise NotSubscribedError(judgement.reason) from None
            raise refusal(what, permission_for(content_type), judgement) from None

    def fetch(
        self, blob: Blob, room: Room, stop: threading.Event, tries: int
    ) -> Fetched:
        """A blob's events.

        Raises SourceError, AnswerError, TooLargeError, RefusedError.
        """
        call = Call(
            "GET",
            self.feed.blob(blob),
            f"{blob.content_type}: blob {plain(blob.id, 120)}",
            tries=tries,
            retried=BLOB_RETRIED,
        )
        # The listing was just given for this token: a blob that is refused to it is
        # that blob's trouble, or, twenty in a row, the service's.
        return self._http.ask(
            call, lambda r: self._take_blob(blob, r, room), self._bearer, stop
        )

    def _take_blob(self, blob: Blob, response: BaseHTTPResponse, room: Room) -> Fetched:
        room(0)
        slicer = EventSlicer(self._decorate)
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        pieces: list[bytes] = []
        events = read = 0
        encoding = response.headers.get("Content-Encoding", "").lower()
        body = filter(None, unpacked(read_pieces(response), encoding))
        for chunk in itertools.chain(body, (b"",)):  # the empty one ends it
            read += len(chunk)
            if read > BLOB_BYTES:
                raise TooLargeError
            room(read)  # also of an event that is not whole yet
            last = not chunk
            try:
                text = decoder.decode(chunk, final=last)
            except UnicodeDecodeError:
                raise BrokenAnswerError("the blob is not UTF-8") from None
            if found := slicer.feed(text, last=last):
                pieces.append(("\n".join(found) + "\n").encode())
                events += len(found)
        size = sum(map(len, pieces))
        room(size)
        return Fetched(blob, tuple(pieces), events, size)


# == Downloads ===============================================================
# The threads of the program: one lists, some fetch, the main one decides, sends and
# records. (Two more are short-lived helpers: names of applications, mail.)


class Budget:
    """Bytes fetched and not yet confirmed, bounded; the oldest download may pass.

    Without that exception downloads that each hold a part could wait for one another.
    It passes only while nothing waits to be sent, so that one large blob goes alone.
    """

    def __init__(self, limit: int, starve: Callable[[], None]) -> None:
        self._limit = limit
        self._starve = starve  # called when somebody has to wait
        self._changed = threading.Condition()
        self._active: dict[int, int] = {}  # ticket -> bytes of a running download
        self._tickets = itertools.count()
        self._handed = 0  # bytes handed over, and not confirmed
        self.waiting = 0

    def enter(self) -> int:
        """Begin a download; gives its ticket."""
        with self._changed:
            ticket = next(self._tickets)
            self._active[ticket] = 0
            return ticket

    def hold(self, ticket: int, stop: threading.Event, amount: int) -> None:
        """Wait until a download may hold so many bytes in all, and note that it does.

        Raises AbandonedError on stop.
        """
        with self._changed:
            if not self._fits(ticket, amount):
                self.waiting += 1
                self._starve()
                began = time.monotonic()
                while not self._fits(ticket, amount) and not stop.is_set():
                    self._changed.wait(0.5)
                self.waiting -= 1
                ANSWER_CLOCK.deadline += time.monotonic() - began
            if stop.is_set():
                raise AbandonedError
            less = amount < self._active[ticket]
            self._active[ticket] = amount
            if less:
                self._changed.notify_all()

    def _fits(self, ticket: int, amount: int) -> bool:
        more = amount - self._active[ticket]
        if more <= 0 or self._handed + sum(self._active.values()) + more <= self._limit:
            return True
        return self._handed == 0 and ticket == min(self._active)

    def leave(self, ticket: int, *, handed: bool) -> None:
        """End a download; what it took stays taken if it is handed over."""
        with self._changed:
            amount = self._active.pop(ticket)
            self._handed += amount if handed else 0
            self._changed.notify_all()

    def free(self, amount: int) -> None:
        """Give back what was handed over and is confirmed now."""
        with self._changed:
            self._handed -= amount
            self._changed.notify_all()


class Failed(NamedTuple):
    """A blob that could not be fetched, and why."""

    blob: Blob
    verdict: Verdict
    reason: str
    outage: bool = False  # no answer about this blob: the service may be ill
    defect: Exception | None = None  # of this program


class Listed(NamedTuple):
    """The listing has ended, whole or with an error."""

    blobs: int
    error: BaseException | None


Fetch = Callable[[Blob, Room, threading.Event], Fetched]
WORKER_AFTER = 0.01  # seconds without a result


class Downloads:
    """Fetches blobs in parallel; iterate for Fetched, Failed, and None for a nudge.

    None means: a download waits for room, so send what you have. When all is yielded
    the error that broke the listing is raised, if one did.
    """

    def __init__(self, fetch: Fetch, workers: int, budget_bytes: int) -> None:
        self._fetch = fetch
        self._most = workers
        self._workers = 0
        self._tasks: queue.Queue[Blob | None] = queue.Queue(8 * workers)
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.budget = Budget(budget_bytes, lambda: self._results.put(None))

    def starved(self) -> bool:
        """Whether a download waits for room and nothing more is there to be taken."""
        return self.budget.waiting > 0 and self._results.empty()

    def run(
        self, blobs: Iterator[Blob]
    ) -> Generator[Fetched | Failed | None, None, None]:
        """The results, in the order in which they come in."""
        threading.Thread(target=self._list, args=(blobs,), daemon=True).start()
        done, listed = 0, None
        try:
            while listed is None or done < listed.blobs:
                result = self._next()
                if isinstance(result, BaseException):
                    raise result
                if isinstance(result, Listed):
                    listed = result
                    continue
                done += result is not None
                yield result
        finally:
            self.stop.set()
        if listed.error:
            raise listed.error

    def _next(self) -> Any:
        """The next result; each time that it lets us wait, one more worker begins.

        Where answers come at once, one or two workers use the interpreter up, and more
        of them would only take turns: a seventh more CPU, and no blob sooner.
        """
        while True:
            grows = self._workers < self._most
            try:
                return self._results.get(timeout=WORKER_AFTER if grows else 0.5)
            except queue.Empty:
                if self.budget.waiting:
                    # When it began to wait, the queue was not empty: nobody seemed to
                    # starve. Without this nudge nobody would wake anybody.
                    return None
                if grows and not self._tasks.empty():
                    self._workers += 1
                    threading.Thread(target=self._work, daemon=True).start()

    def _list(self, blobs: Iterator[Blob]) -> None:
        count, error = 0, None
        try:
            for blob in blobs:
                if not self._submit(blob):
                    return
                count += 1
        except AbandonedError:
            return
        except BaseException as caught:  # noqa: BLE001 -- raised in the main thread
            error = caught
        self._results.put(Listed(count, error))
        self._submit(None)

    def _submit(self, task: Blob | None) -> bool:
        while not self.stop.is_set():
            with contextlib.suppress(queue.Full):
                self._tasks.put(task, timeout=0.5)
                return True
        return False

    def _work(self) -> None:
        while not self.stop.is_set():
            try:
                blob = self._tasks.get(timeout=0.5)
            except queue.Empty:
                continue
            if blob is None:
                self._tasks.put(None)  # for the next worker
                return
            ticket = self.budget.enter()
            handed = False
            try:
                room = functools.partial(self.budget.hold, ticket, self.stop)
                result: object = self._fetch(blob, room, self.stop)
                handed = True
            except AbandonedError:
                return
            except UnreachedError as error:
                result = error
            except (SourceError, AnswerError, TooLargeError) as error:
                result = failed(blob, error)
            except PollerError as error:
                result = error  # raised in the main thread
            except Exception as error:  # noqa: BLE001 -- said; the others go on
                reason = f"a defect of this program ({type(error).__name__})"
                result = Failed(blob, Verdict.FAILED, reason, defect=error)
            finally:
                self.budget.leave(ticket, handed=handed)
            self._results.put(result)


# What is said of the asking rather than of the blob asked for.
BLOBS_OUTAGE = (
    Verdict.FAILED,
    Verdict.UNAUTHORIZED,
    Verdict.FORBIDDEN,
    Verdict.UNTRUSTED,
)


def failed(blob: Blob, error: Exception) -> Failed:
    """What an error says of a blob."""
    if isinstance(error, AnswerError):
        verdict, reason = error.judgement.verdict, error.judgement.reason
        return Failed(blob, verdict, reason, outage=verdict in BLOBS_OUTAGE)
    if isinstance(error, TooLargeError):
        reason = f"more than {BLOB_BYTES // MEGABYTE} MB unpacked"
        return Failed(blob, Verdict.FAILED, reason)
    reason = error.what if isinstance(error, PollerError) else str(error)
    return Failed(blob, Verdict.RETRY, reason, outage=True)


# == Sink ====================================================================


class Sink(Protocol):
    """Takes batches of lines."""

    def deliver(self, pieces: Sequence[bytes]) -> None:
        """Return when all of the batch is taken; raise SinkError if it is not."""


class StdoutSink:
    """Standard output in place of Logstash."""

    def deliver(self, pieces: Sequence[bytes]) -> None:
        """Write and flush."""
        try:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        except OSError as error:
            # What is left in the buffer would fail once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SinkError(
                f"standard output: {error.strerror}",
                "no state was touched",
                "nothing to do, if the reader closed it on purpose",
            ) from None


class PeerError(Exception):
    """A Logstash host did not take a batch."""


class TimedOutError(PeerError):
    """A Logstash host made no progress in time."""


# A TLS input closes at the first plain bytes, without a word. Were we to end our side
# before that arrives, its end of stream would look like the confirmation.
PLAIN_PATIENCE = 0.3


class LogstashSink:
    """Batches over TCP or TLS, a connection each, to the first host that takes it.

    Measured on Logstash 8.9.2 and 9.3.8: after our half-close the tcp input closes its
    side when every line has gone into the queue; under TLS it does not answer a bare
    close_notify, but the half-close that follows it.
    """

    def __init__(self, settings: Logstash) -> None:
        self._settings = settings
        self._left_alone: dict[Host, str] = {}
        self._context = sink_context(settings) if settings.tls else None
        self._proved: set[Host] = set()  # do not close at the first plain bytes

    def deliver(self, pieces: Sequence[bytes]) -> None:
        """Have a batch taken by one host; each is tried twice at most."""
        troubles: dict[Host, str] = dict(self._left_alone)
        for attempt in (1, 2):
            for host in self._settings.hosts:
                if host in self._left_alone:
                    continue
                try:
                    self._send_to(host, pieces)
                except TimedOutError as error:
                    troubles[host] = self._left_alone[host] = str(error)
                except PeerError as error:
                    troubles[host] = str(error)
                else:
                    return
                log.info("Logstash %s: %s (try %d)", host, troubles[host], attempt)
        said = "; ".join(f"{host} {why}" for host, why in troubles.items())
        raise SinkError(
            f"no Logstash took the events: {said}",
            "none of this batch counts as delivered; the next run sends it again",
            "see that the tcp input listens there, with the same TLS settings, and "
            "that its pipeline is not blocked by Elasticsearch",
        )

    def _send_to(self, host: Host, pieces: Sequence[bytes]) -> None:
        """Send a batch to a host and await that it is taken; else raise PeerError."""
        step = "connecting"
        try:
            with self.connect(host) as connection:
                step = "sending"
                send_all(connection, pieces)
                if self._context is None and host not in self._proved:
                    listen(connection, PLAIN_PATIENCE)
                    self._proved.add(host)
                step = "confirming"
                end_sending(connection)
                await_end(connection, self._settings.timeout_seconds)
        except TimeoutError:
            seconds_ = f"{self._settings.timeout_seconds:g}"
            raise TimedOutError(
                f"made no progress in {seconds_} s while {step}"
            ) from None
        except (OSError, ValueError) as error:
            raise PeerError(f"failed while {step}: {sink_reason(error)}") from None

    def connect(self, host: Host) -> socket.socket:
        """A connection to a host, under TLS where that is configured."""
        timeout = self._settings.timeout_seconds
        plain_socket = socket.create_connection((host.name, host.port), timeout)
        if self._context is None:
            return plain_socket
        try:
            return self._context.wrap_socket(
                plain_socket, server_hostname=host.name, suppress_ragged_eofs=False
            )
        except BaseException:
            plain_socket.close()
            raise


def sink_context(settings: Logstash) -> ssl.SSLContext:
    """The verifying TLS context for Logstash."""
    context = ssl.create_default_context(
        cafile=str(settings.ca_file) if settings.ca_file else None
    )
    load_client_certificate(context, settings)
    return context


def sink_reason(error: Exception) -> str:
    """A socket's or TLS's error in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {plain(error.verify_message)}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {plain(error.reason or str(error))}"
    if isinstance(error, OSError) and error.strerror:
        return plain(error.strerror)
    return plain(str(error)) or type(error).__name__


def patiently(connection: socket.socket, step: Callable[[], T]) -> T:
    """A step's outcome; a time-out counts if the peer's kernel took nothing meanwhile.

    Megabytes lie in our kernel's buffer when Logstash is slow: while they drain there
    is progress, though no call returns.
    """
    left = unacknowledged(connection)
    while True:
        try:
            return step()
        except TimeoutError:
            before, left = left, unacknowledged(connection)
            if left >= before:
                raise


def send_all(connection: socket.socket, pieces: Sequence[bytes]) -> None:
    """Send every byte; each chunk may take the socket's time-out, not all together."""
    for piece in pieces:
        view = memoryview(piece)
        while view:
            listen(connection)
            chunk = view[:SEND_CHUNK]
            view = view[
                patiently(connection, functools.partial(connection.send, chunk)) :
            ]
    listen(connection)


def listen(connection: socket.socket, patience: float = 0.0) -> None:
    """Raise if the peer ends its side, or says something, within so many seconds.

    Under TLS it reads the session tickets that come after the handshake, and an alert
    (a client certificate that is refused is told only then, under TLS 1.3).
    """
    timeout = connection.gettimeout()
    connection.settimeout(patience)
    try:
        said = connection.recv(256)
    except (BlockingIOError, ssl.SSLWantReadError, TimeoutError):
        return
    finally:
        connection.settimeout(timeout)
    refuse_words(said)
    raise ConnectionError(
        "it closed the connection before the end (does it want TLS?)"
        if not isinstance(connection, ssl.SSLSocket)
        else "it closed the connection before the end"
    )


def refuse_words(said: bytes) -> None:
    """Raise if the peer said anything: Logstash's tcp input never does."""
    if said:
        words = plain(said.decode("utf-8", "replace"), 80)
        raise ConnectionError(f"it answered, so it is no Logstash tcp input: {words}")


def end_sending(connection: socket.socket) -> None:
    """End our side: close_notify under TLS, not waited for, then the half-close."""
    if isinstance(connection, ssl.SSLSocket):
        timeout = connection.gettimeout()
        deadline = time.monotonic() + (timeout or 0)
        connection.settimeout(0)
        try:
            while True:
                try:
                    connection.unwrap()
                except ssl.SSLWantWriteError:  # no room for the alert yet
                    if time.monotonic() > deadline:
                        raise TimeoutError from None
                    time.sleep(0.01)
                    continue
                except ssl.SSLWantReadError:  # sent; the answer is not waited for
                    break
                # It ended its side before we did. OpenSSL says the same of a fatal
                # alert that it meets here, such as a client certificate refused.
                raise ConnectionError("it closed the connection before the end")
        finally:
            connection.settimeout(timeout)
    # Not SSLSocket.shutdown: it would drop the TLS layer, which has to read on.
    socket.socket.shutdown(connection, socket.SHUT_WR)


def await_end(connection: socket.socket, timeout: float) -> None:
    """Wait for the peer's end of stream, which says that it has taken everything.

    It is waited for below TLS: OpenSSL reports a reset as an end of stream.
    """
    closing = 0.0  # its close_notify has come: how long it may take to end

    def peek() -> bytes:
        return socket.socket.recv(connection, 1, socket.MSG_PEEK)

    while patiently(connection, peek):
        if not isinstance(connection, ssl.SSLSocket):
            refuse_words(connection.recv(256))
        elif closing:
            if time.monotonic() > closing:
                raise TimeoutError
            socket.socket.recv(connection, 256)
        elif read_close_notify(connection):
            closing = time.monotonic() + timeout
    await_acknowledgement(connection, timeout)


def read_close_notify(connection: ssl.SSLSocket) -> bool:
    """Whether what has come is the peer's close_notify, and no session ticket.

    Raises for an alert, and for words.
    """
    timeout = connection.gettimeout()
    connection.settimeout(0)
    try:
        refuse_words(connection.recv(256))
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLWantReadError:
        return False
    finally:
        connection.settimeout(timeout)
    return True


def await_acknowledgement(connection: socket.socket, timeout: float) -> None:
    """Wait until the peer's kernel has acknowledged all that we sent.

    A Logstash that is killed closes its sockets too; if that crosses our last bytes on
    the way, the end of stream comes first and the reset after it.
    """
    deadline = time.monotonic() + timeout
    while True:
        left = unacknowledged(connection)  # a reset leaves it as it was
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        if not left:
            return
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


def unacknowledged(connection: socket.socket) -> int:
    """The bytes that we sent and the peer's kernel has not acknowledged (Linux)."""
    if not sys.platform.startswith("linux"):
        return 0
    answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int.from_bytes(answer, sys.byteorder)


# == Progress ================================================================
# How far a run has got: one line that is rewritten where a terminal looks on, and a
# line a minute for -v and the log file.

LIVE_SECONDS, LOGGED_SECONDS = 0.5, 60.0
LONG_WINDOW = timedelta(hours=1)


def time_left(seconds_: float) -> str:
    """A rough span for people."""
    if seconds_ < 60:
        return "less than a minute"
    minutes = round(seconds_ / 60)
    return (
        f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
    )


class Progress:
    """Tells how far a run is with a content type; what has been recorded counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._number = self._of = self._blobs = self._events = 0
        self._began = self._live_due = clock()
        self._logged_due = self._began + LOGGED_SECONDS

    def slice(self, job: Slice, number: int, of: int) -> None:
        """A slice begins; the first of each content type is number 1."""
        if number == 1:
            self._began, self._blobs, self._events = self._clock(), 0, 0
        self._job, self._number, self._of = job, number, of
        self._reached = job.window.start
        self._tell()

    def count(self, changes: Changes) -> None:
        """A batch is recorded."""
        if not self._number:
            return  # no slice, only blobs that waited
        for done in changes.delivered:
            self._blobs += 1
            self._events += done.events
            self._reached = max(self._reached, done.blob.created)
        self._tell()

    def text(self, now: float) -> str:
        """The line: slice, blobs, events, rate, and the time that is left."""
        took = max(now - self._began, 0.001)
        line = (
            f"{self._job.content_type}: slice {self._number} of {self._of}, "
            f"{self._blobs} blobs, {self._events} events, "
            f"{self._events / took:.0f} events/s"
        )
        start, end = self._job.window
        inside = (self._reached - start) / (end - start)
        done = (self._number - 1 + inside) / self._of
        if done > 0.01 and end - start >= LONG_WINDOW:
            left = time_left(took * (1 - done) / done)
            line += f", {left} left for this content type"
        return line

    def _tell(self) -> None:
        now = self._clock()
        if now < self._live_due:
            return
        self._live_due, kind = now + LIVE_SECONDS, "live"
        if now >= self._logged_due:
            self._logged_due, kind = now + LOGGED_SECONDS, "logged"
        log.info("%s", self.text(now), extra={"progress": kind})


def is_kept(record: logging.LogRecord) -> bool:
    """Whether a log keeps the record: live progress is for a terminal alone."""
    return getattr(record, "progress", "") != "live"


class TerminalHandler(logging.StreamHandler[TextIO]):
    """Writes to a terminal; progress goes over itself on one line there.

    A terminal that went away ends no run: logging passes over what emit() raises.
    """

    _columns = 0  # how long the line of progress is that stands there now

    def format(self, record: logging.LogRecord) -> str:
        """The record's text; the line of progress goes away for it."""
        # Blanks in place of an escape sequence: every terminal knows them.
        wipe = "\r" + " " * self._columns + "\r"
        if hasattr(record, "progress"):
            width = os.get_terminal_size(self.stream.fileno()).columns or 80
            text = record.getMessage()[: width - 1]
            self._columns, self.terminator = len(text), ""
        else:
            text = super().format(record)
            self._columns, self.terminator = 0, "\n"
        return wipe + text


# == Run =====================================================================
# A run polls one content type after the other; within one, slice after slice, oldest
# first; within a slice, batch after batch: fetch, send, confirmed, record.

BATCH_ROWS = 5_000
NAMED_MOST = 10


class Source(Protocol):
    """What a run wants of the Activity API."""

    def date(self) -> datetime | None: ...
    def subscriptions(self) -> set[str]: ...
    def start(self, content_type: str) -> str: ...
    def listing(
        self, content_type: str, window: Window, stop: threading.Event
    ) -> Iterator[Blob]: ...
    def fetch(
        self, blob: Blob, room: Room, stop: threading.Event, tries: int
    ) -> Fetched: ...


class Ports(NamedTuple):
    """The edges that a run works with; tests put others in their place."""

    api: Source
    sink: Sink
    state: State
    clock: Callable[[], datetime]
    workers: int


class Tally:
    """What became of one content type in this run."""

    window: Window | None = None
    blobs = events = bytes = pending = lost = 0
    lag_seconds: float | None = None

    def __init__(self, content_type: str, exits: Iterable[Exit] = ()) -> None:
        self.content_type, self.exits = content_type, set(exits)

    def count(self, changes: Changes) -> None:
        """Add what a batch has brought."""
        self.blobs += len(changes.delivered)
        self.events += sum(done.events for done in changes.delivered)
        self.bytes += sum(done.bytes for done in changes.delivered)
        self.lost += len(changes.lost)

    def cover(self, window: Window) -> None:
        """Widen the span that was asked for."""
        now = self.window or window
        self.window = Window(min(now.start, window.start), max(now.end, window.end))

    def __str__(self) -> str:
        lag = "unknown" if self.lag_seconds is None else f"{self.lag_seconds:.0f} s"
        return (
            f"{self.content_type}: window {self.window or 'none'}, {self.blobs} blobs, "
            f"{self.events} events, {self.pending} pending, {self.lost} lost, lag {lag}"
        )


class Batch:
    """Lines on their way, and what to record once they are taken."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.bytes = 0
        self.changes = Changes()

    def add(self, fetched: Fetched) -> None:
        """Take a blob's lines in."""
        self.pieces.extend(fetched.lines)
        self.bytes += fetched.bytes
        done = Delivered(fetched.blob, fetched.events, fetched.bytes)
        self.changes.delivered.append(done)

    def is_full(self) -> bool:
        """Whether it is time to send and record it."""
        rows = len(self.changes.delivered) + len(self.changes.pending)
        return self.bytes >= BATCH_BYTES or rows >= BATCH_ROWS


def fate(failure: Failed, was: Pending | None, now: datetime) -> Pending | Lost:
    """What becomes of a blob that could not be fetched: it waits, or it is lost.

    Lost is what the API says is gone, at once or for a day, and what could not be had
    past its contentExpiration, which this try has shown.
    """
    blob = failure.blob
    since = was.since if was else now
    tries = (was.tries if was else 0) + 1
    gone = failure.verdict is Verdict.GONE or (
        failure.verdict is Verdict.MISSING and now - since >= MISSING_IS_LOST_AFTER
    )
    expired = blob.expires is not None and now >= blob.expires
    if not gone and not expired:
        return Pending(blob, since, tries, failure.reason)
    why = "the API no longer has it" if gone else "its contentExpiration has passed"
    reason = f"{why} ({failure.reason})"
    return Lost(blob.content_type, blob_window(blob), reason, blob.id)


class Run:
    """One run over some content types: collects what happened, and the exit code."""

    def __init__(self, ports: Ports, poll: Poll) -> None:
        self.ports = ports
        self.poll = poll
        self.tallies: dict[str, Tally] = {}
        self.exits: set[Exit] = set()
        self.errors: list[tuple[str, PollerError]] = []  # with its content type or ""
        self.now = whole_second(ports.clock())
        self.oldest = earliest(self.now)  # by the API's clock, where it tells
        self._progress = Progress()

    @property
    def exit(self) -> Exit:
        """The code that the run ends with."""
        found = set(self.exits)
        for tally in self.tallies.values():
            found |= tally.exits
        return worst(found)

    def tally(self, content_type: str) -> Tally:
        """The tally of a content type."""
        return self.tallies.setdefault(content_type, Tally(content_type))

    def note(self, error: PollerError, tally: Tally | None = None) -> None:
        """Say an error, once, and remember its code."""
        (tally.exits if tally else self.exits).add(error.exit)
        self.errors.append((tally.content_type if tally else "", error))
        level = logging.ERROR if error.exit is not Exit.INCOMPLETE else logging.WARNING
        log.log(level, "%s", error)

    # -- the steps of a run

    def poll_all(self, content_types: Sequence[str]) -> None:
        """Poll the overlapping window, then retry what is pending.

        Raises TokenError, SinkError and StateError, which end a run.
        """
        self.ports.state.begin_round()
        for content_type in self.subscribed(content_types):
            tally = self.tally(content_type)
            jobs = self.plan(content_type, tally)
            self.work(jobs, tally, Purpose.POLL)
        for content_type in content_types:
            self.retry_pending(self.tally(content_type))

    def backfill(
        self, content_types: Sequence[str], window: Window, purpose: Purpose
    ) -> None:
        """Deliver a span again, or what the ledger lacks of it; no watermark moves."""
        for content_type in self.subscribed(content_types):
            end = min(window.end, self.now)
            start = max(window.start, earliest(self.now))
            jobs = [
                Slice(content_type, each) for each in self.parts(Window(start, end))
            ]
            tally = self.tally(content_type)
            self.work(jobs, tally, purpose)

    def subscribed(self, content_types: Sequence[str]) -> Iterator[str]:
        """The content types that can be listed, after seeing to their subscriptions.

        The answer also tells the API's clock, and with it what now means.
        """
        enabled: set[str] | None = None
        try:
            enabled = self.ports.api.subscriptions()
        except UnreachedError:
            raise
        except SourceError as error:
            # Content may be had all the same; if it can't, its listing will say so.
            log.warning("%s; going on to the content", error.what)
        except TokenError:
            raise
        except RefusedError as error:
            self.note(error)
            return
        self.agree_on_now()
        for content_type in content_types:
            if enabled is None or content_type.lower() in enabled:
                yield content_type
                continue
            try:
                told = self.ports.api.start(content_type)
                log.info("%s: subscription %s", content_type, told)
            except SourceError as error:
                log.info("%s", error)
            except TokenError:
                raise
            except RefusedError as error:
                self.note(error, self.tally(content_type))
                continue
            yield content_type

    def agree_on_now(self) -> None:
        """Take now from the earlier of this machine's clock and the API's."""
        ours, theirs = self.ports.clock(), self.ports.api.date()
        if theirs and abs(ours - theirs) > CLOCK_IS_ABSURD:
            raise SourceError(
                f"the API's clock says {api_time(theirs)} UTC, this machine's "
                f"{api_time(ours)} UTC",
                "nothing was asked, and nothing in the state has moved",
                "set the clock (NTP), or see who answers in Microsoft's place",
            )
        self.now = whole_second(min(ours, theirs or ours))
        self.oldest = earliest(whole_second(theirs or ours))
        if theirs and abs(ours - theirs) > CLOCKS_AGREE:
            lasting_warning(
                self.ports.state,
                "clocks",
                ours,
                f"this machine's clock is {(ours - theirs).total_seconds():+.0f} s "
                "from the API's; windows go by the earlier of the two, so nothing is "
                "lost; set the clock (NTP)",
            )

    def plan(self, content_type: str, tally: Tally) -> list[Slice]:
        """The slices that a poll asks for: those given up before, then the window."""
        state, now = self.ports.state, self.now
        watermark = state.watermark(content_type)
        if watermark is None:
            watermark = now - self.poll.window
            state.set_watermark(content_type, watermark)
            log.info(
                "%s: first poll, from %s UTC; --start 7d brings what the API still has",
                content_type,
                api_time(watermark),
            )
            start = watermark
        else:
            if watermark > now + CLOCKS_AGREE:
                watermark = self.bring_back(content_type, watermark)
            elif watermark < earliest(now):
                self.lose(content_type, Window(watermark, earliest(now)), tally)
                watermark = earliest(now)
            start = poll_start(watermark, now, self.poll.window, self.poll.overlap)
        # What stays open is asked for by itself, and what came after a listing that
        # broke off apart from it: a spot where each breaks holds nothing else up.
        jobs = list(self.reopen(content_type, tally))
        asked = state.asked_until(content_type) or now
        spans = without(Window(start, now), [job.window for job in jobs])
        parts = [part for span in spans for part in self.parts(span, asked)]
        return jobs + [Slice(content_type, part) for part in parts]

    def parts(self, window: Window, *cuts: datetime) -> Iterator[Window]:
        """The slices of a window; apart from them what only our clock calls listable.

        With a clock that is behind, the API refuses the oldest minutes of a catch-up:
        they may not take 23 hours with them. cuts: more places to cut it at.
        """
        start = window.start
        for cut in sorted((self.oldest, *cuts, window.end)):
            end = min(max(start, cut), window.end)
            yield from slices(Window(start, end))
            start = end

    def bring_back(self, content_type: str, watermark: datetime) -> datetime:
        """Take a watermark ahead of now back to where the clocks agree.

        That is the newest contentCreated that was delivered, a time of Microsoft's own:
        what was polled later was polled by a wrong clock.
        """
        agreed = self.ports.state.newest_created(content_type, self.now)
        back = max(earliest(self.now), whole_second(agreed or earliest(self.now)))
        log.warning(
            "%s: the watermark %s UTC is ahead of now, %s UTC: a clock was wrong; "
            "nothing is lost, for all since %s UTC is polled again; set the clock",
            content_type,
            api_time(watermark),
            api_time(self.now),
            api_time(back),
        )
        self.ports.state.bring_back(content_type, back)
        return back

    def reopen(self, content_type: str, tally: Tally) -> Iterator[Slice]:
        """The slices that earlier runs gave up, cut to what can still be asked."""
        limit = earliest(self.now)
        for job in self.ports.state.given_up(content_type):
            start, end = job.window.start, job.window.end
            if start < limit:
                self.lose(content_type, Window(start, min(end, limit)), tally, job)
                start = limit
            if start < self.oldest < end:
                yield self.ports.state.split(job, Window(start, self.oldest))
                start = self.oldest
            if start < end:
                yield Slice(content_type, Window(start, end), job.id, reopened=True)

    def lose(
        self, content_type: str, window: Window, tally: Tally, job: Slice | None = None
    ) -> None:
        """Record a span that aged out, and say it, once.

        job: the given-up slice that it belonged to, else it was the watermark's.
        """
        lost = self.ports.state.lose_span(content_type, window, self.now, job)
        self.say_lost(lost, tally)
        tally.lost += len(lost)

    def work(self, jobs: Sequence[Slice], tally: Tally, purpose: Purpose) -> None:
        """Deliver slices, oldest first; one that fails stays open, the others go on."""
        given_up: list[Slice] = []  # of this run, ahead
        broken: list[Slice] = []  # of earlier runs, once more
        for number, job in enumerate(jobs, 1):
            tally.cover(job.window)
            self._progress.slice(job, number, len(jobs))
            begun, batch, error = self.deliver(job, tally, purpose)
            ahead = purpose is Purpose.POLL and not job.reopened
            if error is None:
                self.ports.state.finish(
                    begun,
                    batch.changes,
                    self.now,
                    moves_watermark=ahead,
                    before=given_up if ahead else (),
                )
                given_up = [] if ahead else given_up
                self.account(batch.changes, tally)
                continue
            newest = ahead and number == len(jobs)
            begun = self.leave_open(begun, batch.changes, error, tally, purpose, newest)
            if ahead:
                given_up.append(begun)
            elif job.reopened and not isinstance(error, OutageError):
                broken.append(begun)
            if isinstance(error, RefusedError):
                break
        else:
            if len(broken) < len(jobs) and not given_up:
                self.narrow(broken)
        self.measure_lag(tally)

    def leave_open(
        self,
        job: Slice,
        changes: Changes,
        error: PollerError,
        tally: Tally,
        purpose: Purpose,
        newest: bool,  # noqa: FBT001 -- one of many
    ) -> Slice:
        """Record what could be had of a slice that broke, and say why it did.

        Raises the error if it ends the run.
        """
        if purpose is Purpose.POLL:
            job = self.ports.state.give_up(job, changes, self.now, newest=newest)
        else:
            self.ports.state.settle(job.content_type, changes, self.now)
        # In an outage the one sentence about it says more than twenty about blobs.
        named = 0 if isinstance(error, OutageError) else NAMED_MOST
        self.account(changes, tally, named)
        if isinstance(error, TokenError | UnreachedError):
            raise error
        self.note(error, tally)
        return job

    def narrow(self, broken: Sequence[Slice]) -> None:
        """Halve the open slices that broke while others went well.

        What is whole in them comes with the next runs, and in the end the spot where
        each listing breaks stands alone.
        """
        for job in broken[: max(0, OPEN_MOST - len(broken))]:
            half = (job.window.end - job.window.start) // 2
            if half >= OPEN_LEAST:
                middle = whole_second(job.window.start + half)
                self.ports.state.split(job, Window(job.window.start, middle))

    def deliver(
        self, job: Slice, tally: Tally, purpose: Purpose
    ) -> tuple[Slice, Batch, PollerError | None]:
        """Bring a slice's blobs to the sink; gives what is left to be recorded.

        All but the last batch are recorded as they are confirmed.
        """
        known = self.ports.state.known(job.content_type, purpose)
        downloads = self.downloads(TRIES)
        listing = self.ports.api.listing(job.content_type, job.window, downloads.stop)
        blobs = (blob for blob in listing if not known(blob))

        begun = job

        def record(changes: Changes) -> None:
            nonlocal begun
            if purpose is Purpose.POLL:
                begun = self.ports.state.confirm(begun, changes, self.now)
            else:
                self.ports.state.settle(job.content_type, changes, self.now)

        batch, error = self.ship(downloads, blobs, tally, record)
        return begun, batch, error or self.too_soon(job)

    def too_soon(self, job: Slice) -> SourceError | None:
        """The error of a slice that ends ahead of the API's clock: more may come in it.

        Only where the API told no time before: else now was the earlier of the clocks.
        """
        theirs = self.ports.api.date()
        if theirs is None or job.window.end <= theirs + CLOCKS_AGREE:
            return None
        return SourceError(
            f"{job.content_type}: {job.window} ends after {api_time(theirs)} UTC, now "
            "by the API's clock: this machine's is ahead",
            "what was listed is delivered; the span stays open, to be asked again",
            "set the clock (NTP)",
        )

    def retry_pending(self, tally: Tally) -> None:
        """Try each pending blob of a content type once."""
        content_type, state = tally.content_type, self.ports.state
        waits = state.pending_count(content_type) > 0
        if waits and Exit.REFUSED not in tally.exits:
            blobs = (pending.blob for pending in state.pending(content_type))

            def record(changes: Changes) -> None:
                state.settle(content_type, changes, self.now)

            batch, error = self.ship(self.downloads(1), blobs, tally, record)
            record(batch.changes)
            self.account(batch.changes, tally)
            if isinstance(error, TokenError | UnreachedError):
                raise error
            if error:
                self.note(error, tally)
        tally.pending = state.pending_count(content_type)
        if tally.pending:
            tally.exits.add(Exit.INCOMPLETE)
            lasting_warning(  # each was named when it began
                state,
                f"pending {content_type}",
                self.ports.clock(),
                f"{content_type}: {tally.pending} blobs could not be fetched yet; each "
                "run tries them once more until they come or are lost; nothing to do, "
                "unless it repeats for days",
            )

    def downloads(self, tries: int) -> Downloads:
        """A pool of downloads that gives each blob so many tries."""
        fetch = functools.partial(self.ports.api.fetch, tries=tries)
        return Downloads(fetch, self.ports.workers, BUDGET_BYTES)

    def ship(
        self,
        downloads: Downloads,
        blobs: Iterator[Blob],
        tally: Tally,
        record: Callable[[Changes], None],
    ) -> tuple[Batch, PollerError | None]:
        """Fetch blobs and have their lines taken; record batch by batch.

        Gives the last batch, taken but not recorded, and the error that broke the
        fetching off, if one did. Raises SinkError, StateError.
        """
        batch, error, failures = Batch(), None, 0
        try:
            with contextlib.closing(downloads.run(blobs)) as results:
                for result in results:
                    if isinstance(result, Fetched):
                        batch.add(result)
                        failures = 0
                    elif isinstance(result, Failed):
                        self.fail(result, batch)
                        failures += result.outage
                        if failures >= OUTAGE_FAILURES:
                            raise outage(tally.content_type, result)
                    if batch.is_full() or (batch.bytes and downloads.starved()):
                        if batch.pieces:
                            self.ports.sink.deliver(batch.pieces)
                        record(batch.changes)
                        downloads.budget.free(batch.bytes)
                        self.account(batch.changes, tally)
                        batch = Batch()
        except (SourceError, RefusedError) as caught:
            error = caught
        if batch.pieces:
            self.ports.sink.deliver(batch.pieces)
        return batch, error

    def fail(self, failure: Failed, batch: Batch) -> None:
        """Note what becomes of a blob that could not be fetched."""
        was = self.ports.state.waiting(failure.blob)
        if was is None and self.ports.state.has("lost", failure.blob):
            return  # said before; a backfill or --reconcile has tried it once more
        if failure.defect:
            self.exits.add(Exit.UNEXPECTED)
            blob = plain(failure.blob.id, 120)
            log.error(
                "a defect of this program at blob %s; the blob waits and the others go "
                "on; please report it with the traceback in the log file",
                blob,
                exc_info=failure.defect,
            )
        gone = failure.verdict in (Verdict.GONE, Verdict.MISSING)
        if gone and was is None and self.ports.state.has("sent", failure.blob):
            return  # the overlap asked for it once more, and it is gone by now
        what = fate(failure, was, self.now)
        if isinstance(what, Lost):
            batch.changes.lost.append(what)
        else:
            batch.changes.pending.append(what)

    def account(self, changes: Changes, tally: Tally, named: int = NAMED_MOST) -> None:
        """Count what was recorded, and say what a person should know.

        At most so many blobs that wait are named on the console; the state knows all.
        """
        tally.count(changes)
        self._progress.count(changes)
        self.say_lost(changes.lost, tally)
        fresh = [pending for pending in changes.pending if pending.tries == 1]
        for pending in fresh[:named]:
            log.warning(
                "%s: blob %s: %s; it waits and each run tries it again; nothing to do, "
                "unless it repeats for days",
                pending.blob.content_type,
                plain(pending.blob.id, 120),
                pending.reason,
            )
        if len(fresh) > named > 0:
            log.warning(
                "%s: %d more blobs wait in the same way; each run tries them again",
                tally.content_type,
                len(fresh) - named,
            )
        if changes.pending:
            tally.exits.add(Exit.INCOMPLETE)

    def say_lost(self, lost: Sequence[Lost], tally: Tally) -> None:
        """Name what can no longer be had, once."""
        for each in lost:
            tally.exits.add(Exit.GAP)
            log.error(
                "lost: %s; this API cannot give these events any more; an export from "
                "the audit search of Purview may still have them",
                each,
            )

    def measure_lag(self, tally: Tally) -> None:
        """How far confirmed delivery is behind now."""
        watermark = self.ports.state.watermark(tally.content_type)
        if watermark:
            tally.lag_seconds = max(0.0, (self.now - watermark).total_seconds())


def outage(content_type: str, last: Failed) -> OutageError:
    """The error of a slice in which nothing could be fetched any more."""
    return OutageError(
        f"{content_type}: {OUTAGE_FAILURES} blobs failed in a row, the last with "
        f"{last.reason}: the service is ill",
        "the span stays open and the next run asks again",
        "nothing to do, unless it repeats: then look at Microsoft's service health",
    )


def lasting_warning(state: State, key: str, now: datetime, text: str) -> None:
    """Warn of what lasts: on the console once in repeat_hours, in the log always."""
    log.warning("%s", text, extra={"lasting": (state, key, now)})


# == Run events ==============================================================
# One more line about the run itself, for a view of the collection's health.


def span(window: Window) -> dict[str, object]:
    """A window as the line about a run tells it."""
    return {"start": api_time(window.start) + "Z", "end": api_time(window.end) + "Z"}


def run_row(run: Run, content_type: str, ended: datetime) -> dict[str, object]:
    """What became of a content type. Lag is the state's where nothing was polled."""
    tally, state = run.tally(content_type), run.ports.state
    watermark, lag = state.watermark(content_type), tally.lag_seconds
    if lag is None and watermark:
        lag = max(0.0, (ended - watermark).total_seconds())
    counted = ("content_type", "blobs", "events", "bytes", "lost")
    return {
        **{name: getattr(tally, name) for name in counted},
        "pending": state.pending_count(content_type),
        "lag_seconds": lag,
        **({"window": span(tally.window)} if tally.window else {}),
    }


def send_run_event(
    run: Run, content_types: Sequence[str], started: datetime, ended: datetime
) -> None:
    """Send the line about a run, on a connection of its own; a failure is said only."""
    try:
        whole = {
            **span(Window(started, ended)),
            "seconds": round((ended - started).total_seconds(), 3),
            "exit": run.exit,
            "exit_name": run.exit.name,
            "host": socket.gethostname(),
            "version": __version__,
            "content_types": [run_row(run, each, ended) for each in content_types],
        }
        line = json.dumps({"o365_poller": whole}, separators=(",", ":"))
        run.ports.sink.deliver([line.encode() + b"\n"])
    except (PollerError, UnreadableStateError) as error:
        log.info(
            "the line about this run (run_events) was not delivered: %s; no audit "
            "event is concerned; nothing to do for it, the next run sends its own",
            getattr(error, "what", error),
        )


# == Alerts ==================================================================
# Mail by condition: what lasts is told once, again after repeat_hours, and once when it
# is well again; each loss is told once. The state knows what the relay has taken.

MAIL_SECONDS = 30.0
SINK_DOWN_AFTER = timedelta(hours=1)
TAIL_LENGTH = 16 * 1024
LOSSES_NAMED = 50


def dated_formatter() -> logging.Formatter:
    """Lines that are kept: each with its time, in UTC, and its process."""
    formatter = logging.Formatter(
        "%(asctime)sZ %(levelname)-7s [%(process)d] %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    return formatter


class LogTail(logging.Handler):
    """Keeps the newest lines of this run's log, within TAIL_LENGTH, for a mail."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(dated_formatter())
        self.addFilter(is_kept)
        self.addFilter(Redactor())
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line; forget the oldest ones where they are too many."""
        text = self.text + self.format(record) + "\n"
        if len(text) > TAIL_LENGTH:
            text = text[-TAIL_LENGTH:].partition("\n")[2]
            text = "(earlier lines are left out)\n" + text
        self.text = text


def log_tail() -> str:
    """The newest lines of this run's log, where a LogTail listens."""
    return "".join(h.text for h in log.handlers if isinstance(h, LogTail))


def due(
    told: datetime | None, now: datetime, repeat: timedelta, *, lasts: bool
) -> str | None:
    """What a mail on a condition, told of at a time or never, begins its subject with.

    None: no mail is due. A time ahead of now, told by a clock that was wrong, counts as
    long ago.
    """
    if not lasts:
        return "well again: " if told else None
    if told is None:
        return ""
    return None if told <= now < told + repeat else "still: "


class Condition(NamedTuple):
    """Something that a person may have to mend.

    What to say while it lasts, and what if it is well; neither where a run cannot know.
    """

    key: str
    title: str
    trouble: str
    well: str


class Letter(NamedTuple):
    """A mail that is due, and what to note once the relay has taken it."""

    subject: str
    text: str
    said: Iterable[str] = ()
    unsaid: Iterable[str] = ()


def explained(error: PollerError) -> str:
    """An error as three sentences, a line each."""
    return (
        f"What happened:  {error.what}\n"
        f"What it means:  {error.data}\n"
        f"What to do:     {error.fix}"
    )


def polled_types(run: Run) -> list[str]:
    """What this run has listed: it had a token, and the permission.

    A sink that fails proves no less: there were events to send.
    """
    failed = {of for of, error in run.errors if not isinstance(error, SinkError)}
    return [
        content_type
        for content_type, tally in run.tallies.items()
        if tally.window and not failed & {"", content_type}
    ]


def refusals(run: Run) -> Iterator[Condition]:
    """What Entra ID or the API refuse, or no longer do, as far as this run knows."""
    errors = reversed(run.errors)  # so that the first of each remains
    refused = {of: explained(e) for of, e in errors if isinstance(e, RefusedError)}
    well = {of: f"{of} is polled again." for of in polled_types(run)}
    # A permission that is missing for one content type was told by an API that took
    # the token.
    if well or refused:
        well[""] = "A token was had."
    for of in ("", *run.tallies):
        key = f"mail: refused {of}".strip()
        trouble = refused.get(of, "")
        yield Condition(key, "access is refused", trouble, well.get(of, ""))


def certificate_end(expires: datetime, now: datetime) -> str:
    """When a certificate ends or has ended."""
    if expires <= now:
        return f"ended on {expires:%Y-%m-%d}"
    return f"ends on {expires:%Y-%m-%d}, in {(expires - now).days} days"


def certificate_warning(expires: datetime | None, now: datetime, most_days: int) -> str:
    """What to say of a certificate that is about to end or has; "" if neither."""
    if expires is None or expires - now > timedelta(days=most_days):
        return ""
    return (
        f"the application's certificate {certificate_end(expires, now)}; without one "
        "Entra ID gives no token, and what is not fetched within 7 days is lost; "
        "upload a new one to the app registration, then change key and certificate in "
        "[azure]"
    )


def certificate_condition(settings: Settings, run: Run, now: datetime) -> Condition:
    """The certificate's end, or that there is none in sight and a token was had."""
    expires, days = settings.azure.credential.expires, settings.alerts.certificate_days
    end = f"{expires:%Y-%m-%d}" if expires else "no day that is known here"
    told = f"The certificate in use ends on {end}, and Entra ID gave a token for it."
    return Condition(
        "mail: certificate",
        "the certificate is about to end",
        certificate_warning(expires, now, days),
        told if polled_types(run) else "",
    )


def sink_condition(run: Run, state: State, now: datetime) -> Condition:
    """No Logstash for an hour, or events that one has taken. Notes since when."""
    since_key, trouble, well = "mail: no Logstash since", "", ""
    failed = [error for _, error in run.errors if isinstance(error, SinkError)]
    if failed:
        since = state.said(since_key)
        if since is None or since > now:
            state.say(since_key, now)
        elif now - since >= SINK_DOWN_AFTER:
            trouble = explained(failed[0])
            trouble += f"\nSince:          {api_time(since)} UTC"
    elif any(tally.events for tally in run.tallies.values()):
        state.unsay(since_key)
        well = "Events were taken again."
    return Condition("mail: sink", "no Logstash takes the events", trouble, well)


def due_letters(
    conditions: Iterable[Condition], state: State, now: datetime, repeat: timedelta
) -> Iterator[Letter]:
    """The mails due for what lasts or is well again; one for all of the same title."""
    found: dict[str, list[Condition]] = {}
    for each in conditions:
        begins = due(state.said(each.key), now, repeat, lasts=bool(each.trouble))
        if begins is not None and (each.trouble or each.well):
            found.setdefault(begins + each.title, []).append(each)
    for subject, alike in found.items():
        text = "\n\n".join(each.trouble or each.well for each in alike)
        said = [each.key for each in alike if each.trouble]
        unsaid = [each.key for each in alike if not each.trouble]
        yield Letter(subject, text, said, unsaid)


def loss_letter(state: State) -> Iterator[Letter]:
    """The mail for the losses that no mail has told of yet, if there are any."""
    prefix = "mail: lost "
    known, fresh = state.said_keys(prefix), {}
    for lost in state.losses():
        what = f"{lost.content_type} {lost.content_id} {lost.window}"
        key = prefix + fingerprint(what).hex()
        if key not in known:
            fresh[key] = f"  {lost}\n"
    if fresh:
        yield Letter(
            "audit events are lost",
            f"What happened:  the API can no longer give {len(fresh)} spans or blobs; "
            f"the log names them all:\n{''.join([*fresh.values()][:LOSSES_NAMED])}"
            "What it means:  the events of these spans and blobs will not arrive\n"
            "What to do:     the audit search of Purview may have them: export it",
            said=fresh,
        )


def compose(letter: Letter, settings: Settings, run: Run, now: datetime) -> Any:
    """The mail as it goes out, with no known secret in it."""
    from email.message import EmailMessage
    from email.utils import make_msgid

    alerts, tenant_id = settings.alerts, settings.azure.tenant_id
    mail = EmailMessage()
    headers = {
        "Subject": f"o365_poller, tenant {tenant_id}: {letter.subject}",
        "From": alerts.sender,
        "To": ", ".join(alerts.to),
        "Date": now,
        "Message-ID": make_msgid(domain=alerts.sender.rpartition("@")[2]),
        "Auto-Submitted": "auto-generated",
    }
    for name, value in headers.items():
        mail[name] = value
    text = (
        f"{letter.text}\n\n"
        f"Tenant:         {tenant_id}\n"
        f"Host:           {socket.gethostname()}\n"
        f"Configuration:  {settings.file.absolute()}\n"
        f"Exit code:      {int(run.exit)} {run.exit.name}: {run.exit.meaning}\n\n"
        f"The end of this run's log:\n\n{log_tail()}"
    )
    # A lone surrogate, as a file name may hold one, cannot be sent.
    mail.set_content(blacked_out(text).encode("utf-8", "replace").decode())
    return mail


def post(alerts: Alerts, mail: Any = None) -> None:
    """Hand a mail to the relay; without one meet it only: connect, encrypt, sign in.

    Raises what smtplib, sockets and TLS raise.
    """
    import smtplib

    where = (alerts.smtp_host, alerts.smtp_port)
    relay: Any
    if alerts.smtp_security == "tls":
        context = ssl.create_default_context()
        relay = smtplib.SMTP_SSL(*where, timeout=MAIL_SECONDS, context=context)
    else:
        relay = smtplib.SMTP(*where, timeout=MAIL_SECONDS)
    with contextlib.closing(relay):
        if alerts.smtp_security == "starttls":
            relay.starttls(context=ssl.create_default_context())
        relay.ehlo_or_helo_if_needed()
        if alerts.username:
            relay.login(alerts.username, alerts.password.reveal())
        for address, (code, _) in (relay.send_message(mail) if mail else {}).items():
            log.warning(
                "mail: the relay refuses the address %s (%d); the others got it; check "
                "to in [alerts]",
                plain(address),
                code,
            )
        # It has taken the mail; what it says to a good-bye changes nothing.
        with contextlib.suppress(OSError):  # smtplib's own are OSErrors too
            relay.quit()


def mail_reason(error: Exception) -> str:
    """Why a relay did not take a mail. What it says to a password is not repeated."""
    import smtplib

    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"it refuses username or password ({error.smtp_code})"
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = sorted({str(code) for code, _ in error.recipients.values()})
        return f"it refuses every address of to ({', '.join(codes)})"
    if isinstance(error, smtplib.SMTPResponseException):
        said = error.smtp_error
        words = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        return plain(f"it answers {error.smtp_code} {words}")
    if isinstance(error, TimeoutError):
        return f"no answer within {MAIL_SECONDS:g} s"
    return sink_reason(error)


def within(seconds_: float, work: Callable[[], None]) -> None:
    """Do something in a thread, for so long at most; raise what it raises.

    A time-out bounds a silence only, and the name service has none at all.
    """
    result: list[Exception] = []

    def body() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 -- raised in the main thread
            result.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds_)
    if thread.is_alive():
        raise TimeoutError
    if result:
        raise result[0]


def send_alerts(settings: Settings, run: Run) -> None:
    """Send the mails that are due after a run. A dead relay changes nothing."""
    alerts, state, now = settings.alerts, run.ports.state, run.ports.clock()
    if not alerts.smtp_host:
        return
    try:
        conditions = [
            *refusals(run),
            certificate_condition(settings, run, now),
            sink_condition(run, state, now),
        ]
        lasting = list(due_letters(conditions, state, now, alerts.repeat))
        for letter in (*lasting, *loss_letter(state)):
            mail = compose(letter, settings, run, now)
            within(MAIL_SECONDS, functools.partial(post, alerts, mail))
            state.note_said(letter.said, letter.unsaid, now)
            log.info("mail sent: %s", letter.subject)
    except (PollerError, UnreadableStateError) as error:
        log.warning("mail: %s; the next run sends what is due", error)
    except Exception as error:  # noqa: BLE001 -- a mail is never worth a run
        log.warning(
            "mail relay %s:%d: %s; the mail is not sent, the run itself is not "
            "concerned, and the next run tries again; see [alerts] and the relay",
            alerts.smtp_host,
            alerts.smtp_port,
            mail_reason(error),
        )


# == Check ===================================================================
# --check: one line a step. It reads; it starts nothing, sends nothing, writes nothing.

CHECK_TRIES = 2
CHECK_SECONDS = 15.0
LISTED_MOST = 2_000  # enough to see that content flows; a big tenant has many more
LOOKED_BACK = timedelta(days=1)


class Step(NamedTuple):
    """What a step has found; FAIL where a poll would end with another code than 0."""

    name: str
    found: str
    fix: str = ""
    exit: Exit = Exit.OK

    @property
    def mark(self) -> str:
        """The word at the line's beginning."""
        if self.exit is not Exit.OK:
            return "FAIL"
        return "warn" if self.fix else "ok"

    def __str__(self) -> str:
        line = f"{self.mark:<4}  {self.name}: {self.found}"
        return f"{line}; {self.fix}" if self.fix else line


def failed_step(name: str, error: PollerError, subject: str = "") -> Step:
    """The step of an error; what it means for a poll's data is not told here.

    The subject is left out of the error's words where the step names it already.
    """
    return Step(name, error.what.removeprefix(subject), error.fix, error.exit)


class PatientHttp(Http):
    """The calls of a check: fewer tries, for a person waits; and the server's clock."""

    ahead: timedelta | None = None  # how far this machine's clock is ahead of it

    def _note_date(self, url: str, response: BaseHTTPResponse) -> datetime:
        date = super()._note_date(url, response)
        if self.dates:
            self.ahead = datetime.now(UTC) - date
        return date

    def ask(self, call: Call, *args: Any, **named: Any) -> Any:
        """As Http.ask does."""
        fewer = call._replace(tries=min(call.tries, CHECK_TRIES))
        return super().ask(fewer, *args, **named)


class LookingApi(ActivityApi):
    """The activity feed for looking at: it starts no subscription."""

    def start(self, content_type: str) -> str:
        """What a listing asks for where its subscription gives nothing; refused."""
        raise SourceError(
            f"{content_type}: the subscription is enabled, and the API says it is not",
            "nothing is lost, for no span counts as polled until it is listed",
            "wait an hour: Microsoft takes its time after a stop or a first start",
        )


class LookingSink(LogstashSink):
    """A sink for looking at one host; told is what its connection shows."""

    told = "connects"

    def connect(self, host: Host) -> socket.socket:
        """As LogstashSink.connect does."""
        connection = super().connect(host)
        if isinstance(connection, ssl.SSLSocket):
            shown: Mapping[str, Any] = connection.getpeercert() or {}
            end = moment(ssl.cert_time_to_seconds(shown["notAfter"]))
            self.told = f"connects, {connection.version()}, its certificate ends on "
            self.told += f"{end:%Y-%m-%d}"
        return connection


def check_certificate(settings: Settings, now: datetime) -> Step:
    """The key and what belongs to it; that they fit was seen with the configuration."""
    name, expires = "key and certificate", settings.azure.credential.expires
    if expires is None:
        return Step(
            name,
            "with a thumbprint or a client secret alone the end is not known here",
            "name the certificate in [azure] certificate, to be warned before it ends; "
            "in place of a secret, which travels, make a key and a certificate",
        )
    renew = (
        "make a new key and certificate, upload the certificate to the app "
        "registration, then change both in [azure]"
    )
    found = f"the certificate {certificate_end(expires, now)}"
    if expires <= now:
        return Step(name, found, renew, Exit.REFUSED)
    soon = (expires - now).days <= settings.alerts.certificate_days
    return Step(name, f"they belong together; {found}", renew if soon else "")


def check_permissions(token: Secret, content_types: Sequence[str]) -> Iterator[Step]:
    """The permissions (roles) that a token carries, against those that are needed."""
    claims, name = read_claims(token), "permissions"
    if not claims:
        yield Step(
            name,
            "the token cannot be read, so they are not known",
            "see by the listings below whether they suffice",
        )
        return
    told = claims.get("roles")
    roles = [str(role) for role in told] if isinstance(told, list) else []
    # All content types want the first; documented: DLP.All wants both.
    needed = {PERMISSION: content_types}
    needed |= {
        PERMISSIONS[each]: [each] for each in content_types if each in PERMISSIONS
    }
    lacking = [permission for permission in needed if permission not in roles]
    for permission in lacking:
        yield Step(
            name,
            f"{permission} is missing, without which {', '.join(needed[permission])} "
            "cannot be had",
            f"add the application permission {permission} of Office 365 Management "
            "APIs to the app registration and grant admin consent",
            Exit.REFUSED,
        )
    if not lacking:
        listed = plain(", ".join(roles))
        yield Step(name, f"{listed}: enough for {', '.join(content_types)}")


def check_content(
    api: LookingApi, content_types: Sequence[str], now: datetime
) -> Iterator[Step]:
    """Each content type's subscription, and one look at what it has."""
    enabled: set[str] | None = None
    try:
        enabled = api.subscriptions()
    except SourceError as error:
        # As a poll does: content may be had all the same.
        yield Step("subscriptions", error.what, error.fix)
    for content_type in content_types:
        name = f"subscription {content_type}"
        if enabled is not None and content_type.lower() not in enabled:
            yield Step(
                name,
                "not enabled; --check starts none",
                "the first poll starts it; its first content may take 12 hours, and "
                "what happened before may never come; see that auditing is on in the "
                "Purview portal",
            )
            continue
        if enabled is not None:
            yield Step(name, "enabled")
        try:
            yield check_listing(api, content_type, now)
        except TokenError:
            raise
        except PollerError as error:
            yield failed_step(f"listing {content_type}", error, f"{content_type}: ")


def check_listing(api: LookingApi, content_type: str, now: datetime) -> Step:
    """How many blobs the last 24 hours have, and how old the newest is."""
    end, name = whole_second(min(now, api.date() or now)), f"listing {content_type}"
    # The newest part first, so that a big tenant's newest blob is met.
    parts = reversed(list(slices(Window(end - LOOKED_BACK, end))))
    stop = threading.Event()
    blobs = (b for part in parts for b in api.listing(content_type, part, stop))
    times = [blob.created for blob in itertools.islice(blobs, LISTED_MOST)]
    if not times:
        return Step(
            name,
            "no blob in the last 24 hours",
            "none, if little happens in the tenant or the subscription is younger than "
            "12 hours; else see that auditing is on in the Purview portal",
        )
    age = max(0, (end - max(times)) // timedelta(minutes=1))
    more = " or more" if len(times) == LISTED_MOST else ""
    told = f"{len(times)}{more} blobs in the last 24 hours"
    return Step(name, f"{told}, the newest {age} min old")


def check_microsoft(
    azure: Azure, content_types: Sequence[str], http: PatientHttp, now: datetime
) -> Iterator[Step]:
    """Sign-in, permissions, subscriptions, listings, clock; ends where all would."""
    bearer = TokenSource(azure, http, azure.api_root)
    feed = Feed(azure.api_root, azure.tenant_id, azure.publisher_id)
    name = "token"
    try:
        token = bearer.token()
        yield Step(name, f"Entra ID gave one for {azure.api_root}")
        yield from check_permissions(token, content_types)
        name = "subscriptions"
        yield from check_content(LookingApi(feed, http, bearer), content_types, now)
    except PollerError as error:
        yield failed_step(name, error)
        if name == "token":
            yield Step(
                "subscriptions and listings",
                "not looked at, for there is no token",
                "mend the token first",
            )
    if http.ahead is not None:
        wrong = abs(http.ahead) > CLOCKS_AGREE
        found = f"{http.ahead.total_seconds():+.0f} s from Microsoft's"
        yield Step("clock", found, "set this machine's clock (NTP)" if wrong else "")


def check_names(azure: Azure, http: Http) -> Step:
    """Whether Graph tells names; it never fails a poll."""
    name, bearer = "application names", TokenSource(azure, http, azure.graph_root)
    try:
        ask_graph(azure.graph_root, http, bearer, [azure.client_id])
    except AnswerError as error:
        refused = error.judgement.verdict is Verdict.REFUSED
        fix = NAMES_FIX if refused else "nothing to do, unless it repeats"
        return Step(name, f"Graph refuses: {error}", fix)
    except PollerError as error:
        return Step(name, error.what, error.fix)
    return Step(name, "Graph tells them")


def check_logstash(settings: Logstash) -> list[Step]:
    """Each Logstash host, with a batch of nothing; a poll fails where none is left."""
    seconds_ = min(settings.timeout_seconds, CHECK_SECONDS)
    steps = []
    for host in settings.hosts:
        alone = settings._replace(hosts=(host,), timeout_seconds=seconds_)
        sink, name = LookingSink(alone), f"Logstash {host}"
        try:
            sink.deliver([])
        except SinkError as error:
            subject = f"no Logstash took the events: {host} "
            steps.append(failed_step(name, error, subject))
        else:
            steps.append(Step(name, sink.told))
    some = any(step.exit is Exit.OK for step in steps)
    return [step._replace(exit=Exit.OK) if some else step for step in steps]


def is_writable(path: Path) -> bool:
    """Whether a file can be written, or made where there is none."""
    try:
        if path.exists():
            return os.access(path, os.W_OK) and not path.is_dir()
        return os.access(path.parent, os.W_OK) and not path.is_symlink()
    except OSError:  # a name that is too long
        return False


def check_file(name: str, path: Path, *, beside: bool = False) -> Step:
    """Whether a file can be written, or made; and others beside it, if they must."""
    there = os.access(path, os.F_OK)
    if is_writable(path) and (not beside or os.access(path.parent, os.W_OK)):
        return Step(name, f"{path}{'' if there else ': none yet; a poll makes it'}")
    fix = "see that this user may write the file and its folder"
    return Step(name, f"{path} cannot be written", fix, Exit.USAGE)


def check_state(
    path: Path, azure: Azure, content_types: Sequence[str]
) -> Iterator[Step]:
    """The state, read only: how far each content type has got."""
    again = "nothing to do: the next poll polls the last 7 days again"
    try:
        there, step = inode(path), check_file("state", path, beside=True)
        lock = path.with_name(path.name + ".lock")
        if inode(lock) and not is_writable(lock):
            step = check_file("state", lock)
        if step.fix or not there:
            yield step
            return
        if not path.stat().st_size:
            yield Step("state", f"{path} is empty", again)
            return
        with contextlib.closing(State.look(path, azure)) as state:
            for content_type in content_types:
                yield check_progress(state, content_type)
    except UnreadableStateError as error:
        yield Step("state", f"{path} is unreadable ({plain(str(error))})", again)
    except StateError as error:
        if os.access(f"{path}-journal", os.F_OK):
            # To read it would be to write it: SQLite undoes first what is half-written.
            undo = (
                "nothing to do: the next poll undoes what a killed one left "
                "half-written"
            )
            yield Step("state", f"{path} cannot be read just now", undo)
        else:
            yield failed_step("state", error)


def check_progress(state: State, content_type: str) -> Step:
    """How far one content type has got."""
    watermark, name = state.watermark(content_type), f"state {content_type}"
    if watermark is None:
        return Step(name, "not polled yet")
    age = max(0, (datetime.now(UTC) - watermark) // timedelta(minutes=1))
    found = (
        f"last good poll up to {api_time(watermark)} UTC, {age} min ago; "
        f"{state.pending_count(content_type)} blobs pending"
    )
    fix = "see the log for why the polls since then failed, or that cron runs them"
    return Step(name, found, fix if age > 60 else "")


def check_relay(alerts: Alerts) -> Step:
    """The mail relay, up to the password; no mail is sent. It never fails a poll."""
    name = f"mail relay {alerts.smtp_host}:{alerts.smtp_port}"
    try:
        within(MAIL_SECONDS, lambda: post(alerts))
    except Exception as error:  # noqa: BLE001 -- whatever smtplib and TLS raise
        fix = "check [alerts], and that the relay lets this machine in"
        return Step(name, mail_reason(error), fix)
    return Step(name, "answers, and takes what [alerts] says")


def check_steps(
    settings: Settings, content_types: Sequence[str], environ: Mapping[str, str]
) -> Iterator[Step]:
    """All steps, in the order in which things are needed."""
    now = datetime.now(UTC)
    yield Step("configuration", str(settings.file))
    yield check_certificate(settings, now)
    http = make_http(settings, environ, settings.poll.timeout_seconds, PatientHttp)
    yield from check_microsoft(settings.azure, content_types, http, now)
    if settings.graph.application_names:
        yield check_names(settings.azure, http)
    yield from check_logstash(settings.logstash)
    yield from check_state(settings.poll.state_file, settings.azure, content_types)
    if settings.logging.file:
        yield check_file("log", settings.logging.file)
    if settings.alerts.smtp_host:
        yield check_relay(settings.alerts)


# == Report ==================================================================
# The proof of completeness, from the ledger alone: what was polled and delivered, and
# every hole and loss by its name. ASCII, to be kept with the audit's papers.

ROW = "{:<26}  {:<16}  {:>9}  {:>7}  {:>9}  {:>7}  {:>4}  {:>9}"


class Line(NamedTuple):
    """One line of the report: what the ledger knows of a period, or of all of them."""

    period: str
    polled: int  # seconds
    listed: int
    delivered: int
    pending: int
    lost: int
    events: int


class Finding(NamedTuple):
    """What the ledger says of one content type and span."""

    lines: list[Line]
    holes: tuple[Window, ...]
    losses: list[Lost]


class Ledger(State):
    """The state, opened to be read and never written.

    Each question is a walk along a primary key, added up by SQLite: four million rows
    cost time and no memory.
    """

    @classmethod
    # State.open makes a state and so asks for more than a reader has.
    def open(cls, path: Path, azure: Azure) -> Ledger:  # type: ignore[override]
        """Open the state of this tenant, which must exist.

        Not mode=ro: with that SQLite cannot undo the half-written transaction of a
        poll that was killed, and refuses the file. Raises StateError, and
        UnreadableStateError: whoever only reads sets nothing aside.
        """
        with state_errors(path):
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw", BUSY_SECONDS, uri=True
            )
        ledger = cls(path, connection)
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            connection.create_function("fingerprint", 1, fingerprint)
            ledger._rows("PRAGMA query_only = ON")
            if ledger._version() == 0:
                raise UnreadableStateError("it is empty")
            ledger._check_owner(azure)
            undo.pop_all()
        return ledger

    def began(self, content_type: str) -> datetime | None:
        """When we began to answer for a content type; None if it was never polled.

        Old spans are forgotten; what came after them in the ledger counts as well.
        """
        start = self._one(
            "SELECT min(start) FROM (SELECT content_type, start FROM polled "
            "UNION ALL SELECT content_type, start FROM slice "
            "UNION ALL SELECT content_type, time FROM watermark "
            "UNION ALL SELECT content_type, start FROM lost WHERE content_id = '') "
            "WHERE content_type = ?",
            content_type,
        )
        return None if start is None else moment(start)

    def lost(self, content_type: str, window: Window) -> list[Lost]:
        """The spans and blobs of a window that were lost; no blob that came back."""
        rows = self._rows(
            "SELECT max(start, ?2), min(end, ?3), reason, content_id FROM lost "
            "WHERE content_type = ?1 AND start < ?3 AND end > ?2 AND NOT EXISTS "
            "(SELECT 1 FROM delivered WHERE content_type = ?1 AND created BETWEEN "
            "1000 * start AND 1000 * end AND content_id = fingerprint(lost.content_id))"
            " ORDER BY start",
            content_type,
            *map(seconds, window),
        )
        return [
            Lost(content_type, Window(moment(start), moment(end)), reason, id_)
            for start, end, reason, id_ in rows
        ]

    def line(self, content_type: str, name: str, period: Window, lost: int) -> Line:
        """What the ledger knows of a period, of whose blobs so many are lost."""
        polled, pending, delivered, events = self._rows(
            "SELECT (SELECT coalesce(sum(min(end, ?3) - max(start, ?2)), 0) FROM polled"
            " WHERE content_type = ?1 AND start < ?3 AND end > ?2), "
            "(SELECT count(*) FROM pending WHERE content_type = ?1 "
            "AND created >= 1000 * ?2 AND created < 1000 * ?3), "
            "count(*), coalesce(sum(events), 0) FROM delivered WHERE content_type = ?1 "
            "AND created >= 1000 * ?2 AND created < 1000 * ?3",
            content_type,
            *map(seconds, period),
        )[0]
        listed = delivered + pending + lost
        return Line(name, polled, listed, delivered, pending, lost, events)


@contextlib.contextmanager
def opened_ledger(path: Path, azure: Azure) -> Iterator[Ledger]:
    """The ledger in the state of this tenant, which must exist. Raises StateError."""
    try:
        with contextlib.closing(Ledger.open(path, azure)) as ledger:
            yield ledger
    except UnreadableStateError as error:
        raise StateError(
            f"state file {path} is unreadable ({plain(str(error))})",
            "it proves nothing",
            "run a poll: it sets the file aside and polls the last 7 days again",
        ) from None


def periods(window: Window) -> Iterator[tuple[str, Window]]:
    """The hours of a window of a day at most, else its days, by UTC; with names."""
    step, form = 86_400, "%Y-%m-%d"
    if window.end - window.start <= timedelta(days=1):
        step, form = 3_600, "%Y-%m-%d %H:00"
    start, end = map(seconds, window)
    edges = {start, *range(start - start % step + step, end, step), end}
    for first, last in itertools.pairwise(map(moment, sorted(edges))):
        yield first.strftime(form), Window(first, last)


def inspect(
    ledger: Ledger, content_type: str, window: Window, settled: datetime
) -> Finding:
    """What the ledger says of a content type and window.

    settled: up to here a span that was not polled is a hole; what is newer is the
    next poll's.
    """
    polled = ledger.polled(content_type, window)
    lost = ledger.lost(content_type, window)
    blobs = [each for each in lost if each.content_id]
    spans = [each for each in lost if not each.content_id]
    lines = []
    for name, period in periods(window):
        gone = sum(period.start <= blob.window.start < period.end for blob in blobs)
        lines.append(ledger.line(content_type, name, period, gone))
    due = Window(window.start, min(window.end, settled))
    holes = without(due, polled + [span.window for span in spans])
    # What aged out may have been polled after all.
    unpolled = [
        span._replace(window=hole)
        for span in spans
        for hole in without(span.window, polled)
    ]
    return Finding(lines, tuple(holes), unpolled + blobs)


def duration(span: int) -> str:
    """So many seconds as hours, minutes, seconds."""
    return f"{span // 3600}:{span // 60 % 60:02}:{span % 60:02}"


def table(findings: Mapping[str, Finding]) -> Iterator[str]:
    """A headline, and each content type's lines with their sum."""
    yield ROW.format("content type", *Line._fields)
    for content_type, (lines, _, _) in findings.items():
        if not lines:
            continue  # polled for the first time at this very second
        columns = zip(*(line[1:] for line in lines), strict=True)
        for period, polled, *counts in (*lines, Line("all", *map(sum, columns))):
            yield ROW.format(content_type, period, duration(polled), *counts)


def report_lines(
    content_types: Sequence[str], findings: Mapping[str, Finding], window: Window
) -> Iterator[str]:
    """The report's text: the table, what is missing, and the verdict."""
    yield f"content made available in {window}\n"
    if findings:
        yield from table(findings)
        yield ""
    for content_type in content_types:
        if content_type not in findings:
            yield f"{content_type}: nothing polled yet"
            continue
        _, holes, losses = findings[content_type]
        for hole in holes:
            span = duration((hole.end - hole.start) // timedelta(seconds=1))
            until = api_time(hole.start + RETENTION - RETENTION_MARGIN)
            yield (
                f"hole: {content_type}: {hole}, {span}: not polled; the API has it "
                f"until {until} UTC: run --reconcile before"
            )
        for loss in losses:
            yield f"lost: {loss}"
    yield f"verdict: {verdict(findings.values())}"


def verdict(findings: Collection[Finding]) -> str:
    """The report in a sentence."""
    if not findings:
        return "nothing polled yet"
    holes = sum(len(finding.holes) for finding in findings)
    losses = sum(len(finding.losses) for finding in findings)
    pending = sum(line.pending for finding in findings for line in finding.lines)
    waits = "all that was listed is delivered"
    if pending:
        waits = f"{counted(pending, 'blob')} pending, tried again by each poll"
    if not holes and not losses:
        return f"complete: no hole, no loss; {waits}"
    said = f"NOT COMPLETE: {counted(holes, 'hole')}, {counted(losses, 'loss')}"
    return f"{said}; {waits}" if pending else said


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 hole, 2 holes, 2 losses."""
    plural = {"loss": "losses"}.get(noun, f"{noun}s")
    return f"{number} {noun if number == 1 else plural}"


def report(
    settings: Settings,
    content_types: Sequence[str],
    asked: Window | None,
    now: datetime,
) -> Exit:
    """Print the report of a span, or of the last 7 days; GAP if something is missing.

    Raises StateError; SinkError if standard output does not take it.
    """
    now = whole_second(now)
    oldest = earliest(now)
    start, end = asked or (oldest, now)
    window = Window(max(oldest, start), max(oldest, end))
    path, azure = settings.poll.state_file, settings.azure
    findings: dict[str, Finding] = {}
    if inode(path):
        settled = now - settings.poll.window
        with opened_ledger(path, azure) as ledger:
            for content_type in content_types:
                began = ledger.began(content_type)
                if began is None:
                    continue
                # What came before the first poll was never promised.
                start = window.start if asked else max(window.start, began)
                span = Window(min(start, window.end), window.end)
                findings[content_type] = inspect(ledger, content_type, span, settled)
    head = f"tenant {azure.tenant_id}, ledger {path}, at {api_time(now)} UTC"
    lines = "\n".join([head, *report_lines(content_types, findings, window)]) + "\n"
    StdoutSink().deliver([lines.encode("ascii", "backslashreplace")])
    missing = any(found.holes or found.losses for found in findings.values())
    return Exit.GAP if missing else Exit.OK


# == Command line ============================================================


def is_due(repeat: timedelta, record: logging.LogRecord) -> bool:
    """Whether a record goes to the console: a lasting warning only after repeat."""
    lasting = getattr(record, "lasting", None)
    if lasting is None:
        return True
    state, key, now = lasting
    # Where the state cannot tell: rather twice than never.
    with contextlib.suppress(PollerError, UnreadableStateError):
        last = state.said(key)
        if last is not None and last <= now < last + repeat:
            return False
        state.say(key, now, record.getMessage())
    return True


class ConsoleFormatter(logging.Formatter):
    """Lines for people: the name of the program, the level if it matters."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as lines, each with the program's name; no traceback."""
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        text = record.getMessage()
        is_in_file = any(isinstance(each, logging.FileHandler) for each in log.handlers)
        if record.exc_info and not is_in_file:
            text += " (there is none: set file in [logging] and run again)"
        return "\n".join(f"o365_poller: {level}{line}" for line in text.splitlines())


def set_up_console(verbosity: int, *, live: bool) -> logging.Handler:
    """Send the log to stderr: warnings, or more on a terminal and with -v.

    live: a terminal shows the progress on one line that is rewritten.
    """
    logging.raiseExceptions = False  # a full disk under the log is no traceback
    logging.captureWarnings(capture=True)
    logging.lastResort = None  # other libraries are quiet
    log.setLevel(logging.DEBUG)
    log.propagate = False
    on_terminal = sys.stderr.isatty()
    if live and on_terminal:
        console: logging.Handler = TerminalHandler(sys.stderr)
    else:
        console = logging.StreamHandler(sys.stderr)
        console.addFilter(is_kept)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)
    console.setLevel(level[min(max(verbosity, on_terminal), 2)])
    console.setFormatter(ConsoleFormatter())
    console.addFilter(Redactor())
    log.addHandler(console)
    return console


def set_up_log_file(settings: Logging, config: Path) -> None:
    """Send the log to the rotating file as well. Raises ConfigError."""
    if settings.file is None:
        return
    from logging.handlers import RotatingFileHandler

    try:
        handler = RotatingFileHandler(
            settings.file,
            maxBytes=10 * MEGABYTE,
            backupCount=5,
            encoding="utf-8",
            errors="backslashreplace",  # a path of another encoding costs no line
        )
    except OSError as error:
        complaint = (
            f"{config}: [logging] file: expected a file that can be written, got "
            f"{settings.file} ({error.strerror})"
        )
        raise ConfigError([complaint]) from None
    handler.setFormatter(dated_formatter())
    handler.setLevel(settings.level)
    handler.addFilter(is_kept)
    handler.addFilter(Redactor())
    log.addHandler(handler)


# What can be done instead of a poll, with its --help.
MODES = {
    "reconcile": "list again all that the API still has (7 days, or --start and "
    "--end), deliver what the ledger lacks, and end with the report",
    "report": "show, by the ledger alone, what was polled and delivered, and every "
    "hole and loss; of the last 7 days, or of --start and --end",
    "check": "say step by step whether this set-up works, with the remedy where it "
    "does not; changes nothing, sends no event",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    codes = [f"  {code.value:>3}  {code.name:<11} {code.meaning}" for code in Exit]
    parser = argparse.ArgumentParser(
        prog="o365_poller.py",
        description="Bring every Office 365 and Entra ID audit event into the Elastic "
        "stack: one poll of an overlapping window, then exit. Run it every five "
        "minutes by cron or Rundeck.",
        epilog="\n".join(["exit codes:", *codes]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "-c",
        "--config",
        metavar="FILE",
        help="the INI file; default: "
        "$O365_POLLER_CONFIG, else config.ini beside the script",
    )
    add(
        "--start",
        metavar="TIME",
        help="backfill: deliver again the content that "
        "became available from here on; ISO 8601 (naive is UTC) or an age such as 90m, "
        "6h, 2d; at most 7 days back. Microsoft selects by availability, not by the "
        "time of the event: give some hours more",
    )
    add("--end", metavar="TIME", help="backfill: up to here, exclusive; default: now")
    add(
        "--content-type",
        metavar="TYPE",
        action="append",
        default=[],
        help="repeatable; replaces "
        f"the configured list for this run; {', '.join(CONTENT_TYPES)}",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--stdout",
        action="store_true",
        help="JSON lines to standard output in place "
        "of Logstash; a try-out, which reads and writes no state",
    )
    for mode, text in MODES.items():
        modes.add_argument(
            f"--{mode}", dest="mode", action="store_const", const=mode, help=text
        )
    add(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say more on stderr; twice: debug",
    )
    add("--version", action="store_true", help="show the version, and exit")
    return parser


def version_text() -> str:
    """Version, hash of this very file, and what it runs on; imports nothing."""
    from importlib.metadata import distributions

    found = {each.name: each.version for each in distributions()}
    packages = [
        f"{package} {found.get(package, 'missing')}"
        for package in ("msal", "requests", "python-dateutil")
    ]
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    own = f"o365_poller {__version__} (sha256 {digest})"
    return ", ".join([own, f"Python {sys.version.split()[0]}", *packages])


class Order(NamedTuple):
    """What the command line asks for, checked."""

    config: Path
    config_named: bool
    window: Window | None
    content_types: tuple[str, ...]
    stdout: bool
    mode: str | None  # one of MODES

    @property
    def polls(self) -> bool:
        """Whether it is a poll, which takes the lock and moves the watermark."""
        return not (self.window or self.mode)


def read_order(
    arguments: argparse.Namespace, environ: Mapping[str, str], now: datetime
) -> Order:
    """The command line's meaning. Raises ConfigError with every complaint."""
    complaints = [
        f"--content-type: expected one of {', '.join(CONTENT_TYPES)}, "
        f"got {plain(text)!r}{nearest(text, CONTENT_TYPES)}"
        for text in arguments.content_type
        if not spelled(text, CONTENT_TYPES)
    ]
    window = read_times(arguments.start, arguments.end, now, complaints)
    complaints += [
        f"--check: expected without --{flag}"
        for flag in ("start", "end")
        if arguments.mode == "check" and getattr(arguments, flag)
    ]
    if complaints:
        raise ConfigError(complaints)
    named = arguments.config or environ.get("O365_POLLER_CONFIG")
    return Order(
        expanded(named) if named else Path(__file__).resolve().with_name("config.ini"),
        bool(named),
        window,
        tuple(dict.fromkeys(spelled(t, CONTENT_TYPES) for t in arguments.content_type)),
        arguments.stdout,
        arguments.mode,
    )


def read_times(
    start: str | None, end: str | None, now: datetime, complaints: list[str]
) -> Window | None:
    """The window of --start and --end; None without them."""
    if start is None:
        if end is not None:
            complaints.append("--end: expected --start with it")
        return None
    times = []
    for flag, text in (("--start", start), ("--end", "0s" if end is None else end)):
        try:
            times.append(parse_time(text, now))
            if times[-1] <= now:
                continue
            expected = "a time in the past"
        except (ValueError, OverflowError):
            expected = "a time as ISO 8601, or an age such as 90m, 6h, 2d"
        complaints.append(f"{flag}: expected {expected}, got {plain(text)!r}")
    if complaints:
        return None
    window = Window(*times)
    if window.start < whole_second(now - RETENTION):
        complaints.append(
            f"--start: expected at most 7 days back, which is what the API keeps, "
            f"got {plain(start)!r}"
        )
    elif window.start >= window.end:
        complaints.append("--start: expected a time before --end")
    return window


def open_api(settings: Settings) -> tuple[ActivityApi, ApplicationNames | None]:
    """The Activity API of the tenant, and the names of applications if asked for."""
    azure, names = settings.azure, None
    if settings.graph.application_names:
        # Its own way to Microsoft: a Graph that throttles slows no other request down.
        http = make_http(settings, os.environ, GRAPH_TIMEOUT_SECONDS, Http)
        bearer = TokenSource(azure, http, azure.graph_root)
        ask = functools.partial(ask_graph, azure.graph_root, http, bearer)
        cache = settings.graph.cache_file
        names = ApplicationNames(ask, cache, azure.tenant_id)
    http = make_http(settings, os.environ, settings.poll.timeout_seconds, Http)
    bearer = TokenSource(azure, http, azure.api_root)
    feed = Feed(azure.api_root, azure.tenant_id, azure.publisher_id)
    return ActivityApi(feed, http, bearer, names.decorate if names else None), names


def carry_out(order: Order, settings: Settings, *, again: bool = True) -> Exit:
    """Do what is asked for, under the lock where it is a poll.

    again: where the state turns out to be unreadable, with a new one, once.
    """
    now, path, azure = datetime.now(UTC), settings.poll.state_file, settings.azure
    # All that is configured, lest a state that is begun anew forgets some of it.
    every = tuple(dict.fromkeys(order.content_types + settings.poll.content_types))
    wanted = order.content_types or every
    if order.mode == "report":
        return report(settings, wanted, order.window, now)
    if order.stdout:
        return run_with(order, settings, State.nowhere(azure, now), wanted)
    opened = inode(path)
    lock = state_lock(path) if order.polls else contextlib.nullcontext()
    try:
        with lock, contextlib.closing(State.open(path, azure, every, now)) as state:
            return run_with(order, settings, state, wanted)
    except UnreadableStateError as error:
        reason = str(error)
    with state_lock(path):
        if inode(path) == opened:  # else another poll has put it aside by now
            set_aside(path, azure, every, now, reason).close()
    return carry_out(order, settings, again=False) if again else Exit.INCOMPLETE


def run_with(
    order: Order, settings: Settings, state: State, content_types: Sequence[str]
) -> Exit:
    """Run with everything in place; say the totals, whatever happened."""
    clock = functools.partial(datetime.now, UTC)
    started = clock()
    api, names = open_api(settings)
    sink: Sink = StdoutSink() if order.stdout else LogstashSink(settings.logstash)
    run = Run(Ports(api, sink, state, clock, settings.poll.workers), settings.poll)
    gc.freeze()
    gc.enable()
    expires, days = settings.azure.credential.expires, settings.alerts.certificate_days
    if text := certificate_warning(expires, started, days):
        lasting_warning(state, "certificate", started, text)
    try:
        do_run(order, run, content_types)
    except (TokenError, SinkError, StateError, SourceError) as error:
        run.note(error)
    finally:
        for tally in run.tallies.values():
            log.info("%s", tally)
    if names:
        names.finish()
        if names.trouble:
            lasting_warning(state, "names", clock(), names.trouble)
    if not order.stdout:
        if order.polls and settings.logstash.run_events:
            send_run_event(run, content_types, started, clock())
        send_alerts(settings, run)
    shown = Exit.OK
    if order.mode == "reconcile":
        try:
            shown = report(settings, content_types, order.window, run.now)
        except PollerError as error:  # nobody reads it, say
            run.note(error)
    return worst([run.exit, shown])


def do_run(order: Order, run: Run, content_types: Sequence[str]) -> None:
    """Poll, backfill or reconcile."""
    if order.polls:
        run.poll_all(content_types)
        return
    window = order.window or Window(run.now - RETENTION, run.now)
    limit, purpose = earliest(run.now), Purpose.RECONCILE
    if order.mode is None:
        purpose = Purpose.BACKFILL
        if window.start < limit:
            log.info(
                "the backfill begins at %s UTC: the API keeps 7 days, and %d minutes "
                "are left as a margin; this is no gap",
                api_time(limit),
                RETENTION_MARGIN // timedelta(minutes=1),
            )
    run.backfill(content_types, window, purpose)


def check_all(order: Order) -> Exit:
    """Print what each step finds; gives the code that a poll would end with."""
    exits = []
    try:
        settings = read_settings(order.config, os.environ, named=order.config_named)
        wanted = order.content_types or settings.poll.content_types
        for step in check_steps(settings, wanted, os.environ):
            exits.append(step.exit)
            write_line(str(step))
    except ConfigError as error:
        exits.append(error.exit)
        for complaint in error.complaints:
            write_line(f"FAIL  configuration: {complaint}")
    return worst(exits)


def write_line(text: str) -> None:
    """A line to standard output, at once and without secrets."""
    encoding = sys.stdout.encoding or "utf-8"
    line = f"{blacked_out(text)}\n".encode(encoding, "backslashreplace")
    with contextlib.suppress(SinkError):  # nobody reads on
        StdoutSink().deliver([line])


STOP_SECONDS = 8.0


def end_anyway(signals: socket.socket) -> None:
    """End the process some seconds after a signal, should the main thread not.

    It may sit where no signal reaches it: in the resolver, or waiting for SQLite. The
    state is whole at any moment.
    """
    signum = signals.recv(1)
    time.sleep(STOP_SECONDS)
    os._exit(128 + signum[0])


def on_signals(action: Callable[[int, object], None]) -> None:
    """Set what SIGINT and SIGTERM do."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, action)


def ignore(_signum: int, _frame: object) -> None:
    """Not SIG_IGN: Python would complain of a signal that has come and waits."""


def stop(signum: int, _frame: object) -> None:
    """End the run in good order; a second signal would only spoil it."""
    on_signals(ignore)
    raise Stopped(signum)


def stop_on_signals() -> None:
    """Have SIGINT and SIGTERM end the run in good order."""
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)  # noqa: FBT003 -- its only form
    signal.set_wakeup_fd(pythons.detach())
    threading.Thread(target=end_anyway, args=(ours,), daemon=True).start()
    on_signals(stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; every error becomes a sentence and a code here, once."""
    arguments = build_parser().parse_args(argv)
    if arguments.version:
        write_line(version_text())
        return Exit.OK
    os.umask(0o077)
    began = time.monotonic()
    console = set_up_console(arguments.verbose, live=not arguments.stdout)
    try:
        stop_on_signals()
        code = follow(arguments, console)
        on_signals(ignore)
    except (Exception, Stopped) as error:  # noqa: BLE001 -- the one place
        on_signals(ignore)
        code = say_end(error)
    log.info("end: exit %d, %.1f s", code, time.monotonic() - began)
    return code


def follow(arguments: argparse.Namespace, console: logging.Handler) -> Exit:
    """Read the configuration and do what the command line asks for."""
    order = read_order(arguments, os.environ, datetime.now(UTC))
    if order.mode == "check":
        return check_all(order)
    settings = read_settings(
        order.config,
        os.environ,
        named=order.config_named,
        sink_needed=not (order.stdout or order.mode == "report"),
    )
    console.addFilter(functools.partial(is_due, settings.alerts.repeat))
    set_up_log_file(settings.logging, settings.file)
    if settings.alerts.smtp_host:
        log.addHandler(LogTail())
    return carry_out(order, settings)


def say_end(error: BaseException) -> Exit:
    """Turn what ended the run into a sentence and a code: the one place that does."""
    if isinstance(error, PollerError):
        level = logging.INFO if error.exit is Exit.BUSY else logging.ERROR
        log.log(level, "%s", error.what if isinstance(error, ConfigError) else error)
        return error.exit
    if isinstance(error, Stopped):
        log.info("stopped by a signal; what was not confirmed is sent again next time")
        return error.exit
    log.error(
        "a defect of this program; what was not confirmed is sent again by the next "
        "run; please report it with the traceback in the log file",
        exc_info=error,
    )
    return Exit.UNEXPECTED


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Threads that still wait for the network have nothing left to say.
    os._exit(code)
