"""YAML as configurations use it: plain rules for scalars, and the line of every key.

Numbers follow YAML 1.2 and Python (`5e-4` and `1e6` are floats, `010` is ten, `1_000_000` may be
written), only `true` and `false` are booleans, dates stay text, and a key is written once. What is
written by `to_text` is read back as the same values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from farreach.errors import ConfigError

Tree = dict[str, Any]
# The keys that lead to a value; an int is the place in a list.
KeyPath = tuple[str | int, ...]
# Where each key is written, such as "configs/x.yaml:7"; () is the whole file.
Sources = dict[KeyPath, str]

_MERGE = "tag:yaml.org,2002:merge"
_DIGITS = r"\d+(_\d+)*"
# Kind → pattern and possible first characters; the first kind that matches is taken.
_SCALARS = {
    "null": (r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"(true|false)$", list("tf")),
    "int": (rf"[-+]?{_DIGITS}$", list("-+0123456789")),
    "float": (
        rf"([-+]?(({_DIGITS}\.?|({_DIGITS})?\.{_DIGITS})([eE][-+]?\d+)?|\.(inf|Inf|INF))"
        r"|\.(nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own attribute


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own attribute

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out instead of pointing from one to the other."""
        return True


for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # PyYAML's own reads 010 as eight


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read(path: Path, shown: str) -> tuple[Tree, Sources]:
    """The mapping in a file, and where each of its keys is written.

    Args:
        path: the file.
        shown: what the file is called in sources and errors.

    Raises:
        ConfigError: unreadable, malformed, not a mapping, or a key is written twice.
    """
    try:
        return read_text(path.read_bytes(), shown)
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read: {error.strerror or error}.") from error


def read_text(text: bytes | str, shown: str) -> tuple[Tree, Sources]:
    """As `read`, of text that is no file; `shown` says in errors where it is from."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown}{_fault(error)}") from error
    return _mapping_in(node, loader, shown)


def _mapping_in(
    node: yaml.Node | None, loader: yaml.SafeLoader, shown: str
) -> tuple[Tree, Sources]:
    if not isinstance(node, yaml.MappingNode):
        kinds = {type(None): "nothing", yaml.SequenceNode: "a list"}
        found = kinds.get(type(node), "a single value")
        raise ConfigError(f"{shown}: should hold a mapping of keys to values, but holds {found}.")
    sources: Sources = {}
    build = _Builder(loader, lambda line: f"{shown}:{line}", sources)
    tree = build.value(node, ())
    sources[()] = shown
    return tree, sources


def read_documents(path: Path, shown: str) -> list[tuple[Tree, Sources]]:
    """The mappings in a file of Ray's launcher or of Kubernetes, and where their keys are written.

    These follow YAML 1.1 (`yes` is true, `5e-4` is text, `<<` merges) and may be several in a file.
    Empty documents are left out.

    Args:
        path: the file.
        shown: what the file is called in sources and errors.

    Raises:
        ConfigError: unreadable, malformed, not a mapping, or a key is written twice.
    """
    documents: list[tuple[Tree, Sources]] = []
    try:
        loader = yaml.SafeLoader(path.read_bytes())
        while loader.check_node():
            node = loader.get_node()
            if isinstance(node, yaml.ScalarNode) and loader.construct_object(node) is None:
                continue
            documents.append(_mapping_in(node, loader, shown))
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read: {error.strerror or error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown}{_fault(error)}") from error
    return documents


def parse(text: str, source: str, path: KeyPath = ()) -> tuple[Any, Sources]:
    """The value of a piece of YAML, and the source for every key in it.

    Args:
        text: the YAML.
        source: where it is written, for sources and errors.
        path: the keys above it.

    Raises:
        ConfigError: it is malformed, or empty.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}{_fault(error)}") from error
    if node is None:
        raise ConfigError(f"{source}: has no value. Write null if that is meant.")
    sources: Sources = {}
    return _Builder(loader, lambda _: source, sources).value(node, path), sources


def to_text(tree: Tree) -> str:
    """YAML that `read` gives back as the same values, tuples as lists."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Builder:
    """Turns nodes into values and notes where each key is written."""

    def __init__(
        self, loader: yaml.SafeLoader, source: Callable[[int], str], sources: Sources
    ) -> None:
        self._loader = loader
        self._source = source
        self._sources = sources
        self._open: list[yaml.Node] = []

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """The node's value; its keys are noted below `path`."""
        self._sources[path] = source = self._source(node.start_mark.line + 1)
        if node in self._open:
            raise ConfigError(located(source, path, "the alias points at itself."))
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
            return self._loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            detail = getattr(error, "problem", None) or error
            raise ConfigError(located(source, path, f"{detail}.")) from error
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> Tree:
        tree: Tree = {}
        lines: dict[str, int] = {}
        for key_node, value_node in self._pairs(node):
            line = key_node.start_mark.line + 1
            key = self._loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                message = f"key {key!r} should be text. Write it in quotes."
                raise ConfigError(located(self._source(line), path, message))
            place = (*path, key)
            if key in tree:
                message = f"is written twice, first on line {lines[key]}. Remove one of them."
                raise ConfigError(located(self._source(line), place, message))
            if node.flow_style and ":" in key and value_node.start_mark == value_node.end_mark:
                message = f"{key!r} has no value. Write a space after the colon of a key."
                raise ConfigError(located(self._source(line), path, message))
            tree[key] = self.value(value_node, place)
            lines[key] = line
            self._sources[place] = self._source(line)
        return tree

    def _pairs(self, node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
        """Its keys and values; a key of its own goes before the same one that is merged in."""
        own = [pair for pair in node.value if pair[0].tag != _MERGE]
        if len(own) < len(node.value):
            self._loader.flatten_mapping(node)
            names = {key.value for key, _ in own}
            merged = {pair[0].value: pair for pair in node.value[: len(node.value) - len(own)]}
            node.value = [pair for name, pair in merged.items() if name not in names] + own
        return node.value


def source_of(path: KeyPath, sources: Sources) -> str:
    """Where a key is written, or else the nearest section around it."""
    around = (path[:length] for length in range(len(path), -1, -1))
    return next(sources[place] for place in around if place in sources)


def located(source: str, path: KeyPath, message: str) -> str:
    """One line of an error: where it is written, which key, and what is wrong."""
    dotted = ".".join(map(str, path))
    return f"{source}: {dotted}: {message}" if dotted else f"{source}: {message}"


def _fault(error: yaml.YAMLError) -> str:
    """What is malformed, behind the name of the file: ":line:column: ..."."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # bytes that are no text
        return f": is not text in UTF-8: {' '.join(str(error).split())}"
    context = getattr(error, "context", None)
    detail = ", ".join(part for part in (context, getattr(error, "problem", None)) if part)
    return f":{mark.line + 1}:{mark.column + 1}: malformed YAML: {detail}."
