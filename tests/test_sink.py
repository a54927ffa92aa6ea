"""Batches to Logstash: taken to the end, or sent again."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import logstash_stand_in as stand_in
import pytest
from conftest import ROOT
from logstash_stand_in import LogstashStandIn, Mode
from making import make_logstash

from o365_poller import (
    Exit,
    Host,
    Logstash,
    LogstashSink,
    SinkError,
    refuse_words,
    send_all,
    sink_reason,
    unacknowledged,
)

LINES = [b'{"Id":"1"}\n{"Id":"2"}\n', b'{"Id":"3"}\n']
WHOLE = [b'{"Id":"1"}', b'{"Id":"2"}', b'{"Id":"3"}']
QUICK = 0.4


def settings(*doors: LogstashStandIn, timeout: float = QUICK) -> Logstash:
    """[logstash] for these doors."""
    found = make_logstash(*(door.address for door in doors), timeout=timeout)
    if doors[0].tls:
        found = found._replace(tls=True, ca_file=doors[0].ca_file)
    return found


@pytest.fixture(params=["tcp", "tls"])
def door(request: pytest.FixtureRequest) -> Iterator[LogstashStandIn]:
    with LogstashStandIn(tls=request.param == "tls") as door:
        yield door


def refused(sink: LogstashSink, pieces: Sequence[bytes] = LINES) -> str:
    """What is said of a batch that nobody takes."""
    with pytest.raises(SinkError) as caught:
        sink.deliver(pieces)
    assert caught.value.exit is Exit.SINK
    return caught.value.what


# -- taken


def test_a_batch_is_taken_whole_on_a_connection_of_its_own(
    door: LogstashStandIn,
) -> None:
    sink = LogstashSink(settings(door, timeout=5))
    sink.deliver(LINES)
    sink.deliver(LINES[1:])
    first, second = door.wait_for(2)
    assert list(first.lines) == WHOLE
    assert list(second.lines) == WHOLE[2:]
    assert (first.ended, first.remainder) == ("end_of_stream", b"")


def test_an_empty_batch_is_taken(door: LogstashStandIn) -> None:
    LogstashSink(settings(door, timeout=5)).deliver([])
    assert [c.ended for c in door.wait_for(1)] == ["end_of_stream"]


def test_a_large_batch_is_taken(door: LogstashStandIn) -> None:
    pieces = [b"x" * 99_999 + b"\n"] * 80
    LogstashSink(settings(door, timeout=5)).deliver(pieces)
    assert len(door.lines) == 80


def test_a_batch_that_drains_slowly_is_progress_though_no_call_returns(
    door: LogstashStandIn,
) -> None:
    """All of it lies in our kernel's buffer, and takes longer than the time-out."""
    door.mode = stand_in.slow(bytes_per_second=100_000)
    began = time.monotonic()
    LogstashSink(settings(door, timeout=2)).deliver([b"x" * 399_999 + b"\n"])
    assert len(door.lines) == 1
    assert time.monotonic() - began > 2


def test_a_late_confirmation_is_waited_for_up_to_the_time_out(
    door: LogstashStandIn,
) -> None:
    door.mode = stand_in.slow(delay=0.5)
    LogstashSink(settings(door, timeout=3)).deliver(LINES)
    assert door.lines == WHOLE


def test_under_tls_the_stream_ends_with_close_notify() -> None:
    with LogstashStandIn(tls=True) as door:
        LogstashSink(settings(door, timeout=5)).deliver(LINES)
        assert door.wait_for(1)[0].close_notify is True


# -- not taken


def test_an_end_of_stream_that_a_reset_follows_is_no_confirmation() -> None:
    """A peer that is killed: its end comes before it has taken our last bytes."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        server.bind(("127.0.0.1", 0))
        server.listen()

        def serve() -> None:
            for _ in (1, 2):
                peer, _ = server.accept()
                time.sleep(0.6)  # all is in the sender's kernel by now, and its end
                peer.shutdown(socket.SHUT_WR)
                time.sleep(0.3)
                peer.close()  # unread bytes make a reset of it

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        sink = LogstashSink(make_logstash(f"127.0.0.1:{port}", timeout=5))
        what = refused(sink, [b"x" * 199_999 + b"\n"])
    assert "failed while confirming: Connection reset by peer" in what


FAULTS: list[tuple[str, Mode, str]] = [
    ("refuse", stand_in.refuse(), "failed while connecting: Connection refused"),
    ("black hole", stand_in.black_hole(), "made no progress in 0.4 s while "),
    ("stall", stand_in.accept_and_stall(), "made no progress in 0.4 s while "),
    ("never confirms", stand_in.stall_confirm(), "made no progress in 0.4 s while confirming"),
    ("reset", stand_in.reset_at(5), "failed while "),
    ("reset at once", stand_in.reset_at(0), "failed while "),
    ("reset at the end", stand_in.reset_at_end(), "failed while "),
    ("closes early", stand_in.close_at(5), "failed while "),
    ("ends its side early", stand_in.half_close_early(0), "failed while "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "mode", "said"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_batch_that_is_not_taken_to_its_end_is_not_delivered(
    door: LogstashStandIn, name: str, mode: Mode, said: str
) -> None:
    door.mode = mode
    pieces = [b"x" * 999_999 + b"\n"] * (
        8 if name not in ("never confirms", "reset at the end") else 1
    )
    began = time.monotonic()
    what = refused(LogstashSink(settings(door)), pieces)
    assert what.startswith(f"no Logstash took the events: {door.address} {said}")
    assert time.monotonic() - began < 6


@pytest.mark.parametrize(("name", "mode", "said"), FAULTS, ids=[f[0] for f in FAULTS])
def test_the_next_host_takes_the_whole_batch(name: str, mode: Mode, said: str) -> None:
    count = 1 if name in ("never confirms", "reset at the end") else 60
    pieces = [b"x" * 99_999 + b"\n"] * count
    with LogstashStandIn(mode=mode) as first, LogstashStandIn() as second:
        LogstashSink(settings(first, second)).deliver(pieces)
        assert len(second.lines) == count


def test_a_host_that_resets_once_takes_the_batch_at_the_second_try(
    door: LogstashStandIn,
) -> None:
    door.script = [stand_in.reset_at(4)]
    LogstashSink(settings(door, timeout=3)).deliver(LINES)
    assert door.lines == WHOLE
    assert len(door.wait_for(2)) == 2


def test_each_host_is_tried_twice_at_most() -> None:
    with (
        LogstashStandIn(mode=stand_in.reset_at(0)) as one,
        LogstashStandIn(mode=stand_in.reset_at(0)) as two,
    ):
        refused(LogstashSink(settings(one, two)))
        assert (len(one.wait_for(2)), len(two.wait_for(2))) == (2, 2)


def test_a_host_that_timed_out_is_left_alone_for_the_rest_of_the_run() -> None:
    with (
        LogstashStandIn(mode=stand_in.stall_confirm()) as one,
        LogstashStandIn() as two,
    ):
        sink = LogstashSink(settings(one, two))
        sink.deliver(LINES)
        sink.deliver(LINES)
        assert len(two.wait_for(2)) == 2
        assert len(one.wait_for(1)) == 1


def test_when_all_hosts_timed_out_nothing_is_tried_and_it_is_said_why() -> None:
    with LogstashStandIn(mode=stand_in.stall_confirm()) as one:
        sink = LogstashSink(settings(one))
        refused(sink)
        began = time.monotonic()
        assert "while confirming" in refused(sink)
        assert time.monotonic() - began < QUICK / 2


def test_a_host_whose_backlog_is_full_is_bounded() -> None:
    with LogstashStandIn(mode=stand_in.never_accept()) as door:
        said = refused(LogstashSink(settings(door)))
        assert "made no progress in 0.4 s while " in said


def test_the_error_says_what_to_do() -> None:
    with LogstashStandIn(mode=stand_in.refuse()) as door:
        with pytest.raises(SinkError) as caught:
            LogstashSink(settings(door)).deliver(LINES)
        assert str(caught.value) == (
            f"no Logstash took the events: {door.address} failed while connecting: "
            "Connection refused; none of this batch counts as delivered; the next run "
            "sends it again; see that the tcp input listens there, with the same TLS "
            "settings, and that its pipeline is not blocked by Elasticsearch"
        )


def answering(words: bytes) -> tuple[socket.socket, Host]:
    """A server that is no Logstash: it answers."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(2)
                try:
                    peer.recv(65536)
                    peer.sendall(words)
                    peer.recv(65536)
                except OSError:
                    pass

    threading.Thread(target=serve, daemon=True).start()
    return server, Host("127.0.0.1", server.getsockname()[1])


def test_a_web_server_on_the_port_has_taken_nothing() -> None:
    server, host = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with server:
        said = refused(LogstashSink(make_logstash(str(host), timeout=2)))
    assert (
        "it answered, so it is no Logstash tcp input: HTTP/1.1 400 Bad Request" in said
    )


def test_a_name_that_does_not_resolve_is_a_host_that_fails() -> None:
    said = refused(LogstashSink(make_logstash("nowhere.invalid:5514", timeout=2)))
    assert said.startswith(
        "no Logstash took the events: nowhere.invalid:5514 failed while connecting: "
    )


# -- TLS


def test_a_certificate_of_another_ca_is_not_trusted() -> None:
    with LogstashStandIn(tls=True) as door:
        wrong = settings(door)._replace(ca_file=door.stranger_ca_file)
        said = refused(LogstashSink(wrong))
        assert "failed while connecting: its certificate is not trusted: " in said
        assert door.lines == []


def test_without_a_ca_file_the_systems_cas_decide() -> None:
    with LogstashStandIn(tls=True) as door:
        said = refused(LogstashSink(settings(door)._replace(ca_file=None)))
        assert "its certificate is not trusted: " in said


def test_a_certificate_for_another_name_is_not_trusted() -> None:
    with LogstashStandIn(tls=True) as door:
        other = settings(door)._replace(hosts=(Host("127.0.0.2", door.port),))
        said = refused(LogstashSink(other))
        assert "certificate is not trusted" in said or "refused" in said


def mutual(door: LogstashStandIn) -> Logstash:
    return settings(door, timeout=3)._replace(
        cert_file=door.client_certificate_file,
        key_file=door.client_key_file,
    )


def test_a_client_certificate_is_shown() -> None:
    with LogstashStandIn(mutual=True) as door:
        LogstashSink(mutual(door)).deliver(LINES)
        assert door.wait_for(1)[0].peer_certificate == "poller.emu.test"
        assert door.lines == WHOLE


def test_without_the_client_certificate_nothing_counts_as_taken() -> None:
    with LogstashStandIn(mutual=True) as door:
        assert "failed while " in refused(LogstashSink(settings(door, timeout=3)))


def test_an_alert_that_comes_after_the_handshake_is_a_break() -> None:
    with LogstashStandIn(mutual=True, mode=stand_in.tls_alert()) as door:
        said = refused(LogstashSink(mutual(door)))
        assert "TLS: " in said
        assert door.lines == []


def test_a_peer_that_goes_on_after_its_close_notify_is_bounded() -> None:
    with (
        LogstashStandIn(tls=True) as door,  # for its certificate
        socket.create_server(("127.0.0.1", 0)) as server,
    ):

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    raw, _ = server.accept()
                    tls = door.context(stand_in.take()).wrap_socket(raw, True)
                    while tls.recv(65536):
                        pass
                    tls.settimeout(0)
                    with contextlib.suppress(ssl.SSLError):
                        tls.unwrap()
                    with contextlib.suppress(OSError):
                        while True:
                            socket.socket.send(tls, b"x")
                            time.sleep(0.02)

        threading.Thread(target=serve, daemon=True).start()
        there = Host("127.0.0.1", server.getsockname()[1])
        began = time.monotonic()
        said = refused(LogstashSink(settings(door)._replace(hosts=(there,))))
        assert "made no progress in 0.4 s while confirming" in said
        assert time.monotonic() - began < 5


def test_plain_tcp_to_a_tls_port_is_not_taken_and_the_reverse() -> None:
    with LogstashStandIn(tls=True) as door:
        clear_text = LogstashSink(settings(door)._replace(tls=False))
        refused(clear_text, [b"x" * 999_999 + b"\n"] * 8)
        assert door.lines == []
        with LogstashStandIn() as clear:
            wrong = settings(clear, timeout=1)._replace(tls=True, ca_file=door.ca_file)
            refused(LogstashSink(wrong))
            assert not [line for line in clear.lines if b"Id" in line]


# -- parts


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(111, "Connection refused"), "Connection refused"),
        (ConnectionError("it closed"), "it closed"),
        (OSError(), "OSError"),
        (ValueError("bad\nlabel"), "bad label"),
    ],
)
def test_a_reason_is_short(error: Exception, words: str) -> None:
    assert sink_reason(error) == words


def test_an_end_of_stream_behind_our_last_byte_and_before_our_end_is_a_break() -> None:
    ours, theirs = socket.socketpair()

    class EndsEarly(socket.socket):
        """A connection whose peer ends its side as soon as it has all the lines."""

        def send(self, data: Any, flags: int = 0) -> int:
            sent = super().send(data, flags)
            theirs.shutdown(socket.SHUT_WR)
            return sent

    with theirs, EndsEarly(fileno=ours.detach()) as connection:
        connection.settimeout(1)
        with pytest.raises(ConnectionError, match="closed the connection before"):
            send_all(connection, [b'{"Id":"1"}\n'])


def test_silence_is_no_answer() -> None:
    refuse_words(b"")
    with pytest.raises(ConnectionError, match="no Logstash tcp input: hello there$"):
        refuse_words(b"hello\r\nthere")


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Linux asks the kernel"
)
def test_unacknowledged_bytes_are_counted() -> None:
    client, peer = socket.socketpair()
    with client, peer:
        assert unacknowledged(client) == 0
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0],
    ):
        assert unacknowledged(client) == 0
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(b"x" * 65536)
        assert unacknowledged(client) > 0


def test_elsewhere_than_on_linux_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert unacknowledged(None) == 0  # type: ignore[arg-type]


def test_standard_output_gets_the_lines(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    from o365_poller import StdoutSink

    sys.stdout = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), write_through=True)
    try:
        StdoutSink().deliver(LINES)
    finally:
        sys.stdout.close()
        sys.stdout = sys.__stdout__
    assert capfdbinary.readouterr().out == b"".join(LINES)


def test_a_closed_standard_output_is_a_sink_error(tmp_path: Path) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from o365_poller import SinkError, StdoutSink
try:
    StdoutSink().deliver([b"x" * 1000000])
except SinkError as error:
    sys.stderr.write(str(error))
"""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (
        0,
        (
            "standard output: Broken pipe; no state was touched; nothing to do, if the "
            "reader closed it on purpose"
        ),
    )


def test_plain_text_to_an_input_that_closes_at_it_is_never_taken() -> None:
    """As a TLS input does: it reads a few bytes and closes, without a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_at_plain_bytes() -> None:
            for _ in range(2):
                peer, _ = server.accept()
                peer.recv(65536)
                time.sleep(0.05)
                peer.close()

        thread = threading.Thread(target=close_at_plain_bytes)
        thread.start()
        sink = LogstashSink(make_logstash(f"127.0.0.1:{server.getsockname()[1]}"))
        said = refused(sink, [b"{}\n"])
        thread.join(5)
    assert "it closed the connection before the end (does it want TLS?)" in said
