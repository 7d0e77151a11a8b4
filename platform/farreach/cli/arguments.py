"""What commands share: common arguments, and the error of a wrong command line."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from farreach.errors import FarreachError
from farreach.storage.remote import is_remote


class UsageError(FarreachError):
    """The command line asks for something that does not exist."""

    exit_code = 2


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Settings as `key=value`."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override a setting, such as seed=3"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """CONFIG and settings."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file or a name: see list configs")
    add_overrides(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """RUN."""
    parser.add_argument(
        "run", metavar="RUN", help="a run directory or its URI, or 'latest' under runs/"
    )


def place(text: str) -> Path | str:
    """A path, or a URI as it is."""
    return text if is_remote(text) else Path(text)


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"should be a whole number above 0 (got {text!r})")
    return int(text)


def amount(text: str) -> float:
    """A number that is 0 or more."""
    with contextlib.suppress(ValueError):
        if 0 <= (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"should be 0 or more (got {text!r})")
