"""Files that appear whole under their name, and one writer at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from farreach.disk import sync
from farreach.errors import DataError


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary name to write to; leaving without an error puts that file at `path`.

    Raises:
        DataError: the file system refuses it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}. Free space there, or choose "
            "a writable folder."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Have a file that never changes under a second name, without a second copy where possible."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:  # another file system, or one without links
        with written_aside(target) as temporary:
            shutil.copy2(source, temporary)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made, for writing; a process that ends lets go of it.

    Raises:
        DataError: another process holds it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written to: {error.strerror or error}. Choose another folder."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{folder}: another process is writing to it. Wait until that is done, or stop it."
            ) from error
        yield
