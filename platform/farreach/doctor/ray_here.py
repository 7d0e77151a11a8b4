"""Checks of what Ray finds on this machine: ports, tokens, a cluster, what others have left."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from farreach import runtime
from farreach.doctor.finding import Finding, fault, ok, warning
from farreach.errors import ClusterError

# What `ray start --head` listens on, unless it is told otherwise.
PORTS = {6379: "the head", 8265: "the dashboard", 10001: "Ray Client", 52365: "the agent"}
MODES = ("token", "disabled", "k8s")
# Ray's sockets lie deeper in its temporary folder, and paths of sockets end at 107 characters.
LONGEST_FOLDER = 107 - len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
BIG_BYTES = 10**9
MEASURE_S = 2.0


def ports(taken: Sequence[int]) -> Finding:
    """Whether a cluster can be started here on Ray's usual ports."""
    if taken:
        names = ", ".join(f"{port} ({PORTS[port]})" for port in taken)
        return warning(
            f"ports that `ray start --head` takes are in use: {names}",
            "nothing to do for runs without a cluster; join the one that is there with "
            "RAY_ADDRESS=auto, or give `ray start` others (--port, --dashboard-port, "
            "--ray-client-server-port)",
        )
    return ok(f"ports {', '.join(map(str, PORTS))} are free")


def taken_ports() -> list[int]:
    """Those of `PORTS` that somebody listens on."""
    taken = []
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                taken.append(port)
    return taken


class TokenFile(NamedTuple):
    """A file with a token: its path, permissions, and whether it holds anything."""

    path: Path
    mode: int
    is_empty: bool


def token_file(variables: Mapping[str, str]) -> TokenFile | None:
    """The file that Ray would read; None if there is none."""
    path = Path(variables.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    with suppress(OSError):
        return TokenFile(path, stat.S_IMODE(path.stat().st_mode), not path.read_text().strip())
    return None


def tokens(variables: Mapping[str, str], file: TokenFile | None) -> list[Finding]:
    """Whether strangers are kept out, and this user is let in."""
    mode, address = variables.get("RAY_AUTH_MODE"), variables.get("RAY_ADDRESS")
    if mode is not None and mode.lower() not in MODES:
        return [fault(f"RAY_AUTH_MODE is {mode!r}", f"set it to {' or '.join(MODES)}, or unset it")]
    if mode is not None and mode.lower() == "disabled":
        return [
            warning(
                "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports can run programs here",
                "unset it, or keep all ports of this machine behind a firewall",
            )
        ]
    lines = []
    named, token = variables.get("RAY_AUTH_TOKEN_PATH"), variables.get("RAY_AUTH_TOKEN")
    if named and file is None:
        lines.append(
            fault(f"RAY_AUTH_TOKEN_PATH names {named}, which cannot be read", "correct it")
        )
    if file is not None and file.is_empty and not token:
        lines.append(
            fault(f"{file.path} holds no token", "`ray get-auth-token --generate` makes one")
        )
    if file is not None and file.mode & 0o077:
        lines.append(
            warning(
                f"{file.path} can be read by others (mode {file.mode:o}), and who has the token "
                "can run programs on the cluster",
                f"chmod 600 {file.path}",
            )
        )
    if mode and mode.lower() == "token" and address and file is None and not token:
        lines.append(
            fault(
                "RAY_AUTH_MODE=token, and there is no token for the cluster of RAY_ADDRESS",
                "put the output of `ray get-auth-token` on the head into a file of mode 600 and "
                "name it in RAY_AUTH_TOKEN_PATH",
            )
        )
    held = "RAY_AUTH_TOKEN" if token else str(file.path) if file else "none yet"
    return lines or [ok(f"authentication by token is on; token: {held}")]


def address(given: str | None) -> Finding:
    """Whether the cluster of RAY_ADDRESS answers."""
    if not given:
        return ok("RAY_ADDRESS is unset: runs start a Ray of their own on this machine")
    try:
        if given.startswith(("http://", "https://")):
            parts = urlsplit(given)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            target = (parts.hostname or "", port)
            socket.create_connection(target, runtime.PROBE_TIMEOUT_S).close()
            return ok(f"{given} answers; it takes jobs, `farreach train` needs host:6379")
        if given == "local":
            return ok("RAY_ADDRESS=local: runs start a Ray of their own")
        return ok(f"the cluster at {runtime.resolve(given)} answers")
    except (ClusterError, OSError, ValueError) as error:
        said = str(error).partition(". ")[0]
        return fault(
            f"RAY_ADDRESS={given}: {said}",
            "start the cluster, correct RAY_ADDRESS, or unset it to run on this machine alone",
        )


def temporary_folder(variables: Mapping[str, str]) -> Path:
    """Where Ray keeps its sessions."""
    return Path(variables.get("RAY_TMPDIR") or variables.get("TMPDIR") or "/tmp") / "ray"


def folder_length(folder: Path) -> Finding:
    """Whether Ray's sockets can have names below its temporary folder."""
    if len(str(folder)) > LONGEST_FOLDER:
        return fault(
            f"Ray's temporary folder {folder} has {len(str(folder))} characters, and its sockets "
            f"allow {LONGEST_FOLDER}",
            "set RAY_TMPDIR to a shorter one, such as /tmp",
        )
    return ok(f"Ray's temporary folder is {folder}")


class Process(NamedTuple):
    """A process of Ray's own: its id, that of its parent, which kind it is, its session's path."""

    pid: int
    parent: int
    kind: str
    session: str


def ray_processes(proc: Path = Path("/proc")) -> list[Process]:
    """Raylets and control processes of this user."""
    found = []
    for folder in proc.glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            if folder.stat().st_uid != os.getuid():
                continue
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            kind = Path(words[0]).name
            if kind not in ("raylet", "gcs_server"):
                continue
            options = dict(word.split("=", 1) for word in words if "=" in word)
            session = options.get("--session_dir") or options.get("--session-dir", "")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found.append(Process(int(folder.name), parent, kind, session))
    return sorted(found)


def left_processes(found: Sequence[Process]) -> Finding:
    """Whether a Ray runs here that no living program has begun."""
    orphans = [process for process in found if process.parent == 1]
    owned = {process.session for process in found} - {process.session for process in orphans}
    said = f"{len(owned)} of running programs" if owned else "none of running programs"
    if orphans:
        sessions = ", ".join(sorted({process.session or "unknown" for process in orphans}))
        pids = " ".join(str(process.pid) for process in orphans)
        return warning(
            f"a Ray runs here without the program that began it ({sessions}): by `ray start`, or "
            f"left over; and {said}",
            f"if nobody uses it: kill {pids} (`ray stop` would end every Ray of yours here)",
        )
    return ok(f"Ray on this machine: {said}")


class Session(NamedTuple):
    """A folder of a session; bytes in all and of objects that were moved to the disk."""

    path: Path
    size: int
    spilled: int
    is_alive: bool


def sessions(folder: Path, alive: Sequence[str], limit_s: float = MEASURE_S) -> list[Session]:
    """Sessions below Ray's temporary folder; sizes are as far as they were counted in time."""
    end = time.monotonic() + limit_s
    found = []
    for path in sorted(folder.glob("session_2*")):
        if path.is_symlink() or not path.is_dir():
            continue
        size = spilled = 0
        for inner, _, names in os.walk(path):
            if time.monotonic() > end:
                break
            for name in names:
                with suppress(OSError):
                    count = os.lstat(os.path.join(inner, name)).st_size
                    size += count
                    spilled += count if "spilled" in inner else 0
        found.append(Session(path, size, spilled, str(path) in alive))
    return found


def left_sessions(found: Sequence[Session]) -> list[Finding]:
    """Whether sessions that are over hold much of the disk, and whether objects are spilled."""
    lines = []
    old = [session for session in found if not session.is_alive]
    size = sum(session.size for session in old)
    if size > BIG_BYTES:
        folder = old[0].path.parent
        lines.append(
            warning(
                f"{len(old)} sessions of Ray that are over hold {size / 1e9:.1f} GB in {folder}",
                f"while no Ray runs: rm -r {folder}/session_2*",
            )
        )
    lines += [
        warning(
            f"{session.spilled / 1e6:.0f} MB of objects have been moved to the disk in "
            f"{session.path}",
            "give that cluster a larger object store (ray start --object-store-memory)",
        )
        for session in found
        if session.is_alive and session.spilled
    ]
    said = f"{len(old)} sessions that are over, {size / 1e6:.0f} MB" if old else "no old sessions"
    return lines or [ok(f"{said}; no objects on the disk")]
