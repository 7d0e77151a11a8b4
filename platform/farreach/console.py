"""Lines for the user: results on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from farreach import logs


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
    _write(sys.stdout, "")


def _write(stream: TextIO, text: str) -> None:
    try:
        # Names of files need not be text that the stream can encode.
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        # Later lines go nowhere, and the interpreter's own flush at exit does not fail either.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
