"""Checks of the machine: files, memory, disks, threads, clock, name."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from farreach.doctor.finding import Finding, fault, ok, warning
from farreach.rundir import MIN_FREE_BYTES

GIB = 2**30
FEW_FILES, MANY_FILES = 1024, 8192
# Ray begins to refuse objects on disks that are fuller.
FULL_SHARE = 0.95
RESOLVE_S = 3.0
SKEW_S = 5.0


def threads(cores: int, omp: str | None, torch_threads: int | None) -> Finding:
    """Whether processes side by side take no more threads than there are cores."""
    if omp is not None and not omp.isdecimal():
        return warning(
            f"OMP_NUM_THREADS is {omp!r}, which is no number and is ignored",
            "export OMP_NUM_THREADS=1",
        )
    if omp is not None and int(omp) > max(1, cores // 2):
        return warning(
            f"OMP_NUM_THREADS={omp} of {cores} cores goes to every process of a run, which then "
            "wait for one another",
            "unset OMP_NUM_THREADS (farreach takes 1), and set the threads of the learner alone "
            "in its configuration",
        )
    said = "unset, and 1 in what farreach starts" if omp is None else omp
    own = "" if torch_threads is None else f"; PyTorch by itself takes {torch_threads}"
    return ok(f"{cores} cores, OMP_NUM_THREADS {said}{own}")


def open_files(soft: int, hard: int) -> Finding:
    """Whether a process may open enough files and sockets; Ray raises it to the hard limit."""
    if hard < FEW_FILES:
        return fault(
            f"a process may open {hard} files, which Ray's own processes use up",
            f"raise the hard limit (ulimit -Hn, /etc/security/limits.conf) to {MANY_FILES} or more",
        )
    if hard < MANY_FILES:
        return warning(
            f"a process may open {soft} files, at most {hard}: enough here, too few for the head "
            "of a large cluster",
            "raise the hard limit to 65536 in /etc/security/limits.conf",
        )
    return ok(f"a process may open {soft} files, and Ray raises that to {hard}")


class Shared(NamedTuple):
    """Size of /dev/shm in bytes."""

    total: int
    free: int


def shared_memory(shared: Shared | None, wanted: int, least: int) -> Finding:
    """Whether the object store fits into /dev/shm.

    Args:
        shared: None where there is no /dev/shm.
        wanted: bytes of the store that a local run would like.
        least: bytes below which Ray does not start.
    """
    if shared is None:
        return ok("no /dev/shm on this system; Ray keeps objects in its temporary folder")
    said = f"/dev/shm has {shared.free / GIB:.1f} of {shared.total / GIB:.1f} GiB free"
    if shared.free < least:
        return fault(
            f"{said}, and Ray needs {least / GIB:.1f}",
            "remove what fills it, or start the container with --shm-size=4g",
        )
    if shared.free * 9 // 10 < wanted:
        return warning(
            f"{said}: the object store of a local run is smaller than the {wanted / GIB:.1f} GiB "
            "it would take, and moves objects to the disk sooner",
            "start the container with --shm-size=4g, or remove what fills /dev/shm",
        )
    return ok(f"{said}, a local run takes {wanted / GIB:.1f}")


def shared_here(path: str = "/dev/shm") -> Shared | None:
    """Of this machine."""
    with suppress(OSError):
        usage = shutil.disk_usage(path)
        return Shared(usage.total, usage.free)
    return None


class Disk(NamedTuple):
    """The disk of a folder; sizes in bytes."""

    path: Path
    total: int
    free: int
    device: int


def disks_of(folders: Sequence[Path]) -> list[Disk]:
    """Disks of folders, or of the nearest ones above them that exist."""
    found = []
    for folder in folders:
        path = folder.resolve()
        while not path.exists():
            path = path.parent
        with suppress(OSError):
            usage = shutil.disk_usage(path)
            found.append(Disk(folder, usage.total, usage.free, path.stat().st_dev))
    return found


def disk(found: Sequence[Disk]) -> list[Finding]:
    """Whether there is room for runs and for what Ray moves to the disk; one line for each disk."""
    lines = []
    by_device: dict[int, list[Disk]] = {}
    for one in found:
        by_device.setdefault(one.device, []).append(one)
    for same in by_device.values():
        paths, free = " and ".join(str(one.path) for one in same), same[0].free
        said = f"{paths}: {free / GIB:.1f} of {same[0].total / GIB:.0f} GiB free"
        mend = "free some space, or choose another disk (--root or --run-dir; RAY_TMPDIR for Ray)"
        if free < MIN_FREE_BYTES:
            lines.append(fault(f"{said}, and a run needs {MIN_FREE_BYTES / GIB:.1f}", mend))
        elif free < (1 - FULL_SHARE) * same[0].total:
            lines.append(
                warning(f"{said}: Ray moves no objects to a disk over {FULL_SHARE:.0%} full", mend)
            )
        else:
            lines.append(ok(said))
    return lines


def memory(physical: int, limit: int | None, available: int) -> Finding:
    """Whether there is memory for a run; sizes in bytes."""
    usable = limit or physical
    said = f"{available / GIB:.1f} of {usable / GIB:.1f} GiB free"
    if limit is not None:
        said += f" (limit of this container; the machine has {physical / GIB:.0f})"
    if available < 0.5 * GIB:
        return fault(
            f"{said}: Ray alone takes half a GiB", "end other programs, or raise the limit"
        )
    if available < 2 * GIB or available < (1 - FULL_SHARE) * usable:
        return warning(
            f"{said}: each process of a run takes 0.3 to 0.8 GiB, and Ray ends processes when 95% "
            "are in use",
            "end other programs, start fewer actors or workers, or take a larger machine",
        )
    return ok(said)


def clock(now: float, newest_file: float, written: float | None) -> Finding:
    """Whether the time is plausible; all in seconds since the epoch.

    Args:
        now: of this machine.
        newest_file: when farreach's own files were written.
        written: what the file system of runs says of a file written now, None if it cannot be.
    """
    if now < newest_file - 86400:
        return fault(
            f"it is {time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC here, before farreach "
            "was installed: certificates are refused and `latest` is not the latest",
            "set the clock: timedatectl set-ntp true",
        )
    if written is not None and abs(written - now) > SKEW_S:
        return warning(
            f"the file server's clock is {written - now:+.0f} s off this machine's: ages of "
            "checkpoints and leases of the run are wrong by that",
            "let both follow one time server: timedatectl set-ntp true",
        )
    return ok(f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC")


def file_times(root: Path, package: Path) -> tuple[float, float | None]:
    """Time of the newest file of the package, and what a file written below `root` now gets."""
    newest = max((path.stat().st_mtime for path in package.glob("*.py")), default=0.0)
    folder = root if root.is_dir() else Path(tempfile.gettempdir())
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=folder, prefix=".probe") as file:
        file.write(b"x")
        file.flush()
        return newest, os.fstat(file.fileno()).st_mtime
    return newest, None


def hostname(name: str, address: str | None) -> Finding:
    """Whether this machine's own name leads to an address; None: it does not, or not in time."""
    if address is None:
        return warning(
            f"the name of this machine, {name}, resolves to no address within {RESOLVE_S:g} s: "
            "starting Ray and joining a cluster take long or fail",
            f"add a line to /etc/hosts: 127.0.1.1 {name}",
        )
    return ok(f"{name} is {address}")


def own_address(name: str) -> str | None:
    """Address of a name; None if there is none, or no answer in time."""
    found: list[str] = []

    def ask() -> None:
        with suppress(OSError):
            found.append(socket.gethostbyname(name))

    asking = threading.Thread(target=ask, daemon=True)  # a name server may keep it waiting
    asking.start()
    asking.join(RESOLVE_S)
    return found[0] if found else None


def environment(variables: Mapping[str, str]) -> list[Finding]:
    """Variables that change runs without a word."""
    lines = []
    if variables.get("CUDA_VISIBLE_DEVICES") == "":
        lines.append(
            warning("CUDA_VISIBLE_DEVICES is empty, which hides all GPUs", "unset it to use them")
        )
    if variables.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        lines.append(
            warning("CUDA_LAUNCH_BLOCKING is set, which slows GPUs down", "unset it for training")
        )
    if variables.get("FARREACH_LOG", "text") not in ("json", "text"):
        lines.append(
            fault(f"FARREACH_LOG is {variables['FARREACH_LOG']!r}", "set it to json or text")
        )
    return lines or [ok("no variable changes runs behind your back")]
