"""The fixtures of the Logstash side."""

import sys
from pathlib import Path

TESTS = str(Path(__file__).resolve().parents[1])
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)

from logstash.ecs_harness import ruby, server  # noqa: E402

__all__ = ["ruby", "server"]
