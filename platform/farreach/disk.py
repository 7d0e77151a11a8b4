"""Files on this machine's disk: written whole, as lines of JSON, and on the disk for sure."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from farreach.errors import RunDirectoryError


def sync(path: Path) -> None:
    """Have what a file or folder holds now on the disk; a folder holds the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file so that readers see the old content or the new one, never a part.

    The content is on the disk when this returns: it goes to a temporary name, is fsynced, renamed,
    and the directory is fsynced.

    Raises:
        RunDirectoryError: the file system refuses it (full, read-only, gone).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise disk_error(path, error) from error


def json_line(record: Mapping[str, Any]) -> str:
    """A record as one line of strict JSON: NaN and infinity become null, paths become text."""
    return json.dumps({key: plain(value) for key, value in record.items()}, allow_nan=False)


def cut_torn_line(path: Path) -> None:
    """Remove what a killed process left behind the last newline of a file of lines."""
    try:
        with open(path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - 65536)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    file.truncate(start + newline + 1)
                    return
                end = start
            file.truncate(0)
    except FileNotFoundError:
        return


def plain(value: Any) -> Any:
    """A value that strict JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy or torch
        return plain(value.tolist())
    return value if math.isfinite(value) else None


def disk_error(path: Path, error: OSError) -> RunDirectoryError:
    """What an error of the file system means for a user."""
    return RunDirectoryError(
        f"cannot write {path}: {error.strerror or error}. Free or mount the disk, fix the "
        "permissions, or choose another place with --run-dir."
    )
