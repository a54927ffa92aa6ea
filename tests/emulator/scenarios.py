"""What has happened in the wild, or is feared to, one story each.

A scenario sets an emulator up and says what a client must bring about. It asks nothing
of the way in which a client does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from emulator import faults
from emulator.content import Blob, event_id
from emulator.events import ZOO, make_event, make_events
from emulator.office import Emulator
from emulator.options import CONTENT_TYPES

AAD = "Audit.AzureActiveDirectory"
EXCHANGE = "Audit.Exchange"
SHAREPOINT = "Audit.SharePoint"
DLP = "DLP.All"


@dataclass(frozen=True)
class Expectation:
    """What must be true of the event ids that a client has delivered.

    `arrive`: all delivered after `runs` runs, `between` being called once after the
    first. `arrive_first`: those due after the first run already (None: not said).
    `never`: cannot be had. `reach`: how far back the client has to look. `types`: the
    content types to ask for. `whole`: False where a client must report that something
    is missing or refused at the end of the last run; None where either is right.
    """

    arrive: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    arrive_first: frozenset[str] | None = None
    runs: int = 1
    between: Callable[[Emulator], None] | None = None
    reach: timedelta = timedelta(minutes=10)
    types: tuple[str, ...] = (AAD,)
    whole: bool | None = True


@dataclass(frozen=True)
class Scenario:
    name: str
    source: str
    story: str
    set_up: Callable[[Emulator], Expectation]


SCENARIOS: dict[str, Scenario] = {}
SetUp = Callable[[Emulator], Expectation]


def _scenario(source: str, name: str | None = None) -> Callable[[SetUp], SetUp]:
    def register(set_up: SetUp) -> SetUp:
        key = name or set_up.__name__
        story = re.sub(r"\s+", " ", set_up.__doc__ or "").strip()
        SCENARIOS[key] = Scenario(key, source, story, set_up)
        return set_up

    return register


def _add(name: str, source: str, story: str, set_up: SetUp) -> None:
    SCENARIOS[name] = Scenario(name, source, story, set_up)


def _ids(blobs: Iterable[Blob]) -> frozenset[str]:
    return frozenset(i for blob in blobs for i in blob.ids if i is not None)


def _when(office: Emulator, minutes: float) -> datetime:
    return office.clock.now() - timedelta(minutes=minutes)


def _publish(
    office: Emulator,
    count: int = 3,
    *,
    content_type: str = AAD,
    per: int = 4,
    minutes: float = 6,
) -> list[Blob]:
    """Blobs that became available one second after the other."""
    first = 1 + 10_000 * len(office.activity.blobs)
    start = _when(office, minutes)
    return [
        office.publish(
            content_type,
            make_events(per, content_type, first=first + n * per),
            created=start + timedelta(seconds=n % 120, milliseconds=n),
        )
        for n in range(count)
    ]


def _usual(office: Emulator, count: int = 3) -> frozenset[str]:
    office.enable(AAD)
    return _ids(_publish(office, count))


def _lost(ids: frozenset[str]) -> Expectation:
    return Expectation(never=ids, arrive_first=frozenset(), whole=False)


def _heal(office: Emulator) -> None:
    office.heal()


# == All is well =======================================================================


@_scenario("REF 2.6-2.7")
def healthy(office: Emulator) -> Expectation:
    """Three blobs of four events each in the last ten minutes. Nothing is wrong."""
    return Expectation(arrive=_usual(office))


@_scenario("M: G2O; 8.1.39")
def nothing_new(office: Emulator) -> Expectation:
    """The tenant is healthy and quiet: the listing is `[]`, as on most days of a small
    tenant. That is no error."""
    office.enable(AAD)
    return Expectation()


@_scenario("8.1.14; REF 2.2")
def every_content_type(office: Emulator) -> Expectation:
    """All five content types are enabled and each has its blobs."""
    office.enable()
    blobs = [b for t in CONTENT_TYPES for b in _publish(office, 2, content_type=t)]
    return Expectation(arrive=_ids(blobs), types=CONTENT_TYPES)


@_scenario("wazuh/wazuh#36818; O365B#47")
def busy_hour(office: Emulator) -> Expectation:
    """Two hundred blobs at 120 ms a request: one after the other takes 24 s and falls
    behind; in parallel it does not."""
    office.latency = 0.12
    return Expectation(arrive=_usual(office, 200))


# == Tokens (8.1.9-13) =================================================================


@_scenario("8.1.9; audit-events 11")
def short_lived_token(office: Emulator) -> Expectation:
    """Tokens live for two seconds, and a request takes half a second: the token runs
    out between the listing and the last blob."""
    office.options.expires_in = 2
    office.latency = 0.5
    return Expectation(arrive=_usual(office, 12))


@_scenario("8.1.9; 4.6")
def token_revoked_in_mid_run(office: Emulator) -> Expectation:
    """The token is revoked after the first blob, though it has an hour left: MSAL's
    cache still holds it and hands the same one back unless it is emptied."""
    arrive = _usual(office, 6)
    office.fail("blob", faults.revoke(), times=1, after=1)
    return Expectation(arrive=arrive)


@_scenario("8.1.10")
def token_endpoint_throttled(office: Emulator) -> Expectation:
    """The token endpoint answers 429 with Retry-After once, then it is well."""
    arrive = _usual(office)
    office.fail("token", faults.throttle(429, retry_after=1), times=1)
    return Expectation(arrive=arrive, runs=2)


@_scenario("8.1.10")
def token_endpoint_down(office: Emulator) -> Expectation:
    """503 with a page of HTML at the token endpoint, for as long as the run lasts:
    Microsoft could not be reached, which is no refusal."""
    arrive = _usual(office)
    office.fail("token", faults.status(503, style="html"))
    none: frozenset[str] = frozenset()
    return Expectation(arrive=arrive, arrive_first=none, runs=2, between=_heal)


@_scenario("8.1.10")
def token_endpoint_not_json(office: Emulator) -> Expectation:
    """200 and HTML in place of a token: a proxy has answered."""
    ids = _usual(office)
    office.fail("token", faults.html())
    return _lost(ids)


@_scenario("8.1.10")
def token_endpoint_hangs(office: Emulator) -> Expectation:
    """The token endpoint takes the request and says nothing. MSAL itself would wait
    for ever."""
    ids = _usual(office)
    office.fail("token", faults.hang())
    return _lost(ids)


@_scenario("1.5; wazuh/wazuh#27069")
def app_not_in_tenant(office: Emulator) -> Expectation:
    """AADSTS700016: the application is not known in this tenant."""
    ids = _usual(office)
    office.fail("token", faults.aadsts(700016))
    return _lost(ids)


@_scenario("1.5; 8.1.7")
def certificate_not_registered(office: Emulator) -> Expectation:
    """AADSTS700027: nobody has uploaded this certificate, or it was taken away."""
    ids = _usual(office)
    office.fail("token", faults.aadsts(700027, "The key was not found."))
    return _lost(ids)


@_scenario("8.3.14; entra-docs PR#1301; dotnet 4.60.1")
def ps256_refused(office: Emulator) -> Expectation:
    """Some places refuse PS256 with x5t#S256 (AADSTS5002730); RS256 with x5t goes. Only
    a client that signs so gets in."""
    office.options.ps256_refused = True
    return Expectation(never=_usual(office), whole=False)


@_scenario("8.1.11; powerapps-tools#300; coe-starter-kit#3253")
def token_never_good_enough(office: Emulator) -> Expectation:
    """Every call answers the framework's 401, with a fresh token too: the wrong cloud.
    Asking again and again helps nobody."""
    ids = _usual(office)
    for operation in ("list", "content", "blob", "start"):
        office.fail(operation, faults.denied())
    return _lost(ids)


@_scenario("8.1.12; coe-starter-kit#3192, #1074")
def permission_missing(office: Emulator) -> Expectation:
    """The token carries ServiceHealth.Read alone: 401 and AF10001, and a new token
    would be no better."""
    office.options.roles = ("ServiceHealth.Read",)
    return _lost(_usual(office))


@_scenario("8.1.12; 1.2")
def no_permission_at_all(office: Emulator) -> Expectation:
    """Consent was never given: there is a token, but without roles."""
    office.options.roles = ()
    return _lost(_usual(office))


@_scenario("8.1.12; powerapps-tools#702; wazuh/wazuh#29674")
def dlp_permission_missing(office: Emulator) -> Expectation:
    """ActivityFeed.ReadDlp is missing: DLP.All is refused, the rest must go on."""
    office.options.roles = ("ActivityFeed.Read",)
    office.enable(AAD, DLP)
    arrive = _ids(_publish(office))
    never = _ids(_publish(office, content_type=DLP))
    return Expectation(arrive=arrive, never=never, types=(DLP, AAD), whole=False)


@_scenario("8.1.13; Defender for Cloud Apps docs")
def tenant_misconfigured(office: Emulator) -> Expectation:
    """AF20012: the tenant is not set up for this; a missing licence is one cause."""
    office.options.tenant_state = "misconfigured"
    return _lost(_usual(office))


@_scenario("8.1.13")
def tenant_deleted(office: Emulator) -> Expectation:
    """AF20011: the tenant does not exist any more."""
    office.options.tenant_state = "deleted"
    return _lost(_usual(office))


# == Subscriptions (8.1.15-19) =========================================================


@_scenario("8.1.15; 2.5; 3.3")
def never_subscribed(office: Emulator) -> Expectation:
    """Nothing was ever started. The type is absent from the list; after the start,
    content of before the start is there as well (G2O)."""
    return Expectation(arrive=_ids(_publish(office)), runs=2)


@_scenario("4.3; wazuh/wazuh#29674")
def subscription_disabled(office: Emulator) -> Expectation:
    """Somebody has switched the subscription off: AF20023 until it is started again."""
    arrive = _ids(_publish(office))
    office.subscriptions[AAD] = "disabled"
    return Expectation(arrive=arrive, runs=2)


def _cool_down(status: int) -> SetUp:
    def set_up(office: Emulator) -> Expectation:
        office.options.cool_down_status = status
        arrive = _ids(_publish(office))
        office.enable(EXCHANGE)
        fine = _ids(_publish(office, content_type=EXCHANGE))
        office.activity.asked_before(AAD)
        return Expectation(
            arrive=arrive | fine,
            arrive_first=fine,
            runs=2,
            between=lambda office: office.activity.forget_starts(),
            types=(AAD, EXCHANGE),
        )

    return set_up


for _status, _source in (
    (403, "8.1.16; data-prepper PR#6231"),
    (429, "8.1.16; EI PR#15476"),
):
    _add(
        f"start_cool_down_{_status}",
        _source,
        "Another program has just asked for the start, which is refused for 15 minutes"
        f" with HTTP {_status} and code 429. The other content type must go on.",
        _cool_down(_status),
    )


@_scenario("8.1.17; docs#89; powerapps-tools#239")
def auditing_off(office: Emulator) -> Expectation:
    """Unified auditing was never switched on: start answers 400 with a sentence as its
    code and a stack trace as its message."""
    office.options.auditing_off = True
    return _lost(_ids(_publish(office)))


@_scenario("8.1.18; REF")
def first_content_takes_12_hours(office: Emulator) -> Expectation:
    """After the first start the listing stays empty for hours. That is no error."""
    office.options.first_content_delay = timedelta(hours=12)
    _publish(office)
    return Expectation(arrive_first=frozenset(), runs=2)


@_scenario("8.1.19; docs#479")
def subscription_in_limbo(office: Emulator) -> Expectation:
    """After a stop and a start in haste: start says that it is enabled, the list is
    empty and content says AF20023. Waiting helps; a stop would make it worse."""
    arrive = _ids(_publish(office))
    office.activity.into_limbo(AAD)
    return Expectation(
        arrive=arrive,
        arrive_first=frozenset(),
        runs=2,
        between=lambda office: office.activity.out_of_limbo(),
    )


@_scenario("2.5")
def subscription_without_status(office: Emulator) -> Expectation:
    """One row of the subscription list has no status, as in REF's example."""
    office.options.subscription_without_status = True
    return Expectation(arrive=_usual(office), runs=2)


# == Windows (8.1.20-23) ===============================================================


@_scenario("8.1.20; 3.1")
def edges_of_seconds(office: Emulator) -> Expectation:
    """Blobs on the first and the last millisecond of neighbouring seconds: start is
    inclusive, end exclusive, so none is in two windows that touch and none in neither."""
    office.enable(AAD)
    base = _when(office, 4).replace(microsecond=0)
    blobs = [
        office.publish(AAD, [make_event("login", n)], created=base + offset)
        for n, offset in enumerate(
            timedelta(seconds=s, milliseconds=ms)
            for s in range(6)
            for ms in (0, 1, 500, 999)
        )
    ]
    return Expectation(arrive=_ids(blobs), runs=2)


@_scenario("8.1.21; PAN; EI PR#8402; powerapps-tools#1126")
def a_week_to_catch_up(office: Emulator) -> Expectation:
    """Blobs every five hours of the last seven days (a margin of an hour aside), and
    exactly 24 hours are refused: only slices below that get everything."""
    office.enable(AAD)
    blobs = [
        office.publish(
            AAD,
            make_events(2, AAD, first=n * 10),
            created=_when(office, 60 * 5 * n + 4),
        )
        for n in range(33)
    ]
    return Expectation(arrive=_ids(blobs), reach=timedelta(days=7))


@_scenario("8.1.21; REF")
def over_24_hours_is_partial(office: Emulator) -> Expectation:
    """A window of more than 24 hours is not refused but answered in part, with 200."""
    office.options.over_24h = "partial"
    office.options.exact_24h = "fine"
    office.enable(AAD)
    blobs = [
        office.publish(AAD, [make_event("login", n)], created=_when(office, 60 * n + 4))
        for n in range(60)
    ]
    return Expectation(arrive=_ids(blobs), reach=timedelta(hours=61))


@_scenario("8.1.23; BEATS")
def server_clock_is_behind(office: Emulator) -> Expectation:
    """The service's clock is five minutes behind the client's; its Date header tells."""
    office.clock.run_from(_when(office, 5))
    return Expectation(arrive=_usual(office))


@_scenario("8.1.23; BEATS")
def server_clock_is_ahead(office: Emulator) -> Expectation:
    """The service's clock is two minutes ahead of the client's."""
    office.clock.run_from(_when(office, -2))
    return Expectation(arrive=_usual(office))


# == Pages (8.1.24-26) =================================================================


def _paged(**options: object) -> SetUp:
    def set_up(office: Emulator) -> Expectation:
        for name, value in options.items():
            setattr(office.options, name, value)
        office.page_size = 3
        return Expectation(arrive=_usual(office, 10))

    return set_up


_PAGED: dict[str, tuple[str, dict[str, object]]] = {
    "pages": ("NextPageUri without PublisherIdentifier, under /api/v1/ (REF).", {}),
    "pages_v1_0": ("The path says /api/v1.0/.", {"next_page_path": "v1.0"}),
    "pages_with_publisher": (
        "NextPageUri has PublisherIdentifier already; twice would be one too many.",
        {"next_page_publisher": True},
    ),
    "pages_lower_case": (
        "All names of its parameters are in lower case (EI).",
        {"next_page_lower_case": True, "next_page_publisher": True},
    ),
    "pages_header_lower_case": (
        "The header's name comes in lower case: names of headers have no case.",
        {"next_page_header": "nextpageuri"},
    ),
    "pages_header_url": (
        (
            "The header is called NextPageUrl, as in one place of TRB; SENT reads that"
            " one and so never pages."
        ),
        {"next_page_header": "NextPageUrl"},
    ),
}
for _name, (_story, _options) in _PAGED.items():
    _add(
        _name,
        "8.1.24-25; 2.6; wazuh/wazuh#30921, #36818",
        f"Ten blobs on pages of three. {_story}",
        _paged(**_options),
    )


@_scenario("8.1.26; 2.6")
def empty_page_with_more(office: Emulator) -> Expectation:
    """The first page is `[]` and has a NextPageUri; the blobs are on the next one."""
    arrive = _usual(office)
    office.fail("content", faults.next_page("empty_page"), times=1)
    return Expectation(arrive=arrive)


@_scenario("8.1.26; EI 3.8.1")
def next_page_has_expired(office: Emulator) -> Expectation:
    """The second page answers AF20031 once: the listing has to begin again."""
    office.page_size = 3
    arrive = _usual(office, 10)
    office.fail("content", faults.next_page("expired"), times=1)
    return Expectation(arrive=arrive, runs=2)


def _hostile(kind: str) -> SetUp:
    def set_up(office: Emulator) -> Expectation:
        office.page_size = 3
        office.enable(AAD)
        blobs = _publish(office, 6)
        office.fail("content", faults.next_page(kind))
        if kind.startswith("endless"):
            return Expectation(whole=False)
        return Expectation(never=_ids(blobs[3:]), whole=False)

    return set_up


_HOSTILE = {
    "other_host": "names another host: the token must not go there",
    "http": "is plain http: the token must not go there",
    "user_info": "hides another host behind an @",
    "other_tenant": "names another tenant",
    "garbage": "is no URL",
    "loop": "names the page itself",
    "endless_same": "never ends; each page has the same blobs",
    "endless_empty": "never ends; each page is empty",
    "endless_fresh": "never ends; each page has blobs never seen before",
}
for _name, _story in _HOSTILE.items():
    _add(
        f"next_page_{_name}",
        "8.1.26",
        f"The NextPageUri {_story}.",
        _hostile(_name),
    )


# == Content addresses and rows (8.1.27-28, 38) ========================================


def _odd_uri(form: str) -> SetUp:
    def set_up(office: Emulator) -> Expectation:
        office.enable(AAD)
        roots = {
            "localhost": f"http://localhost/{office.other_tenant_id}/activity/feed",
            "other_host": office.feed_root.replace(office.api_root, office.trap_root),
            "http": office.feed_root.replace(office.api_root, office.trap_http_root),
            "other_tenant": office.feed_root.replace(
                office.tenant_id, office.other_tenant_id
            ),
        }
        odd = (
            "20260523173500123000456$20260523173712789000456$audit_azureactivedirectory"
        )
        odd += "$Audit_AzureActiveDirectory$na0030$na0030"
        blob = office.publish(
            AAD,
            make_events(3, first=900),
            created=_when(office, 4),
            content_id=odd,
            content_uri=f"{roots[form]}/audit/{odd}",
        )
        return Expectation(arrive=_ids([blob]) | _ids(_publish(office)))

    return set_up


for _name, _story in {
    "localhost": "is http://localhost/{other tenant}/... (EI's fixture, sdh-beats#7627)",
    "other_host": "names another host",
    "http": "is plain http",
    "other_tenant": "names another tenant, where the blob would answer AF20052",
}.items():
    _add(
        f"content_uri_{_name}",
        "8.1.27; 2.7; DP PR#6011",
        f"One blob's contentUri {_story}. Its contentId is good: the address can be"
        " rebuilt from it.",
        _odd_uri(_name),
    )


@_scenario("2.6; coe-starter-kit#6248; REF")
def odd_content_ids(office: Emulator) -> Expectation:
    """contentIds of the older shapes, one with a mark at its end, one with a GUID: they
    are opaque."""
    office.enable(AAD)
    tenant = office.tenant_id.replace("-", "")
    odd = (
        f"492638008028$492638008028${tenant}aad20260523$9f3a{'0' * 28}$04",
        (
            "20260523173500123000456$20260523173712789000456$audit_x$Audit_X"
            "$IsFromNotification"
        ),
        (
            "20260523173500123000457$20260523173712789000457$audit_x$Audit_X$"
            "6d0f8a52-7c11-4d5e-9a41-0d6f3c2b1a00"
        ),
    )
    blobs = [
        office.publish(
            AAD,
            make_events(2, first=10 * n),
            created=_when(office, 4),
            content_id=identity,
        )
        for n, identity in enumerate(odd)
    ]
    return Expectation(arrive=_ids(blobs))


@_scenario("8.1.28; M: G2O")
def expiry_after_20_days(office: Emulator) -> Expectation:
    """contentExpiration is 20 days after contentCreated."""
    office.options.content_expiration = timedelta(days=20)
    return Expectation(arrive=_usual(office))


@_scenario("8.1.28; EI PR#9477; SEKOIA PR#1724; audit-events 11")
def listed_but_expired(office: Emulator) -> Expectation:
    """A listed blob has expired already; the one after it must still be fetched."""
    office.enable(AAD)
    gone = office.publish(
        AAD,
        make_events(3, first=500),
        created=_when(office, 7),
        expires=_when(office, 1),
    )
    return Expectation(arrive=_ids(_publish(office)), never=_ids([gone]), whole=False)


@_scenario("8.1.38; REF 2.6")
def listing_out_of_order(office: Emulator) -> Expectation:
    """Neither blobs nor events come in the order of their times."""
    office.options.listing_order = "shuffled"
    office.page_size = 4
    return Expectation(arrive=_usual(office, 15))


@_scenario("docs#479")
def content_type_spelt_otherwise(office: Emulator) -> Expectation:
    """Asked for Audit.SharePoint, the rows say Audit.Sharepoint."""
    office.enable(SHAREPOINT)
    blobs = _publish(office, content_type=SHAREPOINT)
    office.fail("content", faults.listing("type_spelling"))
    return Expectation(arrive=_ids(blobs), types=(SHAREPOINT,))


@_scenario("8.1.36; 4")
def rows_listed_twice(office: Emulator) -> Expectation:
    """Every row of the listing stands there twice."""
    arrive = _usual(office)
    office.fail("content", faults.listing("twice"))
    return Expectation(arrive=arrive)


@_scenario("feared; 4.1")
def row_without_content_id(office: Emulator) -> Expectation:
    """After the good rows comes one that is an object of another kind."""
    arrive = _usual(office)
    office.fail("content", faults.listing("more", {"unexpected": True}))
    return Expectation(arrive=arrive, whole=False)


# == Blobs that cannot be had (8.1.29) =================================================


def _one_bad(fault: faults.Fault, *, heals: bool = False) -> SetUp:
    def set_up(office: Emulator) -> Expectation:
        office.enable(AAD)
        blobs = _publish(office, 5)
        bad, good = blobs[2], blobs[:2] + blobs[3:]
        office.fail("blob", fault, match=bad.content_id)
        if heals:
            return Expectation(
                arrive=_ids(blobs), arrive_first=_ids(good), runs=2, between=_heal
            )
        return Expectation(arrive=_ids(good), never=_ids([bad]), whole=False)

    return set_up


_BAD_BLOBS: dict[str, tuple[str, str, faults.Fault, bool]] = {
    "blob_gone": (
        "8.1.29; EI fixture",
        "is gone: 404 and AF20050, for ever",
        faults.af("AF20050"),
        False,
    ),
    "blob_expired": (
        "8.1.29; 4.3",
        "expires between listing and fetch: AF20051",
        faults.af("AF20051"),
        False,
    ),
    "blob_id_refused": (
        "8.1.29; coe-starter-kit#6248, powerapps-tools#552",
        "answers AF20052, though listed a moment ago",
        faults.af("AF20052"),
        False,
    ),
    "blob_not_found_html": (
        "4.2",
        "answers 404 with a page of HTML",
        faults.status(404, style="html"),
        False,
    ),
    "blob_is_an_object": (
        "8.1.39",
        "is a JSON object in place of an array, at the first run",
        faults.not_array({"Message": "odd"}),
        True,
    ),
    "blob_is_null": ("8.1.39", "is `null`, at the first run", faults.not_array(), True),
    "blob_of_strings": (
        "8.1.39",
        "is an array of things that are no events, at the first run",
        faults.not_array([1, "two", None]),
        True,
    ),
    "poison_blob": (
        "2.6; EI 3.10.6; docs#168",
        "answers 500 to every try of the first run; it must hold nothing else up",
        faults.status(500),
        True,
    ),
    "blob_always_cut": (
        "EI 3.10.6 (unexpected EOF froze the cursor)",
        "ends before its Content-Length at every try of the first run",
        faults.short_body(),
        True,
    ),
    "blob_is_html": (
        "4.1",
        "is 200 and a page of HTML at every try of the first run",
        faults.html(),
        True,
    ),
    "blob_is_no_utf8": (
        "5.7; feared",
        "has a byte that is no UTF-8, at the first run",
        faults.not_utf8(),
        True,
    ),
}
for _name, (_source, _story, _fault, _heals) in _BAD_BLOBS.items():
    _add(
        _name,
        _source,
        f"One blob of five {_story}. The other four must arrive.",
        _one_bad(_fault, heals=_heals),
    )


# == Throttling and trouble (8.1.30-34) ================================================


def _first_then_well(
    operation: str, fault: faults.Fault, times: int = 2, count: int = 4
) -> SetUp:
    def set_up(office: Emulator) -> Expectation:
        arrive = _usual(office, count)
        office.fail(operation, fault, times=times)
        return Expectation(arrive=arrive, runs=2)

    return set_up


_PASSING: dict[str, tuple[str, str, str, faults.Fault, int]] = {
    "throttled_403": (
        "8.1.30; TRB",
        "Two blob requests answer AF429 with HTTP 403, as documented.",
        "blob",
        faults.throttle(403),
        2,
    ),
    "throttled_429": (
        "8.1.30",
        "Two blob requests answer AF429 with HTTP 429 and no Retry-After.",
        "blob",
        faults.throttle(429),
        2,
    ),
    "throttled_listing": (
        "8.1.30",
        "The listing is throttled twice.",
        "content",
        faults.throttle(429, retry_after=1),
        2,
    ),
    "retry_after_seconds": (
        "8.1.30; 4.5",
        "429 with Retry-After: 1.",
        "blob",
        faults.throttle(429, retry_after=1),
        1,
    ),
    "retry_after_date": (
        "8.1.30; 4.5",
        "429 with Retry-After as a date two seconds on.",
        "blob",
        faults.throttle(429, retry_after=2, as_date=True),
        1,
    ),
    "retry_after_nonsense": (
        "feared",
        "429 with a Retry-After that is neither seconds nor date.",
        "blob",
        faults.throttle(429, retry_after="soon"),
        1,
    ),
    "error_in_single_quotes": (
        "8.1.32; TRB; Office365APIEditor#1",
        "The throttling error comes as pseudo-JSON in single quotes, with HTTP 403.",
        "blob",
        faults.status(403, af="AF429", style="single_quotes"),
        2,
    ),
    "error_with_bom": (
        "8.1.33",
        "AF429 with HTTP 403 and a BOM before its JSON.",
        "blob",
        faults.status(403, af="AF429", style="bom"),
        1,
    ),
    "listing_500": (
        "8.1.31; docs#168",
        "The listing answers 500 and AF50000 twice.",
        "content",
        faults.status(500),
        2,
    ),
    "list_503": (
        "8.1.31",
        "The list of subscriptions answers 503 once.",
        "list",
        faults.status(503, style="html"),
        1,
    ),
    "blob_408": ("8.1.31", "408 once.", "blob", faults.status(408), 1),
    "blob_502_html": (
        "8.1.31",
        "502 with HTML twice.",
        "blob",
        faults.status(502, style="html"),
        2,
    ),
    "blob_503_text": (
        "8.1.32; wazuh/wazuh#16485",
        "503 with plain text once.",
        "blob",
        faults.status(503, style="text"),
        1,
    ),
    "blob_504_empty": (
        "8.1.32",
        "504 with nothing in it once.",
        "blob",
        faults.status(504, style="empty"),
        1,
    ),
    "listing_is_html": (
        "4.1",
        "The listing is 200 and a page of HTML once.",
        "content",
        faults.html(),
        1,
    ),
    "listing_is_an_object": (
        "feared",
        "The listing is an object once.",
        "content",
        faults.not_array({"value": []}),
        1,
    ),
    "listing_cut": (
        "8.1.34",
        "The listing ends before its Content-Length once.",
        "content",
        faults.short_body(),
        1,
    ),
    "connection_reset": ("8.1.34", "RST twice.", "blob", faults.reset(), 2),
    "connection_closed": (
        "8.1.34",
        "FIN in place of an answer, twice.",
        "blob",
        faults.close_without_answer(),
        2,
    ),
    "reset_in_body": (
        "8.1.34",
        "RST in the middle of a blob, twice.",
        "blob",
        faults.reset_mid_body(),
        2,
    ),
    "truncated_blob": (
        "8.1.34; EI 3.10.6",
        "Two blobs end before their Content-Length.",
        "blob",
        faults.short_body(),
        2,
    ),
    "cut_gzip": (
        "8.1.34; 6",
        (
            "Two blobs are cut gzip streams with a Content-Length that fits: requests"
            " does not notice, only the JSON does."
        ),
        "blob",
        faults.cut_gzip(),
        2,
    ),
    "broken_chunking": (
        "8.1.34",
        "Two blobs come in chunks of which the second has no size.",
        "blob",
        faults.bad_chunking(),
        2,
    ),
    "half_a_blob": (
        "8.1.34",
        "Two blobs are the first half of their text, in good order otherwise.",
        "blob",
        faults.half_json(),
        2,
    ),
    "empty_answer": (
        "8.1.34",
        "200 and not a byte, once.",
        "blob",
        faults.empty_body(),
        1,
    ),
    "lost_listing_answer": (
        "2.3; feared",
        "The answer to the listing is lost after the work was done.",
        "content",
        faults.reset(processed=True),
        1,
    ),
}
for _name, (_source, _story, _operation, _fault, _times) in _PASSING.items():
    _add(_name, _source, _story, _first_then_well(_operation, _fault, _times))


@_scenario("8.1.30; O365B#17")
def rate_limited(office: Emulator) -> Expectation:
    """Twenty requests a second for each PublisherIdentifier, and sixty blobs. Without
    the parameter one is in the pool of the zero GUID."""
    office.options.rate_limit = 20
    office.options.rate_window_s = 1.0
    return Expectation(arrive=_usual(office, 60), runs=3)


@_scenario("8.1.31; Office365APIEditor#1; microsoft-graph-docs#841")
def outage(office: Emulator) -> Expectation:
    """AF50000 to everything for the whole of the first run, well afterwards."""
    arrive = _usual(office)
    for operation in ("list", "content", "blob"):
        office.fail(operation, faults.status(500))
    none: frozenset[str] = frozenset()
    return Expectation(arrive=arrive, arrive_first=none, runs=2, between=_heal)


@_scenario("8.1.31")
def blobs_are_down(office: Emulator) -> Expectation:
    """Listings work, each of forty blobs answers 503: an outage, not forty bad blobs."""
    arrive = _usual(office, 40)
    office.fail("blob", faults.status(503, style="html"))
    none: frozenset[str] = frozenset()
    return Expectation(arrive=arrive, arrive_first=none, runs=2, between=_heal)


@_scenario("8.1.33; beats#44327, PR#45739")
def byte_order_mark(office: Emulator) -> Expectation:
    """A UTF-8 BOM before the listing and before a blob."""
    arrive = _usual(office)
    blob = office.publish(
        AAD, make_events(3, first=700), created=_when(office, 3), bom=True
    )
    office.fail("content", faults.bom())
    return Expectation(arrive=arrive | _ids([blob]))


@_scenario("8.1.34; 6")
def dripping_server(office: Emulator) -> Expectation:
    """Blobs come a byte a tenth of a second: no single read times out, and the whole
    would take minutes."""
    ids = _usual(office, 2)
    office.fail("blob", faults.drip(0.1))
    return _lost(ids)


@_scenario("8.1.34")
def hanging_blob(office: Emulator) -> Expectation:
    """One blob request is never answered; the others must arrive."""
    office.enable(AAD)
    blobs = _publish(office, 4)
    office.fail("blob", faults.hang(), match=blobs[1].content_id)
    good = _ids(blobs[:1] + blobs[2:])
    return Expectation(arrive=_ids(blobs), arrive_first=good, runs=2, between=_heal)


@_scenario("feared; 5.6")
def endless_blob(office: Emulator) -> Expectation:
    """One blob never ends; the others must arrive, in bounded memory."""
    office.enable(AAD)
    blobs = _publish(office, 3)
    office.fail("blob", faults.endless_body(), match=blobs[1].content_id)
    good = _ids(blobs[:1] + blobs[2:])
    return Expectation(arrive=good, never=_ids(blobs[1:2]), whole=False)


@_scenario("feared; 5.6")
def gzip_bomb(office: Emulator) -> Expectation:
    """One blob of half a megabyte unpacks to 300 MB; the others must arrive."""
    office.enable(AAD)
    blobs = _publish(office, 3)
    office.fail("blob", faults.gzip_bomb(), match=blobs[1].content_id)
    good = _ids(blobs[:1] + blobs[2:])
    return Expectation(arrive=good, never=_ids(blobs[1:2]), whole=False)


# == Duplicates, late and growing blobs (8.1.35-39) ====================================


@_scenario("8.1.35; beats#34304; DDB#75; audit-events 11")
def duplicates(office: Emulator) -> Expectation:
    """The same Id twice in one blob, again in the next one, and with its members in
    another order. Each Id must arrive at least once."""
    office.enable(AAD)
    events = make_events(4)
    turned = dict(reversed(events[3].items()))
    first = office.publish(AAD, [*events, events[0]], created=_when(office, 5))
    second = office.publish(
        AAD, [turned, *make_events(2, first=50)], created=_when(office, 4)
    )
    return Expectation(arrive=_ids([first, second]))


@_scenario("8.1.35; wazuh/wazuh#20784; api-management-developer-portal#1063")
def same_events_days_later(office: Emulator) -> Expectation:
    """A new blob brings events that another blob brought five days ago."""
    office.enable(AAD)
    events = make_events(3, at=_when(office, 60 * 24 * 5))
    office.publish(AAD, events, created=_when(office, 60 * 24 * 5))
    again = office.publish(AAD, events, created=_when(office, 4))
    return Expectation(arrive=_ids([again]))


@_scenario("8.1.36; beats PR#19719")
def growing_blob(office: Emulator) -> Expectation:
    """A listing whose start is a blob's very creation shows a part of that blob."""
    office.enable(AAD)
    blob = office.publish(AAD, make_events(8), created=_when(office, 5), grows=True)
    return Expectation(arrive=_ids([blob]), runs=2)


@_scenario("8.1.37; 3.2")
def old_events_in_a_new_blob(office: Emulator) -> Expectation:
    """A blob of now holds events of three days ago."""
    office.enable(AAD)
    events = make_events(3, at=_when(office, 60 * 24 * 3))
    blob = office.publish(AAD, events, created=_when(office, 3))
    return Expectation(arrive=_ids([blob]))


@_scenario("8.1.37; 8.3.12; docs#240")
def visible_late(office: Emulator) -> Expectation:
    """A blob is listed only after the first run, with a contentCreated of before it,
    inside the overlap."""
    early = _usual(office)

    def between(office: Emulator) -> None:
        office.activity.show(late.content_id)

    late = office.publish(
        AAD,
        make_events(3, first=400),
        created=_when(office, 1),
        visible=office.clock.now() + timedelta(days=1),
    )
    return Expectation(
        arrive=early | _ids([late]), arrive_first=early, runs=2, between=between
    )


@_scenario("8.1.39; 5.6; wazuh/wazuh#8831")
def sizes_of_blobs(office: Emulator) -> Expectation:
    """An empty blob, one with one event, one with 5,000 and one of several MB."""
    office.enable(AAD)
    big = [make_event("login", 90_000 + n, Filler="f" * 100_000) for n in range(60)]
    blobs = [
        office.publish(AAD, [], created=_when(office, 5)),
        office.publish(AAD, make_events(1), created=_when(office, 5)),
        office.publish(AAD, make_events(5000, first=10), created=_when(office, 4)),
        office.publish(AAD, big, created=_when(office, 4)),
    ]
    return Expectation(arrive=_ids(blobs))


@_scenario("audit-events 11")
def pretty_blob(office: Emulator) -> Expectation:
    """One event a line with CR LF between them, as an older server gave."""
    office.enable(AAD)
    blob = office.publish(AAD, make_events(5), created=_when(office, 4), pretty=True)
    return Expectation(arrive=_ids([blob]))


@_scenario("8.1.40; 5.3-5.7; audit-events 8-12")
def event_zoo(office: Emulator) -> Expectation:
    """Every odd event at once: addresses, nulls, missing Ids, JSON in strings, CR LF,
    U+2028, lone surrogates, numbers that Python or a double cannot hold, 3 MB, 300
    levels."""
    office.enable(AAD)
    for n, text in enumerate(ZOO):
        office.publish(
            AAD, [text], created=_when(office, 5) + timedelta(milliseconds=n)
        )
    office.publish(AAD, list(ZOO), created=_when(office, 3))
    ids = (event_id(text) for text in ZOO)
    return Expectation(arrive=frozenset(one for one in ids if one))


@_scenario("5.7; feared")
def nested_out_of_reason(office: Emulator) -> Expectation:
    """One event is nested 100,000 levels deep, on which Python's json gives up with a
    RecursionError. The other blobs must arrive."""
    arrive = _usual(office)
    deep = '{"Id":"deep","Deep":' + "[" * 100_000 + "]" * 100_000 + "}"
    office.publish(AAD, [deep], created=_when(office, 4))
    return Expectation(arrive=arrive, whole=None)


# == Redirects (8.1.42) ================================================================


def _redirect(operation: str, to: str) -> SetUp:
    def set_up(office: Emulator) -> Expectation:
        ids = _usual(office)
        office.fail(operation, faults.redirect(to))
        if operation == "list":
            # Listings and blobs are well: a client may go on without the list.
            return Expectation(whole=None)
        return Expectation(never=ids, whole=False)

    return set_up


for _operation in ("token", "list", "content", "blob"):
    _add(
        f"redirect_{_operation}",
        "8.1.42",
        f"The answer to {_operation} is a redirect to another host: a trap for tokens.",
        _redirect(_operation, "trap"),
    )
_add(
    "redirect_http",
    "8.1.42",
    "A blob redirects to plain http.",
    _redirect("blob", "trap_http"),
)
_add(
    "redirect_self",
    "8.1.42",
    "A listing redirects to another address on the same host, where requests would"
    " send the token again.",
    _redirect("content", "self"),
)


# == Names of applications (8.1.43) ====================================================


def _graph(fault: faults.Fault | None, roles: tuple[str, ...] | None = None) -> SetUp:
    def set_up(office: Emulator) -> Expectation:
        if roles is not None:
            office.options.graph_roles = roles
        if fault is not None:
            office.fail("graph", fault)
        return Expectation(arrive=_usual(office))

    return set_up


for _name, _story, _graph_fault, _roles in (
    ("graph_no_permission", "403: Application.Read.All is missing", None, ()),
    ("graph_throttled", "429 with Retry-After: 60", faults.throttle(429, 60), None),
    ("graph_down", "503 with HTML", faults.status(503, style="html"), None),
    ("graph_hangs", "silence", faults.hang(), None),
    ("graph_redirects", "a redirect to another host", faults.redirect("trap"), None),
    ("graph_knows_no_app", "404 for every app", faults.status(404), None),
):
    _add(
        _name,
        "8.1.43; 7",
        f"The Graph host answers: {_story}. Names are best effort; the events must"
        " arrive.",
        _graph(_graph_fault, _roles),
    )


# == All at once =======================================================================


@_scenario("8.1.31, 34; 6")
def a_bad_day(office: Emulator) -> Expectation:
    """A bit of everything, each a few times: throttling, 5xx, resets, cut bodies, a
    revoked token, on thirty blobs over pages of seven."""
    office.page_size = 7
    arrive = _usual(office, 30)
    for n, fault in enumerate(
        (
            faults.throttle(429, retry_after=1),
            faults.status(500),
            faults.reset(),
            faults.short_body(),
            faults.cut_gzip(),
            faults.revoke(),
            faults.status(503, style="html"),
        )
    ):
        office.fail("blob", fault, times=1, after=3 * n)
    office.fail("content", faults.status(504, style="empty"), times=1, after=1)
    return Expectation(arrive=arrive, runs=2)
