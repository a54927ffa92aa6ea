"""The emulator as a whole: hosts, clock, journal, faults."""

from __future__ import annotations

import itertools
import shutil
import ssl
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import trustme
from cryptography.hazmat.primitives.asymmetric import rsa

from emulator.activity import Activity
from emulator.clock import Clock
from emulator.content import (
    BOM,
    Blob,
    Event,
    array_text,
    content_id,
    event_id,
    packed,
)
from emulator.credentials import Credentials, make_credentials, pooled_key
from emulator.entra import Login
from emulator.faults import Fault, Scene
from emulator.graph import Graph
from emulator.journal import Journal, safe_headers
from emulator.options import CONTENT_TYPES, Options
from emulator.wire import Answer, Ask, GoneError, Server, Wire, outgoing

TENANT_ID = "3f1c2b7e-0000-4000-8000-00000000a001"
OTHER_TENANT_ID = "9d8e7f60-0000-4000-8000-00000000b002"
CLIENT_ID = "5c0ffee5-0000-4000-8000-00000000c003"
OBJECT_ID = "0b1ec7ed-0000-4000-8000-00000000d004"
OPERATIONS = (
    "discovery",
    "instance",
    "token",
    "start",
    "stop",
    "list",
    "content",
    "blob",
    "graph",
    "any",
)
Match = Callable[[Ask], bool] | str


class Host(Protocol):
    def read(self, raw: Ask, /) -> Ask: ...

    def answer(self, ask: Ask, /) -> Answer: ...


@dataclass
class _Armed:
    operation: str
    fault: Fault
    left: int | None
    match: Match | None
    after: int

    def fits(self, ask: Ask) -> bool:
        if self.left == 0 or self.operation not in ("any", ask.operation):
            return False
        if self.match is None:
            return True
        if callable(self.match):
            return self.match(ask)
        wanted = self.match.lower()
        return wanted in (
            (ask.content_type or "").lower(),
            (ask.content_id or "").lower(),
        )


@dataclass(frozen=True)
class TrapRequest:
    """A request that reached a host to which nothing should ever be sent."""

    scheme: str
    method: str
    target: str
    headers: dict[str, str]
    authorization: bool
    body_bytes: int


@dataclass
class Trap:
    requests: list[TrapRequest] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(one.authorization for one in self.requests)


class Emulator:
    """Entra ID, the Management Activity API and Graph, on loopback."""

    def __init__(
        self,
        *,
        tenant_id: str = TENANT_ID,
        clock: Clock | datetime | None = None,
        page_size: int = 200,
        latency: float = 0.0,
        options: Options | None = None,
    ) -> None:
        self.tenant_id = tenant_id
        self.other_tenant_id = OTHER_TENANT_ID
        self.tenant_domain = "emu.test"
        self.client_id = CLIENT_ID
        self.object_id = OBJECT_ID
        self.page_size = page_size
        self.latency = latency
        self.options = options or Options()
        self.clock = clock if isinstance(clock, Clock) else Clock(clock)
        self.directory = Path(tempfile.mkdtemp(prefix="emulator-"))
        self.journal = Journal(self.clock)
        self.trap = Trap()
        signing = pooled_key("rsa2048", 0)
        assert isinstance(signing, rsa.RSAPrivateKey)
        self.login = Login(self, signing)
        self.activity = Activity(self)
        self.graph = Graph(self)
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._serials = itertools.count(456)
        self._key_places: dict[str, int] = {}
        self._credentials = 0
        self._server: Server | None = None
        self.ca_file = self.directory / "ca.pem"

    # -- life

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Make the certificates and open the ports."""
        authority, impostor = trustme.CA(), trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        good, bad = _context(authority), _context(impostor)
        self._server = server = Server()
        self._ports = {
            "login": server.listen("login", self._serve("login", self.login), good),
            "api": server.listen("api", self._serve("api", self.activity), good),
            "graph": server.listen("graph", self._serve("graph", self.graph), good),
            "trap": server.listen("trap", self._serve_trap("https"), good),
            "trap_http": server.listen("trap_http", self._serve_trap("http")),
            "impostor": server.listen("impostor", self._serve_trap("https"), bad),
        }

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def take_down(self, host: str) -> None:
        """Refuse connections to `login`, `api` or `graph`, and cut the open ones."""
        assert self._server is not None
        self._server.take_down(host)

    def bring_up(self, host: str) -> None:
        assert self._server is not None
        self._server.bring_up(host)

    def _root(self, name: str, scheme: str = "https") -> str:
        return f"{scheme}://localhost:{self._ports[name]}"

    @property
    def login_root(self) -> str:
        return self._root("login")

    @property
    def api_root(self) -> str:
        return self._root("api")

    @property
    def graph_root(self) -> str:
        return self._root("graph")

    @property
    def trap_root(self) -> str:
        return self._root("trap")

    @property
    def trap_http_root(self) -> str:
        return self._root("trap_http", "http")

    @property
    def untrusted_root(self) -> str:
        """A host whose certificate another CA has signed."""
        return self._root("impostor")

    @property
    def token_endpoint(self) -> str:
        return f"{self.login_root}/{self.tenant_id}/oauth2/v2.0/token"

    @property
    def feed_root(self) -> str:
        return f"{self.api_root}/api/v1.0/{self.tenant_id}/activity/feed"

    @property
    def subscriptions(self) -> dict[str, str]:
        """Content type -> enabled or disabled."""
        return self.activity.subscriptions

    @property
    def blobs(self) -> list[Blob]:
        return list(self.activity.blobs)

    @property
    def client_secret(self) -> str | None:
        return self.options.client_secret

    # -- what an administrator and the users of the tenant do

    def credentials(
        self,
        *,
        key: str = "rsa2048",
        passphrase: str | None = None,
        valid_days: float = 365,
        not_before: datetime | None = None,
        register: bool = True,
        combined: bool = False,
        encoding: str = "PKCS8",
    ) -> Credentials:
        """A new key and certificate, known to the app registration if `register`."""
        with self._lock:
            # Place 0 of rsa2048 signs the tokens.
            place = self._key_places.get(key, 0) + 1
            self._key_places[key] = place
            self._credentials += 1
            name = f"app{self._credentials}"
        made = make_credentials(
            self.directory,
            name,
            pooled_key(key, place),
            passphrase=passphrase,
            valid_days=valid_days,
            not_before=not_before,
            combined=combined,
            encoding=encoding,
        )
        if register:
            self.login.register(made)
        return made

    def enable(self, *content_types: str) -> None:
        """Subscriptions that were started long ago; without a name: all."""
        for content_type in content_types or CONTENT_TYPES:
            self.activity.enable(content_type)

    def publish(
        self,
        content_type: str,
        events: Sequence[Event],
        *,
        created: datetime | None = None,
        expires: datetime | None = None,
        visible: datetime | None = None,
        content_id: str | None = None,
        content_uri: str | None = None,
        body: bytes | None = None,
        pretty: bool = False,
        bom: bool = False,
        grows: bool = False,
    ) -> Blob:
        """Make a blob; `grows`: asked for from its very start, half of it shows."""
        if created is None:
            created = self.clock.now()
        created = created.replace(microsecond=created.microsecond // 1000 * 1000)
        identity = content_id or self._content_id(content_type, created)
        text = array_text(events, pretty=pretty) if body is None else body
        prefix = BOM if bom else b""
        half = events[: len(events) // 2]
        whole = Blob(
            content_type=content_type,
            content_id=identity,
            content_uri=content_uri or f"{self.feed_root}/audit/{identity}",
            created=created,
            expires=expires or created + self.options.content_expiration,
            visible=visible or created + self.options.visible_late,
            body=prefix + text,
            gzipped=packed(prefix + text),
            ids=tuple(event_id(event) for event in events),
        )
        if grows:
            text = prefix + array_text(half, pretty=pretty)
            less = replace(
                whole, body=text, gzipped=packed(text), ids=whole.ids[: len(half)]
            )
            whole = replace(whole, partial=less)
        self.activity.add(whole)
        return whole

    def _content_id(self, content_type: str, created: datetime) -> str:
        return content_id(content_type, created, next(self._serials))

    def revoke_tokens(self) -> None:
        """Every token that was issued so far answers 401 from now on."""
        self.login.revoke()

    # -- what goes wrong

    def fail(
        self,
        operation: str,
        fault: Fault,
        *,
        times: int | None = None,
        match: Match | None = None,
        after: int = 0,
    ) -> None:
        """Arm a fault; they are used up in order. `times=None`: until `heal`.

        `match` is a predicate on the request, a content type or a content id;
        the first `after` requests that fit are left alone.
        """
        if operation not in OPERATIONS:
            message = f"no such operation: {operation!r} {OPERATIONS}"
            raise ValueError(message)
        with self._lock:
            self._armed.append(_Armed(operation, fault, times, match, after))

    def heal(self) -> None:
        """Disarm every fault."""
        with self._lock:
            self._armed.clear()

    def _pick(self, ask: Ask) -> Fault | None:
        with self._lock:
            for armed in self._armed:
                if not armed.fits(ask):
                    continue
                if armed.after > 0:
                    armed.after -= 1
                    continue
                if armed.left is not None:
                    armed.left -= 1
                return armed.fault
        return None

    # -- requests

    def _serve(self, name: str, host: Host) -> Callable[[Wire], None]:
        def serve(wire: Wire) -> None:
            while (raw := wire.read_request(name)) is not None:
                if not self._exchange(wire, host, host.read(raw)):
                    return

        return serve

    def _exchange(self, wire: Wire, host: Host, ask: Ask) -> bool:
        begun = self.journal.begin(ask)
        self._watch(ask)
        fault = self._pick(ask)
        name = None if fault is None else fault.name
        try:
            if self.latency:
                wire.wait(self.latency)
            if fault is None:
                answer = host.answer(ask)
            else:
                answer = fault.act(Scene(self, wire, ask, partial(host.answer, ask)))
        except GoneError:
            self.journal.answered(ask, Answer(0), begun, name)
            raise
        if answer.status == 200 and answer.manner is None and answer.mangle is None:
            self.activity.page_served(ask)
        out = outgoing(ask, answer)
        place = self.journal.answered(ask, answer, begun, name)
        keep = wire.write(out) if answer.manner is None else answer.manner(wire, out)
        self.journal.ended(place)
        return keep

    def _watch(self, ask: Ask) -> None:
        """Rules that hold on every host."""
        root = self._root(ask.host)
        if self.journal.asked_by_redirect(root + ask.target):
            self.journal.violate(ask, "a redirect was followed")
        if any(name.lower() == "access_token" for name, _ in ask.query):
            self.journal.violate(ask, "a token was sent in a URL")

    def _serve_trap(self, scheme: str) -> Callable[[Wire], None]:
        def serve(wire: Wire) -> None:
            while (ask := wire.read_request("trap")) is not None:
                token = "authorization" in ask.headers
                seen = TrapRequest(
                    scheme=scheme,
                    method=ask.method,
                    target=ask.target,
                    headers=safe_headers(ask.headers),
                    authorization=token,
                    body_bytes=len(ask.body),
                )
                with self._lock:
                    self.trap.requests.append(seen)
                what = "a token" if token else "a request"
                self.journal.violate(ask, f"{what} was sent to a wrong host")
                wire.write(outgoing(ask, Answer(200, b"[]")))

        return serve


def _context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued = authority.issue_cert("localhost", "127.0.0.1", "::1")
    issued.configure_cert(context)
    return context
