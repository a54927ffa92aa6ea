"""The command line: what it means, and every complaint about it."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from making import NOW, TYPE, ago

import o365_poller
from o365_poller import (
    ConfigError,
    ConsoleFormatter,
    Exit,
    Order,
    Window,
    build_parser,
    read_order,
)


def order(*flags: str, **environ: str) -> Order:
    return read_order(build_parser().parse_args(list(flags)), environ, NOW)


def complaints(*flags: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        order(*flags)
    return list(caught.value.complaints)


def test_without_flags_it_is_a_poll_of_the_file_beside_the_script() -> None:
    found = order()
    assert found.config == Path(o365_poller.__file__).resolve().parent / "config.ini"
    assert not found.config_named
    assert (found.window, found.content_types, found.stdout) == (None, (), False)


def test_c_wins_over_the_environment_which_wins_over_the_default() -> None:
    environ = {"O365_POLLER_CONFIG": "/etc/a.ini"}
    named = order(**environ)
    assert (named.config, named.config_named) == (Path("/etc/a.ini"), True)
    assert order("-c", "/etc/b.ini", **environ).config == Path("/etc/b.ini")
    assert order("--config", "/etc/b.ini").config == Path("/etc/b.ini")


def test_a_tilde_is_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert order("-c", "~/a.ini").config == Path("/somewhere/a.ini")


def test_times_make_a_window() -> None:
    assert order("--start", "6h").window == Window(ago(hours=6), NOW)
    assert order("--start", "2026-03-01", "--end", "2h").window == Window(
        ago(hours=34), ago(hours=2)
    )
    assert order("--start", "7d").window == Window(ago(days=7), NOW)


def test_content_types_are_read_in_any_case_and_once() -> None:
    found = order("--content-type", "audit.EXCHANGE", "--content-type", TYPE)
    assert found.content_types == (TYPE,)


def test_every_complaint_comes_at_once() -> None:
    assert complaints("--start", "soon", "--end", "late", "--content-type", "x") == [
        (
            "--content-type: expected one of Audit.AzureActiveDirectory, "
            "Audit.Exchange, Audit.SharePoint, Audit.General, DLP.All, got 'x'"
        ),
        (
            "--start: expected a time as ISO 8601, or an age such as 90m, 6h, 2d, got "
            "'soon'"
        ),
        (
            "--end: expected a time as ISO 8601, or an age such as 90m, 6h, 2d, got "
            "'late'"
        ),
    ]


@pytest.mark.parametrize(
    "flags",
    [
        ["--stdout", "--reconcile"],
        ["--stdout", "--report"],
        ["--stdout", "--check"],
        ["--check", "--start", "1h"],
        ["--reconcile", "--report"],
        ["--report", "--check"],
        ["--start"],
        ["--conf", "x"],
        ["positional"],
    ],
    ids=" ".join,
)
def test_what_does_not_go_together_is_a_usage_error(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ConfigError)) as caught:
        order(*flags)
    error: Any = caught.value
    code = error.code if isinstance(error, SystemExit) else error.exit
    assert code == Exit.USAGE
    assert capsys.readouterr().out == ""


def test_help_goes_to_stdout_and_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["--help"])
    assert caught.value.code == 0
    assert re.search(r"^usage: o365_poller.py ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("level", "text", "lines"),
    [
        (logging.INFO, "fine", "o365_poller: fine"),
        (logging.WARNING, "hm", "o365_poller: warning: hm"),
        (logging.ERROR, "a\nb", "o365_poller: error: a\no365_poller: error: b"),
    ],
)
def test_a_console_line_names_the_program_and_the_level_if_it_matters(
    level: int, text: str, lines: str
) -> None:
    record = logging.LogRecord("x", level, "f", 1, text, (), None)
    assert ConsoleFormatter().format(record) == lines


@pytest.mark.parametrize(
    ("log_file", "hint"),
    [(True, ""), (False, " (there is none: set file in [logging] and run again)")],
)
def test_a_traceback_never_reaches_the_console_but_the_way_to_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_file: bool, hint: str
) -> None:
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if log_file:
        handlers.append(logging.FileHandler(tmp_path / "log", delay=True))
    monkeypatch.setattr(o365_poller.log, "handlers", handlers)
    try:
        raise ValueError("inside")
    except ValueError:
        record = logging.LogRecord("x", 40, "f", 1, "said", (), sys.exc_info())
    assert ConsoleFormatter().format(record) == f"o365_poller: error: said{hint}"


def test_the_log_file_hides_what_the_console_was_never_asked_to_show(
    tmp_path: Path,
) -> None:
    o365_poller.Secret("hush-hush-of-a-debug-line")
    log, file = o365_poller.log, tmp_path / "poller.log"
    handlers, level = log.handlers, log.level
    log.handlers = []
    try:
        log.setLevel(logging.DEBUG)
        settings = o365_poller.Logging(file, "DEBUG")
        o365_poller.set_up_log_file(settings, tmp_path / "config.ini")
        log.debug("it said %s", "hush-hush-of-a-debug-line")
    finally:
        for handler in log.handlers:
            handler.close()
        log.handlers = handlers
        log.setLevel(level)
    assert file.read_text().endswith("it said ***\n")
