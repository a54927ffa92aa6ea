"""A strict stand-in for Entra ID, the Office 365 Management Activity API and Graph.

It reproduces what `office365-management-api.md` (the fact sheet) says of them, with a
switch for each open question and a fault for each thing that has gone wrong in the
wild. It knows no client.
"""

from emulator import events, faults
from emulator.clock import Clock
from emulator.content import Blob
from emulator.credentials import Credentials
from emulator.journal import Journal, Request
from emulator.office import Emulator, Trap, TrapRequest
from emulator.options import CONTENT_TYPES, Options
from emulator.wire import Ask

__all__ = [
    "CONTENT_TYPES",
    "Ask",
    "Blob",
    "Clock",
    "Credentials",
    "Emulator",
    "Journal",
    "Options",
    "Request",
    "Trap",
    "TrapRequest",
    "events",
    "faults",
]
