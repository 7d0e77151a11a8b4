"""Files of a checkpoint: written to the disk, sealed, and compared with what they must be."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farreach import messages
from farreach.errors import CheckpointError

SCHEMA = 1
FALL_BACK = "Delete that folder to fall back to the older checkpoint."

_PART_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class FileRecord:
    """What a file must look like: `size` in bytes and `sha256` in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Packed:
    """A part of a checkpoint as its file will be, which no longer changes with the tree."""

    data: NDArray[np.uint8]

    @classmethod
    def of(cls, tree: Any, room: NDArray[np.uint8] | None = None) -> Packed:
        """A copy of a tree that `messages.pack` takes, in `room` if it is large enough."""
        return cls(messages.pack_into(tree, room))


def write_part(folder: Path, name: str, tree: Any) -> FileRecord:
    """Write a part, and have it on the disk; raises ValueError for a name that no file may have."""
    if not _PART_NAME.fullmatch(name):
        raise ValueError(f"part {name!r}: a name has letters, digits, '_', '-' and '.' only.")
    data = (tree if isinstance(tree, Packed) else Packed.of(tree)).data.data
    write_file(folder / f"{name}.msgpack", data)
    return FileRecord(len(data), hashlib.sha256(data).hexdigest())


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file, and have it on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def manifest(
    step: int, score: float | None, info: Mapping[str, Any], files: Mapping[str, FileRecord]
) -> bytes:
    """The manifest of a checkpoint, sealed."""
    content = {
        "schema": SCHEMA,
        "step": step,
        "score": number(score),
        "info": dict(info),
        "files": {name: vars(record) for name, record in files.items()},
    }
    return sealed(content)


def number(score: float | None) -> float | None:
    """A score as JSON has it: none that is no number."""
    return None if score is None or math.isnan(score) else float(score)


def sealed(content: Mapping[str, Any]) -> bytes:
    """Content as JSON with its own checksum."""
    # Through JSON and back, because the seal is over what a reader will see.
    content = json.loads(json.dumps(content))
    return json.dumps({**content, "sha256": seal_of(content)}, indent=2).encode()


def seal_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of what JSON gives back, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_bytes(path: Path) -> bytes:
    """All of a file; raises CheckpointError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def measure(path: Path) -> FileRecord:
    """Size and checksum of a file, read in blocks of 1 MiB."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return FileRecord(size, digest.hexdigest())


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    mend = FALL_BACK if isinstance(error, FileNotFoundError) else "Make it readable."
    return CheckpointError(f"{path}: cannot be read: {error.strerror or error}. {mend}")


def check(path: Path, expected: FileRecord, found: FileRecord) -> None:
    """Raise CheckpointError unless a file is what it must be."""
    if found.size != expected.size:
        raise CheckpointError(
            f"{path}: has {found.size} bytes instead of {expected.size} "
            f"(sha256 {found.sha256} instead of {expected.sha256}). {FALL_BACK}"
        )
    if found.sha256 != expected.sha256:
        raise CheckpointError(
            f"{path}: was altered: sha256 is {found.sha256} instead of {expected.sha256}. "
            f"{FALL_BACK}"
        )
