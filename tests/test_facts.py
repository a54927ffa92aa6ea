"""What Microsoft fixes, against the fact sheet."""

from __future__ import annotations

from datetime import timedelta

import pytest

import o365_poller as poller


def test_the_content_types_are_the_five_that_microsoft_documents() -> None:
    assert poller.CONTENT_TYPES == (
        "Audit.AzureActiveDirectory",
        "Audit.Exchange",
        "Audit.SharePoint",
        "Audit.General",
        "DLP.All",
    )


@pytest.mark.parametrize(
    ("cloud", "login", "api", "graph"),
    [
        ("worldwide", "login.microsoftonline.com", "manage.office.com", "graph.microsoft.com"),
        ("gcc", "login.microsoftonline.com", "manage-gcc.office.com", "graph.microsoft.com"),
        ("gcc-high", "login.microsoftonline.us", "manage.office365.us", "graph.microsoft.us"),
        ("dod", "login.microsoftonline.us", "manage.protection.apps.mil", "dod-graph.microsoft.us"),
    ],
)  # fmt: skip
def test_a_cloud_answers_where_microsoft_documents(
    cloud: str, login: str, api: str, graph: str
) -> None:
    assert poller.CLOUDS[cloud] == poller.Cloud(
        f"https://{login}", f"https://{api}", f"https://{graph}"
    )


def test_there_are_four_clouds() -> None:
    assert set(poller.CLOUDS) == {"worldwide", "gcc", "gcc-high", "dod"}


@pytest.mark.parametrize(
    ("content_type", "permission"),
    [
        ("Audit.AzureActiveDirectory", "ActivityFeed.Read"),
        ("Audit.Exchange", "ActivityFeed.Read"),
        ("Audit.SharePoint", "ActivityFeed.Read"),
        ("Audit.General", "ActivityFeed.Read"),
        ("DLP.All", "ActivityFeed.ReadDlp"),
    ],
)
def test_a_content_type_wants_its_permission(
    content_type: str, permission: str
) -> None:
    assert poller.permission_for(content_type) == permission


def test_a_slice_is_shorter_than_a_day_and_all_bounds_are_the_contracts() -> None:
    assert timedelta(hours=1) < poller.SLICE < timedelta(hours=24)
    assert timedelta(days=7) == poller.RETENTION
    assert timedelta(days=8) == poller.LEDGER_KEPT
    assert timedelta(hours=24) == poller.MISSING_IS_LOST_AFTER
    assert timedelta(seconds=60) == poller.CLOCKS_AGREE
    assert poller.TRIES >= 4
    assert poller.PAUSES_IN_ALL <= 45
    assert poller.ANSWER_TIMEOUTS == 10
    assert poller.OUTAGE_FAILURES == 20
    assert poller.BLOB_BYTES == 256 << 20
    assert poller.BUDGET_BYTES + poller.BATCH_BYTES <= 32 << 20
