"""README's blocks are tried as far as a machine can; its symptoms are the program's words."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import demo
import pytest
import yaml  # type: ignore[import-untyped]
from conftest import ROOT, SCRIPT, TESTS
from emulator import Emulator

import o365_poller
from o365_poller import AADSTS, KEYS, Settings

README = (ROOT / "README.md").read_text()
EXAMPLE = (ROOT / "config.example.ini").read_text()
PYTHON_OF_THE_UNITS = "/opt/o365_poller/.venv/bin/python"
ANYTHING = "\0"  # stands for what a message puts in


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what stands behind that, its text, its line."""

    language: str
    info: str
    text: str
    line: int


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks in these languages; without a language: all."""
    pattern = re.compile(
        r"^(?P<indent> *)```(?P<language>\w*) ?(?P<info>.*)\n(?P<text>(?:.*\n)*?)(?P=indent)```$",
        re.MULTILINE,
    )
    found = []
    for match in pattern.finditer(README):
        text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        line = README.count("\n", 0, match.start()) + 1
        found.append(Block(match["language"], match["info"], text, line))
    return [one for one in found if not languages or one.language in languages]


def each(*languages: str) -> list[object]:
    """The blocks as parameters, named by their line."""
    return [pytest.param(one, id=f"line {one.line}") for one in blocks(*languages)]


def headings() -> list[str]:
    """The headings, without what looks like one inside a block."""
    text = re.sub(r"^ *```(?:.*\n)*? *```$", "", README, flags=re.MULTILINE)
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def options() -> set[str]:
    """Every option that the program knows."""
    return set(o365_poller.build_parser()._option_string_actions)


# -- the text as a whole


def test_every_block_says_its_language() -> None:
    assert README.count("```") == 2 * len(blocks())
    assert not [one.line for one in blocks() if not one.language]


def test_a_link_inside_readme_leads_to_a_heading() -> None:
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings()}
    links = set(re.findall(r"\]\(#([^)]+)\)", README))
    assert links
    assert links <= anchors


def test_a_file_that_readme_names_is_there() -> None:
    names = re.findall(
        r"`((?:tests/)?[\w./-]+\.(?:ini|txt|md)|LICENSE|tests/\w+)`", README
    )
    inside = {n for n in names if not n.startswith("/") and n != "config.ini"}
    assert {"tests/demo", "tests/check", "config.example.ini"} <= inside
    assert not [name for name in inside if not (ROOT / name).exists()]


def test_the_minimal_python_is_one_number() -> None:
    told = set(re.findall(r"Python (3\.\d+) or newer", README))
    assert told == {"3.11"}
    assert "sys.version_info < (3, 11)" in (TESTS / "venv").read_text()
    assert '# requires-python = ">=3.11"' in SCRIPT.read_text()


# -- commands


@pytest.mark.parametrize("block", each("bash"))
def test_a_bash_block_is_bash(block: Block) -> None:
    told = subprocess.run(
        ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """What stands behind the program's name, wherever a block runs it."""
    for block in blocks():
        text = block.text.replace("\\\n", " ")
        for line in text.splitlines():
            found = re.search(r"(?:o365_poller\.py(?=\s)|^poller(?= |$))(.*)", line)
            if found and "install " not in line and "COPY" not in line:
                yield block.line, shlex.split(found[1], comments=True)


def test_an_option_in_a_block_is_one_of_the_program() -> None:
    lines = list(command_lines())
    assert len(lines) > 10
    wrong = [
        (line, word)
        for line, words in lines
        for word in words
        if word.startswith("-") and word not in options()
    ]
    assert not wrong


def test_a_command_in_a_block_is_understood_by_the_parser() -> None:
    parser = o365_poller.build_parser()
    for _, words in command_lines():
        words = list(words)
        for mark in ("|", ">", '"$@"', "$@", "&&"):
            if mark in words:
                words = words[: words.index(mark)]
        if "--version" not in words:
            parser.parse_args(words)


def test_an_option_in_the_text_is_one_of_the_program() -> None:
    text = re.sub(r"^ *```(?:.*\n)*? *```$", "", README, flags=re.MULTILINE)
    spans = [s for s in re.findall(r"`([^`]+)`", text) if s.startswith("-")]
    wrong = [span for span in spans if re.split(r"[ =]", span)[0] not in options()]
    index_names = {"-journal", "-rejects", "-runs-<month>"}
    wrong = [span for span in wrong if span not in index_names]
    assert not wrong


def test_the_demo_has_the_option_that_readme_shows() -> None:
    assert "tests/demo --logstash HOST:PORT" in README
    assert demo.read_arguments(["--logstash", "host:1"]).logstash == "host:1"


@pytest.mark.parametrize("block", each("cron"))
def test_a_cron_line_has_five_times_a_user_and_no_percent_sign(block: Block) -> None:
    lines = [line for line in block.text.splitlines() if "=" not in line.split()[0]]
    assert lines
    for line in lines:
        *times, user, command = line.split(None, 6)
        assert len(times) == 5
        assert all(re.fullmatch(r"[\d*/,-]+", one) for one in times)
        assert user == "o365_poller"
        assert command.startswith("/")
        assert "%" not in command


# -- services


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The unit files of README, with a program that is there, and the copies of both."""
    for block in blocks("systemd"):
        text = block.text.replace(PYTHON_OF_THE_UNITS, "/bin/true")
        (tmp_path / block.info).write_text(text)
    [copying] = [one for one in blocks("bash") if "daemon-reload" in one.text]
    seds = [line for line in copying.text.splitlines() if line.startswith("sed ")]
    assert len(seds) == 2
    for line in seds:
        subprocess.run(["bash", "-ec", line], cwd=tmp_path, check=True)
    return sorted(tmp_path.iterdir())


def test_the_copies_of_the_units_reconcile_daily(units: list[Path]) -> None:
    assert [one.name for one in units] == [
        "o365_poller-reconcile.service",
        "o365_poller-reconcile.timer",
        "o365_poller.service",
        "o365_poller.timer",
    ]
    assert re.search(
        r"^ExecStart=.*config\.ini --reconcile$", units[0].read_text(), re.MULTILINE
    )
    assert "OnCalendar=*-*-* 03:17\n" in units[1].read_text()


systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@systemd
def test_systemd_has_nothing_to_say_of_the_units(units: list[Path]) -> None:
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in told.stderr.splitlines() if "o365_poller" in line]
    assert ours == []
    assert told.returncode == 0


@systemd
def test_the_service_is_hardened_by_systemds_own_measure(units: list[Path]) -> None:
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", str(units[2])],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level.*: ([\d.]+)", told.stdout)
    if found is None:
        pytest.skip(f"this systemd cannot tell offline: {told.stderr.strip()[:80]}")
    assert float(found[1]) <= 2.0


JOB_KEYS = {
    "name",
    "group",
    "description",
    "loglevel",
    "multipleExecutions",
    "scheduleEnabled",
    "executionEnabled",
    "schedule",
    "nodefilters",
    "sequence",
    "notification",
}


def test_the_rundeck_jobs_have_what_its_format_wants() -> None:
    [block] = blocks("yaml")
    jobs = yaml.safe_load(block.text)
    assert [job["name"] for job in jobs] == ["o365_poller", "o365_poller reconcile"]
    for job in jobs:
        assert set(job) <= JOB_KEYS
        assert {"name", "description", "loglevel", "sequence"} <= set(job)
        assert job["multipleExecutions"] is False
        # Quartz: seconds first, and one of the two days is a question mark.
        fields = job["schedule"]["crontab"].split()
        assert len(fields) == 7
        assert "?" in (fields[3], fields[5])
        assert all("exec" in command for command in job["sequence"]["commands"])


def test_the_dockerfile_copies_what_is_there_and_runs_as_nobody() -> None:
    [block] = blocks("dockerfile")
    text = block.text.replace("\\\n", " ")
    version = re.search(r"^FROM python:3\.(\d+)-slim$", text, re.MULTILINE)
    assert version
    assert int(version[1]) >= 11
    copied = re.findall(r"^COPY (.+) /app/$", text, re.MULTILINE)
    assert copied
    assert all((ROOT / name).exists() for name in copied[0].split())
    assert re.search(r"^USER \d+$", text, re.MULTILINE)
    for name in re.findall(r"O365_POLLER_([A-Z_]+)=", README):
        section, _, key = name.lower().partition("_")
        assert key in KEYS[section], name


# -- configuration


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder with key.pem and certificate.pem."""
    office = Emulator()
    try:
        made = office.credentials()
        shutil.copy(made.key_file, tmp_path / "key.pem")
        shutil.copy(made.certificate_file, tmp_path / "certificate.pem")
    finally:
        office.close()
    return tmp_path


def settings_of(text: str, folder: Path) -> Settings:
    """The settings of a configuration in this folder."""
    file = folder / "config.ini"
    file.write_text(text)
    return o365_poller.read_settings(file, {}, named=True)


FILLED = EXAMPLE.replace(
    "fill-in-the-tenant-id", "11111111-2222-3333-4444-555555555555"
).replace("fill-in-the-client-id", "66666666-7777-8888-9999-000000000000")


def test_the_configuration_of_readme_is_accepted(pair: Path) -> None:
    [block] = blocks("ini")
    text = block.text.replace("/var/lib/o365_poller", str(pair))
    settings = settings_of(text, pair)
    assert settings.logstash.tls
    assert len(settings.poll.content_types) == 4


def test_the_example_is_accepted_once_it_is_filled_in(pair: Path) -> None:
    settings = settings_of(FILLED, pair)
    assert settings.logstash.hosts[0].name == "logstash.example.net"


def test_the_example_as_it_stands_is_refused_by_name(pair: Path) -> None:
    with pytest.raises(o365_poller.ConfigError) as refused:
        settings_of(EXAMPLE, pair)
    told = "\n".join(refused.value.complaints)
    assert "[azure] tenant_id" in told
    assert "[azure] client_id" in told


def commented_out() -> list[tuple[str, str, str]]:
    """Section, key and value of each commented line of the example."""
    section, found = "", []
    for line in EXAMPLE.splitlines():
        if head := re.fullmatch(r"\[(\w+)\]", line):
            section = head[1]
        elif shown := re.fullmatch(r"#([a-z_]+) = (.+)", line):
            found.append((section, shown[1], shown[2]))
    return found


# What is shown where there is no default.
EXAMPLES = {
    ("azure", "thumbprint"),
    ("azure", "private_key_passphrase"),
    ("azure", "client_secret"),
    ("azure", "ca_bundle"),
    ("azure", "publisher_id"),
    ("logstash", "ca_file"),
    ("logstash", "cert_file"),
    ("logstash", "key_file"),
    ("logging", "file"),
    *(("alerts", key) for key in ("smtp_host", "username", "password", "from", "to")),
}


def comparable(settings: Settings) -> dict[str, str]:
    """The settings as text, without the credential; secrets are *** in it."""
    parts: list[Any] = [settings.azure, *settings[2:]]
    return {
        f"{type(part).__name__}.{name}": repr(getattr(part, name))
        for part in parts
        for name in part._fields
        if name != "credential"
    }


def test_what_the_example_comments_out_is_the_default(pair: Path) -> None:
    default = comparable(settings_of(FILLED, pair))
    shown = commented_out()
    assert {(section, key) for section, key, _ in shown} >= EXAMPLES
    for section, key, value in shown:
        if (section, key) in EXAMPLES:
            continue
        text = FILLED.replace(f"\n#{key} = {value}\n", f"\n{key} = {value}\n")
        assert text != FILLED
        assert comparable(settings_of(text, pair)) == default, (section, key)


def test_the_example_says_of_each_key_when_to_change_it() -> None:
    for section, key, value in commented_out():
        before = EXAMPLE[: EXAMPLE.index(f"#{key} = {value}")]
        words = before.rsplit("\n\n", 1)[1]
        advice = re.search(
            r"Change|Give|Make|Say|Add|Never|said again|warned|needed", words
        )
        assert advice, (section, key)


# -- the symptoms


def literal(node: ast.AST) -> str | None:
    """A string expression's text, with ANYTHING for what is put in; None if it is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-+\d.]*[sdfgr]", ANYTHING, node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [
            str(part.value) if isinstance(part, ast.Constant) else ANYTHING
            for part in node.values
        ]
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [literal(node.left), literal(node.right)]
        if any(sides):
            return "".join(side or ANYTHING for side in sides)
    return None


@cache
def texts_of_the_program() -> tuple[str, ...]:
    """Every string of the program, docstrings aside, joined as it is printed."""
    tree = ast.parse(SCRIPT.read_text())
    doc = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = [literal(node) for node in ast.walk(tree) if id(node) not in doc]
    return tuple(text for text in found if text)


def symptoms() -> list[tuple[str, str]]:
    """The words in the first cell of each symptom, and its row."""
    part = README.partition("## When something is wrong")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| `")]
    return [
        (words, row) for row in rows for words in re.findall(r"`([^`]+)`", cell(row, 0))
    ]


def cell(row: str, number: int) -> str:
    """A cell of a row."""
    return row.split("|")[1 + number].strip()


def is_said(words: str) -> bool:
    """Whether a message of the program has these words; `...` is anything."""
    pattern = ".*".join(map(re.escape, words.split("...")))
    return any(re.search(pattern, text) for text in texts_of_the_program())


def test_there_are_symptoms_and_a_wrong_one_would_be_noticed() -> None:
    assert len(symptoms()) > 40
    assert not is_said("the flux capacitor is empty")


@pytest.mark.parametrize("words", [words for words, _ in symptoms()])
def test_a_symptom_is_in_the_programs_own_words(words: str) -> None:
    assert is_said(words)


def test_a_symptom_with_entra_ids_number_is_that_numbers_meaning() -> None:
    rows = [(w, r) for w, r in symptoms() if "AADSTS" in cell(r, 1)]
    assert len(rows) >= 8
    for words, row in rows:
        found = re.search(r"AADSTS(\d+)", row)
        assert found
        assert words in AADSTS[int(found[1])][0]


def test_every_kind_of_error_has_a_symptom() -> None:
    told = README.partition("## When something is wrong")[2]
    for code in ("2", "3", "4", "5", "6", "75"):
        assert f"Exit code {code}" in told


# -- defaults in the tables


def test_the_numbers_in_the_configuration_tables_are_the_defaults(pair: Path) -> None:
    settings = settings_of(FILLED, pair)
    defaults = {
        "window_minutes": settings.poll.window.total_seconds() / 60,
        "overlap_minutes": settings.poll.overlap.total_seconds() / 60,
        "workers": settings.poll.workers,
        "repeat_hours": settings.alerts.repeat.total_seconds() / 3600,
        "certificate_days": settings.alerts.certificate_days,
    }
    for key, value in defaults.items():
        assert f"| `{key}` | {value:g} |" in README
    assert f"| `timeout_seconds` | {settings.poll.timeout_seconds:g} |" in README
    assert f"| `timeout_seconds` | {settings.logstash.timeout_seconds:g} |" in README
    assert f"| `level` | `{settings.logging.level}` |" in README


def test_the_tables_of_the_state_are_those_of_the_program() -> None:
    part = README.partition("**The state**")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)
    made = re.findall(r"^CREATE TABLE (\w+)", o365_poller.SCHEMA, re.MULTILINE)
    assert told == made


def test_the_environment_of_cron_is_not_needed() -> None:
    """The demo runs the program under what cron hands over, as README's lines do."""
    assert set(demo.bare_environment()) - set(os.environ) <= {"PATH", "HOME"}
    parser = configparser.RawConfigParser()
    parser.read_string(EXAMPLE)
    assert set(parser.sections()) == set(KEYS)
