"""A model of delivery: a world of blobs, and the poller's own code against it.

Microsoft is below `ActivityApi` (pages, errors, blobs as bytes), Logstash below `Sink`;
the state is SQLite in a file. The process may die at every step that matters. What must
hold stands in `Machine.check_*`, each with the sentence of the contract that it holds.

The machine is made for a module, so that the same model runs against planted mistakes.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    multiple,
    rule,
)

TENANT = "3f1c2b7e-0000-4000-8000-00000000a001"
ROOT = "https://manage.office.com"
TYPES = ("Audit.AzureActiveDirectory", "Audit.Exchange")
BIRTH = datetime(2026, 5, 20, 12, 0, tzinfo=UTC)
WINDOW, OVERLAP = timedelta(minutes=10), timedelta(minutes=5)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
PAGE = 3
OUTAGE = 8
HEALTH = ("ok", "ok", "ok", "ill", "missing", "cut")
SHARED_MEMORY = Path("/dev/shm")


class Death(BaseException):
    """The process ends here: no clean-up of ours runs, SQLite rolls back."""


@dataclass
class WorldBlob:
    """A blob as Microsoft knows it."""

    content_type: str
    id: str
    created: datetime
    visible: datetime
    whole: datetime  # before that a fetch gives its first event only
    expires: datetime
    health: str = "ok"
    taken: int = 0  # events that the sink confirmed of its richest version
    failed_since: datetime | None = None
    fetched: int = 0
    part_by_broken: bool = False  # a run that broke has confirmed a part of it

    @property
    def late(self) -> bool:
        """Whether it shows later than the overlap makes up for."""
        return self.visible - self.created > OVERLAP

    def events(self, now: datetime) -> list[dict[str, str]]:
        size = 2 if now >= self.whole else 1
        return [{"Id": f"{self.id}#{n}"} for n in range(size)]


@dataclass(frozen=True)
class Trouble:
    """What befalls one run."""

    die_at: int | None = None  # the edge at which the process dies
    list_fails: bool = False
    no_date: bool = False
    page_at: int | None = None  # the listing request that is ill, by its number
    page_kind: str = "break"
    outage: bool = False
    refuse_fetch: int | None = None  # the fetch at which the token is refused
    sink_takes: int | None = None  # batches that the sink takes; then it refuses
    sink_part: bool = False  # the refused batch was written in part

    @property
    def none(self) -> bool:
        return self == Trouble() or self == Trouble(no_date=True)


TROUBLES = st.one_of(
    st.just(Trouble()),
    st.builds(
        Trouble,
        die_at=st.none() | st.integers(1, 40),
        list_fails=st.booleans(),
        no_date=st.booleans(),
        page_at=st.none() | st.integers(1, 6),
        page_kind=st.sampled_from(
            ["break", "lost", "loop", "repeat", "empty", "foreign", "garbage"]
        ),
        outage=st.sampled_from([False, False, False, True]),
        refuse_fetch=st.sampled_from([None, None, None, 1, 4]),
        sink_takes=st.sampled_from([None, None, None, 0, 1, 2]),
        sink_part=st.booleans(),
    ),
    st.builds(Trouble, die_at=st.integers(1, 25)),
    st.builds(Trouble, page_at=st.integers(1, 5)),
    st.builds(Trouble, sink_takes=st.integers(0, 2), sink_part=st.booleans()),
)


class Response:
    """As much of requests' response as the code asks for."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.status_code, self.headers = status, dict(headers)
        self.raw = self
        self._body = body

    def read(self, amount: int | None = None, decode_content: bool = False) -> bytes:
        cut = len(self._body) if amount is None else amount
        found, self._body = self._body[:cut], self._body[cut:]
        return found


class Edges:
    """Counts the steps of a run, and kills it at the appointed one."""

    def __init__(self, die_at: int | None) -> None:
        self._left = die_at

    def step(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                raise Death


@dataclass
class World:
    """Microsoft's side, its clock, and what our run does to it."""

    op: Any
    now: datetime = BIRTH
    offset: timedelta = timedelta()  # of our own clock
    blobs: list[WorldBlob] = field(default_factory=list)
    enabled: set[str] = field(default_factory=set)
    trouble: Trouble = Trouble()
    dates: dict[str, datetime] = field(default_factory=dict)
    listings: int = 0
    fetches: int = 0
    fetched: list[str] = field(default_factory=list)
    served: list[tuple[str, datetime, datetime]] = field(default_factory=list)
    asked_again: set[str] = field(default_factory=set)

    def clock(self) -> datetime:
        """Our machine's clock."""
        return self.now + self.offset

    def begin(self, trouble: Trouble) -> None:
        self.trouble = trouble
        self.listings = self.fetches = 0
        self.fetched, self.dates = [], {}
        self.asked_again = set()

    # -- as op.Http

    def ask(
        self,
        call: Any,
        take: Callable[[Any], Any],
        bearer: Any = None,
        stop: threading.Event | None = None,
    ) -> Any:
        if stop is not None and stop.is_set():
            raise self.op.AbandonedError
        parts = urlsplit(call.url)
        assert f"{parts.scheme}://{parts.netloc}" == ROOT
        query = {key.lower(): value[0] for key, value in parse_qs(parts.query).items()}
        assert query["publisheridentifier"] == TENANT
        response = self._answer(parts.path, query)
        if not self.trouble.no_date:
            self.dates[parts.netloc] = self.now
        if 200 <= response.status_code < 300:
            try:
                return take(response)
            except self.op.BrokenAnswerError as error:
                raise self._source_error(str(error)) from None
        answer = self.op.Answer(response.status_code, {}, response.read())
        raise self.op.AnswerError(self.op.judge(answer, self.now))

    def _source_error(self, what: str) -> Exception:
        error: Exception = self.op.SourceError(what, "nothing is lost", "wait")
        return error

    def _answer(self, path: str, query: Mapping[str, str]) -> Response:
        if path.endswith("/subscriptions/list"):
            if self.trouble.list_fails:
                raise self._source_error("list: HTTP 503")
            rows = [{"contentType": t, "status": "enabled"} for t in self.enabled]
            return Response(200, json.dumps(rows).encode(), {})
        if path.endswith("/subscriptions/start"):
            self.enabled.add(query["contenttype"])
            return Response(200, b"{}", {})
        if path.endswith("/subscriptions/content"):
            return self._page(query)
        return self._blob(path.rsplit("/", 1)[1])

    def _error(self, status: int, code: str) -> Response:
        body = json.dumps({"error": {"code": code, "message": "no"}}).encode()
        return Response(status, body, {})

    def _page(self, query: Mapping[str, str]) -> Response:
        self.listings += 1
        start, end = (
            datetime.strptime(query[name], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
            for name in ("starttime", "endtime")
        )
        content_type, page = query["contenttype"], int(query.get("nextpage", "0"))
        if content_type not in self.enabled:
            return self._error(400, "AF20022")
        if start >= end or end - start >= DAY or start < self.now - 7 * DAY:
            return self._error(400, "AF20055")
        kind = ""
        if self.listings == self.trouble.page_at:
            kind = self.trouble.page_kind
        if kind == "break":
            raise self._source_error("listing: HTTP 500")
        if kind == "lost" and page:
            return self._error(400, "AF20031")
        if kind == "garbage":
            return Response(200, b'[{"contentId":', {})
        return self._rows(content_type, start, end, page, kind)

    def _rows(
        self, content_type: str, start: datetime, end: datetime, page: int, kind: str
    ) -> Response:
        found = [
            blob
            for blob in self.blobs
            if blob.content_type == content_type
            and start <= blob.created < end
            and blob.visible <= self.now
        ]
        shown = found[page * PAGE : (page + 1) * PAGE]
        rows = [self._row(blob) for blob in shown]
        if kind == "repeat":
            rows = rows * 2
        following = page + 1 if (page + 1) * PAGE < len(found) else None
        if kind == "empty":
            rows, following = [], page
        if kind == "loop":
            following = page
        headers = {}
        if following is not None:
            root = "https://evil.example" if kind == "foreign" else ROOT
            # Observed: another version in the path, odd case, no PublisherIdentifier.
            headers["NextPageUri"] = (
                f"{root}/api/v1/{TENANT}/activity/feed/subscriptions/content?"
                f"contentType={content_type}&startTime={start:%Y-%m-%dT%H:%M:%S}&"
                f"endtime={end:%Y-%m-%dT%H:%M:%S}&nextPage={following}"
            )
            if kind == "empty":  # once more the same page, by another address
                headers["NextPageUri"] += "&again=1"
        else:
            self.served.append((content_type, start, end))
        return Response(200, json.dumps(rows).encode(), headers)

    def _row(self, blob: WorldBlob) -> dict[str, str]:
        return {
            "contentId": blob.id,
            "contentUri": f"http://localhost/elsewhere/{blob.id}",
            "contentType": blob.content_type,
            "contentCreated": f"{blob.created:%Y-%m-%dT%H:%M:%S}."
            f"{blob.created.microsecond // 1000:03d}Z",
            "contentExpiration": f"{blob.expires:%Y-%m-%dT%H:%M:%S}.000Z",
        }

    def _blob(self, id_: str) -> Response:
        self.fetches += 1
        self.fetched.append(id_)
        blob = next(blob for blob in self.blobs if blob.id == id_)
        blob.fetched += 1
        health = blob.health
        if blob.expires <= self.now:
            health = "gone"
        if health != "ok" and blob.failed_since is None:
            blob.failed_since = self.now
        if self.fetches == self.trouble.refuse_fetch or health == "denied":
            return self._error(401, "")
        if self.trouble.outage or health == "ill":
            raise self._source_error(f"blob {id_}: HTTP 503")
        if health == "gone":
            return self._error(400, "AF20051")
        if health == "missing":
            return self._error(404, "AF20050")
        body = json.dumps(blob.events(self.now), indent=1).encode()
        if health == "cut":
            body = body[:-2]
        return Response(200, body, {})


class WorldSink:
    """Logstash: takes all, a part, or nothing."""

    def __init__(self, world: World, edges: Edges) -> None:
        self.op, self.world, self.edges = world.op, world, edges
        self.confirmed: Counter[str] = Counter()
        self._left = world.trouble.sink_takes

    def deliver(self, pieces: Any) -> None:
        self.edges.step()
        lines = b"".join(pieces).decode().split("\n")
        assert lines.pop() == ""
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise self.op.SinkError("no Logstash", "it is sent again", "look")
        self.confirmed.update(json.loads(line)["Id"] for line in lines)
        self.edges.step()


def mortal(op: Any, edges: Edges, lost: list[Any]) -> Any:
    """op.State, dying before and after each thing that it does."""

    def both_sides(name: str) -> Callable[..., Any]:
        method = getattr(op.State, name)

        def call(self: Any, *args: Any, **named: Any) -> Any:
            edges.step()
            result = method(self, *args, **named)
            edges.step()
            return result

        return call

    class Mortal(op.State):  # type: ignore[misc]
        def _record(
            self, content_type: str, changes: Any, now: datetime, slice_id: int
        ) -> None:
            edges.step()
            super()._record(content_type, changes, now, slice_id)
            lost.extend(changes.lost)

    outside = "confirm finish settle give_up lose_span split set_watermark bring_back"
    inside = "_polled _advance _begin _prune"
    for name in (outside + " " + inside).split():
        setattr(Mortal, name, both_sides(name))
    return Mortal


def a_tenant(op: Any, state_file: Path) -> tuple[Any, Any]:
    """[azure] and [poll], as the contract has them by default."""
    nobody = op.Credential(None, "", "", op.Secret(""))
    azure = op.Azure(TENANT, TENANT, nobody, ROOT, ROOT, ROOT, None, TENANT)
    return azure, op.Poll(TYPES, WINDOW, OVERLAP, state_file, 1, 5)


@dataclass
class Ran:
    """What a run did."""

    purpose: str
    trouble: Trouble
    now: datetime
    died: bool = False
    exit: int = 0
    run: Any = None
    watermarks: dict[str, datetime | None] = field(default_factory=dict)
    confirmed: Counter[str] = field(default_factory=Counter)
    lost: list[Any] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)


def make_machine(op: Any) -> type[RuleBasedStateMachine]:  # noqa: C901
    """The model against a module: the product, or one with a planted mistake."""

    class Machine(RuleBasedStateMachine):
        known = Bundle("known")

        def __init__(self) -> None:
            super().__init__()
            memory = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
            self.folder = Path(tempfile.mkdtemp(prefix="model-", dir=memory))
            self.world = World(op)
            self.azure, self.poll_settings = a_tenant(op, self.folder / "s.db")
            self.serials = itertools.count(1)
            self.duty: dict[str, datetime] = {}
            self.lost: list[Any] = []
            self.lapses: list[tuple[str, datetime, datetime]] = []
            self.said: Counter[tuple[str, str, str]] = Counter()
            self.said_spans: list[tuple[str, datetime, datetime]] = []
            self.before = (op.BATCH_ROWS, op.OUTAGE_FAILURES, op.log.level)
            op.BATCH_ROWS, op.OUTAGE_FAILURES = 2, OUTAGE  # many batches a slice
            op.log.setLevel(logging.CRITICAL + 1)

        def teardown(self) -> None:
            try:
                self.end_well()
            finally:
                op.BATCH_ROWS, op.OUTAGE_FAILURES, level = self.before
                op.log.setLevel(level)
                shutil.rmtree(self.folder, ignore_errors=True)

        # -- the world moves

        @initialize(
            subscribed=st.sampled_from([TYPES, TYPES[:1]]),
        )
        def begin(self, subscribed: tuple[str, ...]) -> None:
            self.world.enabled = set(subscribed)

        @rule(
            target=known,
            content_type=st.sampled_from(TYPES),
            count=st.integers(1, 5),
            age=st.sampled_from(
                [timedelta(0), MINUTE, 4 * MINUTE, 9 * MINUTE, HOUR, 30 * HOUR]
            ),
            millisecond=st.sampled_from([0, 1, 500, 999]),
            late=st.sampled_from(
                [timedelta(0), timedelta(0), MINUTE, 5 * MINUTE, 3 * HOUR]
            ),
            grows=st.sampled_from([timedelta(0), timedelta(0), 3 * MINUTE]),
            life=st.sampled_from([7 * DAY, 20 * DAY]),
            health=st.sampled_from(["ok", "ok", "ok", "ill", "missing", "cut", "gone"]),
        )
        def publish(
            self,
            content_type: str,
            count: int,
            age: timedelta,
            millisecond: int,
            late: timedelta,
            grows: timedelta,
            life: timedelta,
            health: str,
        ) -> Any:
            """Blobs appear, several with one timestamp; some late, ill, unfinished."""
            created = (self.world.now - age).replace(microsecond=1000 * millisecond)
            made = []
            for _ in range(count):
                blob = WorldBlob(
                    content_type,
                    f"2026${next(self.serials)}$audit",
                    created,
                    max(created + late, self.world.now),
                    created + grows,
                    created + life,
                    health,
                )
                made.append(blob)
            self.world.blobs += made
            return multiple(*made)

        @rule(blob=known, health=st.sampled_from(["ok", "ill", "missing", "cut"]))
        def change(self, blob: WorldBlob, health: str) -> None:
            """A blob falls ill, goes missing, comes back. What is gone stays gone."""
            if blob.health != "gone":
                blob.health = health
                blob.failed_since = None if health == "ok" else blob.failed_since

        @rule(
            by=st.sampled_from(
                [timedelta(seconds=1), MINUTE, 5 * MINUTE, 5 * MINUTE, HOUR, 25 * HOUR]
            )
        )
        def wait(self, by: timedelta) -> None:
            """Time passes; cron may be off for a day."""
            self.world.now += by

        @rule(days=st.sampled_from([3, 9]))
        def be_off(self, days: int) -> None:
            """Cron is off for days."""
            self.world.now += days * DAY

        @rule(
            offset=st.sampled_from([timedelta(0), timedelta(0), -30 * MINUTE, 2 * HOUR])
        )
        def set_clock(self, offset: timedelta) -> None:
            """Our clock goes wrong, or right."""
            self.world.offset = offset

        # -- the runs

        def appear(
            self, fresh: int, health: str, grows: timedelta = timedelta(0)
        ) -> None:
            """Blobs of this very moment, of both types, of which the first may be ill."""
            now = self.world.now
            self.world.blobs += [
                WorldBlob(
                    content_type,
                    f"2026${next(self.serials)}$audit",
                    now,
                    now,
                    now + grows,
                    now + 7 * DAY,
                    "ok" if number else health,
                )
                for content_type in TYPES
                for number in range(fresh)
            ]
            self.world.now += timedelta(seconds=1)

        @rule(trouble=TROUBLES, fresh=st.integers(0, 5), health=st.sampled_from(HEALTH))
        def poll(self, trouble: Trouble, fresh: int, health: str) -> None:
            self.appear(fresh, health)
            self.run("poll", trouble)

        @rule(
            by=st.sampled_from([MINUTE, 5 * MINUTE, 12 * MINUTE]),
            times=st.integers(1, 3),
            fresh=st.integers(0, 2),
            health=st.sampled_from(HEALTH),
        )
        def cron(self, by: timedelta, times: int, fresh: int, health: str) -> None:
            """Some polls go well, one after the other."""
            for _ in range(times):
                self.world.now += by
                self.appear(fresh, health, 3 * MINUTE)
                self.run("poll", Trouble())

        @rule(trouble=TROUBLES, back=st.sampled_from([HOUR, 30 * HOUR]))
        def backfill(self, trouble: Trouble, back: timedelta) -> None:
            self.run("backfill", trouble, back)

        @rule(trouble=TROUBLES)
        def reconcile(self, trouble: Trouble) -> None:
            self.run("reconcile", trouble, 7 * DAY)

        def run(
            self, purpose: str, trouble: Trouble, back: timedelta = timedelta(0)
        ) -> Ran:
            """One run of the program, from opening the state to its end or death."""
            world = self.world
            if world.offset > timedelta(0):
                # With a clock that is ahead and no Date to tell, it polls the future.
                trouble = replace(trouble, no_date=False)
            world.begin(trouble)
            ran = Ran(purpose, trouble, world.now)
            before = self.ledger()
            self.note_lapses(before)
            edges = Edges(trouble.die_at)
            sink = WorldSink(world, edges)
            try:
                self.go(ran, back, edges, sink)
            except Death:
                ran.died = True
            self.lost += ran.lost
            self.credit(sink.confirmed, broken=ran.died or not trouble.none)
            ran.confirmed = sink.confirmed
            self.check_run(ran, before)
            return ran

        def go(self, ran: Ran, back: timedelta, edges: Edges, sink: Any) -> None:
            path, world = self.poll_settings.state_file, self.world
            kind = mortal(op, edges, ran.lost)
            state = kind.open(path, self.azure, (), world.clock())
            try:
                state._connection.execute("PRAGMA synchronous = OFF")
                feed = op.Feed(ROOT, TENANT, TENANT)
                api = op.ActivityApi(feed, world, None)
                ports = op.Ports(api, sink, state, world.clock, 1)
                run = ran.run = op.Run(ports, self.poll_settings)
                ran.watermarks = {t: state.watermark(t) for t in TYPES}
                say, limit = run.say_lost, edges

                def say_lost(lost: Any, tally: Any) -> None:
                    limit.step()
                    ran.said.extend(lost)
                    say(lost, tally)

                run.say_lost = say_lost
                self.start(run, ran.purpose, back)
                ran.exit = int(run.exit)
            finally:
                for content_type in TYPES:
                    first = content_type not in self.duty and ran.run is not None
                    if first and state.watermark(content_type) is not None:
                        # The first poll's window, by the clock that it had.
                        self.duty[content_type] = ran.run.now - WINDOW
                state.close()

        def start(self, run: Any, purpose: str, back: timedelta) -> None:
            errors = (op.TokenError, op.SinkError, op.StateError, op.SourceError)
            try:
                if purpose == "poll":
                    run.poll_all(TYPES)
                else:
                    window = op.Window(run.now - back, run.now)
                    run.backfill(TYPES, window, op.Purpose[purpose.upper()])
            except errors as error:
                run.note(error)

        def credit(self, confirmed: Counter[str], broken: bool) -> None:
            """Note of each blob the most that the sink has taken of one version."""
            events = Counter(line.partition("#")[0] for line in set(confirmed))
            for blob in self.world.blobs:
                blob.taken = max(blob.taken, events[blob.id])
                blob.part_by_broken |= broken and events[blob.id] == 1

        # -- what the state says

        def ledger(self) -> dict[str, Any]:
            path = self.poll_settings.state_file
            if not path.exists():
                return {
                    "delivered": {},
                    "pending": set(),
                    "lost": set(),
                    "polled": [],
                    "open": set(),
                    "given_up": [],
                    "watermark": {},
                }
            state = op.State.open(path, self.azure, (), self.world.clock())
            try:
                rows = state._rows
                return {
                    "delivered": {
                        (t, bytes(hash_)): (events, slice_)
                        for t, hash_, events, slice_ in rows(
                            "SELECT content_type, content_id, events, slice"
                            " FROM delivered"
                        )
                    },
                    "pending": {
                        (t, id_)
                        for t, id_ in rows(
                            "SELECT content_type, content_id FROM pending"
                        )
                    },
                    "lost": {
                        (t, id_)
                        for t, id_ in rows("SELECT content_type, content_id FROM lost")
                    },
                    "polled": [
                        (t, op.moment(start), op.moment(end))
                        for t, start, end in rows(
                            "SELECT content_type, start, end FROM polled"
                        )
                    ],
                    "open": {id_ for (id_,) in rows("SELECT id FROM slice")},
                    "given_up": [
                        (t, op.moment(start), op.moment(end))
                        for t, start, end in rows(
                            "SELECT content_type, start, end FROM slice WHERE given_up"
                        )
                    ],
                    "watermark": {t: state.watermark(t) for t in TYPES},
                }
            finally:
                state.close()

        def key(self, blob: WorldBlob) -> tuple[str, bytes]:
            return (blob.content_type, op.fingerprint(blob.id))

        # -- what must hold after each run

        def check_run(self, ran: Ran, before: Mapping[str, Any]) -> None:
            after = self.ledger()
            self.check_ledger(after)
            self.check_accounted(after)
            self.check_polled(after)
            self.check_no_hole(after)
            self.check_losses(ran)
            if ran.purpose == "poll":
                self.check_sent_again(ran, before)
                if ran.trouble.none:
                    self.check_clean(ran, before, after)
            else:
                # "No watermark moves."
                assert (
                    after["watermark"] == before["watermark"] or not before["watermark"]
                )

        def check_ledger(self, after: Mapping[str, Any]) -> None:
            """ "Lines are delivered only when Logstash has taken them": what the ledger
            calls delivered, the sink has confirmed, each event of it."""
            for blob in self.world.blobs:
                row = after["delivered"].get(self.key(blob))
                assert row is None or row[0] <= blob.taken, (
                    f"{blob.id}: {row[0]} events entered, {blob.taken} taken"
                )

        def check_accounted(self, after: Mapping[str, Any]) -> None:
            """What the watermark has passed is delivered, pending, lost, or in a slice
            that is open; what the overlap still covers may yet come."""
            for blob in self.world.blobs:
                watermark = after["watermark"].get(blob.content_type)
                if (
                    watermark is None
                    or not self.owed(blob)
                    or blob.created >= min(watermark, self.world.now) - OVERLAP
                ):
                    continue
                assert self.accounted(blob, after), (
                    f"{blob.id} of {blob.created} behind the watermark {watermark}"
                )

        def owed(self, blob: WorldBlob) -> bool:
            """Whether the polls alone have to bring a blob: it was there in time."""
            duty = self.duty.get(blob.content_type)
            return (
                duty is not None
                and blob.created >= duty
                and not blob.late
                and (blob.visible <= max(blob.created, duty) + OVERLAP)
            )

        def accounted(self, blob: WorldBlob, after: Mapping[str, Any]) -> bool:
            key = (blob.content_type, blob.id)
            # The ledger keeps a loss for 8 days; the model remembers it.
            lost = {(each.content_type, each.content_id) for each in self.lost}
            if key in after["pending"] or key in lost or blob.taken:
                return True
            opened = after["given_up"]
            return any(
                t == blob.content_type and start <= blob.created < end
                for t, start, end in opened
            ) or self.aged_out(blob)

        def aged_out(self, blob: WorldBlob) -> bool:
            """Whether it was called lost with its span; or became visible only after
            a listing of that span, and aged out unseen while cron was off."""
            return any(
                lost.content_type == blob.content_type
                and lost.window.start <= blob.created < lost.window.end
                for lost in self.lost
                if not lost.content_id
            ) or any(
                content_type == blob.content_type
                and blob.visible > blob.created
                and start <= blob.created < end
                for content_type, start, end in self.lapses
            )

        def note_lapses(self, before: Mapping[str, Any]) -> None:
            """What aged out before this run could ask for it."""
            limit = max(self.world.now, self.world.clock()) - 7 * DAY
            limit += op.RETENTION_MARGIN
            self.lapses += [
                (content_type, watermark - OVERLAP, limit)
                for content_type, watermark in before["watermark"].items()
                if watermark and watermark < limit
            ]
            self.lapses += [
                (content_type, start, limit)
                for content_type, start, _ in before["given_up"]
            ]

        def check_polled(self, after: Mapping[str, Any]) -> None:
            """ "A slice whose listing breaks off is not polled": a span counts as polled
            only if a listing of it was served to its last page."""
            for content_type, start, end in after["polled"]:
                whole = [
                    op.Window(s, e)
                    for t, s, e in self.world.served
                    if t == content_type
                ]
                holes = op.without(op.Window(start, end), whole)
                assert holes == [], "polled without a whole listing"

        def check_no_hole(self, after: Mapping[str, Any]) -> None:
            """Behind the watermark every second is polled, open, or said to be lost."""
            for content_type, duty in self.duty.items():
                watermark = after["watermark"][content_type]
                start = max(op.whole_second(duty), self.world.now - 7 * DAY)
                spans = [
                    op.Window(start, end)
                    for t, start, end in after["polled"] + after["given_up"]
                    if t == content_type
                ] + [
                    lost.window
                    for lost in self.lost
                    if lost.content_type == content_type and not lost.content_id
                ]
                if start < watermark:
                    holes = op.without(op.Window(start, watermark), spans)
                    assert holes == [], f"behind the watermark: {holes}"

        def check_losses(self, ran: Ran) -> None:
            """ "Lost is what the API says is gone (AF20051 at once; 404 after 24 hours)
            or what cannot be had past its contentExpiration; never without a try. It
            is named, GAP, once." A gap of more than 7 days likewise."""
            for lost in ran.lost:
                if not lost.content_id:
                    now = max(ran.now, self.world.clock())
                    limit = now - 7 * DAY + op.RETENTION_MARGIN
                    assert lost.window.end <= limit
                    continue
                blob = self.blob(lost.content_id)
                now = ran.now
                assert blob.fetched, f"{blob.id} is lost without a try"
                assert (
                    blob.health == "gone"
                    or now >= blob.expires
                    or (
                        blob.health == "missing"
                        and blob.failed_since is not None
                        and now - blob.failed_since >= DAY - MINUTE
                    )
                ), f"{blob.id} is {blob.health} and was called lost"
            for lost in ran.said:
                name = (lost.content_type, lost.content_id, str(lost.window))
                self.said[name] += 1
                assert self.said[name] == 1, f"said twice: {lost}"
                if not lost.content_id:
                    self.check_span_said_once(lost)
            if ran.said and not ran.died and ran.run:
                assert op.Exit.GAP in {
                    code for t in ran.run.tallies.values() for code in t.exits
                }
            if not ran.died:
                assert len(ran.said) == len(ran.lost), "a loss was not said"

        def check_span_said_once(self, lost: Any) -> None:
            for content_type, start, end in self.said_spans:
                assert (
                    content_type != lost.content_type
                    or lost.window.end <= start
                    or lost.window.start >= end
                ), f"said twice: {lost}"
            self.said_spans.append(
                (lost.content_type, lost.window.start, lost.window.end)
            )

        def blob(self, id_: str) -> WorldBlob:
            return next(blob for blob in self.world.blobs if blob.id == id_)

        def check_sent_again(self, ran: Ran, before: Mapping[str, Any]) -> None:
            """ "Again only where windows overlap or a run broke"; "a run that is killed
            does not send the confirmed batches of its slice again"; "no later span is
            asked twice" for the sake of one that is open."""
            sent = {line.partition("#")[0] for line in ran.confirmed}
            for id_ in sent:
                blob = self.blob(id_)
                row = before["delivered"].get(self.key(blob))
                if row is None or (blob.content_type, id_) in before["pending"]:
                    continue
                assert row[1] not in before["open"], f"{id_}: its batch was confirmed"
                watermark = before["watermark"].get(blob.content_type)
                now = min(ran.run.now, ran.now)
                if watermark is None:
                    continue  # the first poll, after a backfill
                if watermark > now + op.CLOCKS_AGREE:
                    continue  # brought back: all behind it is polled again
                start = min(now - WINDOW, watermark - OVERLAP)
                reopened = any(
                    t == blob.content_type and s <= blob.created < e
                    for t, s, e in before["given_up"]
                )
                assert blob.created >= start or reopened, f"{id_} is sent again"

        def check_clean(
            self, ran: Ran, before: Mapping[str, Any], after: Mapping[str, Any]
        ) -> None:
            """Nothing goes wrong but single blobs: all else is delivered, the watermark
            is at now ("a pending blob never holds the watermark back"), each pending
            blob was tried, and the exit code says what remains."""
            tried = set(self.world.fetched)
            bad = [
                blob
                for blob in self.world.blobs
                if blob.id in tried
                and (blob.health != "ok" or blob.expires <= self.world.now)
            ]
            if len(bad) >= OUTAGE:
                return
            if self.world.offset < timedelta(0):
                return  # the oldest minutes of a catch-up are refused, and stay open
            for content_type in TYPES:
                if content_type not in self.world.enabled:
                    continue
                watermark = after["watermark"][content_type]
                was = before["watermark"].get(content_type)
                now = ran.run.now
                if was is None or was <= now + op.CLOCKS_AGREE:
                    assert watermark == max(now, was or now), "the watermark stays"
            for content_type, id_ in before["pending"]:
                assert id_ in tried, f"pending {id_} was not tried"
            waits = {key for key in after["pending"] if key[0] in TYPES}
            assert (int(op.Exit.INCOMPLETE) == ran.exit) == (
                bool(waits) and not ran.said
            )
            if not waits and not ran.said:
                assert ran.exit == op.Exit.OK, ran.exit

        # -- and in the end

        def end_well(self) -> None:
            """All is mended, and cron runs three times: what the polls owe is there.
            Then a reconciliation: all that the API still has is there, and the report
            says so."""
            world = self.world
            world.offset = timedelta(0)
            for blob in world.blobs:
                if blob.health != "gone":
                    blob.health = "ok"
            for _ in range(3):
                world.now += 6 * MINUTE
                self.run("poll", Trouble())
            after = self.ledger()
            assert after["pending"] == set(), "mended blobs wait"
            assert after["given_up"] == [], "slices stay open"
            for blob in world.blobs:
                if self.owed(blob):
                    self.check_had(blob, after)
            world.now += 6 * HOUR  # all that is late shows by now
            self.run("poll", Trouble())
            self.run("reconcile", Trouble(), 7 * DAY)
            self.check_report()

        def check_had(self, blob: WorldBlob, after: Mapping[str, Any]) -> None:
            """ "Every blob that could ever be had is delivered at least once", whole."""
            excused = (
                blob.health == "gone"
                or (blob.content_type, blob.id)
                in {(lost.content_type, lost.content_id) for lost in self.lost}
                or self.aged_out(blob)
            )
            assert excused or blob.taken, f"{blob.id} of {blob.created} never came"
            # "A listed blob may have grown since", and the overlap brings it whole; but
            # a killed run does not send again what it has confirmed.
            lapsed = any(
                t == blob.content_type and start <= blob.created < end
                for t, start, end in self.lapses
            )
            whole = blob.taken == 2 or blob.part_by_broken or lapsed
            assert excused or whole, f"{blob.id} came in part"

        def check_report(self) -> None:
            world, oldest = self.world, op.earliest(self.world.now)
            for blob in world.blobs:
                if blob.created < oldest or blob.created >= world.now:
                    continue
                if blob.health != "gone" and blob.expires > world.now:
                    assert blob.taken, f"{blob.id}: reconciled, and never came"
            ledger = op.Ledger.open(self.poll_settings.state_file, self.azure)
            window = op.Window(op.whole_second(oldest), op.whole_second(world.now))
            for content_type in TYPES:
                found = op.inspect(ledger, content_type, window, world.now - WINDOW)
                assert found.holes == ()
                ours = [
                    blob
                    for blob in world.blobs
                    if blob.content_type == content_type
                    and window.start <= blob.created < window.end
                ]
                delivered = sum(line.delivered for line in found.lines)
                assert delivered == sum(blob.taken > 0 for blob in ours)
                gone = {b.id for b in ours if not b.taken}
                named = {loss.content_id for loss in found.losses if loss.content_id}
                assert named == gone
            ledger.close()

    return Machine
