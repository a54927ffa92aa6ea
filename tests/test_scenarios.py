"""Every scenario of the emulator, through the script as cron starts it.

What must arrive arrives, what must not does not, the exit code tells which, nobody's
rule is broken and no token goes astray. Pauses are shortened; all else is the product.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SCRIPT, Result, Site
from emulator import Emulator
from emulator.scenarios import SCENARIOS, Expectation
from logstash_stand_in import LogstashStandIn

PAUSES = "PAUSE_FIRST, PAUSE_LONGEST, PAUSES_IN_ALL = 1.0, 15.0, 45.0\n"
QUICK = "PAUSE_FIRST, PAUSE_LONGEST, PAUSES_IN_ALL = 0.02, 0.3, 3.0\n"


@pytest.fixture(scope="module")
def quick_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, of which only the pauses are shorter."""
    copy = tmp_path_factory.mktemp("quick") / "o365_poller.py"
    text = SCRIPT.read_text()
    assert text.count(PAUSES) == 1
    shutil.copy(SCRIPT, copy)
    copy.write_text(text.replace(PAUSES, QUICK))
    return copy


class QuickSite(Site):
    """A site whose script does not wait long."""

    script = SCRIPT

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.script), "-c", str(self.config), *arguments]


@pytest.fixture
def bare(tmp_path: Path, quick_script: Path) -> Iterator[QuickSite]:
    """An installation against a tenant to which nothing was ever subscribed."""
    with Emulator() as office, LogstashStandIn() as logstash:
        site = QuickSite(tmp_path, office, logstash, office.credentials())
        site.script = quick_script
        site.set("poll", timeout_seconds="0.6")
        yield site


# Where something is missing at the end: which code says so. The rest ends with 0.
CODES = {
    "token_endpoint_not_json": 3,
    "token_endpoint_hangs": 3,
    "app_not_in_tenant": 4,
    "certificate_not_registered": 4,
    "ps256_refused": 4,
    "token_never_good_enough": 4,
    "permission_missing": 4,
    "no_permission_at_all": 4,
    "dlp_permission_missing": 4,
    "tenant_misconfigured": 4,
    "tenant_deleted": 4,
    "auditing_off": 4,
}


def run_through(site: Site, expected: Expectation) -> list[Result]:
    """The runs of a scenario, with what happens between the first and the second."""
    minutes = expected.reach.total_seconds() / 60
    results = []
    for number in range(expected.runs):
        first = ["--start", f"{minutes:.0f}m"] if number == 0 and minutes > 10 else []
        results.append(site.run(*first))
        if number == 0:
            delivered = frozenset(site.logstash.taken_ids())
            if expected.arrive_first is not None:
                assert delivered & expected.arrive == expected.arrive_first, results
            if expected.between is not None:
                expected.between(site.office)
    return results


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(bare: QuickSite, name: str) -> None:
    office = bare.office
    expected = SCENARIOS[name].set_up(office)
    bare.set("poll", content_types=", ".join(expected.types))
    if name.startswith("graph_"):
        bare.set("graph", application_names="yes")
    results = run_through(bare, expected)
    delivered = frozenset(bare.logstash.taken_ids())
    last = results[-1]
    assert expected.arrive <= delivered, last.err
    assert not expected.never & delivered
    if expected.whole:
        assert last.code == 0, last.err
    else:
        assert last.code == CODES.get(name, last.code)
        assert last.code in (3, 4, 6), last.err
        assert last.err, "it was not said"
    for result in results:
        assert "Traceback" not in result.err
        assert all(line.startswith("o365_poller: ") for line in result.err.splitlines())
        assert result.out == ""
    assert office.journal.violations == []
    assert office.trap.requests == []
