"""The emulator's own time."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta


class Clock:
    """Follows real time until it is set; then it stands still."""

    def __init__(self, at: datetime | None = None) -> None:
        self._lock = threading.Lock()
        self._fixed: datetime | None = None
        self._offset = timedelta()
        if at is not None:
            self.set(at)

    def now(self) -> datetime:
        with self._lock:
            if self._fixed is not None:
                return self._fixed
            return datetime.now(UTC) + self._offset

    def set(self, at: datetime) -> None:
        """Stop the clock at this time."""
        with self._lock:
            self._fixed = at.astimezone(UTC)

    def run_from(self, at: datetime) -> None:
        """Go on from this time, at the pace of real time."""
        with self._lock:
            self._fixed = None
            self._offset = at.astimezone(UTC) - datetime.now(UTC)

    def advance(self, by: timedelta) -> None:
        """Move a stopped or a running clock."""
        with self._lock:
            if self._fixed is not None:
                self._fixed += by
            else:
                self._offset += by

    def follow(self) -> None:
        """Back to real time."""
        with self._lock:
            self._fixed = None
            self._offset = timedelta()


def stamp(at: datetime) -> str:
    """`2026-05-23T17:35:00.123Z`, as in a listing."""
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def http_date(at: datetime) -> str:
    at = at.astimezone(UTC)
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[at.weekday()]
    month = (
        "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()  # noqa: SIM905
    )[at.month - 1]
    return f"{day}, {at:%d} {month} {at:%Y %H:%M:%S} GMT"
