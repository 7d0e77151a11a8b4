"""Whatever goes wrong in a run as one message, with its trace in the run's `error.log`."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from farreach import runtime
from farreach.disk import disk_error
from farreach.errors import FarreachError, RunDirectoryError
from farreach.rundir import RunDirectory
from farreach.stopping import Stopped


@contextmanager
def explained(run: RunDirectory) -> Iterator[None]:
    """Raise what goes wrong as a FarreachError, and leave Ray in any case."""
    try:
        yield
    except Stopped:
        raise
    except FarreachError as error:
        # Ray wraps what a remote call raised, and the wrapper's text is the remote trace.
        cause = getattr(error, "cause", None)
        raise (cause if isinstance(cause, FarreachError) else error) from error.__cause__
    except Exception as error:
        raise _unforeseen(run, error) from error
    finally:
        runtime.disconnect()


def _unforeseen(run: RunDirectory, error: Exception) -> FarreachError:
    """The message for an exception that nobody foresaw."""
    summary = traceback.format_exception_only(type(error), error)[-1].strip().splitlines()[0]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunDirectoryError(f"the disk is full ({summary}). Free some space.")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return disk_error(Path(os.fsdecode(error.filename or run.path)), error)
    trace = "".join(traceback.format_exception(error))
    try:
        with open(run.error_path, "a") as file:
            file.write(trace + "\n")
    except OSError:
        return FarreachError(f"unforeseen failure:\n{trace}")
    return FarreachError(f"unforeseen failure: {summary}. The trace is in {run.error_path}")
