"""Events that break a pipeline or an index: audit-events.md's conflicts and text traps.

Each is one line of JSON as it would come over TCP, made so that what one event does to the
index (a field's first sight, a shape) meets its opposite in another.
"""

import json
from typing import Any

from logstash.ecs_cases import common, words

Document = dict[str, Any]


def event(name: str, **more: Any) -> Document:
    """Give an event with an Id of its own and the keys to try."""
    return {**common(0, 1, "Exchange", "Trap"), "Id": f"trap-{name}", **more}


NAME_VALUE = [{"Name": "A.b", "Value": "x"}, {"Value": "y", "Name": "Included Props"}]
OBJECT = {"a": {"b": ["c", {"d": 1}]}}
LIST_OF_OBJECTS = [{"a": 1}, {"a": "x", "b": {"c": None}}]

# One key, every shape that a value can have: each pair meets in one index.
SHAPES: dict[str, Any] = {
    "absent": None,
    "empty": "",
    "text": "text",
    "digits": "0123456789012345678901234567890",
    "date": "2026-05-23T09:58:14.1234567Z",
    "number": 15,
    "decimal": 26.5,
    "huge": 12345678901234567890123,
    "true": True,
    "words": ["a", 1, None, 2.5, True],
    "object": OBJECT,
    "objects": LIST_OF_OBJECTS,
    "mixed": ["a", {"b": 1}, ["c", {"d": [1]}], None, 5],
    "nested lists": [[["a"]], [], [[{"x": 1}]]],
    "empty object": {},
    "empty list": [],
    "pairs": NAME_VALUE,
    "broken pairs": [
        {"Name": "", "Value": 1},
        {"Name": None},
        {"Value": "x"},
        "t",
        None,
    ],
    "odd values": [
        {"Name": "n", "Value": {"a": [1]}},
        {"Name": "Enabled", "Value": []},
    ],
    "odd names": {
        "": 1,
        " ": 2,
        ".": 3,
        "..": 4,
        ".a": 5,
        "a.": 6,
        "a..b": 7,
        "[x]": 8,
    },
    "json object": '{"a": {"b": 1}, "QueryTime": 1, "QueryTime": "2"}',
    "json list": '[{"Name": "x", "Value": "y"}]',
    "broken json": '{"a": ',
    "raw": {"_raw": {"_raw": ["x", {"y": 1}]}, "flattened": "x", "Name": {"Name": 1}},
}
# Every key that the ruby filter or the mapping treats in a way of its own, and two unknown.
KEYS = words("""
Parameters ExtendedProperties ModifiedProperties Data Actor Target DeviceProperties
OperationProperties AdditionalInfo Actions AlertLinks Members PolicyDetails
AffectedItems Item Folder Folders Messages AppAccessContext ParticipantInfo
ExchangeMetaData SharePointMetaData ExceptionInfo Message Sender Recipients Platform
ListBaseType RecordType UserType Version LogonType ResultStatus ErrorNumber
OperationCount FileSizeBytes ExternalAccess CustomUniqueId DoNotDistributeEvent
SizeInBytes Severity ObjectId UserId UserKey OrganizationId OrganizationName Workload
Operation CreationTime ClientIP ClientIPAddress ActorIpAddress OriginatingServer
UserAgent SenderIp SenderIP Subject InternetMessageId NetworkMessageId P1Sender P2Sender
MailboxOwnerUPN LogonUserSid LogonUserDisplayName ClientProcessName ActorUserId
ActorYammerUserId FileId FileName GroupName TargetUserId TeamName Comments Name PolicyId
PolicyName Category EntityType AlertEntityId SourceFileName SourceRelativeUrl
SourceFileExtension AuthDetails MessageObject SenderEntity ExchangeAggregatedFolders
ApplicationDisplayName Unknown UnknownToo message host type tags source o365 user event
""")
# Record types with steps of their own.
RECORD_TYPES = (1, 2, 6, 8, 11, 13, 15, 22, 25, 40, 50)


def conflicts() -> list[Document]:
    """Give every key in every shape, spread over the record types."""
    made = []
    for key in KEYS:
        for number, (shape, value) in enumerate(SHAPES.items()):
            record_type = RECORD_TYPES[number % len(RECORD_TYPES)]
            trap = event(f"{key}-{shape}", RecordType=record_type)
            trap["CreationTime"] = "2026-05-23T09:58:14"
            trap[key] = value
            made.append(trap)
    return made


def deep(levels: int, name: str = "level", end: str = "x") -> Document:
    """Give one object in another, with a value at each level."""
    value: Document = {"end": end}
    for _ in range(levels):
        value = {name: value, "end": end}
    return value


def texts() -> dict[str, str]:
    """Give lines whose text, size or depth is the trap."""
    many = [{"Name": f"Name {n}", "Value": f"v{n}"} for n in range(5000)]
    plain = {
        "long text": event("long", NewValue="x" * 40_000, Unknown="y" * 40_000),
        "three megabytes": event(
            "3mb", Unknown="z" * 3_000_000, Message="m " * 999_999
        ),
        "long in pairs": event(
            "long-pairs", ModifiedProperties=[{"Name": "A", "NewValue": "n" * 170_000}]
        ),
        "long in flattened": event(
            "long-flat", Members=[{"DisplayName": "d" * 99_999}]
        ),
        "wide text": event(
            "wide", Name="\u4e16" * 8191, Members=[{"n": "\u4e16" * 4096}]
        ),
        "long name": event("long-name", **{"n" * 40_000: {"m" * 40_000: "x"}}),
        "many names": event("many-names", Parameters=many, ExtendedProperties=many),
        "many keys": event("many-keys", **{f"Key{n}": n for n in range(5000)}),
        "deep": event("deep", Unknown=deep(300), Members=deep(300), Item=deep(300)),
        "deep lists": event("deep-lists", Unknown=json.loads("[" * 300 + "]" * 300)),
        "deep names": event(
            "deep-names", Members=deep(40, "\u4e16" * 300, "\u4e16" * 4096)
        ),
        "line ends": event(
            "crlf", OriginatingServer="EXCH9 (15.20.1)\r\n", Name="a\r\n"
        ),
        "separators": event("u2028", Name="a\u2028b\u2029c\u0085d\u200be\ufefff"),
        "control": event(
            "control", Name="a\u0011\t\u0000b", Unknown={"k\u0000": "\u0000"}
        ),
        "nul in flattened": event("nul", Members=[{"a\u0000b": "c\u0000d"}]),
        "astral": event("astral", Name="\U0001f600", Members=[{"\U0001f600": 1}]),
        "odd top names": event(
            "names", **{"": 1, " ": 2, ".": 3, "..": 4, "a.b": 5, "a_b": 6, ".c": 7}
        ),
        "more odd top names": event(
            "names2", **{"a[b": 1, "[c]": 2, "[d][e]": 3, "_id": 4, "_source": 5}
        ),
        "logstash's own names": event(
            "own",
            **{"@timestamp": "x", "@version": {"a": 1}, "tags": {"a": 1}, "type": [1]},
        ),
        "metadata": event("metadata", **{"@metadata": {"o365": {"route": "run"}}}),
        "field references": event("reference", Name="%{[o365]} ${HOME} %{+YYYY}"),
        "an Id that needs care": event("x") | {"Id": "../%2e %{Id}\u4e16\"'\\"},
        "a long Id": event("x") | {"Id": "i" * 600},
        "a numeric Id": event("x") | {"Id": 12345},
        "upper-case Id": event("x") | {"Id": "ABCDEF00-0000-4000-8000-00000000000A"},
        "a poller's key beside an Id": event("poller", o365_poller={"start": "x"}),
    }
    lines = {name: json.dumps(value) for name, value in plain.items()}
    raw = {
        "lone surrogate": '"Name": "a\\ud83db", "Members": [{"n\\udc00": "\\udfff"}]',
        "escaped slash": '"ObjectId": "https:\\/\\/fabrikam.test\\/a"',
        "escaped pair": '"Name": "\\ud83d\\ude00"',
        "repeated key": '"Name": "a", "Name": "b", "Item": {"Id": 1, "Id": 2}',
        "big integers": '"OperationCount": 99999999999999999999, "Unknown": '
        "[9223372036854775808, -9223372036854775809, 9223372036854775807]",
        "big decimals": '"Unknown": [1e400, -1e400, 1e-400, 26.0, -1.0, 1.10, 0.1e1], '
        '"OperationCount": 1e400, "FileSizeBytes": 1e9',
        "exact decimals": '"Name": 3.14159265358979323846264338327950288',
        "size as text": '"FileSizeBytes": "1000.0"',
        "negative": '"LoginStatus": -2147483646, "FileSizeBytes": -1',
    }
    for name, keys in raw.items():
        whole = json.dumps(event(f"raw-{name}"))
        lines[name] = f"{whole[:-1]}, {keys}}}"
    return lines


ADDRESSES: dict[str, Document] = {
    "203.0.113.9": {"address": "203.0.113.9", "ip": "203.0.113.9"},
    "203.0.113.9:50123": {
        "address": "203.0.113.9",
        "ip": "203.0.113.9",
        "port": 50123,
    },
    "10.1.1.1": {"address": "10.1.1.1", "ip": "10.1.1.1"},
    "10.1.1.1:1": {"address": "10.1.1.1", "ip": "10.1.1.1", "port": 1},
    "[10.1.1.1]:1": {"address": "10.1.1.1", "ip": "10.1.1.1", "port": 1},
    "[10.1.1.1]": {"address": "10.1.1.1", "ip": "10.1.1.1"},
    "2001:db8::9": {"address": "2001:db8::9", "ip": "2001:db8::9"},
    "[2001:db8::9]": {"address": "2001:db8::9", "ip": "2001:db8::9"},
    "[2001:db8::9]:50123": {
        "address": "2001:db8::9",
        "ip": "2001:db8::9",
        "port": 50123,
    },
    "2001:DB8:0:0:0:0:0:9": {
        "address": "2001:DB8:0:0:0:0:0:9",
        "ip": "2001:DB8:0:0:0:0:0:9",
    },
    "::1": {"address": "::1", "ip": "::1"},
    "::": {"address": "::", "ip": "::"},
    "::ffff:203.0.113.9": {"address": "203.0.113.9", "ip": "203.0.113.9"},
    "::FFFF:203.0.113.9": {"address": "203.0.113.9", "ip": "203.0.113.9"},
    "::ffff:cb00:7109": {"address": "203.0.113.9", "ip": "203.0.113.9"},
    "[::ffff:203.0.113.9]:50123": {
        "address": "203.0.113.9",
        "ip": "203.0.113.9",
        "port": 50123,
    },
    "fe80::1%16": {"address": "fe80::1%16", "ip": "fe80::1"},
    " 203.0.113.9": {"address": "203.0.113.9", "ip": "203.0.113.9"},
    "203.0.113.9\r\n": {"address": "203.0.113.9", "ip": "203.0.113.9"},
    "localhost": {"domain": "localhost"},
    "[localhost]": {"domain": "localhost"},
    "[localhost]:1": {"domain": "localhost", "port": 1},
    "host.local:1": {"domain": "host.local", "port": 1},
    "HOST01": {"domain": "HOST01"},
    "999.1.1.1": {"domain": "999.1.1.1"},
    "192.000.002.007": {"domain": "192.000.002.007"},
    "NAME (10.0.0.1)": {"address": "10.0.0.1", "ip": "10.0.0.1", "domain": "NAME"},
    "[NAME (10.0.0.1)]": {"address": "10.0.0.1", "ip": "10.0.0.1", "domain": "NAME"},
    "NAME (2001:db8::9)": {
        "address": "2001:db8::9",
        "ip": "2001:db8::9",
        "domain": "NAME",
    },
    "NAME (15.20.1.0.0)": {"address": "NAME (15.20.1.0.0)"},
    "ffff:192.0.2.7": {"address": "ffff:192.0.2.7"},
    "two words": {"address": "two words"},
    "203.0.113.9:99999": {"address": "203.0.113.9:99999"},
    "2001:db8::9::1": {"address": "2001:db8::9::1"},
    "2001:db8:1:2:3:4:5:6:7": {"address": "2001:db8:1:2:3:4:5:6:7"},
    "[]": {"address": "[]"},
    "198.51.100.1, 203.0.113.9": {"address": "198.51.100.1, 203.0.113.9"},
    "": {},
    " ": {},
    "<null>": {},
}
