"""Validation errors as lines that a user can act on: file, line, key, what is wrong."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from farreach.registry import near_match
from farreach.yaml_source import KeyPath, Sources, Tree, located, source_of

# Keys of the file itself, which no model declares.
FILE_KEYS = ("base", "workload")
_SHOWN_LENGTH = 60

_WORDS = {
    "model_type": "should be a mapping of keys to values",
    "dict_type": "should be a mapping of keys to values",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
}


def problems(
    error: ValidationError, raw: Tree, sources: Sources, model: type[BaseModel]
) -> list[str]:
    """One line for each key that is wrong.

    Args:
        error: what validating `raw` raised.
        raw: the mapping as it was written.
        sources: where its keys are written.
        model: what it was validated against.
    """
    # The members of a union fail one by one at the same key; they become one line.
    grouped: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        path = _key_path(details["loc"], raw, model)
        if details["type"] == "union_tag_invalid":  # the tag is wrong, not the section around it
            path = (*path, *_tag_key(path, model))
        grouped.setdefault(path, []).append(details)
    return [
        located(source_of(path, sources), path, _message(found, path, model))
        for path, found in grouped.items()
    ]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field's type mentions, inside of unions and containers too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def value_text(value: Any) -> str:
    """A value on one line, as YAML takes it."""
    return json.dumps(value, default=str, ensure_ascii=False)


def _key_path(location: tuple[int | str, ...], raw: Any, model: type[BaseModel]) -> KeyPath:
    """The keys in a location; pydantic also puts the names of a union's members into it."""
    path: list[str | int] = []
    models = [model]
    node = raw
    for part in location:
        in_mapping = isinstance(node, dict) and part in node
        in_list = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if not (in_mapping or in_list or part in _fields(models)):
            continue
        path.append(part)
        node = node[part] if in_mapping or in_list else None
        models = _below(models, part)
    return tuple(path)


def _tag_key(path: KeyPath, model: type[BaseModel]) -> tuple[str, ...]:
    """The key that tells the members of a union apart: each has one value there, and its own."""
    models = [model]
    for key in path:
        models = _below(models, key)
    shared = set.intersection(*(set(member.model_fields) for member in models))
    for name in sorted(shared):
        values = [get_args(member.model_fields[name].annotation) for member in models]
        if all(len(value) == 1 for value in values) and len(set(values)) == len(values):
            return (name,)
    return ()


def _below(models: list[type[BaseModel]], key: str | int) -> list[type[BaseModel]]:
    """The models that may stand at a key; those of a list or a dict stand at its entries too."""
    fields = [model.model_fields[str(key)] for model in models if key in model.model_fields]
    return [m for field in fields for m in models_in(field.annotation)] if fields else models


def _fields(models: Iterable[type[BaseModel]]) -> set[str]:
    return {name for model in models for name in model.model_fields}


def _message(found: list[ErrorDetails], path: KeyPath, model: type[BaseModel]) -> str:
    first = found[0]
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        return _unknown_key(path, model, first["loc"])
    if kind == "union_tag_invalid":
        tag, known = first["ctx"]["tag"], re.findall(r"'([^']*)'", first["ctx"]["expected_tags"])
        return f"there is no kind {tag!r}. {near_match(tag, known)}"
    if kind == "missing":
        if first["loc"][-1] != path[-1]:  # an entry of a list, which is not a key
            return "has too few entries."
        return "is missing, and has no default."
    if kind in ("value_error", "assertion_error"):
        return " ".join(str(first["ctx"]["error"]).split())
    if kind in ("model_type", "dict_type") and value is None:
        return "is empty. Write keys below it, or remove the line."
    texts = [_WORDS.get(one["type"]) or _without_subject(one["msg"]) for one in found]
    shown = value_text(value)
    if len(shown) > _SHOWN_LENGTH:
        shown = f"{shown[:_SHOWN_LENGTH]}…"
    return f"{' or '.join(dict.fromkeys(texts))} (got {shown})"


def _without_subject(message: str) -> str:
    """Pydantic's "Input should be ..." and "Tuple should have ..." without their first word."""
    return re.sub(r"^\w+ (?=should )", "", message)


def _unknown_key(path: KeyPath, model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    models = [model]
    for key in path[:-1]:
        models = _below(models, key)
    # Of a union whose members are told apart by a tag, the one that the location names.
    tags = [part for part in location if part not in path]
    tagged = [
        one
        for one in models
        if any(
            tag in get_args(field.annotation) for field in one.model_fields.values() for tag in tags
        )
    ]
    models = tagged or models
    known = sorted(_fields(models) | set(FILE_KEYS if len(path) == 1 else ()))
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    mend = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown key.{mend} Known keys: {', '.join(known) or 'none'}"
