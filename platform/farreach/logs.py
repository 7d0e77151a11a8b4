"""Log lines as JSON objects, for what collects them from a cluster: `FARREACH_LOG=json`.

The driver's stderr then holds one object a line: what it says to the user, the run's events,
progress, Ray's remarks. So do the logs that Ray keeps of actors and workers on their machines, with
`role` beside Ray's own ids. Keys are those of Ray's JSON format: asctime, levelname, message, and
whatever belongs to the line.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from farreach.errors import ConfigError

VARIABLE = "FARREACH_LOG"
JSON, TEXT = "json", "text"
DRIVER = "driver"


def is_json() -> bool:
    """Whether lines are to be JSON objects."""
    return os.environ.get(VARIABLE, TEXT) == JSON


def line(text: str, level: str = "INFO", fields: Mapping[str, Any] | None = None) -> str:
    """A line for stderr, its newline included: the text itself, or an object with `fields`."""
    if not is_json():
        return text + "\n"
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    record = {
        "asctime": f"{stamp},{int(now % 1 * 1000):03d}",
        "levelname": level,
        "message": text,
        "process": os.getpid(),
        "role": DRIVER,
    }
    return json.dumps(record | dict(fields or {}), default=str) + "\n"


def ray_arguments() -> dict[str, Any]:
    """Arguments of `ray.init` that give its workers' logs the same form.

    Raises:
        ConfigError: the variable is neither `json` nor `text`.
    """
    chosen = os.environ.get(VARIABLE, TEXT)
    if chosen not in (JSON, TEXT):
        raise ConfigError(f"{VARIABLE} is {chosen!r}: set it to {JSON} or {TEXT}, or unset it.")
    if chosen == TEXT:
        return {}
    import ray

    name_process(DRIVER)
    config = ray.LoggingConfig(
        encoding="JSON", log_level="INFO", additional_log_standard_attrs=["name"]
    )
    return {"logging_config": config}


class _RoleFactory:
    """Makes log records that know their process's role."""

    def __init__(self, role: str) -> None:
        self.role = role

    def __call__(self, *arguments: Any, **options: Any) -> logging.LogRecord:
        record = logging.LogRecord(*arguments, **options)
        record.role = self.role
        return record


def name_process(role: str) -> None:
    """Put `role` into every record that this process logs from now on."""
    logging.setLogRecordFactory(_RoleFactory(role))
