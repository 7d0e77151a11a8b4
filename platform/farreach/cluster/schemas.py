"""Schemas of cluster files: a short notation in `schemas/*.yaml`, which becomes JSON Schema."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

FOLDER = Path(__file__).parent / "schemas"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_QUANTITY = r"^[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$"
_TYPES: dict[str, Schema] = {
    "any": {},
    "intOrString": {"type": ["integer", "string"]},
    "quantity": {
        "type": ["number", "string"],
        "pattern": _QUANTITY,
        "description": "a quantity such as 2, 500m or 8Gi",
    },
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
}


@functools.cache
def schema(kind: str, *files: str) -> Schema:
    """The JSON Schema of a kind, in which unknown fields are refused.

    Args:
        kind: its name.
        files: where it and the kinds that it is made of are written: names in `schemas/` without
            ".yaml".
    """
    kinds: dict[str, dict[str, Any]] = {}
    for name in files:
        kinds |= yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    definitions = {name: _mapping(fields) for name, fields in kinds.items()}
    return {"$schema": _DIALECT, "$ref": f"#/$defs/{kind}", "$defs": definitions}


@functools.cache
def launcher_schema() -> Schema:
    """The schema of launcher files that Ray ships."""
    import ray.autoscaler

    shipped = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    return dict(shipped)


def _mapping(fields: dict[str, Any]) -> Schema:
    properties = {}
    for name, kind in fields.items():
        one = _type(kind)
        if name.endswith("*"):
            several = {"type": "array", "items": one}
            one = {"if": {"type": "array"}, "then": several, "else": one}
        properties[name.rstrip("!*")] = one
    return {
        "type": "object",
        "properties": properties,
        "required": [name.rstrip("!") for name in fields if name.endswith("!")],
        "additionalProperties": False,
    }


def _type(kind: Any) -> Schema:
    if isinstance(kind, list):
        return {"type": "array", "items": _type(kind[0])}
    if isinstance(kind, dict):
        return {"type": "object", "additionalProperties": _type(next(iter(kind)))}
    if kind in _TYPES:
        return _TYPES[kind]
    name, bounded, least = kind.partition(">=")
    if bounded:
        return {**_TYPES[name], "minimum": int(least)}
    if kind.startswith("="):
        return {"enum": [kind[1:]]}
    if kind[0].isupper() and "|" not in kind:
        return {"$ref": f"#/$defs/{kind}"}
    return {"enum": kind.split("|")}
