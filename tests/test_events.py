"""The text of each event, cut out of a blob as it came."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence

import pytest
from emulator.events import BEASTS, ZOO, zoo_by_name
from hypothesis import given
from hypothesis import strategies as st

from o365_poller import (
    CHUNK,
    BrokenAnswerError,
    EventSlicer,
    end_by_brackets,
    unpacked,
)


def cut(text: str, sizes: Sequence[int] = ()) -> list[str]:
    """The events of a text that is fed in pieces of these sizes, then whole."""
    slicer = EventSlicer()
    found: list[str] = []
    for size in sizes:
        found += slicer.feed(text[:size])
        text = text[size:]
    return found + slicer.feed(text, last=True)


ZOO_NAMES = dict(zoo_by_name())


@pytest.mark.parametrize("name", sorted(BEASTS))
def test_the_text_of_an_event_is_the_text_that_was_sent(name: str) -> None:
    event = ZOO_NAMES[name]
    if name == "whitespace":
        event = event.replace("\r", " ").replace("\n", " ")
    assert cut(f"[{ZOO_NAMES[name]}]") == [event]


@pytest.mark.parametrize("sizes", [[1] * 400, [7] * 3000, [65536] * 60], ids=str)
def test_chunks_cut_anywhere_make_no_difference(sizes: list[int]) -> None:
    text = "[" + ",\r\n".join(ZOO) + "]"
    flat = [event.replace("\r", " ").replace("\n", " ") for event in ZOO]
    assert [event.replace("\r", " ") for event in cut(text, sizes[:400])] == flat


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
EVENTS = st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=5)


@given(
    EVENTS,
    st.booleans(),
    st.sampled_from([None, 1, 2]),
    st.lists(st.integers(1, 40), max_size=12),
)
def test_what_is_cut_is_what_was_joined(
    events: list[dict[str, object]],
    ascii_: bool,
    indent: int | None,
    sizes: list[int],
) -> None:
    texts = [json.dumps(event, ensure_ascii=ascii_, indent=indent) for event in events]
    found = cut("[ " + " ,\r\n".join(texts) + " ]\n", sizes)
    assert [json.loads(event) for event in found] == [
        json.loads(text) for text in texts
    ]
    assert not any("\n" in event or "\r" in event for event in found)
    if indent is None:
        assert found == texts


@pytest.mark.parametrize("text", ["[]", " [ ] ", "\r\n[\r\n]\r\n"])
def test_an_empty_array_has_no_events(text: str) -> None:
    assert cut(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "{}",
        "null",
        '"text"',
        "[1]",
        "[null]",
        "[[]]",
        "[{}",
        "[{},",
        "[{},]",
        "[{}{}]",
        "[,{}]",
        '[{"a":1',
        '[{"a":}]',
        '[{"a":"x\ny"}]',
        "[{}]]",
        "[{}] []",
        "<html></html>",
        '[{"a":tru}]',
        "[" + '{"a":' * 5000 + "1",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_what_is_no_array_of_objects_is_broken(text: str) -> None:
    with pytest.raises(BrokenAnswerError):
        cut(text)


def test_an_error_in_the_middle_is_said_at_the_end_of_the_blob() -> None:
    with pytest.raises(BrokenAnswerError, match="cut short|broken"):
        cut('[{"Id":"1"},{"Id":', [5, 5])


@pytest.mark.parametrize("depth", [300, 2000, 20_000, 200_000])
def test_depth_makes_no_difference(depth: int) -> None:
    event = '{"a":' + "[" * depth + '"]}[{"' + "]" * depth + "}"
    assert cut(f'[{event},{{"b":1}}]') == [event, '{"b":1}']


def test_a_very_deep_event_may_come_in_pieces() -> None:
    depth = 50_000
    event = '{"a":' + "[" * depth + "]" * depth + "}"
    assert cut(f"[{event}]", [depth // 2] * 3) == [event]


@pytest.mark.parametrize(
    ("text", "end"),
    [("{}", 2), ('{"}":1}x', 7), ('{"a":[}]', -1), ("{", -1), ('{"\\"}', -1)],
)
def test_an_end_is_found_by_brackets(text: str, end: int) -> None:
    found = end_by_brackets(text, 0)
    assert found == end or (end == -1 and found <= 8)


def test_a_decorator_gets_the_event_and_its_text() -> None:
    def decorate(event: object, text: str) -> str:
        assert isinstance(event, dict)
        return f"{event['Id']}:{text}"

    slicer = EventSlicer(decorate)
    assert slicer.feed('[{"Id":"a"},{"Id":"b"}]', last=True) == [
        'a:{"Id":"a"}',
        'b:{"Id":"b"}',
    ]


def test_an_unfinished_event_is_not_looked_at_again_for_each_chunk() -> None:
    """3 MB in chunks of 1 kB must not cost 3,000 looks at 3 MB."""
    event = '{"a":"' + "x" * 3_000_000 + '"}'
    assert cut(f"[{event}]", [1000] * 3000) == [event]


# -- unpacking

BODY = b'[{"Id":"1"}]' * 100


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data)


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (BODY, ""),
        (BODY, "identity"),
        (gzip.compress(BODY), "gzip"),
        (gzip.compress(BODY), "x-gzip"),
        (raw_deflate(BODY), "deflate"),
        (gzip.compress(BODY[:50]) + gzip.compress(BODY[50:]), "gzip"),
        (gzip.compress(BODY) + b"\0" * 20, "gzip"),
    ],
    ids=["none", "identity", "gzip", "x-gzip", "deflate", "two members", "padding"],
)
@pytest.mark.parametrize("size", [1, 64, 1 << 20])
def test_a_body_is_unpacked_in_pieces_of_any_size(
    data: bytes, encoding: str, size: int
) -> None:
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert b"".join(unpacked(pieces, encoding)) == BODY


def test_a_bomb_comes_out_in_chunks() -> None:
    packed = gzip.compress(b" " * (20 * CHUNK))
    sizes = [len(chunk) for chunk in unpacked([packed], "gzip")]
    assert sum(sizes) == 20 * CHUNK
    assert max(sizes) <= CHUNK


@pytest.mark.parametrize(
    ("data", "encoding", "said"),
    [
        (gzip.compress(BODY)[:-9], "gzip", "the gzip stream is cut short"),
        (gzip.compress(BODY)[:20], "gzip", "the gzip stream is cut short"),
        (b"", "gzip", "the gzip stream is cut short"),
        (b"not gzip at all", "gzip", "the gzip stream is broken"),
        (gzip.compress(BODY)[:-8] + b"12345678", "gzip", "the gzip stream is broken"),
        (BODY, "br", "unasked-for Content-Encoding br"),
    ],
    ids=["cut", "half", "empty", "no gzip", "checksum", "brotli"],
)
def test_a_broken_body_is_said(data: bytes, encoding: str, said: str) -> None:
    with pytest.raises(BrokenAnswerError, match=f"^{said}$"):
        b"".join(unpacked([data], encoding))
