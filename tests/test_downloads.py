"""Downloads in parallel: bounded, in flat memory, and ended together."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from making import make_blob

from o365_poller import (
    ANSWER_CLOCK,
    AbandonedError,
    AnswerError,
    Blob,
    Budget,
    Downloads,
    Failed,
    Fetched,
    Judgement,
    RefusedError,
    Room,
    SourceError,
    TooLargeError,
    Verdict,
    failed,
)

LIMIT = 100


def fetched(blob: Blob, size: int = 1) -> Fetched:
    return Fetched(blob, (b"x" * size,), 1, size)


def blobs(count: int) -> Iterator[Blob]:
    return (make_blob(str(n)) for n in range(count))


def simple(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
    room(1)
    return fetched(blob)


def wait_until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.002)


# -- the pool


@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_every_blob_gives_one_result(count: int) -> None:
    pool = Downloads(simple, 4, 10_000)
    found = [r.blob.id for r in pool.run(blobs(count)) if r is not None]
    assert sorted(found, key=int) == [str(n) for n in range(count)]


def test_no_more_than_the_workers_fetch_at_once() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def fetch(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        return fetched(blob)

    assert len(list(Downloads(fetch, 3, LIMIT).run(blobs(40)))) == 40
    assert most == 3


def test_where_answers_come_at_once_one_worker_is_enough() -> None:
    names: set[str] = set()

    def fetch(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
        names.add(threading.current_thread().name)
        return fetched(blob)

    assert len(list(Downloads(fetch, 8, LIMIT).run(blobs(300)))) == 300
    assert len(names) < 8


def test_the_end_of_the_listing_does_not_hide_that_a_download_waits_for_room() -> None:
    """Else nobody wakes anybody: what is held is sent when the queue is found empty."""
    handed, ends = threading.Event(), threading.Event()

    def listing() -> Iterator[Blob]:
        yield from blobs(2)
        assert ends.wait(5)

    def fetch(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
        assert blob.id == "0" or handed.wait(5)
        room(60)
        return fetched(blob, 60)

    pool = Downloads(fetch, 2, LIMIT)
    results = pool.run(listing())
    assert next(results) is not None
    handed.set()
    wait_until(lambda: pool.budget.waiting == 1)
    ends.set()
    wait_until(lambda: pool._results.qsize() == 2)
    done: list[Fetched] = []

    def go_on() -> None:
        held = 60
        for result in results:
            if isinstance(result, Fetched):
                done.append(result)
                held += result.bytes
            if held and pool.starved():
                pool.budget.free(held)
                held = 0

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    thread.join(5)
    assert [result.blob.id for result in done] == ["1"]


def test_a_download_that_hangs_keeps_no_other_waiting() -> None:
    goes_on = threading.Event()

    def fetch(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
        if blob.id in ("0", "1"):
            assert goes_on.wait(10)
        return fetched(blob)

    results = Downloads(fetch, 3, LIMIT).run(blobs(30))
    began = time.monotonic()
    others = [next(results) for _ in range(28)]
    assert time.monotonic() - began < 5
    assert {r.blob.id for r in others if r} == {str(n) for n in range(2, 30)}
    goes_on.set()
    assert len(list(results)) == 2


def test_the_listing_waits_when_nobody_takes_results_further() -> None:
    asked = 0

    def endless() -> Iterator[Blob]:
        nonlocal asked
        while True:
            asked += 1
            yield make_blob(str(asked))

    def stuck(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
        stop.wait(20)
        raise AbandonedError

    pool = Downloads(stuck, 2, LIMIT)
    results = pool.run(endless())
    thread = threading.Thread(target=lambda: next(results, None), daemon=True)
    thread.start()
    time.sleep(0.3)
    before = asked
    time.sleep(0.3)
    assert asked == before <= 8 * 2 + 4
    pool.stop.set()


ERRORS: list[tuple[Exception, Failed]] = [
    (
        SourceError("HTTP 503 (5 tries)", "b", "c"),
        Failed(make_blob("0"), Verdict.RETRY, "HTTP 503 (5 tries)", outage=True),
    ),
    (
        AnswerError(Judgement(Verdict.GONE, "HTTP 404 AF20051")),
        Failed(make_blob("0"), Verdict.GONE, "HTTP 404 AF20051"),
    ),
    (
        TooLargeError(),
        Failed(make_blob("0"), Verdict.FAILED, "more than 256 MB unpacked"),
    ),
]


@pytest.mark.parametrize(("error", "result"), ERRORS, ids=lambda e: type(e).__name__)
def test_a_blob_that_fails_is_a_result(error: Exception, result: Failed) -> None:
    def fetch(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
        raise error

    assert list(Downloads(fetch, 2, LIMIT).run(blobs(1))) == [result]
    assert failed(make_blob("0"), error) == result


def test_an_error_that_is_none_of_the_blobs_ends_the_pool() -> None:
    def fetch(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
        if blob.id == "3":
            raise RefusedError("a", "b", "c")
        return fetched(blob)

    pool = Downloads(fetch, 2, LIMIT)
    with pytest.raises(RefusedError):
        list(pool.run(blobs(1000)))
    assert pool.stop.is_set()


def test_a_listing_that_breaks_gives_what_it_listed_first() -> None:
    def breaking() -> Iterator[Blob]:
        yield make_blob("a")
        yield make_blob("b")
        raise SourceError("the list broke", "b", "c")

    found: list[str] = []
    with pytest.raises(SourceError, match="the list broke"):
        for result in Downloads(simple, 2, LIMIT).run(breaking()):
            assert isinstance(result, Fetched)
            found.append(result.blob.id)
    assert sorted(found) == ["a", "b"]


def test_leaving_early_stops_the_workers() -> None:
    started = threading.Event()

    def fetch(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
        if blob.id == "0":
            return fetched(blob)
        started.set()
        stop.wait(20)
        raise AbandonedError

    pool = Downloads(fetch, 2, LIMIT)
    results = pool.run(blobs(50))
    assert next(results) is not None
    started.wait(5)
    before = threading.active_count()
    results.close()
    wait_until(lambda: threading.active_count() < before)


# -- the budget


def make_budget() -> tuple[Budget, list[int]]:
    starved: list[int] = []
    return Budget(LIMIT, lambda: starved.append(1)), starved


def taking(
    budget: Budget, ticket: int, amount: int
) -> tuple[threading.Thread, list[Any]]:
    """A thread that takes; the list gets its outcome."""
    outcome: list[Any] = []

    def take() -> None:
        try:
            budget.hold(ticket, threading.Event(), amount)
        except AbandonedError as error:
            outcome.append(error)
        else:
            outcome.append("taken")

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return thread, outcome


def test_what_fits_is_taken_at_once() -> None:
    budget, starved = make_budget()
    ticket = budget.enter()
    budget.hold(ticket, threading.Event(), LIMIT)
    assert starved == []


def test_the_younger_waits_until_something_is_confirmed() -> None:
    budget, starved = make_budget()
    old, young = budget.enter(), budget.enter()
    budget.hold(old, threading.Event(), 80)
    thread, outcome = taking(budget, young, 30)
    wait_until(lambda: budget.waiting == 1)
    assert starved == [1]
    assert outcome == []
    budget.leave(old, handed=True)
    time.sleep(0.05)
    assert outcome == []
    budget.free(80)
    thread.join(5)
    assert outcome == ["taken"]
    assert budget.waiting == 0


def test_the_oldest_may_pass_alone_however_large() -> None:
    budget, _ = make_budget()
    ticket = budget.enter()
    budget.hold(ticket, threading.Event(), 50 * LIMIT)
    budget.hold(ticket, threading.Event(), 50 * LIMIT)


def test_the_oldest_waits_while_something_is_handed_over() -> None:
    budget, _ = make_budget()
    first = budget.enter()
    budget.hold(first, threading.Event(), 10)
    budget.leave(first, handed=True)
    second = budget.enter()
    thread, outcome = taking(budget, second, 95)
    wait_until(lambda: budget.waiting == 1)
    assert outcome == []
    budget.free(10)
    thread.join(5)
    assert outcome == ["taken"]


def test_a_failed_download_gives_its_room_back() -> None:
    budget, _ = make_budget()
    old, young = budget.enter(), budget.enter()
    budget.hold(old, threading.Event(), 90)
    thread, outcome = taking(budget, young, 50)
    wait_until(lambda: budget.waiting == 1)
    budget.hold(old, threading.Event(), 0)
    thread.join(5)
    assert outcome == ["taken"]
    budget.leave(young, handed=False)
    budget.leave(old, handed=False)
    budget.hold(budget.enter(), threading.Event(), LIMIT)


def test_waiting_for_room_takes_nothing_from_the_answers_time() -> None:
    """A slow Logstash is no silence of Microsoft's."""
    budget, _ = make_budget()
    old, young = budget.enter(), budget.enter()
    budget.hold(old, threading.Event(), LIMIT)
    left: list[float] = []

    def wait() -> None:
        ANSWER_CLOCK.deadline = time.monotonic() + 0.1
        budget.hold(young, threading.Event(), 10)
        left.append(ANSWER_CLOCK.deadline - time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: budget.waiting == 1)
    time.sleep(0.3)
    budget.leave(old, handed=False)
    thread.join(5)
    assert 0.05 < left[0] <= 0.1


def test_a_stop_ends_the_waiting() -> None:
    budget, _ = make_budget()
    old, young = budget.enter(), budget.enter()
    budget.hold(old, threading.Event(), LIMIT)
    stop = threading.Event()
    stop.set()
    with pytest.raises(AbandonedError):
        budget.hold(young, stop, 1)


def test_a_pool_whose_room_is_used_up_asks_to_send_what_there_is() -> None:
    """Large blobs, a small budget: without the nudge this would never end."""

    def fetch(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
        for held in range(10, 70, 10):
            room(held)
        return fetched(blob, 60)

    pool = Downloads(fetch, 4, LIMIT)
    held, most, done, nudges = 0, 0, 0, 0
    for result in pool.run(blobs(30)):
        if result is None:
            nudges += 1
        elif isinstance(result, Fetched):
            done += 1
            held += result.bytes
            most = max(most, held)
        if held and pool.starved():
            pool.budget.free(held)
            held = 0
    assert done == 30
    assert nudges > 0
    assert most <= LIMIT + 60


@pytest.mark.parametrize("seed", range(40))
def test_no_life_of_a_pool_hangs_and_each_blob_gives_one_result(seed: int) -> None:
    """Any sizes, retries, failures, pauses of the sink, ends of the listing."""
    chance = random.Random(seed)
    count, limit = chance.choice([1, 5, 60]), chance.choice([50, 1000])
    large = chance.choice([5, 3 * limit])

    def fetch(blob: Blob, room: Room, stop: threading.Event) -> Fetched:
        luck = random.Random(f"{seed} {blob.id}")
        held = 0
        for _ in range(luck.randint(1, 2)):  # a try, or a second one
            room(0)
            held = 0
            for _ in range(luck.randint(0, 5)):
                held += luck.choice([1, 10, 40, large])
                room(held)
                time.sleep(luck.choice([0, 0, 0.001, 0.004]))
        if luck.random() < 0.2:
            raise SourceError("no answer", "b", "c")
        room(held)
        return fetched(blob, held)

    def listing() -> Iterator[Blob]:
        for blob in blobs(count):
            time.sleep(chance.choice([0, 0, 0, 0.01]))
            yield blob
        time.sleep(chance.choice([0, 0.01]))

    pool = Downloads(fetch, chance.choice([1, 2, 8]), limit)
    done: list[str] = []

    def live() -> None:
        batch = 0
        for result in pool.run(listing()):
            if result is not None:
                done.append(result.blob.id)
            if isinstance(result, Fetched):
                batch += result.bytes
            if batch and (batch >= limit // 2 or pool.starved()):
                time.sleep(chance.random() / 500)
                pool.budget.free(batch)
                batch = 0

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    thread.join(30)
    pool.stop.set()
    assert sorted(done, key=int) == [str(n) for n in range(count)]
