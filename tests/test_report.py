"""--report and --reconcile: what the ledger says, and what they do about it."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import DIRECTORY, Site
from emulator import faults
from emulator.events import make_events

import o365_poller as op

EXCHANGE = "Audit.Exchange"
NOW = datetime(2026, 5, 20, 12, 0, tzinfo=UTC)
TENANT = "3f1c2b7e-0000-4000-8000-00000000a001"


def at(**ago: float) -> datetime:
    return NOW - timedelta(**ago)


def azure(tenant: str = TENANT) -> op.Azure:
    nobody = op.Credential(None, "", "", op.Secret(""))
    root = "https://manage.office.com"
    return op.Azure(tenant, tenant, nobody, root, root, root, None, tenant)


def a_blob(name: str, created: datetime, expires: datetime | None = None) -> op.Blob:
    return op.Blob(DIRECTORY, name, "", created, expires)


def settings(folder: Path, tenant: str = TENANT) -> op.Settings:
    window, overlap = timedelta(minutes=10), timedelta(minutes=5)
    poll = op.Poll((DIRECTORY,), window, overlap, folder / "config.db", 2, 5)
    none = op.Secret("")
    alerts = op.Alerts("", 25, "none", "", none, "", (), timedelta(hours=24), 30)
    sink = op.Logstash((), False, None, None, None, 5, False)
    graph = op.Graph(False, folder / "names.json")
    log = op.Logging(None, "INFO")
    return op.Settings(
        folder / "config.ini", azure(tenant), poll, sink, log, graph, alerts
    )


class Book:
    """A ledger to write into, and its report."""

    def __init__(
        self, folder: Path, capsysbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        self.settings = settings(folder)
        path = self.settings.poll.state_file
        self.state = op.State.open(path, self.settings.azure, (), NOW)
        self._capture = capsysbinary

    def polled(self, start: datetime, end: datetime, *done: op.Delivered) -> None:
        job = op.Slice(DIRECTORY, op.Window(start, end))
        self.state.finish(job, op.Changes(delivered=list(done)), NOW)

    def settle(self, **changes: object) -> None:
        self.state.settle(DIRECTORY, op.Changes(**changes), NOW)  # type: ignore[arg-type]

    def report(self, asked: op.Window | None = None) -> tuple[int, str]:
        code = op.report(self.settings, (DIRECTORY,), asked, NOW)
        return int(code), self._capture.readouterr().out.decode("ascii")


@pytest.fixture
def book(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Book:
    return Book(tmp_path, capsysbinary)


def rows(text: str) -> dict[str, list[str]]:
    """The table's lines by their period."""
    found = [line.split() for line in text.splitlines() if line.startswith("Audit.")]
    return {" ".join(row[1:-6]): row[-6:] for row in found}


# == The ledger alone ====================================================================


def test_a_whole_ledger_is_complete_and_counted_by_day(book: Book) -> None:
    noon = op.Delivered(a_blob("one", at(hours=30)), 5, 100)
    late = op.Delivered(a_blob("two", at(minutes=2)), 7, 100)
    book.polled(at(days=3), NOW, noon, late)
    code, text = book.report()
    assert code == 0
    assert rows(text) == {
        "2026-05-17": ["12:00:00", "0", "0", "0", "0", "0"],
        "2026-05-18": ["24:00:00", "0", "0", "0", "0", "0"],
        "2026-05-19": ["24:00:00", "1", "1", "0", "0", "5"],
        "2026-05-20": ["12:00:00", "1", "1", "0", "0", "7"],
        "all": ["72:00:00", "2", "2", "0", "0", "12"],
    }
    assert text.splitlines()[-1].startswith("verdict: complete")


def test_a_span_of_a_day_at_most_is_shown_by_the_hour(book: Book) -> None:
    book.polled(at(hours=5), NOW, op.Delivered(a_blob("x", at(hours=1.5)), 3, 9))
    code, text = book.report(op.Window(at(hours=2), at(hours=0.5)))
    assert code == 0
    assert rows(text) == {
        "2026-05-20 10:00": ["1:00:00", "1", "1", "0", "0", "3"],
        "2026-05-20 11:00": ["0:30:00", "0", "0", "0", "0", "0"],
        "all": ["1:30:00", "1", "1", "0", "0", "3"],
    }


def test_a_hole_is_named_by_its_times(book: Book) -> None:
    book.polled(at(days=2), at(hours=9))
    book.polled(at(hours=7), NOW)
    code, text = book.report()
    assert code == 6
    assert "[2026-05-20T03:00:00, 2026-05-20T05:00:00) UTC, 2:00:00" in text
    assert "1 hole, 0 losses" in text.splitlines()[-1]


def test_the_window_before_now_is_no_hole_and_what_is_older_is_one(book: Book) -> None:
    book.polled(at(days=2), at(minutes=10))
    assert book.report()[0] == 0
    with book.state._transaction():
        book.state._connection.execute("UPDATE polled SET end = end - 1")
    assert book.report()[0] == 6


def test_what_came_before_the_first_poll_is_a_hole_only_if_asked_for(
    book: Book,
) -> None:
    book.polled(at(hours=3), NOW)
    assert book.report()[0] == 0
    code, text = book.report(op.Window(at(hours=5), NOW))
    assert code == 6
    assert "[2026-05-20T07:00:00, 2026-05-20T09:00:00)" in text


def test_pending_blobs_are_listed_and_are_no_gap(book: Book) -> None:
    book.polled(at(hours=3), NOW)
    waits = op.Pending(a_blob("slow", at(hours=1)), at(hours=1), 1, "HTTP 503")
    book.settle(pending=[waits])
    code, text = book.report()
    assert code == 0
    assert rows(text)["all"] == ["3:00:00", "1", "0", "1", "0", "0"]
    assert "1 blob pending" in text.splitlines()[-1]


def test_a_lost_blob_stands_until_it_is_delivered_after_all(book: Book) -> None:
    book.polled(at(hours=3), NOW)
    blob = a_blob("gone\u2028né", at(hours=1, milliseconds=1))
    lost = op.Lost(DIRECTORY, op.blob_window(blob), "AF20051", blob.id)
    book.settle(lost=[lost])
    code, text = book.report()
    assert code == 6
    assert "lost: Audit.AzureActiveDirectory: blob gone n\\xe9: AF20051" in text
    assert rows(text)["all"] == ["3:00:00", "1", "0", "0", "1", "0"]
    book.settle(delivered=[op.Delivered(blob, 4, 10)])
    code, text = book.report()
    assert code == 0
    assert rows(text)["all"] == ["3:00:00", "1", "1", "0", "0", "4"]


def test_a_lost_span_is_a_loss_and_no_hole_until_it_is_polled_after_all(
    book: Book,
) -> None:
    book.polled(at(days=6), at(days=5))
    book.state.lose_span(DIRECTORY, op.Window(at(days=5), at(days=4)), NOW)
    book.polled(at(days=4), NOW)
    code, text = book.report()
    assert code == 6
    assert "hole:" not in text
    assert "lost: Audit.AzureActiveDirectory: [2026-05-15T12:00:00, 2026-05-16" in text
    book.polled(at(days=5), at(days=4))
    assert book.report()[0] == 0


def test_a_poll_that_never_came_to_an_end_is_a_hole(book: Book) -> None:
    book.state.set_watermark(DIRECTORY, at(hours=2))
    code, text = book.report()
    assert code == 6
    assert "[2026-05-20T10:00:00, 2026-05-20T11:50:00)" in text


def test_what_was_polled_for_the_first_time_this_second_is_no_hole(book: Book) -> None:
    book.state.set_watermark(DIRECTORY, NOW)
    code, text = book.report()
    assert code == 0
    assert rows(text) == {}
    assert text.splitlines()[-1].startswith("verdict: complete")


def test_no_state_is_nothing_polled_yet_and_none_is_made(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    code = op.report(settings(tmp_path), (DIRECTORY, EXCHANGE), None, NOW)
    text = capsysbinary.readouterr().out.decode()
    assert code == 0
    assert text.count("nothing polled yet") == 3
    assert list(tmp_path.iterdir()) == []


def test_the_report_of_another_tenants_state_is_refused(book: Book) -> None:
    other = settings(book.settings.file.parent, TENANT.replace("a", "b"))
    with pytest.raises(op.StateError, match="belongs to tenant_id"):
        op.report(other, (DIRECTORY,), None, NOW)


@pytest.mark.parametrize("content", [b"", b"no database at all, but some text" * 100])
def test_a_state_that_is_none_proves_nothing_and_is_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "config.db"
    path.write_bytes(content)
    with pytest.raises(op.StateError, match="proves nothing"):
        op.report(settings(tmp_path), (DIRECTORY,), None, NOW)
    assert path.read_bytes() == content


def test_the_ledger_cannot_be_written_through_the_report(book: Book) -> None:
    book.polled(at(hours=1), NOW)
    with (
        op.opened_ledger(book.state.path, azure()) as ledger,
        pytest.raises(op.StateError, match="readonly"),
    ):
        ledger._rows("DELETE FROM polled")


def test_a_big_ledger_costs_the_report_no_memory(book: Book) -> None:
    import tracemalloc

    book.polled(at(days=6), NOW)
    with book.state._transaction():
        book.state._connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < "
            "299999) INSERT INTO delivered SELECT ?, ? + i * 1000, randomblob(16), 1, 9,"
            " 0, 0 FROM n",
            (DIRECTORY, op.milliseconds(at(days=5))),
        )
    tracemalloc.start()
    code, text = book.report()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert code == 0
    assert rows(text)["all"][-1] == "300000"
    assert peak < 1_000_000


# == Through the script ==================================================================


def backdate(office_now: datetime, **ago: float) -> datetime:
    return office_now - timedelta(**ago)


@pytest.mark.parametrize(
    "flags",
    [
        ("--report", "--reconcile"),
        ("--report", "--stdout"),
        ("--reconcile", "--stdout"),
        ("--report", "--start", "8d"),
        ("--report", "--end", "1h"),
    ],
)
def test_flags_that_do_not_go_together_are_usage_errors(
    site: Site, flags: tuple[str, ...]
) -> None:
    result = site.run(*flags)
    assert result.code == 2
    assert result.out == ""
    assert site.office.journal.requests == []


def test_the_report_is_true_to_the_journal_and_makes_no_request(site: Site) -> None:
    now = site.office.clock.now()
    for n in range(5):
        site.office.publish(
            DIRECTORY,
            make_events(3, first=100 * n),
            created=backdate(now, minutes=1 + n),
        )
    assert site.run().code == 0
    asked = len(site.office.journal.requests)
    before = site.state_file.read_bytes()
    result = site.run("--report", "--start", "20m")
    assert result.code == 6  # the first poll went back ten minutes
    assert result.out.count("hole:") == 1
    result = site.run("--report")
    assert (result.code, result.err) == (0, "")
    last = rows(result.out)["all"]
    assert last[1:] == ["5", "5", "0", "0", str(site.office.journal.events_served)]
    assert len(site.office.journal.requests) == asked
    assert site.state_file.read_bytes() == before


def test_the_report_needs_no_logstash_and_reads_a_killed_polls_state(
    site: Site,
) -> None:
    assert site.run().code == 0
    database = sqlite3.connect(site.state_file, isolation_level=None)
    database.execute("PRAGMA cache_size = 1")
    database.execute("PRAGMA cache_spill = 1")
    database.execute("BEGIN IMMEDIATE")
    database.execute(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)"
        " INSERT INTO said SELECT 'junk' || i, 0, 'junk' FROM n"
    )
    journal = site.state_file.with_name("config.db-journal")
    torn = site.state_file.read_bytes(), journal.read_bytes()
    database.rollback()
    database.close()
    site.state_file.write_bytes(torn[0])
    journal.write_bytes(torn[1])
    site.set("logstash", hosts=None)
    result = site.run("--report")
    assert (result.code, result.err) == (0, "")
    assert "verdict: complete" in result.out


def test_reconcile_finds_the_blob_that_became_visible_late(site: Site) -> None:
    office = site.office
    now = office.clock.now()
    early = office.publish(DIRECTORY, make_events(2), created=backdate(now, hours=3))
    late = office.publish(
        DIRECTORY,
        make_events(2, first=50),
        created=backdate(now, hours=2),
        visible=now + timedelta(days=1),
    )
    assert site.run("--start", "6h").code == 0
    office.activity.show(late.content_id)
    assert site.run().code == 0
    assert set(site.logstash.taken_ids()) == set(early.ids)
    result = site.run("--reconcile")
    assert (result.code, result.err) == (0, "")
    assert set(site.logstash.taken_ids()) == set(early.ids + late.ids)
    assert len(site.logstash.taken_ids()) == 4
    assert rows(result.out)["all"][1:] == ["2", "2", "0", "0", "4"]
    fetched = [one.content_id for one in office.journal.of("blob")]
    assert fetched == [early.content_id, late.content_id]
    assert office.journal.violations == []


def test_reconcile_closes_a_hole_and_leaves_the_watermark_alone(site: Site) -> None:
    office = site.office
    now = office.clock.now()
    office.publish(DIRECTORY, make_events(2), created=backdate(now, minutes=1))
    assert site.run().code == 0
    before = state_rows(site, "SELECT * FROM watermark")
    assert site.run("--report", "--start", "30h").code == 6
    result = site.run("--reconcile", "--start", "30h")
    assert (result.code, result.err) == (0, "")
    assert site.run("--report", "--start", "29h").code == 0
    assert state_rows(site, "SELECT * FROM watermark") == before


def test_reconcile_ends_with_the_report_of_what_could_not_be_had(site: Site) -> None:
    office = site.office
    now = office.clock.now()
    gone = office.publish(DIRECTORY, make_events(2), created=backdate(now, hours=1))
    office.fail("blob", faults.af("AF20051"), match=gone.content_id)
    result = site.run("--reconcile", "--start", "2h")
    assert result.code == 6
    assert gone.content_id in result.out
    assert gone.content_id in result.err
    # It is said once; the report shows it as long as it stands.
    result = site.run("--reconcile", "--start", "2h")
    assert result.code == 6
    assert gone.content_id in result.out
    assert result.err == ""
    office.heal()
    assert site.run("--reconcile", "--start", "2h").code == 0


def test_reconcile_of_a_broken_listing_is_a_hole(site: Site) -> None:
    site.office.fail("content", faults.af("AF20030"))
    result = site.run("--reconcile", "--start", "2h")
    assert result.code == 3
    assert "nothing polled yet" in result.out
    assert site.run().code == 3
    site.office.heal()
    assert site.run().code == 0


def state_rows(site: Site, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(site.state_file) as connection:
        return connection.execute(query).fetchall()
