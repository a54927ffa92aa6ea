"""A plain HTTP port through which another process runs the emulator.

Every body is JSON, in and out; GET reads, POST acts. An error is 400 with its text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from emulator import faults
from emulator.clock import stamp
from emulator.content import Blob
from emulator.credentials import Credentials
from emulator.events import make_events
from emulator.journal import Request
from emulator.office import Emulator
from emulator.options import Options
from emulator.scenarios import SCENARIOS
from emulator.wire import Answer, Ask, Server, Wire, outgoing

Given = dict[str, Any]


def _time(value: object) -> datetime | None:
    """ISO 8601, or seconds relative to the emulator's now (handled by the caller)."""
    if value is None:
        return None
    at = datetime.fromisoformat(str(value))
    return at if at.tzinfo else at.replace(tzinfo=UTC)


class Control:
    def __init__(self, office: Emulator) -> None:
        self._office = office
        self._server = Server()
        self._gets: dict[str, Callable[[], Any]] = {
            "/state": self.state,
            "/journal": self._journal,
            "/requests": self._requests,
            "/scenarios": self._scenarios,
            "/trap": self._trap,
        }
        self._posts: dict[str, Callable[[Given], Any]] = {
            "/publish": self._publish,
            "/enable": self._enable,
            "/fail": self._fail,
            "/heal": self._heal,
            "/clock": self._clock,
            "/options": self._options,
            "/settings": self._settings,
            "/scenario": self._scenario,
            "/between": self._between,
            "/revoke": self._revoke,
            "/credentials": self._credentials,
            "/journal/clear": self._clear,
        }
        self._next: Callable[[Emulator], None] | None = None
        port = self._server.listen("control", self._serve)
        self.root = f"http://127.0.0.1:{port}"

    def close(self) -> None:
        self._server.close()

    def _serve(self, wire: Wire) -> None:
        while (ask := wire.read_request("control")) is not None:
            if not wire.write(outgoing(ask, self._answer(ask))):
                return

    def _answer(self, ask: Ask) -> Answer:
        try:
            if ask.method == "GET" and ask.path in self._gets:
                found = self._gets[ask.path]()
            elif ask.method == "POST" and ask.path in self._posts:
                found = self._posts[ask.path](json.loads(ask.body or b"{}"))
            else:
                known = sorted([*self._gets, *self._posts])
                return Answer(404, json.dumps({"known": known}).encode())
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            text = f"{type(error).__name__}: {error}"
            return Answer(400, json.dumps({"error": text}).encode())
        return Answer(200, json.dumps({} if found is None else found).encode())

    # -- reading

    def state(self) -> Given:
        office = self._office
        return {
            "tenant_id": office.tenant_id,
            "client_id": office.client_id,
            "login_root": office.login_root,
            "api_root": office.api_root,
            "graph_root": office.graph_root,
            "trap_root": office.trap_root,
            "trap_http_root": office.trap_http_root,
            "untrusted_root": office.untrusted_root,
            "ca_file": str(office.ca_file),
            "directory": str(office.directory),
            "client_secret": office.client_secret,
            "control": self.root,
            "now": stamp(office.clock.now()),
            "subscriptions": dict(office.subscriptions),
            "blobs": len(office.blobs),
            "events": sum(len(blob.ids) for blob in office.blobs),
            "bytes": sum(len(blob.body) for blob in office.blobs),
        }

    def _journal(self) -> Given:
        journal = self._office.journal
        counts: dict[str, int] = {}
        for one in journal.requests:
            key = f"{one.operation} {one.status}"
            counts[key] = counts.get(key, 0) + 1
        return {
            "counts": counts,
            "events_served": journal.events_served,
            "high_water": journal.high_water,
            "violations": journal.violations,
            "impatient": journal.impatient,
            "report": journal.report(),
        }

    def _requests(self) -> list[Given]:
        return [_row(one) for one in self._office.journal.requests]

    def _scenarios(self) -> dict[str, Given]:
        return {
            name: {"source": one.source, "story": one.story}
            for name, one in SCENARIOS.items()
        }

    def _trap(self) -> list[Given]:
        return [asdict(one) for one in self._office.trap.requests]

    # -- acting

    def _publish(self, given: Given) -> list[Given]:
        """One blob of given `events` or `body`; or `blobs` times `count` made ones."""
        office = self._office
        content_type = given.pop("content_type", "Audit.AzureActiveDirectory")
        blobs, count = int(given.pop("blobs", 1)), given.pop("count", None)
        age, spread = float(given.pop("age", 0)), float(given.pop("spread", 0))
        first = int(given.pop("first", 1 + 10_000 * len(office.blobs)))
        events = given.pop("events", None)
        for name in ("created", "expires", "visible"):
            given[name] = _time(given.get(name))
        if "body" in given:
            given["body"] = str(given["body"]).encode()
        made = []
        for n in range(blobs):
            chosen = events
            if chosen is None:
                each = int(count or 10)
                chosen = make_events(each, content_type, first=first + n * each)
            more = dict(given)
            if more["created"] is None:
                back = age + spread * (blobs - 1 - n) / max(1, blobs)
                more["created"] = office.clock.now() - timedelta(seconds=back)
            made.append(office.publish(content_type, chosen, **more))
        return [_blob_row(blob) for blob in made]

    def _enable(self, given: Given) -> dict[str, str]:
        self._office.enable(*given.get("content_types", ()))
        return self._office.subscriptions

    def _fail(self, given: Given) -> None:
        maker = faults.CONSTRUCTORS[given["fault"]]
        arguments = given.get("args", {})
        fault = maker(**arguments) if isinstance(arguments, dict) else maker(*arguments)
        self._office.fail(
            given["operation"],
            fault,
            times=given.get("times"),
            match=given.get("match"),
            after=given.get("after", 0),
        )

    def _heal(self, _: Given) -> None:
        self._office.heal()

    def _clock(self, given: Given) -> Given:
        clock = self._office.clock
        if "set" in given:
            clock.set(_time(given["set"]) or clock.now())
        if "run_from" in given:
            clock.run_from(_time(given["run_from"]) or clock.now())
        if "advance" in given:
            clock.advance(timedelta(seconds=float(given["advance"])))
        if given.get("follow"):
            clock.follow()
        return {"now": stamp(clock.now())}

    def _options(self, given: Given) -> None:
        known = {one.name: one for one in fields(Options)}
        for name, value in given.items():
            if name not in known:
                message = f"no such option: {name}"
                raise ValueError(message)
            before = getattr(self._office.options, name)
            chosen: Any = value
            if isinstance(before, timedelta):
                chosen = timedelta(seconds=float(value))
            elif isinstance(value, list):
                chosen = tuple(tuple(v) if isinstance(v, list) else v for v in value)
            setattr(self._office.options, name, chosen)

    def _settings(self, given: Given) -> None:
        """`latency` in seconds, `page_size`."""
        if "latency" in given:
            self._office.latency = float(given["latency"])
        if "page_size" in given:
            self._office.page_size = int(given["page_size"])

    def _scenario(self, given: Given) -> Given:
        chosen = SCENARIOS[given["name"]]
        expected = chosen.set_up(self._office)
        self._next = expected.between
        first = expected.arrive_first
        return {
            "story": chosen.story,
            "arrive": sorted(expected.arrive),
            "arrive_first": None if first is None else sorted(first),
            "never": sorted(expected.never),
            "runs": expected.runs,
            "reach": expected.reach.total_seconds(),
            "types": list(expected.types),
            "whole": expected.whole,
        }

    def _between(self, _: Given) -> None:
        """What the scenario does between the first run and the second."""
        if self._next is not None:
            self._next(self._office)

    def _revoke(self, _: Given) -> None:
        self._office.revoke_tokens()

    def _credentials(self, given: Given) -> dict[str, str]:
        given.pop("not_before", None)
        return credentials_row(self._office.credentials(**given))

    def _clear(self, _: Given) -> None:
        self._office.journal.clear()


def credentials_row(made: Credentials) -> dict[str, str]:
    return {
        "key_file": str(made.key_file),
        "certificate_file": str(made.certificate_file),
        "thumbprint_sha1_hex": made.thumbprint_sha1_hex,
        "not_after": made.not_after.isoformat(),
    }


def _row(one: Request) -> Given:
    row = asdict(one)
    row["time"] = stamp(one.time)
    return row


def _blob_row(blob: Blob) -> Given:
    return {
        "content_id": blob.content_id,
        "content_uri": blob.content_uri,
        "created": stamp(blob.created),
        "expires": stamp(blob.expires),
        "events": len(blob.ids),
        "bytes": len(blob.body),
    }
