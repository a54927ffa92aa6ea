"""What the poller costs, as ratios to what cannot be avoided, all taken in one run.

Each figure is the median of some runs of the script as a process of its own, with the
emulator and the sink in other processes; CPU is user and system time of the script
alone. The bounds are the project's own; a ratio above its bound ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
SCRIPT = TESTS.parent / "o365_poller.py"
sys.path.insert(0, str(TESTS))

DIRECTORY = "Audit.AzureActiveDirectory"
WORKERS, LATENCY = 8, 0.12
IMPORTS = "import msal, requests"
UNZIP_AND_PARSE = (
    "import json, sys, zlib; from pathlib import Path\n"
    "for f in Path(sys.argv[1]).iterdir():\n"
    "    json.loads(zlib.decompress(f.read_bytes(), 31))\n"
)


@dataclass(frozen=True)
class Cost:
    """What one process has cost."""

    cpu: float
    wall: float
    peak_mb: float


# A child's peak begins with that of the process it was forked from: so from a small one.
LAUNCH = (
    "import json, os, subprocess, sys\n"
    "p = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)\n"
    "_, status, used = os.wait4(p.pid, 0)\n"
    "print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + "
    "used.ru_stime, used.ru_maxrss]))\n"
)


def cost_of(command: Sequence[str]) -> Cost:
    """Run a command under a bare environment and measure it."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCH, *command],
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        check=True,
    )
    wall = time.monotonic() - began
    code, cpu, peak = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{command[1:3]} ended with {code}: {done.stderr.decode()}")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Cost(cpu, wall, peak / unit)


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(
        statistics.median(each.cpu for each in costs),
        statistics.median(each.wall for each in costs),
        max(each.peak_mb for each in costs),
    )


def serve(pipe: Connection) -> None:
    """The emulator and a sink, in a process of their own, told what to do by pipe."""
    from emulator import Emulator
    from emulator.events import make_event
    from logstash_stand_in import Sink

    sink = Sink("127.0.0.1", 0)
    import threading

    threading.Thread(target=sink.serve, daemon=True).start()
    with Emulator() as office:
        office.enable(DIRECTORY)
        made = office.credentials()
        pipe.send(
            {
                "tenant_id": office.tenant_id,
                "client_id": office.client_id,
                "private_key": str(made.key_file),
                "certificate": str(made.certificate_file),
                "login_root": office.login_root,
                "api_root": office.api_root,
                "graph_root": office.graph_root,
                "ca_bundle": str(office.ca_file),
                "sink": f"127.0.0.1:{sink.port}",
            }
        )
        while True:
            order, value = pipe.recv()
            answer: Any = None
            if order == "publish":
                blobs, count = value
                bodies = []
                for b in range(blobs):
                    events = [
                        make_event("login", 1 + b * count + n) for n in range(count)
                    ]
                    now = office.clock.now()
                    blob = office.publish(
                        DIRECTORY, events, created=now - timedelta(seconds=30)
                    )
                    bodies.append(blob.body)
                answer = bodies
            elif order == "latency":
                office.latency = value
            elif order == "clear":
                sink.totals.update(dict.fromkeys(sink.totals, 0))
                office.journal.clear()
            elif order == "count":
                answer = (dict(sink.totals), len(office.journal.requests))
            elif order == "end":
                break
            pipe.send(answer)
    sink.close()


class Servers:
    """The other process, and the script's configuration against it."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        self._folder = folder
        self.facts: dict[str, str] = self._pipe.recv()
        self.sink = self.facts.pop("sink")

    def ask(self, order: str, value: object = None) -> Any:
        """Have the other process do something."""
        self._pipe.send((order, value))
        return None if order == "end" else self._pipe.recv()

    def poll(self, *, fresh: bool = True) -> Cost:
        """One run of the script, by default without a state."""
        config = self._folder / "config.ini"
        azure = "\n".join(f"{key} = {value}" for key, value in self.facts.items())
        config.write_text(
            f"[azure]\n{azure}\n[poll]\nworkers = {WORKERS}\nwindow_minutes = 60\n"
            f"[logstash]\nhosts = {self.sink}\n"
        )
        if fresh:
            (self._folder / "config.db").unlink(missing_ok=True)
        return cost_of([sys.executable, str(SCRIPT), "-c", str(config)])

    def close(self) -> None:
        """End the other process."""
        self.ask("end")
        self._process.join(10)


failed = False


def show(what: str, figure: str, ratio: float, bound: float) -> None:
    """Print one ratio with its bound."""
    global failed
    verdict = "ok" if ratio <= bound else "TOO MUCH"
    failed = failed or ratio > bound
    print(
        f"{what:<46} {figure:>22} {ratio:6.2f}  bound {bound:g}  {verdict}", flush=True
    )


def in_turns(times: int, *programs: Callable[[], Cost]) -> tuple[Cost, ...]:
    """The median cost of each, run in turns: the machine's mood is the same for all."""
    rounds = [[once() for once in programs] for _ in range(times)]
    return tuple(median(costs) for costs in zip(*rounds, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blobs", type=int, default=500)
    parser.add_argument("--events", type=int, default=100, help="events a blob")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        servers = Servers(folder)
        imports = [sys.executable, "-c", IMPORTS]
        servers.ask("clear")
        runs = given.runs + 2
        base, idle = in_turns(runs, lambda: cost_of(imports), servers.poll)
        asked = servers.ask("count")[1] / runs
        print(
            f"one run of all figures, {time.strftime('%Y-%m-%d')}, "
            f"{os.cpu_count()} cores, Python {sys.version.split()[0]}"
        )
        show(
            "idle poll / importing msal and requests, CPU",
            f"{idle.cpu:.3f} / {base.cpu:.3f} s",
            idle.cpu / base.cpu,
            1.6,
        )
        show("requests of an idle poll of one content type", "", asked, 4)
        bodies = servers.ask("publish", (given.blobs, given.events))
        disk = folder / "blobs"
        disk.mkdir()
        size = 0
        for n, body in enumerate(bodies):
            size += len(body)
            packer = zlib.compressobj(6, zlib.DEFLATED, 31)
            (disk / f"{n}.gz").write_bytes(packer.compress(body) + packer.flush())
        del bodies
        parse = [sys.executable, "-c", UNZIP_AND_PARSE, str(disk)]
        servers.ask("clear")
        floor, moved = in_turns(given.runs, lambda: cost_of(parse), servers.poll)
        lines = servers.ask("count")[0]["lines"]
        if lines != given.runs * given.blobs * given.events:
            raise SystemExit(f"{lines} lines arrived")
        print(
            f"{given.blobs} blobs of {given.events} events, {size / 1e6:.0f} MB; "
            f"{given.blobs * given.events / moved.wall:.0f} events/s without latency"
        )
        show(
            "moving them / unzip and json.loads, CPU",
            f"{moved.cpu:.3f} / {floor.cpu:.3f} s",
            moved.cpu / floor.cpu,
            2.4,
        )
        show("peak memory / 90 MB", f"{moved.peak_mb:.0f} MB", moved.peak_mb / 90, 1)
        servers.ask("latency", LATENCY)
        least = given.blobs / WORKERS * LATENCY
        (slow,) = in_turns(3, servers.poll)
        show(
            f"wall at {1000 * LATENCY:.0f} ms a request / blobs / {WORKERS} x latency",
            f"{slow.wall:.2f} / {least:.2f} s",
            slow.wall / least,
            1.35,
        )
        servers.ask("latency", 0.0)
        servers.ask("publish", (3 * given.blobs, given.events))
        four = servers.poll()
        show(
            "peak memory at four times the backlog / 90 MB",
            f"{four.peak_mb:.0f} MB",
            four.peak_mb / 90,
            1,
        )
        servers.close()
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
