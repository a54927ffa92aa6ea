"""How a run can end, and in what words."""

from __future__ import annotations

import itertools

import pytest

from o365_poller import (
    BusyError,
    ConfigError,
    Exit,
    PollerError,
    SinkError,
    SourceError,
    StateError,
    Stopped,
    TokenError,
    plain,
    worst,
)

ORDER = [
    Exit.UNEXPECTED,
    Exit.USAGE,
    Exit.REFUSED,
    Exit.GAP,
    Exit.SINK,
    Exit.INCOMPLETE,
]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("OK", 0),
        ("UNEXPECTED", 1),
        ("USAGE", 2),
        ("INCOMPLETE", 3),
        ("REFUSED", 4),
        ("SINK", 5),
        ("GAP", 6),
        ("BUSY", 75),
        ("INTERRUPTED", 130),
        ("TERMINATED", 143),
    ],
)
def test_a_code_is_its_number(name: str, number: int) -> None:
    assert Exit[name] == number


def test_every_code_has_a_meaning_of_its_own() -> None:
    meanings = [code.meaning for code in Exit]
    assert all(meanings)
    assert len(set(meanings)) == len(Exit)


@pytest.mark.parametrize(
    ("first", "second"),
    list(itertools.combinations(ORDER, 2)),
    ids=lambda code: code.name,
)
def test_of_several_the_first_in_the_contracts_order_counts(
    first: Exit, second: Exit
) -> None:
    assert worst([second, first]) == first
    assert worst([first, second, Exit.OK]) == first


def test_of_none_the_worst_is_ok() -> None:
    assert worst([]) == Exit.OK


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SourceError("a", "b", "c"), Exit.INCOMPLETE),
        (TokenError("a", "b", "c"), Exit.REFUSED),
        (SinkError("a", "b", "c"), Exit.SINK),
        (StateError("a", "b", "c"), Exit.USAGE),
        (BusyError("a", "b", "c"), Exit.BUSY),
        (ConfigError(["a"]), Exit.USAGE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_carries_its_code(error: PollerError, code: Exit) -> None:
    assert error.exit == code


def test_an_error_says_what_happened_what_it_means_and_what_to_do() -> None:
    error = SinkError("nobody answered", "nothing is lost", "look there")
    assert str(error) == "nobody answered; nothing is lost; look there"


def test_a_stop_carries_128_and_the_signal() -> None:
    assert Stopped(2).exit == Exit.INTERRUPTED
    assert Stopped(15).exit == Exit.TERMINATED
    assert not isinstance(Stopped(2), Exception)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("as it is", "as it is"),
        ("two\r\nlines\tand\x00more", "two lines and more"),
        ("\x1b[31mred\x1b[0m", "[31mred [0m"),
        ("\u202eevil\u2028line\u200b", "evil line"),
        ("\ud83d", ""),
        ("", ""),
        ("x" * 400, "x" * 297 + "..."),
    ],
    ids=["plain", "controls", "escape", "format", "surrogate", "empty", "long"],
)
def test_text_from_elsewhere_is_one_line_without_controls(text: str, line: str) -> None:
    assert plain(text) == line
