"""Checkpoints written beside training: taken at once, on the disk a little later.

What must stand still while a checkpoint is made is only copied, to memory that is kept for that;
hashing, writing, bringing it to a URI and removing older ones take a thread of their own, which
needs the interpreter for little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farreach.checkpoint import CheckpointStore, More
from farreach.checkpoint_files import Packed


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint.

    Attributes:
        step: it was saved under.
        path: its folder.
        info: what was noted in it.
        held: whether it is.
    """

    step: int
    path: Path
    info: Mapping[str, Any]
    held: bool


class Saver:
    """Writes the checkpoints of one store, one at a time.

    ```
    saver = Saver(store)
    saver.begin({"learner": state}, step=1000, info={"updates": 1000})
    train_on()
    for saved in saver.done():
        announce(saved)
    saver.wait()
    ```
    It is for one thread; only the writing is in another.
    """

    def __init__(self, store: CheckpointStore) -> None:
        """Nothing is being written; nobody else may save to the store meanwhile."""
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Saved | None] | None = None
        self._rooms: dict[str, Any] = {}

    def begin(
        self,
        parts: Mapping[str, Any],
        *,
        step: int,
        info: Mapping[str, Any],
        score: float | None = None,
        held: bool = False,
        before: Callable[[], None] | None = None,
        more: More | None = None,
    ) -> list[Saved]:
        """Copy what is to be saved, and have it written; arguments as of `CheckpointStore.save`.

        What has to happen `before` is called in the thread, too.

        Returns:
            What was still being written, which is waited for.

        Raises:
            CheckpointError, StorageError: that could not be written.
        """
        earlier = self.wait()
        packed = {name: self.packed(name, tree) for name, tree in parts.items()}

        def write() -> Saved:
            if before is not None:
                before()
            path = self._store.save(packed, step=step, info=info, score=score, held=held, more=more)
            return Saved(step, path, info, held)

        self._pending = self._thread.submit(write)
        return earlier

    def packed(self, name: str, tree: Any) -> Packed:
        """A copy of a part, valid until one of that name is taken again; after `wait`.

        It lies where the part of before lay: the system would need longer to provide the memory
        than it takes to copy.
        """
        assert self._pending is None
        packed = Packed.of(tree, self._rooms.get(name))
        self._rooms[name] = packed.data.base
        return packed

    def begin_other(self, work: Callable[[], None]) -> None:
        """Have something else done, such as writing a part of what another process saves.

        Raises:
            CheckpointError, StorageError: as `begin`.
        """
        self.wait()
        self._pending = self._thread.submit(work)

    def done(self) -> list[Saved]:
        """What has been completed since it was last told; waits for nothing; raises as `begin`."""
        return self.wait() if self._pending is not None and self._pending.done() else []

    def wait(self) -> list[Saved]:
        """The same when nothing is being written any more; raises as `begin`."""
        if self._pending is None:
            return []
        pending, self._pending = self._pending, None
        saved = pending.result()
        return [] if saved is None else [saved]

    def close(self) -> None:
        """End the thread, after what it still writes."""
        self._thread.shutdown(wait=True)
