"""The model bites: mistakes of real collectors, planted one by one, are each caught.

Each is a change of the product's text, loaded as a module of its own. The text must be
found exactly once, so that no mistake is quietly not planted any more. Where each comes
from, and what caught it, stands in README.md.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from delivery_model import make_machine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

TESTS = Path(__file__).resolve().parent
SOURCE = (TESTS.parent / "o365_poller.py").read_text()


@dataclass(frozen=True)
class Mistake:
    """A defect: what it replaces, and the words with which the model rejects it."""

    name: str
    was: str
    now: str
    caught: str  # a pattern that the assertion's text matches


MISTAKES = (
    Mistake(
        "position moved before delivery",
        "            begun, batch, error = self.deliver(job, tally, purpose)\n",
        "            if purpose is Purpose.POLL:\n"
        "                self.ports.state.set_watermark(\n"
        "                    job.content_type, job.window.end)\n"
        "            begun, batch, error = self.deliver(job, tally, purpose)\n",
        "behind the watermark|never came",
    ),
    Mistake(
        "no overlap",
        "        start = min(start, watermark - overlap)\n",
        "        start = watermark\n",
        "behind the watermark|never came|came in part",
    ),
    Mistake(
        "restart one second later",
        "        start = min(start, watermark - overlap)\n",
        "        start = watermark + timedelta(seconds=1)\n",
        "behind the watermark|never came|came in part|spans stay open",
    ),
    Mistake(
        "ids noted before sending",
        "                        if batch.pieces:\n"
        "                            self.ports.sink.deliver(batch.pieces)\n"
        "                        record(batch.changes)\n",
        "                        record(batch.changes)\n"
        "                        if batch.pieces:\n"
        "                            self.ports.sink.deliver(batch.pieces)\n",
        "events entered",
    ),
    Mistake(
        "second blob of the same timestamp skipped",
        "                key = fingerprint(blob.id)\n                row = ",
        "                key = fingerprint(str(blob.created))\n                row = ",
        "behind the watermark|never came",
    ),
    Mistake(
        "later pages never asked for",
        '    return headers.get("nextpageuri") or headers.get("nextpageurl") or ""\n',
        '    return headers.get("nextpageurl") or ""\n',
        "behind the watermark|never came",
    ),
    Mistake(
        "the rest dropped after one bad blob",
        "                        self.fail(result, batch)\n",
        "                        self.fail(result, batch)\n"
        "                        break\n",
        "behind the watermark|never came|was not tried|without a whole listing",
    ),
    Mistake(
        "a blob that fails is never tried again",
        "            batch.changes.pending.append(what)\n",
        "            pass\n",
        "behind the watermark|never came",
    ),
    Mistake(
        "a socket that fails is a warning",
        "        if batch.pieces:\n            self.ports.sink.deliver(batch.pieces)\n",
        "        if batch.pieces:\n            with contextlib.suppress(SinkError):\n"
        "                self.ports.sink.deliver(batch.pieces)\n",
        "events entered",
    ),
    Mistake(
        "a window is done though its listing broke off",
        "            if error is None:\n                self.ports.state.finish(",
        "            if True:\n                self.ports.state.finish(",
        "polled without a whole listing",
    ),
    Mistake(
        "a gap of more than a week is skipped without a word",
        "                self.lose(content_type, Window(watermark, earliest(now)), tally)\n",
        "                pass\n",
        "behind the watermark|never came",
    ),
    Mistake(
        "a 404 is taken for good at once",
        "        failure.verdict is Verdict.MISSING and now - since >= "
        "MISSING_IS_LOST_AFTER\n",
        "        failure.verdict is Verdict.MISSING\n",
        "was called lost",
    ),
    Mistake(
        "a gone blob is asked for for ever",
        "    if not gone and not expired:\n",
        "    if True:\n",
        "mended blobs wait",
    ),
    Mistake(
        "a bad blob freezes the position",
        "            if error is None:\n                self.ports.state.finish(",
        "            if error is None and batch.changes.pending:\n"
        '                error = broken_listing(tally.content_type, "a bad blob")\n'
        "            if error is None:\n"
        "                self.ports.state.finish(",
        "the watermark stays",
    ),
    Mistake(
        "contentId is the key: what was had once is never listed again",
        "        # Most polls have none of these: then",
        "        return lambda blob: bool(self._rows(\n"
        '            "SELECT 1 FROM delivered WHERE content_id = ?",\n'
        "            fingerprint(blob.id)))\n"
        "        # Most polls have none of these: then",
        "came in part",
    ),
    Mistake(
        "the position is stored apart from what it stands for",
        "        with self._transaction():\n"
        "            self._record(job.content_type, changes, now, 0)\n"
        "            self._polled(job.content_type, job.window)\n",
        "        if moves_watermark:\n"
        "            with self._transaction():\n"
        "                self._advance(job.content_type, job.window.end)\n"
        "        with self._transaction():\n"
        "            self._record(job.content_type, changes, now, 0)\n"
        "            self._polled(job.content_type, job.window)\n",
        "behind the watermark|never came",
    ),
)


def plant(mistake: Mistake, folder: Path) -> Any:
    """The product with a mistake in it, as a module."""
    assert SOURCE.count(mistake.was) == 1, f"not planted: {mistake.name}"
    name = "o365_poller_" + re.sub(r"\W", "_", mistake.name)
    file = folder / f"{name}.py"
    file.write_text(SOURCE.replace(mistake.was, mistake.now))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def planted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    module = plant(request.param, tmp_path)
    yield module
    del sys.modules[module.__name__]


@pytest.mark.parametrize(
    ("planted", "mistake"),
    [(mistake, mistake) for mistake in MISTAKES],
    ids=[mistake.name for mistake in MISTAKES],
    indirect=["planted"],
)
def test_the_model_catches_a_planted_mistake(planted: Any, mistake: Mistake) -> None:
    effort = settings(
        max_examples=250,
        stateful_step_count=25,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(make_machine(planted), settings=effort)
    sentence = str(caught.value).splitlines()[0]
    assert re.search(mistake.caught, sentence), sentence


def test_the_list_of_planted_mistakes_is_whole() -> None:
    told = (TESTS / "README.md").read_text()
    rows = [line.split("|")[1].strip() for line in told.splitlines() if "|" in line]
    assert rows[2:] == [mistake.name for mistake in MISTAKES]
