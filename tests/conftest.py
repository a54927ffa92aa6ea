"""Fixtures: Microsoft's stand-in, Logstash's stand-in, and the script as cron runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
for folder in (TESTS, ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from emulator import Credentials, Emulator  # noqa: E402
from logstash_stand_in import LogstashStandIn  # noqa: E402

SCRIPT = ROOT / "o365_poller.py"
DIRECTORY = "Audit.AzureActiveDirectory"


@dataclass(frozen=True)
class Result:
    """What a run of the script left: exit code and what it printed."""

    code: int
    out: str
    err: str


def cron_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What cron hands over, which is next to nothing, and what coverage needs."""
    kept = {k: v for k, v in os.environ.items() if k.startswith("COVERAGE_")}
    return {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **kept, **(more or {})}


@dataclass
class Site:
    """An installation of the poller: a folder with config.ini, and how to run it."""

    folder: Path
    office: Emulator
    logstash: LogstashStandIn
    credentials: Credentials
    settings: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = {
            "azure": {
                "tenant_id": self.office.tenant_id,
                "client_id": self.office.client_id,
                "private_key": str(self.credentials.key_file),
                "certificate": str(self.credentials.certificate_file),
                "login_root": self.office.login_root,
                "api_root": self.office.api_root,
                "graph_root": self.office.graph_root,
                "ca_bundle": str(self.office.ca_file),
            },
            "poll": {"timeout_seconds": "5"},
            "logstash": {"hosts": self.logstash.address, "timeout_seconds": "5"},
            "logging": {"file": str(self.folder / "poller.log"), "level": "DEBUG"},
        }

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / "config.ini"

    @property
    def state_file(self) -> Path:
        """The state, at its default place."""
        return self.folder / "config.db"

    @property
    def log(self) -> str:
        """The log file's text."""
        file = self.folder / "poller.log"
        return file.read_text() if file.exists() else ""

    def set(self, section: str, **values: str | None) -> None:
        """Change keys of the configuration; None takes one out."""
        keys = self.settings.setdefault(section, {})
        for key, value in values.items():
            keys.pop(key, None)
            if value is not None:
                keys[key] = value

    def write(self) -> None:
        """Write config.ini."""
        lines = []
        for section, keys in self.settings.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {value}" for key, value in keys.items()]
        self.config.write_text("\n".join(lines) + "\n")

    def command(self, *arguments: str) -> list[str]:
        """The command line, as cron has it."""
        return [sys.executable, str(SCRIPT), "-c", str(self.config), *arguments]

    def start(
        self, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start the script in the background."""
        self.write()
        return subprocess.Popen(
            self.command(*arguments),
            cwd="/",
            env=cron_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        timeout: float = 100,
    ) -> Result:
        """Run the script to its end under cron's bare environment."""
        process = self.start(*arguments, env=env)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return Result(process.returncode, out, err)


@pytest.fixture
def office() -> Iterator[Emulator]:
    """Microsoft, with one subscription enabled."""
    with Emulator() as office:
        office.enable(DIRECTORY)
        yield office


@pytest.fixture
def logstash() -> Iterator[LogstashStandIn]:
    """Logstash, plain TCP, taking everything."""
    with LogstashStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def site(tmp_path: Path, office: Emulator, logstash: LogstashStandIn) -> Site:
    """An installation with a certificate, against both stand-ins."""
    return Site(tmp_path, office, logstash, office.credentials())
