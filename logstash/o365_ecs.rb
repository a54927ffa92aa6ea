# The field work of o365_api.conf: one Office 365 audit event in, one ECS document out, in the
# shape that Elastic's own o365 integration gives it (package o365; its names, its spellings).
# Runs inside Logstash's ruby filter (`path`): JRuby 9.3 and 9.4, hence Ruby 2.6 syntax, and the
# event API only. The filter is one object for all pipeline workers: what `register` puts into
# instance variables is frozen and never written again, everything else is local.
#
# Order of work in `filter`:   line -> clean -> (reject | run | audit) -> shape -> event

require "bigdecimal"
require "digest"
require "json"

# == Tables =====================================================================================

def register(params)
  @namespace = text(params["namespace"]) || "default"
  @tenants = tenant_names(params["tenants"])
  @mode = params["mode"]
  @codes = record_types
  @operations = operations
  @actions = renamed_actions
  @data_keys = words("sip at md te ts ttdt " + data_keywords)
  @audit_node = audit_node(params["template"])
end

# The mapping decides which shape each path must have; it is read, not repeated here. The pipeline
# names the template; the tests at the end of this file find it beside this file or do without.
def audit_node(template)
  beside = File.join(File.dirname(__FILE__), "o365_template.json")
  template ||= beside if File.exist?(beside)
  return deep_freeze("properties" => {}) unless template

  mapping = JSON.parse(File.read(template, :encoding => "UTF-8"))["template"]["mappings"]
  deep_freeze(mapping["properties"]["o365"]["properties"]["audit"])
end

# Numbers and names of AuditLogRecordType (Microsoft's schema page, June 2026). Three differ,
# as Elastic's integration has them: 12 Sway, 22 Yammer (page: Viva Engage, the wire says
# Yammer), 44 WorkplaceAnalytics (page: VivaInsights).
def record_types
  table = <<-TABLE
    1 ExchangeAdmin; 2 ExchangeItem; 3 ExchangeItemGroup; 4 SharePoint; 6 SharePointFileOperation;
    7 OneDrive; 8 AzureActiveDirectory; 9 AzureActiveDirectoryAccountLogon;
    10 DataCenterSecurityCmdlet; 11 ComplianceDLPSharePoint; 12 Sway; 13 ComplianceDLPExchange;
    14 SharePointSharingOperation; 15 AzureActiveDirectoryStsLogon; 16 SkypeForBusinessPSTNUsage;
    17 SkypeForBusinessUsersBlocked; 18 SecurityComplianceCenterEOPCmdlet;
    19 ExchangeAggregatedOperation; 20 PowerBIAudit; 21 CRM; 22 Yammer; 23 SkypeForBusinessCmdlets;
    24 Discovery; 25 MicrosoftTeams; 28 ThreatIntelligence; 29 MailSubmission; 30 MicrosoftFlow;
    31 AeD; 32 MicrosoftStream; 33 ComplianceDLPSharePointClassification; 34 ThreatFinder;
    35 Project; 36 SharePointListOperation; 37 SharePointCommentOperation; 38 DataGovernance;
    39 Kaizala; 40 SecurityComplianceAlerts; 41 ThreatIntelligenceUrl;
    42 SecurityComplianceInsights; 43 MIPLabel; 44 WorkplaceAnalytics; 45 PowerAppsApp;
    46 PowerAppsPlan; 47 ThreatIntelligenceAtpContent; 48 LabelContentExplorer; 49 TeamsHealthcare;
    50 ExchangeItemAggregated; 51 HygieneEvent; 52 DataInsightsRestApiAudit;
    53 InformationBarrierPolicyApplication; 54 SharePointListItemOperation;
    55 SharePointContentTypeOperation; 56 SharePointFieldOperation; 57 MicrosoftTeamsAdmin;
    58 HRSignal; 59 MicrosoftTeamsDevice; 60 MicrosoftTeamsAnalytics;
    61 InformationWorkerProtection; 62 Campaign; 63 DLPEndpoint; 64 AirInvestigation;
    65 Quarantine; 66 MicrosoftForms; 67 ApplicationAudit; 68 ComplianceSupervisionExchange;
    69 CustomerKeyServiceEncryption; 70 OfficeNative; 71 MipAutoLabelSharePointItem;
    72 MipAutoLabelSharePointPolicyLocation; 73 MicrosoftTeamsShifts; 75 MipAutoLabelExchangeItem;
    76 CortanaBriefing; 78 WDATPAlerts; 79 PowerAppsResource; 82 SensitivityLabelPolicyMatch;
    83 SensitivityLabelAction; 84 SensitivityLabeledFileAction; 85 AttackSim;
    86 AirManualInvestigation; 87 SecurityComplianceRBAC; 88 UserTraining;
    89 AirAdminActionInvestigation; 90 MSTIC; 91 PhysicalBadgingSignal; 92 TeamsEasyApprovals;
    93 AipDiscover; 94 AipSensitivityLabelAction; 95 AipProtectionAction; 96 AipFileDeleted;
    97 AipHeartBeat; 98 MCASAlerts; 99 OnPremisesFileShareScannerDlp;
    100 OnPremisesSharePointScannerDlp; 101 ExchangeSearch; 102 SharePointSearch;
    103 PrivacyInsights; 105 MyAnalyticsSettings; 106 SecurityComplianceUserChange;
    107 ComplianceDLPExchangeClassification; 109 MipExactDataMatch; 113 MS365DCustomDetection;
    147 CoreReportingSettings; 148 ComplianceConnector; 154 OMEPortal;
    157 MipLabelAnalyticsAuditRecord; 164 ScorePlatformGenericAuditRecord; 174 DataShareOperation;
    181 EduDataLakeDownloadOperation; 183 MicrosoftGraphDataConnectOperation; 186 PowerPagesSite;
    187 PowerPlatformAdminDlp; 188 PlannerPlan; 189 PlannerCopyPlan; 190 PlannerTask;
    191 PlannerRoster; 192 PlannerPlanList; 193 PlannerTaskList; 194 PlannerTenantSettings;
    195 ProjectForThewebProject; 196 ProjectForThewebTask; 197 ProjectForThewebRoadmap;
    198 ProjectForThewebRoadmapItem; 199 ProjectForThewebProjectSettings;
    200 ProjectForThewebRoadmapSettings; 202 MicrosoftTodoAudit;
    206 MicrosoftTeamsSensitivityLabelAction; 216 Viva Goals; 217 MicrosoftGraphDataConnectConsent;
    218 AttackSimAdmin; 230 TeamsUpdates; 231 PlannerRosterSensitivityLabel;
    235 MicrosoftDefenderForIdentityAudit; 237 DefenderExpertsforXDRAdmin; 251 VfamCreatePolicy;
    252 VfamUpdatePolicy; 253 VfamDeletePolicy; 256 PowerPlatformAdministratorActivity;
    257 Windows365CustomerLockbox; 261 CopilotInteraction; 265 VivaLearning; 266 VivaLearningAdmin;
    269 PeopleAdminSettings; 275 OWAAuth; 277 SharePointESignature; 278 Dynamics365BusinessCentral;
    279 MeshWorlds; 280 VivaPulseResponse; 281 VivaPulseOrganizer; 282 VivaPulseAdmin;
    283 VivaPulseReport; 284 AIAppInteraction; 285 ComplianceDLMExchange;
    286 ComplianceDLMSharePoint; 287 ProjectForThewebAssignedToMeSettings; 288 CloudPolicyService;
    291 SensitiveInfoDiscovered; 292 InsiderRiskScopedUserInsights;
    293 MicrosoftTeamsRetentionLabelAction; 294 AadRiskDetection; 295 AuditSearch;
    296 AuditRetentionPolicy; 297 AuditConfig; 298 BackupPolicy; 299 RestoreTask; 300 RestoreItem;
    301 BackupItem; 302 URBACAssignment; 303 URBACRole; 304 URBACEnableState;
    306 PurviewInsiderRiskCases; 307 PurviewInsiderRiskAlerts; 308 InsiderRiskScopedUsers;
    310 CreateCopilotPlugin; 311 UpdateCopilotPlugin; 312 DeleteCopilotPlugin;
    313 EnableCopilotPlugin; 314 DisableCopilotPlugin; 315 CreateCopilotWorkspace;
    316 UpdateCopilotWorkspace; 317 DeleteCopilotWorkspace; 318 EnableCopilotWorkspace;
    319 DisableCopilotWorkspace; 320 CreateCopilotPromptBook; 321 UpdateCopilotPromptBook;
    322 DeleteCopilotPromptBook; 323 EnableCopilotPromptBook; 324 DisableCopilotPromptBook;
    325 UpdateCopilotSettings; 328 ConnectedAIAppInteraction; 329 PrivaPrivacyConsentOperation;
    330 PrivaPrivacyAssessmentOperation; 331 DataCatalogAccessRequests;
    332 ComplianceSettingsChange; 333 DataSecurityInvestigation; 334 TeamCopilotInteraction;
    335 IRMActivityAuditTrail; 336 SharePointContentSecurityPolicy; 337 CloudUpdateProfileConfig;
    338 CloudUpdateTenantConfig; 339 CloudUpdateDeviceConfig; 341 DeviceDiscoverySettingsExclusion;
    342 DeviceDiscoverySettingsAuthenticatedScans; 344 DeviceDiscoverySettings;
    345 USXWorkspaceOnboarding; 346 VivaGlintAdvancedConfiguration; 347 VivaGlintPulseProgram;
    348 VivaGlintPulseProgramRespondentRate; 349 VivaGlintQuestion; 350 VivaGlintRole;
    351 VivaGlintRubicon; 352 VivaGlintSupportAccess; 353 VivaGlintSystem; 354 VivaGlintUser;
    355 VivaGlintUserGroup; 356 VivaGlintFeedbackProgram; 357 FabricAudit; 358 TrainableClassifier;
    359 WebContentFiltering; 360 NoisyAlertPolicy; 361 DataScanClassification;
    362 AIInteractionsExport; 363 Microsoft365CopilotScheduledPrompt; 364 PlacesDirectory;
    365 SentinelNotebookOnLake; 366 SentinelJob; 367 SentinelKQLOnLake; 368 SentinelLakeOnboarding;
    369 SentinelLakeDataOnboarding; 370 SentinelAITool; 371 SentinelGraph;
    372 CrossTenantAccessPolicy; 373 OutlookCopilotAutomation; 374 VivaEngageNetworkAssociation;
    375 AppAdminActivity; 376 AppSettingsAdminActivity; 377 UniversalPrintPrintJob;
    378 VivaAmplifyOutlookSensitivityLabel; 379 AIInteractionsSubscription;
    380 AIInteractionsChangeNotification; 381 FilteringMailMetadataExtended;
    382 OfficeRestrictedModeAction; 383 CopilotForSecurityTrigger; 384 CopilotAgentManagement;
    385 P4AIAssessmentFabricScannerRecord; 386 PlannerGoal; 387 PlannerGoalList;
    401 PlannerChatMessage; 402 PlannerChatMessageList; 414 VivaEngageSegment;
    422 VivaEngageEvents; 427 UniversalPrintManagement; 430 PurviewPostureAgent;
    431 GranularBrowseTask; 444 TeamsEvalDataHubDataAccess; 445 TeamsEvalDataHubPermissionChange;
    454 DragonCopilotAdmin; 462 MicrosoftTeamsUserConcern; 463 VivaGlintAgenticCampaign
  TABLE
  deep_freeze(table.split(";").each_with_object({}) do |entry, found|
    number, name = entry.strip.split(" ", 2)
    found[number] = name
  end)
end

# "code|operation" or "*|operation" => [categories, types]; see the integration's script.
def operations
  found = {}
  enter = lambda do |code, names, categories, types|
    names.each { |name| found["#{code}|#{name}"] = [categories, types] }
  end
  enter.call("*", %w[FileAccessed FileDownloaded], %w[file], %w[access])
  enter.call("*", %w[FileModified FileMoved FileRenamed FileRestored FolderModified FolderMoved
                     FolderRenamed FolderRestored], %w[file], %w[change])
  enter.call("*", %w[FileDeleted FolderDeleted], %w[file], %w[deletion])
  enter.call("*", %w[FileUploaded FolderCopied FolderCreated], %w[file], %w[creation])
  enter.call("*", %w[ComplianceSettingChanged], %w[configuration], %w[change])
  enter.call("AzureActiveDirectory", ["Add user."], %w[iam], %w[user creation])
  enter.call("AzureActiveDirectory", ["Update user."], %w[iam], %w[user change])
  enter.call("AzureActiveDirectory", ["Delete user."], %w[iam], %w[user deletion])
  enter.call("ExchangeItemAggregated", %w[MailItemsAccessed AttachmentAccess], %w[email], %w[access])
  enter.call("Yammer", %w[NetworkConfigurationUpdated SoftDeleteSettingsUpdated
                          ProcessProfileFields SupervisorAdminToggled], %w[configuration], %w[change])
  enter.call("Yammer", %w[NetworkSecurityConfigurationUpdated], %w[configuration iam], %w[change admin])
  enter.call("Yammer", %w[GroupCreation], %w[iam], %w[creation group])
  enter.call("Yammer", %w[GroupDeletion], %w[iam], %w[deletion group])
  enter.call("Yammer", %w[NetworkUserSuspended UserSuspension], %w[iam], [])
  enter.call("Yammer", %w[FileCreated FileUpdateName], %w[file], %w[creation])
  enter.call("Yammer", %w[FileDownloaded FileShared FileUpdateDescription FileVisited], %w[file], %w[access])
  enter.call("MicrosoftTeams", %w[TeamCreated], %w[iam], %w[group creation])
  enter.call("MicrosoftTeams", %w[MemberAdded], %w[iam], %w[group change])
  enter.call("MicrosoftTeams", ["Delete user."], %w[iam], %w[user deletion])
  deep_freeze(found)
end

def renamed_actions
  deep_freeze(
    "AzureActiveDirectory|Add user." => "added-user-account",
    "AzureActiveDirectory|Update user." => "modified-user-account",
    "AzureActiveDirectory|Delete user." => "deleted-user-account",
    "MicrosoftTeams|Delete user." => "deleted-user-account",
    "MicrosoftTeams|TeamCreated" => "added-group-account-to",
    "MicrosoftTeams|MemberAdded" => "added-users-to-group"
  )
end

# The short keys of an alert's Data that the integration copies beside the flattened whole.
def data_keywords
  "ad af aii ail alk als an cid cpid dm dpn eid etps etype f3u fvs imsgid lon mat ms od op ot " \
  "plk pud reid rid sev sict sid sitmi srt ssic suid tdc thn tht tid tpid tpt trc tsd ttr upfc " \
  "upfv ut von wl zfh zfn zmfh zmfn zu"
end

def words(text)
  text.split(" ").map(&:freeze).freeze
end

# "id=name,id=name" from the pipeline's variable; ids meet organization.id, which is lower case.
def tenant_names(text)
  pairs = text.to_s.split(",").map { |pair| pair.split("=", 2).map(&:strip) }
  deep_freeze(pairs.select { |pair| pair.size == 2 && !pair.any?(&:empty?) }
                   .each_with_object({}) { |(id, name), found| found[id.downcase] = name })
end

def deep_freeze(value)
  case value
  when Hash then value.each { |key, inner| key.freeze && deep_freeze(inner) }
  when Array then value.each { |inner| deep_freeze(inner) }
  end
  value.freeze
end

# == Flow =======================================================================================

def filter(event)
  line = event.get("o365_line")
  return refused(event) if @mode == "refused"
  return reject(event, event.get("message"), "the line is not a JSON object") if broken?(event, line)

  line = whole_event(event) unless line.is_a?(Hash)
  raw = clean(line)
  if raw["o365_poller"].is_a?(Hash) && !raw.key?("Id")
    run(event, raw)
  elsif document_id(raw["Id"]).nil?
    reject(event, json(raw), "the event has no Id")
  else
    audit(event, raw)
  end
  [event]
rescue StandardError, SystemStackError => e
  failed(event, line, e)
  [event]
end

# Where the codec could not parse it, it leaves the text in `message` and says so in a tag.
def broken?(event, line)
  return false if line.is_a?(Hash)
  return true unless line.nil?

  !event.get("message").nil? && Array(event.get("tags")).include?("_jsonparsefailure")
end

# An input without `target` (another codec, a queue in between) has the keys at the top.
def whole_event(event)
  event.to_hash.reject { |key, _| key.start_with?("@") || key == "o365_line" }
end

def audit(event, raw)
  id = document_id(raw["Id"])
  time, month = event_time(raw["CreationTime"])
  replace(event, document(raw))
  event.set("[@metadata][o365]", "route" => "audit", "id" => id, "month" => month)
  event.set("[@metadata][o365][time]", time) if time
end

# A failure of this code's own must not cost the event: it is indexed with what is sure, the
# error, and its text, as the integration does (kind pipeline_error, tag preserve_original_event).
def failed(event, line, error)
  raw = line.is_a?(Hash) ? line : {}
  id = document_id(raw["Id"])
  time, month = event_time(raw["CreationTime"])
  doc = base_fields
  doc["event"]["kind"] = "pipeline_error"
  doc["event"]["id"] = id if id
  doc["event"]["original"] = line_text(line)
  doc["error"] = { "message" => ["#{error.class}: #{error.message}"[0, 1000].scrub] }
  doc["tags"] << "preserve_original_event"
  replace(event, doc)
  route = { "route" => id ? "audit" : "reject", "month" => month }
  route["id"] = id || Digest::SHA256.hexdigest(doc["event"]["original"])
  event.set("[@metadata][o365]", route)
  event.set("[@metadata][o365][time]", time) if time
rescue StandardError, SystemStackError => e
  event.set("[@metadata][o365]", "route" => "reject", "id" => Digest::SHA256.hexdigest(e.message))
  event.tag("_o365_failure")
end

# The line goes, the document comes. Under the codec's target the line is one key; what else stands
# beside it is the site's own (add_field on the input) and stays. Without a target the keys of the
# line are the event's, and all go but the time.
def replace(event, doc)
  doc["tags"] = (doc["tags"] + own_tags(event)).uniq if doc["tags"]
  if event.get("[o365_line][Id]").nil?
    event.to_hash.each_key { |key| forget(event, key) unless key == "@timestamp" }
  else
    %w[o365_line @version].each { |key| event.remove(key) }
  end
  doc.each { |key, value| event.set(key, value) }
end

# The site's own tags and those of other plugins stay; a line's own key "tags" never gets here.
def own_tags(event)
  Array(event.get("tags")).select { |tag| tag.is_a?(String) && tag != "_jsonparsefailure" }
end

# A top-level name that is no field reference ("a[b") cannot be removed by name. It stays; the
# index ignores it (dynamic: false). Lines from the codec are under one key and have none.
def forget(event, key)
  event.remove(key)
rescue StandardError
  nil
end

# -- what is no audit event --

def reject(event, original, reason)
  original = line_text(original)
  doc = base_fields
  doc["event"] = { "kind" => "pipeline_error", "ingested" => now, "original" => original,
                   "module" => "o365", "reason" => reason }
  doc["error"] = { "message" => [reason] }
  doc["tags"] = ["o365-rejected"]
  doc.delete("data_stream")
  replace(event, doc)
  event.set("[@metadata][o365]", "route" => "reject", "id" => Digest::SHA256.hexdigest(original))
  [event]
end

# mode "refused" (o365_dlq.conf): a document that the index refused, out of the dead letter queue.
def refused(event)
  reason = text(event.get("[@metadata][dead_letter_queue][reason]")) || "refused by the index"
  reject(event, clean(event.to_hash.reject { |key, _| key == "@timestamp" }), reason)
end

def line_text(line)
  line = json(clean(line)) unless line.is_a?(String)
  utf8(line)
rescue StandardError, SystemStackError
  utf8(line.inspect)
end

# One line of the poller about a run becomes one document about the run and one for each content
# type (the pipeline splits [o365_poller][part]): terms by content type need documents, not keys.
def run(event, raw)
  report = raw["o365_poller"]
  id = Digest::SHA256.hexdigest(json(report))
  whole, types = run_parts(report)
  ended = event_time(whole["end"] || whole["start"])
  parts = types.map { |name, type| type.merge("kind" => "content_type", "name" => name, "id" => "#{id}-#{name}") }
  doc = { "o365_poller" => whole.merge("part" => [{ "kind" => "run", "id" => id }] + parts),
          "event" => { "kind" => "metric", "module" => "o365", "dataset" => "o365_poller.run",
                       "ingested" => now },
          "ecs" => { "version" => "8.11.0" }, "tags" => ["o365-poller"] }
  replace(event, doc)
  event.set("[@metadata][o365]", "route" => "run", "id" => id, "month" => ended[1])
  event.set("[@metadata][o365][time]", ended[0]) if ended[0]
end

# Splits a report into its own scalars and its content types, whether these come as an object
# by name or as a list with a name in each.
def run_parts(report)
  whole = {}
  types = {}
  report.each do |key, value|
    named = content_types(value)
    if named
      named.each { |name, type| types[name] = (types[name] || {}).merge(type) }
    else
      whole[key] = value
    end
  end
  whole["exit_code"] = whole.delete("exit") if whole.key?("exit") && !whole.key?("exit_code")
  types.each_value { |type| rename_lag(type) }
  [flat_scalars(whole), types]
end

def content_types(value)
  if value.is_a?(Hash) && !value.empty? && value.values.all? { |inner| inner.is_a?(Hash) }
    value.each_with_object({}) { |(name, type), found| found[name.tr("_", ".")] = flat_scalars(type) }
  elsif value.is_a?(Array) && !value.empty? && value.all? { |inner| inner.is_a?(Hash) && type_name(inner) }
    value.each_with_object({}) { |type, found| found[type_name(type)] = flat_scalars(type) }
  end
end

def type_name(type)
  text(type["content_type"] || type["type"] || type["name"])
end

def rename_lag(type)
  %w[lag lag_s].each { |name| type["lag_seconds"] = type.delete(name) if type.key?(name) && !type.key?("lag_seconds") }
end

# {"window": {"start": a}} becomes {"window_start": a}: the index maps scalars only.
def flat_scalars(hash, prefix = "", found = {})
  hash.each do |key, value|
    if value.is_a?(Hash)
      flat_scalars(value, "#{prefix}#{key}_", found)
    else
      found["#{prefix}#{key}"] = value.is_a?(Array) ? value.map { |inner| scalar_text(inner) } : value
    end
  end
  found
end

# == Values =====================================================================================

# A copy that JSON, Logstash and Elasticsearch all take: valid UTF-8, names without what they read
# as a path or refuse (dots, brackets, emptiness), numbers that fit. Nothing is left out.
def clean(value)
  case value
  when String then utf8(value)
  when Hash then clean_hash(value)
  when Array then value.map { |inner| clean(inner) }
  when Integer then value.bit_length > 63 ? value.to_s : value
  when BigDecimal then decimal(value)
  when Float then value.finite? ? value : value.to_s
  when nil, true, false then value
  else utf8(value.to_s)
  end
end

def clean_hash(hash)
  hash.each_with_object({}) do |(key, value), found|
    name = field_name(key)
    name += "_" while found.key?(name)
    found[name] = clean(value)
  end
end

# Elasticsearch reads dots as a path and refuses empty parts of it, and names that are empty or
# blank; Logstash reads brackets as a path.
def field_name(key)
  name = utf8(key.to_s)
  name = name.tr(".[]\u0000", "____") if name.match?(/[.\[\]\u0000]/)
  name = name[0, 256] if name.length > 256
  name.strip.empty? ? "_" : name
end

def utf8(text)
  text = text.dup.force_encoding(Encoding::UTF_8) unless text.encoding == Encoding::UTF_8
  text.valid_encoding? ? text : text.scrub("\uFFFD")
end

# Logstash hands decimals over exactly; a double holds 15 digits of them, the rest stays text.
def decimal(value)
  return value.to_s unless value.finite? && value.exponent.between?(-300, 300)

  number = value.to_f
  BigDecimal(number.to_s) == value ? number : value.to_s
end

def text(value)
  return nil if value.nil? || value.is_a?(Hash) || value.is_a?(Array)

  value = number_text(value)
  value.strip.empty? ? nil : value
end

def number_text(value)
  value.is_a?(Float) && value == value.floor && value.abs < 1e15 ? value.to_i.to_s : value.to_s
end

# Without the limit of 100 levels that the generator has by itself.
def json(value)
  JSON.generate(value, :max_nesting => 0)
end

def scalar_text(value)
  value.is_a?(Hash) || value.is_a?(Array) ? json(value) : value
end

def hashes(value)
  Array(value.is_a?(Hash) ? [value] : value).select { |inner| inner.is_a?(Hash) }
end

def texts(value)
  Array(value.is_a?(Hash) ? nil : value).map { |inner| text(inner) }.compact
end

# A text of JSON as a value, or nil. One level only; inner repeats of a name (seen: QueryTime) go
# to the last.
def parsed(value)
  return value unless value.is_a?(String)

  found = JSON.parse(value)
  found.is_a?(Hash) || found.is_a?(Array) ? clean(found) : nil
rescue StandardError
  nil
end

# `_id` is Id as it came: of 5,703 real Ids none came in two spellings. Elasticsearch takes at
# most 512 bytes.
def document_id(value)
  id = text(value)
  return nil if id.nil?

  id = utf8(id)
  id.bytesize > 512 ? Digest::SHA256.hexdigest(id) : id
end

def now
  Time.now.utc.strftime("%Y-%m-%dT%H:%M:%S.%LZ")
end

# [time as the date filter reads it, month of the index]. UTC where no zone is written. A year out
# of reach of the service's life has its time, but no index of its own.
def event_time(value)
  parts = value.is_a?(String) && value.strip.match(
    /\A(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)([.,]\d{1,9})?)?\s*([Zz]|[+-]\d\d:?\d\d)?)?\z/
  )
  return [nil, "undated"] unless parts && valid_time?(parts[1..6].map(&:to_i))

  zone = offset(parts[8])
  return [nil, "undated"] unless zone

  utc = Time.utc(*parts[1..6].map(&:to_i)) - zone
  month = utc.year.between?(2000, 2099) ? utc.strftime("%Y.%m") : "undated"
  [utc.strftime("%Y-%m-%dT%H:%M:%S") + ".#{(parts[7].to_s[1, 3] || '').ljust(3, '0')}Z", month]
end

def valid_time?(numbers)
  year, month, day, hour, minute, second = numbers
  return false unless year > 0 && month.between?(1, 12) && hour < 24 && minute < 60 && second < 60

  leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
  day.between?(1, [31, leap ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1])
end

def offset(zone)
  return 0 if zone.nil? || zone.casecmp("z").zero?

  hours = zone[1, 2].to_i
  minutes = zone[-2, 2].to_i
  return nil if hours > 18 || minutes > 59

  (zone.start_with?("-") ? -1 : 1) * (hours * 3600 + minutes * 60)
end

# == The document ===============================================================================

def base_fields
  {
    "ecs" => { "version" => "8.11.0" },
    "event" => { "kind" => "event", "category" => ["web"], "type" => ["info"], "module" => "o365",
                 "dataset" => "o365.audit", "ingested" => now },
    "data_stream" => { "type" => "logs", "dataset" => "o365.audit", "namespace" => @namespace },
    "tags" => %w[forwarded o365-audit]
  }
end

# `doc` is the document in the making, `raw` what is left of the event; what moves is deleted from
# `raw`. The order follows the integration: a later step reads what an earlier one set.
def document(raw)
  doc = base_fields
  code = @codes[text(raw["RecordType"]).to_s.strip]
  doc["event"]["code"] = code if code
  raw_outcome = outcome(raw, code)
  identity(doc, raw)
  classify(doc, raw, code)
  name_value_objects(doc, raw)
  parse_texts(doc, raw)
  alert(doc, raw) if code == "SecurityComplianceAlerts"
  dlp(doc, raw) if dlp?(code)
  by_code(doc, raw, code)
  email(doc, raw, code)
  addresses(doc, raw, code)
  organization(doc, raw, code)
  users(doc, raw)
  doc["event"]["outcome"] = raw_outcome
  severity(doc, raw)
  to_text(raw)
  related(doc, raw, code)
  put(doc, "o365", "audit", shape_hash(raw, @audit_node))
  other = unmapped(doc["o365"]["audit"], @audit_node, [0])
  put(doc, "o365", "other", other)
  doc
end

def put(doc, *path, name, value)
  return if value.nil? || value == "" || value == []

  path.inject(doc) { |at, key| at[key] ||= {} }[name] = value
end

def dig(doc, *path)
  path.inject(doc) { |at, key| at.is_a?(Hash) ? at[key] : nil }
end

# Takes a scalar out of `raw`; what is no scalar or is empty stays where it is.
def move(raw, key)
  value = text(raw[key])
  raw.delete(key) if value
  value && value.dup
end

def identity(doc, raw)
  doc["event"]["id"] = move(raw, "Id")
  put(doc, "event", "provider", move(raw, "Workload"))
  put(doc, "user_agent", "original", move(raw, "UserAgent"))
  context = raw["AppAccessContext"]
  put(doc, "session", "id", text(dig(context, "AADSessionId")))
  put(doc, "token", "id", text(dig(context, "UniqueTokenId")))
  put(doc, "application", "name", text(raw["ApplicationDisplayName"]))
  put(doc, "file", "size", whole_number(raw["FileSizeBytes"]))
end

def whole_number(value)
  value = text(value)
  return nil unless value && value.match?(/\A[+-]?\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,2})?\z/)

  number = BigDecimal(value).to_i
  number.bit_length > 63 ? nil : number
end

def classify(doc, raw, code)
  action = move(raw, "Operation")
  put(doc, "event", "action", @actions["#{code}|#{action}"] || action)
  category = doc["event"]["category"]
  type = doc["event"]["type"]
  case code
  when "AzureActiveDirectoryStsLogon"
    category << "authentication"
    type.push("start", "access")
  when "ComplianceDLPSharePoint", "ComplianceDLPExchange"
    category << "file"
    type << "access"
  when "ExchangeItem"
    category << "email"
  end
  doc["event"]["kind"] = "alert" if code == "SecurityComplianceAlerts" || dlp?(code)
  ["*|#{action}", "#{code}|#{action}"].each do |key|
    categories, types = @operations[key]
    category.concat(categories || []).uniq!
    type.concat(types || []).uniq!
  end
end

def dlp?(code)
  %w[ComplianceDLPSharePoint ComplianceDLPExchange].include?(code)
end

# The integration reads ResultStatus alone and calls all else success. Two words more are read
# here (Failure, Successful: both seen), and a UserLoginFailed is a failure: two of three such
# events say ResultStatus "Success", which tells of the request, not of the sign-in.
def outcome(raw, code)
  return dlp_outcome(raw) if dlp?(code) && raw["PolicyDetails"].is_a?(Array)
  return "failure" if raw["Operation"] == "UserLoginFailed"

  %w[failed false failure].include?(text(raw["ResultStatus"]).to_s.strip.downcase) ? "failure" : "success"
end

def dlp_outcome(raw)
  blocked = policy_rules(raw).any? { |rule| texts(rule["Actions"]).include?("BlockAccess") }
  return "success" if !blocked || raw["Operation"] == "DlpRuleUndo"
  return "failure" if raw["Operation"] == "DlpInfo"

  [nil, "", {}, []].include?(raw["ExceptionInfo"]) ? "failure" : "success"
end

def policy_rules(raw)
  hashes(raw["PolicyDetails"]).flat_map { |policy| hashes(policy["Rules"]) }
end

def severity_number(value)
  { "none" => 0, "informational" => 1, "low" => 2, "medium" => 3, "high" => 4 }[text(value).to_s.downcase]
end

def severity(doc, raw)
  number = severity_number(raw["Severity"])
  put(doc, "event", "severity", number) if number && number > 0 && !doc["event"].key?("severity")
end

# -- lists of Name and Value --

def name_value_objects(doc, raw)
  %w[Parameters ExtendedProperties].each do |key|
    raw[key] = name_value(raw[key]) { |item| item["Value"] } if raw.key?(key)
    raw.delete(key) if raw[key].nil?
  end
  agent = text(dig(raw["ExtendedProperties"], "UserAgent"))
  put(doc, "user_agent", "original", agent) && raw["ExtendedProperties"].delete("UserAgent") if agent
  modified_properties(raw)
  links(raw)
end

# A list of {Name, Value} as an object; the last of one name wins, null goes, as the integration
# has it. What is no such item stays as text under _raw, so that nothing is lost.
def name_value(value, clean_name = nil)
  return value if value.is_a?(Hash)
  return value.nil? ? nil : { "_raw" => value } unless value.is_a?(Array)

  found = {}
  value.each do |item|
    name = item.is_a?(Hash) ? text(item["Name"]) : nil
    if name
      inner = yield item
      found[field_name(clean_name ? name.gsub(/[ .]/, "_") : name)] = inner unless inner.nil?
    elsif !item.nil?
      (found["_raw"] ||= []) << scalar_text(item)
    end
  end
  found
end

def modified_properties(raw)
  value = raw["ModifiedProperties"]
  if value.is_a?(Array)
    value = value.map { |item| item.is_a?(String) && !item.strip.empty? ? { "Name" => item } : item }
  end
  value = name_value(value, true) do |item|
    item.select { |key, inner| !inner.nil? && %w[NewValue OldValue].include?(key) }
  end
  value.nil? || value.empty? || value["_raw"] == "" ? raw.delete("ModifiedProperties") : raw["ModifiedProperties"] = value
end

def links(raw)
  return unless raw["AlertLinks"].is_a?(Array)

  found = raw["AlertLinks"].map { |link| link.is_a?(Hash) ? text(link["AlertLinkHref"]) : text(link) }.compact
  found.empty? ? raw.delete("AlertLinks") : raw["AlertLinks"] = found
end

# -- JSON in texts, and names that differ by shape --

def parse_texts(doc, raw)
  alert_data(doc, raw) if raw.key?("Data")
  %w[OperationProperties AdditionalInfo].each { |key| parse_text(doc, raw, key) }
  raw["Actions"] = raw["Actions"].map { |item| parsed(item) || item } if raw["Actions"].is_a?(Array)
  raw["MessageObject"] = raw.delete("Message") if objects?(raw["Message"])
  raw["SenderEntity"] = raw.delete("Sender") if objects?(raw["Sender"])
  raw["ExceptionInfo"] = { "Reason" => raw["ExceptionInfo"] } if raw["ExceptionInfo"].is_a?(String)
  platforms = %w[Unknown Windows MacOS iOS Android] + ["Web Browser"]
  platform = text(raw["Platform"])
  raw["Platform"] = platforms[platform.to_i] if platform && platform.match?(/\A[0-5]\z/)
end

def objects?(value)
  value.is_a?(Hash) || (value.is_a?(Array) && value.any? { |inner| inner.is_a?(Hash) })
end

def parse_text(doc, raw, key)
  return unless raw[key].is_a?(String) && !raw[key].strip.empty?

  value = parsed(raw[key])
  if value
    raw[key] = value
  else
    raw[key] = { "_raw" => raw[key] }
    put(doc, "error", "message", (dig(doc, "error", "message") || []) + ["#{key} is no JSON"])
  end
end

def alert_data(doc, raw)
  data = parsed(raw["Data"])
  return raw["Data"] = { "_raw" => raw["Data"] } unless data.is_a?(Hash)

  raw["Data"] = { "flattened" => data }
  @data_keys.each { |key| raw["Data"][key] = data[key] unless data[key].nil? || data[key] == "" }
  put(doc, "user", "email", text(data["f3u"]))
  put(doc, "email", "sender", "address", texts(data["tsd"]))
  put(doc, "email", "to", "address", texts(data["trc"]))
  put(doc, "email", "local_id", texts(data["aii"]))
  put(doc, "email", "message_id", texts(data["imsgid"]))
  put(doc, "email", "subject", texts(data["ms"]))
end

# -- alerts and data loss prevention --

def alert(doc, raw)
  put(doc, "message", move(raw, "Comments"))
  { "name" => "Name", "id" => "PolicyId", "category" => "Category", "ruleset" => "EntityType",
    "description" => "AlertEntityId" }.each { |field, key| put(doc, "rule", field, move(raw, key)) }
  put(doc, "rule", "reference", texts(raw.delete("AlertLinks"))) if raw["AlertLinks"].is_a?(Array)
end

def dlp(doc, raw)
  dlp_file(doc, raw["SharePointMetaData"])
  dlp_mail(doc, raw["ExchangeMetaData"])
  rules = policy_rules(raw).select { |rule| text(rule["RuleId"]) && text(rule["RuleName"]) }
  put(doc, "rule", "id", [move(raw, "PolicyId"), *rules.map { |rule| text(rule["RuleId"]) }].compact)
  put(doc, "rule", "name", [move(raw, "PolicyName"), *rules.map { |rule| text(rule["RuleName"]) }].compact)
  put(doc, "event", "severity", policy_rules(raw).map { |rule| severity_number(rule["Severity"]) }.compact.max)
end

def dlp_file(doc, meta)
  return unless meta.is_a?(Hash)

  put(doc, "file", "name", move(meta, "FileName"))
  put(doc, "url", "original", move(meta, "FilePathUrl"))
  put(doc, "file", "inode", move(meta, "UniqueId") || move(meta, "UniqueID"))
  put(doc, "file", "owner", move(meta, "FileOwner"))
  put(doc, "file", "mtime", event_time(meta["LastModifiedTime"])[0])
  put(doc, "user", "id", move(meta, "From"))
end

def dlp_mail(doc, meta)
  return unless meta.is_a?(Hash)

  put(doc, "source", "user", "email", move(meta, "From"))
  put(doc, "message", move(meta, "Subject"))
  put(doc, "destination", "user", "email", %w[To CC BCC].flat_map { |key| texts(meta[key]) })
end

# -- what depends on the record type --

def by_code(doc, raw, code)
  case code
  when "SharePointFileOperation", "SharePointSharingOperation" then sharepoint_file(doc, raw)
  when "ExchangeItem" then exchange_item(doc, raw)
  when "ExchangeItemAggregated" then aggregated(raw)
  when "Yammer" then yammer(doc, raw)
  when "MicrosoftTeams" then teams(doc, raw)
  when "AzureActiveDirectory" then put(doc, "user", "target", "id", text(raw["ObjectId"]))
  end
end

def sharepoint_file(doc, raw)
  put(doc, "url", "original", move(raw, "ObjectId"))
  put(doc, "file", "directory", move(raw, "SourceRelativeUrl"))
  put(doc, "file", "name", move(raw, "SourceFileName"))
  put(doc, "file", "extension", move(raw, "SourceFileExtension"))
end

def exchange_item(doc, raw)
  put(doc, "user", "email", move(raw, "MailboxOwnerUPN"))
  put(doc, "user", "full_name", move(raw, "LogonUserDisplayName"))
  put(doc, "process", "name", move(raw, "ClientProcessName"))
  put(doc, "user", "id", text(raw["LogonUserSid"])) unless text(raw["UserId"])
  attachments = attachments(text(dig(raw["Item"], "Attachments")).to_s)
  put(doc, "email", "attachments", attachments)
end

# "a.png (8192b); b (1).docx (73728b)": the last "(digits b)" before a semicolon is the size.
def attachments(text)
  text.scan(/\s*(.+?)\s*\((\d{1,18})b\)\s*(?:;|\z)/m).map do |name, size|
    extension = name[/\.([^.\s]+)\z/, 1]
    file = { "name" => name, "size" => size.to_i }
    file["extension"] = extension if extension
    { "file" => file }
  end
end

def aggregated(raw)
  { "Messages" => "ExchangeAggregatedMessages", "Folders" => "ExchangeAggregatedFolders" }.each do |from, to|
    raw[to] = whole_sizes(raw.delete(from)) if raw.key?(from)
  end
end

def whole_sizes(value)
  case value
  when Array then value.map { |inner| whole_sizes(inner) }
  when Hash
    value.each_with_object({}) do |(key, inner), found|
      found[key] = key == "SizeInBytes" ? whole_number(inner) || inner : whole_sizes(inner)
    end
  else value
  end
end

def yammer(doc, raw)
  put(doc, "user", "email", move(raw, "ActorUserId"))
  yammer_id = move(raw, "ActorYammerUserId")
  put(doc, "user", "id", yammer_id) unless text(raw["UserId"])
  put(doc, "file", "inode", move(raw, "FileId"))
  put(doc, "file", "name", move(raw, "FileName"))
  put(doc, "group", "name", move(raw, "GroupName"))
  put(doc, "destination", "user", "email", move(raw, "TargetUserId"))
  put(doc, "destination", "user", "id", move(raw, "TargetYammerUserId"))
end

def teams(doc, raw)
  put(doc, "group", "name", move(raw, "TeamName"))
  put(doc, "user", "target", "id", move(raw, "ObjectId")) if dig(doc, "event", "action") == "deleted-user-account"
end

# Lists, as the integration's newer versions write them; the raw keys stay.
def email(doc, raw, code)
  put(doc, "email", "message_id", texts(raw["InternetMessageId"]))
  put(doc, "email", "local_id", texts(raw["NetworkMessageId"]))
  put(doc, "email", "sender", "address", texts(raw["P1Sender"]))
  put(doc, "email", "from", "address", texts(raw["P2Sender"]))
  recipients = raw["Recipients"]
  recipients = parsed(recipients) || recipients if recipients.is_a?(String) && recipients.start_with?("[")
  put(doc, "email", "to", "address", texts(recipients))
  put(doc, "email", "subject", texts(raw["Subject"]))
  put(doc, "email", "subject", texts(dig(raw["Item"], "Subject"))) if code == "ExchangeItem"
end

# -- addresses --

# ClientIPAddress before ClientIP before ActorIpAddress; the one that is used moves, the others
# stay. "<null>" is what an anonymised source writes for none.
def addresses(doc, raw, code)
  key = %w[ClientIPAddress ClientIP ActorIpAddress].find { |name| address_text(raw[name]) }
  client(doc, address(address_text(raw.delete(key)))) if key
  server(doc, move(raw, "OriginatingServer")) if %w[ExchangeAdmin ExchangeItem].include?(code)
end

def address_text(value)
  value = value.first if value.is_a?(Array)
  value = text(value)
  value = value && value.strip
  value == "<null>" ? nil : value
end

def client(doc, found)
  put(doc, "client", "address", found["address"])
  put(doc, "client", "domain", found["domain"])
  %w[client source].each do |side|
    put(doc, side, "ip", found["ip"])
    put(doc, side, "port", found["port"])
  end
  return unless found["ip"]

  put(doc, "network", "type", found["ip"].include?(":") ? "ipv6" : "ipv4")
  put(doc, "labels", "ip_scope", scope(found["ip"]))
end

# What a text of ClientIP says: {"address", "ip", "port", "domain"}. An "ip" is always one that
# Elasticsearch's ip type takes.
def address(whole)
  bare = whole.start_with?("[") && whole.end_with?("]") ? whole[1..-2].strip : whole
  ip_address(bare, nil) || with_port(bare) || named(bare) || host(bare, nil) || { "address" => whole }
end

def with_port(value)
  parts = value.match(/\A\[([^\[\]]+)\](?::(\d{1,5}))?\z/) || value.match(/\A([^\[\]:\s]+):(\d{1,5})\z/)
  return nil if parts.nil? || parts[2].to_i > 65_535

  port = parts[2] && parts[2].to_i
  ip_address(parts[1], port) || host(parts[1], port)
end

def named(value)
  parts = value.match(/\A(.*\S)\s*\(\s*([^()\s]+)\s*\)\z/m)
  found = parts && ip_address(parts[2], nil)
  found && found.merge("domain" => parts[1].strip)
end

def host(value, port)
  value.match?(/\A[^\s:\[\]()]+\z/) ? { "domain" => value, "port" => port } : nil
end

def ip_address(value, port)
  ip = ip(value)
  ip && { "address" => value.include?("%") ? value : ip, "ip" => ip, "port" => port }
end

# The address without zone, and an IPv4 address that is written as IPv6 as IPv4; nil if none.
def ip(value)
  return value if ipv4?(value)

  value = value.sub(/%[A-Za-z0-9_.-]{1,32}\z/, "")
  groups = ipv6(value)
  return nil unless groups
  return value unless groups[0, 6] == [0, 0, 0, 0, 0, 0xffff]

  [groups[6] >> 8, groups[6] & 255, groups[7] >> 8, groups[7] & 255].join(".")
end

def ipv4?(value)
  value.match?(/\A(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!\z)|\z)){4}\z/)
end

# Eight numbers, or nil.
def ipv6(value)
  return nil unless value.length.between?(2, 45) && value.match?(/\A[0-9A-Fa-f:.]+\z/) && value.include?(":")

  tail = value[/[^:]*\z/]
  if tail.include?(".")
    return nil unless ipv4?(tail)

    a, b, c, d = tail.split(".").map(&:to_i)
    value = value[0, value.length - tail.length] + format("%x:%x", a << 8 | b, c << 8 | d)
  end
  halves = value.split("::", -1)
  return nil if halves.size > 2

  left, right = halves.map { |half| half.empty? ? [] : half.split(":", -1) }
  groups = left + (right || [])
  return nil unless groups.all? { |group| group.match?(/\A[0-9A-Fa-f]{1,4}\z/) }
  return nil if right ? groups.size > 7 : groups.size != 8

  (left + ["0"] * (8 - groups.size) + (right || [])).map(&:hex)
end

# RFC 6890's ranges that no GeoIP database can know; documentation ranges count as public, they
# never occur. `labels.ip_scope` is what tells them apart, and what the GeoIP filters ask.
def scope(ip)
  return scope4(ip.split(".").map(&:to_i)) unless ip.include?(":")

  groups = ipv6(ip)
  return "unspecified" if groups.all?(&:zero?)
  return "loopback" if groups == [0, 0, 0, 0, 0, 0, 0, 1]
  return "link-local" if groups[0] & 0xffc0 == 0xfe80
  return "multicast" if groups[0] & 0xff00 == 0xff00

  groups[0] & 0xfe00 == 0xfc00 ? "private" : "public"
end

def scope4(parts)
  first, second = parts
  return "unspecified" if first == 0
  return "loopback" if first == 127
  return "link-local" if first == 169 && second == 254
  return "multicast" if first >= 224
  return "shared" if first == 100 && second.between?(64, 127)
  return "private" if first == 10 || (first == 172 && second.between?(16, 31)) || (first == 192 && second == 168)

  "public"
end

# "NAME (version or address)", often with a line end behind it.
def server(doc, value)
  return unless value

  value = value.gsub(/[\r\n]+/, "").strip
  parts = value.match(/\A(.*?)\s*\(([^()]*)\)\z/)
  put(doc, "server", "domain", parts[1]) if parts
  put(doc, "server", "address", parts ? parts[2].strip : value)
  found = ip(parts ? parts[2].strip : value)
  put(doc, "server", "ip", found)
  put(doc, "destination", "ip", found)
end

# -- who --

def organization(doc, raw, code)
  id = move(raw, "OrganizationId")
  put(doc, "organization", "id", id && id.downcase)
  put(doc, "host", "id", id && id.downcase)
  put(doc, "organization", "name", move(raw, "OrganizationName")) if %w[ExchangeAdmin ExchangeItem].include?(code)
  put(doc, "organization", "name", @tenants[id.downcase]) if id
end

def users(doc, raw)
  put(doc, "user", "id", text(raw["UserId"]))
  [doc["user"], dig(doc, "user", "target"), dig(doc, "destination", "user"), dig(doc, "source", "user")].each do |user|
    split_user(user) if user.is_a?(Hash)
  end
  put(doc, "host", "name", dig(doc, "organization", "name") || dig(doc, "user", "domain"))
end

# Exactly one @ with something on both sides: anything else is an id and no more (SIDs, GUIDs,
# "NT AUTHORITY\SYSTEM (w3wp)").
def split_user(user)
  parts = user["id"].is_a?(String) && user["id"].split("@", -1)
  return unless parts && parts.size == 2 && parts.none?(&:empty?)

  user["email"] = user["id"]
  user["name"] = parts[0]
  user["domain"] = parts[1]
end

def related(doc, raw, code)
  people = [dig(doc, "user", "name"), dig(doc, "user", "id"), dig(doc, "user", "email"),
            dig(doc, "user", "target", "name"), dig(doc, "file", "owner"), *texts(dig(raw["Parameters"], "User"))]
  people.concat(hashes(raw["Members"]).map { |member| text(member["UPN"]) }) if code == "MicrosoftTeams"
  people.concat(%w[f3u suid tsd trc].flat_map { |key| texts(dig(raw["Data"], key)) }
                                    .select { |name| name.match?(/\A[^@\s;,]+@[^@\s;,]+\z/) })
  put(doc, "related", "user", people.compact.uniq)
  ips = [dig(doc, "client", "ip"), dig(doc, "server", "ip")] +
        %w[SenderIp SenderIP].map { |key| ip(text(raw[key]).to_s.strip) }
  put(doc, "related", "ip", ips.compact.uniq)
  hosts = [dig(doc, "organization", "name"), dig(doc, "user", "domain"), dig(doc, "server", "domain")]
  put(doc, "related", "hosts", hosts.compact.uniq)
end

# Codes are words, not quantities: the rules compare them with "0", in quotes.
def to_text(raw)
  %w[RecordType UserType AzureActiveDirectoryEventType Version InternalLogonType LogonType
     ActorYammerUserId YammerNetworkId ListBaseType].each do |key|
    raw[key] = number_text(raw[key]) if raw[key].is_a?(Numeric)
  end
  %w[Actor Target].each do |key|
    hashes(raw[key]).each { |item| item["Type"] = number_text(item["Type"]) if item["Type"].is_a?(Numeric) }
  end
end

# == Shape ======================================================================================

# Makes each path have the one shape that the template maps, so that no event can be refused:
# a scalar where an object is mapped goes to its _raw, an object where a scalar is mapped goes to
# a name of its own (Sender -> SenderObject). What is not mapped may have any shape.
def shape_hash(hash, node)
  fields = node["properties"] || {}
  found = {}
  hash.each do |name, value|
    inner = fields[name]
    if inner.nil? then found[name] = value
    elsif inner["properties"] then found[name] = shape_object(value, inner)
    elsif inner["type"] == "flattened" then found[name] = shape_flattened(value)
    else shape_leaf(found, name, value, inner)
    end
  end
  found
end

def shape_object(value, node)
  case value
  when Hash then shape_hash(value, node)
  when Array then value.map { |inner| inner.nil? ? inner : shape_object(inner, node) }
  when nil then nil
  else { "_raw" => value }
  end
end

def shape_leaf(found, name, value, node)
  fits, rest = Array(value.is_a?(Hash) ? [value] : value).flatten.partition { |inner| fits?(inner, node) }
  if rest.empty?
    found[name] = value
  else
    found[name] = fits unless fits.empty?
    found[free_name(found, "#{name}Object")] = rest.size == 1 ? rest[0] : rest
  end
end

# A boolean field is the one scalar type that refuses a document for a word ("True") before
# Elasticsearch 8.9; numbers, dates and addresses have ignore_malformed.
def fits?(value, node)
  return false if value.is_a?(Hash)

  node["type"] != "boolean" || [nil, true, false, "true", "false"].include?(value)
end

def free_name(found, name)
  name += "_" while found.key?(name)
  name
end

# A flattened field takes objects only, 20 levels of them, and no value of more than Lucene's term.
def shape_flattened(value, depth = 0)
  case value
  when Hash
    return { "_raw" => json(value) } if depth > 15

    value.each_with_object({}) { |(key, inner), found| found[key] = inside_flattened(inner, depth + 1) }
  when Array then value.map { |inner| shape_flattened(inner, depth) }
  when nil then nil
  else { "_raw" => value }
  end
end

def inside_flattened(value, depth)
  case value
  when Hash then shape_flattened(value, depth)
  when Array then value.map { |inner| inside_flattened(inner, depth) }
  else value
  end
end

# What the mapping does not know, once more, for the one flattened field o365.other: there it can
# be searched. Bounded: 1,000 values an event, 8 levels, nothing that would not be indexed anyway.
def unmapped(value, node, count)
  return value.map { |inner| unmapped(inner, node, count) }.compact if value.is_a?(Array)
  return nil unless value.is_a?(Hash)

  fields = node["properties"]
  found = value.each_with_object({}) do |(name, inner), open|
    known = fields[name]
    next if known && known["properties"].nil?

    inner = known ? unmapped(inner, known, count) : bounded(inner, 1, count)
    open[name] = inner unless inner.nil? || inner == [] || inner == {}
  end
  found.empty? ? nil : found
end

def bounded(value, depth, count)
  case value
  when Hash
    return nil if depth > 8

    value.each_with_object({}) do |(name, inner), found|
      inner = bounded(inner, depth + 1, count)
      found[name] = inner unless inner.nil? || inner == [] || inner == {}
    end
  when Array then value.flatten.map { |inner| bounded(inner, depth, count) }.compact
  when nil, "" then nil
  else
    (count[0] += 1) > 1000 || (value.is_a?(String) && value.length > 4096) ? nil : value
  end
end

# == Tests that Logstash runs at each start (a failing one stops the start) ======================

test "a sign-in" do
  parameters { {} }
  in_event do
    { "o365_line" => { "Id" => "a", "RecordType" => 15, "Operation" => "UserLoggedIn",
                       "CreationTime" => "2026-05-23T09:58:14", "UserId" => "ada@emu.test",
                       "ClientIP" => "[2001:db8:1::5]:50123" } }
  end
  expect("becomes an ECS document") do |events|
    event = events.first
    event.get("[event][code]") == "AzureActiveDirectoryStsLogon" &&
      event.get("[source][ip]") == "2001:db8:1::5" && event.get("[user][name]") == "ada"
  end
  expect("leaves nothing of the line") { |events| events.first.get("o365_line").nil? }
end

test "a line that is no JSON" do
  parameters { {} }
  in_event { { "message" => "{half a rec", "tags" => ["_jsonparsefailure"] } }
  expect("is kept with its text") { |events| events.first.get("[event][original]") == "{half a rec" }
end
