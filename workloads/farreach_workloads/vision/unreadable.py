"""Images that cannot be read: others come in their place while training, up to a limit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from farreach.errors import DataError

# Of a batch: in whose place another image came, (b,) bool.
REPLACED = "replaced"
# Share of so many images, and of so many batches, that may be unreadable.
MOST, LOOKED_AT, BATCHES_LOOKED_AT = 0.01, 4096, 16


def left_out_note(count: int) -> list[str]:
    """A remark on so many held-out images that could not be read, if there are any."""
    if not count:
        return []
    return [
        f"{count:,} held-out images cannot be read and are left out. `farreach data check` names "
        "them."
    ]


class Unreadable:
    """Counts them, and ends a training that has too many."""

    def __init__(self, path: Path, batch: int) -> None:
        """Of a set that is read in batches of so many."""
        self._path = path
        # Not more often, since a GPU is waited for.
        self._every = max(LOOKED_AT, BATCHES_LOOKED_AT * batch)
        self._replaced, self._looked_at = torch.zeros(()), 0

    def count(self, replaced: Tensor) -> dict[str, Tensor]:
        """Metrics of a batch; (b,) bool, true for those in whose place others came.

        Raises:
            DataError: more than one in a hundred of the last thousands of images.
        """
        self._replaced = self._replaced + replaced.sum()
        self._looked_at += len(replaced)
        if self._looked_at >= self._every:
            self._check()
        return {"data/replaced_share": replaced.float().mean()}

    def _check(self) -> None:
        found, looked_at = int(self._replaced), self._looked_at
        self._replaced, self._looked_at = torch.zeros(()), 0
        if found > MOST * looked_at:
            raise DataError(
                f"{self._path}: {found:,} of the last {looked_at:,} images could not be read, more "
                "than 1 %. `farreach data check` names them."
            )
