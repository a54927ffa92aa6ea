"""Sockets and HTTP/1.1, low enough to break both on purpose."""

from __future__ import annotations

import contextlib
import gzip
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl

MOST_HEADER_BYTES = 64 * 1024
HANDSHAKE_S = 10.0


class GoneError(Exception):
    """The client hung up, or the emulator is closing."""


@dataclass(frozen=True)
class Ask:
    """One request, and what the host made of its address."""

    host: str
    method: str
    target: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    body: bytes = b""
    operation: str = "other"
    tenant: str | None = None
    content_id: str | None = None

    def value(self, name: str) -> str | None:
        """A query parameter, whatever the case of its name."""
        for key, value in self.query:
            if key.lower() == name.lower():
                return value
        return None

    @property
    def content_type(self) -> str | None:
        return self.value("contentType")

    @property
    def publisher_id(self) -> str | None:
        return self.value("PublisherIdentifier")

    @property
    def next_page(self) -> str | None:
        return self.value("nextPage")

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" and token else None


@dataclass(frozen=True)
class Outgoing:
    """An answer in the form in which it would go out."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    keep_alive: bool

    def head(self) -> bytes:
        try:
            reason = HTTPStatus(self.status).phrase
        except ValueError:
            reason = "Unknown"
        lines = [f"HTTP/1.1 {self.status} {reason}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def without(self, *names: str) -> tuple[tuple[str, str], ...]:
        dropped = {name.lower() for name in names}
        return tuple(pair for pair in self.headers if pair[0].lower() not in dropped)


Manner = Callable[["Wire", Outgoing], bool]


@dataclass(frozen=True)
class Answer:
    """What a host says; `manner` replaces the ordinary way of sending it."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    media_type: str = "application/json; charset=utf-8"
    gzipped: bytes | None = None
    encoding: str = "auto"
    mangle: Callable[[bytes], bytes] | None = None
    manner: Manner | None = None
    ids: tuple[str | None, ...] = field(default=(), repr=False)


def outgoing(ask: Ask, answer: Answer) -> Outgoing:
    """Choose the coding (gzip only if allowed) and write the headers."""
    body, headers = answer.body, list(answer.headers)
    allowed = accepts_gzip(ask.headers.get("accept-encoding", ""))
    wanted = answer.encoding == "gzip" or len(body) > 860
    if answer.encoding != "identity" and allowed and wanted:
        body = answer.gzipped or gzip.compress(body, compresslevel=1, mtime=0)
        headers.append(("Content-Encoding", "gzip"))
    if answer.encoding != "identity" and body:
        headers.append(("Vary", "Accept-Encoding"))
    if answer.mangle is not None:
        body = answer.mangle(body)
    keep = ask.headers.get("connection", "").lower() != "close"
    if answer.body:
        headers.append(("Content-Type", answer.media_type))
    if answer.status != 204:
        headers.append(("Content-Length", str(len(body))))
    if not keep:
        headers.append(("Connection", "close"))
    return Outgoing(answer.status, tuple(headers), body, keep)


def accepts_gzip(header: str) -> bool:
    """RFC 9110 12.5.3: named, or by `*`, and not with a weight of 0."""
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        name, _, rest = part.strip().partition(";")
        weight = 1.0
        if rest.strip().startswith("q="):
            try:
                weight = float(rest.strip()[2:])
            except ValueError:
                weight = 0.0
        weights[name.strip()] = weight
    return weights.get("gzip", weights.get("*", 0.0)) > 0


class Wire:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, stopping: threading.Event) -> None:
        self.sock = sock
        self.stopping = stopping
        self._buffer = b""

    def read_request(self, host: str) -> Ask | None:
        """The next request; None at the end of the connection."""
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > MOST_HEADER_BYTES or not self._more():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3:
            return None
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        path, _, query = words[1].partition("?")
        return Ask(
            host=host,
            method=words[0],
            target=words[1],
            path=path,
            query=tuple(parse_qsl(query, keep_blank_values=True)),
            headers=headers,
            body=self._read_body(headers),
        )

    def _read_body(self, headers: Mapping[str, str]) -> bytes:
        length = int(headers.get("content-length") or 0)
        while len(self._buffer) < length:
            if not self._more():
                raise GoneError
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return body

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except OSError:
            return False
        self._buffer += data
        return bool(data)

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except (OSError, ValueError) as error:
            raise GoneError from error

    def write(self, out: Outgoing) -> bool:
        """The ordinary way; True if the connection may be used again."""
        self.send(out.head() + out.body)
        return out.keep_alive

    def wait(self, seconds: float) -> None:
        """Let time pass; GoneError if the client hangs up meanwhile."""
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            try:
                selector.register(self.sock, selectors.EVENT_READ)
            except ValueError as error:
                raise GoneError from error
            while (left := end - time.monotonic()) > 0:
                if selector.select(min(left, 0.5)) or self.stopping.is_set():
                    raise GoneError

    def reset(self) -> None:
        """RST."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.sock.close()

    def finish(self) -> None:
        """FIN, without a close_notify."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        self.sock.close()


Serve = Callable[[Wire], None]


@dataclass
class _Door:
    name: str
    serve: Serve
    tls: ssl.SSLContext | None
    listener: socket.socket
    port: int


class Server:
    """Any number of ports; a thread for each connection."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._doors: dict[str, _Door] = {}
        self._open: dict[socket.socket, str] = {}
        self._threads: set[threading.Thread] = set()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._acceptor = threading.Thread(
            target=self._accept, name="emulator-accept", daemon=True
        )
        self._acceptor.start()

    def listen(
        self, name: str, serve: Serve, tls: ssl.SSLContext | None = None, port: int = 0
    ) -> int:
        """Open a port on 127.0.0.1."""
        listener = socket.create_server(("127.0.0.1", port), backlog=256)
        listener.setblocking(False)
        door = _Door(name, serve, tls, listener, listener.getsockname()[1])
        with self._lock:
            self._doors[name] = door
            self._selector.register(listener, selectors.EVENT_READ, door)
        self._wake.send(b"w")
        return door.port

    def take_down(self, name: str) -> None:
        """Close the port and every connection that came through it."""
        with self._lock:
            door = self._doors[name]
            self._selector.unregister(door.listener)
            victims = [sock for sock, came in self._open.items() if came == name]
        door.listener.close()
        self._wake.send(b"w")
        self._cut(victims)

    def bring_up(self, name: str) -> None:
        """Open the same port again."""
        door = self._doors[name]
        self.listen(name, door.serve, door.tls, door.port)

    def close(self) -> None:
        self.stopping.set()
        self._wake.send(b"w")
        self._acceptor.join()
        for door in self._doors.values():
            door.listener.close()
        with self._lock:
            victims = list(self._open)
            threads = list(self._threads)
        self._cut(victims)
        for thread in threads:
            thread.join(timeout=5)
        self._selector.close()
        self._wake.close()
        self._woken.close()

    @staticmethod
    def _cut(socks: Iterable[socket.socket]) -> None:
        for sock in socks:
            # SSLSocket.shutdown drops its TLS state under the other thread's feet.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self.stopping.is_set():
            for key, _ in self._selector.select():
                if key.data is None:
                    self._woken.recv(64)
                    continue
                with contextlib.suppress(OSError):
                    sock, _ = key.data.listener.accept()
                    self._start(sock, key.data)

    def _start(self, sock: socket.socket, door: _Door) -> None:
        thread = threading.Thread(
            target=self._run, args=(sock, door), name=f"emulator-{door.name}"
        )
        thread.daemon = True
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _run(self, raw: socket.socket, door: _Door) -> None:
        sock = raw
        try:
            raw.setblocking(True)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if door.tls is not None:
                raw.settimeout(HANDSHAKE_S)
                sock = tls = door.tls.wrap_socket(
                    raw, server_side=True, do_handshake_on_connect=False
                )
            with self._lock:
                self._open[sock] = door.name
            if self.stopping.is_set():
                return
            if door.tls is not None:
                tls.do_handshake()
                tls.settimeout(None)
            door.serve(Wire(sock, self.stopping))
        except (OSError, GoneError):
            pass
        finally:
            with self._lock:
                self._open.pop(sock, None)
                self._threads.discard(threading.current_thread())
            sock.close()
            raw.close()
