"""The index templates against the field lists and the documents."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from logstash import build_template
from logstash.ecs_cases import ACCEPTANCE
from logstash.ecs_harness import LOGSTASH, RubyFilter, enrich
from logstash.ecs_rules import MUST_BE_MAPPED, RULES
from logstash.ecs_traps import ADDRESSES, conflicts, event, texts

Mapping = dict[str, Any]


def mappings(file: str) -> Mapping:
    """Give the mappings of a template file."""
    template = json.loads((LOGSTASH / file).read_text(encoding="utf-8"))
    found: Mapping = template["template"]["mappings"]
    return found


AUDIT = mappings("o365_template.json")


def field(path: str) -> Mapping | None:
    """Give the mapping of a dotted path, or nothing."""
    at: Mapping = AUDIT
    for name in path.split("."):
        at = at.get("properties", {}).get(name)
        if at is None:
            return None
    return at


def test_the_files_are_those_that_are_made() -> None:
    for path, text in build_template.files().items():
        assert path.read_text(encoding="utf-8") == text, "run build_template.py"


def test_nothing_is_mapped_by_guessing() -> None:
    for file in ("o365_template.json", "o365_poller_template.json"):
        found = mappings(file)
        assert found["dynamic"] is False
        assert found["date_detection"] is False
    audit = field("o365.audit")
    assert audit
    assert audit["dynamic"] is False
    assert field("o365.other.anything") is None


@pytest.mark.parametrize("path", MUST_BE_MAPPED)
def test_fields_of_esql_and_eql_are_mapped(path: str) -> None:
    kinds = {
        "source.ip": "ip",
        "source.as.number": "long",
        "file.size": "long",
    }
    found = field(path)
    assert found
    assert found["type"] == kinds.get(path, "keyword")


def test_types_that_rules_and_dashboards_rely_on() -> None:
    wanted = {
        "o365.audit.RecordType": "keyword",
        "o365.audit.UserType": "keyword",
        "o365.audit.LogonType": "keyword",
        "o365.audit.OperationCount": "long",
        "o365.audit.FileSizeBytes": "long",
        "o365.audit.Members": "flattened",
        "o365.audit.Actions": "flattened",
        "o365.audit.PolicyDetails": "flattened",
        "o365.audit.Data.flattened": "flattened",
        "o365.audit.Data.sip": "ip",
        "o365.audit.Data.at": "date",
        "o365.audit.ExternalAccess": "boolean",
        "o365.audit.ParticipantInfo.HasGuestUsers": "boolean",
        "o365.audit.ModifiedProperties.Role_DisplayName.NewValue": "keyword",
        "o365.other": "flattened",
        "source.geo.location": "geo_point",
        "client.ip": "ip",
        "related.ip": "ip",
        "event.ingested": "date",
        "@timestamp": "date",
    }
    found = {path: (field(path) or {}).get("type") for path in wanted}
    assert found == wanted


def leaves(node: Mapping, path: str = "") -> Iterator[tuple[str, Mapping]]:
    """Give each mapped leaf."""
    for name, inner in node.get("properties", {}).items():
        if "properties" in inner:
            yield from leaves(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", inner


def test_no_value_is_too_long_for_a_term() -> None:
    limits = {"keyword": 8191, "flattened": 4096}
    for path, found in leaves(AUDIT):
        if found["type"] in limits and found.get("index", True):
            assert found["ignore_above"] == limits[found["type"]], path


def test_no_value_is_refused_for_its_form() -> None:
    for path, found in leaves(AUDIT):
        if (
            found["type"] in {"long", "ip", "geo_point", "date"}
            and path != "@timestamp"
        ):
            assert found["ignore_malformed"] is True, path


def test_the_field_limit_is_far() -> None:
    def count(node: Mapping) -> int:
        return sum(1 + count(inner) for inner in node.get("properties", {}).values())

    assert count(AUDIT) < 1000


def values(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Give each leaf of a document with its path."""
    if isinstance(node, dict):
        for name, inner in node.items():
            yield from values(inner, f"{path}.{name}" if path else name)
    elif isinstance(node, list):
        for inner in node:
            yield from values(inner, path)
    else:
        yield path, node


def covered(path: str) -> str:
    """Give how a path is mapped: by itself, under a flattened field, or not at all."""
    names = path.split(".")
    for size in range(len(names), 0, -1):
        found = field(".".join(names[:size]))
        if found and "properties" not in found:
            return "mapped" if size == len(names) else str(found["type"])
    return "nowhere"


def test_each_field_is_mapped_or_under_a_flattened_one(ruby: RubyFilter) -> None:
    """And what is mapped nowhere is inside o365.audit and once more in o365.other."""
    events = [case.event for case in ACCEPTANCE]
    events += [rule.event | {"Id": f"r{n}"} for n, rule in enumerate(RULES)]
    for document in ruby.events(events):
        other = {path for path, _ in values(document["o365"].get("other", {}))}
        for path, value in values(enrich(document)):
            if path == "labels.ip_scope":
                continue
            how = covered(path)
            if how == "nowhere":
                assert path.startswith("o365.audit."), path
                if value not in ("", None):
                    assert path.removeprefix("o365.audit.") in other, path
            else:
                assert how in {"mapped", "flattened", "geo_point"}, (path, how)


def fits(value: Any, node: Mapping, path: str) -> None:
    """Hold a document's value to the shape that its mapping takes."""
    if isinstance(value, list):
        for inner in value:
            fits(inner, node, path)
    elif "properties" in node:
        assert value is None or isinstance(value, dict), path
        for name, inner in (value or {}).items():
            assert name.strip(), path
            assert "." not in name, path
            if name in node["properties"]:
                fits(inner, node["properties"][name], f"{path}.{name}")
    elif node["type"] == "flattened":
        assert value is None or isinstance(value, dict), path
    else:
        assert not isinstance(value, dict), path
        if node["type"] == "boolean":
            assert value in (None, True, False, "true", "false"), path


def test_every_trap_has_the_mapped_shape(ruby: RubyFilter) -> None:
    lines = [json.dumps(trap) for trap in conflicts()] + list(texts().values())
    lines += [json.dumps(event(f"a{n}", ClientIP=a)) for n, a in enumerate(ADDRESSES)]
    for found in ruby.lines(lines):
        fits(found.document, AUDIT, "")
