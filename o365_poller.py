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
import binascii
import codecs
import configparser
import contextlib
import enum
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
import unicodedata
import warnings
import zlib
from collections import deque
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    NamedTuple,
    Protocol,
    TextIO,
    TypeVar,
)
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

if TYPE_CHECKING:
    import requests

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
    """One number for each thing that a person would have to do."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    INCOMPLETE = 3
    REFUSED = 4
    SINK = 5
    GAP = 6
    BUSY = 75
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """What the code says, in a line."""
        return EXIT_MEANINGS[self][0]

    @property
    def who(self) -> str:
        """Who has to act."""
        return EXIT_MEANINGS[self][1]


EXIT_MEANINGS: dict[Exit, tuple[str, str]] = {
    Exit.OK: ("all that was available is delivered, or nothing was new", "nobody"),
    Exit.UNEXPECTED: ("a defect of the program; see the log", "maintainer"),
    Exit.USAGE: ("command line, configuration or state file is wrong", "operator"),
    Exit.INCOMPLETE: (
        "Microsoft did not give all of it; the next run retries",
        "nobody, unless it repeats",
    ),
    Exit.REFUSED: ("no token, a permission missing, or auditing off", "tenant admin"),
    Exit.SINK: ("no Logstash took the events; they are sent again", "Logstash admin"),
    Exit.GAP: ("something can no longer be had; it is named, once", "security team"),
    Exit.BUSY: ("another poll holds the lock", "nobody, unless it repeats"),
    Exit.INTERRUPTED: ("interrupted; stopped cleanly", "nobody"),
    Exit.TERMINATED: ("terminated; stopped cleanly", "nobody"),
}

# Several at once: the first of these is the run's.
EXIT_ORDER = (
    Exit.UNEXPECTED,
    Exit.USAGE,
    Exit.REFUSED,
    Exit.GAP,
    Exit.SINK,
    Exit.INCOMPLETE,
)


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

    def __init__(self, complaints: Sequence[str]) -> None:
        self.complaints = tuple(complaints)
        super().__init__(
            "\n".join(complaints), "nothing was asked or sent", "correct it"
        )


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


def plain(text: str, most: int = 300) -> str:
    """Text from elsewhere made fit for one line of a log: no controls, not long."""
    printable = "".join(
        " " if unicodedata.category(c)[0] in "CZ" else c for c in text[: 4 * most]
    )
    line = " ".join(printable.split())
    return line if len(line) <= most else line[: most - 3] + "..."


# == Settings ================================================================


class Secret:
    """A value that no log, repr or traceback shows; the log's filter knows them all."""

    known: ClassVar[set[str]] = set()

    def __init__(self, value: str) -> None:
        self._value = value
        if len(value) >= 4:  # shorter ones would black out half of every line
            self.known.add(value)

    def reveal(self) -> str:
        """The value itself; every use can be found by this word."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "***"


def blacked_out(text: str) -> str:
    """The text with no known secret in it."""
    for secret in tuple(Secret.known):
        text = text.replace(secret, "***")
    return text


class Redactor(logging.Filter):
    """The last line of defence: no known secret passes a log handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, with the secrets in it blacked out."""
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = blacked_out(record.exc_text)
        record.msg, record.args = blacked_out(record.getMessage()), ()
        return True


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
        return (
            f"[{self.name}]:{self.port}"
            if ":" in self.name
            else (f"{self.name}:{self.port}")
        )


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
KEYS: dict[str, tuple[str, ...]] = {
    "azure": (
        "tenant_id",
        "client_id",
        "private_key",
        "certificate",
        "thumbprint",
        "private_key_passphrase",
        "client_secret",
        "cloud",
        "login_root",
        "api_root",
        "graph_root",
        "ca_bundle",
        "publisher_id",
    ),
    "poll": (
        "content_types",
        "window_minutes",
        "overlap_minutes",
        "state_file",
        "workers",
        "timeout_seconds",
    ),
    "logstash": (
        "hosts",
        "tls",
        "ca_file",
        "cert_file",
        "key_file",
        "timeout_seconds",
        "run_events",
    ),
    "logging": ("file", "level"),
    "graph": ("application_names", "cache_file"),
    "alerts": (
        "smtp_host",
        "smtp_port",
        "smtp_security",
        "username",
        "password",
        "from",
        "to",
        "repeat_hours",
        "certificate_days",
    ),
}
SECRET_KEYS = ("private_key_passphrase", "client_secret", "password")
ENVIRONMENT = "O365_POLLER_"
SMTP_PORTS = {"none": 25, "starttls": 587, "tls": 465}
GUID = re.compile("-".join(f"[0-9A-Fa-f]{{{n}}}" for n in (8, 4, 4, 4, 12)))
HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?")
TRUE_WORDS, FALSE_WORDS = ("yes", "true", "on", "1"), ("no", "false", "off", "0")


def nearest(word: str, known: Iterable[str]) -> str:
    """A remark on the known name that was probably meant, or nothing."""
    from difflib import get_close_matches

    choices = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), choices, n=1)
    return f"; did you mean {choices[found[0]]}?" if found else ""


def read_text(file: Path, complaints: list[str]) -> str | None:
    """The text of a file; None, with a complaint, where it holds none."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        complaints.append(f"{file}: cannot be read: {error.strerror}")
        return None
    except UnicodeDecodeError:
        complaints.append(f"{file}: expected a text file (INI, UTF-8)")
        return None
    if "\0" in text:
        complaints.append(f"{file}: expected a text file (INI, UTF-8), got binary data")
        return None
    return text


def read_ini(file: Path, complaints: list[str]) -> dict[str, dict[str, str]] | None:
    """The file's sections and keys; None, with complaints, if it cannot be read."""
    text = read_text(file, complaints)
    if text is None:
        return None
    lines = text.splitlines()
    strict = True
    while True:
        parser = configparser.RawConfigParser(
            default_section="\0", empty_lines_in_values=False, strict=strict
        )
        try:
            parser.read_string("\n".join(lines))
        except configparser.DuplicateOptionError as twice:
            complaints.append(
                f"{file}: [{twice.section}] {twice.option}: "
                f"expected once, given again in line {twice.lineno}"
            )
            lines[(twice.lineno or 1) - 1] = ""
        except configparser.DuplicateSectionError as twice:
            complaints.append(
                f"{file}: [{twice.section}]: expected once, "
                f"given again in line {twice.lineno}"
            )
            strict = False  # its keys are still to be looked at
        except configparser.MissingSectionHeaderError as missing:
            complaints.append(
                f"{file}: line {missing.lineno}: expected a [section] before any key"
            )
            return None
        except configparser.ParsingError as broken:
            complaints.extend(
                f"{file}: line {number}: expected 'key = value'"
                for number, _ in broken.errors
            )
            return None
        else:
            return {name: dict(parser[name]) for name in parser.sections()}


def expanded(text: str) -> Path:
    """A path with ~ expanded, if it can be."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # a ~user that this machine does not know
        return Path(text)


class Reader:
    """Takes values out of the file and the environment, and collects complaints."""

    def __init__(self, file: Path, environ: Mapping[str, str], *, named: bool) -> None:
        self.file = file
        self.complaints: list[str] = []
        self.values: dict[tuple[str, str], str] = {}
        self.places: dict[tuple[str, str], str] = {}
        if named or file.exists():
            self._take_file()
        self._take_environment(environ)

    def _take_file(self) -> None:
        found = read_ini(self.file, self.complaints)
        if found is None:
            # Nothing can be said of its keys: that they are missing least of all.
            raise ConfigError(self.complaints)
        for section, keys in found.items():
            if section not in KEYS:
                self.complaints.append(
                    f"{self.file}: [{section}]: unknown section; expected one of "
                    f"{', '.join(KEYS)}{nearest(section, KEYS)}"
                )
                continue
            for key, value in keys.items():
                place = f"{self.file}: [{section}] {key}"
                if key not in KEYS[section]:
                    hint = nearest(key, KEYS[section])
                    self.complaints.append(f"{place}: unknown key{hint}")
                elif not value.strip():
                    self.complaints.append(
                        f"{place}: expected a value, got none; "
                        "leave the line out for the default"
                    )
                else:
                    self.values[section, key] = value.strip()
                    self.places[section, key] = place

    def _take_environment(self, environ: Mapping[str, str]) -> None:
        for name in sorted(environ):
            section, _, key = name.removeprefix(ENVIRONMENT).lower().partition("_")
            if not name.startswith(ENVIRONMENT) or section not in KEYS:
                continue
            value = environ[name].strip()
            if not value:
                continue
            if key not in KEYS[section]:
                names = [f"{ENVIRONMENT}{section}_{k}".upper() for k in KEYS[section]]
                self.complaints.append(
                    f"environment: {name}: unknown key{nearest(name, names)}"
                )
                continue
            self.values[section, key] = value
            self.places[section, key] = f"environment: {name}: [{section}] {key}"

    def complain(self, section: str, key: str, expected: str, hint: str = "") -> None:
        """Note that a key's value is not what was expected; secrets stay unshown."""
        place = self.places.get((section, key), f"{self.file}: [{section}] {key}")
        value = self.values.get((section, key))
        got = "" if value is None or key in SECRET_KEYS else f", got {plain(value)!r}"
        self.complaints.append(f"{place}: expected {expected}{got}{hint}")

    def text(self, section: str, key: str, default: str = "") -> str:
        """The value as it stands, or the default."""
        value = self.values.get((section, key), default)
        if "\n" in value and key not in ("hosts", "content_types", "to"):
            self.complain(section, key, "one line")
            return default
        return value

    def required(self, section: str, key: str, expected: str) -> str:
        """A value that must be there."""
        if (section, key) not in self.values:
            self.complain(section, key, f"{expected}; it is missing")
        return self.text(section, key)

    def number(
        self, section: str, key: str, default: float, least: float, most: float
    ) -> float:
        """A number within bounds, both included."""
        text = self.text(section, key, str(default))
        try:
            value = float(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            self.complain(section, key, f"a number from {least:g} to {most:g}")
            return default
        return value

    def integer(
        self, section: str, key: str, default: int, least: int, most: int
    ) -> int:
        """A whole number within bounds, both included."""
        text = self.text(section, key, str(default))
        value = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else least - 1
        if not least <= value <= most:
            self.complain(section, key, f"a whole number from {least} to {most}")
            return default
        return value

    def boolean(self, section: str, key: str) -> bool:
        """Yes or no; no if not given."""
        word = self.text(section, key, "no").lower()
        if word not in TRUE_WORDS + FALSE_WORDS:
            self.complain(section, key, "yes or no")
        return word in TRUE_WORDS

    def choice(self, section: str, key: str, default: str, known: Iterable[str]) -> str:
        """One of the known words, in any case."""
        words = {word.lower(): word for word in known}
        text = self.text(section, key, default)
        if text.lower() not in words:
            hint = nearest(text, words.values())
            self.complain(section, key, f"one of {', '.join(words.values())}", hint)
            return default
        return words[text.lower()]

    def guid(self, section: str, key: str, default: str | None = None) -> str:
        """A GUID in lower case; required without a default."""
        expected = "a GUID such as 11111111-2222-3333-4444-555555555555"
        if default is None:
            text = self.required(section, key, expected)
        else:
            text = self.text(section, key, default)
        if text and text != default and not GUID.fullmatch(text):
            self.complain(section, key, expected)
        return text.lower()

    def items(self, section: str, key: str, default: str = "") -> list[str]:
        """The parts of a list, by comma or line."""
        text = self.text(section, key, default)
        return [part.strip() for part in re.split(r"[,\n]", text) if part.strip()]

    def path(self, section: str, key: str) -> Path | None:
        """A path, relative to the configuration file's folder; None if not given."""
        text = self.text(section, key)
        return self.resolve(text) if text else None

    def resolve(self, text: str) -> Path:
        """Where a path of the configuration points to."""
        return self.file.absolute().parent / expanded(text)

    def readable(self, section: str, key: str) -> bytes | None:
        """The bytes of the file that a key names; None, with a complaint if not."""
        path = self.path(section, key)
        if path is None:
            return None
        try:
            return path.read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self.complain(section, key, f"a readable file ({path}: {reason})")
            return None

    def writable(self, section: str, key: str, path: Path) -> Path:
        """A path at which a file can be made; the folder must be there."""
        try:
            if path.is_dir():
                self.complain(section, key, f"a file, and {path} is a folder")
            elif not path.parent.is_dir():
                self.complain(section, key, f"a file in a folder that exists ({path})")
        except OSError as error:
            expected = f"a file that this user may write ({path}: {error.strerror})"
            self.complain(section, key, expected)
        return path

    def root(self, key: str, default: str) -> str:
        """An https address without a tenant, query or trailing slash."""
        text = self.text("azure", key, default).rstrip("/")
        try:
            parts = urlsplit(text)
            port_is_good = parts.port is None or parts.port > 0
        except ValueError:
            parts, port_is_good = urlsplit(""), False
        good = (
            port_is_good
            and parts.scheme == "https"
            and HOST_NAME.fullmatch(parts.hostname or "")
            and re.fullmatch(r"https://[!-~]+", text)
            and not set("@?#\\") & set(text)
            and not GUID.search(parts.path)
        )
        if not good:
            self.complain("azure", key, "an https:// address without a tenant in it")
        return text


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
        return base64.urlsafe_b64decode(
            digits.rstrip("=").replace("+", "-").replace("/", "_") + "="
        ).hex()
    return ""


def read_private_key(reader: Reader) -> Any:
    """The RSA key of [azure] private_key, or None with a complaint."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = reader.readable("azure", "private_key")
    if pem is None:
        return None
    passphrase = reader.text("azure", "private_key_passphrase")
    try:
        # Its own check of the numbers takes 30 ms at each start; signs_for() does too,
        # by use.
        key = load_pem_private_key(
            pem, passphrase.encode() or None, unsafe_skip_rsa_key_validation=True
        )
    except TypeError:  # by cryptography's documentation: given or missing wrongly
        fit = (
            "none, for the key is not encrypted"
            if passphrase
            else ("the passphrase of the encrypted key; it is missing")
        )
        reader.complain("azure", "private_key_passphrase", fit)
        return None
    except Exception as error:  # noqa: BLE001 -- any parse error of the library
        if passphrase and b"ENCRYPTED" in pem:
            expected = "the passphrase that opens the private key"
            reader.complain("azure", "private_key_passphrase", expected)
        else:
            reason = type(error).__name__
            expected = f"a private key in PEM form ({reason})"
            reader.complain("azure", "private_key", expected)
        return None
    if not isinstance(key, RSAPrivateKey):
        reader.complain("azure", "private_key", "an RSA key, as Entra ID takes")
        return None
    return key


def read_certificate(reader: Reader) -> Any:
    """The certificate of [azure] certificate, or None, with a complaint if bad."""
    from cryptography import x509

    pem = reader.readable("azure", "certificate")
    if pem is None:
        return None
    try:
        return x509.load_pem_x509_certificate(pem)
    except Exception as error:  # noqa: BLE001 -- any parse error of the library
        reason = type(error).__name__
        expected = f"a certificate in PEM form ({reason})"
        reader.complain("azure", "certificate", expected)
        return None


def read_credential(reader: Reader) -> Credential:
    """The key with its certificate or thumbprint, or the secret; checked locally.

    A key that does not fit its certificate is refused by Entra ID alone
    (AADSTS700027), with nothing said of the reason: so it is compared here.
    """
    given = [
        key
        for key in ("private_key", "certificate", "thumbprint")
        if ("azure", key) in reader.values
    ]
    secret = reader.text("azure", "client_secret")
    if secret:
        if not reader.places["azure", "client_secret"].startswith("environment"):
            reader.complain(
                "azure",
                "client_secret",
                "it in the environment alone, never in the file",
            )
        if given:
            reader.complain(
                "azure", "client_secret", f"no {' and no '.join(given)} beside it"
            )
        return Credential(None, "", "", Secret(secret))
    if "private_key" not in given:
        reader.complain("azure", "private_key", "the path of a PEM file; it is missing")
    if not {"certificate", "thumbprint"} & set(given):
        reader.complain(
            "azure",
            "certificate",
            "the path of a PEM file, or a thumbprint; both are missing",
        )
    return read_key_pair(reader)


def read_key_pair(reader: Reader) -> Credential:
    """The key and its certificate or thumbprint, checked against each other."""
    from cryptography.hazmat.primitives import hashes, serialization

    key, certificate = read_private_key(reader), read_certificate(reader)
    typed = reader.text("azure", "thumbprint")
    thumbprint = read_thumbprint(typed)
    if typed and not thumbprint:
        reader.complain(
            "azure",
            "thumbprint",
            "a SHA-1 thumbprint: 40 hex digits, or 28 characters of base64",
        )
    if certificate is not None and thumbprint:
        actual = certificate.fingerprint(hashes.SHA1()).hex()  # noqa: S303 -- a name
        if actual != thumbprint:
            reader.complain("azure", "thumbprint", f"the certificate's own, {actual}")
    if None not in (key, certificate) and not signs_for(key, certificate.public_key()):
        reader.complain(
            "azure", "certificate", "the certificate that belongs to the private key"
        )
    if certificate is None:
        return Credential(key, "", thumbprint, Secret(""))
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    expires = certificate.not_valid_after_utc
    return Credential(key, pem, thumbprint, Secret(""), expires)


def signs_for(key: Any, public_key: Any) -> bool:
    """Whether a key's signature is good by a certificate's public key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        text = b"o365_poller"
        signature = key.sign(text, PKCS1v15(), SHA256())
        public_key.verify(signature, text, PKCS1v15(), SHA256())
    except (InvalidSignature, ValueError, TypeError, AttributeError):
        return False
    return True


# -- the sections ---------------------------------------------------------------


def read_pem(reader: Reader, section: str, key: str) -> Path | None:
    """The path of a PEM file with certificates to trust; None if not given."""
    if reader.readable(section, key) is None:
        return None
    path = reader.path(section, key)
    try:
        ssl.create_default_context(cafile=str(path))
    except (ssl.SSLError, OSError):
        reader.complain(section, key, "certificates in PEM form")
    return path


def read_azure(reader: Reader) -> Azure:
    """[azure], checked."""
    tenant_id = reader.guid("azure", "tenant_id")
    cloud = CLOUDS[reader.choice("azure", "cloud", "worldwide", CLOUDS)]
    return Azure(
        tenant_id=tenant_id,
        client_id=reader.guid("azure", "client_id"),
        credential=read_credential(reader),
        login_root=reader.root("login_root", cloud.login_root),
        api_root=reader.root("api_root", cloud.api_root),
        graph_root=reader.root("graph_root", cloud.graph_root),
        ca_bundle=read_pem(reader, "azure", "ca_bundle"),
        publisher_id=reader.guid("azure", "publisher_id", tenant_id),
    )


def content_type(text: str) -> str:
    """A content type in Microsoft's spelling, from any case; "" if unknown."""
    return {known.lower(): known for known in CONTENT_TYPES}.get(text.lower(), "")


def read_poll(reader: Reader) -> Poll:
    """[poll], checked."""
    wanted = reader.items("poll", "content_types", CONTENT_TYPES[0])
    for text in wanted:
        if not content_type(text):
            hint = nearest(text, CONTENT_TYPES)
            reader.complain(
                "poll", "content_types", f"some of {', '.join(CONTENT_TYPES)}", hint
            )
    if not wanted:
        reader.complain("poll", "content_types", "at least one content type")
    state_file = reader.path("poll", "state_file") or reader.file.with_suffix(".db")
    minutes = 24 * 60 - 1
    return Poll(
        content_types=tuple(dict.fromkeys(content_type(text) for text in wanted)),
        window=timedelta(
            minutes=reader.integer("poll", "window_minutes", 10, 1, minutes)
        ),
        overlap=timedelta(
            minutes=reader.integer("poll", "overlap_minutes", 5, 0, minutes)
        ),
        state_file=reader.writable("poll", "state_file", state_file.absolute()),
        workers=reader.integer("poll", "workers", 8, 1, 64),
        timeout_seconds=reader.number("poll", "timeout_seconds", 60, 0.1, 3600),
    )


def read_host(text: str) -> Host | None:
    """A host and port from `host:port` or `[::1]:port`; None if it is neither."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]]+)):([0-9]{1,5})", text)
    if not match or not 1 <= int(match[3]) <= 65535:
        return None
    if match[1]:
        try:
            socket.inet_pton(socket.AF_INET6, match[1].partition("%")[0])
        except OSError:
            return None
    elif not HOST_NAME.fullmatch(match[2]):
        return None
    return Host(match[1] or match[2], int(match[3]))


def read_logstash(reader: Reader, *, needed: bool) -> Logstash:
    """[logstash], checked; without --stdout a host is needed."""
    expected = "host:port, such as logstash.example.net:5514 or [::1]:5514"
    if needed:
        reader.required("logstash", "hosts", expected)
    hosts = [read_host(text) for text in reader.items("logstash", "hosts")]
    if None in hosts:
        reader.complain("logstash", "hosts", expected)
    tls = reader.boolean("logstash", "tls")
    settings = Logstash(
        hosts=tuple(host for host in hosts if host),
        tls=tls,
        ca_file=read_pem(reader, "logstash", "ca_file"),
        cert_file=reader.path("logstash", "cert_file"),
        key_file=reader.path("logstash", "key_file"),
        timeout_seconds=reader.number("logstash", "timeout_seconds", 120, 0.1, 86400),
        run_events=reader.boolean("logstash", "run_events"),
    )
    certificate = reader.readable("logstash", "cert_file")
    key = reader.readable("logstash", "key_file")
    if settings.key_file and not settings.cert_file:
        reader.complain("logstash", "cert_file", "the key's certificate; it is missing")
    elif certificate is not None and (key is not None or not settings.key_file):
        try:
            load_client_certificate(ssl.create_default_context(), settings)
        except (ssl.SSLError, OSError, ValueError):
            reader.complain(
                "logstash",
                "cert_file",
                "a PEM certificate and its key, which is not encrypted",
            )
    return settings


def load_client_certificate(context: ssl.SSLContext, settings: Logstash) -> None:
    """Give a TLS context the client certificate of [logstash], if there is one."""
    if settings.cert_file:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(settings.cert_file, settings.key_file, lambda: b"")


def read_alerts(reader: Reader) -> Alerts:
    """[alerts], checked."""
    host = reader.text("alerts", "smtp_host")
    security = reader.choice("alerts", "smtp_security", "none", SMTP_PORTS)
    if host and not HOST_NAME.fullmatch(host):
        reader.complain("alerts", "smtp_host", "a host name, without port")
    username = reader.text("alerts", "username")
    password = reader.text("alerts", "password")
    if bool(username) != bool(password):
        lacking = "password" if username else "username"
        reader.complain("alerts", lacking, "user name and password together")
    if password and security == "none":
        reader.complain(
            "alerts",
            "smtp_security",
            "starttls or tls, so that the password travels encrypted",
        )
    addresses = {key: reader.items("alerts", key) for key in ("from", "to")}
    for key, found in addresses.items():
        if host and not found:
            reader.complain("alerts", key, "a mail address; it is missing")
        if any(not re.fullmatch(r"[^@\s<>]+@[^@\s<>]+", each) for each in found):
            reader.complain("alerts", key, "a mail address such as soc@example.net")
    if len(addresses["from"]) > 1:
        reader.complain("alerts", "from", "one mail address")
    return Alerts(
        smtp_host=host,
        smtp_port=reader.integer("alerts", "smtp_port", SMTP_PORTS[security], 1, 65535),
        smtp_security=security,
        username=username,
        password=Secret(password),
        sender="".join(addresses["from"]),
        to=tuple(addresses["to"]),
        repeat=timedelta(hours=reader.number("alerts", "repeat_hours", 24, 0.01, 8760)),
        certificate_days=reader.integer("alerts", "certificate_days", 30, 0, 3650),
    )


def read_settings(
    file: Path, environ: Mapping[str, str], *, named: bool, sink_needed: bool = True
) -> Settings:
    """The configuration from the file and the environment.

    Raises ConfigError with every complaint at once. A named file must exist; the
    default one need not.
    """
    reader = Reader(file, environ, named=named)
    log_file = reader.path("logging", "file")
    if log_file:
        reader.writable("logging", "file", log_file)
    cache = reader.path("graph", "cache_file") or file.with_suffix(".names.json")
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    settings = Settings(
        file=file,
        azure=read_azure(reader),
        poll=read_poll(reader),
        logstash=read_logstash(reader, needed=sink_needed),
        logging=Logging(log_file, reader.choice("logging", "level", "INFO", levels)),
        graph=Graph(
            reader.boolean("graph", "application_names"),
            reader.writable("graph", "cache_file", cache.absolute()),
        ),
        alerts=read_alerts(reader),
    )
    if reader.complaints:
        raise ConfigError(reader.complaints)
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
    for span in sorted(polled, key=lambda span: span.start):
        if span.start > start:
            holes.append(Window(start, min(span.start, window.end)))
        start = max(start, span.end)
        if start >= window.end:
            break
    if start < window.end:
        holes.append(Window(start, window.end))
    return [hole for hole in holes if hole.start < hole.end]


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
    "AF10001": Verdict.FORBIDDEN,
    "AF20001": Verdict.REFUSED,
    "AF20002": Verdict.REFUSED,
    "AF20010": Verdict.REFUSED,
    "AF20011": Verdict.REFUSED,
    "AF20012": Verdict.REFUSED,
    "AF20013": Verdict.REFUSED,
    "AF20020": Verdict.REFUSED,
    "AF20022": Verdict.NO_SUBSCRIPTION,
    "AF20023": Verdict.NO_SUBSCRIPTION,
    "AF20024": Verdict.SUBSCRIBED,
    "AF20030": Verdict.BAD_WINDOW,
    "AF20031": Verdict.BAD_PAGE,
    "AF20050": Verdict.MISSING,
    "AF20051": Verdict.GONE,
    "AF20052": Verdict.MISSING,
    "AF20055": Verdict.BAD_WINDOW,
    "AF429": Verdict.THROTTLED,
    "AF50000": Verdict.RETRY,
    # Observed: the cool-down of subscriptions/start, as 403 or 429.
    "429": Verdict.COOLING_DOWN,
}
# JSON can escape half a character ("\\ud83d"), which no encoding takes.
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
AF_CODE = re.compile(rb"\bAF\d{3,6}\b")
# Observed: a tenant without auditing gets no AF code but a stack trace.
AUDITING_OFF = re.compile(rb"DataServiceException|StartSubscription \[")


def read_error(body: bytes) -> tuple[str, str]:
    """The code and message of an error body: JSON, half JSON, HTML or nothing.

    The body is cut first: an error never needs more than its beginning.
    """
    head = body[:4096]
    found = AF_CODE.search(head[:1024])
    code = found[0].decode() if found else ""
    try:
        told = json.loads(body[:65536].decode("utf-8-sig"))
        error = told.get("error", told)
        if isinstance(error, Mapping):
            own = str(error.get("code", ""))
            message = str(error.get("message", error.get("Message", "")))
            return (own if own in VERDICTS else code or own), plain(message)
    except (ValueError, AttributeError, RecursionError):
        pass  # not JSON: what can be read of it is below
    text = re.sub(r"<[^>]*>", " ", head.decode("utf-8", "replace"))
    return code, plain(text, 120)


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """The Retry-After header in seconds, from seconds or a date; None if absent."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, (as_utc(parsedate_to_datetime(text)) - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def judge(answer: Answer, now: datetime) -> Judgement:
    """What an answer asks of us. The code decides where one is known, else the status.

    Never the message: Microsoft's wording changes.
    """
    status = answer.status
    if 200 <= status < 300:
        return Judgement(Verdict.OK, f"HTTP {status}")
    if 300 <= status < 400:
        reason = f"HTTP {status}, a redirect, which is never followed"
        return Judgement(Verdict.FAILED, reason)
    code, message = read_error(answer.body)
    said = " ".join(filter(None, (f"HTTP {status}", plain(code, 60), message)))
    pause = retry_after(answer.headers, now)
    if code.startswith("AF5"):
        return Judgement(Verdict.RETRY, said, pause)
    if code in VERDICTS:
        return Judgement(VERDICTS[code], said, pause)
    if AUDITING_OFF.search(answer.body[:4096]):
        return Judgement(Verdict.NO_AUDITING, said)
    return Judgement(judge_status(status, code), said, pause)


def judge_status(status: int, code: str) -> Verdict:
    """The verdict on an answer without a code that we know."""
    if status == 401:
        return Verdict.UNAUTHORIZED
    if status == 404:
        return Verdict.MISSING
    if status == 429:
        return Verdict.THROTTLED
    if status == 408 or status >= 500:
        return Verdict.RETRY
    if status == 403 and code:
        return Verdict.REFUSED
    return Verdict.FAILED


def parse_listing(
    body: bytes, content_type: str, listed: datetime
) -> tuple[list[Blob], int]:
    """The blobs of a listing, as the API names them, and how many entries are none.

    A blob without a readable contentCreated counts as made when it was listed. Raises
    BrokenAnswerError if it is no array.
    """
    try:
        entries = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise BrokenAnswerError("the listing is not JSON") from None
    if not isinstance(entries, list):
        raise BrokenAnswerError("the listing is not an array")
    blobs: list[Blob] = []
    for entry in entries:
        content_id = entry.get("contentId") if isinstance(entry, Mapping) else None
        if not isinstance(content_id, str) or not content_id:
            continue
        if HALF_CHARACTER.search(content_id):  # fits into no URL and no state
            continue
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
    try:
        entries = json.loads(body.decode("utf-8-sig"))
        return {
            str(entry["contentType"]).lower()
            for entry in entries
            if str(entry.get("status", "enabled")).lower() != "disabled"
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BrokenAnswerError("the list of subscriptions is not JSON") from None


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
        own = self._own(blob.uri)
        if own and "/activity/feed/audit/" in own.lower():
            return self._published(own)
        content_id = quote(blob.id, safe="$!*'(),:@")
        return self._published(f"{self.base}/audit/{content_id}")

    def next_page(self, uri: str) -> str:
        """The URL of the next page, used as given; "" if it is not of our feed.

        Observed: any letter case in the names, /api/v1/ for /api/v1.0/, and no
        PublisherIdentifier.
        """
        own = self._own(uri)
        return self._published(own) if own else ""

    def _own(self, uri: str) -> str:
        """The URI, on our own root, if it names our root and tenant; else "".

        The root is put there anew: whatever a parser may think of the given one,
        the token goes to the configured host.
        """
        if not re.fullmatch(r"[!-~]+", uri) or "\\" in uri or "#" in uri:
            return ""
        try:
            given, ours = urlsplit(uri), urlsplit(self.api_root)
            ports = (given.port or 443, ours.port or 443)
        except ValueError:
            return ""
        same = (
            given.scheme == "https"
            and "@" not in given.netloc
            and given.hostname == ours.hostname
            and ports[0] == ports[1]
            and given.path.lower().startswith(ours.path.lower() + "/api/")
            and ".." not in given.path
        )
        tenants = [found[0].lower() for found in GUID.finditer(given.path)]
        if not same or not tenants or tenants[0] != self.tenant_id:
            return ""
        query = f"?{given.query}" if given.query else ""
        return f"{ours.scheme}://{ours.netloc}{given.path}{query}"

    def _published(self, url: str) -> str:
        names = {
            name.lower()
            for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)
        }
        if "publisheridentifier" in names:
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
                end = self._event(text, position, found, last=last)
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

    def _event(self, text: str, start: int, found: list[str], *, last: bool) -> int:
        """The end of the event at start, its text added to found; -1 if it is cut."""
        try:
            event, end = DECODER.raw_decode(text, start)
        except ValueError as error:
            if last:
                raise BrokenAnswerError(f"the blob's JSON is broken: {error}") from None
            return -1
        except RecursionError:  # nested deeper than the decoder goes
            event, end = {}, end_by_brackets(text, start)
            if end < 0:
                return -1
        piece = text[start:end]
        found.append(self._decorate(event, piece) if self._decorate else piece)
        return end


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


@dataclass
class Changes:
    """What one transaction writes about one content type."""

    delivered: list[Delivered] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)


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
            "see that the disk has room and that this user may write the file and "
            "its folder",
        ) from None


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
        try:
            fresh = not path.exists()
            if fresh:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            path.chmod(0o600)
            # A state cut down to nothing was more than a first run.
            replaces = replaces or (not fresh and path.stat().st_size == 0)
        except OSError as error:
            raise StateError(
                f"state file {path}: {error.strerror}",
                "nothing was asked or sent",
                "see that this user may write the file and its folder",
            ) from None
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
        version = self._version()
        with self._transaction():
            if version == 0:
                for statement in SCHEMA.split(";\n"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                self._put("tenant_id", azure.tenant_id)
                self._put("api_root", azure.api_root)
                for content_type in again:
                    # Later than earliest: what passes until it is asked is no gap.
                    self._set_watermark(content_type, earliest(now) + RETENTION_MARGIN)
            self._put("opened", str(seconds(now)))
        self._check_owner(azure)

    def _check_owner(self, azure: Azure) -> None:
        for key in ("tenant_id", "api_root"):
            theirs, ours = self._get(key), getattr(azure, key)
            if theirs != ours:
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

    def give_up(self, job: Slice, changes: Changes, now: datetime) -> Slice:
        """Record what could be had of a slice that stays open."""
        if job.id or changes.delivered:
            return self.confirm(job, changes, now)
        self.settle(job.content_type, changes, now)
        return job

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
            self._connection.execute(
                "UPDATE slice SET start = ? WHERE id = ?",
                (seconds(early.end), slice_.id),
            )
            part = Slice(slice_.content_type, early, reopened=True)
            return self._begin(part, given_up=True)

    def lose_span(
        self,
        content_type: str,
        window: Window,
        now: datetime,
        *,
        watermark: bool,
        job: Slice | None = None,
    ) -> list[Lost]:
        """Record that a span aged out; what of it was polled after all is not lost.

        Its own transaction, whatever becomes of the run: it is said once. What asked
        for the span, the watermark or a given-up slice, begins behind it from now on.
        """
        reason = "content of more than 7 days ago can no longer be had"
        lost = [
            Lost(content_type, hole, reason)
            for hole in without(
                window,
                self.polled(content_type, window) + self._lost_spans(content_type),
            )
        ]
        with self._transaction():
            self._record(content_type, Changes(lost=lost), now, 0)
            if watermark:
                self._set_watermark(content_type, window.end)
            if job:
                self._clip(job, window.end)
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
        rows = self._rows(
            "SELECT start, end FROM polled "
            "WHERE content_type = ? AND start < ? AND end > ? ORDER BY start",
            content_type,
            seconds(window.end),
            seconds(window.start),
        )
        return [Window(moment(start), moment(end)) for start, end in rows]

    def _lost_spans(self, content_type: str) -> list[Window]:
        rows = self._rows(
            "SELECT start, end FROM lost WHERE content_type = ? AND content_id = ''",
            content_type,
        )
        return [Window(moment(start), moment(end)) for start, end in rows]

    def is_lost(self, blob: Blob) -> bool:
        """Whether a blob is in the ledger as lost."""
        window = blob_window(blob)
        return bool(
            self._rows(
                "SELECT 1 FROM lost WHERE content_type = ? AND start = ? AND end = ? "
                "AND content_id = ?",
                blob.content_type,
                seconds(window.start),
                seconds(window.end),
                blob.id,
            )
        )

    def settle(self, content_type: str, changes: Changes, now: datetime) -> None:
        """Record what became of blobs outside any slice: pending ones, a backfill's."""
        with self._transaction():
            self._record(content_type, changes, now, 0)

    def pending(self, content_type: str) -> list[Pending]:
        """The blobs that wait to be fetched: first those that were tried least.

        An outage may end a round of retries; in the next each has its turn.
        """
        rows = self._rows(
            "SELECT content_id, uri, created, expires, since, tries, reason "
            "FROM pending WHERE content_type = ? ORDER BY tries, created",
            content_type,
        )
        return [
            Pending(
                Blob(
                    content_type,
                    id_,
                    uri,
                    moment(created / 1000),
                    None if expires is None else moment(expires / 1000),
                ),
                moment(since),
                tries,
                reason,
            )
            for id_, uri, created, expires, since, tries, reason in rows
        ]

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
        delivered = (
            "SELECT 1 FROM delivered WHERE content_type = :type "
            "AND created = :created AND content_id = :hash"
        )
        asked: list[str] = []
        if purpose is Purpose.RECONCILE:
            asked = [delivered]
        elif purpose is Purpose.POLL:
            asked = [
                f"{delivered} AND slice IN (SELECT id FROM slice)",
                "SELECT 1 FROM pending WHERE content_type = :type AND content_id = :id",
                (
                    "SELECT 1 FROM lost WHERE content_type = :type AND start = :start "
                    "AND end = :start + 1 AND content_id = :id"
                ),
            ]
            # Most polls have none of these: then nothing is asked for each blob.
            tables = ("slice", "pending", "lost")
            asked = [
                query
                for query, table in zip(asked, tables, strict=True)
                if self._one(
                    f"SELECT 1 FROM {table} WHERE content_type = ? LIMIT 1",
                    content_type,
                )
            ]

        def is_known(blob: Blob) -> bool:
            values = lookup_values(content_type, blob)
            with self._lock, state_errors(self.path):
                return any(
                    self._connection.execute(query, values).fetchone()
                    for query in asked
                )

        return is_known

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


def lookup_values(content_type: str, blob: Blob) -> dict[str, object]:
    """What the questions of State.known are asked with."""
    return {
        "type": content_type,
        "created": milliseconds(blob.created),
        "hash": fingerprint(blob.id),
        "id": blob.id,
        "start": seconds(blob.created),
    }


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
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"lock file {file}: {error.strerror}",
            "nothing was asked or sent",
            "see that this user may write the file and its folder",
        ) from None
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
        with contextlib.suppress(FileNotFoundError):
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


class Taken(NamedTuple, Generic[T]):
    """What was made of a good answer."""

    value: T


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


def make_adapter(
    context: ssl.SSLContext, connections: int
) -> requests.adapters.HTTPAdapter:
    """A requests adapter that trusts what the context trusts, and nothing else.

    As it comes, requests reads the CA file again for each connection, and the
    environment for each request; here both were read once.
    """
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **named: Any) -> None:
            super().init_poolmanager(*args, ssl_context=context, **named)

        def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
            return super().proxy_manager_for(proxy, ssl_context=context, **named)

        def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
            """The context verifies; verify=False cannot switch it off."""
            del conn, url, verify, cert

    return Adapter(pool_maxsize=connections)


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
    takes_any: bool = False  # hand over every final answer, not the good ones alone
    retried: frozenset[Verdict] = frozenset({Verdict.RETRY, Verdict.THROTTLED})


class AnswerError(Exception):
    """An answer that says no: final, and the caller knows what it means here."""

    def __init__(self, judgement: Judgement) -> None:
        super().__init__(judgement.reason)
        self.judgement = judgement


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
    if type(cause).__name__ in ("LocationParseError", "InvalidProxyURL", "InvalidURL"):
        # Its words quote the address, and with it the password.
        return "an address cannot be read; if it is HTTPS_PROXY, escape / # @ in it"
    words = [str(arg) for arg in cause.args if isinstance(arg, str)]
    text = re.sub(r"<[^>]*>:? ?", "", words[-1] if words else "")
    text = re.sub(r"HTTPS?Connection\(host='([^']*)', port=(\d+)\)", r"\1:\2", text)
    return plain(text or type(cause).__name__)


def read_pieces(response: requests.Response) -> Iterator[bytes]:
    """A body as it came over the wire, in pieces; one piece where that is small."""
    length = response.headers.get("Content-Length", "")
    if re.fullmatch(r"[0-9]{1,9}", length) and int(length) <= CHUNK:
        yield response.raw.read(decode_content=False)
        return
    while piece := response.raw.read(CHUNK // 8, decode_content=False):
        yield piece


def read_answer(response: requests.Response, most: int = LISTING_BYTES) -> Answer:
    """An answer, whole and unpacked. Raises BrokenAnswerError if it has no end."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    body = bytearray()
    for chunk in unpacked(
        read_pieces(response), headers.get("content-encoding", "").lower()
    ):
        body += chunk
        if len(body) > most:
            raise BrokenAnswerError(f"an answer of more than {most >> 20} MB")
    return Answer(response.status_code, headers, bytes(body))


def with_body(response: requests.Response, answer: Answer) -> requests.Response:
    """The response with its body read already."""
    response._content = answer.body  # noqa: SLF001 -- requests has no public way
    return response


class Http:
    """Calls to Microsoft's hosts under one policy; safe for many threads."""

    def __init__(
        self,
        adapter: requests.adapters.HTTPAdapter,
        timeout_seconds: float,
        proxies: Callable[[str], Mapping[str, str]],
    ) -> None:
        import http.client

        import requests
        from urllib3.exceptions import HTTPError

        self._adapter = adapter
        self._timeout = timeout_seconds
        self._find_proxies = proxies
        self._proxies: dict[str, dict[str, str]] = {}
        self._throttle = Throttle()
        self._request = requests.PreparedRequest
        self._headers = requests.structures.CaseInsensitiveDict[str]
        self._faults = (
            requests.RequestException,
            HTTPError,
            http.client.HTTPException,
            OSError,
        )
        self.dates: dict[str, datetime] = {}  # by host: the newest Date header

    def ask(
        self,
        call: Call,
        take: Callable[[requests.Response], T],
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
            judgement = self._try(call, take, token)
            if not isinstance(judgement, Judgement):
                return judgement.value
            if judgement.verdict is Verdict.UNAUTHORIZED and bearer and token:
                if renewed:
                    raise AnswerError(judgement)
                bearer.renew(token)
                renewed = True
                continue
            if judgement.verdict not in call.retried:
                raise AnswerError(judgement)
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
        self, call: Call, take: Callable[[requests.Response], T], token: Secret | None
    ) -> Judgement | Taken[T]:
        """One try: what take made of the answer, or the verdict on it."""
        response = None
        ANSWER_CLOCK.deadline = time.monotonic() + ANSWER_TIMEOUTS * self._timeout
        try:
            response = self._send(call, token)
            if 200 <= response.status_code < 300:
                return Taken(take(response))
            answer = read_answer(response, MEGABYTE)
            judgement = judge(answer, self._note_date(call.url, response))
            if call.takes_any and judgement.verdict not in (
                Verdict.RETRY,
                Verdict.THROTTLED,
            ):
                return Taken(take(with_body(response, answer)))
            return judgement
        except BrokenAnswerError as error:
            return Judgement(Verdict.RETRY, str(error))
        except self._faults as error:
            reason = clean_reason(error)
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                return Judgement(
                    Verdict.UNTRUSTED, f"certificate not trusted: {reason}"
                )
            return Judgement(Verdict.RETRY, reason)
        finally:
            ANSWER_CLOCK.deadline = float("inf")
            if response is not None and not response.raw.isclosed():
                response.close()

    def _send(self, call: Call, token: Secret | None) -> requests.Response:
        """Send a request; redirects are never followed, netrc is never read."""
        request = self._request()
        request.method, request.url, request.body = call.method, call.url, call.body
        request.headers = self._headers(call.headers)
        request.headers["User-Agent"] = f"o365_poller/{__version__}"
        request.headers["Accept-Encoding"] = "gzip"
        if call.method == "POST":  # IIS answers 411 to a POST without a length
            request.headers["Content-Length"] = str(len(call.body or ""))
        if token:
            request.headers["Authorization"] = f"Bearer {token.reveal()}"
        response = self._adapter.send(
            request,
            stream=True,
            timeout=self._timeout,
            proxies=self._proxies_for(call.url),
        )
        self._note_date(call.url, response)
        return response

    def _proxies_for(self, url: str) -> dict[str, str]:
        host = urlsplit(url).netloc
        if host not in self._proxies:
            self._proxies[host] = dict(self._find_proxies(url))
        return self._proxies[host]

    def _note_date(self, url: str, response: requests.Response) -> datetime:
        """Remember the server's clock; gives it, or ours where it told none."""
        try:
            date = as_utc(parsedate_to_datetime(response.headers.get("Date", "")))
        except (ValueError, TypeError, IndexError, OverflowError):
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
    from requests.utils import get_environ_proxies

    context = tls_context(ca_bundle(settings.azure, environ))
    adapter = make_adapter(context, settings.poll.workers + 2)
    return kind(
        adapter, timeout_seconds, lambda url: get_environ_proxies(url, no_proxy=None)
    )


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


class TokenAnswer(NamedTuple):
    """What Entra ID answered, as far as a person needs it."""

    status: int
    codes: tuple[int, ...]
    message: str
    trace: str

    @classmethod
    def read(cls, status: int, told: object) -> TokenAnswer:
        """From an OAuth error body; anything else gives an empty message."""
        body = told if isinstance(told, Mapping) else {}
        message = plain(str(body.get("error_description", body.get("error", ""))), 400)
        codes = body.get("error_codes", ())
        numbers = (
            [int(c) for c in codes if str(c).isdigit()]
            if isinstance(codes, list)
            else []
        )
        numbers += [int(c) for c in re.findall(r"AADSTS(\d{3,9})", message)]
        trace = plain(str(body.get("trace_id", "")), 60)
        return cls(status, tuple(dict.fromkeys(numbers)), message, trace)


NO_SIGN_IN_FIX = (
    "nothing to do, unless it repeats: then look at the network, the proxy "
    "(HTTPS_PROXY), ca_bundle, login_root and Microsoft's service health"
)


def token_error(answer: TokenAnswer) -> PollerError:
    """The error of a run that got no token: refused, or not reached."""
    data = "nothing was asked; the watermark stays, so nothing is lost for 7 days"
    passing = bool(AADSTS_PASSING & set(answer.codes)) or answer.status in (408, 429)
    if passing or answer.status >= 500 or not (answer.codes or answer.status == 401):
        said = answer.message or f"HTTP {answer.status}, not an answer of Entra ID"
        return UnreachedError(f"no access token: {said}", data, NO_SIGN_IN_FIX)
    known = [AADSTS[code] for code in answer.codes if code in AADSTS]
    meaning, fix = (
        known[0]
        if known
        else (
            "Entra ID refused the sign-in",
            "look the code up at https://login.microsoftonline.com/error",
        )
    )
    return TokenError(f"no access token: {meaning}: {answer.message}", data, fix)


class MsalHttp:
    """The HTTP client that msal is handed: ours, so that every rule of ours holds.

    msal's own has no time-out, takes the environment's CA bundle over the configured
    one, and lets a netrc entry in. Answers that may pass are retried here, before msal
    sees one: it would replay it from its cache for some seconds without asking.
    """

    def __init__(self, http: Http, azure: Azure) -> None:
        self._http = http
        self._azure = azure
        self._root = urlsplit(azure.login_root)
        self.last: Answer | None = None

    def get(self, url: str, **named: Any) -> requests.Response:
        """GET, as msal asks for it."""
        bare = f"{self._root.scheme}://{self._root.netloc}/"
        if self._root.path and not url.startswith(self._azure.login_root + "/"):
            # msal's authority has room for a host and a tenant, not for a path.
            url = url.replace(bare, self._azure.login_root + "/", 1)
        return self._exchange("GET", url, named)

    def post(self, url: str, **named: Any) -> requests.Response:
        """POST, as msal asks for it: the assertion goes to the configured host only."""
        return self._exchange("POST", url, named)

    def close(self) -> None:
        """Nothing to do: the connections are the poller's."""

    def _exchange(
        self, method: str, url: str, named: Mapping[str, Any]
    ) -> requests.Response:
        if urlsplit(url)[:2] != self._root[:2]:
            raise TokenError(
                f"no access token: {self._azure.login_root} sends sign-ins to another "
                f"host ({plain(urlsplit(url).netloc, 80)})",
                "nothing was sent there",
                "check login_root and cloud in [azure]",
            )
        if named.get("params"):
            url += ("&" if "?" in url else "?") + urlencode(named["params"])
        data = named.get("data")
        body = urlencode(data) if isinstance(data, Mapping) else data
        headers = {**(named.get("headers") or {})}
        if body:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        call = Call(method, url, "sign-in", headers, body, takes_any=True)
        try:
            return self._http.ask(call, self._take)
        except AnswerError as error:  # all others are handed over as they are
            raise untrusted("sign-in", error.judgement) from None

    def _take(self, response: requests.Response) -> requests.Response:
        if 200 <= response.status_code < 300:
            with_body(response, read_answer(response, MEGABYTE))
        headers = {name.lower(): value for name, value in response.headers.items()}
        self.last = Answer(response.status_code, headers, response.content)
        if 200 <= response.status_code < 300:
            try:
                json.loads(self.last.body)
            except (ValueError, RecursionError):
                raise BrokenAnswerError("the sign-in answer is not JSON") from None
        return response


class TokenSource:
    """Access tokens for one resource, by client credentials; safe for many threads."""

    def __init__(self, azure: Azure, http: Http, resource: str) -> None:
        self._azure = azure
        self._msal_http = MsalHttp(http, azure)
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
        """Get a token into place; every way that msal fails ends in one of our errors.

        Documented by trial (msal 1.39): ValueError for a 4xx at discovery and for
        non-JSON, MsalServiceError for a 5xx, TypeError and more for keys.
        """
        try:
            if self._app is None:
                self._msal_http.last = None
                self._app = self._make_app()
                self._msal_http.last = None  # that was the discovery's answer
            # Else the last answer stays: msal replays a 400 without asking again.
            told = self._app.acquire_token_for_client(scopes=[self._scope])
        except SourceError as error:
            data = (
                "nothing was asked; the watermark stays, so nothing is lost for 7 days"
            )
            what = f"no access token: {error.what}"
            raise UnreachedError(what, data, error.fix) from None
        except PollerError:
            raise
        except Exception as error:  # noqa: BLE001 -- msal raises what its parts raise
            raise self._explain(error) from None
        value = told.get("access_token") if isinstance(told, dict) else None
        if not isinstance(value, str) or not value:
            last = self._msal_http.last
            raise token_error(TokenAnswer.read(last.status if last else 401, told))
        life = float(told.get("expires_in") or 0)
        self._token = Secret(value)
        # Renewed five minutes early, or halfway where it lives no longer than that.
        self._good_until = time.monotonic() + max(life - 300, life / 2)

    def _explain(self, error: Exception) -> PollerError:
        last = self._msal_http.last
        if last is None:
            return UnusableCredentialError(
                f"no access token: msal cannot use what it is given "
                f"({type(error).__name__})",
                "nothing was asked",
                "check key, certificate and thumbprint in [azure]",
            )
        try:
            told = json.loads(last.body)
        except (ValueError, RecursionError):
            told = None
        return token_error(TokenAnswer.read(last.status, told))

    def _make_app(self) -> Any:
        import msal

        azure, credential = self._azure, self._azure.credential
        given: object
        # msal documents PEM text for private_key; it hands the key on as it is, and
        # PyJWT takes the object without parsing it again.
        if credential.client_secret:
            given = credential.client_secret.reveal()
        elif credential.thumbprint:
            given = {
                "private_key": credential.private_key,
                "thumbprint": credential.thumbprint,
            }
        else:
            given = {
                "private_key": credential.private_key,
                "public_certificate": credential.certificate,
            }
        root = urlsplit(azure.login_root)
        return msal.ConfidentialClientApplication(
            azure.client_id,
            authority=f"https://{root.netloc}/{azure.tenant_id}",
            client_credential=given,
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
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError, RecursionError, binascii.Error):
        return {}
    return claims if isinstance(claims, dict) else {}


# == Application names =======================================================
# ApplicationDisplayName beside ApplicationId, for those who asked for it. Best effort:
# no event ever waits for a name. Names come from memory; Graph is asked on the side,
# while the run goes on, and what it says is kept on disk for the next one.

NAME_FIELD = "ApplicationDisplayName"
# Documented (Graph's page on $filter): an `in` takes 15 values at most.
GRAPH_BATCH = 15
GRAPH_ASKED_MOST = 3_000  # a run; the next one goes on with the rest
GRAPH_TIMEOUT_SECONDS = 5.0
GRAPH_GATHER_SECONDS = 0.2  # how long an id waits for others to share its request
GRAPH_LAST_SECONDS = 4.0  # what the end of a run waits for an answer, at most
GRAPH_QUIET_SECONDS = 900.0
NAME_SECONDS, NO_NAME_SECONDS = 30 * 86400.0, 86400.0
NAME_MOST = 256
NAME_CACHE_BYTES = 32 * MEGABYTE

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


class KnownName(NamedTuple):
    """What Graph said of an application: its name, "" for none, and when (Unix)."""

    name: str
    asked: float

    def is_fresh(self, now: float) -> bool:
        """Whether it need not be asked again."""
        kept = NAME_SECONDS if self.name else NO_NAME_SECONDS
        return 0 <= now - self.asked < kept


@dataclass
class NameCache:
    """The names that are known, and until when Graph is better left alone (Unix)."""

    names: dict[str, KnownName] = field(default_factory=dict)
    quiet_until: float = 0.0

    @classmethod
    def parse(cls, data: bytes, tenant_id: str) -> NameCache:
        """The cache file's content. Raises ValueError if it is damaged or not ours."""
        try:
            told = json.loads(data)
            names = {
                str(app_id): KnownName(str(row["name"]), float(row["asked"]))
                for app_id, row in told["applications"].items()
            }
            owner, quiet_until = told["tenant_id"], float(told["quiet_until"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError("it is damaged") from None
        if owner != tenant_id:
            raise ValueError("it belongs to another tenant")
        return cls(names, quiet_until)

    def text(self, tenant_id: str, now: float) -> str:
        """The cache file's content; names that nobody met for long are left out."""
        applications = {
            app_id: {"name": known.name, "asked": known.asked}
            for app_id, known in sorted(self.names.items())
            if now - known.asked < 2 * NAME_SECONDS
        }
        whole = {
            "tenant_id": tenant_id,
            "quiet_until": self.quiet_until,
            "applications": applications,
        }
        return json.dumps(whole, indent=1) + "\n"


def load_names(file: Path, tenant_id: str) -> NameCache:
    """The cache on disk; an empty one where there is none or it is of no use."""
    try:
        with file.open("rb") as source:
            data = source.read(NAME_CACHE_BYTES)
        return NameCache.parse(data, tenant_id)
    except FileNotFoundError:
        return NameCache()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        log.info(
            "cache of application names %s is not used: %s; events lack the names "
            "until Graph tells them again; nothing to do, the file is written anew",
            file,
            reason,
        )
        return NameCache()


def replace_file(file: Path, text: str) -> None:
    """Write a file whole or not at all, for this user's eyes only. Raises OSError."""
    fresh = file.with_name(f"{file.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    try:
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(descriptor, "w", encoding="ascii") as target:  # noqa: PTH123 -- an fd
            target.write(text)
            target.flush()
            os.fsync(target.fileno())
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def with_member(text: str, name: str, value: str) -> str:
    """A JSON object's text with one more member at its end; the rest as it stood."""
    return f"{text[:-1]},{json.dumps(name)}:{json.dumps(value)}{text[-1]}"


class Directory:
    """The applications of a tenant, as Graph knows them."""

    def __init__(self, graph_root: str, http: Http, bearer: Bearer) -> None:
        self._base = f"{graph_root}/v1.0/servicePrincipals"
        self._http = http
        self._bearer = bearer
        self._takes_batches = True

    def names(self, app_ids: Sequence[str]) -> dict[str, str]:
        """The name of each application, "" where the tenant has none of that id.

        At most GRAPH_BATCH ids, in lower case. Raises AnswerError, PollerError.
        """
        if self._takes_batches:
            try:
                return self._by_filter(app_ids)
            except AnswerError as error:
                if error.judgement.verdict not in (Verdict.FAILED, Verdict.MISSING):
                    raise
                log.debug("Graph takes no batches (%s); asked one by one", error)
                self._takes_batches = False
        return {app_id: self._by_key(app_id) for app_id in app_ids}

    def _by_filter(self, app_ids: Sequence[str]) -> dict[str, str]:
        listed = ",".join(f"'{app_id}'" for app_id in app_ids)
        query = urlencode(
            {"$filter": f"appId in ({listed})", "$select": "appId,displayName"},
            safe="$,'()",
            quote_via=quote,
        )
        told = self._get(f"{self._base}?{query}")
        rows = told.get("value")
        if not isinstance(rows, list):
            raise BrokenAnswerError("Graph's answer has no list")
        found = dict(filter(None, map(application, rows)))
        # What another page would name is not unknown, only not told yet.
        absent = {} if "@odata.nextLink" in told else dict.fromkeys(app_ids, "")
        return {**absent, **{key: found[key] for key in app_ids if key in found}}

    def _by_key(self, app_id: str) -> str:
        url = f"{self._base}(appId='{app_id}')?$select=appId,displayName"
        try:
            return dict([application(self._get(url)) or (app_id, "")]).get(app_id, "")
        except AnswerError as error:
            if error.judgement.verdict is Verdict.MISSING:
                return ""
            raise

    def _get(self, url: str) -> Mapping[str, Any]:
        # Not retried: the next run asks again, and an event does not wait for it.
        call = Call("GET", url, "names of applications", retried=frozenset())

        def take(response: requests.Response) -> Mapping[str, Any]:
            try:
                told = json.loads(read_answer(response).body.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                raise BrokenAnswerError("Graph's answer is not JSON") from None
            if not isinstance(told, Mapping):
                raise BrokenAnswerError("Graph's answer is not an object")
            return told

        return self._http.ask(call, take, self._bearer)


def application(row: object) -> tuple[str, str] | None:
    """The id, in lower case, and the name that a row of Graph's holds."""
    if not isinstance(row, Mapping):
        return None
    app_id, name = row.get("appId"), row.get("displayName")
    if not isinstance(app_id, str) or not isinstance(name, str):
        return None
    return app_id.lower(), name[:NAME_MOST]


class ApplicationNames:
    """Adds the name of the application to events; safe for many threads.

    trouble is what a person would have to mend, once the run is over.
    """

    def __init__(self, directory: Directory, file: Path, tenant_id: str) -> None:
        self._directory = directory
        self._file = file
        self._tenant_id = tenant_id
        self._now = time.time()
        self._cache = load_names(file, tenant_id)
        quiet = self._cache.quiet_until - self._now
        self._off = 0 < quiet <= 2 * GRAPH_QUIET_SECONDS
        self._changed = False
        self._wanted: set[str] = set()
        self._waiting: list[str] = []
        self._wake = threading.Condition()
        self._ending = False
        self._thread: threading.Thread | None = None
        self.trouble = ""

    def decorate(self, event: Mapping[str, Any], text: str) -> str:
        """The event's text, with the application's name if that is known by now."""
        app_id = event.get("ApplicationId")
        if not isinstance(app_id, str) or not app_id or NAME_FIELD in event:
            return text
        name = self._name(app_id.lower())
        return with_member(text, NAME_FIELD, name) if name else text

    def _name(self, app_id: str) -> str:
        if well_known := WELL_KNOWN_APPLICATIONS.get(app_id):
            return well_known
        known = self._cache.names.get(app_id)
        if known is None or not known.is_fresh(self._now):
            self._want(app_id)
        return known.name if known else ""  # an old name is better than none

    def _want(self, app_id: str) -> None:
        if self._off or app_id in self._wanted or not GUID.fullmatch(app_id):
            return
        with self._wake:
            if app_id in self._wanted or len(self._wanted) >= GRAPH_ASKED_MOST:
                return
            self._wanted.add(app_id)
            self._waiting.append(app_id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
            self._wake.notify()

    def _work(self) -> None:
        """Ask Graph for what is wanted, until the run ends or Graph will not."""
        try:
            while batch := self._next_batch():
                for app_id, name in self._directory.names(batch).items():
                    self._cache.names[app_id] = KnownName(name, self._now)
                    self._changed = True
        except Exception as error:  # noqa: BLE001 -- a name is never worth a run
            self._give_up(error)

    def _next_batch(self) -> list[str]:
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._ending)
            if len(self._waiting) < GRAPH_BATCH and not self._ending:
                self._wake.wait(GRAPH_GATHER_SECONDS)
            batch = self._waiting[:GRAPH_BATCH]
            del self._waiting[:GRAPH_BATCH]
            return batch

    def _give_up(self, error: Exception) -> None:
        """Ask no more in this run; say why."""
        self._off = True
        judgement = error.judgement if isinstance(error, AnswerError) else None
        if judgement and judgement.verdict is Verdict.REFUSED:
            self.trouble = (
                f"Graph refuses the names of applications ({judgement.reason}); events "
                f"come without {NAME_FIELD}, but for Microsoft's own and those known "
                "before; add the application permission Application.Read.All of "
                "Microsoft Graph to the app registration and grant admin consent, or "
                "set application_names = no in [graph]"
            )
            return
        if judgement and judgement.retry_after:
            self._be_quiet(judgement.retry_after)
        reason = error.what if isinstance(error, PollerError) else plain(str(error))
        log.info(
            "names of applications: %s; events come without the names that are not "
            "known yet; nothing to do, a later run asks again",
            reason,
        )

    def _be_quiet(self, seconds_: float) -> None:
        self._cache.quiet_until = self._now + min(seconds_, GRAPH_QUIET_SECONDS)
        self._changed = True

    def finish(self, most_seconds: float = GRAPH_LAST_SECONDS) -> None:
        """Wait a little for what is still asked, and keep what was learned on disk."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        if self._thread:
            self._thread.join(most_seconds)
            if self._thread.is_alive():
                self._off = True
                # Where Graph hangs, runs to come are not to wait for it each time.
                self._be_quiet(GRAPH_QUIET_SECONDS)
                log.info(
                    "names of applications: no answer of Graph in time; events come "
                    "without the names that are not known yet; nothing to do, a later "
                    "run asks again"
                )
        if not self._changed:
            return
        try:
            replace_file(self._file, self._cache.text(self._tenant_id, self._now))
        except (OSError, RuntimeError) as error:
            log.info(
                "cache of application names %s cannot be written: %s; a later run asks "
                "Graph again; see that this user may write the file and its folder",
                self._file,
                error,
            )


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


class Room(Protocol):
    """Memory for what is fetched and not yet confirmed."""

    def start_over(self) -> None:
        """Give back what was taken: the blob is fetched anew."""

    def take(self, amount: int) -> None:
        """Wait until there is room for so many bytes more, and take it."""


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
        def take(response: requests.Response) -> tuple[list[Blob], int, str]:
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
        self, blob: Blob, room: Room, tries: int, stop: threading.Event
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

    def _take_blob(
        self, blob: Blob, response: requests.Response, room: Room
    ) -> Fetched:
        room.start_over()
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
            last = not chunk
            try:
                text = decoder.decode(chunk, final=last)
            except UnicodeDecodeError:
                raise BrokenAnswerError("the blob is not UTF-8") from None
            if found := slicer.feed(text, last=last):
                piece = ("\n".join(found) + "\n").encode()
                room.take(len(piece))
                pieces.append(piece)
                events += len(found)
        return Fetched(blob, tuple(pieces), events, sum(map(len, pieces)))


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

    def take(self, ticket: int, amount: int, stop: threading.Event) -> None:
        """Wait until there is room, and take it. Raises AbandonedError on stop."""
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
            self._active[ticket] += amount

    def _fits(self, ticket: int, amount: int) -> bool:
        used = self._handed + sum(self._active.values())
        if used + amount <= self._limit:
            return True
        return self._handed == 0 and ticket == min(self._active)

    def start_over(self, ticket: int) -> None:
        """Give back what a running download took."""
        with self._changed:
            self._active[ticket] = 0
            self._changed.notify_all()

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


class TicketRoom(NamedTuple):
    """The budget as one download sees it."""

    budget: Budget
    ticket: int
    stop: threading.Event

    def start_over(self) -> None:
        """Give back what was taken."""
        self.budget.start_over(self.ticket)

    def take(self, amount: int) -> None:
        """Wait for room and take it."""
        self.budget.take(self.ticket, amount, self.stop)


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


class Downloads:
    """Fetches blobs in parallel; iterate for Fetched, Failed, and None for a nudge.

    None means: a download waits for room, so send what you have. When all is yielded
    the error that broke the listing is raised, if one did.
    """

    def __init__(self, fetch: Fetch, workers: int, budget_bytes: int) -> None:
        self._fetch = fetch
        self._workers = workers
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
                result = self._results.get()
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

    def _list(self, blobs: Iterator[Blob]) -> None:
        count, error, threads = 0, None, 0
        try:
            for blob in blobs:
                if not self._submit(blob):
                    return
                count += 1
                if threads < self._workers:
                    threading.Thread(target=self._work, daemon=True).start()
                    threads += 1
        except AbandonedError:
            return
        except BaseException as caught:  # noqa: BLE001 -- raised in the main thread
            error = caught
        self._results.put(Listed(count, error))
        for _ in range(threads):
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
                return
            ticket = self.budget.enter()
            handed = False
            try:
                room = TicketRoom(self.budget, ticket, self.stop)
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
    closing = False  # its close_notify has come

    def peek() -> bytes:
        return socket.socket.recv(connection, 1, socket.MSG_PEEK)

    while patiently(connection, peek):
        if not isinstance(connection, ssl.SSLSocket):
            refuse_words(connection.recv(256))
        elif closing:
            socket.socket.recv(connection, 256)
        else:
            closing = read_close_notify(connection)
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
    while unacknowledged(connection):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)
    code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


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
        self, blob: Blob, room: Room, tries: int, stop: threading.Event
    ) -> Fetched: ...


class Ports(NamedTuple):
    """The edges that a run works with; tests put others in their place."""

    api: Source
    sink: Sink
    state: State
    clock: Callable[[], datetime]
    workers: int


@dataclass
class Tally:
    """What became of one content type in this run."""

    content_type: str
    window: Window | None = None
    blobs: int = 0
    events: int = 0
    bytes: int = 0
    pending: int = 0
    lost: int = 0
    lag_seconds: float | None = None
    exits: set[Exit] = field(default_factory=set)

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


@dataclass
class Batch:
    """Lines on their way, and what to record once they are taken."""

    pieces: list[bytes] = field(default_factory=list)
    bytes: int = 0
    changes: Changes = field(default_factory=Changes)

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
        jobs = list(self.reopen(content_type, tally))
        parts = self.parts(Window(start, now))
        return jobs + [Slice(content_type, part) for part in parts]

    def parts(self, window: Window) -> Iterator[Window]:
        """The slices of a window; apart from them what only our clock calls listable.

        With a clock that is behind, the API refuses the oldest minutes of a catch-up:
        they may not take 23 hours with them.
        """
        cut = min(max(window.start, self.oldest), window.end)
        yield from slices(Window(window.start, cut))
        yield from slices(Window(cut, window.end))

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
        lost = self.ports.state.lose_span(
            content_type, window, self.now, watermark=job is None, job=job
        )
        self.say_lost(lost, tally)
        tally.lost += len(lost)

    def work(self, jobs: Sequence[Slice], tally: Tally, purpose: Purpose) -> None:
        """Deliver slices, oldest first; one that fails stays open, the others go on."""
        given_up: list[Slice] = []
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
            if purpose is Purpose.POLL:
                begun = self.ports.state.give_up(begun, batch.changes, self.now)
            else:
                self.ports.state.settle(job.content_type, batch.changes, self.now)
            if ahead:
                given_up.append(begun)
            # In an outage the one sentence about it says more than twenty about blobs.
            named = 0 if isinstance(error, OutageError) else NAMED_MOST
            self.account(batch.changes, tally, named)
            if isinstance(error, TokenError | UnreachedError):
                raise error
            self.note(error, tally)
            if isinstance(error, RefusedError):
                break
        self.measure_lag(tally)

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

        batch, error = self.ship(downloads, blobs, tally, record, {})
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
        waiting = {pending.blob.id: pending for pending in state.pending(content_type)}
        if waiting and not tally.exits & {Exit.REFUSED}:
            blobs = iter([pending.blob for pending in waiting.values()])

            def record(changes: Changes) -> None:
                state.settle(content_type, changes, self.now)

            batch, error = self.ship(self.downloads(1), blobs, tally, record, waiting)
            record(batch.changes)
            self.account(batch.changes, tally)
            if isinstance(error, TokenError | UnreachedError):
                raise error
            if error:
                self.note(error, tally)
        tally.pending = state.pending_count(content_type)
        if tally.pending:
            tally.exits.add(Exit.INCOMPLETE)
            self.remind_of_pending(tally)

    def remind_of_pending(self, tally: Tally) -> None:
        """Say, once in a while, that blobs wait; each was named when it began."""
        lasting_warning(
            self.ports.state,
            f"pending {tally.content_type}",
            self.ports.clock(),
            f"{tally.content_type}: {tally.pending} blobs could not be fetched yet; "
            "each run tries them once more until they come or are lost; nothing to do, "
            "unless it repeats for days",
        )

    def downloads(self, tries: int) -> Downloads:
        """A pool of downloads that gives each blob so many tries."""

        def fetch(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
            return self.ports.api.fetch(blob, room, tries, stop)

        return Downloads(fetch, self.ports.workers, BUDGET_BYTES)

    def ship(
        self,
        downloads: Downloads,
        blobs: Iterator[Blob],
        tally: Tally,
        record: Callable[[Changes], None],
        waiting: Mapping[str, Pending],
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
                        self.fail(result, batch, waiting)
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

    def fail(
        self, failure: Failed, batch: Batch, waiting: Mapping[str, Pending]
    ) -> None:
        """Note what becomes of a blob that could not be fetched."""
        if failure.blob.id not in waiting and self.ports.state.is_lost(failure.blob):
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
        if gone and failure.blob.id not in waiting and self.was_delivered(failure.blob):
            return  # the overlap asked for it once more, and it is gone by now
        what = fate(failure, waiting.get(failure.blob.id), self.now)
        if isinstance(what, Lost):
            batch.changes.lost.append(what)
        else:
            batch.changes.pending.append(what)

    def was_delivered(self, blob: Blob) -> bool:
        """Whether the ledger has a blob."""
        known = self.ports.state.known(blob.content_type, Purpose.RECONCILE)
        return known(blob)

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


def run_event(
    run: Run, content_types: Sequence[str], started: datetime, ended: datetime
) -> bytes:
    """The line about a run. Lag is taken from the state where nothing was polled."""
    rows = []
    for content_type in content_types:
        tally = run.tallies.get(content_type, Tally(content_type))
        watermark = run.ports.state.watermark(content_type)
        lag = max(0.0, (ended - watermark).total_seconds()) if watermark else None
        row: dict[str, object] = {
            "content_type": content_type,
            "blobs": tally.blobs,
            "events": tally.events,
            "bytes": tally.bytes,
            "pending": run.ports.state.pending_count(content_type),
            "lost": tally.lost,
            "lag_seconds": lag if tally.lag_seconds is None else tally.lag_seconds,
        }
        if tally.window:
            window = tally.window
            row["window"] = {
                "start": api_time(window.start) + "Z",
                "end": api_time(window.end) + "Z",
            }
        rows.append(row)
    whole = {
        "start": api_time(started) + "Z",
        "end": api_time(ended) + "Z",
        "seconds": round((ended - started).total_seconds(), 3),
        "exit": int(run.exit),
        "exit_name": run.exit.name,
        "host": socket.gethostname(),
        "version": __version__,
        "content_types": rows,
    }
    return json.dumps({"o365_poller": whole}, separators=(",", ":")).encode() + b"\n"


def send_run_event(
    run: Run, content_types: Sequence[str], started: datetime, ended: datetime
) -> None:
    """Send the line about a run, on a connection of its own; a failure is said only."""
    try:
        line = run_event(run, content_types, started, ended)
        run.ports.sink.deliver([line])
    except (PollerError, UnreadableStateError) as error:
        what = error.what if isinstance(error, PollerError) else error
        log.info(
            "the line about this run (run_events) was not delivered: %s; no audit "
            "event is concerned; nothing to do for it, the next run sends its own",
            what,
        )


# == Alerts ==================================================================
# Mail by condition: what lasts is told once, again after repeat_hours, and once when it
# is well again; each loss is told once. The state knows what the relay has taken.

MAIL_SECONDS = 30.0
SINK_DOWN_AFTER = timedelta(hours=1)
TAIL_BYTES = 16 * 1024
LOSSES_NAMED = 50


class LogTail(logging.Handler):
    """Keeps the newest lines of this run's log, within TAIL_BYTES, for a mail."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        formatter = logging.Formatter(
            "%(asctime)sZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
        formatter.converter = time.gmtime
        self.setFormatter(formatter)
        self.addFilter(is_kept)
        self.addFilter(Redactor())
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._forgot = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line; forget the oldest ones where they are too many."""
        line = self.format(record)[-TAIL_BYTES:]
        self._lines.append(line)
        self._bytes += len(line.encode("utf-8", "replace")) + 1
        while self._bytes > TAIL_BYTES and len(self._lines) > 1:
            oldest = self._lines.popleft()
            self._bytes -= len(oldest.encode("utf-8", "replace")) + 1
            self._forgot = True

    def text(self) -> str:
        """The lines, oldest first."""
        forgot = ["(earlier lines are left out)"] if self._forgot else []
        return "\n".join([*forgot, *self._lines])


def log_tail() -> str:
    """The newest lines of this run's log, where a LogTail listens."""
    return "".join(h.text() for h in log.handlers if isinstance(h, LogTail))


class Word(enum.Enum):
    """What there is to be told of a condition."""

    TROUBLE = ""
    STILL = "still: "
    WELL = "well again: "


def word_due(
    told: datetime | None, now: datetime, repeat: timedelta, *, lasts: bool
) -> Word | None:
    """What to tell of a condition that was told of at a time, or never; None: nothing.

    A time ahead of now, told by a clock that was wrong, counts as long ago.
    """
    if not lasts:
        return Word.WELL if told else None
    if told is None:
        return Word.TROUBLE
    return None if told <= now < told + repeat else Word.STILL


class Condition(NamedTuple):
    """Something that a person has to mend, and whether it lasts."""

    key: str
    title: str
    lasts: bool
    text: str


class Letter(NamedTuple):
    """A mail that is due, and what to note once the relay has taken it."""

    subject: str
    text: str
    said: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()


def explained(error: PollerError) -> str:
    """An error as three sentences, a line each."""
    return (
        f"What happened:  {error.what}\n"
        f"What it means:  {error.data}\n"
        f"What to do:     {error.fix}"
    )


def errors_of(run: Run, content_type: str) -> list[PollerError]:
    """What went wrong with one content type; with "" what concerns the whole run."""
    return [error for of, error in run.errors if of == content_type]


def is_polled(run: Run, tally: Tally) -> bool:
    """Whether this run has listed a content type: it had a token and the permission.

    A sink that fails proves no less: there were events to send.
    """
    ended = [each for each in errors_of(run, "") if not isinstance(each, SinkError)]
    broken = ended or errors_of(run, tally.content_type)
    return tally.window is not None and not broken


def refusals(run: Run) -> Iterator[Condition]:
    """What Entra ID or the API refuse, or no longer do, as far as this run knows."""
    title = "access is refused"
    own = [each for each in errors_of(run, "") if isinstance(each, RefusedError)]
    proven = any(is_polled(run, tally) for tally in run.tallies.values())
    # A permission that is missing for one content type was told by an API that took
    # the token.
    proven = proven or any(of and isinstance(e, RefusedError) for of, e in run.errors)
    if own:
        yield Condition("refused", title, lasts=True, text=explained(own[0]))
    elif proven:
        yield Condition("refused", title, lasts=False, text="A token was had.")
    for content_type, tally in run.tallies.items():
        refused = [
            each
            for each in errors_of(run, content_type)
            if isinstance(each, RefusedError)
        ]
        key = f"refused {content_type}"
        if refused:
            yield Condition(key, title, lasts=True, text=explained(refused[0]))
        elif is_polled(run, tally) and not own:
            told = f"{content_type} is polled again."
            yield Condition(key, title, lasts=False, text=told)


def certificate_warning(expires: datetime | None, now: datetime, most_days: int) -> str:
    """What to say of a certificate that is about to end or has; "" if neither."""
    if expires is None or expires - now > timedelta(days=most_days):
        return ""
    days = (expires - now) // timedelta(days=1)
    ends = f"ends on {expires:%Y-%m-%d}, in {days} days"
    if expires <= now:
        ends = f"ended on {expires:%Y-%m-%d}"
    return (
        f"the application's certificate {ends}; without one Entra ID gives no token, "
        "and what is not fetched within 7 days is lost; upload a new one to the app "
        "registration, then change key and certificate in [azure]"
    )


def certificate_condition(
    settings: Settings, run: Run, now: datetime
) -> Iterator[Condition]:
    """The certificate's end, or that there is none in sight and a token was had."""
    title = "the certificate is about to end"
    expires = settings.azure.credential.expires
    text = certificate_warning(expires, now, settings.alerts.certificate_days)
    if text:
        yield Condition("certificate", title, lasts=True, text=text)
    elif any(is_polled(run, tally) for tally in run.tallies.values()):
        end = f"{expires:%Y-%m-%d}" if expires else "no day that is known here"
        told = (
            f"The certificate in use ends on {end}, and Entra ID gave a token for it."
        )
        yield Condition("certificate", title, lasts=False, text=told)


def sink_condition(run: Run, state: State, now: datetime) -> Iterator[Condition]:
    """No Logstash for an hour, or events that one has taken. Notes since when."""
    since_key, title = "mail: no Logstash since", "no Logstash takes the events"
    failed_ones = [each for each in errors_of(run, "") if isinstance(each, SinkError)]
    if failed_ones:
        since = state.said(since_key)
        if since is None or since > now:
            state.say(since_key, now)
        elif now - since >= SINK_DOWN_AFTER:
            text = f"{explained(failed_ones[0])}\nSince:          {api_time(since)} UTC"
            yield Condition("sink", title, lasts=True, text=text)
    elif any(tally.events for tally in run.tallies.values()):
        state.unsay(since_key)
        yield Condition("sink", title, lasts=False, text="Events were taken again.")


def lasting_letters(
    conditions: Iterable[Condition], state: State, now: datetime, repeat: timedelta
) -> Iterator[Letter]:
    """The mails due for what lasts or is well again; one for all of the same title."""
    due: dict[tuple[str, Word], list[Condition]] = {}
    for each in conditions:
        told = state.said(f"mail: {each.key}")
        word = word_due(told, now, repeat, lasts=each.lasts)
        if word:
            due.setdefault((each.title, word), []).append(each)
    for (title, word), found in due.items():
        keys = tuple(f"mail: {each.key}" for each in found)
        well = word is Word.WELL
        yield Letter(
            f"{word.value}{title}",
            "\n\n".join(each.text for each in found),
            said=() if well else keys,
            unsaid=keys if well else (),
        )


def loss_letter(state: State) -> Iterator[Letter]:
    """The mail for the losses that no mail has told of yet, if there are any."""
    fresh, prefix = [], "mail: lost "
    told = state.said_keys(prefix)
    for lost in state.losses():
        parts = (lost.content_type, lost.content_id, str(lost.window))
        key = prefix + fingerprint(" ".join(parts)).hex()
        if key not in told:
            fresh.append((key, lost))
    if not fresh:
        return
    named = "\n".join(f"  {lost}" for _, lost in fresh[:LOSSES_NAMED])
    more = len(fresh) - LOSSES_NAMED
    yield Letter(
        "audit events are lost",
        "What happened:  the API can no longer give these:\n"
        f"{named}\n"
        + (f"  and {more} more; the log names them all\n" if more > 0 else "")
        + "What it means:  the events of these spans and blobs will not arrive\n"
        "What to do:     the audit search of Purview may still have them: export it",
        said=tuple(key for key, _ in fresh),
    )


def compose(letter: Letter, settings: Settings, run: Run, now: datetime) -> Any:
    """The mail as it goes out, with no known secret in it."""
    from email.message import EmailMessage
    from email.utils import format_datetime, make_msgid

    alerts = settings.alerts
    mail = EmailMessage()
    mail["Subject"] = (
        f"o365_poller, tenant {settings.azure.tenant_id}: {letter.subject}"
    )
    mail["From"] = alerts.sender
    mail["To"] = ", ".join(alerts.to)
    mail["Date"] = format_datetime(now)
    mail["Message-ID"] = make_msgid(domain=alerts.sender.rpartition("@")[2])
    mail["Auto-Submitted"] = "auto-generated"
    text = (
        f"{letter.text}\n\n"
        f"Tenant:         {settings.azure.tenant_id}\n"
        f"Host:           {socket.gethostname()}\n"
        f"Configuration:  {settings.file.absolute()}\n"
        f"Exit code:      {int(run.exit)} {run.exit.name}: {run.exit.meaning}\n\n"
        f"The end of this run's log:\n\n{log_tail()}\n"
    )
    # A lone surrogate, as a file name may hold one, cannot be sent.
    mail.set_content(blacked_out(text).encode("utf-8", "replace").decode())
    return mail


def meet_relay(alerts: Alerts) -> Any:
    """A relay that is ready for a mail: connected, encrypted, and knowing us.

    Raises what smtplib, sockets and TLS raise.
    """
    import smtplib

    where = (alerts.smtp_host, alerts.smtp_port)
    if alerts.smtp_security == "tls":
        context = ssl.create_default_context()
        relay: Any = smtplib.SMTP_SSL(*where, timeout=MAIL_SECONDS, context=context)
    else:
        relay = smtplib.SMTP(*where, timeout=MAIL_SECONDS)
    try:
        if alerts.smtp_security == "starttls":
            relay.starttls(context=ssl.create_default_context())
        if alerts.username:
            relay.login(alerts.username, alerts.password.reveal())
        else:
            relay.ehlo_or_helo_if_needed()
    except BaseException:
        relay.close()
        raise
    return relay


def post(alerts: Alerts, mail: Any) -> None:
    """Hand a mail to the relay. Raises what smtplib, sockets and TLS raise."""
    relay = meet_relay(alerts)
    with contextlib.closing(relay):
        refused = relay.send_message(mail)
        for address, (code, _) in refused.items():
            log.warning(
                "mail: the relay refuses the address %s (%d); the others got it; check "
                "to in [alerts]",
                plain(address),
                code,
            )
        # It has taken the mail; what it says to a good-bye changes nothing.
        with contextlib.suppress(OSError):  # smtplib's own are OSErrors too
            relay.quit()


def mail_reason(error: BaseException) -> str:
    """Why a relay did not take a mail. What it says to a password is not repeated."""
    import smtplib

    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"it refuses username or password ({error.smtp_code})"
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = sorted({code for code, _ in error.recipients.values()})
        return f"it refuses every address of to ({', '.join(map(str, codes))})"
    if isinstance(error, smtplib.SMTPResponseException):
        said = error.smtp_error
        words = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        return plain(f"it answers {error.smtp_code} {words}")
    if isinstance(error, TimeoutError):
        return f"no answer within {MAIL_SECONDS:g} s"
    return sink_reason(error) if isinstance(error, Exception) else type(error).__name__


def within(seconds_: float, work: Callable[[], None]) -> None:
    """Do something in a thread, for so long at most; raise what it raises.

    A time-out bounds a silence only, and the name service has none at all.
    """
    result: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 -- raised in the main thread
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
            *certificate_condition(settings, run, now),
            *sink_condition(run, state, now),
        ]
        letters = [
            *lasting_letters(conditions, state, now, alerts.repeat),
            *loss_letter(state),
        ]
        for letter in letters:
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

    def _note_date(self, url: str, response: requests.Response) -> datetime:
        date = super()._note_date(url, response)
        if urlsplit(url).netloc in self.dates:
            self.ahead = datetime.now(UTC) - date
        return date

    def ask(
        self,
        call: Call,
        take: Callable[[requests.Response], T],
        bearer: Bearer | None = None,
        stop: threading.Event | None = None,
    ) -> T:
        """As Http.ask does."""
        fewer = call._replace(tries=min(call.tries, CHECK_TRIES))
        return super().ask(fewer, take, bearer, stop)


class LookingApi(ActivityApi):
    """The activity feed for looking at: it starts no subscription."""

    def start(self, content_type: str) -> str:
        """What a listing asks for where its subscription gives nothing; refused."""
        raise SourceError(
            f"{content_type}: the subscription is enabled, and the API says it is not",
            "nothing is lost, for no span counts as polled until it is listed",
            "wait an hour: Microsoft takes its time after a stop or a first start",
        )

    def subscription_states(self) -> dict[str, str]:
        """By content type in lower case: enabled or disabled; what is missing is not.

        Raises SourceError, RefusedError.
        """
        call = Call("GET", self.feed.operation("list"), "list of subscriptions")

        def take(response: requests.Response) -> dict[str, str]:
            body = read_answer(response).body
            enabled = parse_subscriptions(body)
            rows = json.loads(body.decode("utf-8-sig"))
            named = {str(row["contentType"]).lower() for row in rows}
            return {
                name: "enabled" if name in enabled else "disabled" for name in named
            }

        try:
            return self._http.ask(call, take, self._bearer)
        except AnswerError as error:
            raise refusal(call.what, PERMISSION, error.judgement) from None


def check_certificate(settings: Settings, now: datetime) -> Step:
    """The key and what belongs to it; that they fit was seen with the configuration."""
    name, credential = "key and certificate", settings.azure.credential
    if credential.client_secret:
        return Step(
            name,
            "a client secret is used, whose end is not known here",
            "make a certificate and use that: a secret travels, a key does not",
        )
    if credential.expires is None:
        return Step(
            name,
            "the key is read; with a thumbprint alone the certificate's end is not "
            "known here",
            "name the certificate in [azure] certificate, to be warned before it ends",
        )
    days = (credential.expires - now) // timedelta(days=1)
    end = f"{credential.expires:%Y-%m-%d}"
    renew = (
        "make a new key and certificate, upload the certificate to the app "
        "registration, then change both in [azure]"
    )
    if days < 0:
        return Step(name, f"the certificate ended on {end}", renew, Exit.REFUSED)
    found = f"they belong together; the certificate ends on {end}, in {days} days"
    soon = days <= settings.alerts.certificate_days
    return Step(name, found, renew if soon else "")


def check_token(
    settings: Settings, content_types: Sequence[str], bearer: Bearer
) -> Iterator[Step]:
    """The sign-in, and what the token says that it is good for."""
    token = bearer.token()
    yield Step("token", f"Entra ID gave one for {settings.azure.api_root}")
    claims = read_claims(token)
    name = "permissions"
    if not claims:
        yield Step(
            name,
            "the token cannot be read, so they are not known",
            "see by the listings below whether they suffice",
        )
        return
    tenant = str(claims.get("tid", "")).lower()
    if tenant != settings.azure.tenant_id:
        yield Step(
            name,
            f"the token is for the tenant {plain(tenant, 60) or 'of no name'}",
            "check tenant_id and cloud in [azure]",
        )
    yield from check_roles(claims.get("roles"), content_types)


def check_roles(told: object, content_types: Sequence[str]) -> Iterator[Step]:
    """The permissions that a token carries, against those that are needed."""
    name = "permissions"
    roles = [str(role) for role in told] if isinstance(told, list) else []
    # All content types want the first; documented: DLP.All wants both.
    needed = {PERMISSION: list(content_types)}
    for each in content_types:
        if permission_for(each) != PERMISSION:
            needed.setdefault(permission_for(each), []).append(each)
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
        listed = ", ".join(plain(role, 60) for role in roles)
        yield Step(name, f"{listed}: enough for {', '.join(content_types)}")


def check_clock(http: PatientHttp) -> Iterator[Step]:
    """This machine's clock against the newest Date header of Microsoft's."""
    if http.ahead is None:
        return
    found = f"{http.ahead.total_seconds():+.0f} s from Microsoft's"
    wrong = abs(http.ahead) > CLOCKS_AGREE
    yield Step("clock", found, "set this machine's clock (NTP)" if wrong else "")


def check_content(
    api: LookingApi, content_types: Sequence[str], now: datetime
) -> Iterator[Step]:
    """Each content type's subscription, and one look at what it has."""
    states: Mapping[str, str] | None = None
    try:
        states = api.subscription_states()
    except SourceError as error:
        # As a poll does: content may be had all the same.
        yield Step("subscriptions", error.what, error.fix)
    for content_type in content_types:
        if states is not None:
            step = check_subscription(content_type, states)
            yield step
            if step.fix:
                continue
        try:
            yield check_listing(api, content_type, now)
        except TokenError:
            raise
        except PollerError as error:
            yield failed_step(f"listing {content_type}", error, f"{content_type}: ")


def check_subscription(content_type: str, states: Mapping[str, str]) -> Step:
    """Whether a content type's subscription is there."""
    name = f"subscription {content_type}"
    found = states.get(content_type.lower(), "missing")
    if found == "enabled":
        return Step(name, found)
    return Step(
        name,
        f"{found}; --check starts none",
        "the first poll starts it; its first content may take 12 hours, and what "
        "happened before may never come; see that auditing is on in the Purview portal",
    )


def check_listing(api: LookingApi, content_type: str, now: datetime) -> Step:
    """How many blobs the last 24 hours have, and how old the newest is."""
    count, newest = 0, None
    end = whole_second(min(now, api.date() or now))
    # The newest part first, so that a big tenant's newest blob is met.
    for window in reversed(list(slices(Window(end - LOOKED_BACK, end)))):
        stop = threading.Event()
        blobs = api.listing(content_type, window, stop)
        for blob in itertools.islice(blobs, LISTED_MOST - count):
            count += 1
            newest = max(newest or blob.created, blob.created)
    name = f"listing {content_type}"
    if newest is None:
        return Step(
            name,
            "no blob in the last 24 hours",
            "none, if little happens in the tenant or the subscription is younger than "
            "12 hours; else see that auditing is on in the Purview portal",
        )
    more = " or more" if count >= LISTED_MOST else ""
    age = max(0, (end - newest) // timedelta(minutes=1))
    return Step(
        name, f"{count}{more} blobs in the last 24 hours, the newest {age} min old"
    )


def check_microsoft(
    settings: Settings, content_types: Sequence[str], http: PatientHttp, now: datetime
) -> Iterator[Step]:
    """Sign-in, permissions, subscriptions, listings, clock; ends where all would."""
    azure = settings.azure
    bearer = TokenSource(azure, http, azure.api_root)
    feed = Feed(azure.api_root, azure.tenant_id, azure.publisher_id)
    api = LookingApi(feed, http, bearer)
    name = "token"
    try:
        yield from check_token(settings, content_types, bearer)
        name = "subscriptions"
        yield from check_content(api, content_types, now)
    except PollerError as error:
        yield failed_step(name, error)
        if name == "token":
            yield Step(
                "subscriptions and listings",
                "not looked at, for there is no token",
                "mend the token first",
            )
    yield from check_clock(http)


def check_names(settings: Settings, http: Http) -> Iterator[Step]:
    """Whether Graph tells names, where they are asked for; it never fails a poll."""
    if not settings.graph.application_names:
        return
    azure, name = settings.azure, "application names"
    directory = Directory(
        azure.graph_root, http, TokenSource(azure, http, azure.graph_root)
    )
    permit = (
        "add the application permission Application.Read.All of Microsoft Graph and "
        "grant admin consent, or set application_names = no"
    )
    try:
        directory.names([azure.client_id])
    except AnswerError as error:
        refused = error.judgement.verdict is Verdict.REFUSED
        fix = permit if refused else "nothing to do, unless it repeats"
        yield Step(name, f"Graph refuses: {error.judgement.reason}", fix)
    except PollerError as error:
        yield Step(name, error.what, error.fix)
    else:
        yield Step(name, "Graph tells them")


def try_host(settings: Logstash, host: Host) -> str:
    """Connect to a Logstash host, send nothing, await its end; what there is to tell.

    Raises PeerError.
    """
    sink, step = LogstashSink(settings), "connecting"
    try:
        with sink.connect(host) as connection:
            told = "connects"
            if isinstance(connection, ssl.SSLSocket):
                shown: Mapping[str, Any] = connection.getpeercert() or {}
                end = moment(ssl.cert_time_to_seconds(shown["notAfter"]))
                version = connection.version()
                told += f", {version}, its certificate ends on {end:%Y-%m-%d}"
            step = "ending the connection"
            end_sending(connection)
            await_end(connection, settings.timeout_seconds)
    except TimeoutError:
        wait = f"{settings.timeout_seconds:g}"
        raise PeerError(f"made no progress in {wait} s while {step}") from None
    except (OSError, ValueError) as error:
        raise PeerError(f"failed while {step}: {sink_reason(error)}") from None
    return told


def check_logstash(settings: Logstash) -> Iterator[Step]:
    """Each Logstash host; a poll fails where none is left."""
    bounded = settings._replace(
        timeout_seconds=min(settings.timeout_seconds, CHECK_SECONDS)
    )
    found: dict[Host, tuple[bool, str]] = {}
    for host in settings.hosts:
        try:
            found[host] = (True, try_host(bounded, host))
        except PeerError as error:
            found[host] = (False, str(error))
    some = any(works for works, _ in found.values())
    for host, (works, told) in found.items():
        if works:
            yield Step(f"Logstash {host}", told)
            continue
        yield Step(
            f"Logstash {host}",
            told,
            "see that the tcp input listens there, that no firewall is between, and "
            "that tls and ca_file in [logstash] fit it",
            Exit.OK if some else Exit.SINK,
        )


def check_state(settings: Settings, content_types: Sequence[str]) -> Iterator[Step]:
    """The state, read only: how far each content type has got."""
    path, azure = settings.poll.state_file, settings.azure
    writable = "see that this user may write the file and its folder"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        found = f"{path} cannot be written"
        yield Step("state", found, writable, Exit.USAGE)
        return
    if not path.exists():
        yield Step("state", f"{path}: none yet; the first poll makes it")
        return
    again = "nothing to do: the next poll polls the last 7 days again"
    if not path.stat().st_size:
        yield Step("state", f"{path} is empty", again)
        return
    try:
        with contextlib.closing(State.look(path, azure)) as state:
            for content_type in content_types:
                yield check_progress(state, content_type)
    except UnreadableStateError as error:
        yield Step("state", f"{path} is unreadable ({plain(str(error))})", again)
    except StateError as error:
        journal = path.with_name(path.name + "-journal")
        if journal.exists():
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
    pending = state.pending_count(content_type)
    found = (
        f"last good poll up to {api_time(watermark)} UTC, {age} min ago; "
        f"{pending} blobs pending"
    )
    behind = age > 60
    fix = "see the log for why the polls since then failed, or that cron runs them"
    return Step(name, found, fix if behind else "")


def check_log(settings: Settings) -> Iterator[Step]:
    """Whether the log file can be written, where there is to be one."""
    file = settings.logging.file
    if file is None:
        return
    if os.access(file if file.exists() else file.parent, os.W_OK):
        yield Step("log", str(file))
        return
    fix = "see that this user may write the file and its folder"
    yield Step("log", f"{file} cannot be written", fix, Exit.USAGE)


def check_relay(alerts: Alerts) -> Iterator[Step]:
    """The mail relay, up to the password; no mail is sent. It never fails a poll."""
    if not alerts.smtp_host:
        return
    name = f"mail relay {alerts.smtp_host}:{alerts.smtp_port}"
    try:
        within(MAIL_SECONDS, lambda: meet_relay(alerts).close())
    except Exception as error:  # noqa: BLE001 -- whatever smtplib and TLS raise
        fix = "check [alerts], and that the relay lets this machine in"
        yield Step(name, mail_reason(error), fix)
    else:
        yield Step(name, "answers, and takes what [alerts] says")


def check_steps(
    settings: Settings, content_types: Sequence[str], environ: Mapping[str, str]
) -> Iterator[Step]:
    """All steps, in the order in which things are needed."""
    now = datetime.now(UTC)
    yield Step("configuration", str(settings.file))
    yield check_certificate(settings, now)
    http = make_http(settings, environ, settings.poll.timeout_seconds, PatientHttp)
    yield from check_microsoft(settings, content_types, http, now)
    yield from check_names(settings, http)
    yield from check_logstash(settings.logstash)
    yield from check_state(settings, content_types)
    yield from check_log(settings)
    yield from check_relay(settings.alerts)


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
    if path.exists():
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
            settings.file, maxBytes=10 * MEGABYTE, backupCount=5, encoding="utf-8"
        )
    except OSError as error:
        complaint = (
            f"{config}: [logging] file: expected a file that can be written, got "
            f"{settings.file} ({error.strerror})"
        )
        raise ConfigError([complaint]) from None
    formatter = logging.Formatter(
        "%(asctime)sZ %(levelname)-7s [%(process)d] %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
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
        if not content_type(text)
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
        tuple(dict.fromkeys(map(content_type, arguments.content_type))),
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
        directory = Directory(azure.graph_root, http, bearer)
        cache = settings.graph.cache_file
        names = ApplicationNames(directory, cache, azure.tenant_id)
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
    opened = path.exists() and path.stat().st_ino
    lock = state_lock(path) if order.polls else contextlib.nullcontext()
    try:
        with lock, contextlib.closing(State.open(path, azure, every, now)) as state:
            return run_with(order, settings, state, wanted)
    except UnreadableStateError as error:
        reason = str(error)
    with state_lock(path):
        if path.stat().st_ino == opened:  # else another poll has put it aside by now
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
    line = f"{blacked_out(text)}\n".encode(errors="backslashreplace")
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


def on_signals(action: signal.Handlers | Callable[[int, object], None]) -> None:
    """Set what SIGINT and SIGTERM do."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, action)


def stop(signum: int, _frame: object) -> None:
    """End the run in good order; a second signal would only spoil it."""
    on_signals(signal.SIG_IGN)
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
        on_signals(signal.SIG_IGN)
    except (Exception, Stopped) as error:  # noqa: BLE001 -- the one place
        on_signals(signal.SIG_IGN)
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
