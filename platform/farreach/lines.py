"""Files of JSON lines that somebody else writes, read as they grow."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from farreach.console import warn


class NewLines:
    """What has been added to a file since the last look; a missing file is an empty one.

    ```
    lines = NewLines(run.events_path)
    lines.take()  # all so far
    lines.take()  # what came since
    ```
    """

    def __init__(self, path: Path) -> None:
        """Of a file that may not be there yet."""
        self._path = path
        self._read = 0

    def take(self) -> list[dict[str, Any]]:
        """Whole lines that were not taken before; what is no JSON object is left out.

        A file that has become shorter than what was read is taken from its beginning.
        """
        try:
            size = os.stat(self._path).st_size
            if size == self._read:
                return []
            with open(self._path, "rb") as file:
                file.seek(self._read if size > self._read else 0)
                data = file.read()
                begun = file.tell() - len(data)
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read = begun + len(whole)
        return [record for line in whole.splitlines() if (record := _record(line)) is not None]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file, in order; a missing file is an empty one.

    What is no JSON object is left out. A process warns of each such line once.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
    except FileNotFoundError:
        return []
    records = [_record(line) for line in lines]
    for number, record in enumerate(records, start=1):
        if record is None:
            _name_damage(path, number)
    return [record for record in records if record is not None]


@cache
def _name_damage(path: Path, number: int) -> None:
    warn(f"skipped   {path}, line {number}: it is damaged, and no JSON object.")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
