"""What a check has found."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "fault"]


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        level: `fault`: runs will fail; `warning`: some will, or will be slow; `ok`.
        text: what is there.
        mend: what to do about it; empty if it is ok.
    """

    level: Level
    text: str
    mend: str = ""


def ok(text: str) -> Finding:
    """It is as it should be."""
    return Finding("ok", text)


def warning(text: str, mend: str) -> Finding:
    """It will do harm to some runs."""
    return Finding("warning", text, mend)


def fault(text: str, mend: str) -> Finding:
    """Nothing will run."""
    return Finding("fault", text, mend)
