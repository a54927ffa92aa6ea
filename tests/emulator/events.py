"""Invented audit events in the shapes and sizes of real ones."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

ORGANIZATION = "3f1c2b7e-0000-4000-8000-00000000a001"
TEAMS_WEB = "5e3ce6c0-2b1f-4285-8d4b-75ee78787346"
PAYROLL = "0a0a0a0a-1b1b-4c2c-8d3d-4e4e4e4e4e4e"
_PEOPLE = ("ada", "grace", "alan", "edsger", "barbara", "donald", "radia", "leslie")
_SPACE = uuid.UUID("6d0f8a52-7c11-4d5e-9a41-0d6f3c2b1a00")


def event_id(kind: str, n: int) -> str:
    return str(uuid.uuid5(_SPACE, f"{kind}/{n}"))


def _guid(*parts: object) -> str:
    return str(uuid.uuid5(_SPACE, "/".join(map(str, parts))))


def _common(kind: str, n: int, at: datetime) -> dict[str, Any]:
    return {
        "CreationTime": f"{at:%Y-%m-%dT%H:%M:%S}",
        "Id": event_id(kind, n),
        "OrganizationId": ORGANIZATION,
        "Version": 1,
    }


def _person(n: int) -> str:
    return f"{_PEOPLE[n % len(_PEOPLE)]}@emu.test"


def _address(n: int) -> str:
    return f"198.51.100.{n % 254 + 1}"


def _pairs(**values: str) -> list[dict[str, str]]:
    return [{"Name": name, "Value": value} for name, value in values.items()]


def _login(kind: str, n: int, at: datetime) -> dict[str, Any]:
    user, app = _guid("user", n % 40), TEAMS_WEB if n % 3 else PAYROLL
    resource = "00000003-0000-0ff1-ce00-000000000000"
    identity = event_id(kind, n)
    event = _common(kind, n, at) | {
        "Operation": "UserLoggedIn",
        "RecordType": 15,
        "ResultStatus": "Success",
        "UserKey": user,
        "UserType": 0,
        "Workload": "AzureActiveDirectory",
        "ClientIP": _address(n),
        "ObjectId": resource,
        "UserId": _person(n),
        "AzureActiveDirectoryEventType": 1,
        "ExtendedProperties": _pairs(
            ResultStatusDetail="Success",
            UserAgent="Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like"
            " Gecko) Chrome/126.0.0.0 Safari/537.36",
            UserAuthenticationMethod="1",
            RequestType="OAuth2:Authorize",
        ),
        "ModifiedProperties": [],
        "Actor": [{"ID": user, "Type": 0}, {"ID": _person(n), "Type": 5}],
        "ActorContextId": ORGANIZATION,
        "ActorIpAddress": _address(n),
        "InterSystemsId": _guid("inter", n),
        "IntraSystemId": identity,
        "SupportTicketId": "",
        "Target": [{"ID": resource, "Type": 0}],
        "TargetContextId": ORGANIZATION,
        "ApplicationId": app,
        "DeviceProperties": _pairs(
            OS="Linux",
            BrowserType="Chrome",
            IsCompliantAndManaged="False",
            SessionId=_guid("session", n),
        ),
        "ErrorNumber": "0",
    }
    if kind == "login_failed":
        # ResultStatus says Success of most failed sign-ins (fact sheet 5.4).
        event |= {
            "Operation": "UserLoginFailed",
            "ErrorNumber": "50126",
            "LogonError": "InvalidUserNameOrPassword",
        }
    return event


def _directory(kind: str, n: int, at: datetime) -> dict[str, Any]:
    target = _guid("target", n)
    old = json.dumps([{"AccountEnabled": True, "City": "Utrecht"}], indent=2)
    new = json.dumps([{"AccountEnabled": n % 2 == 0, "City": "Gent"}], indent=2)
    return _common(kind, n, at) | {
        "Operation": "Update user.",
        "RecordType": 8,
        "ResultStatus": "Success",
        "UserKey": "10032000ABCD1234@emu.test",
        "UserType": 0,
        "Workload": "AzureActiveDirectory",
        "ObjectId": _person(n + 1),
        "UserId": "ServicePrincipal_" + _guid("principal", n % 7),
        "AzureActiveDirectoryEventType": 1,
        "ExtendedProperties": [
            {
                "Name": "additionalDetails",
                "Value": json.dumps({"UserType": "Member", "User-Agent": "sync"}),
            },
            {"Name": "extendedAuditEventCategory", "Value": "User"},
        ],
        "ModifiedProperties": [
            {"Name": "User", "NewValue": new.replace("\n", "\r\n"), "OldValue": old},
            {
                "Name": "Included Updated Properties",
                "NewValue": "AccountEnabled, City",
                "OldValue": "",
            },
            {"Name": "TargetId.UserType", "NewValue": "Member", "OldValue": ""},
        ],
        "Actor": [
            {"ID": "Emulated sync", "Type": 1},
            {"ID": _guid("principal", n % 7), "Type": 2},
            {"ID": "ServicePrincipal", "Type": 2},
        ],
        "ActorContextId": ORGANIZATION,
        "InterSystemsId": _guid("inter", n),
        "IntraSystemId": _guid("intra", n),
        "SupportTicketId": "",
        "Target": [
            {"ID": f"User_{target}", "Type": 2},
            {"ID": target, "Type": 2},
            {"ID": "User", "Type": 2},
            {"ID": _person(n + 1), "Type": 5},
            {"ID": "1003200012345678", "Type": 3},
        ],
        "TargetContextId": ORGANIZATION,
    }


def _file(kind: str, n: int, at: datetime) -> dict[str, Any]:
    name = ("Übersicht", "Quarter", "été", "Plan")[n % 4] + f"-{n}.docx"
    folder = "sites/finance/Shared Documents"
    return _common(kind, n, at) | {
        "Operation": ("FileAccessed", "FileModified", "FileDownloaded")[n % 3],
        "RecordType": 6,
        "UserKey": f"i:0h.f|membership|1003200{n % 10**9:09d}@live.com",
        "UserType": 0,
        "Workload": "SharePoint" if n % 4 else "OneDrive",
        "ClientIP": _address(n),
        "ObjectId": f"https://emu.sharepoint.com/{folder}/{name}",
        "UserId": _person(n),
        "CorrelationId": _guid("correlation", n),
        "EventSource": "SharePoint",
        "ItemType": "File",
        "ListId": _guid("list", n % 9),
        "ListItemUniqueId": _guid("item", n),
        "Site": _guid("site", n % 5),
        "UserAgent": "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Edg/126.0",
        "WebId": _guid("web", n % 5),
        "HighPriorityMediaProcessing": False,
        "ListBaseType": "DocumentLibrary",
        "SourceFileExtension": "docx",
        "SiteUrl": "https://emu.sharepoint.com/sites/finance/",
        "SourceFileName": name,
        "SourceRelativeUrl": folder,
        "AppAccessContext": {
            "AADSessionId": _guid("session", n),
            "CorrelationId": _guid("correlation", n),
            "UniqueTokenId": _guid("token", n)[:22],
            "ClientAppId": PAYROLL,
            "ClientAppName": "Emulated payroll",
        },
        "ApplicationId": PAYROLL,
        "FileSizeBytes": 1024 * (n % 977),
    }


def _mail(kind: str, n: int, at: datetime) -> dict[str, Any]:
    return _common(kind, n, at) | {
        "Operation": "MailItemsAccessed",
        "RecordType": 50,
        "ResultStatus": "Succeeded",
        "UserKey": f"1003200{n % 10**9:09d}",
        "UserType": 0,
        "Workload": "Exchange",
        "UserId": _person(n),
        "ClientIPAddress": f"2001:db8::{n % 9999:x}",
        "ClientInfoString": "Client=OWA;Action=ViaProxy",
        "ExternalAccess": False,
        "InternalLogonType": 0,
        "LogonType": 0,
        "LogonUserSid": f"S-1-5-21-1000000001-1000000002-1000000003-{n % 99999}",
        "MailboxGuid": _guid("mailbox", n % 40),
        "MailboxOwnerUPN": _person(n),
        # Nearly every record of types 2, 3 and 50 ends this value so.
        "OriginatingServer": "AB1PR01MB0001 (15.20.4200.000)\r\n",
        "OrganizationName": "emu.onmicrosoft.example",
        "SessionId": _guid("session", n),
        "OperationProperties": _pairs(MailAccessType="Bind", IsThrottled="False"),
        "Folders": [
            {
                "FolderItems": [
                    {"InternetMessageId": f"<{_guid('message', n, i)}@emu.test>"}
                    for i in range(1 + n % 4)
                ],
                "Id": "LgAAAAB" + _guid("folder", n).replace("-", ""),
                "Path": "\\Inbox",
            }
        ],
        "OperationCount": 1 + n % 4,
    }


def _admin(kind: str, n: int, at: datetime) -> dict[str, Any]:
    return _common(kind, n, at) | {
        "Operation": "Set-Mailbox",
        "RecordType": 1,
        "ResultStatus": "True",
        "UserKey": "NT AUTHORITY\\SYSTEM (Microsoft.Exchange.ServiceHost)",
        "UserType": 3,
        "Workload": "Exchange",
        "ClientIP": f"[2001:db8::{n % 9999:x}]:{50000 + n % 9999}",
        "ObjectId": f"EMU\\mailbox{n}",
        "UserId": "NT AUTHORITY\\SYSTEM (Microsoft.Exchange.ServiceHost)",
        "AppId": "",
        "ClientAppId": "",
        "ExternalAccess": True,
        "OrganizationName": "emu.onmicrosoft.example",
        "OriginatingServer": "AB1PR01MB0001 (15.20.4200.000)",
        "Parameters": _pairs(
            Identity=f"EMU\\mailbox{n}", MaxSendSize="35 MB", Force="True"
        ),
        "SessionId": "",
    }


def _general(kind: str, n: int, at: datetime) -> dict[str, Any]:
    return _common(kind, n, at) | {
        "Operation": "MemberAdded",
        "RecordType": 25,
        "UserKey": _guid("user", n % 40),
        "UserType": 0,
        "Workload": "MicrosoftTeams",
        "UserId": _person(n),
        "CommunicationType": "Team",
        "ExtraProperties": [{"Key": "TimeZone", "Value": "Europe/Amsterdam"}],
        "ItemName": f"Team {n}",
        "Members": [
            {"DisplayName": "Ada", "Role": 1, "UPN": _person(n + i)} for i in range(3)
        ],
        "TeamGuid": f"19:{_guid('team', n)}@thread.tacv2",
        "TeamName": f"Team {n} \U0001f680",
    }


def _dlp(kind: str, n: int, at: datetime) -> dict[str, Any]:
    return _common(kind, n, at) | {
        "Operation": "DLPRuleMatch",
        "RecordType": 11,
        "UserKey": "DlpAgent",
        "UserType": 4,
        "Workload": "OneDrive",
        "UserId": "DlpAgent",
        "IncidentId": _guid("incident", n),
        "ObjectId": f"https://emu-my.sharepoint.com/personal/{_person(n)}/cards.xlsx",
        "PolicyDetails": [
            {
                "PolicyId": _guid("policy", n % 3),
                "PolicyName": "Cards",
                "Rules": [
                    {
                        "Actions": ["BlockAccess"],
                        "ConditionsMatched": {
                            "SensitiveInformation": [
                                {"Confidence": 85, "Count": 3, "UniqueCount": 1}
                            ]
                        },
                        "RuleName": "Low volume",
                        "Severity": "Low",
                    }
                ],
            }
        ],
    }


KINDS: dict[str, Callable[[str, int, datetime], dict[str, Any]]] = {
    "login": _login,
    "login_failed": _login,
    "directory": _directory,
    "file": _file,
    "mail": _mail,
    "admin": _admin,
    "general": _general,
    "dlp": _dlp,
}
_OF_TYPE = {
    "Audit.AzureActiveDirectory": ("login", "login", "login_failed", "directory"),
    "Audit.Exchange": ("mail", "admin"),
    "Audit.SharePoint": ("file",),
    "Audit.General": ("general",),
    "DLP.All": ("dlp",),
}


def make_event(
    kind: str = "login", n: int = 1, *, at: datetime | None = None, **fields: Any
) -> dict[str, Any]:
    """An event of this kind; the same `kind` and `n` give the same Id."""
    if at is None:
        at = datetime.now(UTC) - timedelta(minutes=30)
    return KINDS[kind](kind, n, at.astimezone(UTC)) | fields


def make_events(
    count: int,
    content_type: str = "Audit.AzureActiveDirectory",
    *,
    first: int = 1,
    at: datetime | None = None,
) -> list[dict[str, Any]]:
    """A mixture as a content type has it, with Ids that do not repeat."""
    kinds = _OF_TYPE[content_type]
    return [
        make_event(kinds[n % len(kinds)], n, at=at) for n in range(first, first + count)
    ]


CLIENT_IPS: tuple[str | None, ...] = (
    "203.0.113.9",
    "203.0.113.9:50123",
    "2001:db8::1",
    "[2001:db8::1]",
    "[2001:db8::1]:50123",
    "[203.0.113.9]:50123",
    "[::ffff:203.0.113.9]:50123",
    "::ffff:203.0.113.9",
    "ffff:10.11.0.229",
    "::1",
    "localhost",
    "HOST01",
    "HOST01:443",
    " 203.0.113.9",
    "<null>",
    "",
    None,
)


def zoo_id(n: int) -> str:
    return event_id("zoo", n)


def _beast(n: int, members: str) -> str:
    """A small event with these members written as they stand."""
    return (
        f'{{"CreationTime":"2026-05-23T17:31:08","Id":"{zoo_id(n)}",'
        f'"Operation":"Zoo","OrganizationId":"{ORGANIZATION}","RecordType":6,'
        f'"UserKey":"k","UserType":0,"Version":1,"Workload":"SharePoint",'
        f'"UserId":"ada@emu.test",{members}}}'
    )


# Name -> members, as raw JSON text; each is one member of the zoo (8.1, item 40).
BEASTS: dict[str, str] = {
    "null_members": '"ClientIP":null,"ObjectId":null,"Parameters":null',
    "parameters_array": '"Parameters":[{"Name":"Identity","Value":"x"}]',
    "parameters_string": '"Parameters":"-Identity \\"x\\" -Force"',
    "modified_properties_strings": '"ModifiedProperties":["Subject","Body"]',
    "type_conflicts": '"Version":"1","LogonType":"0","FileSize":"1000.0"',
    "numbers": '"FileSize":1e9,"Score":-1.0,"Ratio":26.0,"Small":1.10E-7,"Zero":-0',
    "list_base_type_int": '"ListBaseType":1',
    "list_base_type_string": '"ListBaseType":"DocumentLibrary"',
    "bool_string": '"DoNotDistributeEvent":"True"',
    "json_in_string": '"Data":"{\\"QueryTime\\":\\"2026-05-23\\",\\"QueryTime\\":\\"x\\"}"',
    "json_in_json_in_string": '"Actions":["{\\"$id\\":\\"1\\",\\"D\\":\\"{}\\"}"]',
    "xml": '"EventData":"<Added group>Members<\\/Added group>"',
    "crlf": '"OriginatingServer":"AB1PR01MB0001 (15.20.4200.000)\\r\\n"',
    "lf_inside": '"ItemName":"first\\nsecond"',
    "line_separators_raw": '"ItemName":"a\u2028b\u2029c\u0085d"',
    "line_separators_escaped": '"ItemName":"a\\u2028b\\u2029c"',
    "emoji_raw": '"TeamName":"\U0001f680 \U0001f468\u200d\U0001f4bb"',
    "emoji_escaped": '"TeamName":"\\ud83d\\ude80"',
    "lone_high_surrogate": '"TeamName":"\\ud83d"',
    "lone_low_surrogate": '"TeamName":"x\\ude80y"',
    "nul_escaped": '"ItemName":"a\\u0000b\\u0011c"',
    "del_and_c1": '"ItemName":"a\u007fb\u009fc"',
    "zero_width": '"ItemName":"a\u200bb\ufeffc"',
    "combining": '"ItemName":"e\u0301 and \u00e9"',
    "escaped_slashes": '"ObjectId":"https:\\/\\/emu.sharepoint.com\\/a\\/b.docx"',
    "backslashes": '"UserId2":"NT AUTHORITY\\\\SYSTEM","Path":"\\\\Inbox\\\\"',
    "quotes_at_end": '"ItemName":"ends in backslash and quote \\\\\\""',
    "duplicate_keys": '"UserId":"grace@emu.test","Twice":1,"Twice":2',
    "int_over_2_53": '"YammerNetworkId":9007199254740993,"Huge":123456789012345678901',
    "int_4400_digits": '"Digits":' + "7" * 4400,
    "float_over_double": '"Overflow":1e400,"Minus":-1e400',
    "many_decimals": '"Pi":3.14159265358979323846264338327950288,"Cost":1.10',
    "whitespace": '"Spaced" :\t{ "a" : [ 1 ,\r\n 2 ] , "b" : { } }',
    "braces_in_strings": '"Filter":"{(Name -like \'[x]\'),]}[{","Next":"\\",\\"Id"',
    "empty_key": '"":"empty","Data State":"blank","a.b":"dots","MethodResult.":"x"',
    "own_names": '"@timestamp":"x","host":"h","tags":["t"],"message":"m","type":"y"',
    "operation_blanks": '"Op2":" Update user. \\u2013 now "',
    "deep_300": '"Deep":' + "[" * 300 + "1" + "]" * 300,
    "deep_objects": '"Deep":' + '{"a":' * 120 + "null" + "}" * 120,
    "long_40_kb": '"NewValue":"' + "v" * 40_000 + '"',
    "long_200_kb": '"NewValue":"' + "abcdefghij" * 20_000 + '"',
    "long_3_mb": '"NewValue":"' + "0123456789" * 300_000 + '"',
    "wide": ",".join(f'"Key{i}":{i}' for i in range(1200)),
}


def _without_id() -> str:
    return '{"CreationTime":"2026-05-23T17:31:08","Operation":"NoId","RecordType":6}'


ZOO: list[str] = [
    *(
        _beast(n, f'"ClientIP":{json.dumps(address)}')
        for n, address in enumerate(CLIENT_IPS)
    ),
    *(_beast(n, members) for n, members in enumerate(BEASTS.values(), start=100)),
    _without_id(),
    '{"Id":null,"Operation":"NullId"}',
    '{"Id":"","Operation":"EmptyId"}',
    '{"Id":12345,"Operation":"NumberId"}',
    f'{{"Id":"{zoo_id(900).upper()}","Operation":"UpperId"}}',
    '{"Operation":"LateId","Nested":{"Id":"not-mine"},"Id":"' + zoo_id(901) + '"}',
    "{}",
]


def zoo_by_name() -> Iterator[tuple[str, str]]:
    """The named members, for tests that want one by its name."""
    for n, (name, members) in enumerate(BEASTS.items(), start=100):
        yield name, _beast(n, members)
