"""One switch for each thing that is open, or that a tenant can have its own way.

The open questions are those of the fact sheet, 8.3; they can be changed at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

CONTENT_TYPES = (
    "Audit.AzureActiveDirectory",
    "Audit.Exchange",
    "Audit.SharePoint",
    "Audit.General",
    "DLP.All",
)


@dataclass
class Options:
    # -- sign-in
    expires_in: int = 3599
    roles: tuple[str, ...] = ("ActivityFeed.Read", "ActivityFeed.ReadDlp")
    graph_roles: tuple[str, ...] = ("Application.Read.All",)
    client_secret: str | None = None
    ps256_refused: bool = False  # 8.3.14; dotnet 4.60.1 release note: 5002730
    x5c_ignored: bool = True
    login_clock: str = "real"  # or "office": assertions judged by the settable clock
    assertion_skew: timedelta = timedelta(minutes=5)
    assertion_span: timedelta = timedelta(minutes=11)
    extra_token_claims: tuple[tuple[str, str], ...] = ()
    opaque_tokens: bool = False  # a token that a client cannot read
    crlf_in_descriptions: bool = False  # older servers, fact sheet 1.5

    # -- tenant
    auditing_off: bool = False  # docs#89
    tenant_state: str = "ok"  # or "deleted" (AF20011), "misconfigured" (AF20012)
    app_id_as_tenant: bool = False  # wazuh/wazuh#38230

    # -- subscriptions
    cool_down: timedelta = timedelta(minutes=15)  # REF, August 2025
    cool_down_status: int = 403  # 403 data-prepper PR#6231; 429 also seen
    cool_down_per: str = "type"  # or "app"; 8.3.6
    stop_status: int = 200  # 200 REF, 204 MWC
    first_content_delay: timedelta = timedelta(0)  # 12 h REF, minutes G2O
    subscription_without_status: bool = False  # an entry of REF's example
    limbo_after_stop: bool = False  # docs#479

    # -- windows
    exact_24h: str = "refused"  # PAN; or "fine"
    over_24h: str = "error"  # or "partial": both in REF
    oldest_start: timedelta = timedelta(days=7)  # or 7 d + 1 h, BEATS
    window_code: str = "AF20055"  # or AF20030
    default_window: str = "24h"  # REF; or "today", TRB

    # -- listings
    next_page_header: str = "NextPageUri"  # NextPageUrl TRB; any case
    next_page_path: str = "v1"  # REF's example; or "v1.0"
    next_page_publisher: bool = False  # REF's example has none
    next_page_lower_case: bool = False  # EI: endtime; all names
    next_page_age: timedelta = timedelta(hours=1)
    listing_order: str = "available"  # or "reversed", "shuffled"
    content_expiration: timedelta = timedelta(days=7)  # 14 d EI, 20 d G2O
    visible_late: timedelta = timedelta(0)  # 8.3.12, for blobs published later on
    status_of: tuple[
        tuple[str, int], ...
    ] = ()  # undocumented ones: (("AF20051", 410),)

    # -- blobs and throttling
    throttle_status: int = 403  # TRB; or 429
    throttle_retry_after: int | None = None  # never seen by G2O
    rate_limit: int | None = None  # requests a window, for each PublisherIdentifier
    rate_window_s: float = 60.0

    # -- rules of good conduct
    lenient_start: bool = False  # no violation for a start without a listing

    def status(self, code: str, default: int) -> int:
        return dict(self.status_of).get(code, default)
