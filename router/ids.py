"""Names for new rows: a prefix and a ULID, so that they sort by the time they were made.

A ULID is 48 bits of milliseconds and 80 random bits, spelt in Crockford's base 32 (https://github.com/ulid/spec),
here in lower case because ids end up in file names and URLs.
"""

from __future__ import annotations

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ENTROPY_BYTES = 10
LENGTH = 26


def ulid(at_ms: int, entropy: bytes) -> str:
    """26 characters for the moment `at_ms` (milliseconds since 1970, below 2^48) and 10 random bytes."""
    if not 0 <= at_ms < 2**48 or len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"a ULID takes 48 bits of milliseconds and {ENTROPY_BYTES} bytes, not {at_ms}, {len(entropy)}")
    number = (at_ms << 80) | int.from_bytes(entropy)
    return "".join(ALPHABET[(number >> shift) & 31] for shift in range(5 * (LENGTH - 1), -1, -5))


def made_at(name: str) -> int:
    """Milliseconds since 1970 at which a prefixed ULID was made."""
    number = 0
    for character in name.rpartition("_")[2]:
        number = number << 5 | ALPHABET.index(character)
    return number >> 80


def job_id(at_ms: int, entropy: bytes) -> str:
    return f"job_{ulid(at_ms, entropy)}"


def file_id(at_ms: int, entropy: bytes) -> str:
    return f"file_{ulid(at_ms, entropy)}"


def batch_id(at_ms: int, entropy: bytes) -> str:
    return f"batch_{ulid(at_ms, entropy)}"


def secret_id(at_ms: int, entropy: bytes) -> str:
    return f"whk_{ulid(at_ms, entropy)}"


def key_id(at_ms: int, entropy: bytes) -> str:
    return f"key_{ulid(at_ms, entropy)}"
