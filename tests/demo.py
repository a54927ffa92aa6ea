"""The poller at its main job, against a stand-in for Microsoft and one for Logstash.

`tests/demo` makes .venv and runs this. Both stand-ins live in this process, on
loopback; the poller is the real script, started as cron would start it.
"""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SCRIPT = ROOT / "o365_poller.py"
sys.path.insert(0, str(TESTS))

from emulator import Emulator, events, faults  # noqa: E402
from emulator.content import event_text  # noqa: E402
from logstash_stand_in import LogstashStandIn, line_id  # noqa: E402

WIDTH = 80
# Content type -> blobs, events in each of them.
WORLD = {
    "Audit.AzureActiveDirectory": (9, 6),
    "Audit.Exchange": (7, 4),
    "Audit.SharePoint": (4, 25),
}
PAGE_SIZE = 4
SHOWN_LINES = 3


def say(text: str = "") -> None:
    """A line of the story."""
    print(text, flush=True)


def head(title: str) -> None:
    """The heading of a step."""
    say()
    say(title)
    say("-" * WIDTH)


def tell(text: str) -> None:
    """A paragraph, filled."""
    say(textwrap.fill(" ".join(text.split()), WIDTH))


def fill(text: str, first: str, following: str) -> str:
    """A line of a program's, filled, with nothing in it broken."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=following,
        break_on_hyphens=False,
    )


def cut(text: str) -> str:
    """The beginning of a long line."""
    width = WIDTH - 4
    shown = [text[n * width : (n + 1) * width] for n in range(SHOWN_LINES)]
    if len(text) > SHOWN_LINES * width:
        shown[-1] = shown[-1][:-3] + "..."
    return "\n".join(f"  > {part}" for part in shown if part)


class Demo:
    """The story: a tenant, a configuration, two polls, and the count at the end."""

    def __init__(
        self,
        office: Emulator,
        folder: Path,
        sink: LogstashStandIn | None,
        logstash: str,
    ) -> None:
        self.office = office
        self.folder = folder
        self.logstash = logstash
        self.sink = sink
        self.published: dict[str, dict[str, str]] = {name: {} for name in WORLD}
        self.blobs: Counter[str] = Counter()
        self.shown = 0

    # -- the tenant

    def publish(self, content_type: str, count: int, age: timedelta) -> None:
        """Let a blob become available in the tenant, so long ago."""
        known = self.published[content_type]
        now = self.office.clock.now()
        made = events.make_events(
            count,
            content_type,
            first=1 + len(known),
            at=now - age - timedelta(minutes=40),
        )
        self.office.publish(content_type, made, created=now - age)
        self.blobs[content_type] += 1
        for event in made:
            known[str(event["Id"])] = event_text(event)

    def fill(self) -> None:
        """What the tenant has when the demo begins."""
        for content_type, (blobs, each) in WORLD.items():
            for n in range(blobs):
                self.publish(content_type, each, timedelta(seconds=30 * (blobs - n)))

    # -- the installation

    def write_configuration(self) -> Path:
        """A folder as an operator would have it: key, certificate, config.ini."""
        credentials = self.office.credentials()
        for name, source in (
            ("key.pem", credentials.key_file),
            ("certificate.pem", credentials.certificate_file),
            ("ca.pem", self.office.ca_file),
        ):
            (self.folder / name).write_bytes(source.read_bytes())
            (self.folder / name).chmod(0o600)
        config = self.folder / "config.ini"
        config.write_text(
            textwrap.dedent(f"""\
                [azure]
                tenant_id = {self.office.tenant_id}
                client_id = {self.office.client_id}
                private_key = key.pem
                certificate = certificate.pem
                # only here: where the stand-in for Microsoft listens
                login_root = {self.office.login_root}
                api_root = {self.office.api_root}
                graph_root = {self.office.graph_root}
                ca_bundle = ca.pem

                [poll]
                content_types = {", ".join(WORLD)}

                [logstash]
                hosts = {self.logstash}
                """)
        )
        return config

    def run(self, *arguments: str) -> int:
        """Run the real script, show what it says, and the lines as they arrive."""
        config = self.folder / "config.ini"
        say(f"$ o365_poller.py {' '.join(['-c', config.name, *arguments])}")
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "-c", str(config), *arguments],
            cwd="/",
            env=bare_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                text = line.rstrip("\n")
                # A table stands as it is, however wide.
                said.put(
                    text if "--report" in arguments else fill(text, "  ", "      ")
                )
            said.put(None)

        threading.Thread(target=read, daemon=True).start()
        while True:
            self.put_arrivals(said)
            try:
                text = said.get(timeout=0.005)
            except queue.Empty:
                continue
            if text is None:
                break
            say(text)
        self.put_arrivals(said)
        while not said.empty():
            say(said.get() or "")
        code = process.wait()
        say(f"  exit code {code}")
        return code

    def put_arrivals(self, said: queue.Queue[str | None]) -> None:
        """Put in line what the stand-in has taken by now: how much, and one event."""
        if self.sink is None:
            return
        batches = self.sink.connections
        for batch in batches[self.shown :]:
            if batch.lines:
                said.put(f"  > Logstash has taken {len(batch.lines)} lines, such as")
                said.put(cut(batch.lines[len(batch.lines) // 2].decode()))
        self.shown = len(batches)

    # -- the count

    def missing(self) -> list[str]:
        """What was published and did not arrive as it was; a line each."""
        wrong = []
        if self.sink is None:
            served = self.office.journal.ids_served
            for content_type, known in self.published.items():
                count = sum(not served[identity] for identity in known)
                if count:
                    wrong.append(f"{content_type}: {count} events were never fetched")
            return wrong
        arrived = {line.decode() for line in self.sink.lines}
        for content_type, known in self.published.items():
            count = sum(text not in arrived for text in known.values())
            if count:
                wrong.append(f"{content_type}: {count} events are missing or changed")
        strangers = arrived - {
            text for known in self.published.values() for text in known.values()
        }
        if strangers:
            wrong.append(f"{len(strangers)} lines arrived that are no event")
        return wrong

    def totals(self) -> None:
        """Published and arrived, by content type."""
        say(
            f"{'content type':<28}{'blobs':>7}{'events':>9}{'lines':>9}{'distinct':>11}"
        )
        taken = (
            Counter(line_id(line) for line in self.sink.lines) if self.sink else None
        )
        sums: Counter[str] = Counter()
        for content_type, known in self.published.items():
            row = {"blobs": self.blobs[content_type], "events": len(known)}
            if taken is not None:
                row["lines"] = sum(taken[identity] for identity in known)
                row["distinct"] = sum(taken[identity] > 0 for identity in known)
            sums.update(row)
            self.total(content_type, row)
        self.total("all", sums)

    def total(self, name: str, row: dict[str, int]) -> None:
        """A row of the totals."""
        lines, distinct = row.get("lines", "?"), row.get("distinct", "?")
        say(f"{name:<28}{row['blobs']:>7}{row['events']:>9}{lines:>9}{distinct:>11}")


def bare_environment() -> dict[str, str]:
    """What cron hands over, which is next to nothing (and what coverage needs)."""
    kept = {k: v for k, v in os.environ.items() if k.startswith("COVERAGE_")}
    return {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **kept}


def offers(flag: str) -> bool:
    """Whether the script knows a flag."""
    told = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    return flag in told.stdout


def next_steps(*, real: bool) -> None:
    """What to do with a real tenant."""
    say()
    say('Next, with a tenant of your own (README.md, "Setting it up"):')
    say("  1. make a key and a certificate, register an application in Entra ID,")
    say("     give it ActivityFeed.Read, grant consent, upload the certificate")
    say("  2. cp config.example.ini config.ini; fill in tenant_id, client_id,")
    say("     private_key, certificate and hosts")
    say("  3. .venv/bin/python o365_poller.py --check")
    say("  4. .venv/bin/python o365_poller.py -v, then the cron line of README.md")
    if not real:
        say("Or send these same events to a Logstash of yours:")
        say("  tests/demo --logstash HOST:PORT")


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tests/demo",
        description="Shows the poller at its main job: two polls of an emulated "
        "tenant, to a stand-in for Logstash or to a real one. Needs no account; all "
        "files are in a temporary folder, which is removed.",
    )
    parser.add_argument(
        "--logstash",
        metavar="HOST:PORT",
        help="send the events to this Logstash's tcp input (json_lines) instead",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story; 0 if every published event has arrived."""
    arguments = read_arguments(argv)
    began = time.monotonic()
    with ExitStack() as stack:
        office = stack.enter_context(Emulator(page_size=PAGE_SIZE))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="o365-demo-"))
        sink = None
        if arguments.logstash is None:
            sink = stack.enter_context(LogstashStandIn())
        address = arguments.logstash or (sink.address if sink else "")
        demo = Demo(office, Path(folder), sink, address)
        wrong = tell_story(demo)
        say()
        for each in wrong:
            say(f"FAILED: {each}")
        if not wrong:
            where = "arrived, unchanged" if sink else "were taken by that Logstash"
            say(f"OK: all {sum(map(len, demo.published.values()))} events {where}")
        say(f"({time.monotonic() - began:.0f} s)")
    if not wrong:
        next_steps(real=sink is None)
    return 1 if wrong else 0


def tell_story(demo: Demo) -> list[str]:
    """Two polls, and what is wrong after them."""
    office = demo.office
    head("A tenant, and a configuration")
    demo.fill()
    tell(
        f"""An emulator plays Entra ID and the Office 365 Management Activity API on
        https://localhost. Its tenant has {sum(demo.blobs.values())} blobs of audit
        events in {len(WORLD)} content types, {PAGE_SIZE} blobs to a page. No
        subscription is started yet. This is the configuration:"""
    )
    say()
    config = demo.write_configuration()
    say(textwrap.indent(config.read_text(), "  ").rstrip())

    wrong: list[str] = []
    if offers("--check"):
        head("--check: would it work? (The subscriptions are not started yet)")
        demo.run("--check")

    head("The first poll, with trouble on the way")
    tell(
        """Microsoft answers one blob with "too many requests", cuts another one's
        gzip stream short, and resets the connection of a listing. The poller tries
        again:"""
    )
    say()
    office.fail("blob", faults.throttle(), times=1, after=1)
    office.fail("blob", faults.cut_gzip(), times=1, after=3)
    office.fail("content", faults.reset(), times=1, after=1)
    code = demo.run("-vv")
    if code != 0:
        return [f"the first poll ended with {code}, not 0", *wrong]
    ridden_out = [one.fault for one in office.journal.requests if one.fault]
    if len(ridden_out) != 3:
        wrong.append(f"3 faults were armed, {len(ridden_out)} were met: {ridden_out}")
    office.heal()

    head("The second poll: new blobs, one of them late")
    tell(
        """Two more blobs have come. One carries a time before the first poll's end,
        as if it had become visible late; the overlapping window brings it. Blobs that
        were sent already come once more: each event's Id is Elasticsearch's document
        id, so copies collapse."""
    )
    say()
    demo.publish("Audit.AzureActiveDirectory", 3, timedelta(seconds=45))
    demo.publish("Audit.Exchange", 2, timedelta(seconds=1))
    time.sleep(1.1)  # windows end at a whole second, exclusive
    code = demo.run("-v")
    wrong += [] if code == 0 else [f"the second poll ended with {code}, not 0"]

    head("The count")
    demo.totals()
    say()
    requests = Counter(one.operation for one in office.journal.requests)
    tell(
        "Requests: "
        + ", ".join(f"{count} {name}" for name, count in requests.items())
        + f"; answered by a fault: {len(ridden_out)}"
        + f"; rules of the API broken: {len(office.journal.violations)}"
    )
    wrong += office.journal.violations
    if offers("--report"):
        head("--report: the proof of completeness, from the state alone")
        code = demo.run("--report")
        wrong += [] if code == 0 else [f"--report ended with {code}, not 0"]
    return wrong + demo.missing()


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
