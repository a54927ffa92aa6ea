"""Values for the tests of the pure parts: settings, blobs, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from o365_poller import (
    Answer,
    Azure,
    Blob,
    Cloud,
    Credential,
    Host,
    Logstash,
    Pending,
    Poll,
    Secret,
    State,
)

TENANT = "11111111-2222-4333-8444-555555555555"
OTHER_TENANT = "99999999-2222-4333-8444-555555555555"
CLIENT = "66666666-7777-4888-9999-aaaaaaaaaaaa"
TYPE = "Audit.Exchange"
NOW = datetime(2026, 3, 2, 10, 0, 0, tzinfo=UTC)
WORLD = Cloud(
    "https://login.microsoftonline.com",
    "https://manage.office.com",
    "https://graph.microsoft.com",
)


def ago(**span: float) -> datetime:
    """That long before NOW."""
    return NOW - timedelta(**span)


def make_blob(
    id_: str = "blob1",
    *,
    created: datetime = NOW,
    expires: datetime | None = None,
    uri: str = "",
    content_type: str = TYPE,
) -> Blob:
    """A blob as a listing names it."""
    return Blob(content_type, id_, uri, created, expires)


def make_answer(
    status: int, body: bytes | str = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """An answer, whole."""
    data = body.encode() if isinstance(body, str) else body
    return Answer(status, headers or {}, data)


def make_azure(api_root: str = WORLD.api_root, login: str = WORLD.login_root) -> Azure:
    """[azure] with a client secret."""
    return Azure(
        tenant_id=TENANT,
        client_id=CLIENT,
        credential=Credential(None, "", "", Secret("s3cret-of-the-app")),
        login_root=login,
        api_root=api_root,
        graph_root=WORLD.graph_root,
        ca_bundle=None,
        publisher_id=TENANT,
    )


def make_poll(folder: Path, types: Sequence[str] = (TYPE,)) -> Poll:
    """[poll] with its defaults."""
    return Poll(
        content_types=tuple(types),
        window=timedelta(minutes=10),
        overlap=timedelta(minutes=5),
        state_file=folder / "config.db",
        workers=4,
        timeout_seconds=5,
    )


def make_logstash(*hosts: str, tls: bool = False, timeout: float = 5) -> Logstash:
    """[logstash] with these hosts, as name:port."""
    found = []
    for text in hosts:
        name, _, port = text.rpartition(":")
        found.append(Host(name, int(port)))
    return Logstash(
        hosts=tuple(found),
        tls=tls,
        ca_file=None,
        cert_file=None,
        key_file=None,
        timeout_seconds=timeout,
        run_events=False,
    )


def waiting(state: State, content_type: str) -> list[Pending]:
    """The blobs that wait now."""
    state.begin_round()
    return list(state.pending(content_type))
