"""Issue 2, point 6: the events on their way into Logstash, by the script itself."""

from __future__ import annotations

import time
from datetime import timedelta

import logstash_stand_in as stand_in
import pytest
from conftest import DIRECTORY, Site
from cron_support import assert_delivered, assert_quiet, ids, publish, rows, taken
from logstash_stand_in import LogstashStandIn, Mode
from test_sink import answering


def use(site: Site, *doors: LogstashStandIn, **values: str) -> None:
    """Point the site to these doors."""
    site.set("logstash", hosts=", ".join(door.address for door in doors), **values)


def use_mutual(site: Site, door: LogstashStandIn) -> None:
    """Send to a door that wants a certificate of ours as well."""
    use(
        site,
        door,
        tls="yes",
        ca_file=str(door.ca_file),
        cert_file=str(door.client_certificate_file),
        key_file=str(door.client_key_file),
    )


def got(door: LogstashStandIn) -> set[str | None]:
    return set(door.taken_ids())


def test_one_event_a_line_and_nothing_before_or_after(site: Site) -> None:
    blobs = publish(site, 4, per=5)
    assert_quiet(site.run())
    [connection] = site.logstash.connections
    assert len(connection.lines) == 20
    assert all(line[:1] == b"{" and line[-1:] == b"}" for line in connection.lines)
    assert connection.remainder == b""
    assert connection.ended == "end_of_stream"
    assert_delivered(site, blobs)


def test_a_batch_goes_on_one_connection_and_several_batches_on_several(
    site: Site,
) -> None:
    created = site.office.clock.now() - timedelta(minutes=2)
    blobs = [
        site.office.publish(
            DIRECTORY,
            [{"Id": f"big{n}", "Fill": "x" * 900_000}],
            created=created + timedelta(milliseconds=n),
        )
        for n in range(20)
    ]
    assert_quiet(site.run())
    sizes = [connection.bytes for connection in site.logstash.connections]
    assert len(sizes) >= 2
    assert max(sizes) <= 32 << 20
    assert_delivered(site, blobs)


FAULTS: list[tuple[str, Mode]] = [
    ("refuse", stand_in.refuse()),
    ("reset", stand_in.reset_at(100)),
    ("reset at the end", stand_in.reset_at_end()),
    ("early end", stand_in.half_close_early(0)),
    ("stall", stand_in.accept_and_stall()),
    ("no confirmation", stand_in.stall_confirm()),
    ("black hole", stand_in.black_hole()),
]


@pytest.mark.parametrize("mode", [f[1] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_the_second_host_takes_what_the_first_did_not(site: Site, mode: Mode) -> None:
    blobs = publish(site, 3, per=600)
    with LogstashStandIn(mode=mode) as first:
        use(site, first, site.logstash, timeout_seconds="0.7")
        assert_quiet(site.run())
        assert first.lines == []
    assert_delivered(site, blobs)


@pytest.mark.parametrize(
    "mode", [f[1] for f in FAULTS[1:]], ids=[f[0] for f in FAULTS[1:]]
)
def test_what_is_not_confirmed_is_5_and_comes_with_the_next_run(
    site: Site, mode: Mode
) -> None:
    blobs = publish(site, 3, per=600)
    site.set("logstash", timeout_seconds="0.7")
    site.logstash.mode = mode
    result = site.run()
    assert result.code == 5
    assert "none of this batch counts as delivered; the next run sends it again" in (
        result.err
    )
    assert rows(site, "SELECT * FROM delivered") == []
    site.logstash.mode = stand_in.take()
    site.set("logstash", timeout_seconds="5")
    assert_quiet(site.run())
    assert_delivered(site, blobs)


def test_a_slow_confirmation_is_waited_for(site: Site) -> None:
    blobs = publish(site)
    site.logstash.mode = stand_in.slow(delay=2)
    assert_quiet(site.run())
    assert_delivered(site, blobs)
    assert len(site.logstash.connections) == 1


def test_the_first_host_that_answers_takes_all(site: Site) -> None:
    blobs = publish(site)
    with LogstashStandIn() as second:
        use(site, site.logstash, second)
        assert_quiet(site.run())
        assert second.connections == []
    assert_delivered(site, blobs)


def test_downloads_go_on_while_a_batch_is_confirmed_but_memory_is_bounded(
    site: Site,
) -> None:
    """Back-pressure: with Logstash silent, no more is fetched than the budget holds."""
    created = site.office.clock.now() - timedelta(minutes=2)
    for n in range(80):
        site.office.publish(
            DIRECTORY,
            [{"Id": f"big{n}", "Fill": "x" * 1_000_000}],
            created=created + timedelta(milliseconds=n),
        )
    site.logstash.script = [stand_in.stall_confirm()]
    site.set("logstash", timeout_seconds="4")
    process = site.start()
    site.logstash.wait_for(1, timeout=60)
    time.sleep(2)
    fetched = len(site.office.journal.of("blob"))
    process.kill()
    process.communicate()
    assert 8 < fetched < 60


def test_a_blob_larger_than_the_memory_goes_alone_and_what_came_before_it_is_sent(
    site: Site,
) -> None:
    """Else it would wait for room that nobody gives back."""
    created = site.office.clock.now() - timedelta(minutes=2)
    small = publish(site, 3)
    large = [
        site.office.publish(
            DIRECTORY,
            [{"Id": f"{n}.{each}", "Fill": "x" * 1_000_000} for each in range(20)],
            created=created + timedelta(seconds=n),
        )
        for n in range(3)
    ]
    result = site.run(timeout=40)
    assert_quiet(result)
    assert_delivered(site, small + large)


def test_a_web_server_on_the_port_has_taken_nothing(site: Site) -> None:
    blobs = publish(site)
    server, host = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with server:
        site.set("logstash", hosts=str(host))
        result = site.run()
    assert result.code == 5
    assert "it is no Logstash tcp input: HTTP/1.1 400 Bad Request" in result.err
    site.set("logstash", hosts=site.logstash.address)
    assert_quiet(site.run())
    assert_delivered(site, blobs)


# -- TLS


def test_over_tls_all_arrives_and_the_stream_ends_cleanly(site: Site) -> None:
    blobs = publish(site)
    with LogstashStandIn(tls=True) as door:
        use(site, door, tls="yes", ca_file=str(door.ca_file))
        assert_quiet(site.run())
        assert got(door) == ids(blobs)
        assert door.connections[0].close_notify is True


def test_over_mutual_tls_the_client_certificate_is_shown(site: Site) -> None:
    blobs = publish(site)
    with LogstashStandIn(mutual=True) as door:
        use_mutual(site, door)
        assert_quiet(site.run())
        assert got(door) == ids(blobs)
        assert door.connections[0].peer_certificate == "poller.emu.test"


def test_a_certificate_of_another_ca_gets_no_event(site: Site) -> None:
    publish(site)
    with LogstashStandIn(tls=True) as door:
        use(site, door, tls="yes", ca_file=str(door.stranger_ca_file))
        result = site.run()
        assert result.code == 5
        assert "its certificate is not trusted" in result.err
        assert door.all_lines == []


def test_a_refused_client_certificate_is_5_and_nothing_counts(site: Site) -> None:
    publish(site)
    with LogstashStandIn(mutual=True, mode=stand_in.tls_alert()) as door:
        use_mutual(site, door)
        result = site.run()
    assert result.code == 5
    assert rows(site, "SELECT * FROM delivered") == []


@pytest.mark.parametrize(
    "mode", [stand_in.reset_at_end(), stand_in.reset_at(4)], ids=["end", "middle"]
)
def test_a_reset_under_tls_is_no_confirmation(site: Site, mode: Mode) -> None:
    """OpenSSL reports it as an end of stream."""
    blobs = publish(site)
    with LogstashStandIn(tls=True, script=[mode]) as door:
        use(site, door, tls="yes", ca_file=str(door.ca_file))
        assert_quiet(site.run())
        assert got(door) == ids(blobs)
        assert len(door.connections) == 2


def test_plain_text_to_a_tls_input_is_not_taken(site: Site) -> None:
    blobs = publish(site)
    with LogstashStandIn(tls=True) as door:
        use(site, door)
        assert site.run().code == 5
        assert rows(site, "SELECT * FROM delivered") == []
    use(site, site.logstash)
    assert_quiet(site.run())
    assert taken(site) == ids(blobs)
