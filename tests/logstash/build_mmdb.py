"""Writes logstash/o365_empty.mmdb: a City database that knows no address.

Run by hand: .venv/bin/python tests/logstash/build_mmdb.py. The pipeline's second look-ups start
with it while no database of one's own is named. Format: MaxMind DB 2.0 (one node whose two
records both say "not found", the separator, no data, the metadata).
"""

from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "logstash" / "o365_empty.mmdb"
POINTER_MARK = b"\xab\xcd\xefMaxMind.com"


def item(value: object) -> bytes:
    """Encode one value of the metadata."""
    if isinstance(value, str):
        encoded = value.encode()
        return bytes([2 << 5 | len(encoded)]) + encoded
    if isinstance(value, dict):
        pairs = b"".join(item(key) + item(inner) for key, inner in value.items())
        return bytes([7 << 5 | len(value)]) + pairs
    if isinstance(value, list):
        return bytes([len(value), 11 - 7]) + b"".join(map(item, value))
    assert isinstance(value, int)
    encoded = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([6 << 5 | len(encoded)]) + encoded


def short(value: int) -> bytes:
    """Encode an unsigned number of 16 bits."""
    encoded = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([5 << 5 | len(encoded)]) + encoded


def long(value: int) -> bytes:
    """Encode an unsigned number of 64 bits."""
    encoded = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(encoded), 9 - 7]) + encoded


def made() -> bytes:
    """Give the file's bytes."""
    pairs = [
        item("binary_format_major_version") + short(2),
        item("binary_format_minor_version") + short(0),
        item("build_epoch") + long(1_767_225_600),  # 2026-01-01
        item("database_type") + item("GeoLite2-City"),
        item("description") + item({"en": "knows no address"}),
        item("ip_version") + short(6),
        item("languages") + item(["en"]),
        item("node_count") + item(1),
        item("record_size") + short(24),
    ]
    metadata = bytes([7 << 5 | len(pairs)]) + b"".join(pairs)
    node = (1).to_bytes(3, "big") * 2
    return node + bytes(16) + POINTER_MARK + metadata


if __name__ == "__main__":
    FILE.write_bytes(made())
