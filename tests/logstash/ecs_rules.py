"""Elastic's live detection rules for Office 365, each with an event that must trip it.

The conditions are those of elastic/detection-rules (August 2026) as far as they look at one
document, in Lucene's query syntax with AND between the terms; what a rule counts, sequences
or compares with its history is named by the fields that this needs. `X.` stands for
o365.audit., p a c k o for event.provider, .action, .category, .code and .outcome. Long lists
of constants in a rule (client ids, phrases) are one member here.
"""

import re
from dataclasses import dataclass
from typing import Any

from logstash.ecs_cases import AGENT, GRAPH, common, sign_in, words

Document = dict[str, Any]

DATASET = 'data_stream.dataset:"o365.audit"'
EVENT_DATASET = 'event.dataset:"o365.audit"'
SHORT = {
    "p": "event.provider",
    "a": "event.action",
    "c": "event.category",
    "k": "event.code",
    "o": "event.outcome",
}
BROKER = "29d9ed98-a469-4536-ade2-f981bc1d605e"


@dataclass(frozen=True)
class Rule:
    """A rule: its condition, an event for it, and the fields it needs beside that."""

    name: str
    condition: str
    event: Document
    scope: str = DATASET
    needs: tuple[str, ...] = ()

    @property
    def query(self) -> Document:
        """Give the condition as a query of Elasticsearch."""
        text = re.sub(
            r"(?<![\w.])([packo]):", lambda m: f"{SHORT[m[1]]}:", self.condition
        )
        text = re.sub(r"(?<![\w.])X\.", "o365.audit.", text)
        return {
            "bool": {
                "filter": [
                    {
                        "query_string": {
                            "query": f"{self.scope} {text}".strip(),
                            "default_operator": "AND",
                        }
                    },
                    *({"exists": {"field": field}} for field in self.needs),
                ]
            }
        }


def exchange(
    operation: str, parameters: Document | None = None, **more: Any
) -> Document:
    """Give a mailbox cmdlet's event."""
    pairs = [
        {"Name": name, "Value": value} for name, value in (parameters or {}).items()
    ]
    return {
        **common(0, 1, "Exchange", operation),
        "ResultStatus": "True",
        "ClientIP": "81.2.69.142:61000",
        "Parameters": pairs,
        **more,
    }


def entra(operation: str = "UserLoggedIn", **more: Any) -> Document:
    """Give a sign-in from a public address, with the members given."""
    extended = {
        "UserAgent": more.pop("agent", AGENT),
        "RequestType": more.pop("request", "OAuth2:Authorize"),
        "ResultStatusDetail": more.pop("detail", "Redirect"),
    }
    pairs = [{"Name": name, "Value": value} for name, value in extended.items()]
    return {
        **sign_in(0, operation),
        "ClientIP": "81.2.69.142",
        "ExtendedProperties": pairs,
        **more,
    }


def other(record_type: int, workload: str, operation: str, **more: Any) -> Document:
    """Give any other event."""
    return {
        **common(0, record_type, workload, operation),
        "ClientIP": "81.2.69.142",
        **more,
    }


def alert(name: str, operation: str = "AlertTriggered") -> Document:
    """Give a Security & Compliance alert."""
    return other(40, "SecurityComplianceCenter", operation, Name=name)


def mailbox_access(**more: Any) -> Document:
    """Give a read of mail items."""
    return other(
        50,
        "Exchange",
        "MailItemsAccessed",
        ResultStatus="Succeeded",
        OperationCount=140,
        LogonType=0,
        ClientAppId="11111111-0000-4000-8000-000000000001",
        OperationProperties=[
            {"Name": "MailAccessType", "Value": "Bind"},
            {"Name": "IsThrottled", "Value": "True"},
        ],
        **more,
    )


DOWNLOAD = other(
    6,
    "OneDrive",
    "FileDownloaded",
    ObjectId="https://fabrikam.test/a/b.docx",
    SourceFileName="b.docx",
    SourceFileExtension="docx",
    SourceRelativeUrl="a",
    UserAgent="PnPPS/2.0 PowerShell/7",
    ApplicationId="11111111-0000-4000-8000-000000000002",
    ApplicationDisplayName="An app",
    AppAccessContext={"AADSessionId": "S1", "UniqueTokenId": "T1"},
    FileSizeBytes=10,
    Site="s",
    SiteUrl="https://fabrikam.test/",
    AuthenticationType="OAuth",
    IsManagedDevice="False",
    Platform=1,
)
FAILED = entra(
    "UserLoginFailed", LogonError="InvalidUserNameOrPassword", request="OAuth2:Token"
)
LOCKED = entra("UserLoginFailed", LogonError="IdsLocked", request="Login:login")
SUCCESS = 'o:"success"'


def policy(name: str, operation: str, parameters: Document | None = None) -> Rule:
    """Give one of the many rules on a cmdlet that weakens a policy."""
    tests = "".join(
        f' X.Parameters.{key}:"{value}"' for key, value in (parameters or {}).items()
    )
    return Rule(
        name,
        f'p:Exchange c:web a:"{operation}" {SUCCESS}{tests}',
        exchange(operation, parameters),
    )


MODIFIED = [{"Name": "IsPublic", "NewValue": "Enabled", "OldValue": "Disabled"}]
ROLE = [
    {"Name": "Role.DisplayName", "NewValue": "Global Administrator", "OldValue": ""}
]
WEAK = {"Name": "Allow sideloading and interaction of custom apps", "NewValue": "True"}
CHAT = {
    "HasForeignTenantUsers": True,
    "HasGuestUsers": False,
    "HasOtherGuestUsers": False,
}
GEO = ("source.geo.country_name",)
ASN = ("source.as.organization.name",)

RULES = [
    Rule(
        "Mailbox Items Accessed Excessively",
        "p:Exchange a:MailItemsAccessed k:ExchangeItemAggregated "
        '((X.OperationProperties.Name:IsThrottled X.OperationProperties.Value:"True") '
        "OR X.OperationCount:>=100)",
        mailbox_access(),
    ),
    Rule(
        "Mailbox Accessed by Unusual Client",
        f"p:Exchange c:web a:MailItemsAccessed {SUCCESS} X.LogonType:(0 OR 1 OR 6) "
        "X.UserType:(0 OR 2 OR 3 OR 10) X.OperationProperties.Value:Bind",
        mailbox_access(),
        needs=("o365.audit.ClientAppId",),
    ),
    Rule(
        "Inbox Forwarding Rule Created",
        f"c:web p:Exchange a:New-InboxRule {SUCCESS} X.Parameters.ForwardTo:*",
        exchange("New-InboxRule", {"ForwardTo": "x@evil.test"}),
        scope="",
        needs=("user.domain",),
    ),
    Rule(
        "OneDrive/SharePoint Excessive File Downloads",
        f"p:OneDrive a:FileDownloaded {SUCCESS} user.id:* X.ApplicationId:* "
        "X.AppAccessContext.AADSessionId:* session.id:*",
        DOWNLOAD,
        needs=(
            "file.name",
            "file.directory",
            "file.extension",
            "file.size",
            "application.name",
            "token.id",
            "event.code",
            "o365.audit.Site",
            "o365.audit.SiteUrl",
            "o365.audit.AuthenticationType",
            "o365.audit.IsManagedDevice",
            "o365.audit.Platform",
            "user_agent.name",
            "source.as.organization.name",
            "source.geo.country_name",
            "user.domain",
        ),
    ),
    Rule(
        "File Access via PowerShell",
        f"p:(SharePoint OR OneDrive) a:(FileDownloaded OR FileAccessed) {SUCCESS} "
        "user_agent.original:*PnPPS*",
        DOWNLOAD,
        needs=("user.id",),
    ),
    Rule(
        "OAuth Flow by User Sign-in to Device Registration (1)",
        'c:authentication a:UserLoggedIn X.ExtendedProperties.RequestType:"OAuth2:Authorize" '
        "X.ExtendedProperties.ResultStatusDetail:Redirect X.UserType:(0 OR 2 OR 3 OR 10) "
        "related.user:kim",
        entra(),
    ),
    Rule(
        "OAuth Flow by User Sign-in to Device Registration (2)",
        'c:authentication a:UserLoggedIn X.ExtendedProperties.RequestType:"OAuth2:Token" '
        "X.ExtendedProperties.ResultStatusDetail:Success related.user:kim",
        entra(request="OAuth2:Token", detail="Success"),
    ),
    Rule(
        "OAuth Flow by User Sign-in to Device Registration (3)",
        'c:web a:"Add registered users to device." related.user:kim',
        other(8, "AzureActiveDirectory", "Add registered users to device."),
    ),
    Rule(
        "User Brute Force Attempted",
        "c:authentication p:(AzureActiveDirectory OR Exchange) a:UserLoginFailed "
        "X.ExtendedProperties.RequestType:OAuth2* X.LogonError:* NOT X.LogonError:IdsLocked "
        'NOT X.UserId:"not available" X.Target.Type:(0 OR 2 OR 6 OR 10)',
        FAILED,
        needs=("source.ip", *ASN, *GEO),
    ),
    Rule(
        "User Account Lockouts",
        "c:authentication a:UserLoginFailed X.LogonError:IdsLocked "
        "X.ExtendedProperties.RequestType:Login* X.Target.Type:0 "
        'NOT source.as.organization.name:"MICROSOFT-CORP-MSN-as-BLOCK"',
        LOCKED,
        needs=ASN,
    ),
    Rule(
        "OAuth Flow by First-Party App from Multiple IPs",
        "a:UserLoggedIn X.UserType:(0 OR 2 OR 3 OR 10) "
        f'X.ObjectId:"{GRAPH}" X.ExtendedProperties.RequestType:"OAuth2:Authorize" '
        "X.ExtendedProperties.ResultStatusDetail:Redirect",
        entra(),
        needs=("source.ip", "o365.audit.UserId", "o365.audit.ApplicationId"),
    ),
    policy("Anti-Phish Policy Deleted", "Remove-AntiPhishPolicy"),
    policy("Anti-Phish Rule Modification", "Disable-AntiPhishRule"),
    policy(
        "DKIM Signing Configuration Disabled",
        "Set-DkimSigningConfig",
        {"Enabled": "False"},
    ),
    policy("DLP Policy Deleted", "Remove-DlpPolicy"),
    policy("Safe Link Policy Disabled", "Disable-SafeLinksRule"),
    Rule(
        "Inbox Rule with Obfuscated Name",
        f"p:Exchange a:New-InboxRule {SUCCESS} X.ObjectId:*",
        exchange(
            "New-InboxRule",
            {"ForwardTo": "x", "ForwardAsAttachmentTo": "x", "RedirectTo": "x"},
            ObjectId="fabrikam.test\\kim\\...",
            ApplicationId="a",
        ),
        needs=(
            "o365.audit.UserId",
            "o365.audit.ApplicationId",
            "user.name",
            "user.domain",
            "source.ip",
            "source.as.number",
            "o365.audit.Parameters.ForwardTo",
            "o365.audit.Parameters.ForwardAsAttachmentTo",
            "o365.audit.Parameters.RedirectTo",
        ),
    ),
    policy("Mailbox Audit Logging Bypass Added", "Set-MailboxAuditBypassAssociation"),
    policy("Malware Filter Policy Deleted", "Remove-MalwareFilterPolicy"),
    policy("Malware Filter Rule Modified", "Disable-MalwareFilterRule"),
    Rule(
        "Inbox Phishing Evasion Rule Created",
        f"p:Exchange a:(New-InboxRule OR Set-InboxRule) {SUCCESS} "
        "X.Parameters.SubjectContainsWords:*phish* "
        '(X.Parameters.DeleteMessage:"True" OR X.Parameters.MoveToFolder:*Junk*)',
        exchange(
            "New-InboxRule",
            {"SubjectContainsWords": "a phish b", "DeleteMessage": "True"},
        ),
        needs=("user.id", "source.ip"),
    ),
    policy("Safe Attachment Rule Disabled", "Disable-SafeAttachmentRule"),
    Rule(
        "MFA Notification Email Deleted or Moved",
        f"c:web p:Exchange a:HardDelete {SUCCESS} X.AffectedItems.Subject:*MFA*",
        other(
            2,
            "Exchange",
            "HardDelete",
            ResultStatus="Succeeded",
            AffectedItems=[{"Subject": "New MFA method added"}],
        ),
    ),
    Rule(
        "SharePoint Site Sharing Policy Weakened",
        f"p:(SharePoint OR OneDrive) a:SharingPolicyChanged {SUCCESS} "
        'X.ModifiedProperties.IsPublic.NewValue:("Enabled" OR "true") '
        'X.ModifiedProperties.IsPublic.OldValue:("Disabled" OR "false")',
        other(14, "SharePoint", "SharingPolicyChanged", ModifiedProperties=MODIFIED),
    ),
    Rule(
        "Teams Custom Application Interaction Enabled",
        f"p:MicrosoftTeams c:web a:TeamsTenantSettingChanged {SUCCESS} "
        f'X.Name:"{WEAK["Name"]}" X.NewValue:"True"',
        other(25, "MicrosoftTeams", "TeamsTenantSettingChanged", **WEAK),
    ),
    Rule(
        "Teams External Access Enabled",
        f"p:(SkypeForBusiness OR MicrosoftTeams) c:web {SUCCESS} "
        'a:Set-CsTenantFederationConfiguration X.Parameters.AllowFederatedUsers:"True"',
        exchange(
            "Set-CsTenantFederationConfiguration",
            {"AllowFederatedUsers": "True"},
            Workload="SkypeForBusiness",
            RecordType=23,
        ),
    ),
    Rule(
        "SharePoint Search for Sensitive Content",
        f"c:web p:SharePoint a:SearchQueryPerformed {SUCCESS} X.SearchQueryText:*password*",
        other(4, "SharePoint", "SearchQueryPerformed", SearchQueryText="all passwords"),
    ),
    policy("Mail Flow Transport Rule Created", "New-TransportRule"),
    policy("Mail Flow Transport Rule Modified", "Remove-TransportRule"),
    Rule(
        "Potential Ransomware Activity",
        f'p:SecurityComplianceCenter c:web {SUCCESS} rule.name:"Ransomware activity"',
        alert("Ransomware activity"),
    ),
    Rule(
        "Unusual Volume of File Deletion",
        "p:SecurityComplianceCenter c:web "
        f'a:"Unusual volume of file deletion" {SUCCESS}',
        alert("x", "Unusual volume of file deletion"),
    ),
    Rule(
        "Login from Atypical Region",
        f"p:AzureActiveDirectory a:UserLoggedIn {SUCCESS} "
        "X.Target.Type:(0 OR 2 OR 3 OR 5 OR 6 OR 10) "
        'NOT X.UserId:"Not Available" NOT user_agent.original:*Android*',
        entra(),
        needs=(
            *GEO,
            "source.geo.region_name",
            "o365.audit.ApplicationId",
            "o365.audit.ExtendedProperties.RequestType",
            "o365.audit.UserId",
        ),
    ),
    Rule(
        "Login from Impossible Travel Location",
        f"p:AzureActiveDirectory a:UserLoggedIn {SUCCESS} X.Target.Type:0",
        entra(),
        needs=("o365.audit.UserId", *GEO),
    ),
    Rule(
        "OAuth Illicit Consent Grant by Rare Client and User",
        f'X.Actor.Type:5 a:"Consent to application." {SUCCESS} '
        "X.Target.Type:(0 OR 2 OR 3 OR 9 OR 10)",
        other(
            8,
            "AzureActiveDirectory",
            "Consent to application.",
            ResultStatus="Success",
            ObjectId="app",
            Actor=[{"ID": "kim@fabrikam.test", "Type": 5}],
            Target=[{"ID": "x", "Type": 2}],
        ),
        needs=("o365.audit.UserId", "o365.audit.ObjectId"),
    ),
    Rule(
        "Device Code Grant with Unusual User and ASN",
        'X.ExtendedProperties.RequestType:"Cmsi:Cmsi" X.Actor.Type:5 '
        f'X.ApplicationId:"{BROKER}" X.Target.ID:"{GRAPH}" '
        'X.DeviceProperties.Value:"False"',
        entra(
            request="Cmsi:Cmsi",
            ApplicationId=BROKER,
            DeviceProperties=[{"Name": "IsCompliant", "Value": "False"}],
        ),
        scope=EVENT_DATASET,
        needs=("o365.audit.UserId", "source.as.number"),
    ),
    Rule(
        "Device Code Grant (Non-Compliant Device)",
        'X.ExtendedProperties.RequestType:"Cmsi:Cmsi" X.Actor.Type:5 '
        'X.DeviceProperties.Value:"False"',
        entra(
            request="Cmsi:Cmsi",
            DeviceProperties=[{"Name": "IsCompliant", "Value": "False"}],
        ),
        scope=EVENT_DATASET,
        needs=("o365.audit.UserId",),
    ),
    Rule(
        "OAuth Phishing via First-Party Application",
        'a:UserLoggedIn X.ExtendedProperties.RequestType:"OAuth2:Authorize" '
        "X.ExtendedProperties.ResultStatusDetail:Redirect "
        f'X.UserType:(0 OR 2 OR 3 OR 5 OR 6 OR 10) X.Target.ID:"{GRAPH}" '
        "X.ApplicationId:*",
        entra(),
    ),
    Rule(
        "ROPC Grant via Legacy Client",
        "k:AzureActiveDirectoryStsLogon a:UserLoggedIn "
        f"user_agent.original:BAV2ROPC {SUCCESS}",
        entra(agent="BAV2ROPC"),
        needs=("o365.audit.UserId",),
    ),
    Rule(
        "Unusual SSO Authentication Errors for User",
        'p:AzureActiveDirectory c:authentication X.ErrorNumber:"20001"',
        entra("UserLoginFailed", ErrorNumber="20001"),
        needs=("o365.audit.UserId", "o365.audit.ErrorNumber"),
    ),
    Rule(
        "Email Reported as Malware or Phish",
        "p:SecurityComplianceCenter a:AlertTriggered "
        'rule.name:"Email reported by user as malware or phish"',
        alert("Email reported by user as malware or phish"),
    ),
    Rule(
        "User Restricted from Sending Email",
        "p:SecurityComplianceCenter c:web "
        f'a:"User restricted from sending email" {SUCCESS}',
        alert("x", "User restricted from sending email"),
    ),
    Rule(
        "Teams Rogue Help Desk Chat Created",
        f"a:ChatCreated p:MicrosoftTeams {SUCCESS} "
        "X.ParticipantInfo.HasOtherGuestUsers:false X.ParticipantInfo.HasGuestUsers:false "
        "X.ParticipantInfo.HasForeignTenantUsers:true X.CommunicationType:OneOnOne "
        '(X.Members:"Help Desk" OR user.name:*helpdesk*)',
        other(
            25,
            "MicrosoftTeams",
            "ChatCreated",
            CommunicationType="OneOnOne",
            ParticipantInfo=CHAT,
            Members=[{"DisplayName": "Help Desk"}],
        ),
    ),
    Rule(
        "AiTM UserLoggedIn via Office App (Tycoon2FA)",
        f'c:authentication a:UserLoggedIn X.ApplicationId:"{BROKER}" '
        f'X.ObjectId:"{GRAPH}" user_agent.original:axios*',
        entra(agent="axios/1.7", ApplicationId=BROKER),
    ),
    Rule(
        "OneDrive Malware File Upload",
        "p:OneDrive k:SharePointFileOperation a:FileMalwareDetected",
        other(6, "OneDrive", "FileMalwareDetected"),
    ),
    Rule(
        "SharePoint Malware File Detected",
        "p:SharePoint k:SharePointFileOperation a:FileMalwareDetected",
        other(6, "SharePoint", "FileMalwareDetected"),
    ),
    Rule(
        "Global Administrator Role Assigned",
        f'k:AzureActiveDirectory a:"Add member to role." {SUCCESS} '
        'X.ModifiedProperties.Role_DisplayName.NewValue:"Global Administrator" '
        "X.AzureActiveDirectoryEventType:1 X.RecordType:8",
        other(
            8,
            "AzureActiveDirectory",
            "Add member to role.",
            ResultStatus="Success",
            AzureActiveDirectoryEventType=1,
            ModifiedProperties=ROLE,
        ),
    ),
    policy("Management Group Role Assigned", "New-ManagementRoleAssignment"),
    Rule(
        "Mailbox High-Risk Permission Delegated",
        f"p:Exchange {SUCCESS} NOT X.UserType:(3 OR 4) a:Add-MailboxPermission "
        "X.Parameters.AccessRights:FullAccess",
        exchange("Add-MailboxPermission", {"AccessRights": "FullAccess"}),
        needs=("o365.audit.UserId",),
    ),
    Rule(
        "Teams Guest Access Enabled",
        f"p:(SkypeForBusiness OR MicrosoftTeams) c:web {SUCCESS} "
        'a:Set-CsTeamsClientConfiguration X.Parameters.AllowGuestUser:"True"',
        exchange(
            "Set-CsTeamsClientConfiguration",
            {"AllowGuestUser": "True"},
            Workload="MicrosoftTeams",
            RecordType=25,
        ),
    ),
    policy("Federated Domain Created or Modified", "Set-AcceptedDomain"),
    Rule(
        "SharePoint Site Administrator Added",
        f"p:(SharePoint OR OneDrive) c:web a:SiteCollectionAdminAdded {SUCCESS}",
        other(14, "SharePoint", "SiteCollectionAdminAdded"),
    ),
    # Shared rules and building blocks.
    Rule(
        "M365 or Entra ID Sign-in from a Suspicious Source",
        f"a:MailItemsAccessed {SUCCESS} c:web",
        mailbox_access(),
        needs=("source.ip",),
    ),
    Rule(
        "BloodHound User-Agent",
        "user_agent.original:sharphound*",
        entra(agent="sharphound/1.0"),
        scope="",
    ),
    Rule(
        "TeamFiltration User-Agent",
        "user_agent.name:Electron user_agent.os.name:Windows user_agent.version:8.5.1",
        entra(agent="Mozilla/5.0 (Windows NT 10.0) Electron/8.5.1 Safari/537.36"),
    ),
    Rule(
        "Kali365 User-Agent",
        "user_agent.original:kali365-live*",
        entra(agent="kali365-live/2.0"),
    ),
    *(
        Rule(
            f"{name} ({code})",
            f"k:{code}",
            other(number, "SecurityComplianceCenter", "Signal"),
            scope=EVENT_DATASET,
        )
        for name, numbers in {
            "Purview DLP Signal": {
                11: "ComplianceDLPSharePoint",
                13: "ComplianceDLPExchange",
                33: "ComplianceDLPSharePointClassification",
                63: "DLPEndpoint",
                107: "ComplianceDLPExchangeClassification",
                285: "ComplianceDLMExchange",
                286: "ComplianceDLMSharePoint",
            },
            "Insider Risk Signal": {
                306: "PurviewInsiderRiskCases",
                307: "PurviewInsiderRiskAlerts",
                292: "InsiderRiskScopedUserInsights",
                308: "InsiderRiskScopedUsers",
                61: "InformationWorkerProtection",
                58: "HRSignal",
                91: "PhysicalBadgingSignal",
            },
            "Security Compliance Admin Signal": {
                18: "SecurityComplianceCenterEOPCmdlet",
                42: "SecurityComplianceInsights",
                87: "SecurityComplianceRBAC",
                106: "SecurityComplianceUserChange",
            },
            "AIR Investigation Signal": {
                64: "AirInvestigation",
                86: "AirManualInvestigation",
                89: "AirAdminActionInvestigation",
            },
            "Defender Alerts Signal": {
                78: "WDATPAlerts",
                98: "MCASAlerts",
                235: "MicrosoftDefenderForIdentityAudit",
                113: "MS365DCustomDetection",
                237: "DefenderExpertsforXDRAdmin",
            },
            "Threat Intelligence Signal": {
                28: "ThreatIntelligence",
                34: "ThreatFinder",
                47: "ThreatIntelligenceAtpContent",
                41: "ThreatIntelligenceUrl",
                90: "MSTIC",
                62: "Campaign",
            },
            "Quarantine and Hygiene Signal": {
                65: "Quarantine",
                51: "HygieneEvent",
                29: "MailSubmission",
            },
            "Entra ID Risk Detection Signal": {294: "AadRiskDetection"},
        }.items()
        for number, code in numbers.items()
    ),
    Rule(
        "Purview Security Compliance Signal",
        "p:SecurityComplianceCenter k:SecurityComplianceAlerts",
        alert("x"),
        scope=EVENT_DATASET,
    ),
]

# Without these ES|QL and EQL rules fail as a whole ("unknown column"), so the template maps
# them before the first event brings them.
MUST_BE_MAPPED = words("""
session.id token.id application.name file.name file.directory file.extension file.size
user.id user.name user.domain user_agent.name user_agent.original source.ip
source.as.number source.as.organization.name source.geo.country_name event.code
event.category related.user o365.audit.UserId o365.audit.ObjectId
o365.audit.ApplicationId o365.audit.UserType o365.audit.LogonError
o365.audit.AuthenticationType o365.audit.IsManagedDevice o365.audit.Platform
o365.audit.Site o365.audit.SiteUrl o365.audit.SearchQueryText
o365.audit.AffectedItems.Subject o365.audit.AppAccessContext.AADSessionId
o365.audit.ExtendedProperties.RequestType
o365.audit.ExtendedProperties.ResultStatusDetail o365.audit.Target.Type
o365.audit.Parameters.ForwardTo o365.audit.Parameters.ForwardAsAttachmentTo
o365.audit.Parameters.RedirectTo
""")
