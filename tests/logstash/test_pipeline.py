"""The pipeline files against the language, the plugins' options and README's table.

No Logstash here: the files are read with a parser of the pipeline language, and held to the
options that the plugins of Logstash 8.8 and of 9.5 both know (their sources, July 2026).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from logstash.build_mmdb import FILE as EMPTY_MMDB
from logstash.build_mmdb import made as empty_mmdb
from logstash.ecs_harness import LOGSTASH, ROOT

# The library ships no types.
from logstash_pipeline_parser import Pipeline  # type: ignore[import-untyped]

API = LOGSTASH / "o365_api.conf"
DLQ = LOGSTASH / "o365_dlq.conf"
FILES = [API, DLQ]
README_PART = Path(__file__).parent / "README-part.md"
README = ROOT / "README.md"

COMMON = "id enable_metric add_field add_tag remove_field remove_tag"
# What both ends of 8.8 to 9.5 know. Not here, because one end lacks it or calls it obsolete:
# tcp ssl_enable ssl_cert ssl_verify (obsolete in 9), ssl_enabled and its kin (since 8.10.4);
# elasticsearch ssl cacert (obsolete in 9), drop_error_types (since 9.3); json_lines
# decode_size_limit_bytes (since 8.16).
OPTIONS = {
    "tcp": "host port mode codec dns_reverse_lookup_enabled tcp_keep_alive "
    "proxy_protocol ecs_compatibility type tags",
    "json_lines": "charset delimiter target ecs_compatibility",
    "rubydebug": "metadata",
    "dead_letter_queue": "path pipeline_id commit_offsets sincedb_path start_timestamp",
    "ruby": "init code path script_params tag_on_exception",
    "date": "match timezone target locale tag_on_failure",
    "split": "field target terminator",
    "geoip": "source target database default_database_type fields cache_size "
    "tag_on_failure ecs_compatibility",
    "useragent": "source target regexes prefix lru_cache_size ecs_compatibility",
    "stdout": "codec",
    "elasticsearch": "hosts index document_id action user password api_key cloud_id "
    "data_stream manage_template template template_name template_overwrite template_api "
    "ilm_enabled silence_errors_in_log pipeline custom_headers timeout ecs_compatibility "
    "ssl_certificate_authorities ssl_verification_mode",
}
TLS = "ssl_enabled ssl_certificate ssl_key ssl_client_authentication"
SECTIONS = {"input", "filter", "output"}
CONDITIONS = {"if", "else if", "else"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([^}]*))?\}")


class Plugin(NamedTuple):
    """One plugin of a pipeline: where it stands, its name, its options."""

    section: str
    name: str
    options: dict[str, Any]


def plugins(node: Any, section: str = "") -> Iterator[Plugin]:
    """Give each plugin of the parser's tree, codecs included, in the file's order."""
    if not node or not isinstance(node[0], str):
        for inner in node:
            yield from plugins(inner, section)
    elif node[0] in SECTIONS:
        yield from plugins(node[1], node[0])
    elif node[0] == "else":
        yield from plugins(node[1], section)
    elif node[0] in CONDITIONS:  # terms, and the body as the last of them
        yield from plugins(node[1][-1], section)
    else:
        options = {str(key): value[0] for key, value in node[1]}
        yield Plugin(section, node[0], options)
        codec = options.get("codec")
        if isinstance(codec, list):
            yield from plugins(codec, "codec")
        elif codec is not None:
            yield Plugin("codec", str(codec), {})


def read(path: Path) -> list[Plugin]:
    """Give the plugins of a pipeline file."""
    return list(plugins(Pipeline(path.read_text(encoding="utf-8")).parse()))


def variables(text: str) -> set[tuple[str, str | None]]:
    """Give each variable of a text with its default."""
    return {(found[1], found[2]) for found in VARIABLE.finditer(text)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_option_is_one_of_both_versions(path: Path) -> None:
    found = read(path)
    assert found
    for plugin in found:
        known = {*COMMON.split(), *OPTIONS[plugin.name].split()}
        assert set(plugin.options) <= known, plugin
        assert None not in plugin.options.values()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_plugin_has_an_id_of_its_own(path: Path) -> None:
    ids = [one.options["id"] for one in read(path) if one.section != "codec"]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_variable_has_a_default_and_the_prefix(path: Path) -> None:
    """Also in comments: Logstash puts variables in there too, and stops at one unset."""
    text = path.read_text(encoding="utf-8")
    found = variables(text)
    assert found
    for name, default in found:
        assert name.startswith("O365_")
        assert default is not None, name
    assert text.count("$") == len(VARIABLE.findall(text))
    names = [name for name, _ in found]
    assert len(names) == len(set(names)), "one variable, two defaults"


def test_readme_has_each_variable_and_its_default() -> None:
    readme = README_PART if README_PART.exists() else README
    rows = re.findall(
        r"^\| `(O365_\w+)` \| (?:`([^`]*)`|none) \|",
        readme.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    used = set().union(*(variables(path.read_text("utf-8")) for path in FILES))
    assert dict(rows) == dict(used)
    assert len(rows) == len(used)


def uncommented(text: str, names: set[str]) -> str:
    """Give a pipeline's text with the commented lines of some options live."""
    return re.sub(
        r"^( *)# (\w+)( => .*)$",
        lambda line: line[1] + line[2] + line[3] if line[2] in names else line[0],
        text,
        flags=re.MULTILINE,
    )


def test_the_commented_lines_are_ready_to_use() -> None:
    text = API.read_text(encoding="utf-8")
    names = {*TLS.split(), "api_key", "ssl_certificate_authorities"}
    found = list(plugins(Pipeline(uncommented(text, names)).parse()))
    (tcp,) = [one for one in found if one.name == "tcp"]
    assert set(TLS.split()) <= set(tcp.options)
    for output in (one for one in found if one.name == "elasticsearch"):
        assert {"api_key", "ssl_certificate_authorities"} <= set(output.options)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_output_writes_once_into_a_plain_index(path: Path) -> None:
    outputs = [one.options for one in read(path) if one.name == "elasticsearch"]
    assert outputs
    for options in outputs:
        assert options["action"] == "create"
        assert options["data_stream"] == "false"
        assert options["ilm_enabled"] is False
        assert options["silence_errors_in_log"] == ["version_conflict_engine_exception"]
        assert "%{" in options["document_id"]
        assert options.get("manage_template") is False or (
            options["template_api"] == "composable" and options["template_overwrite"]
        )


def test_templates_win_where_the_indices_go() -> None:
    patterns = {}
    for options in (one.options for one in read(API) if "template" in one.options):
        file = LOGSTASH / Path(str(options["template"])).name
        template = json.loads(file.read_text(encoding="utf-8"))
        (pattern,) = template["index_patterns"]
        index = VARIABLE.sub(lambda found: found[2], options["index"])
        assert index.startswith(pattern.rstrip("*"))
        # Above logs-*-* (100) and what Fleet installs for the integration (200).
        assert template["priority"] > 200
        assert "data_stream" not in template
        patterns[options["template_name"]] = pattern
    assert patterns == {
        "o365-audit-poller": "logs-o365.audit-poller-*",
        "o365-poller": "o365-poller-*",
    }


def test_the_first_screen_says_what_happens() -> None:
    """Where a line comes in and what makes the document, without scrolling."""
    found = [(one.section, one.name) for one in read(API)]
    assert found[:4] == [
        ("input", "tcp"),
        ("codec", "json_lines"),
        ("filter", "ruby"),
        ("filter", "date"),
    ]
    lines = API.read_text(encoding="utf-8").splitlines()
    assert next(n for n, line in enumerate(lines, 1) if "ruby {" in line) <= 32
    assert len(lines) < 220


def test_files_that_the_pipeline_names_are_there() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"\$\{O365_LOGSTASH_DIR:logstash\}/([\w.]+)", text)
        assert names
        assert [name for name in names if not (LOGSTASH / name).is_file()] == []


def test_the_clock_is_utc_and_the_address_is_looked_up_once_and_public() -> None:
    found = read(API)
    (date,) = [one.options for one in found if one.name == "date"]
    assert date["timezone"] == "UTC"
    look_ups = [one.options for one in found if one.name == "geoip"]
    assert len(look_ups) == 4
    for options in look_ups:
        assert options["source"] == "[source][ip]"
        assert options["target"] == "source"
        assert options["ecs_compatibility"] == "v8"
        assert "ip" not in options["fields"], "it would be written uncompressed"
    assert '[labels][ip_scope] == "public"' in API.read_text(encoding="utf-8")


def test_the_empty_database_is_the_one_that_is_made() -> None:
    assert EMPTY_MMDB.read_bytes() == empty_mmdb()
