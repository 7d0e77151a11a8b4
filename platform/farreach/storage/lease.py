"""A lease: which driver, of all machines, writes to a run at a URI.

The object `lease.json` names the driver and is written again every few seconds; one that has not
been for a minute, or whose process has died on this machine, may be taken over.

Object stores that pyarrow reaches can not compare and swap. So a driver looks, writes, and looks
again after as long as there may be between a look and a write (Fischer's algorithm for mutual
exclusion): of those that looked before anybody had written, the one that wrote last has the run.
One that was held up between the two waits until whoever has begun meanwhile must have noticed.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from farreach.console import say
from farreach.errors import RunDirectoryError, StorageError
from farreach.storage.remote import Remote

OBJECT = "lease.json"
REFRESH_S = 10.0
STALE_S = 60.0
# From looking at a lease to having written another, and from there to looking again.
SETTLE_S = 1.0


class Lease:
    """This process's claim on a run.

    Attributes:
        token: of this claim; no two are the same.
        lost_to: who has taken over, once somebody has.
    """

    def __init__(self, remote: Remote) -> None:
        """Not taken yet."""
        self._remote = remote
        self.token = secrets.token_hex(8)
        self.lost_to: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="lease", daemon=True)

    def take(self) -> str | None:
        """Become the run's driver; the token of the one before, if there was one.

        Waits until an old lease is a minute old, if its owner doesn't write it again meanwhile.

        Raises:
            RunDirectoryError: another driver is at work.
            StorageError: the storage fails.
        """
        before = read(self._remote)
        if _is_held(before):
            self._wait_for(before)
        self._write_first(before)
        self._thread.start()
        return None if before is None else str(before["token"])

    def release(self) -> None:
        """Let others have the run; raises StorageError if that cannot be written."""
        self._ended.set()
        self._thread.join()
        if self.lost_to is None:
            self._write(released=True)

    def _write_first(self, before: dict[str, Any] | None) -> None:
        """Write the lease after that one; raise RunDirectoryError if another driver has done so."""
        looked = time.monotonic()
        found = read(self._remote)
        if _is_held(found) and (before is None or found["beat"] != before["beat"]):
            raise self._refusal(found)
        self._write()
        is_late = time.monotonic() - looked > SETTLE_S
        time.sleep(2 * REFRESH_S if is_late else SETTLE_S)
        found = read(self._remote)
        if found is None or found["token"] != self.token:
            raise self._refusal(found or {})

    def _wait_for(self, before: dict[str, Any]) -> None:
        """Return when the lease has grown old; raise RunDirectoryError if it is alive."""
        left_s = STALE_S - self._age_s()
        if left_s > 0:
            say(f"waiting   at most {left_s:.0f} s for {_owner(before)}, which may have ended")
        end = time.monotonic() + left_s
        while time.monotonic() < end:
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))
            found = read(self._remote)
            if found is None or found["released"]:
                return
            if found["beat"] != before["beat"] or found["token"] != before["token"]:
                raise self._refusal(found)

    def _refusal(self, other: dict[str, Any]) -> RunDirectoryError:
        return RunDirectoryError(
            f"{self._remote.uri} is in use: {_owner(other)} is training in it. Wait for it, or "
            "stop it."
        )

    def _age_s(self) -> float:
        """Seconds since the lease was written, by the clock of the storage."""
        probe = f".probe-{self.token}"
        self._remote.write(probe, b"")
        now = self._remote.list().get(probe)
        self._remote.delete([probe])
        written = self._remote.list().get(OBJECT)
        if now is None or written is None:
            return STALE_S
        return (now.modified_ns - written.modified_ns) / 1e9

    def _write(self, *, released: bool = False) -> None:
        content = {
            "host": socket.gethostname(),
            "system": _system(),
            "pid": os.getpid(),
            "time": time.time(),
            "token": self.token,
            "beat": secrets.token_hex(4),
            "released": released,
        }
        self._remote.write(OBJECT, json.dumps(content).encode())

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_S):
            with suppress(StorageError):  # the next beat may reach it
                found = read(self._remote)
                if found is not None and found["token"] != self.token:
                    self.lost_to = _owner(found)
                    return
                self._write()


def read(remote: Remote) -> dict[str, Any] | None:
    """The content of a run's lease, or None if it never had one."""
    data = remote.read(OBJECT)
    try:
        content: dict[str, Any] | None = None if data is None else json.loads(data)
    except ValueError:
        return None
    return content if isinstance(content, dict) and "token" in content else None


def _is_held(lease: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Whether a driver may be at work, as far as a lease says."""
    return lease is not None and not lease["released"] and not _has_died_here(lease)


def _has_died_here(lease: dict[str, Any]) -> bool:
    """Whether its process was one of this machine, and is no more."""
    if (lease["host"], lease["system"]) != (socket.gethostname(), _system()):
        return False
    if lease["pid"] == os.getpid():
        return True  # the lock of the local copy tells what this process does
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _system() -> str:
    """The start of this machine and the container in it, within which process numbers hold."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return secrets.token_hex(8)


def _owner(lease: dict[str, Any]) -> str:
    return f"process {lease.get('pid', '?')} on {lease.get('host', 'another machine')}"
