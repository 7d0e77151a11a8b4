"""Data at a URI, copied to this machine once: `here` makes a folder of what a setting names.

A copy belongs to a URI and to what lies there, by names, sizes and times: when these change, it is
copied again, into another folder. All processes of a machine share it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

from farreach.console import say
from farreach.errors import DataError
from farreach.storage.remote import Entry, Remote, copy_of, is_remote, last_name

TELL_EVERY_S = 10.0

# What this process has found, so that it asks once; processes that it forks ask nobody.
_found: dict[str, Path] = {}


def here(path: Path | str) -> Path:
    """A path on this machine for what a path or URI names; a path stays as it is.

    Raises:
        DataError: nothing is at the URI.
        StorageError: it cannot be reached or read, or the disk is full.
    """
    if not is_remote(path):
        return Path(path)
    uri = str(path).rstrip("/")
    if uri not in _found:
        _found[uri] = _fetched(uri)
    return _found[uri]


def absolute(path: str) -> str:
    """A path that means the same in every working directory; a URI stays as it is."""
    return path if is_remote(path) else os.path.abspath(path)


def local(path: str) -> str:
    """The same for a folder that is worked in where it lies; raises ValueError for a URI."""
    if is_remote(path):
        raise ValueError(
            f"{path} is a URI, and a cache is read where it lies. Name a folder: one that all "
            "machines share, or one that each may make for itself"
        )
    return os.path.abspath(path)


def _fetched(uri: str) -> Path:
    remote = Remote(uri)
    remote.check()
    entries = remote.list()
    name, is_folder = last_name(uri) or "data", True
    if not entries:
        single = remote.entry()
        if single is None:
            raise DataError(f"{uri}: there is nothing. Correct the URI.")
        before, mark, query = uri.partition("?")
        remote, entries = Remote(before.rpartition("/")[0] + mark + query), {name: single}
        is_folder = False
    top = copy_of(uri, "data")
    target = top / _key(entries) / name
    if target.exists():
        return target
    top.mkdir(parents=True, exist_ok=True)
    with open(top / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():  # another process may have been faster
            _copy(uri, remote, entries, target if is_folder else target.parent)
    return target


def _copy(uri: str, remote: Remote, entries: dict[str, Entry], target: Path) -> None:
    """Bring objects into a folder that is there when all of them are; nobody else does now."""
    aside = target.parent / f".{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    told = _Told(uri, len(entries), sum(entry.size for entry in entries.values()))
    remote.pull(entries, aside, told)
    os.rename(aside, target)


class _Told:
    """Says how far a copy is."""

    def __init__(self, uri: str, files: int, size: int) -> None:
        self._uri, self._size, self._done = uri, size, 0
        self._said_s = time.monotonic()
        self._lock = threading.Lock()
        say(f"fetching  {uri}: {files:,} files, {size / 2**20:,.1f} MiB")

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            if time.monotonic() - self._said_s >= TELL_EVERY_S:
                self._said_s = time.monotonic()
                say(f"fetching  {self._uri}: {self._done / max(1, self._size):.0%}")


def _key(entries: dict[str, Entry]) -> str:
    """Another one if there are other objects."""
    lines = [
        f"{name} {entry.size} {entry.modified_ns}\n" for name, entry in sorted(entries.items())
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]
