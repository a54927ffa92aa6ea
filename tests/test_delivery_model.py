"""The model of delivery, against the product."""

from __future__ import annotations

from delivery_model import make_machine
from hypothesis import HealthCheck, settings

import o365_poller

TestDelivery = make_machine(o365_poller).TestCase
TestDelivery.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
