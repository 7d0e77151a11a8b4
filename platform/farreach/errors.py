"""Exceptions that tell the user what was found, where, and how to mend it."""

from __future__ import annotations


class FarreachError(Exception):
    """Base of every error that is meant for the user; the command line prints it without a trace.

    Subclasses take one message and nothing else, so that they survive pickling between actors.
    """

    exit_code = 1


class ConfigError(FarreachError):
    """A configuration file or override is wrong."""

    exit_code = 2


class RegistryError(ConfigError):
    """A name is not registered."""


class RunDirectoryError(FarreachError):
    """A run directory is missing, foreign, occupied, unwritable or full."""


class StorageError(FarreachError):
    """What a URI names cannot be reached, read or written."""


class CheckpointError(FarreachError):
    """A checkpoint is missing, truncated, altered or written by something else."""


class DataError(FarreachError):
    """Recorded data are missing, malformed or of another shape than what reads them expects."""


class UnreadableImageError(DataError):
    """An image, or what says the classes of its pixels, cannot be decoded."""


class EnvironmentFault(FarreachError):  # noqa: N818 (EnvironmentError is OSError)
    """An environment broke its contract: wrong shape, NaN, or no Box observation."""


class ClusterError(FarreachError):
    """The Ray cluster is unreachable or too small for what was asked."""


class ActorError(FarreachError):
    """An actor died more often than the restart policy allows."""
