"""A ring of records of equal shape: the newest `capacity` ones, in plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farreach.errors import CheckpointError

Array = NDArray[Any]


class Ring:
    """Keeps the newest records; a record is a row in each of several columns.

    ```
    ring = Ring(capacity=4_000)
    ring.append({"observations": observations, "actions": actions})  # (n, T + 1, d), (n, T, a)
    batch = ring["observations"][rng.integers(0, len(ring), 256)]
    ```
    Columns are made by the first `append` and grow in place up to the capacity, so that a large
    capacity costs nothing until it is used.
    """

    def __init__(self, capacity: int) -> None:
        """An empty ring for `capacity` records."""
        assert capacity >= 1
        self.capacity = capacity
        self.total = 0  # records ever appended
        self._columns: dict[str, Array] = {}

    def __len__(self) -> int:
        """Records held now."""
        return min(self.total, self.capacity)

    def __getitem__(self, column: str) -> Array:
        """View of a column, (len(self), ...); not in order of age once the ring has wrapped."""
        return self._columns[column][: len(self)]

    def append(self, records: Mapping[str, Array]) -> NDArray[np.int64]:
        """Append records, overwriting the oldest.

        Args:
            records: arrays (n, ...) of one length, the same columns each time.

        Returns:
            Row of each record, (n,); if n exceeds the capacity, only the last ones are kept.
        """
        count = len(next(iter(records.values())))
        skipped = max(0, count - self.capacity)
        rows = (self.total + np.arange(skipped, count)) % self.capacity
        if not self._columns:
            self._columns = {
                name: np.empty((0, *values.shape[1:]), values.dtype)
                for name, values in records.items()
            }
        if records.keys() != self._columns.keys():
            raise ValueError(f"columns {sorted(records)} do not match {sorted(self._columns)}")
        self._reserve(min(self.total + count, self.capacity))
        for name, values in records.items():
            self._columns[name][rows] = values[skipped:]
        self.total += count
        return rows

    def _reserve(self, rows: int) -> None:
        """Make room for at least `rows` rows, by doubling."""
        held = len(next(iter(self._columns.values())))
        if rows <= held:
            return
        size = min(self.capacity, max(rows, 2 * held))
        for name, values in self._columns.items():
            grown = np.empty((size, *values.shape[1:]), values.dtype)
            grown[:held] = values
            self._columns[name] = grown

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs; arrays are views."""
        return {
            "capacity": self.capacity,
            "total": self.total,
            "columns": {name: self[name] for name in self._columns},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`; raises CheckpointError if the capacity differs."""
        if state["capacity"] != self.capacity:
            raise CheckpointError(
                f"the checkpoint's ring holds {state['capacity']} records, this run's "
                f"{self.capacity}; resume with the sizes of the original config"
            )
        self.total = int(state["total"])
        self._columns = {name: np.array(values) for name, values in state["columns"].items()}
