"""Writes logstash/o365_dashboard.ndjson: two data views, their panels, two dashboards.

Run by hand after a change: .venv/bin/python tests/logstash/build_dashboard.py
test_dashboard.py holds the file to what this makes. Written as Kibana 8.8 stores its objects
(the type versions below); an import migrates them forward.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[2] / "logstash" / "o365_dashboard.ndjson"
Json = dict[str, Any]

AUDIT = "o365-poller-audit"
HEALTH = "o365-poller-health"
TYPE_VERSIONS = {
    "index-pattern": "8.0.0",
    "search": "8.0.0",
    "lens": "8.6.0",
    "map": "8.4.0",
    "dashboard": "8.7.0",
}
SIGN_INS = "event.category : authentication"
FAILED = f"{SIGN_INS} and event.outcome : failure"
RUNS = "o365_poller.part.kind : run"
TYPES = "o365_poller.part.kind : content_type"
INDEX_REFERENCE = "kibanaSavedObjectMeta.searchSourceJSON.index"
GREEN, RED = "#209280", "#CC5642"


def text(value: object) -> str:
    """Give JSON inside a string, as saved objects have it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def saved(kind: str, name: str, attributes: Json, references: list[Json]) -> Json:
    """Give one saved object."""
    return {
        "id": name,
        "type": kind,
        "attributes": attributes,
        "references": references,
        "coreMigrationVersion": "8.8.0",
        "typeMigrationVersion": TYPE_VERSIONS[kind],
        "managed": False,
    }


def reference(name: str, kind: str, target: str) -> Json:
    """Give one reference."""
    return {"name": name, "type": kind, "id": target}


def data_view(name: str, title: str, pattern: str) -> Json:
    """Give a data view; its fields are read from the index by Kibana."""
    attributes = {"title": pattern, "name": title, "timeFieldName": "@timestamp"}
    return saved("index-pattern", name, attributes, [])


# -- columns of a Lens layer --


def column(operation: str, label: str, kind: str, source: str, **more: Any) -> Json:
    """Give one column."""
    return {
        "label": label,
        "customLabel": True,
        "dataType": kind,
        "operationType": operation,
        "sourceField": source,
        "isBucketed": False,
        "scale": "ratio",
        "params": {},
        **more,
    }


def count(label: str = "Events") -> Json:
    """Give the number of documents."""
    params = {"emptyAsNull": False}
    return column("count", label, "number", "___records___", params=params)


def metric(operation: str, source: str, label: str, kind: str = "number") -> Json:
    """Give max, min, sum or unique_count of a field."""
    return column(operation, label, kind, source, params={"emptyAsNull": False})


def over_time() -> Json:
    """Give the time axis."""
    params = {"interval": "auto", "includeEmptyRows": True, "dropPartials": False}
    return column(
        "date_histogram",
        "Time",
        "date",
        "@timestamp",
        isBucketed=True,
        scale="interval",
        params=params,
    )


def terms(source: str, label: str, size: int, by: str, **more: Any) -> Json:
    """Give the top values of a field, by another column."""
    params = {
        "size": size,
        "orderBy": {"type": "column", "columnId": by},
        "orderDirection": "desc",
        "otherBucket": more.pop("other", False),
        "missingBucket": more.pop("missing", False),
        "parentFormat": {"id": "terms"},
    }
    kind = more.pop("kind", "string")
    return column(
        "terms", label, kind, source, isBucketed=True, scale="ordinal", params=params
    )


# -- panels --


@dataclass(frozen=True)
class Panel:
    """One saved object on a dashboard, and its place: x, y, width, height of 48 columns."""

    kind: str
    name: str
    place: tuple[int, int, int, int]
    made: Json = field(repr=False)


def lens(
    name: str,
    title: str,
    place: tuple[int, int, int, int],
    view: str,
    query: str,
    columns: dict[str, Json],
    chart: str,
    state: Json,
) -> Panel:
    """Give a Lens panel of one layer, named "layer"."""
    layer = {
        "columns": columns,
        "columnOrder": list(columns),
        "incompleteColumns": {},
        "sampling": 1,
    }
    attributes = {
        "title": title,
        "description": "",
        "visualizationType": chart,
        "state": {
            "datasourceStates": {"formBased": {"layers": {"layer": layer}}},
            "visualization": state,
            "query": {"query": query, "language": "kuery"},
            "filters": [],
            "internalReferences": [],
            "adHocDataViews": {},
        },
    }
    references = [
        reference("indexpattern-datasource-layer-layer", "index-pattern", view)
    ]
    return Panel("lens", name, place, saved("lens", name, attributes, references))


def bars(
    name: str,
    title: str,
    place: tuple[int, int, int, int],
    view: str,
    query: str,
    columns: dict[str, Json],
    series: str = "bar_stacked",
) -> Panel:
    """Give a chart over columns named x, y and, for its colours, split."""
    layer: Json = {
        "layerId": "layer",
        "layerType": "data",
        "seriesType": series,
        "xAccessor": "x",
        "accessors": ["y"],
    }
    if "split" in columns:
        layer["splitAccessor"] = "split"
    state = {
        "preferredSeriesType": series,
        "legend": {"isVisible": True, "position": "right"},
        "valueLabels": "hide",
        "fittingFunction": "None",
        "layers": [layer],
    }
    return lens(name, title, place, view, query, columns, "lnsXY", state)


def table(
    name: str,
    title: str,
    place: tuple[int, int, int, int],
    view: str,
    query: str,
    columns: dict[str, Json],
    sort: str,
) -> Panel:
    """Give a table, its rows by one column, the largest first."""
    state = {
        "layerId": "layer",
        "layerType": "data",
        "columns": [{"columnId": key, "isTransposed": False} for key in columns],
        "sorting": {"columnId": sort, "direction": "desc"},
    }
    return lens(name, title, place, view, query, columns, "lnsDatatable", state)


def number(
    name: str,
    title: str,
    place: tuple[int, int, int, int],
    view: str,
    query: str,
    made: Json,
) -> Panel:
    """Give one large number."""
    state = {"layerId": "layer", "layerType": "data", "metricAccessor": "y"}
    return lens(name, title, place, view, query, {"y": made}, "lnsMetric", state)


def grid_layer(number_: int, label: str, query: str, colour: str) -> Json:
    """Give a map layer of clusters, sized by their number of events."""
    static = {"type": "STATIC", "options": {"color": colour}}
    return {
        "id": f"o365-layer-{number_}",
        "label": label,
        "type": "GEOJSON_VECTOR",
        "visible": True,
        "alpha": 0.7,
        "minZoom": 0,
        "maxZoom": 24,
        "includeInFitToBounds": True,
        "query": {"query": query, "language": "kuery"},
        "joins": [],
        "sourceDescriptor": {
            "id": f"o365-source-{number_}",
            "type": "ES_GEO_GRID",
            "indexPatternRefName": f"layer_{number_}_source_index_pattern",
            "geoField": "source.geo.location",
            "requestType": "point",
            "resolution": "COARSE",
            "metrics": [{"type": "count"}],
            "applyGlobalQuery": True,
            "applyGlobalTime": True,
            "applyForceRefresh": True,
        },
        "style": {
            "type": "VECTOR",
            "isTimeAware": True,
            "properties": {
                "fillColor": static,
                "lineColor": {"type": "STATIC", "options": {"color": "#FFFFFF"}},
                "lineWidth": {"type": "STATIC", "options": {"size": 1}},
                "iconSize": {
                    "type": "DYNAMIC",
                    "options": {
                        "minSize": 5,
                        "maxSize": 28,
                        "field": {"name": "doc_count", "origin": "source"},
                    },
                },
                "symbolizeAs": {"options": {"value": "circle"}},
                "icon": {"type": "STATIC", "options": {"value": "marker"}},
            },
        },
    }


def sign_in_map(place: tuple[int, int, int, int]) -> Panel:
    """Give the map: successes under failures, each in its colour."""
    base = {
        "id": "o365-layer-0",
        "label": None,
        "type": "EMS_VECTOR_TILE",
        "visible": True,
        "alpha": 1,
        "minZoom": 0,
        "maxZoom": 24,
        "includeInFitToBounds": True,
        "sourceDescriptor": {"type": "EMS_TMS", "isAutoSelect": True},
        "style": {"type": "EMS_VECTOR_TILE", "color": ""},
    }
    layers = [
        base,
        grid_layer(1, "Sign-ins", f"{SIGN_INS} and event.outcome : success", GREEN),
        grid_layer(2, "Failed sign-ins", FAILED, RED),
    ]
    state = {
        "zoom": 1.5,
        "center": {"lon": 10, "lat": 25},
        "timeFilters": {"from": "now-7d", "to": "now"},
        "refreshConfig": {"isPaused": True, "interval": 0},
        "query": {"query": "", "language": "kuery"},
        "filters": [],
        "settings": {"autoFitToDataBounds": False},
    }
    attributes = {
        "title": "Sign-ins by place",
        "description": "Green: succeeded. Red: failed.",
        "layerListJSON": text(layers),
        "mapStateJSON": text(state),
        "uiStateJSON": text({"isLayerTOCOpen": True, "openTOCDetails": []}),
    }
    references = [
        reference(f"layer_{n}_source_index_pattern", "index-pattern", AUDIT)
        for n in (1, 2)
    ]
    name = "o365-poller-map"
    return Panel("map", name, place, saved("map", name, attributes, references))


def failures_search(place: tuple[int, int, int, int]) -> Panel:
    """Give the list of failed sign-ins."""
    source = {
        "query": {"query": FAILED, "language": "kuery"},
        "filter": [],
        "indexRefName": INDEX_REFERENCE,
    }
    attributes = {
        "title": "Failed sign-ins",
        "description": "",
        "columns": [
            "user.id",
            "source.ip",
            "source.geo.country_name",
            "o365.audit.LogonError",
            "o365.audit.ErrorNumber",
            "o365.audit.ApplicationId",
            "user_agent.name",
        ],
        "sort": [["@timestamp", "desc"]],
        "grid": {},
        "hideChart": True,
        "kibanaSavedObjectMeta": {"searchSourceJSON": text(source)},
    }
    references = [reference(INDEX_REFERENCE, "index-pattern", AUDIT)]
    name = "o365-poller-failures"
    return Panel("search", name, place, saved("search", name, attributes, references))


def dashboard(name: str, title: str, description: str, panels: list[Panel]) -> Json:
    """Give a dashboard of panels that are saved objects of their own."""
    laid = []
    references = []
    for number_, panel in enumerate(panels, 1):
        x, y, width, height = panel.place
        index = str(number_)
        grid = {"x": x, "y": y, "w": width, "h": height, "i": index}
        laid.append(
            {
                "version": "8.8.0",
                "type": panel.kind,
                "gridData": grid,
                "panelIndex": index,
                "embeddableConfig": {"enhancements": {}},
                "panelRefName": f"panel_{index}",
            }
        )
        references.append(reference(f"{index}:panel_{index}", panel.kind, panel.name))
    options = {"useMargins": True, "syncColors": False, "hidePanelTitles": False}
    search = {"query": {"query": "", "language": "kuery"}, "filter": []}
    attributes = {
        "title": title,
        "description": description,
        "panelsJSON": text(laid),
        "optionsJSON": text(options),
        "timeRestore": True,
        "timeFrom": "now-7d",
        "timeTo": "now",
        "refreshInterval": {"pause": True, "value": 0},
        "version": 1,
        "kibanaSavedObjectMeta": {"searchSourceJSON": text(search)},
    }
    return saved("dashboard", name, attributes, references)


def logins() -> list[Panel]:
    """Give the panels of Logins."""
    outcome = terms("event.outcome", "Outcome", 3, "y")
    return [
        sign_in_map((0, 0, 32, 20)),
        number(
            "o365-poller-signins",
            "Sign-ins",
            (32, 0, 8, 6),
            AUDIT,
            SIGN_INS,
            count("Sign-ins"),
        ),
        number(
            "o365-poller-failed",
            "Failed",
            (40, 0, 8, 6),
            AUDIT,
            FAILED,
            count("Failed sign-ins"),
        ),
        bars(
            "o365-poller-reasons",
            "Failures by reason",
            (32, 6, 16, 14),
            AUDIT,
            FAILED,
            {"x": terms("o365.audit.LogonError", "Reason", 10, "y"), "y": count()},
            "bar_horizontal",
        ),
        bars(
            "o365-poller-over-time",
            "Sign-ins over time",
            (0, 20, 48, 10),
            AUDIT,
            SIGN_INS,
            {"split": outcome, "x": over_time(), "y": count()},
        ),
        bars(
            "o365-poller-users",
            "Sign-ins by user",
            (0, 30, 16, 14),
            AUDIT,
            SIGN_INS,
            {"x": terms("user.name", "User", 15, "y"), "split": outcome, "y": count()},
            "bar_horizontal_stacked",
        ),
        table(
            "o365-poller-applications",
            "Sign-ins by application",
            (16, 30, 16, 14),
            AUDIT,
            SIGN_INS,
            {
                "name": terms("application.name", "Application", 50, "y", missing=True),
                "id": terms("o365.audit.ApplicationId", "Application id", 50, "y"),
                "y": count(),
            },
            "y",
        ),
        bars(
            "o365-poller-countries",
            "Sign-ins by country",
            (32, 30, 16, 14),
            AUDIT,
            SIGN_INS,
            {
                "x": terms("source.geo.country_name", "Country", 15, "y"),
                "split": outcome,
                "y": count(),
            },
            "bar_horizontal_stacked",
        ),
        table(
            "o365-poller-new-countries",
            "New countries per user (latest first sign-in on top)",
            (0, 44, 24, 14),
            AUDIT,
            f"{SIGN_INS} and event.outcome : success",
            {
                "user": terms("user.name", "User", 100, "first"),
                "country": terms("source.geo.country_name", "Country", 20, "first"),
                "first": metric("min", "@timestamp", "First seen", "date"),
                "y": count(),
            },
            "first",
        ),
        failures_search((24, 44, 24, 14)),
    ]


def health() -> list[Panel]:
    """Give the panels of Collection health."""
    by_type = terms("o365_poller.part.name", "Content type", 10, "y")
    code = terms("o365_poller.exit_code", "Exit code", 10, "y", kind="number")
    part = "o365_poller.part"
    return [
        bars(
            "o365-poller-runs",
            "Runs over time by exit code",
            (0, 0, 32, 12),
            HEALTH,
            RUNS,
            {"split": code, "x": over_time(), "y": count("Runs")},
        ),
        number(
            "o365-poller-lost",
            "Lost",
            (32, 0, 8, 6),
            HEALTH,
            TYPES,
            metric("sum", f"{part}.lost", "Blobs lost"),
        ),
        number(
            "o365-poller-rejects",
            "Rejected",
            (40, 0, 8, 6),
            HEALTH,
            "event.kind : pipeline_error",
            count("Lines rejected"),
        ),
        number(
            "o365-poller-last-run",
            "Last run",
            (32, 6, 16, 6),
            HEALTH,
            RUNS,
            metric("max", "@timestamp", "Last run", "date"),
        ),
        bars(
            "o365-poller-events",
            "Events per content type",
            (0, 12, 48, 12),
            HEALTH,
            TYPES,
            {
                "split": by_type,
                "x": over_time(),
                "y": metric("sum", f"{part}.events", "Events"),
            },
        ),
        bars(
            "o365-poller-lag",
            "Lag per content type (seconds)",
            (0, 24, 24, 12),
            HEALTH,
            TYPES,
            {
                "split": by_type,
                "x": over_time(),
                "y": metric("max", f"{part}.lag_seconds", "Lag"),
            },
            "line",
        ),
        bars(
            "o365-poller-pending",
            "Blobs pending",
            (24, 24, 24, 12),
            HEALTH,
            TYPES,
            {
                "split": by_type,
                "x": over_time(),
                "y": metric("max", f"{part}.pending", "Pending"),
            },
            "line",
        ),
        table(
            "o365-poller-types",
            "Content types",
            (0, 36, 48, 10),
            HEALTH,
            TYPES,
            {
                "name": terms("o365_poller.part.name", "Content type", 10, "y"),
                "y": metric("sum", f"{part}.events", "Events"),
                "blobs": metric("sum", f"{part}.blobs", "Blobs"),
                "pending": metric("max", f"{part}.pending", "Pending, most"),
                "lost": metric("sum", f"{part}.lost", "Lost"),
                "lag": metric("max", f"{part}.lag_seconds", "Lag, most"),
            },
            "y",
        ),
    ]


def objects() -> list[Json]:
    """Give every saved object: what is referred to comes first."""
    views = [
        data_view(AUDIT, "Office 365 audit events", "logs-o365.audit-poller-*"),
        data_view(HEALTH, "Office 365 poller: runs and rejects", "o365-poller-*"),
    ]
    first, second = logins(), health()
    return [
        *views,
        *(panel.made for panel in (*first, *second)),
        dashboard(
            "o365-poller-logins",
            "Office 365: Logins",
            "Sign-ins by place, user, application and country, and why they failed",
            first,
        ),
        dashboard(
            "o365-poller-collection",
            "Office 365: Collection health",
            "The poller's runs: exit codes, events, lag, pending, lost, rejects "
            "(needs run_events = yes in the poller's configuration)",
            second,
        ),
    ]


def made() -> str:
    """Give the file's text."""
    return "".join(f"{text(one)}\n" for one in objects())


if __name__ == "__main__":
    FILE.write_text(made(), encoding="utf-8")
