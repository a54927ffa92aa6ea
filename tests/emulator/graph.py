"""The Graph host: service principals by key and by filter (fact sheet 7)."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

from emulator.clock import http_date
from emulator.entra import GUID
from emulator.wire import Answer, Ask

if TYPE_CHECKING:
    from emulator.office import Emulator

_BY_KEY = re.compile(
    r"/v1\.0/servicePrincipals\(appId='(?P<app>[^']*)'\)", re.IGNORECASE
)
_LIST = re.compile(r"/v1\.0/servicePrincipals/?", re.IGNORECASE)
_FILTER = re.compile(r"\s*appId\s+eq\s+'(?P<app>[^']*)'\s*", re.IGNORECASE)


class Graph:
    def __init__(self, office: Emulator) -> None:
        self._office = office
        self.names: dict[str, str] = {
            "5e3ce6c0-2b1f-4285-8d4b-75ee78787346": "Microsoft Teams Web Client",
            "0a0a0a0a-1b1b-4c2c-8d3d-4e4e4e4e4e4e": "Emulated payroll",
        }

    @staticmethod
    def read(raw: Ask) -> Ask:
        path = unquote(raw.path)
        if _BY_KEY.fullmatch(path) or _LIST.fullmatch(path):
            return replace(raw, operation="graph", path=path)
        return raw

    def answer(self, ask: Ask) -> Answer:
        office = self._office
        claims = office.login.claims(ask.token)
        if claims is not None and claims["aud"] != office.graph_root:
            office.journal.violate(ask, "a token for another resource was sent")
            claims = None
        if claims is None or office.clock.now().timestamp() >= claims["exp"]:
            return self.error(401, "InvalidAuthenticationToken", "Access token is bad.")
        if ask.operation != "graph" or ask.method != "GET":
            return self.error(404, "ResourceNotFound", "Invalid path.")
        if not {"Application.Read.All", "Directory.Read.All"} & set(
            claims.get("roles", [])
        ):
            return self.error(
                403,
                "Authorization_RequestDenied",
                "Insufficient privileges to complete the operation.",
            )
        by_key = _BY_KEY.fullmatch(ask.path)
        if by_key:
            return self._by_key(by_key["app"])
        return self._by_filter(ask.value("$filter") or "")

    def _row(self, app_id: str) -> dict[str, str] | None:
        for known, name in self.names.items():
            if known.lower() == app_id.lower():
                identity = str(uuid.uuid5(uuid.NAMESPACE_OID, known))
                return {"id": identity, "appId": known, "displayName": name}
        return None

    def _context(self, suffix: str) -> dict[str, str]:
        kind = f"$metadata#servicePrincipals(id,appId,displayName){suffix}"
        return {"@odata.context": f"{self._office.graph_root}/v1.0/{kind}"}

    def _by_key(self, app_id: str) -> Answer:
        if not GUID.fullmatch(app_id):
            return self.error(400, "Request_BadRequest", "Invalid GUID.")
        row = self._row(app_id)
        if row is None:
            return self.error(
                404,
                "Request_ResourceNotFound",
                f"Resource '{app_id}' does not exist or one of its queried"
                " reference-property objects are not present.",
            )
        return self._fine(self._context("/$entity") | row)

    def _by_filter(self, expression: str) -> Answer:
        apps = [_FILTER.fullmatch(part) for part in expression.split(" or ")]
        rows = []
        for found in apps:
            if found is None or not GUID.fullmatch(found["app"]):
                return self.error(400, "Request_BadRequest", "Invalid filter clause.")
            row = self._row(found["app"])
            if row is not None:
                rows.append(row)
        return self._fine({**self._context(""), "value": rows})

    def _fine(self, body: Mapping[str, object]) -> Answer:
        return Answer(200, json.dumps(body).encode(), self._headers())

    def _headers(self) -> tuple[tuple[str, str], ...]:
        return (
            ("Cache-Control", "no-cache"),
            ("request-id", str(uuid.uuid4())),
            ("Date", http_date(self._office.clock.now())),
        )

    def error(
        self, status: int, code: str, message: str, retry_after: int | None = None
    ) -> Answer:
        identity = str(uuid.uuid4())
        inner = {
            "date": f"{self._office.clock.now():%Y-%m-%dT%H:%M:%S}",
            "request-id": identity,
            "client-request-id": identity,
        }
        body = {"error": {"code": code, "message": message, "innerError": inner}}
        headers = self._headers()
        if retry_after is not None:
            headers += (("Retry-After", str(retry_after)),)
        return Answer(status, json.dumps(body).encode(), headers)
