"""The stand-in ends connections as Logstash does, and breaks them as it says."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import logstash_stand_in as stand_in
import pytest
from logstash_stand_in import Connection, LogstashStandIn, line_id

LINES = b'{"Id":"a"}\n{"Id":"b"}\n'


@pytest.fixture
def logstash() -> Iterator[LogstashStandIn]:
    with LogstashStandIn() as made:
        yield made


def connect(logstash: LogstashStandIn, timeout: float = 5.0) -> socket.socket:
    return socket.create_connection((logstash.host, logstash.port), timeout=timeout)


def deliver(logstash: LogstashStandIn, data: bytes) -> bytes:
    """Send, half-close, and read to the end of stream."""
    with connect(logstash) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while data := socket.socket.recv(sock, 65536):
        parts.append(data)
    return b"".join(parts)


def only(logstash: LogstashStandIn) -> Connection:
    (one,) = logstash.wait_for(1)
    return one


def secure(logstash: LogstashStandIn, *, certificate: bool = False) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(logstash.ca_file))
    if certificate:
        context.load_cert_chain(
            logstash.client_certificate_file, logstash.client_key_file
        )
    return context.wrap_socket(connect(logstash), server_hostname="localhost")


def say_goodbye(sock: ssl.SSLSocket) -> None:
    """close_notify, not waited for, then the half-close of TCP."""
    sock.setblocking(False)
    with contextlib.suppress(ssl.SSLWantReadError):
        sock.unwrap()
    sock.setblocking(True)
    sock.settimeout(5)
    socket.socket.shutdown(sock, socket.SHUT_WR)


def test_taken_to_the_end(logstash: LogstashStandIn) -> None:
    assert deliver(logstash, LINES + b"rest") == b""
    assert logstash.lines == [b'{"Id":"a"}', b'{"Id":"b"}']
    assert logstash.taken_ids() == ["a", "b"]
    one = only(logstash)
    assert (one.bytes, one.remainder, one.ended) == (26, b"rest", "end_of_stream")
    assert one.taken
    assert one.close_notify is None
    assert (logstash.total_bytes, logstash.total_lines) == (26, 2)
    logstash.clear()
    assert logstash.connections == []


def test_an_empty_connection(logstash: LogstashStandIn) -> None:
    assert deliver(logstash, b"") == b""
    assert logstash.lines == []


def test_counting_without_keeping() -> None:
    with LogstashStandIn(store=False) as logstash:
        deliver(logstash, LINES)
        assert (logstash.total_lines, logstash.lines) == (2, [])


def test_a_reset_by_the_sender_is_not_taken(logstash: LogstashStandIn) -> None:
    sock = connect(logstash)
    sock.sendall(LINES)
    time.sleep(0.05)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    assert only(logstash).ended == "reset"
    assert logstash.lines == []
    assert len(logstash.all_lines) == 2


@pytest.mark.parametrize(
    "mode", [stand_in.reset_at(5), stand_in.reset_at_end(), stand_in.refuse()]
)
def test_resets(mode: stand_in.Mode) -> None:
    with LogstashStandIn(script=[mode]) as logstash:
        with pytest.raises(ConnectionError):
            deliver(logstash, LINES)
        one = only(logstash)
        assert one.mode == one.ended == mode.name
        assert logstash.lines == []
        expected = {"reset_at": 5, "refuse": 0, "reset_at_end": len(LINES)}
        assert one.bytes == expected[mode.name]
        assert deliver(logstash, LINES) == b""


def test_an_early_end_of_stream() -> None:
    modes = [stand_in.close_at(5), stand_in.half_close_early(5)]
    with LogstashStandIn(script=modes) as logstash:
        for count in (1, 2):
            with connect(logstash) as sock:
                sock.sendall(LINES)
                assert sock.recv(1) == b""
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                logstash.wait_for(count)
        closed, half = logstash.connections
        assert (closed.bytes, half.bytes) == (5, len(LINES))
        assert logstash.lines == []


def test_modes_of_the_port(logstash: LogstashStandIn) -> None:
    port = logstash.port
    logstash.mode = stand_in.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(logstash)
    logstash.mode = stand_in.never_accept()
    with pytest.raises(TimeoutError):
        connect(logstash, timeout=0.3)
    logstash.mode = stand_in.take()
    assert logstash.mode.name == "take"
    deliver(logstash, LINES)
    assert logstash.port == port
    assert LINES.split(b"\n")[0] in logstash.lines


@pytest.mark.parametrize(
    "mode", [stand_in.accept_and_stall(), stand_in.black_hole()], ids=lambda m: m.name
)
def test_a_stalled_reader_blocks_the_sender(mode: stand_in.Mode) -> None:
    with (
        LogstashStandIn(mode=mode) as logstash,
        connect(logstash, timeout=0.3) as sock,
        pytest.raises(TimeoutError),
    ):
        sock.sendall(b"x" * (64 << 20))
    assert only(logstash).ended == mode.name


def test_a_confirmation_that_never_comes() -> None:
    with LogstashStandIn(mode=stand_in.stall_confirm()) as logstash:
        with connect(logstash, timeout=0.3) as sock:
            sock.sendall(LINES)
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(TimeoutError):
                sock.recv(1)
        assert len(only(logstash).lines) == 2
        assert logstash.lines == []


def test_slow_ways() -> None:
    script = [stand_in.slow(delay=0.2), stand_in.slow(bytes_per_second=200)]
    with LogstashStandIn(script=script) as logstash:
        for _ in range(2):
            began = time.monotonic()
            deliver(logstash, LINES * 3)
            assert time.monotonic() - began > 0.19
        assert len(logstash.lines) == 12


@pytest.mark.parametrize("notify", [True, False])
def test_the_end_of_a_tls_connection(*, notify: bool) -> None:
    with LogstashStandIn(tls=True) as logstash:
        with secure(logstash) as sock:
            sock.sendall(LINES)
            if notify:
                say_goodbye(sock)
            else:
                socket.socket.shutdown(sock, socket.SHUT_WR)
            read_all(sock)
        one = only(logstash)
        assert one.close_notify is notify
        assert one.ended == ("end_of_stream" if notify else "truncated")
        assert len(logstash.lines) == 2


def test_a_close_notify_alone_is_not_answered() -> None:
    with LogstashStandIn(tls=True) as logstash, secure(logstash) as sock:
        sock.sendall(LINES)
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.unwrap()
        assert logstash.connections == []
        socket.socket.shutdown(sock, socket.SHUT_WR)
        assert logstash.wait_for(1)[0].taken


def test_mutual_tls() -> None:
    with LogstashStandIn(mutual=True) as logstash:
        with secure(logstash, certificate=True) as sock:
            sock.sendall(LINES)
            say_goodbye(sock)
            read_all(sock)
        assert only(logstash).peer_certificate == "poller.emu.test"
        with secure(logstash) as sock, pytest.raises(ssl.SSLError):
            # TLS 1.3: the sender learns of it at its first read only.
            sock.recv(1)
        assert logstash.wait_for(2)[1].ended == "handshake"


def test_an_alert() -> None:
    with LogstashStandIn(tls=True, mode=stand_in.tls_alert()) as logstash:
        with secure(logstash) as sock, pytest.raises(ssl.SSLError, match="alert"):
            sock.recv(1)
        assert only(logstash).bytes == 0


def test_plain_text_to_tls() -> None:
    with LogstashStandIn(tls=True) as logstash:
        with contextlib.suppress(OSError):
            deliver(logstash, LINES)
        assert only(logstash).ended == "handshake"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"Nested":{"Id":"x"},"Id":"y"}', "y"),
        (b'{"Id":"z","n":' + b"7" * 5000 + b"}", "z"),
        (b"[1]", None),
        (b"{}", None),
        (b"not json", None),
    ],
)
def test_ids_of_lines(line: bytes, expected: str | None) -> None:
    assert line_id(line) == expected


def test_as_a_process() -> None:
    command = [sys.executable, "logstash_stand_in.py", "--port", "0", "--count"]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        place = json.loads(process.stdout.readline())
        with socket.create_connection((place["host"], place["port"]), 5) as sock:
            sock.sendall(LINES * 1000)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        process.stdin.close()
        totals = json.loads(process.stdout.readline())
        assert process.wait(timeout=5) == 0
    assert (totals["lines"], totals["bytes"]) == (2000, 22000)
    assert (totals["connections"], totals["broken"]) == (1, 0)


def test_closing_ends_every_thread() -> None:
    before = threading.active_count()
    logstash = LogstashStandIn(tls=True, mode=stand_in.stall_confirm())
    with logstash, connect(logstash):
        pass
    assert threading.active_count() == before
    assert not logstash.directory.exists()
