"""The ruby filter's documents against the fact sheets' tables."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logstash.ecs_cases import (
    ACCEPTANCE,
    DLP,
    DLP_POLICY,
    Case,
    common,
    lines,
    sign_in,
    words,
)
from logstash.ecs_harness import ROOT, SCRIPT, Document, RubyFilter, dig
from logstash.ecs_traps import ADDRESSES, conflicts, event, texts


@pytest.mark.parametrize("case", ACCEPTANCE, ids=lambda case: case.name)
def test_acceptance(ruby: RubyFilter, case: Case) -> None:
    document = ruby.event(case.event)
    found = {path: dig(document, path) for path in case.expected}
    assert found == case.expected
    assert {path: dig(document, path) for path in case.absent} == dict.fromkeys(
        case.absent
    )


def test_all_25_cases_are_there() -> None:
    numbers = {int(case.name.split()[0]) for case in ACCEPTANCE}
    assert numbers == set(range(1, 26))


def test_the_tests_inside_the_script_pass(ruby: RubyFilter) -> None:
    done = subprocess.run(
        [*ruby.command, "--test"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def trap_lines() -> list[str]:
    """Give every trap as a line."""
    return [json.dumps(trap) for trap in conflicts()] + list(texts().values())


def without_clock(ruby: RubyFilter, lines: list[str]) -> list[Any]:
    """Give what became of lines, without the time of arrival."""
    found = ruby.lines(lines)
    for one in found:
        for document in one.documents:
            assert document["event"].pop("ingested")
    return found


@pytest.mark.timeout(180)
def test_jruby_makes_the_same(ruby: RubyFilter) -> None:
    """Logstash's own Ruby, where it is installed (Debian's jruby is 9.3, as in 8.x)."""
    jruby = shutil.which("jruby")
    if not jruby:
        pytest.skip(
            "no jruby on this machine: the field work ran in Debian's ruby only"
        )
    lines = [json.dumps(case.event) for case in ACCEPTANCE] + trap_lines()
    assert without_clock(RubyFilter(jruby), lines) == without_clock(ruby, lines)


def test_no_trap_is_lost_or_fails(ruby: RubyFilter) -> None:
    lines = trap_lines()
    for line, found in zip(lines, ruby.lines(lines), strict=True):
        document = found.document
        assert found.route == "audit"
        assert document["event"]["kind"] != "pipeline_error", line[:200]
        assert document["event"]["ingested"]
        assert document["data_stream"]["dataset"] == "o365.audit"
        assert set(document) <= set(
            words("""
@timestamp application client data_stream destination ecs email error event file group
host labels message network o365 organization process related rule server session source
tags token url user user_agent
""")
        )


@pytest.mark.parametrize("form", ADDRESSES, ids=repr)
def test_address_forms(ruby: RubyFilter, form: str) -> None:
    document = ruby.event(event("x", ClientIP=form))
    wanted = ADDRESSES[form]
    assert dig(document, "client") == (wanted or None)
    source = {key: wanted[key] for key in ("ip", "port") if key in wanted}
    assert dig(document, "source") == (source or None)
    ip = wanted.get("ip")
    kind = None if ip is None else "ipv6" if ":" in ip else "ipv4"
    assert dig(document, "network.type") == kind
    assert dig(document, "related.ip") == ([ip] if ip else None)
    assert (dig(document, "labels.ip_scope") is None) == (ip is None)
    assert dig(document, "o365.audit.ClientIP") == (None if wanted else form)


def test_which_address_wins(ruby: RubyFilter) -> None:
    keys = {"ClientIPAddress": "192.0.2.1", "ClientIP": "192.0.2.2"}
    keys["ActorIpAddress"] = "192.0.2.3"
    document = ruby.event(event("x", **keys))
    assert dig(document, "client.ip") == "192.0.2.1"
    assert dig(document, "o365.audit.ClientIPAddress") is None
    assert dig(document, "o365.audit.ClientIP") == "192.0.2.2"
    document = ruby.event(event("x", **keys | {"ClientIPAddress": ""}))
    assert dig(document, "client.ip") == "192.0.2.2"
    document = ruby.event(event("x", ActorIpAddress="192.0.2.3"))
    assert dig(document, "client.ip") == "192.0.2.3"
    assert dig(document, "o365.audit.ActorIpAddress") is None


SCOPES = {
    "81.2.69.142": "public",
    "203.0.113.9": "public",
    "2001:218::1": "public",
    "10.1.1.1": "private",
    "172.16.0.1": "private",
    "172.32.0.1": "public",
    "192.168.1.1": "private",
    "fd00::1": "private",
    "100.64.0.1": "shared",
    "100.128.0.1": "public",
    "127.0.0.1": "loopback",
    "::1": "loopback",
    "169.254.1.1": "link-local",
    "fe80::1": "link-local",
    "224.0.0.1": "multicast",
    "255.255.255.255": "multicast",
    "ff02::1": "multicast",
    "0.0.0.0": "unspecified",
    "::": "unspecified",
    "::ffff:10.0.0.1": "private",
}


def test_private_addresses_are_told_apart(ruby: RubyFilter) -> None:
    documents = ruby.events([event("x", ClientIP=ip) for ip in SCOPES])
    found = [dig(document, "labels.ip_scope") for document in documents]
    assert dict(zip(SCOPES, found, strict=True)) == SCOPES


OUTCOMES = {
    "True": "success",
    "TRUE": "success",
    "Success": "success",
    "Succeeded": "success",
    "PartiallySucceeded": "success",
    "Successful": "success",
    "": "success",
    "InProgress": "success",
    "Failed": "failure",
    "failed": "failure",
    "Failure": "failure",
    "False": "failure",
}


def test_outcomes(ruby: RubyFilter) -> None:
    documents = ruby.events([event("x", ResultStatus=text) for text in OUTCOMES])
    found = [dig(document, "event.outcome") for document in documents]
    assert dict(zip(OUTCOMES, found, strict=True)) == OUTCOMES
    raw = [dig(document, "o365.audit.ResultStatus") for document in documents]
    assert raw == list(OUTCOMES)
    assert dig(ruby.event(sign_in(1, LogonError="x")), "event.outcome") == "success"


def test_outcomes_of_data_loss_prevention(ruby: RubyFilter) -> None:
    harmless = [{"Rules": [{"Actions": ["NotifyUser"]}]}]
    wanted = {
        "success": [
            DLP | {"PolicyDetails": harmless},
            DLP | {"Operation": "DlpRuleUndo"},
            DLP | {"ExceptionInfo": {"Reason": "override"}},
            DLP | {"ExceptionInfo": "override"},
        ],
        "failure": [
            DLP,
            DLP | {"Operation": "DlpInfo", "ExceptionInfo": "override"},
            DLP | {"ExceptionInfo": ""},
            DLP | {"RecordType": 11, "PolicyDetails": DLP_POLICY},
        ],
    }
    for outcome, events in wanted.items():
        for document in ruby.events(events):
            assert dig(document, "event.outcome") == outcome


# record type, operation: what is appended to [web] and [info], and the action if renamed.
OPERATIONS = lines("""

8|Update user.|iam|user change|modified-user-account
8|Delete user.|iam|user deletion|deleted-user-account
8|Add group.|||
6|FileAccessed|file|access|
6|FolderRenamed|file|change|
6|FileDeleted|file|deletion|
6|FileUploaded|file|creation|
1|FileRestored|file|change|
9999|FileDownloaded|file|access|
1|ComplianceSettingChanged|configuration|change|
2|SendAs|email||
50|AttachmentAccess|email|access|
50|Other|||
22|NetworkConfigurationUpdated|configuration|change|
22|NetworkSecurityConfigurationUpdated|configuration iam|change admin|
22|GroupCreation|iam|creation group|
22|GroupDeletion|iam|deletion group|
22|UserSuspension|iam||
22|FileCreated|file|creation|
22|FileDownloaded|file|access|
22|FileVisited|file|access|
25|TeamCreated|iam|group creation|added-group-account-to
25|Delete user.|iam|user deletion|deleted-user-account
15|PasswordLogonInitialAuthUsingPassword|authentication|start access|
11|DlpRuleMatch|file|access|
1|Add user.|||

""")[1:-1]


@pytest.mark.parametrize("row", OPERATIONS)
def test_operations(ruby: RubyFilter, row: str) -> None:
    number, operation, categories, types, action = row.split("|")
    document = ruby.event(common(1, int(number), "x", operation))
    assert dig(document, "event.category") == ["web", *categories.split()]
    assert dig(document, "event.type") == ["info", *types.split()]
    assert dig(document, "event.action") == action or operation


# A few of each hundred, and the three that differ from Microsoft's page.
CODES = {
    1: "ExchangeAdmin",
    12: "Sway",
    22: "Yammer",
    44: "WorkplaceAnalytics",
    164: "ScorePlatformGenericAuditRecord",
    261: "CopilotInteraction",
    294: "AadRiskDetection",
    463: "VivaGlintAgenticCampaign",
}


def test_record_types(ruby: RubyFilter) -> None:
    documents = ruby.events([common(1, number, "x", "y") for number in range(1, 500)])
    found = {
        number: dig(document, "event.code")
        for number, document in enumerate(documents, 1)
        if dig(document, "event.code")
    }
    assert CODES.items() <= found.items()
    assert len(found) == 258
    assert len(set(found.values())) == 258


def test_codes_become_words_and_counts_stay_numbers(ruby: RubyFilter) -> None:
    keys = "RecordType UserType AzureActiveDirectoryEventType Version InternalLogonType"
    names = [*keys.split(), "LogonType", "YammerNetworkId", "ListBaseType"]
    document = ruby.event(
        event("x", OperationCount=3, Actor=[{"ID": "a", "Type": 5}])
        | dict.fromkeys(names, 7)
    )
    assert [dig(document, f"o365.audit.{name}") for name in names] == ["7"] * len(names)
    assert dig(document, "o365.audit.OperationCount") == 3
    assert dig(document, "o365.audit.Actor") == [{"ID": "a", "Type": "5"}]


def test_values_stay_as_sent(ruby: RubyFilter) -> None:
    """Quotes, line ends, blanks, letter case: the rules match what Microsoft wrote."""
    texts_ = ['"Global Administrator"', "a\r\n  b ", "True", "", "0123", " x "]
    pairs = [{"Name": f"N{n}", "Value": text} for n, text in enumerate(texts_)]
    changes = [
        {"Name": f"N{n}", "NewValue": text, "OldValue": text}
        for n, text in enumerate(texts_)
    ]
    document = ruby.event(
        event(
            "x", Parameters=pairs, ExtendedProperties=pairs, ModifiedProperties=changes
        )
    )
    wanted = {f"N{n}": text for n, text in enumerate(texts_)}
    assert dig(document, "o365.audit.Parameters") == wanted
    assert dig(document, "o365.audit.ExtendedProperties") == wanted
    assert dig(document, "o365.audit.ModifiedProperties") == {
        name: {"NewValue": text, "OldValue": text} for name, text in wanted.items()
    }


def test_lists_of_name_and_value(ruby: RubyFilter) -> None:
    document = ruby.event(
        event(
            "x",
            Parameters=[
                {"Value": "1", "Name": "A"},
                {"Name": "A", "Value": "2"},
                {"Name": "Null", "Value": None},
                {"Name": "B.c.", "Value": "3"},
                {"Name": "User", "Value": "lee@fabrikam.test"},
            ],
            ModifiedProperties=[
                {"Name": "Half", "NewValue": "n"},
                {"Name": "Null", "NewValue": "n", "OldValue": None},
            ],
            ExtendedProperties="a text",
        )
    )
    assert dig(document, "o365.audit.Parameters") == {
        "A": "2",
        "B_c_": "3",
        "User": "lee@fabrikam.test",
    }
    assert dig(document, "o365.audit.ModifiedProperties") == {
        "Half": {"NewValue": "n"},
        "Null": {"NewValue": "n"},
    }
    assert dig(document, "o365.audit.ExtendedProperties") == {"_raw": "a text"}
    assert "lee@fabrikam.test" in document["related"]["user"]


# What a record type moves: raw key, value, where it goes.
MOVES: list[tuple[int, Document, Document]] = [
    (
        2,
        {
            "LogonUserDisplayName": "Kim",
            "ClientProcessName": "OUTLOOK.EXE",
            "OrganizationName": "fabrikam.test",
        },
        {
            "user.full_name": "Kim",
            "process.name": "OUTLOOK.EXE",
            "organization.name": "fabrikam.test",
        },
    ),
    (
        22,
        {
            "ActorUserId": "kim@other.test",
            "FileId": 36787265537,
            "FileName": "a.txt",
            "GroupName": "All",
            "TargetUserId": "lee@other.test",
            "TargetYammerUserId": 5,
        },
        {
            "file.inode": "36787265537",
            "file.name": "a.txt",
            "group.name": "All",
            "destination.user.email": "lee@other.test",
            "destination.user.id": "5",
        },
    ),
    (25, {"TeamName": "Red"}, {"group.name": "Red"}),
    (
        14,
        {
            "ObjectId": "https://x.test/a",
            "SourceRelativeUrl": "b",
            "SourceFileName": "c.d",
            "SourceFileExtension": "d",
        },
        {
            "url.original": "https://x.test/a",
            "file.directory": "b",
            "file.name": "c.d",
            "file.extension": "d",
        },
    ),
]


@pytest.mark.parametrize(
    ("number", "keys", "fields"), MOVES, ids=lambda one: str(one)[:12]
)
def test_moves(ruby: RubyFilter, number: int, keys: Document, fields: Document) -> None:
    document = ruby.event(common(1, number, "x", "y") | keys)
    assert {path: dig(document, path) for path in fields} == fields
    assert not set(keys) & set(document["o365"]["audit"])
    # Elsewhere the same keys stay where they are.
    other = ruby.event(common(1, 36, "x", "y") | keys)
    assert set(keys) <= set(other["o365"]["audit"])


def test_users(ruby: RubyFilter) -> None:
    for name in ("a@b@c", "S-1-5-18", "ServicePrincipal_x", "@x", "x@", "Application"):
        document = ruby.event(event("x", UserId=name))
        assert document["user"] == {"id": name}
    document = ruby.event(event("x", UserId="Kim.A@Fabrikam.TEST"))
    assert document["user"]["domain"] == "Fabrikam.TEST"
    document = ruby.event(
        common(1, 2, "Exchange", "x") | {"UserId": "", "LogonUserSid": "S"}
    )
    assert document["user"]["id"] == "S"
    deleted = common(1, 25, "MicrosoftTeams", "Delete user.")
    document = ruby.event(deleted | {"ObjectId": "lee@fabrikam.test"})
    assert dig(document, "user.target.name") == "lee"
    assert dig(document, "o365.audit.ObjectId") is None


def test_names_of_tenants(ruby: RubyFilter) -> None:
    document = ruby.event(
        common(1, 1, "x", "y") | {"OrganizationName": "loses"},
        tenants="7d3a0000-0000-4000-8000-0000000000AA = Fabrikam Ltd, x=y, =",
        namespace="prod",
    )
    assert dig(document, "organization.name") == "Fabrikam Ltd"
    assert dig(document, "host.name") == "Fabrikam Ltd"
    assert dig(document, "data_stream.namespace") == "prod"


def test_mail(ruby: RubyFilter) -> None:
    document = ruby.event(
        common(1, 2, "Exchange", "Send")
        | {
            "Item": {
                "Subject": "s",
                "Attachments": "a (1).b.png (8192b); noext (3b); x; y.docx (73728b)",
            },
            "Recipients": ["b@x.test"],
            "P1Sender": "a@x.test",
            "P2Sender": "c@x.test",
            "InternetMessageId": "<m>",
            "NetworkMessageId": "n",
        }
    )
    assert document["email"] == {
        "subject": ["s"],
        "message_id": ["<m>"],
        "local_id": ["n"],
        "sender": {"address": ["a@x.test"]},
        "from": {"address": ["c@x.test"]},
        "to": {"address": ["b@x.test"]},
        "attachments": [
            {"file": {"name": "a (1).b.png", "size": 8192, "extension": "png"}},
            {"file": {"name": "noext", "size": 3}},
            {"file": {"name": "x; y.docx", "size": 73728, "extension": "docx"}},
        ],
    }
    assert dig(document, "o365.audit.Recipients") == ["b@x.test"]
    text = ruby.event(event("x", Recipients='["b@x.test","c@x.test"]'))
    assert dig(text, "email.to.address") == ["b@x.test", "c@x.test"]


def test_shapes_that_the_integration_changes(ruby: RubyFilter) -> None:
    document = ruby.event(
        event(
            "x",
            ExceptionInfo="why",
            Message="text",
            Sender="a@x.test",
            Platform="1",
            OperationProperties='[{"Name":"a","Value":"b"}]',
            AdditionalInfo="{broken",
            Data="{broken",
            AlertLinks=[{"AlertLinkHref": "u"}, {"AlertLinkHref": ""}],
            Severity="High",
            SenderIp="192.0.2.5",
            SenderIP="not one",
            Actions=['{"a":1}', "plain"],
        )
    )
    assert {
        "ExceptionInfo": {"Reason": "why"},
        "Message": "text",
        "Sender": "a@x.test",
        "Platform": "Windows",
        "OperationProperties": [{"Name": "a", "Value": "b"}],
        "AdditionalInfo": {"_raw": "{broken"},
        "Data": {"_raw": "{broken"},
        "AlertLinks": ["u"],
        "Actions": [{"a": 1}, {"_raw": "plain"}],
    }.items() <= document["o365"]["audit"].items()
    assert dig(document, "event.severity") == 4
    assert dig(document, "related.ip") == ["192.0.2.5"]
    assert dig(document, "error.message") == ["AdditionalInfo is no JSON"]
    assert dig(document, "event.kind") == "event"


TIMES = {
    "2026-05-23T09:58:14": ("2026-05-23T09:58:14.000Z", "2026.05"),
    "2026-05-23T09:58:14Z": ("2026-05-23T09:58:14.000Z", "2026.05"),
    "2026-05-23T09:58:14.1234567Z": ("2026-05-23T09:58:14.123Z", "2026.05"),
    "2026-06-01T01:30:00+02:00": ("2026-05-31T23:30:00.000Z", "2026.05"),
    "2026-05-31T23:30:00-0100": ("2026-06-01T00:30:00.000Z", "2026.06"),
    "2026-05-23 09:58:14": ("2026-05-23T09:58:14.000Z", "2026.05"),
    "2026-05-23": ("2026-05-23T00:00:00.000Z", "2026.05"),
    "2024-02-29T00:00:00": ("2024-02-29T00:00:00.000Z", "2024.02"),
    "0001-01-01T00:00:00": ("0001-01-01T00:00:00.000Z", "undated"),
    "9999-12-31T23:59:59": ("9999-12-31T23:59:59.000Z", "undated"),
    "2026-02-29T00:00:00": (None, "undated"),
    "2026-05-23T24:00:00": (None, "undated"),
    "5/23/2026 9:58:14 AM": (None, "undated"),
    "": (None, "undated"),
    "x": (None, "undated"),
}


def test_times(ruby: RubyFilter) -> None:
    lines = [json.dumps(event("x", CreationTime=text)) for text in TIMES]
    found = {
        text: (one.time, one.month)
        for text, one in zip(TIMES, ruby.lines(lines), strict=True)
    }
    assert found == TIMES
    values: tuple[Any, ...] = (5, None, [], {})
    odd = [json.dumps(event("x", CreationTime=value)) for value in values]
    assert {one.month for one in ruby.lines(odd)} == {"undated"}


def test_the_id_is_the_events_own(ruby: RubyFilter) -> None:
    long = "i" * 600
    ids = ["a", "ABC-def", " blank ", long, 12345]
    found = ruby.lines([json.dumps(event("x") | {"Id": name}) for name in ids])
    assert [one.id for one in found[:3]] == ids[:3]
    assert re.fullmatch(r"[0-9a-f]{64}", found[3].id)
    assert found[4].id == "12345"
    texts_ = [dig(one.document, "event.id") for one in found]
    assert texts_ == ["a", "ABC-def", " blank ", long, "12345"]


def test_what_is_no_event_is_kept_with_text_and_reason(ruby: RubyFilter) -> None:
    lines = {
        '{"Id": "half': "the line is not a JSON object",
        "plain text": "the line is not a JSON object",
        "[1, 2]": "the line is not a JSON object",
        '"text"': "the line is not a JSON object",
        '{"UserId":"x"}': "the event has no Id",
        '{"Id":null,"a":[1.5]}': "the event has no Id",
        '{"Id":""}': "the event has no Id",
        '{"Id":{"a":1}}': "the event has no Id",
        "{}": "the event has no Id",
    }
    found = ruby.lines(list(lines))
    for (line, reason), one in zip(lines.items(), found, strict=True):
        assert one.route == "reject"
        assert dig(one.document, "event.original") == line
        assert dig(one.document, "event.reason") == reason
        assert dig(one.document, "error.message") == [reason]
        assert dig(one.document, "o365") is None
    assert len({one.id for one in found}) == len(found)
    assert [one.id for one in ruby.lines(list(lines))] == [one.id for one in found]


def test_what_the_index_refused_is_kept(ruby: RubyFilter) -> None:
    (found,) = ruby.ask(
        [
            {
                "params": {"mode": "refused"},
                "event": {"event": {"id": "a"}, "o365": {"audit": {"x": [1]}}},
                "metadata": {"dead_letter_queue": {"reason": "mapper_parsing"}},
            }
        ]
    )
    assert found.route == "reject"
    assert dig(found.document, "event.reason") == "mapper_parsing"
    text = dig(found.document, "event.original")
    assert isinstance(text, str)
    assert json.loads(text)["o365"] == {"audit": {"x": [1]}}


def test_an_input_without_target_works_too(ruby: RubyFilter) -> None:
    (found,) = ruby.ask([{"event": sign_in(1) | {"tags": ["site"]}}])
    assert found.route == "audit"
    assert dig(found.document, "event.action") == "UserLoggedIn"
    assert "site" in found.document["tags"]
    assert "UserId" not in found.document


def test_reports_of_runs(ruby: RubyFilter) -> None:
    numbers = {"blobs": 3, "events": 42, "pending": 1, "lost": 0}
    by_name = {
        "Audit.Exchange": {**numbers, "lag_seconds": 1.5, "window": {"start": "a"}}
    }
    as_list = [{"content_type": "Audit.Exchange", **numbers, "lag": 1.5}]
    for types in (by_name, as_list):
        report = {
            "start": "2026-05-23T10:00:00Z",
            "end": "2026-05-23T10:00:09Z",
            "exit_code": 3,
            "content_types": types,
        }
        line = json.dumps({"o365_poller": report})
        (found,) = ruby.lines([line])
        assert (found.route, found.month) == ("run", "2026.05")
        run, one = found.documents
        assert dig(run, "o365_poller.part.kind") == "run"
        assert dig(run, "o365_poller.exit_code") == 3
        assert dig(run, "@timestamp") == "2026-05-23T10:00:09.000Z"
        part = one["o365_poller"]["part"]
        assert part["name"] == "Audit.Exchange"
        assert part["kind"] == "content_type"
        assert {key: part[key] for key in numbers} == numbers
        assert part["lag_seconds"] == 1.5
        assert part["id"] != run["o365_poller"]["part"]["id"]
        again = ruby.lines([line])[0].documents
        assert [dig(d, "o365_poller.part.id") for d in again] == [
            dig(d, "o365_poller.part.id") for d in found.documents
        ]


def test_an_empty_report_is_a_run_too(ruby: RubyFilter) -> None:
    (found,) = ruby.lines(['{"o365_poller": {"exit_code": 4, "content_types": {}}}'])
    assert found.month == "undated"
    assert dig(found.document, "o365_poller.part.kind") == "run"


def test_a_failure_of_the_code_costs_no_event(ruby: RubyFilter, tmp_path: Any) -> None:
    """The same script with a step that raises: the event goes on, and says so."""
    text = SCRIPT.read_text(encoding="utf-8")
    step = "def severity(doc, raw)\n"
    assert step in text
    broken = tmp_path / "o365_ecs.rb"
    broken.write_text(text.replace(step, f'{step}  raise "made to fail"\n'))
    template = SCRIPT.parent / "o365_template.json"
    (tmp_path / template.name).write_bytes(template.read_bytes())
    failing = RubyFilter(ruby.command[0])
    failing.command[2] = str(broken)
    (found,) = failing.lines([json.dumps(sign_in(1))])
    assert found.route == "audit"
    assert found.month == "2026.05"
    document = found.document
    assert dig(document, "event.kind") == "pipeline_error"
    assert dig(document, "event.id") == found.id == sign_in(1)["Id"]
    assert dig(document, "error.message") == ["RuntimeError: made to fail"]
    assert "preserve_original_event" in document["tags"]
    original = dig(document, "event.original")
    assert isinstance(original, str)
    assert json.loads(original) == sign_in(1)


def test_nothing_of_the_event_is_lost(ruby: RubyFilter) -> None:
    """Every leaf of an event that is moved nowhere is under o365.audit, as it was."""
    whole = event("x", Unknown={"a": [1, {"b": None, "c": "d"}]}, Other="x", Empty="")
    audit = ruby.event(whole)["o365"]["audit"]
    assert audit["Unknown"] == whole["Unknown"]
    assert audit["Other"] == "x"
    assert audit["Empty"] == ""


def test_the_ruby_is_of_logstashs_age() -> None:
    """JRuby 9.3 is Ruby 2.6: no filter_map, no endless method, no numbered parameter."""
    text = SCRIPT.read_text(encoding="utf-8")
    newer = r"\.(filter_map|tally|except|then_with|sum_by)\b|^\s*def \w+\(.*\) =|\b_1\b|\bit\b\s*[.\[]"
    code = re.sub(r"#.*", "", text)
    assert not re.search(newer, code, re.MULTILINE)
    assert not re.search(r"(?<![\w@])\$[a-z]|@@", code), "no globals: workers share it"
    written = re.findall(r"(@\w+)\s*(?:\|\|)?=[^=~]", code)
    register = code[code.index("def register") : code.index("def record_types")]
    assert set(written) == set(re.findall(r"(@\w+) =", register))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    words("""
Parameters ExtendedProperties ModifiedProperties Data Actor Item Members RecordType
UserId ClientIP Recipients CreationTime PolicyDetails Folders Actions x a.b
""")
)


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,  # on a machine that others load
    ],
)
@given(st.lists(st.dictionaries(KEYS, JSON, max_size=6), min_size=40, max_size=40))
def test_any_event_whatever(ruby: RubyFilter, events: list[Document]) -> None:
    lines = [json.dumps(event("any") | keys) for keys in events]
    for found in ruby.lines(lines):
        assert found.route == "audit"
        assert dig(found.document, "event.kind") in {"event", "alert"}


def test_the_script_is_found_from_the_top() -> None:
    """As `logstash -f logstash/o365_api.conf` finds it."""
    assert (ROOT / "logstash" / "o365_ecs.rb").is_file()
