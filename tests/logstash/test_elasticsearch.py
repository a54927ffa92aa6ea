"""The template and the documents on a real Elasticsearch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from logstash.build_dashboard import AUDIT, objects
from logstash.ecs_cases import ACCEPTANCE
from logstash.ecs_harness import ROOT, Filtered, RubyFilter, Server, enrich
from logstash.ecs_rules import MUST_BE_MAPPED, RULES, Rule
from logstash.ecs_traps import ADDRESSES, conflicts, event, texts

pytestmark = [
    pytest.mark.timeout(180),
    # One server for all of these: with pytest -n, give --dist loadgroup.
    pytest.mark.xdist_group("elasticsearch"),
]
INDEX = "logs-o365.audit-poller-2026.05"


def all_lines() -> list[str]:
    """Give every event of the tables as a line, Ids unique."""
    lines = [json.dumps(case.event) for case in ACCEPTANCE]
    lines += [json.dumps(trap) for trap in conflicts()]
    lines += texts().values()
    lines += [
        json.dumps(event(f"address-{number}", ClientIP=form))
        for number, form in enumerate(ADDRESSES)
    ]
    return lines


@pytest.fixture(scope="session")
def indexed(ruby: RubyFilter, server: Server) -> list[Filtered]:
    """Give all events, indexed once; none may be refused."""
    found = ruby.lines(all_lines())
    assert {one.route for one in found} == {"audit"}
    results = server.create(
        INDEX, [(one.id, json.dumps(one.document)) for one in found]
    )
    refused = [
        (one.id, result.get("error"))
        for one, result in zip(found, results, strict=True)
        if result["status"] != 201
    ]
    assert refused == []
    return found


def test_no_event_is_refused(indexed: list[Filtered], server: Server) -> None:
    count = server.call("GET", f"{INDEX}/_count")["count"]
    assert count == len(indexed) > 2000


def test_a_redelivery_changes_nothing(indexed: list[Filtered], server: Server) -> None:
    again = [(one.id, json.dumps(one.document)) for one in indexed]
    statuses = [result["status"] for result in server.create(INDEX, again)]
    assert set(statuses) == {409}
    assert server.call("GET", f"{INDEX}/_count")["count"] == len(indexed)


@pytest.fixture(scope="session")
def tripped(ruby: RubyFilter, server: Server) -> str:
    """Give the index with one event for each rule, its Id the rule's number."""
    index = "logs-o365.audit-poller-2026.06"
    events = [
        rule.event | {"Id": f"rule-{number}", "CreationTime": "2026-06-01T00:00:00"}
        for number, rule in enumerate(RULES)
    ]
    documents = [enrich(document) for document in ruby.events(events)]
    bodies = [(document["event"]["id"], json.dumps(document)) for document in documents]
    results = server.create(index, bodies)
    assert [result["status"] for result in results] == [201] * len(RULES)
    return index


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_live_rule_finds_its_event(tripped: str, server: Server, rule: Rule) -> None:
    assert f"rule-{RULES.index(rule)}" in server.found(tripped, rule.query)


def test_rules_of_esql_and_eql_know_their_fields(tripped: str, server: Server) -> None:
    fields = ",".join(MUST_BE_MAPPED)
    known = server.call("GET", f"{tripped}/_field_caps?fields={fields}")["fields"]
    assert set(MUST_BE_MAPPED) <= set(known)
    for path in MUST_BE_MAPPED:
        (kind,) = known[path]
        assert kind in {"keyword", "ip", "long"}


def test_what_no_field_knows_can_be_searched(
    indexed: list[Filtered], server: Server
) -> None:
    assert indexed
    for query in (
        {"term": {"o365.other.Unknown": "text"}},
        {"term": {"o365.other.Unknown.a.b": "c"}},
        {"term": {"o365.other.Parameters.Included Props": "y"}},
        {"term": {"o365.audit.Members.DisplayName": "Help Desk"}},
    ):
        assert server.found(INDEX, query), query


def test_only_ip_fields_that_hold_one(indexed: list[Filtered], server: Server) -> None:
    """No address was left out as malformed: the ruby filter lets only real ones through."""
    assert indexed
    for field in ("client.ip", "source.ip", "server.ip", "related.ip", "@timestamp"):
        assert not server.found(INDEX, {"term": {"_ignored": field}}), field


def test_the_month_is_the_events_own(ruby: RubyFilter, server: Server) -> None:
    """A second delivery in another month meets the first in its index."""
    late = event("late", CreationTime="2026-04-30T23:59:59")
    (found,) = ruby.lines([json.dumps(late)])
    body = json.dumps(found.document)
    index = f"logs-o365.audit-poller-{found.month}"
    assert index == "logs-o365.audit-poller-2026.04"
    assert server.create(index, [(found.id, body)])[0]["status"] == 201
    assert server.create(index, [(found.id, body)])[0]["status"] == 409


REPORT = {
    "o365_poller": {
        "run": "7f3a",
        "start": "2026-05-23T10:00:00Z",
        "end": "2026-05-23T10:00:09Z",
        "exit_code": 3,
        "content_types": {
            "Audit.AzureActiveDirectory": {
                "window": {
                    "start": "2026-05-23T09:45:00Z",
                    "end": "2026-05-23T10:00:00Z",
                },
                "blobs": 3,
                "events": 42,
                "pending": 1,
                "lost": 0,
                "lag_seconds": 12.5,
            },
            "DLP.All": {"blobs": 0, "events": 0, "pending": 0, "lost": 2, "lag": None},
        },
    }
}


@pytest.fixture(scope="session")
def health(ruby: RubyFilter, server: Server) -> str:
    """Give the pattern of the runs and rejects, with some of each."""
    lines = [json.dumps(REPORT), '{"half": ', "[1, 2]", '{"UserId": "no id"}', "\u0000"]
    for found in ruby.lines(lines):
        index = "o365-poller-rejects"
        bodies = [(found.id, json.dumps(document)) for document in found.documents]
        if found.route == "run":
            index = f"o365-poller-runs-{found.month}"
            bodies = [
                (document["o365_poller"]["part"]["id"], json.dumps(document))
                for document in found.documents
            ]
        results = server.create(index, bodies)
        assert [result["status"] for result in results] == [201] * len(bodies)
        again = server.create(index, bodies)
        assert [result["status"] for result in again] == [409] * len(bodies)
    return "o365-poller-*"


def aggregation(columns: dict[str, Any]) -> dict[str, Any]:
    """Give a Lens layer's columns as Elasticsearch's aggregations, as Kibana asks."""
    metrics: dict[str, Any] = {}
    buckets: list[tuple[str, Any]] = []
    for name, column in columns.items():
        operation, field = column["operationType"], column["sourceField"]
        if operation == "terms":
            params = column["params"]
            by = params["orderBy"]["columnId"]
            counted = columns[by]["operationType"] == "count"
            order = {"_count" if counted else by: params["orderDirection"]}
            terms = {"field": field, "size": params["size"], "order": order}
            if params["missingBucket"]:
                terms["missing"] = "__missing__"
            buckets.append((name, {"terms": terms}))
        elif operation == "date_histogram":
            histogram = {"field": field, "calendar_interval": "1d"}
            buckets.append((name, {"date_histogram": histogram}))
        elif operation != "count":
            metrics[name] = {operation: {"field": field}}
    inner: dict[str, Any] = metrics
    for name, bucket in reversed(buckets):
        inner = {name: bucket | {"aggs": {**metrics, **inner}}, **metrics}
    return inner


LENSES = [one for one in objects() if one["type"] == "lens"]


@pytest.mark.parametrize("panel", LENSES, ids=lambda one: one["id"])
def test_a_panels_aggregation_answers(
    tripped: str, health: str, server: Server, panel: dict[str, Any]
) -> None:
    """With something in it, and no shard failing."""
    index = tripped if panel["references"][0]["id"] == AUDIT else health
    state = panel["attributes"]["state"]
    columns = state["datasourceStates"]["formBased"]["layers"]["layer"]["columns"]
    answer = server.call(
        "POST", f"{index}/_search", panel_search(state["query"]["query"], columns)
    )
    assert answer["_shards"]["failed"] == 0
    assert answer["hits"]["total"]["value"] > 0
    for name, found in answer.get("aggregations", {}).items():
        assert found.get("buckets") or found.get("value") is not None, name


def panel_search(query: str, columns: dict[str, Any]) -> dict[str, Any]:
    """Give a panel's request; its KQL is Lucene's syntax but for blanks and `and`."""
    text = query.replace(" : ", ":").replace(" and ", " AND ")
    return {
        "size": 0,
        "query": {"query_string": {"query": text or "*"}},
        "aggs": aggregation(columns),
    }


def test_the_maps_aggregation_answers(tripped: str, server: Server) -> None:
    (found,) = [one for one in objects() if one["type"] == "map"]
    layers = json.loads(found["attributes"]["layerListJSON"])
    grids = [one for one in layers if one["sourceDescriptor"]["type"] == "ES_GEO_GRID"]
    assert len(grids) == 2
    for layer in grids:
        field = layer["sourceDescriptor"]["geoField"]
        search = panel_search(layer["query"]["query"], {})
        search["aggs"] = {
            "grid": {
                "geotile_grid": {"field": field, "precision": 7},
                "aggs": {"centre": {"geo_centroid": {"field": field}}},
            }
        }
        answer = server.call("POST", f"{tripped}/_search", search)
        (tile,) = answer["aggregations"]["grid"]["buckets"]
        assert tile["doc_count"] > 0
        assert round(tile["centre"]["location"]["lat"], 2) == 51.51


def test_the_search_on_the_dashboard_finds_failures(
    tripped: str, server: Server
) -> None:
    (found,) = [one for one in objects() if one["type"] == "search"]
    source = json.loads(
        found["attributes"]["kibanaSavedObjectMeta"]["searchSourceJSON"]
    )
    search = panel_search(source["query"]["query"], {})
    assert server.found(tripped, search["query"])


def test_a_rejects_text_is_kept_whole(health: str, server: Server) -> None:
    answer = server.call(
        "POST",
        f"{health}/_search",
        {"query": {"term": {"event.kind": "pipeline_error"}}},
    )
    texts_ = {hit["_source"]["event"]["original"] for hit in answer["hits"]["hits"]}
    assert {'{"half": ', "[1, 2]", '{"UserId":"no id"}', "\u0000"} == texts_


def test_a_machine_that_cannot_is_told_why(tmp_path: Path) -> None:
    """No Maven, nothing kept: exit code 77, and the reason as the last line."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "elasticsearch")],
        env={"PATH": str(tmp_path), "O365_TEST_CACHE": str(tmp_path), "HOME": "/"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 77
    assert done.stderr.splitlines()[-1] == "no Maven (mvn) to fetch Elasticsearch with"
