"""The saved objects: whole, consistent, and about fields that exist.

Kibana comes from no registry, so nobody imports the file here; test_elasticsearch.py runs each
panel's aggregation on a real server.
"""

import json
import re
from typing import Any

import pytest
from logstash import build_dashboard
from logstash.ecs_harness import LOGSTASH

Json = dict[str, Any]
LINES = (LOGSTASH / "o365_dashboard.ndjson").read_text(encoding="utf-8").splitlines()
OBJECTS: list[Json] = [json.loads(line) for line in LINES]
TEMPLATES = {
    build_dashboard.AUDIT: "o365_template.json",
    build_dashboard.HEALTH: "o365_poller_template.json",
}
FIELD = re.compile(r"([\w@.]+) : ")
NAMES = [f"{one['type']}/{one['id']}" for one in OBJECTS]


def kind_of(view: str, path: str) -> str | None:
    """Give the type that a data view's template maps for a field."""
    text = (LOGSTASH / TEMPLATES[view]).read_text(encoding="utf-8")
    at = json.loads(text)["template"]["mappings"]
    for name in path.split("."):
        at = at.get("properties", {}).get(name, {})
    found: str | None = at.get("type")
    return found


def inner_json(value: Any) -> Any:
    """Give an object with every string of JSON in it parsed."""
    if isinstance(value, dict):
        return {
            key: inner_json(json.loads(inner))
            if key.endswith("JSON") and isinstance(inner, str)
            else inner_json(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [inner_json(inner) for inner in value]
    return value


def views_of(one: Json) -> set[str]:
    """Give the data views that an object refers to."""
    return {r["id"] for r in one["references"] if r["type"] == "index-pattern"}


def queries(value: Any) -> list[str]:
    """Give every query's text inside an object."""
    if isinstance(value, dict):
        own = [value["query"]] if isinstance(value.get("query"), str) else []
        return own + [found for inner in value.values() for found in queries(inner)]
    if isinstance(value, list):
        return [found for inner in value for found in queries(inner)]
    return []


def test_the_file_is_the_one_that_is_made() -> None:
    text = (LOGSTASH / "o365_dashboard.ndjson").read_text(encoding="utf-8")
    assert text == build_dashboard.made(), "run build_dashboard.py"


def test_ids_are_unique_and_versions_stand() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for one in OBJECTS:
        assert one["coreMigrationVersion"]
        assert one["typeMigrationVersion"] == build_dashboard.TYPE_VERSIONS[one["type"]]
    titles = [
        one["attributes"]["title"] for one in OBJECTS if one["type"] == "dashboard"
    ]
    assert titles == ["Office 365: Logins", "Office 365: Collection health"]


@pytest.mark.parametrize("one", OBJECTS, ids=NAMES)
def test_every_reference_resolves_and_is_used(one: Json) -> None:
    known = set(NAMES)
    text = json.dumps(one["attributes"])
    for reference in one["references"]:
        assert f"{reference['type']}/{reference['id']}" in known
        name = reference["name"]
        if one["type"] == "dashboard":
            index, _, panel = name.partition(":")
            assert panel == f"panel_{index}"
            assert f'\\"panelRefName\\":\\"{panel}\\"' in text
        elif one["type"] == "lens":
            layer = name.removeprefix("indexpattern-datasource-layer-")
            state = one["attributes"]["state"]["datasourceStates"]["formBased"]
            assert layer in state["layers"]
        else:
            assert name in text
    used = re.findall(
        r'(?:indexPatternRefName|indexRefName|panelRefName)\\":\\"(.*?)\\"', text
    )
    names = {reference["name"].split(":")[-1] for reference in one["references"]}
    assert set(used) <= names
    assert inner_json(one)


@pytest.mark.parametrize("one", OBJECTS, ids=NAMES)
def test_every_field_is_mapped_with_a_fitting_type(one: Json) -> None:
    if one["type"] in {"index-pattern", "dashboard"}:
        return
    (view,) = views_of(one)
    whole = inner_json(one)
    for query in queries(whole["attributes"]):
        for path in FIELD.findall(query):
            assert kind_of(view, path) in {"keyword", "long", "boolean", "ip"}, path
    attributes = whole["attributes"]
    for layer in attributes.get("layerListJSON", []):
        source = layer["sourceDescriptor"]
        if source["type"] == "ES_GEO_GRID":
            assert kind_of(view, source["geoField"]) == "geo_point"
    for path in attributes.get("columns", []):
        assert kind_of(view, path), path
    layers = attributes.get("state", {}).get("datasourceStates", {})
    for layer in layers.get("formBased", {}).get("layers", {}).values():
        for column in layer["columns"].values():
            path = column["sourceField"]
            if path != "___records___":
                kind = kind_of(view, path)
                assert kind in fitting(column), (path, kind)


def fitting(column: Json) -> set[str]:
    """Give the field types that a Lens column can work on."""
    numbers = {"long", "double"}
    return {
        "terms": {"keyword", "long", "ip"},
        "date_histogram": {"date"},
        "sum": numbers,
        "max": numbers | {"date"},
        "min": numbers | {"date"},
    }[column["operationType"]]


def test_every_column_that_a_chart_names_exists() -> None:
    for one in OBJECTS:
        if one["type"] != "lens":
            continue
        state = one["attributes"]["state"]
        columns = set(
            state["datasourceStates"]["formBased"]["layers"]["layer"]["columns"]
        )
        text = json.dumps(state["visualization"])
        named = re.findall(
            r'"(?:columnId|xAccessor|splitAccessor|metricAccessor)": "(\w+)"', text
        )
        named += re.findall(r'"accessors": \["(\w+)"\]', text)
        assert named
        assert set(named) <= columns
        for column in state["datasourceStates"]["formBased"]["layers"]["layer"][
            "columns"
        ].values():
            by = column["params"].get("orderBy", {}).get("columnId")
            assert by is None or by in columns


def test_panels_do_not_overlap() -> None:
    for one in OBJECTS:
        if one["type"] != "dashboard":
            continue
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(one["attributes"]["panelsJSON"]):
            grid = panel["gridData"]
            cells = {
                (x, y)
                for x in range(grid["x"], grid["x"] + grid["w"])
                for y in range(grid["y"], grid["y"] + grid["h"])
            }
            assert max(x for x, _ in cells) < 48
            assert not cells & taken
            taken |= cells
