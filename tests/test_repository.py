"""Promises about the repository: its layout, and what must stay equal in two places."""

from __future__ import annotations

import argparse
import ast
import configparser
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPT, TESTS

import o365_poller
from o365_poller import KEYS, Exit

SOURCE = SCRIPT.read_text()
TREE = ast.parse(SOURCE)
BANNER = re.compile(r"^# == (?P<title>[^=]+?) =+$", re.MULTILINE)
TOP_LEVEL = {
    "o365_poller.py",
    "config.example.ini",
    "requirements.txt",
    "logstash",
    "tests",
    "README.md",
    "LICENSE",
}
NOT_KEPT = ("__pycache__", "config.ini")


def read(name: str) -> str:
    """A file at the top level."""
    return (ROOT / name).read_text()


# -- the top level


def test_the_top_level_holds_what_was_agreed_and_nothing_else() -> None:
    found = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")}
    found = {n for n in found if n not in NOT_KEPT and not n.startswith("config.db")}
    assert found == TOP_LEVEL


@pytest.mark.parametrize("name", ["o365_poller.py", "tests/check", ".ci/run"])
def test_a_program_can_be_executed(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)


def our_files() -> Iterator[Path]:
    """Every file of ours but those in tool folders."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name != "__pycache__"
        ] + ([".ci"] if folder == str(ROOT) else [])
        for name in files:
            path = Path(folder) / name
            if not path.is_symlink() and not name.endswith((".pyc", ".db")):
                yield path


def test_what_has_a_shebang_is_executable_and_the_reverse() -> None:
    wrong = []
    for path in our_files():
        shebang = path.read_bytes()[:2] == b"#!"
        if shebang != os.access(path, os.X_OK) and (shebang or path.stat().st_mode & 1):
            wrong.append(f"{path.relative_to(ROOT)}: shebang {shebang}")
    assert not wrong, wrong


def test_ci_calls_check_and_nothing_else() -> None:
    ours = re.findall(r"^[^#\n]*\b(tests/\w+)", read(".ci/run"), re.MULTILINE)
    assert ours == ["tests/check"]


# -- what stands in two places


def header() -> dict[str, object]:
    """The PEP 723 block, read with the pattern of the specification."""
    pattern = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    found = [m for m in re.finditer(pattern, SOURCE) if m["type"] == "script"]
    assert len(found) == 1
    lines = found[0]["content"].splitlines()
    return tomllib.loads("\n".join(line[2:] for line in lines))


def test_the_pep_723_header_equals_requirements_txt() -> None:
    assert header()["dependencies"] == read("requirements.txt").split()


def test_the_minimal_python_is_the_same_everywhere() -> None:
    assert header()["requires-python"] == ">=3.11"
    ruff = tomllib.loads((TESTS / "ruff.toml").read_text())
    assert ruff["target-version"] == "py311"
    assert "python_version = 3.11" in (TESTS / "mypy.ini").read_text()
    assert "3.11" in read("README.md")


def test_test_requirements_are_pinned_and_leave_out_the_products_own() -> None:
    lines = [
        line
        for line in (TESTS / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", x) for x in lines)
    names = {line.partition("==")[0].lower() for line in lines}
    assert not names & {"msal", "requests", "python-dateutil"}


# -- README and the example: equal to the code


def rows(text: str) -> list[list[str]]:
    """The cells of every table row of a Markdown text."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, row by row, without the ruler."""
    found = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    return [
        [row for row in rows(table) if not all(re.fullmatch(r":?-+:?", c) for c in row)]
        for table in found
    ]


def code_spans(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


def parser_options() -> set[str]:
    """Every option of the parser but --help, in all its spellings."""
    actions = o365_poller.build_parser()._actions
    return {
        option
        for action in actions
        if not isinstance(action, argparse._HelpAction)
        for option in action.option_strings
    }


def test_the_option_table_of_readme_equals_the_parser() -> None:
    found: set[str] = set()
    for table in tables(read("README.md")):
        cells = [row[0] for row in table if row[0].startswith("`-")]
        for cell in cells:
            found |= set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", cell))
    known = parser_options()
    long_ones = {option for option in known if option.startswith("--")}
    assert found - known <= {"-h", "--help"}
    spelled = {
        action
        for action in o365_poller.build_parser()._actions
        if set(action.option_strings) & found
    }
    missing = [
        option
        for option in sorted(long_ones)
        if not any(option in action.option_strings for action in spelled)
    ]
    assert not missing


def readme_keys() -> set[tuple[str, str]]:
    """Section and key of every row of README's configuration tables.

    A key stands in the first cell as `key` or `[section] key`; the section, where it is
    not in the cell, is that of the last heading, or of the last row that named one.
    """
    found: set[tuple[str, str]] = set()
    section = ""
    for line in read("README.md").splitlines():
        named = re.match(r"(?:#+|\*\*).*?\[(\w+)\]", line)
        if named and named[1] in KEYS:
            section = named[1]
        if not line.startswith("|"):
            continue
        cells = rows(line)[0]
        names = code_spans(cells[0])
        if len(cells) > 1 and [n for n in names if n.strip("[]") in KEYS and "[" in n]:
            section = names[0].strip("[]")
            names = names[1:] or code_spans(cells[1])[:1]
        for name in names:
            whole = re.fullmatch(r"\[(\w+)\] (\w+)", name)
            if whole:
                found.add((whole[1], whole[2]))
            elif section and re.fullmatch(r"[a-z_]+", name):
                found.add((section, name))
    return found


def test_every_key_has_its_row_in_readme_and_no_row_names_another() -> None:
    known = {(section, key) for section, keys in KEYS.items() for key in keys}
    found = readme_keys()
    assert known - found == set()


def test_the_exit_code_table_of_readme_equals_the_code() -> None:
    found: dict[str, str] = {}
    for table in tables(read("README.md")):
        if not table[0][0].lower().startswith("code"):
            continue
        for row in table[1:]:
            numbers = re.findall(r"\d+", row[0])
            found |= dict.fromkeys(numbers, " ".join(row[1:]))
    assert set(found) == {str(code.value) for code in Exit}
    for code in Exit:
        if code not in (Exit.INTERRUPTED, Exit.TERMINATED):
            assert code.name in found[str(code.value)]


def test_the_example_names_every_key_and_no_other() -> None:
    text = read("config.example.ini")
    section, found = "", set()
    for line in text.splitlines():
        bare = line.lstrip("#; ")
        if re.fullmatch(r"\[\w+\]", bare):
            section = bare[1:-1]
        elif key := re.match(r"[#;]? ?([a-z_]+) =", line):
            found.add((section, key[1]))
    assert found == {(section, key) for section, keys in KEYS.items() for key in keys}


def test_the_example_is_read_without_a_complaint_about_a_name() -> None:
    complaints: list[str] = []
    found = o365_poller.read_ini(ROOT / "config.example.ini", complaints)
    assert complaints == []
    assert found is not None
    assert set(found) <= set(KEYS)
    for section, keys in found.items():
        assert set(keys) <= set(KEYS[section])


def test_the_example_has_no_comment_behind_a_value() -> None:
    parser = configparser.RawConfigParser()
    parser.read_string(read("config.example.ini"))
    values = [v for s in parser.sections() for _, v in parser.items(s)]
    assert not [value for value in values if re.search(r"\s[#;]", value)]


def test_help_names_every_exit_code_with_its_meaning() -> None:
    text = o365_poller.build_parser().format_help()
    for code in Exit:
        assert re.search(rf"^ +{code.value} +{code.name} +", text, re.MULTILINE), code
        assert code.meaning in text


def test_every_option_has_its_help() -> None:
    for action in o365_poller.build_parser()._actions:
        assert action.help, action.option_strings


# -- the file itself


def banners() -> list[tuple[str, int]]:
    """Title and first line of each section."""
    return [
        (m["title"], SOURCE.count("\n", 0, m.start()) + 1)
        for m in BANNER.finditer(SOURCE)
    ]


def test_every_section_has_its_test_file() -> None:
    names = [re.sub(r"\W+", "_", title.lower()) for title, _ in banners()]
    assert len(names) > 10
    missing = [n for n in names if not (TESTS / f"test_{n}.py").exists()]
    assert not missing


Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


def definitions() -> dict[str, int]:
    """The names that the module defines for itself, with their lines."""
    found: dict[str, int] = {}
    for node in TREE.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node.lineno
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        found[name.id] = node.lineno
    return found


class Uses(ast.NodeVisitor):
    """The module's names that a piece of code uses; annotations are never evaluated."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int]] = []
        self._scopes: list[set[str]] = []

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and not any(
            node.id in scope for scope in self._scopes
        ):
            self.found.append((node.id, node.lineno))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for outside in [*node.decorator_list, *node.args.defaults]:
            self.visit(outside)
        for default in node.args.kw_defaults:
            if default:
                self.visit(default)
        self._inside(node, node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._inside(node, [node.body])

    def _comprehension(self, node: ast.AST) -> None:
        stored = {
            name.id
            for name in ast.walk(node)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        self._scopes.append(stored)
        self.generic_visit(node)
        self._scopes.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = _comprehension
    visit_GeneratorExp = _comprehension

    def _inside(
        self, node: ast.FunctionDef | ast.Lambda, body: list[ast.stmt] | list[ast.expr]
    ) -> None:
        arguments = node.args
        local = {
            one.arg
            for one in [
                *arguments.posonlyargs,
                *arguments.args,
                *arguments.kwonlyargs,
                *filter(None, (arguments.vararg, arguments.kwarg)),
            ]
        }
        for statement in body:
            for inner in ast.walk(statement):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    local.add(inner.id)
                elif isinstance(
                    inner, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler
                ):
                    local.add(inner.name or "")
        self._scopes.append(local)
        for statement in body:
            self.visit(statement)
        self._scopes.pop()


def wrong_uses(tree: ast.Module, starts: list[int]) -> list[str]:
    """Every use of a name that is defined in a section further down."""
    defined = definitions()
    wrong = []
    for node in tree.body:
        uses = Uses()
        uses.visit(node)
        for name, line in uses.found:
            if name not in defined:
                continue
            here = sum(start <= line for start in starts)
            there = sum(start <= defined[name] for start in starts)
            if there > here:
                wrong.append(f"line {line} uses {name}, from a section below")
    return wrong


def test_a_section_uses_only_what_stands_in_it_or_above() -> None:
    assert wrong_uses(TREE, [line for _, line in banners()]) == []


def test_the_layering_test_sees_a_use_from_below() -> None:
    tree = ast.parse("def early() -> int:\n    return [worst(x) for x in ()][0]\n")
    assert wrong_uses(tree, [1, definitions()["worst"]]) == [
        "line 2 uses worst, from a section below"
    ]


def functions() -> Iterator[ast.FunctionDef]:
    for node in ast.walk(TREE):
        if isinstance(node, ast.FunctionDef):
            yield node


def length(node: ast.FunctionDef) -> int:
    """Lines of a function without its docstring, decorators not counted."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def test_no_function_is_longer_than_forty_lines() -> None:
    long = {f.name: length(f) for f in functions() if length(f) > 40}
    long.pop("build_parser", None)
    assert long == {}


def test_no_line_is_wider_than_88() -> None:
    wide = [n for n, line in enumerate(SOURCE.splitlines(), 1) if len(line) > 88]
    assert wide == []


def test_every_exception_to_a_rule_has_its_reason() -> None:
    lines = SOURCE.splitlines()
    wrong = [
        line.strip()
        for above, line in zip(lines, lines[1:], strict=False)
        if (mark := re.search(r"# (?:noqa|type: ignore|pragma).*", line))
        and " -- " not in mark[0]
        and not above.strip().startswith("#")
    ]
    assert wrong == []


def test_no_section_is_called_utilities() -> None:
    bad = ("util", "helper", "misc", "common")
    assert [title for title, _ in banners() if title.lower().startswith(bad)] == []


# -- safety, as far as the text shows it


def test_nothing_in_the_source_switches_verification_off() -> None:
    wrong = []
    for node in ast.walk(TREE):
        if isinstance(node, ast.keyword) and node.arg in ("verify", "check_hostname"):
            wrong.append(f"line {node.value.lineno}: {node.arg}=")
        if isinstance(node, ast.Attribute) and node.attr in (
            "CERT_NONE",
            "CERT_OPTIONAL",
            "check_hostname",
            "verify_mode",
            "_create_unverified_context",
            "disable_warnings",
        ):
            wrong.append(f"line {node.lineno}: {node.attr}")
    assert wrong == []


# -- importing, --help and --version


def test_importing_opens_no_socket_and_adds_no_handler_and_loads_no_library() -> None:
    code = """
import sys
seen = []
sys.addaudithook(lambda event, _: event.startswith("socket.") and seen.append(event))
import logging
before = list(logging.getLogger().handlers)
import o365_poller
assert not seen, seen
assert logging.getLogger().handlers == before == []
assert o365_poller.log.handlers == []
assert not {"msal", "requests", "urllib3", "cryptography"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_load_no_library(flag: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT), flag],
        cwd="/",
        capture_output=True,
        text=True,
    )
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in done.stderr.splitlines()
    }
    assert done.returncode == 0
    assert "argparse" in loaded
    assert not loaded & {"msal", "requests", "urllib3", "cryptography", "dateutil"}


def test_version_names_the_files_own_hash_and_what_it_runs_on() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--version"], capture_output=True, text=True
    )
    number = ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(
        rf"o365_poller {re.escape(o365_poller.__version__)} "
        rf"\(sha256 [0-9a-f]{{12}}\), Python {number}, msal \S+, requests \S+, "
        r"python-dateutil \S+\n",
        done.stdout,
    )
    assert done.stderr == ""
