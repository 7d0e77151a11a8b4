"""Lines for the user: results on stdout, everything else on stderr."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from farreach import logs

# Of a pipe without a reader, and of a terminal that was closed.
GONE = (errno.EPIPE, errno.EIO)


def say(line: str = "") -> None:
    """Print a line to stdout; a reader that has gone away (`| head`) does not end a run."""
    _write(sys.stdout, line + "\n")


def warn(line: str) -> None:
    """Print a line to stderr, likewise; with `FARREACH_LOG=json` as an object."""
    level = "ERROR" if line.startswith("error") else "WARNING"
    _write(sys.stderr, logs.line(line, level))


def record(kind: str, **fields: Any) -> None:
    """Put something that happened into logs of JSON objects; others leave it out."""
    if logs.is_json():
        _write(sys.stderr, logs.line(kind, fields=fields))


def flush() -> None:
    """Hand what others have printed to stdout to its reader, if that is still there."""
    with suppress(OSError):
        _write(sys.stdout, "")


def _write(stream: TextIO | None, text: str) -> None:
    try:
        write(stream, text)
    except OSError:
        if stream is not sys.stderr:
            raise  # results that are not written down anywhere must not look like a success


def write(stream: TextIO | None, text: str) -> None:
    """Write to a stream that may be closed (None), or whose reader may have gone away.

    Raises:
        OSError: it cannot be written for another reason, such as a full disk.
    """
    if stream is None:
        return
    try:
        # Names of files need not be text that the stream can encode.
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        is_gone = error.errno in GONE
        _drop(stream, later_too=is_gone or stream is sys.stdout)
        if not is_gone:
            raise


def _drop(stream: TextIO, later_too: bool) -> None:
    """Let what could not be written go nowhere, so that the flush at exit does not fail for it."""
    own = stream.fileno()
    kept, nowhere = os.dup(own), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, own)
    if not later_too:
        stream.flush()
        os.dup2(kept, own)
    os.close(kept)
    os.close(nowhere)


class Display:
    """A stream for what only shows how a run goes: whatever becomes of it, the run goes on."""

    def __init__(self, stream: TextIO | None) -> None:
        """Of a stream that may be closed."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written; its length."""
        with suppress(OSError):
            write(self._stream, text)
        return len(text)

    def flush(self) -> None:
        """Nothing is left to be written."""

    def __getattr__(self, name: str) -> Any:
        """What else the stream knows, such as whether it is a terminal."""
        return getattr(self._stream, name)
