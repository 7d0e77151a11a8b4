"""Hashes of files, computed once: what is kept of a file must not outlive what was in it.

A file counts as the one that was read if its size, its time and its number on the disk are those of
before; so a change of a few bytes somewhere in the middle is noticed too. Hashes of large files are
kept in the cache (`FARREACH_CACHE`) for other processes.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path

from farreach.disk import atomic_write
from farreach.errors import DataError, FarreachError
from farreach.storage.remote import cache

# Bytes from which on it pays to keep a hash.
LARGE = 64 << 20
# Nanoseconds in which a file may be written twice and bear the same time.
FRESH_NS = 2_000_000_000

_known: dict[tuple[str, int, int, int], str] = {}


def digest(path: Path) -> str:
    """SHA-256 of a file's content, hex.

    Raises:
        DataError: it cannot be read.
    """
    try:
        facts = path.stat()
        key = str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ino
        if time.time_ns() - facts.st_mtime_ns < FRESH_NS:
            return _computed(path)
        if key not in _known:
            _known[key] = _kept(path, key) if facts.st_size >= LARGE else _computed(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}. Correct the path.") from error
    return _known[key]


def _computed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(path: Path, key: tuple[str, int, int, int]) -> str:
    file = cache() / "digests" / hashlib.sha256(repr(key).encode()).hexdigest()[:24]
    with suppress(OSError, UnicodeDecodeError):
        found = file.read_text().strip()
        if len(found) == hashlib.sha256().digest_size * 2:
            return found
    found = _computed(path)
    with suppress(OSError, FarreachError):  # a cache that cannot be written to
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, found)
    return found
