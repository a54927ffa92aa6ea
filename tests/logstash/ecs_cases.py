"""Events and the documents that they must become: ecs.md's acceptance cases, as a table.

A case names what must stand in the document (dotted path to value) and what must not be
there. All values are invented.
"""

from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]

ORGANIZATION = "7D3A0000-0000-4000-8000-0000000000AA"
GRAPH = "00000003-0000-0000-c000-000000000000"
AGENT = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/124.0"


@dataclass(frozen=True)
class Case:
    """One event, what its document must say, and which paths it must lack."""

    name: str
    event: Document
    expected: Document
    absent: tuple[str, ...] = field(default=())


def words(text: str) -> list[str]:
    """Give the words of a text."""
    return text.split()


def lines(text: str) -> list[str]:
    """Give the lines of a text that are not empty."""
    return [line for line in text.splitlines() if line]


def common(number: int, record_type: object, workload: str, operation: str) -> Document:
    """Give the keys that every event has."""
    return {
        "Id": f"00000000-0000-4000-8000-{number:012d}",
        "CreationTime": "2026-05-23T09:58:14",
        "OrganizationId": ORGANIZATION,
        "RecordType": record_type,
        "Workload": workload,
        "Operation": operation,
        "UserKey": "c0ffee00",
        "UserType": 0,
        "Version": 1,
        "UserId": "kim@fabrikam.test",
    }


def sign_in(number: int, operation: str = "UserLoggedIn", **more: Any) -> Document:
    """Give a sign-in."""
    return {
        **common(number, 15, "AzureActiveDirectory", operation),
        "ResultStatus": "Success",
        "ClientIP": "198.51.100.7",
        "ActorIpAddress": "198.51.100.7",
        "ErrorNumber": "0",
        "ApplicationId": "d3590ed6-52b3-4102-aeff-aad2292ab01c",
        "ObjectId": GRAPH,
        "ExtendedProperties": [
            {"Name": "UserAgent", "Value": AGENT},
            {"Name": "RequestType", "Value": "OAuth2:Authorize"},
            {"Name": "ResultStatusDetail", "Value": "Redirect"},
        ],
        "ModifiedProperties": [],
        "Target": [{"ID": GRAPH, "Type": 0}],
        "Actor": [{"ID": "kim@fabrikam.test", "Type": 5}],
        "DeviceProperties": [{"Name": "OS", "Value": "Windows 10"}],
        **more,
    }


BASE: Document = {
    "@timestamp": "2026-05-23T09:58:14.000Z",
    "ecs.version": "8.11.0",
    "event.kind": "event",
    "event.module": "o365",
    "event.dataset": "o365.audit",
    "data_stream.type": "logs",
    "data_stream.dataset": "o365.audit",
    "data_stream.namespace": "default",
    "organization.id": ORGANIZATION.lower(),
    "host.id": ORGANIZATION.lower(),
    "o365.audit.CreationTime": "2026-05-23T09:58:14",
}
MOVED = ("o365.audit.Id", "o365.audit.Workload", "o365.audit.Operation")
PEOPLE = {
    "user.id": "kim@fabrikam.test",
    "user.email": "kim@fabrikam.test",
    "user.name": "kim",
    "user.domain": "fabrikam.test",
    "o365.audit.UserId": "kim@fabrikam.test",
}
DLP_POLICY = [
    {
        "PolicyId": "pol-2",
        "Rules": [
            {
                "RuleId": "r1",
                "RuleName": "Cards",
                "Severity": "High",
                "Actions": ["BlockAccess"],
            }
        ],
    }
]
DLP = {
    **common(24, 13, "Exchange", "DlpRuleMatch"),
    "ExchangeMetaData": {
        "From": "a@fabrikam.test",
        "To": ["b@fabrikam.test"],
        "CC": ["c@fabrikam.test"],
        "Subject": "cards",
        "MessageID": "m1",
    },
    "PolicyId": "pol-1",
    "PolicyName": "Cards policy",
    "PolicyDetails": DLP_POLICY,
}

ACCEPTANCE = [
    Case(
        "01 sign-in",
        sign_in(1),
        {
            **BASE,
            **PEOPLE,
            "event.id": "00000000-0000-4000-8000-000000000001",
            "event.provider": "AzureActiveDirectory",
            "event.action": "UserLoggedIn",
            "event.category": ["web", "authentication"],
            "event.type": ["info", "start", "access"],
            "event.code": "AzureActiveDirectoryStsLogon",
            "event.outcome": "success",
            "client.ip": "198.51.100.7",
            "client.address": "198.51.100.7",
            "source.ip": "198.51.100.7",
            "network.type": "ipv4",
            "user_agent.original": AGENT,
            "o365.audit.ExtendedProperties": {
                "RequestType": "OAuth2:Authorize",
                "ResultStatusDetail": "Redirect",
            },
            "o365.audit.Target": [{"ID": GRAPH, "Type": "0"}],
            "o365.audit.Actor.Type": ["5"],
            "o365.audit.ActorIpAddress": "198.51.100.7",
            "o365.audit.RecordType": "15",
            "o365.audit.UserType": "0",
            "o365.audit.Version": "1",
            "o365.audit.ResultStatus": "Success",
            "host.name": "fabrikam.test",
            "related.user": ["kim", "kim@fabrikam.test"],
            "related.ip": ["198.51.100.7"],
            "tags": ["forwarded", "o365-audit"],
        },
        (*MOVED, "o365.audit.ClientIP", "o365.audit.OrganizationId", "client.port"),
    ),
    Case(
        "02 failed sign-in that says Success",
        sign_in(
            2,
            "UserLoginFailed",
            LogonError="InvalidUserNameOrPassword",
            ErrorNumber="50126",
        ),
        {
            **BASE,
            "event.action": "UserLoginFailed",
            "event.category": ["web", "authentication"],
            "event.outcome": "failure",
            "o365.audit.LogonError": "InvalidUserNameOrPassword",
            "o365.audit.ErrorNumber": "50126",
            "o365.audit.ResultStatus": "Success",
        },
    ),
    Case(
        "03 failed sign-in that says Failed",
        sign_in(3, "UserLoginFailed", ResultStatus="Failed"),
        {**BASE, "event.outcome": "failure"},
    ),
    Case(
        "04 sign-in, IPv6 with port",
        sign_in(4, ClientIP="[2001:db8:1::5]:50123"),
        {
            **BASE,
            "client.address": "2001:db8:1::5",
            "client.ip": "2001:db8:1::5",
            "source.ip": "2001:db8:1::5",
            "client.port": 50123,
            "source.port": 50123,
            "network.type": "ipv6",
        },
    ),
    Case(
        "05 IPv4-mapped",
        sign_in(5, ClientIP="::ffff:192.0.2.33"),
        {**BASE, "source.ip": "192.0.2.33", "network.type": "ipv4"},
    ),
    Case(
        "06 bad address, <null>",
        sign_in(6, ClientIP="<null>", ActorIpAddress=""),
        BASE,
        ("client", "source", "network"),
    ),
    Case(
        "06 bad address, empty",
        sign_in(1006, ClientIP="", ActorIpAddress=""),
        BASE,
        ("client", "source", "network"),
    ),
    Case(
        "07 host name as address",
        sign_in(7, ClientIP="mail07"),
        {**BASE, "client.domain": "mail07"},
        ("source", "client.ip", "client.address", "o365.audit.ClientIP"),
    ),
    Case(
        "08 role assigned",
        {
            **common(8, 8, "AzureActiveDirectory", "Add member to role."),
            "ResultStatus": "Success",
            "AzureActiveDirectoryEventType": 1,
            "ObjectId": "lee@fabrikam.test",
            "ModifiedProperties": [
                {
                    "Name": "Role.DisplayName",
                    "NewValue": "Global Administrator",
                    "OldValue": "",
                },
                {
                    "Name": "Included Updated Properties",
                    "NewValue": "Role.DisplayName",
                    "OldValue": "",
                },
            ],
        },
        {
            **BASE,
            **PEOPLE,
            "event.action": "Add member to role.",
            "event.code": "AzureActiveDirectory",
            "event.category": ["web"],
            "event.type": ["info"],
            "event.outcome": "success",
            "o365.audit.ModifiedProperties.Role_DisplayName": {
                "NewValue": "Global Administrator",
                "OldValue": "",
            },
            "o365.audit.ModifiedProperties.Included_Updated_Properties.NewValue": (
                "Role.DisplayName"
            ),
            "o365.audit.RecordType": "8",
            "o365.audit.AzureActiveDirectoryEventType": "1",
            "user.target.id": "lee@fabrikam.test",
            "user.target.email": "lee@fabrikam.test",
            "user.target.name": "lee",
            "user.target.domain": "fabrikam.test",
            "related.user": ["kim", "kim@fabrikam.test", "lee"],
            "o365.audit.ObjectId": "lee@fabrikam.test",
        },
    ),
    Case(
        "09 user added",
        {
            **common(9, 8, "AzureActiveDirectory", "Add user."),
            "ObjectId": "Not Available",
        },
        {
            **BASE,
            "event.action": "added-user-account",
            "event.category": ["web", "iam"],
            "event.type": ["info", "user", "creation"],
            "user.target.id": "Not Available",
        },
        ("user.target.name",),
    ),
    Case(
        "10 empty ModifiedProperties",
        sign_in(10, ModifiedProperties=[]),
        BASE,
        ("o365.audit.ModifiedProperties",),
    ),
    Case(
        "11 ModifiedProperties of strings",
        {
            **common(11, 2, "Exchange", "Update"),
            "ModifiedProperties": ["Display Name"],
        },
        {**BASE, "o365.audit.ModifiedProperties.Display_Name": {}},
        ("error",),
    ),
    Case(
        "12 inbox rule",
        {
            **common(12, 1, "Exchange", "New-InboxRule"),
            "ResultStatus": "True",
            "ClientIP": "203.0.113.20:61000",
            "Parameters": [
                {"Name": "ForwardTo", "Value": "x@evil.test"},
                {"Name": "DeleteMessage", "Value": "True"},
            ],
            "OrganizationName": "fabrikam.test",
            "OriginatingServer": "XY1PR01MB0001 (15.20.7000.001)",
            "ObjectId": "fabrikam.test\\kim\\..",
        },
        {
            **BASE,
            **PEOPLE,
            "event.code": "ExchangeAdmin",
            "event.outcome": "success",
            "o365.audit.Parameters": {
                "ForwardTo": "x@evil.test",
                "DeleteMessage": "True",
            },
            "organization.name": "fabrikam.test",
            "host.name": "fabrikam.test",
            "server.domain": "XY1PR01MB0001",
            "server.address": "15.20.7000.001",
            "source.port": 61000,
            "client.address": "203.0.113.20",
            "related.hosts": ["fabrikam.test", "XY1PR01MB0001"],
        },
        ("server.ip", "o365.audit.OrganizationName", "o365.audit.OriginatingServer"),
    ),
    Case(
        "13 Parameters as one string",
        {
            **common(13, 18, "SecurityComplianceCenter", "Get-DlpPolicy"),
            "Parameters": '-Identity "guid"',
        },
        {
            **BASE,
            "event.code": "SecurityComplianceCenterEOPCmdlet",
            "o365.audit.Parameters": {"_raw": '-Identity "guid"'},
        },
    ),
    Case(
        "14 DKIM disabled",
        {
            **common(14, 1, "Exchange", "Set-DkimSigningConfig"),
            "ResultStatus": "True",
            "Parameters": [{"Name": "Enabled", "Value": "False"}],
        },
        {
            **BASE,
            "o365.audit.Parameters.Enabled": "False",
            "event.outcome": "success",
        },
    ),
    Case(
        "15 system account",
        {
            **common(15, 1, "Exchange", "Set-Mailbox"),
            "UserId": "NT AUTHORITY\\SYSTEM (w3wp)",
            "ResultStatus": "True",
        },
        {**BASE, "user.id": "NT AUTHORITY\\SYSTEM (w3wp)"},
        ("user.name", "user.domain", "user.email"),
    ),
    Case(
        "16 mailbox item",
        {
            **common(16, 2, "Exchange", "HardDelete"),
            "ResultStatus": "Succeeded",
            "UserId": "S-1-5-18",
            "MailboxOwnerUPN": "lee@fabrikam.test",
            "ClientIPAddress": "192.0.2.8",
            "OriginatingServer": "EXCH9 (192.0.2.80)\r\n",
            "AffectedItems": [{"Subject": "New MFA method added"}],
        },
        {
            **BASE,
            "event.code": "ExchangeItem",
            "event.category": ["web", "email"],
            "user.id": "S-1-5-18",
            "user.email": "lee@fabrikam.test",
            "server.domain": "EXCH9",
            "server.ip": "192.0.2.80",
            "destination.ip": "192.0.2.80",
            "related.ip": ["192.0.2.8", "192.0.2.80"],
            "o365.audit.AffectedItems.Subject": ["New MFA method added"],
        },
        ("o365.audit.MailboxOwnerUPN", "o365.audit.ClientIPAddress", "user.name"),
    ),
    Case(
        "17 MailItemsAccessed",
        {
            **common(17, 50, "Exchange", "MailItemsAccessed"),
            "ResultStatus": "Succeeded",
            "OperationCount": 140,
            "OperationProperties": [
                {"Name": "MailAccessType", "Value": "Bind"},
                {"Name": "IsThrottled", "Value": "True"},
            ],
            "AppAccessContext": {"AADSessionId": "S1", "UniqueTokenId": "T1"},
            "LogonType": 0,
            "ClientAppId": "6326e366-9d6d-4c70-b22a-34c7ea72d73d",
            "OrganizationName": "fabrikam.onmicrosoft.test",
            "OriginatingServer": "EXCH9 (15.20.4200.000)\r\n",
            "MailboxOwnerUPN": "kim@fabrikam.test",
            "Folders": [
                {
                    "Path": "\\Inbox",
                    "FolderItems": [{"Id": "RgA", "SizeInBytes": 9.0}],
                }
            ],
        },
        {
            **BASE,
            "event.code": "ExchangeItemAggregated",
            "event.category": ["web", "email"],
            "event.type": ["info", "access"],
            "o365.audit.OperationCount": 140,
            "o365.audit.OperationProperties": [
                {"Name": "MailAccessType", "Value": "Bind"},
                {"Name": "IsThrottled", "Value": "True"},
            ],
            "session.id": "S1",
            "token.id": "T1",
            "o365.audit.AppAccessContext.AADSessionId": "S1",
            "o365.audit.LogonType": "0",
            "o365.audit.UserType": "0",
            "o365.audit.ExchangeAggregatedFolders": [
                {"Path": "\\Inbox", "FolderItems": [{"Id": "RgA", "SizeInBytes": 9}]}
            ],
            "o365.audit.OrganizationName": "fabrikam.onmicrosoft.test",
            "o365.audit.OriginatingServer": "EXCH9 (15.20.4200.000)\r\n",
            "o365.audit.MailboxOwnerUPN": "kim@fabrikam.test",
        },
        ("o365.audit.Folders", "organization.name", "server"),
    ),
    Case(
        "18 file downloaded",
        {
            **common(18, 6, "OneDrive", "FileDownloaded"),
            "ObjectId": "https://fabrikam.test/Documents/plans/plan.docx",
            "SourceRelativeUrl": "Documents/plans",
            "SourceFileName": "plan.docx",
            "SourceFileExtension": "docx",
            "UserAgent": "MSWAC PnPPS/1.0 PowerShell",
            "FileSizeBytes": 2048,
            "ApplicationId": "d3590ed6-52b3-4102-aeff-aad2292ab01c",
            "AppAccessContext": {"AADSessionId": "S1"},
            "Site": "site1",
            "SiteUrl": "https://fabrikam.test/",
        },
        {
            **BASE,
            "event.category": ["web", "file"],
            "event.type": ["info", "access"],
            "event.outcome": "success",
            "event.code": "SharePointFileOperation",
            "event.provider": "OneDrive",
            "url.original": "https://fabrikam.test/Documents/plans/plan.docx",
            "file.directory": "Documents/plans",
            "file.name": "plan.docx",
            "file.extension": "docx",
            "file.size": 2048,
            "o365.audit.FileSizeBytes": 2048,
            "user_agent.original": "MSWAC PnPPS/1.0 PowerShell",
        },
        (
            "o365.audit.ObjectId",
            "o365.audit.SourceFileName",
            "o365.audit.SourceRelativeUrl",
            "o365.audit.SourceFileExtension",
            "o365.audit.UserAgent",
        ),
    ),
    Case(
        "19 malware file",
        common(19, 6, "SharePoint", "FileMalwareDetected"),
        {
            **BASE,
            "event.provider": "SharePoint",
            "event.code": "SharePointFileOperation",
            "event.action": "FileMalwareDetected",
            "event.category": ["web"],
        },
    ),
    Case(
        "20 sharing policy",
        {
            **common(20, 14, "SharePoint", "SharingPolicyChanged"),
            "ModifiedProperties": [
                {
                    "Name": "ShareWithGuests",
                    "NewValue": "Enabled",
                    "OldValue": "Disabled",
                }
            ],
        },
        {
            **BASE,
            "o365.audit.ModifiedProperties.ShareWithGuests": {
                "NewValue": "Enabled",
                "OldValue": "Disabled",
            },
            "event.outcome": "success",
        },
    ),
    Case(
        "21 team members",
        {
            **common(21, 25, "MicrosoftTeams", "MemberAdded"),
            "TeamName": "Red",
            "Members": [{"DisplayName": "Lee", "UPN": "lee@fabrikam.test", "Role": 1}],
        },
        {
            **BASE,
            "event.action": "added-users-to-group",
            "event.category": ["web", "iam"],
            "event.type": ["info", "group", "change"],
            "group.name": "Red",
            "related.user": ["kim", "kim@fabrikam.test", "lee@fabrikam.test"],
            "o365.audit.Members": [
                {"DisplayName": "Lee", "UPN": "lee@fabrikam.test", "Role": 1}
            ],
        },
        ("o365.audit.TeamName",),
    ),
    Case(
        "22 help-desk chat",
        {
            **common(22, 25, "MicrosoftTeams", "ChatCreated"),
            "CommunicationType": "OneOnOne",
            "ParticipantInfo": {
                "HasForeignTenantUsers": True,
                "HasGuestUsers": False,
                "HasOtherGuestUsers": False,
            },
            "Members": [{"DisplayName": "Help Desk"}],
            "UserId": "it-support@other.test",
        },
        {
            **BASE,
            "o365.audit.ParticipantInfo": {
                "HasForeignTenantUsers": True,
                "HasGuestUsers": False,
                "HasOtherGuestUsers": False,
            },
            "o365.audit.Members.DisplayName": ["Help Desk"],
            "user.name": "it-support",
            "event.outcome": "success",
        },
    ),
    Case(
        "23 alert",
        {
            **common(23, 40, "SecurityComplianceCenter", "AlertTriggered"),
            "UserId": "SecurityComplianceAlerts",
            "Name": "Email reported by user as malware or phish",
            "Severity": "Low",
            "Category": "ThreatManagement",
            "PolicyId": "p1",
            "EntityType": "Recipients",
            "AlertEntityId": "lee@fabrikam.test",
            "Comments": "New alert",
            "AlertLinks": [{"AlertLinkHref": "u1"}],
            "Data": '{"f3u":"lee@fabrikam.test","sip":"192.0.2.9",'
            '"QueryTime":"1","QueryTime":"2","x":null}',
        },
        {
            **BASE,
            "event.kind": "alert",
            "event.category": ["web"],
            "rule.name": "Email reported by user as malware or phish",
            "rule.category": "ThreatManagement",
            "rule.reference": ["u1"],
            "rule.id": "p1",
            "rule.ruleset": "Recipients",
            "rule.description": "lee@fabrikam.test",
            "message": "New alert",
            "event.severity": 2,
            "o365.audit.Data.f3u": "lee@fabrikam.test",
            "o365.audit.Data.sip": "192.0.2.9",
            "o365.audit.Data.flattened.f3u": "lee@fabrikam.test",
            "o365.audit.Data.flattened.QueryTime": "2",
            "user.id": "SecurityComplianceAlerts",
            "user.email": "lee@fabrikam.test",
        },
        ("o365.audit.Name", "o365.audit.AlertLinks", "o365.audit.PolicyId"),
    ),
    Case(
        "24 DLP blocked",
        DLP,
        {
            **BASE,
            "event.kind": "alert",
            "event.category": ["web", "file"],
            "event.type": ["info", "access"],
            "source.user.email": "a@fabrikam.test",
            "destination.user.email": ["b@fabrikam.test", "c@fabrikam.test"],
            "message": "cards",
            "rule.id": ["pol-1", "r1"],
            "rule.name": ["Cards policy", "Cards"],
            "event.severity": 4,
            "event.outcome": "failure",
            "o365.audit.PolicyDetails": DLP_POLICY,
            "o365.audit.ExchangeMetaData": {
                "To": ["b@fabrikam.test"],
                "CC": ["c@fabrikam.test"],
                "MessageID": "m1",
            },
        },
    ),
    Case(
        "24 DLP undone",
        {**DLP, "Id": "dlp-undo", "Operation": "DlpRuleUndo"},
        {**BASE, "event.kind": "alert", "event.outcome": "success"},
    ),
    Case(
        "25 unknown and shape change",
        {
            "Id": "unknown-1",
            "CreationTime": "2026-05-23T09:58:14",
            "OrganizationId": ORGANIZATION,
            "RecordType": 9999,
            "Operation": "Odd",
            "UserId": None,
            "Message": {"a": 1},
            "Sender": {"b": [1, {"c": 2}]},
            "a.b": "dot",
        },
        {
            **BASE,
            "event.action": "Odd",
            "event.category": ["web"],
            "o365.audit.RecordType": "9999",
            "o365.audit.MessageObject": {"a": 1},
            "o365.audit.SenderEntity": {"b": [1, {"c": 2}]},
            "o365.audit.a_b": "dot",
        },
        ("event.code", "event.provider", "user", "error", "o365.audit.Message"),
    ),
    Case(
        "25 record type as text, unknown",
        {**common(1025, "9999", "Exchange", "Odd"), "UserId": None},
        {**BASE, "o365.audit.RecordType": "9999"},
        ("event.code", "user"),
    ),
    Case(
        "25 record type as text",
        common(2025, "20", "PowerBI", "ViewReport"),
        {**BASE, "event.code": "PowerBIAudit", "o365.audit.RecordType": "20"},
    ),
]
