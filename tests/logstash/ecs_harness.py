"""What the tests of the Logstash side share: the ruby filter, and one real server."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]
LOGSTASH = ROOT / "logstash"
SCRIPT = LOGSTASH / "o365_ecs.rb"

Document = dict[str, Any]


@dataclass(frozen=True)
class Filtered:
    """What became of one line: its route, and its documents with their ids."""

    route: str
    id: str
    month: str | None
    time: str | None
    documents: list[Document]

    @property
    def document(self) -> Document:
        """Give the one document of a line that became one."""
        (document,) = self.documents
        return document


class RubyFilter:
    """Runs the pipeline's ruby code over lines, as Logstash would."""

    def __init__(self, ruby: str) -> None:
        self.command = [
            ruby,
            str(Path(__file__).parent / "ruby_filter.rb"),
            str(SCRIPT),
        ]

    def ask(self, requests_: Sequence[Document]) -> list[Filtered]:
        """Give what became of each request of ruby_filter.rb."""
        text = "".join(f"{json.dumps(request)}\n" for request in requests_)
        done = subprocess.run(
            self.command,
            input=text.encode(),
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        assert done.stderr == b""
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(answers) == len(requests_)
        return [as_filtered(answer) for answer in answers]

    def lines(self, lines: Sequence[str], **params: str) -> list[Filtered]:
        """Give what became of each line."""
        return self.ask([{"line": line, "params": params} for line in lines])

    def events(self, events: Sequence[Document], **params: str) -> list[Document]:
        """Give the document of each event."""
        lines = [json.dumps(event) for event in events]
        return [found.document for found in self.lines(lines, **params)]

    def event(self, event: Document, **params: str) -> Document:
        """Give the document of one event."""
        return self.events([event], **params)[0]


def as_filtered(answer: list[Document]) -> Filtered:
    """Read one answer of ruby_filter.rb and do the date filter's part."""
    (result,) = answer
    route = result["metadata"]
    documents = result["documents"]
    for document in documents:
        document["@timestamp"] = route.get("time") or document["@timestamp"]
    return Filtered(
        route=route["route"],
        id=route["id"],
        month=route.get("month"),
        time=route.get("time"),
        documents=documents,
    )


@pytest.fixture(scope="session")
def ruby() -> RubyFilter:
    """Give the ruby filter, or skip where there is no ruby."""
    found = shutil.which("ruby")
    if not found:
        pytest.skip("no ruby on this machine: the pipeline's field work is not tested")
    return RubyFilter(found)


class Server:
    """A real Elasticsearch over HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Give the answer to one request; anything but success is a failure."""
        answer = self.session.request(
            method, f"{self.url}/{path}", json=body, timeout=60
        )
        assert answer.ok, answer.text[:3000]
        return answer.json()

    def put_template(self, name: str, file: str) -> None:
        """Load a template file through the composable API, as the output does."""
        body = json.loads((LOGSTASH / file).read_text(encoding="utf-8"))
        self.call("PUT", f"_index_template/{name}", body)

    def create(self, index: str, documents: Sequence[tuple[str, str]]) -> list[Any]:
        """Bulk-create (id, JSON text) in one index; give the results one by one."""
        results: list[Any] = []
        for first in range(0, len(documents), 200):
            part = documents[first : first + 200]
            body = "".join(
                f"{json.dumps({'create': {'_index': index, '_id': name}})}\n{text}\n"
                for name, text in part
            )
            answer = self.session.post(
                f"{self.url}/_bulk",
                data=body.encode(),
                headers={"Content-Type": "application/x-ndjson"},
                timeout=120,
            )
            assert answer.ok, answer.text[:3000]
            results.extend(item["create"] for item in answer.json()["items"])
        self.call("POST", f"{index}/_refresh")
        return results

    def found(self, index: str, query: object) -> set[str]:
        """Give the ids of the documents that a query finds."""
        answer = self.call(
            "POST", f"{index}/_search", {"query": query, "size": 1000, "_source": False}
        )
        return {hit["_id"] for hit in answer["hits"]["hits"]}


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Give a real Elasticsearch with both templates, or skip with the reason."""
    process = subprocess.Popen(
        [str(ROOT / "tests" / "elasticsearch")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    try:
        url = process.stdout.readline().strip()
        if not url:
            said = process.stderr.read().strip()
            if process.wait() == 77:
                pytest.skip(f"no real Elasticsearch here: {said.splitlines()[-1]}")
            pytest.fail(said[-3000:])
        server = Server(url)
        server.put_template("o365-audit-poller", "o365_template.json")
        server.put_template("o365-poller", "o365_poller_template.json")
        yield server
    finally:
        if process.stdin:
            process.stdin.close()
        process.wait(60)
        process.stdout.close()
        process.stderr.close()


def dig(document: object, path: str) -> object:
    """Give what stands at a dotted path; a list's items are asked one by one."""
    if not path:
        return document
    name, _, rest = path.partition(".")
    if isinstance(document, list):
        found = [dig(item, path) for item in document]
        kept = [item for item in found if item is not None]
        return kept or None
    if isinstance(document, dict):
        return dig(document.get(name), rest) if document.get(name) is not None else None
    return None


def enrich(document: Document) -> Document:
    """Add what the geoip and useragent filters add, for one address and two agents."""
    if dig(document, "labels.ip_scope") == "public":
        document["source"]["geo"] = {
            "city_name": "London",
            "continent_name": "Europe",
            "country_iso_code": "GB",
            "country_name": "United Kingdom",
            "region_iso_code": "GB-ENG",
            "region_name": "England",
            "location": {"lat": 51.5142, "lon": -0.0931},
        }
        document["source"]["as"] = {
            "number": 20712,
            "organization": {"name": "Andrews & Arnold Ltd"},
        }
    agent = dig(document, "user_agent.original")
    if isinstance(agent, str):
        electron = "Electron" in agent
        document["user_agent"] |= {
            "name": "Electron" if electron else "Chrome",
            "version": "8.5.1" if electron else "124.0",
            "os": {"name": "Windows", "version": "10", "full": "Windows 10"},
            "device": {"name": "Other"},
        }
    return document
