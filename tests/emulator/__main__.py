"""`python -m emulator --serve`: the emulator as a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta

from emulator.control import Control, credentials_row
from emulator.events import make_events
from emulator.office import Emulator
from emulator.options import CONTENT_TYPES
from emulator.scenarios import SCENARIOS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m emulator", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--serve", action="store_true", help="until SIGTERM or stdin ends"
    )
    what.add_argument("--scenarios", action="store_true", help="list them and end")
    parser.add_argument("--page-size", type=int, default=200)
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), metavar="NAME")
    parser.add_argument("--content-type", action="append", choices=CONTENT_TYPES)
    parser.add_argument("--blobs", type=int, default=0, help="publish this many a type")
    parser.add_argument("--events", type=int, default=10, help="events a blob")
    parser.add_argument(
        "--spread", type=float, default=480, metavar="SECONDS", help="age of the oldest"
    )
    parser.add_argument(
        "--enable", action="store_true", help="subscriptions are there already"
    )
    return parser


def _fill(office: Emulator, given: argparse.Namespace) -> None:
    types = given.content_type or CONTENT_TYPES[:1]
    if given.enable:
        office.enable(*types)
    now = office.clock.now()
    for content_type in types:
        for n in range(given.blobs):
            age = timedelta(seconds=2 + given.spread * (1 - (n + 1) / given.blobs))
            first = 1 + n * given.events
            office.publish(
                content_type,
                make_events(given.events, content_type, first=first),
                created=now - age,
            )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _serve(given: argparse.Namespace) -> None:
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())

    def watch_stdin() -> None:
        while os.read(0, 4096):
            pass
        done.set()

    with Emulator(page_size=given.page_size) as office:
        control = Control(office)
        row = credentials_row(office.credentials())
        if given.latency:
            office.latency = given.latency
        _fill(office, given)
        if given.scenario:
            SCENARIOS[given.scenario].set_up(office)
        _say(json.dumps(control.state() | row))
        threading.Thread(target=watch_stdin, daemon=True).start()
        while not done.wait(0.5):
            pass
        control.close()


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.scenarios:
        for name, one in SCENARIOS.items():
            _say(f"{name} ({one.source})\n    {one.story}")
        return 0
    _serve(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
