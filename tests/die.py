"""Run the poller, and have the kernel kill it at an appointed system call.

    python die.py CALL MOMENT NUMBER script arguments...

CALL is connect, send, shutdown, recv or commit; MOMENT is before or after; NUMBER says at
which of them. With DIE_LIMIT files cannot grow beyond so many bytes: a full disk.
"""

from __future__ import annotations

import os
import resource
import runpy
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

CALL, MOMENT, NUMBER = sys.argv[1], sys.argv[2], int(sys.argv[3])
LOGSTASH = int(os.environ.get("DIE_PORT", "0"))
count = 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def deadly(call: Callable[..., Any], chosen: Callable[..., bool]) -> Callable[..., Any]:
    def wrapped(self: Any, *args: Any, **named: Any) -> Any:
        global count
        if not chosen(self, *args):
            return call(self, *args, **named)
        count += 1
        if count == NUMBER and MOMENT == "before":
            die()
        result = call(self, *args, **named)
        if count == NUMBER and MOMENT == "after":
            die()
        return result

    return wrapped


def to_logstash(self: socket.socket, *args: Any) -> bool:
    if CALL == "connect":
        return bool(args and args[0][1] == LOGSTASH)
    try:
        return bool(self.getpeername()[1] == LOGSTASH)
    except OSError:
        return False


def plain_method(name: str) -> Callable[..., Any]:
    method = getattr(socket.socket, name)

    def call(self: socket.socket, *args: Any, **named: Any) -> Any:
        return method(self, *args, **named)

    return call


class Connection(sqlite3.Connection):
    pass


if CALL in ("connect", "send", "shutdown", "recv"):
    setattr(socket.socket, CALL, deadly(plain_method(CALL), to_logstash))
elif CALL == "commit":
    Connection.execute = deadly(  # type: ignore[method-assign]
        sqlite3.Connection.execute, lambda self, text, *args: text == "COMMIT"
    )
    connect = sqlite3.connect

    def connected(*args: Any, **named: Any) -> Any:
        return connect(*args, **{**named, "factory": Connection})

    sqlite3.connect = connected
if limit := int(os.environ.get("DIE_LIMIT", "0")):
    # SIGXFSZ is ignored by Python: the write fails with EFBIG, as with ENOSPC.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
