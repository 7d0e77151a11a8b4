"""What is found in a cluster file: where, what is wrong, how to mend it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from farreach.cluster.schemas import Schema
from farreach.config_problems import value_text
from farreach.yaml_source import KeyPath

Level = Literal["problem", "warning", "note"]

_SHOWN_LENGTH = 60
_MISSING = "is missing."
_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping of keys to values",
    "array": "a list",
    "null": "empty",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


@dataclass(frozen=True)
class Finding:
    """Something to tell the user.

    Attributes:
        path: keys that lead to what is meant.
        message: what is wrong and how to mend it.
        level: "problem": it does not work, loses work or is unsafe; "warning": it is hardly meant;
            "note": something to know.
    """

    path: KeyPath
    message: str
    level: Level = "problem"


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one: its schema reports what it is instead."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def at(tree: Any, *path: str | int) -> Any:
    """The value below some keys, None if there is none."""
    for key in path:
        if isinstance(tree, list) and isinstance(key, int) and key < len(tree):
            tree = tree[key]
        else:
            tree = mapping(tree).get(str(key))
    return tree


def texts(tree: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every text in a tree, with the keys that lead to it."""
    if isinstance(tree, str):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from texts(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from texts(value, (*path, index))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known name, behind a space; "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def mistakes(value: Any, schema: Schema, path: KeyPath = ()) -> list[Finding]:
    """What a JSON Schema refuses, one finding for each key.

    Args:
        value: what is written.
        schema: see `farreach.cluster.schemas`.
        path: keys that lead to the value.
    """
    from jsonschema import validators

    validator = validators.validator_for(schema)(schema)
    found: dict[tuple[KeyPath, str], Finding] = {}
    for error in validator.iter_errors(value):
        for finding in _translated(error, (*path, *error.absolute_path)):
            found.setdefault((finding.path, finding.message), finding)
    meant = {(one.path[:-1], name) for one in found.values() if (name := _meant(one.message))}
    return [
        one
        for one in found.values()
        if one.message != _MISSING or (one.path[:-1], one.path[-1]) not in meant
    ]


def _meant(message: str) -> str | None:
    """The name that an unknown key is thought to be: it is not missing then."""
    match = re.search(r"^unknown key\. Did you mean '(.*)'\?", message)
    return match[1] if match else None


def _translated(error: Any, path: KeyPath) -> Iterator[Finding]:
    instance, wanted = error.instance, error.validator_value
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", ()))
        for key in instance.keys() - set(known):
            yield Finding((*path, key), f"unknown key.{_known(key, known)}")
    elif error.validator == "required":
        for key in [name for name in wanted if name not in instance]:
            yield Finding((*path, key), _MISSING)
    elif error.validator == "type":
        words = " or ".join(_WORDS[name] for name in ([wanted] if _is_text(wanted) else wanted))
        yield Finding(
            path, f"should be {words} (got {shown(instance)}).{_quotes(instance, wanted)}"
        )
    elif error.validator == "enum":
        near = did_you_mean(instance, wanted) if _is_text(instance) else ""
        yield Finding(path, f"should be one of {', '.join(wanted)} (got {shown(instance)}).{near}")
    elif error.validator in _BOUNDS:
        bound = f"{_BOUNDS[error.validator]} {wanted}"
        yield Finding(path, f"should be {bound} (got {shown(instance)}).")
    elif error.validator == "pattern":
        yield Finding(path, f"should be {error.schema['description']} (got {shown(instance)}).")
    else:
        yield Finding(path, f"{error.message}.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _quotes(instance: Any, wanted: Any) -> str:
    written = isinstance(instance, bool | int | float) and wanted == "string"
    return " Write it in quotes." if written else ""


def _known(key: str, known: list[str]) -> str:
    near = did_you_mean(key, known)
    if near or not known:
        return near
    return f" Known keys: {shortened(', '.join(known))}."


def shown(value: Any) -> str:
    """A value on one line, shortened."""
    return shortened(value_text(value))


def shortened(text: str) -> str:
    """Text of at most sixty characters."""
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}…"
