"""Blobs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

BOM = b"\xef\xbb\xbf"
REGION = "emea0036"

Event = dict[str, object] | str


@dataclass(frozen=True)
class Blob:
    """One content object, compressed once."""

    content_type: str
    content_id: str
    content_uri: str
    created: datetime
    expires: datetime
    visible: datetime
    body: bytes = field(repr=False)
    gzipped: bytes = field(repr=False)
    ids: tuple[str | None, ...] = field(repr=False)
    partial: Blob | None = field(default=None, repr=False)


def event_text(event: Event) -> str:
    if isinstance(event, str):
        return event
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))


def event_id(event: Event) -> str | None:
    """The Id, or None where there is none or the text cannot be read."""
    if isinstance(event, str):
        try:
            event = json.loads(event)
        except (ValueError, RecursionError):
            return None
    found = event.get("Id") if isinstance(event, dict) else None
    return found if isinstance(found, str) else None


def array_text(events: Sequence[Event], *, pretty: bool = False) -> bytes:
    """The body of a blob; pretty: one event a line, as in an older server."""
    texts = [event_text(event) for event in events]
    joined = ",\r\n  ".join(texts) if pretty else ",".join(texts)
    whole = f"[\r\n  {joined}\r\n]" if pretty and texts else f"[{joined}]"
    return whole.encode("utf-8")


def packed(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=5, mtime=0)


def content_id(content_type: str, created: datetime, serial: int) -> str:
    """The modern shape: two stamps, workload twice, region (fact sheet 2.6)."""
    family, _, workload = content_type.partition(".")
    millis = f"{created:%Y%m%d%H%M%S}{created.microsecond // 1000:03d}"
    first, second = f"{millis}{serial % 10**6:06d}", f"{millis}{serial % 10**6 + 1:06d}"
    mark = f"{family}_{workload}"
    return f"{first}${second}${mark.lower()}${mark}${REGION}"
