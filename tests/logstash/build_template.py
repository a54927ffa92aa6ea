"""Writes logstash/o365_template.json and o365_poller_template.json from the field lists below.

Run by hand after a change: .venv/bin/python tests/logstash/build_template.py
test_template.py holds the files to what this makes.
"""

import json
from pathlib import Path
from typing import Any

LOGSTASH = Path(__file__).resolve().parents[2] / "logstash"


def words(text: str) -> list[str]:
    """Give the words of a text."""
    return text.split()


# A Lucene term holds 32,766 bytes; ignore_above counts UTF-16 units, at most 3 bytes each.
KEYWORD = {"type": "keyword", "ignore_above": 8191}
# A flattened term is name and value together: 17 names of at most 1,024 bytes (the ruby
# filter's bounds) and 4,096 units stay below the same limit.
FLATTENED = {"type": "flattened", "ignore_above": 4096}
# ECS has match_only_text here, a type of a module that not every server carries.
TEXT = {"type": "text", "norms": False}
NUMBER = {"type": "long", "ignore_malformed": True}
DATE = {"type": "date", "ignore_malformed": True}
IP = {"type": "ip", "ignore_malformed": True}
BOOLEAN = {"type": "boolean"}

# ECS fields that the ruby, geoip and useragent filters write (ecs.md, part 1).
ECS = """
application.name client.address client.domain data_stream.dataset data_stream.namespace
data_stream.type destination.user.domain destination.user.email destination.user.id
destination.user.name ecs.version email.attachments.file.extension
email.attachments.file.name email.from.address email.local_id email.message_id
email.sender.address email.subject email.to.address event.action event.category
event.code event.dataset event.id event.kind event.module event.outcome event.provider
event.type file.directory file.extension file.inode file.name file.owner group.name
host.id host.name labels.ip_scope network.type organization.id organization.name
process.name related.hosts related.user rule.category rule.description rule.id
rule.name rule.reference rule.ruleset server.address server.domain session.id
source.as.organization.name source.geo.city_name source.geo.continent_name
source.geo.country_iso_code source.geo.country_name source.geo.region_iso_code
source.geo.region_name source.user.domain source.user.email source.user.id
source.user.name tags token.id url.original user.domain user.email user.full_name
user.id user.name user.target.domain user.target.email user.target.id user.target.name
user_agent.device.name user_agent.name user_agent.original user_agent.os.full
user_agent.os.name user_agent.os.version user_agent.version
"""
ECS_OTHER: dict[str, dict[str, Any]] = {
    "@timestamp": {"type": "date"},
    "client.ip": IP,
    "client.port": NUMBER,
    "destination.ip": IP,
    "email.attachments.file.size": NUMBER,
    "error.message": TEXT,
    "event.ingested": DATE,
    # The text of an event that failed inside the pipeline: kept, not searched.
    "event.original": {"type": "keyword", "index": False, "doc_values": False},
    "event.severity": NUMBER,
    "file.mtime": DATE,
    "file.size": NUMBER,
    "message": TEXT,
    "related.ip": IP,
    "server.ip": IP,
    "source.as.number": NUMBER,
    "source.geo.location": {"type": "geo_point", "ignore_malformed": True},
    "source.ip": IP,
    "source.port": NUMBER,
}

# Keys of the events, by where they come from; all words, numbers among them too where
# they are codes. First every key of record types 8, 9 and 15 (schema page and real
# events), then what Elastic's integration defines or its rules read.
AUDIT = """
ActorContextId ActorIpAddress Application ApplicationDisplayName ApplicationId
AuthenticationType AzureActiveDirectoryEventType BrowserName BrowserVersion Client
ClientIP ClientIPAddress ClientInfoString CreationTime DeviceId ErrorCode ErrorNumber
InterSystemsId IntraSystemId IntraSystemsId IsManagedDevice LoginStatus LogonError
ObjectId OrganizationName Platform RecordType ResultStatus Scope SupportTicketId
TargetContextId UserDomain UserId UserKey UserType Version
ActorUserId ActorYammerUserId AgentId AlertEntityId AlertId AlertLinks AlertType
AppAccessContextId AppDistributionMode AppId Category ChannelGuid ChannelName ChannelType
ChatName ChatThreadId ClientAppId ClientAppName ClientApplication ClientProcessName
ClientRequestId ClientVersion CmdletVersion Comments CommunicationType CorrelationId
CrossMailboxOperation DataState DataType DestinationFileExtension DestinationFileName
DestinationRelativeUrl DeviceDisplayName DoNotDistributeEvent EffectiveOrganization
EndTimeUtc EntityType EventData EventSource ExternalAccessType FileId FileName
FileSyncBytesCommitted FromApp GeoLocation GroupName HighPriorityMediaProcessing
HostAppId ImplicitShare IncidentId InternalLogonType InternetMessageId
InvestigationId InvestigationName InvestigationType IsDocLib IsWorkflow ItemCount ItemName
ItemType LastUpdateTimeUtc ListBaseTemplateType ListBaseType ListColor ListIcon ListId
ListItemUniqueId ListName ListServerTemplate ListTitle ListUrl LogonType
LogonUserDisplayName LogonUserSid MachineDomainInfo MachineId MailboxGuid
MailboxOwnerMasterAccountSid MailboxOwnerSid MailboxOwnerUPN Message MessageId Name
NetworkMessageId NewValue ObjectDisplayName ObjectName ObjectType OldValue OperationId
OriginatingServer P1Sender P2Sender PolicyAction PolicyId PolicyName Query Recipients
ReportId ReportName RequestId ResourceId ResourceTitle ResourceUrl ResultCount
RunningTime SearchQueryText Sender SenderIp SenderIP SensitiveInfoDetectionIsIncluded
SessionId Severity SharingType Site SiteSensitivityLabelId SiteSensitivityLabelOwner
SiteUrl Source SourceFileExtension SourceFileName SourceRelativeUrl StartTimeUtc Status
Subject TabType TargetUserId TargetUserOrGroupName TargetUserOrGroupType
TargetYammerUserId TeamGuid TeamName TemplateTypeId ThreatsAndDetectionTech
TokenTenantId UniqueSharingId UserSharedWith Verdict VersionId WebId WorkspaceName
YammerNetworkId
Actor.ID Actor.Type Target.ID Target.Type DeviceProperties.Name DeviceProperties.Value
OperationProperties.Name OperationProperties.Value
AppAccessContext.AADSessionId AppAccessContext.APIId AppAccessContext.AuthTime
AppAccessContext.ClientAppId AppAccessContext.ClientAppName
AppAccessContext.CorrelationId AppAccessContext.DeviceId
AppAccessContext.IssuedAtTime AppAccessContext.TokenIssuedAtTime
AppAccessContext.UniqueTokenId AppAccessContext.UserObjectId
AffectedItems.Attachments AffectedItems.Id AffectedItems.InternetMessageId
AffectedItems.ParentFolder.Id AffectedItems.ParentFolder.Path AffectedItems.Subject
Item.Attachments Item.Id Item.InternetMessageId Item.ParentFolder.Id
Item.ParentFolder.Name Item.ParentFolder.Path Item.Subject
Folder.Id Folder.Path DestFolder.Id DestFolder.Path ExceptionInfo.Reason
ExchangeMetaData.BCC ExchangeMetaData.CC ExchangeMetaData.MessageID
ExchangeMetaData.Sent ExchangeMetaData.To ExchangeMetaData.UniqueID
SharePointMetaData.FileID SharePointMetaData.FileOwner SharePointMetaData.From
SharePointMetaData.ItemCreationTime SharePointMetaData.ItemLastModifiedTime
SharePointMetaData.LastModifiedTime SharePointMetaData.SiteCollectionGuid
SharePointMetaData.SiteCollectionUrl SharePointMetaData.UniqueID
"""
AUDIT_OTHER: dict[str, dict[str, Any]] = {
    "OperationCount": NUMBER,
    "FileSizeBytes": NUMBER,
    "ExternalAccess": BOOLEAN,
    "CustomUniqueId": BOOLEAN,
    "ParticipantInfo.HasForeignTenantUsers": BOOLEAN,
    "ParticipantInfo.HasGuestUsers": BOOLEAN,
    "ParticipantInfo.HasOtherGuestUsers": BOOLEAN,
    "ParticipantInfo.HasUnauthenticatedUsers": BOOLEAN,
    "Data.sip": IP,
    # Objects and lists of objects that are open-ended: one field each, any depth. A rule
    # asks o365.audit.Members for a name in any of its leaves, which flattened answers.
    **dict.fromkeys(
        words("""
Actions AdditionalData AdditionalInfo AttachmentData AuthDetails Common CopilotEventData
Data.flattened DeepLinks EventDeepLinks ExchangeAggregatedFolders
ExchangeAggregatedMessages ExtraProperties Entities FileData MailMessages MailClusters
Members MessageObject PolicyDetails SenderEntity SensitiveInfoTypeData SystemOverrides
"""),
        FLATTENED,
    ),
}
# Names in name/value lists: those that rules read, those of sign-ins and directory changes,
# and the commonest of mailbox cmdlets. Others are in o365.other.
PARAMETERS = """
AccessRights AllowFederatedUsers AllowGuestUser AuditBypassEnabled BlindCopyTo
BodyContainsWords DeleteMessage DomainName Enabled ForwardAsAttachmentTo ForwardTo
ForwardingAddress ForwardingSmtpAddress From GrantSendOnBehalfTo Identity Mailbox
MarkAsRead Members MoveToFolder Name Policy RedirectMessageTo RedirectTo
RedirectToRecipients Role SubjectContainsWords SubjectOrBodyContainsWords Trustee User
WithinSizeRangeMaximum WithinSizeRangeMinimum DeliverToMailboxAndForward
StopProcessingRules AutoReplyState InternalMessage ExternalMessage _raw
"""
EXTENDED = """
additionalDetails actorAppID actorContextId actorObjectClass actorObjectId actorPUID
actorUPN auditEventCategory authenticationMethod b c correlationId env_ver eventData
extendedAuditEventCategory FlowTokenScenario KeepMeSignedIn LoginError
MethodExecutionResult_ nCloud RequestType resultDescription ResultStatusDetail resultType
seq targetContextId targetName targetObjectId targetPUID targetSPN targetUPN teamName
UserAgent UserAuthenticationMethod version _raw
"""
MODIFIED = """
Role_DisplayName Role_ObjectID Role_TemplateId Role_WellKnownObjectName ShareWithGuests
ShareUsingAnonymousLinks IsPublic AllowGuestUser AllowFederatedUsers AllowTeamsConsumer
Included_Updated_Properties TargetId_UserType Action_Client_Name Group_DisplayName
Group_ObjectID DisplayName AccountEnabled StrongAuthenticationRequirement
StrongAuthenticationMethod StrongAuthenticationUserDetails StrongAuthenticationPhoneAppDetail
ConsentContext_IsAdminConsent ConsentContext_IsAppOnly ConsentContext_OnBehalfOfAll
ConsentContext_Tags ConsentAction_Permissions ConsentAction_Reason ServicePrincipal_Name
ServicePrincipal_ObjectID ServicePrincipal_AppId ServicePrincipal_DisplayName
TargetId_ServicePrincipalNames User_ObjectID User_UPN User_PUID KeyDescription AppAddress
AppId AppRole_Id AppRole_Value AppRole_DisplayName DelegatedPermissionGrant_Scope
DelegatedPermissionGrant_ConsentType RequiredResourceAccess AvailableToOtherTenants
PrincipalDisplayName UserPrincipalName OtherMail Mail AssignedLicense AssignedPlan
LastDirSyncTime DeviceId DeviceOSType DeviceTrustType
"""
# Keys that the integration copies out of an alert's Data.
DATA = """
ad af aii ail alk als an cid cpid dm dpn eid etps etype f3u fvs imsgid lon mat ms od op ot
plk pud reid rid sev sict sid sitmi srt ssic suid tdc thn tht tid tpid tpt trc tsd ttr upfc
upfv ut von wl zfh zfn zmfh zmfn zu
"""


def enter(fields: dict[str, Any], path: str, mapping: dict[str, Any]) -> None:
    """Put one dotted path into a tree of properties."""
    *parents, name = path.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {"properties": {}})["properties"]
    fields[name] = dict(mapping)


def audit_fields() -> dict[str, Any]:
    """Give the properties of o365.audit."""
    fields: dict[str, Any] = {}
    for name in AUDIT.split():
        enter(fields, name, KEYWORD)
    for name, mapping in AUDIT_OTHER.items():
        enter(fields, name, mapping)
    for name in PARAMETERS.split():
        enter(fields, f"Parameters.{name}", KEYWORD)
    for name in EXTENDED.split():
        enter(fields, f"ExtendedProperties.{name}", KEYWORD)
    for name in MODIFIED.split():
        enter(fields, f"ModifiedProperties.{name}.NewValue", KEYWORD)
        enter(fields, f"ModifiedProperties.{name}.OldValue", KEYWORD)
    enter(fields, "ModifiedProperties._raw", KEYWORD)
    for name in DATA.split():
        enter(fields, f"Data.{name}", KEYWORD)
    for name in ("at", "md", "te", "ts", "ttdt"):
        enter(fields, f"Data.{name}", DATE)
    return fields


def settings() -> dict[str, Any]:
    """Give index settings that suit a log of immutable documents."""
    return {
        "index": {
            "number_of_shards": 1,
            "auto_expand_replicas": "0-1",
            "codec": "best_compression",
            "refresh_interval": "5s",
            "mapping": {"total_fields": {"limit": 5000}, "ignore_malformed": True},
        }
    }


LIFECYCLE = (
    "One index a month: to keep N months, delete indices older than that, by hand or by a "
    "lifecycle policy with a delete phase only (set index.lifecycle.name in a template of "
    "higher priority). No rollover: an event must meet its own index again."
)


def audit_template() -> dict[str, Any]:
    """Give the template of the audit indices."""
    root: dict[str, Any] = {}
    for name in ECS.split():
        enter(root, name, KEYWORD)
    for name, mapping in ECS_OTHER.items():
        enter(root, name, mapping)
    root["o365"] = {
        "properties": {
            "audit": {"dynamic": False, "properties": audit_fields()},
            "other": FLATTENED,
        }
    }
    return template(
        "logs-o365.audit-poller-*",
        "Office 365 audit events as o365_api.conf writes them. " + LIFECYCLE,
        root,
    )


def poller_template() -> dict[str, Any]:
    """Give the template of the rejects and of the poller's runs."""
    root: dict[str, Any] = {}
    for name in words("""
ecs.version event.dataset event.kind event.module event.reason tags
o365_poller.part.kind o365_poller.part.name o365_poller.part.id o365_poller.run
o365_poller.run_id o365_poller.version o365_poller.host o365_poller.outcome
o365_poller.exit_name o365_poller.tenant_id
"""):
        enter(root, name, KEYWORD)
    for name in [
        "exit_code",
        "part.blobs",
        "part.events",
        "part.bytes",
        "part.pending",
        "part.lost",
        "part.listed",
        "part.delivered",
    ]:
        enter(root, f"o365_poller.{name}", NUMBER)
    for name in ("part.lag_seconds", "seconds", "duration_seconds", "took_seconds"):
        enter(root, f"o365_poller.{name}", {"type": "double", "ignore_malformed": True})
    for name in [
        "@timestamp",
        "event.ingested",
        "o365_poller.start",
        "o365_poller.end",
        "o365_poller.part.window_start",
        "o365_poller.part.window_end",
    ]:
        enter(root, name, DATE)
    root["@timestamp"] = {"type": "date"}
    enter(root, "error.message", TEXT)
    enter(root, "event.original", ECS_OTHER["event.original"])
    return template(
        "o365-poller-*",
        "Lines that are no audit event, and the poller's reports of its runs. "
        + LIFECYCLE,
        root,
    )


def template(pattern: str, description: str, root: dict[str, Any]) -> dict[str, Any]:
    """Give a composable template that wins over logs-*-* (100) and Fleet's (200)."""
    return {
        "index_patterns": [pattern],
        "priority": 500,
        "template": {
            "settings": settings(),
            "mappings": {
                "dynamic": False,
                "date_detection": False,
                "properties": root,
            },
        },
        "_meta": {"description": description},
    }


def files() -> dict[Path, str]:
    """Give the text of each file that this script writes."""
    return {
        LOGSTASH / name: json.dumps(made, indent=1, sort_keys=True) + "\n"
        for name, made in (
            ("o365_template.json", audit_template()),
            ("o365_poller_template.json", poller_template()),
        )
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
