"""Memory of this process and of its machine, within the limit of a container."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
# Limit and use of cgroups version 2 and 1; a process in a container sees its own at the root.
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
_USES = ("memory.current", "memory/memory.usage_in_bytes")


def physical_bytes() -> int:
    """Of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def limit_bytes(cgroup: Path = CGROUP) -> int | None:
    """The container's limit, None if there is none or it lies above what the machine has."""
    limit = _number(cgroup, _LIMITS)
    return limit if limit is not None and limit < physical_bytes() else None


def usable_bytes(cgroup: Path = CGROUP) -> int:
    """What the processes here may use together."""
    return limit_bytes(cgroup) or physical_bytes()


def available_bytes(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """What is left of `usable_bytes`; caches of files count as left."""
    left = usable_bytes(cgroup)
    with suppress(OSError, StopIteration, ValueError):
        lines = meminfo.read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        left = min(left, int(line.split()[1]) * 1024)
    limit, used = limit_bytes(cgroup), _number(cgroup, _USES)
    if limit is not None and used is not None:
        left = min(left, max(0, limit - used + _cached_bytes(cgroup)))
    return left


def own_bytes() -> int:
    """Resident memory of this process, 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def give_back() -> None:
    """Return memory to the system that this process has freed.

    The C library keeps what lies between blocks in use, 20 to 46 MB within a minute in a driver
    that draws pictures.
    """
    with suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _cached_bytes(cgroup: Path) -> int:
    """What the container's use holds of files, which is given back when it is needed."""
    for name in ("memory.stat", "memory/memory.stat"):
        with suppress(OSError, ValueError):
            pairs = (line.split() for line in (cgroup / name).read_text().splitlines())
            values = {pair[0]: int(pair[1]) for pair in pairs}
            return values.get("inactive_file", values.get("total_inactive_file", 0))
    return 0


def _number(cgroup: Path, names: tuple[str, ...]) -> int | None:
    for name in names:
        with suppress(OSError, ValueError):
            return int((cgroup / name).read_text())
    return None
