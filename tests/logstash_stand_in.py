"""A stand-in for Logstash's tcp input, and for everything that can befall it.

It ends a connection as Logstash 9.3.8 was measured to (logstash.md, section 7): the end
of stream comes when every byte was read. Under TLS a close_notify alone is not answered;
after it, or without it, the TCP half-close is what counts.

As a process it is a cheap sink: `python logstash_stand_in.py --port 0 --count`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme

Line = bytes  # Connection has a member called bytes

HANDSHAKE_S = 10.0
SMALL_BUFFER = 4096
_ID = re.compile(rb'"Id"\s*:\s*"([^"\\]*)"')


@dataclass(frozen=True)
class Mode:
    """How a connection is treated; made by the functions below."""

    name: str
    at: int = 0
    bytes_per_second: float | None = None
    delay: float = 0.0


def take() -> Mode:
    """Read to the end of stream, then close, as Logstash does."""
    return Mode("take")


def slow(*, bytes_per_second: float | None = None, delay: float = 0.0) -> Mode:
    """As `take`, but reading slowly, or with a pause before the end of stream."""
    return Mode("slow", bytes_per_second=bytes_per_second, delay=delay)


def refuse() -> Mode:
    """A closed port; in a script: reset as soon as it is accepted."""
    return Mode("refuse")


def never_accept() -> Mode:
    """A full backlog: connecting gets no answer. Not in a script."""
    return Mode("never_accept")


def black_hole() -> Mode:
    """Connects, and that is all: no TLS handshake, nothing read."""
    return Mode("black_hole")


def accept_and_stall() -> Mode:
    """Connects (under TLS: shakes hands) and never reads."""
    return Mode("accept_and_stall")


def stall_confirm() -> Mode:
    """Reads everything and never closes."""
    return Mode("stall_confirm")


def reset_at(count: int) -> Mode:
    """RST after this many bytes."""
    return Mode("reset_at", at=count)


def close_at(count: int) -> Mode:
    """FIN after this many bytes; what comes later is not read."""
    return Mode("close_at", at=count)


def half_close_early(count: int = 0) -> Mode:
    """End of stream after this many bytes, and reads on to the sender's end."""
    return Mode("half_close_early", at=count)


def reset_at_end() -> Mode:
    """Reads everything; RST in place of the end of stream."""
    return Mode("reset_at_end")


def tls_alert() -> Mode:
    """Refuses the client's certificate, or its absence, by a TLS alert."""
    return Mode("tls_alert")


_CLOSED = ("refuse", "never_accept")


@dataclass(frozen=True)
class Connection:
    """What became of one connection.

    `ended`: `end_of_stream` (the sender's), `truncated` (under TLS: half-close without
    close_notify), `reset` (by the sender), `handshake`, or the name of the mode that
    ended it.
    """

    mode: str
    bytes: int
    lines: tuple[Line, ...]
    remainder: Line
    ended: str
    taken: bool
    close_notify: bool | None
    peer_certificate: str | None
    started: float
    closed: float


class LogstashStandIn:
    """One port of a Logstash host.

    `mode` holds for every connection for which `script` has no entry left. With
    `store=False` bytes and lines are only counted.
    """

    def __init__(
        self,
        *,
        tls: bool = False,
        mutual: bool = False,
        mode: Mode | None = None,
        script: Iterable[Mode] = (),
        port: int = 0,
        store: bool = True,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self.tls = tls or mutual
        self.mutual = mutual
        self.script = list(script)
        self.store = store
        self.directory = Path(tempfile.mkdtemp(prefix="logstash-"))
        self.total_bytes = 0
        self.total_lines = 0
        self._mode = mode or take()
        self._lock = threading.Condition()
        self._connections: list[Connection] = []
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._dummies: list[socket.socket] = []
        self._wake, self._woken = socket.socketpair()
        self._acceptor: threading.Thread | None = None
        if self.tls:
            self._make_certificates()

    # -- addresses and results

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        """Applies to connections that are accepted from now on."""
        with self._lock:
            self._mode = mode
            if self._acceptor is not None:
                self._open_port()
        self._wake.send(b"w")

    @property
    def connections(self) -> list[Connection]:
        with self._lock:
            return list(self._connections)

    @property
    def lines(self) -> list[bytes]:
        """Complete lines of the connections that were taken to the end."""
        return [line for one in self.connections if one.taken for line in one.lines]

    @property
    def all_lines(self) -> list[bytes]:
        """Complete lines of every connection: what may have got through."""
        return [line for one in self.connections for line in one.lines]

    def taken_ids(self) -> list[str | None]:
        """The Id of each taken line; None where it has none."""
        return [line_id(line) for line in self.lines]

    def wait_for(self, count: int, timeout: float = 5.0) -> list[Connection]:
        """Wait until this many connections have ended."""
        with self._lock:
            self._lock.wait_for(lambda: len(self._connections) >= count, timeout)
            return list(self._connections)

    def clear(self) -> None:
        with self._lock:
            self._connections.clear()
            self.total_bytes = self.total_lines = 0

    # -- life

    def __enter__(self) -> Self:
        with self._lock:
            self._open_port()
        self._acceptor = threading.Thread(
            target=self._accept, name="logstash-accept", daemon=True
        )
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stopping.set()
        self._wake.send(b"w")
        if self._acceptor is not None:
            self._acceptor.join()
        with self._lock:
            self._close_port()
            victims, threads = list(self._open), list(self._threads)
        for sock in victims:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in threads:
            thread.join(timeout=5)
        self._wake.close()
        self._woken.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _make_certificates(self) -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        client = authority.issue_cert("poller.emu.test")
        self.ca_file = self.directory / "ca.pem"
        self.stranger_ca_file = self.directory / "stranger-ca.pem"
        self.client_certificate_file = self.directory / "client.pem"
        self.client_key_file = self.directory / "client.key"
        authority.cert_pem.write_to_path(str(self.ca_file))
        stranger.cert_pem.write_to_path(str(self.stranger_ca_file))
        client.cert_chain_pems[0].write_to_path(str(self.client_certificate_file))
        client.private_key_pem.write_to_path(str(self.client_key_file))
        issued = authority.issue_cert("localhost", "127.0.0.1", "::1")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(self._context)
        if self.mutual:
            self._context.verify_mode = ssl.CERT_REQUIRED
            authority.configure_trust(self._context)
        self._alerting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(self._alerting)
        self._alerting.verify_mode = ssl.CERT_REQUIRED
        stranger.configure_trust(self._alerting)

    # -- the port

    def _open_port(self) -> None:
        closed = self._mode.name in _CLOSED
        if self._listener is not None and not closed and not self._dummies:
            return
        self._close_port()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        self.port = listener.getsockname()[1]
        if self._mode.name == "refuse":
            # Bound and not listening: refused, and nobody else can take the port.
            self._listener = listener
            self._dummies = [listener]
            return
        listener.listen(0 if closed else 128)
        listener.setblocking(False)
        self._listener = listener
        if closed:
            self._fill_backlog()

    def _fill_backlog(self) -> None:
        for _ in range(4):
            dummy = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            dummy.setblocking(False)
            dummy.connect_ex((self.host, self.port))
            self._dummies.append(dummy)
        time.sleep(0.02)

    def _close_port(self) -> None:
        for dummy in self._dummies:
            dummy.close()
        self._dummies = []
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                listener = self._listener if not self._dummies else None
            with selectors.DefaultSelector() as selector:
                selector.register(self._woken, selectors.EVENT_READ)
                if listener is not None:
                    with contextlib.suppress(ValueError):
                        selector.register(listener, selectors.EVENT_READ)
                ready = selector.select()
            for key, _ in ready:
                if key.fileobj is self._woken:
                    self._woken.recv(64)
                elif listener is not None:
                    with contextlib.suppress(OSError):
                        self._start(listener.accept()[0])

    def _start(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        with self._lock:
            mode = self.script.pop(0) if self.script else self._mode
            self._open.add(sock)
            thread = threading.Thread(
                target=self._run, args=(sock, mode), name="logstash", daemon=True
            )
            self._threads.add(thread)
        thread.start()

    def _run(self, sock: socket.socket, mode: Mode) -> None:
        try:
            _Visit(self, sock, mode).run()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    # -- used by _Visit

    def moved(self, old: socket.socket, new: socket.socket) -> None:
        with self._lock:
            self._open.discard(old)
            self._open.add(new)

    def forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.discard(sock)

    def pause(self, seconds: float | None) -> None:
        self._stopping.wait(seconds)

    def note(self, connection: Connection, lines: int) -> None:
        with self._lock:
            self._connections.append(connection)
            self.total_bytes += connection.bytes
            self.total_lines += lines
            self._lock.notify_all()

    def context(self, mode: Mode) -> ssl.SSLContext:
        return self._alerting if mode.name == "tls_alert" else self._context


class _Visit:
    """One connection, from accept to close."""

    def __init__(self, home: LogstashStandIn, sock: socket.socket, mode: Mode) -> None:
        self.home = home
        self.sock = sock
        self.mode = mode
        self.started = time.monotonic()
        self.count = 0
        self.newlines = 0
        self.parts: list[bytes] = []
        self.close_notify: bool | None = None
        self.peer: str | None = None
        self.noted = False

    def run(self) -> None:
        try:
            self._treat()
        except OSError:
            self.note("reset")
        finally:
            self.note("closed")
            self.home.forget(self.sock)
            self.sock.close()

    def note(self, ended: str, *, taken: bool = False) -> None:
        """Write the record, once, before the sender can see the end."""
        if self.noted:
            return
        self.noted = True
        pieces = b"".join(self.parts).split(b"\n")
        self.home.note(
            Connection(
                mode=self.mode.name,
                bytes=self.count,
                lines=tuple(pieces[:-1]),
                remainder=pieces[-1],
                ended=ended,
                taken=taken,
                close_notify=self.close_notify,
                peer_certificate=self.peer,
                started=self.started,
                closed=time.monotonic(),
            ),
            self.newlines,
        )

    def _treat(self) -> None:
        mode = self.mode
        if mode.name == "refuse":
            self.note("refuse")
            self._reset()
            return
        if mode.name in ("black_hole", "accept_and_stall") or mode.bytes_per_second:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        if mode.name == "black_hole":
            self.home.pause(None)
            self.note("black_hole")
            return
        if self.home.tls and not self._shake_hands():
            return
        if mode.name == "accept_and_stall":
            self.home.pause(None)
            self.note("accept_and_stall")
        elif mode.name in ("reset_at", "close_at", "half_close_early"):
            self._cut_at()
        else:
            self._to_the_end()

    def _shake_hands(self) -> bool:
        raw = self.sock
        raw.settimeout(HANDSHAKE_S)
        tls = self.home.context(self.mode).wrap_socket(
            raw,
            server_side=True,
            suppress_ragged_eofs=False,
            do_handshake_on_connect=False,
        )
        self.home.moved(raw, tls)
        self.sock = tls
        try:
            tls.do_handshake()
        except (OSError, ValueError):
            self.note("handshake")
            self._drain()
            return False
        tls.settimeout(None)
        self.close_notify = False
        found = tls.getpeercert()
        if found:
            names: Any = found.get("subjectAltName", ())
            self.peer = ",".join(name[1] for name in names) or "unnamed"
        return True

    def _read(self, most: int = 1 << 18) -> bytes:
        """Some bytes; empty at the sender's end of stream."""
        try:
            data = self.sock.recv(most)
        except ssl.SSLEOFError:
            return b""
        if data:
            self.count += len(data)
            self.newlines += data.count(b"\n")
            if self.home.store:
                self.parts.append(data)
        elif isinstance(self.sock, ssl.SSLSocket):
            self.close_notify = True
        return data

    def _to_the_end(self) -> None:
        rate = self.mode.bytes_per_second
        size = 1 << 18 if rate is None else max(1, min(SMALL_BUFFER, int(rate / 10)))
        while data := self._read(size):
            if rate is not None:
                self.home.pause(len(data) / rate)
        if self.close_notify:
            # Logstash waits for the FIN as well.
            while socket.socket.recv(self.sock, 4096):
                pass
        ended = "truncated" if self.close_notify is False else "end_of_stream"
        if self.mode.name == "stall_confirm":
            self.note("stall_confirm")
            self.home.pause(None)
        elif self.mode.name == "reset_at_end":
            self.note("reset_at_end")
            self._reset()
        else:
            if self.mode.delay:
                self.home.pause(self.mode.delay)
            self.note(ended, taken=True)
            self._finish()

    def _cut_at(self) -> None:
        mode = self.mode
        while self.count < mode.at:
            if not self._read(mode.at - self.count):
                self.note("end_of_stream")
                return
        if mode.name == "reset_at":
            self.note(mode.name)
            self._reset()
            return
        if mode.name == "close_at":
            self.note(mode.name)
            self._half_close()
            self.home.pause(0.05)
            return
        self._half_close()
        with contextlib.suppress(OSError):
            while self._read():
                pass
        self.note(mode.name)

    def _half_close(self) -> None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def _drain(self) -> None:
        """Let an alert arrive: closing over unread bytes would send RST."""
        self._half_close()
        with contextlib.suppress(OSError):
            self.sock.settimeout(0.2)
            while socket.socket.recv(self.sock, 4096):
                pass

    def _finish(self) -> None:
        if isinstance(self.sock, ssl.SSLSocket) and self.close_notify:
            with contextlib.suppress(OSError, ValueError):
                self.sock.settimeout(1.0)
                self.sock.unwrap()
        self._half_close()

    def _reset(self) -> None:
        self.sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.sock.close()


def line_id(line: bytes) -> str | None:
    """The top-level Id; by pattern where Python cannot read the line."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        found = _ID.search(line)
        return found[1].decode() if found else None
    found_id = event.get("Id") if isinstance(event, dict) else None
    return found_id if isinstance(found_id, str) else None


# == The cheap sink ====================================================================


class Sink:
    """Counts bytes and lines of plain TCP; one thread for each connection."""

    def __init__(self, host: str, port: int) -> None:
        self._listener = socket.create_server((host, port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self.totals = {"connections": 0, "bytes": 0, "lines": 0, "broken": 0}
        self.first: float | None = None
        self.last: float | None = None

    def serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._take, args=(sock,), daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _take(self, sock: socket.socket) -> None:
        buffer = bytearray(1 << 20)
        count = lines = broken = 0
        try:
            while got := sock.recv_into(buffer):
                self.first = self.first or time.time()
                count += got
                lines += buffer.count(b"\n", 0, got)
        except OSError:
            broken = 1
        with self._lock:
            found = {"connections": 1, "bytes": count, "lines": lines, "broken": broken}
            for name, value in found.items():
                self.totals[name] += value
            self.last = time.time()
        # Counted before the sender sees the end of stream.
        sock.close()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Count lines as Logstash would take them."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--count",
        action="store_true",
        help="print the totals at the end (SIGTERM, stdin)",
    )
    given = parser.parse_args(arguments)
    sink = Sink(given.host, given.port)
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())

    def watch_stdin() -> None:
        while os.read(0, 4096):
            pass
        done.set()

    threading.Thread(target=sink.serve, daemon=True).start()
    threading.Thread(target=watch_stdin, daemon=True).start()
    place = {"host": given.host, "port": sink.port}
    _say(json.dumps(place | {"address": f"{given.host}:{sink.port}"}))
    while not done.wait(0.5):
        pass
    sink.close()
    if given.count:
        _say(json.dumps(sink.totals | {"first": sink.first, "last": sink.last}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
