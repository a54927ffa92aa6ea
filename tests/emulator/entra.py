"""The login host: discovery, and a token endpoint that verifies for real."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import secrets
import threading
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from emulator.clock import http_date
from emulator.credentials import Credentials
from emulator.wire import Answer, Ask

if TYPE_CHECKING:
    from emulator.office import Emulator

ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_PATH = re.compile(
    r"/(?P<tenant>[^/]+)/("
    r"(?P<discovery>v2\.0/\.well-known/openid-configuration)"
    r"|(?P<token>oauth2/(?P<v2>v2\.0/)?token)"
    r"|(?P<keys>discovery/(v2\.0/)?keys)"
    r"|(?P<instance>discovery/instance))",
    re.IGNORECASE,
)

# OAuth error and status of each AADSTS number (fact sheet 1.5).
AADSTS: dict[int, tuple[str, int, str]] = {
    700027: (
        "invalid_client",
        401,
        (
            "The certificate with identifier used to sign the client assertion is not"
            " registered on application. [Reason - {reason}]"
        ),
    ),
    700024: (
        "invalid_client",
        401,
        "Client assertion is not within its valid time range. {reason}",
    ),
    700021: (
        "invalid_client",
        401,
        (
            "Client assertion application identifier doesn't match 'client_id'"
            " parameter. {reason}"
        ),
    ),
    700023: ("invalid_client", 401, "Client assertion audience is wrong. {reason}"),
    50012: ("invalid_client", 401, "Client assertion contains an invalid signature."),
    50027: ("invalid_request", 400, "JWT token is invalid or malformed. {reason}"),
    1000502: (
        "invalid_client",
        401,
        "The provided certificate is not within its specified validity period.",
    ),
    7000214: ("invalid_client", 401, "Certificate has been revoked."),
    5002730: (
        "invalid_client",
        401,
        "Invalid JWT token. Unsupported key for the signing algorithm. {reason}",
    ),
    7000215: ("invalid_client", 401, "Invalid client secret provided. {reason}"),
    7000222: ("invalid_client", 401, "The provided client secret keys are expired."),
    7000218: (
        "invalid_client",
        401,
        (
            "The request body must contain the following parameter: 'client_assertion'"
            " or 'client_secret'."
        ),
    ),
    700016: (
        "unauthorized_client",
        400,
        "Application with identifier was not found in the directory. {reason}",
    ),
    70001: ("unauthorized_client", 400, "The application is not supported. {reason}"),
    7000112: ("unauthorized_client", 401, "Application is disabled. {reason}"),
    70003: ("unsupported_grant_type", 400, "The grant type is not supported. {reason}"),
    90002: ("invalid_request", 400, "Tenant not found. {reason}"),
    900023: ("invalid_request", 400, "Specified tenant identifier is malformed."),
    90014: ("invalid_request", 400, "A required field is missing: {reason}"),
    900144: ("invalid_request", 400, "The request body must contain: {reason}"),
    90023: ("invalid_request", 400, "The request is malformed. {reason}"),
    500011: (
        "invalid_resource",
        400,
        "The resource principal was not found in the tenant. {reason}",
    ),
    70011: (
        "invalid_scope",
        400,
        "The provided value for scope is not valid. {reason}",
    ),
    1002012: (
        "invalid_scope",
        400,
        (
            "The provided value for scope is not valid. Client credential flows must have"
            " a scope value with /.default suffixed to the resource identifier. {reason}"
        ),
    ),
    65001: ("invalid_grant", 400, "The administrator has not consented. {reason}"),
    650057: ("invalid_client", 400, "Invalid resource. {reason}"),
    53003: ("access_denied", 400, "Access has been blocked by Conditional Access."),
    90038: ("invalid_request", 400, "The tenant lives in another national cloud."),
    90033: ("temporarily_unavailable", 503, "A transient error has occurred."),
    90024: ("server_error", 400, "A transient error has occurred."),
    50196: ("invalid_grant", 400, "The server detected a client request loop."),
    90055: ("temporarily_unavailable", 429, "Too many requests."),
}


def sign_in_headers() -> tuple[tuple[str, str], ...]:
    return (
        ("Cache-Control", "no-store, no-cache"),
        ("Pragma", "no-cache"),
        ("Expires", "-1"),
        ("Strict-Transport-Security", "max-age=31536000; includeSubDomains"),
        ("X-Content-Type-Options", "nosniff"),
        ("x-ms-request-id", str(uuid.uuid4())),
        ("Date", http_date(datetime.now(UTC))),
    )


def refusal(
    number: int,
    reason: str = "",
    *,
    error: str | None = None,
    status: int | None = None,
    retry_after: int | None = None,
    crlf: bool = False,
    correlation_id: str | None = None,
) -> Answer:
    """The full JSON of a refusal."""
    known = AADSTS.get(number, ("invalid_client", 401, "An error occurred. {reason}"))
    trace, correlation = str(uuid.uuid4()), correlation_id or str(uuid.uuid4())
    at = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}"
    between = "\r\n" if crlf else " "
    description = between.join(
        [
            f"AADSTS{number}: {known[2].format(reason=reason)}".strip(),
            f"Trace ID: {trace}",
            f"Correlation ID: {correlation}",
            f"Timestamp: {at}",
        ]
    )
    body = {
        "error": error or known[0],
        "error_description": description,
        "error_codes": [number],
        "timestamp": at,
        "trace_id": trace,
        "correlation_id": correlation,
        "error_uri": f"https://login.microsoftonline.com/error?code={number}",
    }
    headers = sign_in_headers()
    if retry_after is not None:
        headers += (("Retry-After", str(retry_after)),)
    return Answer(status or known[1], json.dumps(body).encode(), headers)


class RefusalError(Exception):
    """Ends the reading of a token request."""

    def __init__(self, number: int, reason: str = "", **more: Any) -> None:
        super().__init__(number, reason)
        self.number, self.reason, self.more = number, reason, more


class Login:
    """One app registration in one tenant."""

    def __init__(self, office: Emulator, signing_key: rsa.RSAPrivateKey) -> None:
        self._office = office
        self._key = signing_key
        self._lock = threading.Lock()
        self._registered: list[Credentials] = []
        self.revoked_certificates: set[str] = set()
        self._tokens: dict[str, dict[str, Any]] = {}

    def register(self, credentials: Credentials) -> None:
        with self._lock:
            self._registered.append(credentials)

    def revoke(self) -> None:
        with self._lock:
            self._tokens.clear()

    def claims(self, token: str | None) -> dict[str, Any] | None:
        """The claims of a token that was issued here and not revoked."""
        with self._lock:
            return self._tokens.get(token or "")

    @staticmethod
    def read(raw: Ask) -> Ask:
        found = _PATH.fullmatch(raw.path)
        if found is None:
            return raw
        for name in ("discovery", "token", "keys", "instance"):
            if found[name]:
                operation = "other" if name == "keys" else name
                return replace(raw, operation=operation, tenant=found["tenant"])
        return raw

    def answer(self, ask: Ask) -> Answer:
        office = self._office
        if "authorization" in ask.headers:
            office.journal.violate(ask, "a token was sent to the login host")
        if any(name in ("client_assertion", "client_secret") for name, _ in ask.query):
            office.journal.violate(ask, "a secret was sent in a URL")
        found = _PATH.fullmatch(ask.path)
        if found is None:
            return Answer(404, b"", sign_in_headers())
        wanted = "POST" if found["token"] else "GET"
        if ask.method != wanted:
            return refusal(900561 if found["token"] else 90023, status=400)
        if found["instance"]:
            return self._instance(ask)
        try:
            self._check_tenant(found["tenant"])
            if found["discovery"]:
                return self._discovery(found["tenant"])
            if found["keys"]:
                return Answer(200, json.dumps({"keys": []}).encode(), sign_in_headers())
            return self._token(ask, v2=found["v2"] is not None)
        except RefusalError as refused:
            more = dict(refused.more)
            if found["discovery"] and refused.number == 90002:
                more["error"] = "invalid_tenant"
            return refusal(
                refused.number,
                refused.reason,
                crlf=office.options.crlf_in_descriptions,
                correlation_id=ask.headers.get("client-request-id"),
                **more,
            )

    def _check_tenant(self, tenant: str) -> None:
        known = {
            self._office.tenant_id.lower(),
            self._office.tenant_domain,
            self._office.other_tenant_id.lower(),
        }
        if tenant.lower() in known:
            return
        if GUID.fullmatch(tenant) or re.fullmatch(r"[\w-]+(\.[\w-]+)+", tenant):
            raise RefusalError(90002, f"Tenant '{tenant}' not found.")
        raise RefusalError(900023, f"'{tenant}'")

    def _instance(self, ask: Ask) -> Answer:
        # With instance_discovery=False neither form is asked (fact sheet 1.4.1).
        self._office.journal.violate(ask, "instance discovery was asked")
        root, tenant = self._office.login_root, self._office.tenant_id
        body: dict[str, Any] = {
            "tenant_discovery_endpoint": (
                f"{root}/{tenant}/v2.0/.well-known/openid-configuration"
            )
        }
        if ask.value("api-version") == "1.1":
            host = root.removeprefix("https://")
            alias = {"preferred_network": host, "preferred_cache": host}
            body |= {
                "api-version": "1.1",
                "metadata": [alias | {"aliases": [host]}],
            }
        return Answer(200, json.dumps(body).encode(), sign_in_headers())

    def _discovery(self, tenant: str) -> Answer:
        other = self._office.other_tenant_id
        guid = other if tenant.lower() == other.lower() else self._office.tenant_id
        base = f"{self._office.login_root}/{guid}"
        body = {
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "token_endpoint_auth_methods_supported": [
                "client_secret_post",
                "private_key_jwt",
                "client_secret_basic",
            ],
            "jwks_uri": f"{base}/discovery/v2.0/keys",
            "response_modes_supported": ["query", "fragment", "form_post"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "response_types_supported": ["code", "id_token"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "issuer": f"{base}/v2.0",
            "request_uri_parameter_supported": False,
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
            "tenant_region_scope": "EU",
            "cloud_instance_name": "microsoftonline.com",
            "cloud_graph_host_name": "graph.windows.net",
            "msgraph_host": self._office.graph_root.removeprefix("https://"),
        }
        headers = tuple(
            ("Cache-Control", "max-age=86400, private")
            if k == "Cache-Control"
            else (k, v)
            for k, v in sign_in_headers()
        )
        return Answer(200, json.dumps(body).encode(), headers)

    # -- the token endpoint

    def _token(self, ask: Ask, *, v2: bool) -> Answer:
        kind = ask.headers.get("content-type", "")
        if not kind.startswith("application/x-www-form-urlencoded"):
            raise RefusalError(900144, "'grant_type'.")
        form = dict(parse_qsl(ask.body.decode("utf-8", "replace")))
        if "grant_type" not in form:
            raise RefusalError(900144, "'grant_type'.")
        if form["grant_type"] != "client_credentials":
            raise RefusalError(70003, f"'{form['grant_type']}'")
        client_id = form.get("client_id")
        if client_id is None:
            raise RefusalError(900144, "'client_id'.")
        if (ask.tenant or "").lower() == self._office.other_tenant_id.lower() or (
            client_id.lower() != self._office.client_id.lower()
        ):
            raise RefusalError(700016, f"'{client_id}' in '{ask.tenant}'")
        by_secret = self._authenticate(form, client_id)
        resource = self._resource(form, v2=v2)
        return self._issue(resource, v2=v2, by_secret=by_secret)

    def _authenticate(self, form: dict[str, str], client_id: str) -> bool:
        secret = self._office.options.client_secret
        if "client_assertion" not in form:
            if "client_secret" not in form:
                raise RefusalError(7000218)
            given = form["client_secret"].encode()
            if secret is None or not secrets.compare_digest(given, secret.encode()):
                raise RefusalError(7000215)
            return True
        if form.get("client_assertion_type") != ASSERTION:
            raise RefusalError(90023, "client_assertion_type")
        self._verify(form["client_assertion"], client_id)
        return False

    def _verify(self, assertion: str, client_id: str) -> None:
        options = self._office.options
        try:
            header = jwt.get_unverified_header(assertion)
        except jwt.PyJWTError as error:
            raise RefusalError(50027, str(error)) from error
        algorithm = header.get("alg")
        by_sha1, by_sha256 = header.get("x5t"), header.get("x5t#S256")
        if (algorithm, bool(by_sha1), bool(by_sha256)) not in (
            ("RS256", True, False),
            ("PS256", False, True),
        ):
            raise RefusalError(5002730, f"alg '{algorithm}'")
        if algorithm == "PS256" and options.ps256_refused:
            raise RefusalError(5002730, "alg 'PS256'")
        thumbprint = _unbase64(str(by_sha1 or by_sha256)).hex()
        credentials = self._find(thumbprint)
        if credentials is None:
            raise RefusalError(
                700027,
                "The key was not found., Thumbprint of key used by client:"
                f" '{thumbprint.upper()}'",
            )
        key = credentials.key
        if not isinstance(key, rsa.RSAPrivateKey):
            raise RefusalError(5002730, "not an RSA key")
        try:
            payload = jwt.PyJWS().decode(
                assertion, key=key.public_key(), algorithms=[str(algorithm)]
            )
            claims = json.loads(payload)
        except jwt.InvalidSignatureError as error:
            raise RefusalError(
                700027,
                "The provided signature value did not match the expected signature"
                f" value., Thumbprint of key used by client: '{thumbprint.upper()}'",
            ) from error
        except (jwt.PyJWTError, ValueError) as error:
            raise RefusalError(50027, str(error)) from error
        if thumbprint in self.revoked_certificates:
            raise RefusalError(7000214)
        self._check_claims(claims, client_id)
        self._check_dates(credentials, thumbprint)

    def _find(self, thumbprint: str) -> Credentials | None:
        with self._lock:
            for one in self._registered:
                if thumbprint in (one.thumbprint_sha1_hex, one.thumbprint_sha256_hex):
                    return one
        return None

    def _now(self) -> float:
        if self._office.options.login_clock == "office":
            return self._office.clock.now().timestamp()
        return time.time()

    def _check_claims(self, claims: dict[str, Any], client_id: str) -> None:
        if claims.get("aud") != self._office.token_endpoint:
            raise RefusalError(700023, f"'{claims.get('aud')}'")
        for name in ("iss", "sub"):
            if str(claims.get(name)).lower() != client_id.lower():
                raise RefusalError(700021, f"'{name}'")
        if not isinstance(claims.get("jti"), str):
            raise RefusalError(50027, "jti")
        options, now = self._office.options, self._now()
        skew = options.assertion_skew.total_seconds()
        expires: Any = claims.get("exp")
        issued: Any = claims.get("iat", now)
        begins: Any = claims.get("nbf", issued)
        for value in (expires, issued, begins):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RefusalError(50027, "exp, iat and nbf are numbers")
        span = expires - begins
        if (
            expires < now - skew
            or max(begins, issued) > now + skew
            or span > options.assertion_span.total_seconds()
        ):
            text = (
                "Current time: {}, assertion valid from {}, expiry time of assertion {}"
            )
            raise RefusalError(
                700024,
                text.format(
                    *(
                        datetime.fromtimestamp(at, UTC).isoformat()
                        for at in (now, begins, expires)
                    )
                ),
            )

    def _check_dates(self, credentials: Credentials, thumbprint: str) -> None:
        now = self._now()
        if now > credentials.not_after.timestamp():
            raise RefusalError(
                700027,
                "The key used is expired., Thumbprint of key used by client:"
                f" '{thumbprint.upper()}', Found key 'Start="
                f"{credentials.not_before:%m/%d/%Y %H:%M:%S}, End="
                f"{credentials.not_after:%m/%d/%Y %H:%M:%S}'",
            )
        if now < credentials.not_before.timestamp():
            raise RefusalError(1000502)

    def _resource(self, form: dict[str, str], *, v2: bool) -> str:
        if v2:
            scope = form.get("scope")
            if scope is None:
                raise RefusalError(900144, "'scope'.")
            if " " in scope.strip():
                raise RefusalError(70011, f"'{scope}': one resource at a time")
            if not scope.endswith("/.default"):
                raise RefusalError(1002012, f"'{scope}'")
            resource = scope.removesuffix("/.default")
        else:
            resource = form.get("resource", "")
            if not resource:
                raise RefusalError(900144, "'resource'.")
        if resource not in (self._office.api_root, self._office.graph_root):
            raise RefusalError(500011, f"'{resource}'")
        return resource

    def _issue(self, resource: str, *, v2: bool, by_secret: bool) -> Answer:
        office, options = self._office, self._office.options
        now = int(office.clock.now().timestamp())
        roles = options.graph_roles if resource == office.graph_root else options.roles
        claims: dict[str, Any] = {
            "aud": resource,
            "iss": f"https://sts.windows.net/{office.tenant_id}/",
            "iat": now,
            "nbf": now,
            "exp": now + options.expires_in,
            "aio": secrets.token_urlsafe(24),
            "appid": office.client_id,
            "appidacr": "1" if by_secret else "2",
            "idp": f"https://sts.windows.net/{office.tenant_id}/",
            "oid": office.object_id,
            "sub": office.object_id,
            "tid": office.tenant_id,
            "uti": secrets.token_urlsafe(16),
            "ver": "1.0",
        }
        # An app without roles still gets a token (fact sheet 1.2).
        if roles:
            claims["roles"] = list(roles)
        claims |= dict(options.extra_token_claims)
        token = jwt.encode(
            claims, self._key, "RS256", headers={"kid": "emulator", "x5t": "emulator"}
        )
        if options.opaque_tokens:
            token = secrets.token_urlsafe(400)
        with self._lock:
            self._tokens[token] = claims
        body: dict[str, Any] = {
            "token_type": "Bearer",
            "expires_in": options.expires_in,
            "ext_expires_in": options.expires_in,
            "access_token": token,
        }
        if not v2:
            # v1 gives its numbers as strings (fact sheet 1.2).
            body |= {
                "expires_in": str(options.expires_in),
                "ext_expires_in": str(options.expires_in),
                "expires_on": str(now + options.expires_in),
                "not_before": str(now),
                "resource": resource,
            }
        return Answer(200, json.dumps(body).encode(), sign_in_headers())


def _unbase64(text: str) -> bytes:
    """base64url, with its padding or without (MSAL keeps it)."""
    text = text.rstrip("=")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return hashlib.sha256(text.encode()).digest()
