"""Registries: name → factory, with a near match when the name is not known."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from farreach.errors import RegistryError

Entry = TypeVar("Entry")


def near_match(name: str, known: list[str]) -> str:
    """A sentence that helps with a mistyped name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(sorted(known)) or 'none'}."


class Registry(Generic[Entry]):
    """A dictionary of factories of one kind.

    ```
    environments: Registry[EnvironmentFactory] = Registry("environment")

    @environments.add("maze")
    class Maze: ...

    environments.get("maze")
    ```
    """

    def __init__(self, kind: str) -> None:
        """An empty registry; `kind` names its entries in errors."""
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator that registers an entry; raises RegistryError if the name is taken."""

        def register(entry: Entry) -> Entry:
            if name in self._entries:
                raise RegistryError(f"{self.kind} {name!r} is registered twice.")
            self._entries[name] = entry
            return entry

        return register

    def get(self, name: str) -> Entry:
        """The entry of that name; raises RegistryError with a near match."""
        if name not in self._entries:
            raise RegistryError(f"unknown {self.kind} {name!r}. {near_match(name, self.names())}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        """Whether the name is registered."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(self.names())


# Filled by the workloads' packages when they are imported.
environments: Registry[type] = Registry("environment")
