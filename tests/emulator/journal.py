"""What the clients did, and what they should not have done."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import urlsplit

from emulator.clock import Clock
from emulator.wire import Answer, Ask


@dataclass(frozen=True)
class Request:
    """One request; a status of 0 means that no answer was sent."""

    time: datetime
    host: str
    method: str
    operation: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    publisher_id: str | None
    content_type: str | None
    content_id: str | None
    status: int
    started: float
    ended: float
    fault: str | None = None

    @property
    def next_page(self) -> str | None:
        return self.value("nextPage")

    def value(self, name: str) -> str | None:
        """A query parameter, whatever the case of its name."""
        for key, value in self.query.items():
            if key.lower() == name.lower():
                return value
        return None


def safe_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers, with a short hash in place of the token."""
    safe = dict(headers)
    if "authorization" in safe:
        digest = hashlib.sha256(safe["authorization"].encode()).hexdigest()
        safe["authorization"] = f"sha256:{digest[:12]}"
    return safe


class Journal:
    """Safe to read while requests go on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._violations: list[str] = []
        self._impatient: list[str] = []
        self._redirects: set[str] = set()
        self._paused: dict[str, float] = {}
        self._in_flight = 0
        self._served: Counter[str | None] = Counter()
        self.high_water = 0

    @property
    def requests(self) -> list[Request]:
        with self._lock:
            return list(self._requests)

    @property
    def violations(self) -> list[str]:
        """A sentence for each rule that a client broke, in order."""
        with self._lock:
            return list(self._violations)

    @property
    def impatient(self) -> list[str]:
        """Requests repeated before their Retry-After was over."""
        with self._lock:
            return list(self._impatient)

    @property
    def events_served(self) -> int:
        """Events in whole, undamaged blobs that were answered with 200."""
        with self._lock:
            return self._served.total()

    @property
    def ids_served(self) -> Counter[str | None]:
        """How often each Id was served."""
        with self._lock:
            return Counter(self._served)

    def of(self, operation: str) -> list[Request]:
        return [one for one in self.requests if one.operation == operation]

    def violate(self, ask: Ask | None, sentence: str) -> None:
        where = "" if ask is None else f" [{ask.operation} {ask.method} {ask.path}]"
        with self._lock:
            self._violations.append(sentence + where)

    def redirected(self, to: str) -> None:
        """Remember a Location, to know when a client goes there."""
        with self._lock:
            self._redirects.add(_address(to))

    def asked_by_redirect(self, url: str) -> bool:
        with self._lock:
            return _address(url) in self._redirects

    def begin(self, ask: Ask) -> float:
        now = time.monotonic()
        with self._lock:
            self._in_flight += 1
            self.high_water = max(self.high_water, self._in_flight)
            until = self._paused.pop(f"{ask.method} {ask.host}{ask.target}", 0.0)
            if until > now + 0.05:
                self._impatient.append(
                    f"{ask.operation} repeated {until - now:.1f} s before its"
                    " Retry-After was over"
                )
        return now

    def answered(
        self, ask: Ask, answer: Answer, begun: float, fault: str | None
    ) -> int:
        """Write the entry before the first byte goes out; gives its place."""
        entry = Request(
            time=self._clock.now(),
            host=ask.host,
            method=ask.method,
            operation=ask.operation,
            path=ask.path,
            query=dict(ask.query),
            headers=safe_headers(ask.headers),
            publisher_id=ask.publisher_id,
            content_type=ask.content_type,
            content_id=ask.content_id,
            status=answer.status,
            started=begun,
            ended=time.monotonic(),
            fault=fault,
        )
        pause = {k.lower(): v for k, v in answer.headers}.get("retry-after", "")
        with self._lock:
            self._in_flight -= 1
            self._requests.append(entry)
            self._served.update(answer.ids)
            if pause.isdigit():
                key = f"{ask.method} {ask.host}{ask.target}"
                self._paused[key] = time.monotonic() + int(pause)
            return len(self._requests) - 1

    def ended(self, place: int) -> None:
        with self._lock:
            if place < len(self._requests):
                entry = self._requests[place]
                self._requests[place] = replace(entry, ended=time.monotonic())

    def clear(self) -> None:
        """Forget all but what is in flight."""
        with self._lock:
            self._requests.clear()
            self._violations.clear()
            self._impatient.clear()
            self._served.clear()
            self._paused.clear()
            self.high_water = self._in_flight

    def report(self) -> str:
        """One line for each operation and status, then the violations."""
        counts = Counter((one.operation, one.status) for one in self.requests)
        lines = [
            f"{operation:<10} {status:>3}  {count}"
            for (operation, status), count in sorted(counts.items())
        ]
        lines.append(f"events served: {self.events_served}")
        lines.append(f"most requests in flight: {self.high_water}")
        lines += [f"VIOLATION: {sentence}" for sentence in self.violations]
        lines += [f"impatient: {sentence}" for sentence in self.impatient]
        return "\n".join(lines)


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.netloc}{parts.path}?{parts.query}"
