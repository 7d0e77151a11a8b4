"""States whose tensors are split over workers, in checkpoints: every worker writes its own rows.

FSDP2 splits tensors by rows, their first dimension. A checkpoint of split parameters holds, in the
part `learner`, trees of everything that is not split with an *outline* in place of each tensor that
is; and for each worker and kind (`weights`, `optimizer`) a part with its rows of all of those.
Nobody ever has the whole in memory: not who saves, nor a group of any size that goes on. Only who
uses the model without a group reads all of it, without the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from farreach.checkpoint import Checkpoint
from farreach.checkpoint_files import FALL_BACK
from farreach.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# How many workers have written rows, in the part `learner`; absent where nothing is split.
COUNT = "shards"
# An outline: {OUTLINE: shape}.
OUTLINE = "split over workers, of shape"
# The trees of `learner` that a kind has rows of.
KINDS = {"weights": ("model", "companions"), "optimizer": ("optimizer",)}

# (first row, rows) by the place of a tensor in its tree.
Rows = dict[str, Any]


def part_name(kind: str, rank: int, world: int) -> str:
    """The part of a checkpoint with a worker's rows."""
    return f"{kind}-{rank:05d}-of-{world:05d}"


def outlined(tree: Any, rank: int, world: int) -> tuple[Any, Rows]:
    """A tree with outlines in place of split tensors, and this worker's rows of those.

    Args:
        tree: nested dicts and lists, with DTensors that are split by rows over all workers.
        rank: of this worker.
        world: how many there are.
    """
    rows: Rows = {}

    def outline(place: str, leaf: Any) -> Any:
        if not _is_split(leaf):
            return leaf
        own = leaf.to_local().detach()
        first = _first_row(leaf, rank, world)
        if len(own):
            rows[place] = [first, own]
        return {OUTLINE: list(leaf.shape)}

    return _mapped(tree, outline), rows


def whole_state(checkpoint: Checkpoint, kinds: Sequence[str] = ("weights",)) -> dict[str, Any]:
    """The part `learner` of a checkpoint with the whole of every tensor, split or not.

    Args:
        checkpoint: of a learner.
        kinds: what is wanted whole; the rest keeps its outlines, and its files are not read.

    Raises:
        CheckpointError: a file is damaged, or rows are missing.
    """
    state: dict[str, Any] = checkpoint.part("learner")
    if COUNT in state:
        for kind in kinds:
            state |= _whole(checkpoint, kind, {name: state[name] for name in KINDS[kind]}, state)
    return state


def _whole(
    checkpoint: Checkpoint, kind: str, trees: dict[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    there: dict[str, int] = {}
    shapes = _shapes(trees)
    for rows in _all_rows(checkpoint, kind, state[COUNT], 0):
        for place, (first, own) in rows.items():
            if place not in arrays:
                arrays[place] = np.empty(shapes[place], own.dtype)
            arrays[place][first : first + len(own)] = own
            there[place] = there.get(place, 0) + len(own)
    _see_that_all_is_there(checkpoint, {place: shape[0] for place, shape in shapes.items()}, there)
    whole: dict[str, Any] = _mapped(trees, lambda place, leaf: arrays.get(place, leaf))
    return whole


def fill(
    trees: dict[str, Any],
    kind: str,
    checkpoint: Checkpoint,
    state: Mapping[str, Any],
    rank: int,
    world: int,
) -> Any:
    """Copy rows of a checkpoint of any number of workers into this one's split tensors.

    Args:
        trees: by name in the part `learner`, as `outlined` took them: their split tensors are
            written to.
        kind: whose rows.
        checkpoint: of split parameters.
        state: its part `learner`.
        rank: of this worker.
        world: how many there are.

    Returns:
        The trees with what is not split as the checkpoint has it.

    Raises:
        CheckpointError: a file is damaged, rows are missing, or the tensors have other shapes.
    """
    saved = {name: state[name] for name in trees}
    targets: dict[str, DTensor] = {}
    _mapped(trees, lambda place, leaf: targets.setdefault(place, leaf) if _is_split(leaf) else leaf)
    shapes = _shapes(saved)
    for place, target in targets.items():
        if shapes.get(place) != tuple(target.shape):
            raise CheckpointError(
                f"{checkpoint.path}: {place} has shape {shapes.get(place)}, and "
                f"{tuple(target.shape)} is needed. Resume with the config of the run."
            )
    wanted = {place: len(target.to_local()) for place, target in targets.items()}
    there = dict.fromkeys(wanted, 0)
    # A group of the same size finds all in one file each.
    for rows in _all_rows(checkpoint, kind, state[COUNT], rank):
        for place, target in targets.items():
            if place in rows:
                there[place] += _copy(rows[place], target, rank, world)
        if there == wanted:
            break
    _see_that_all_is_there(checkpoint, wanted, there)
    return _mapped(saved, lambda place, leaf: targets.get(place, leaf))


def _copy(rows: list[Any], target: DTensor, rank: int, world: int) -> int:
    """Copy those of a file's rows that are this worker's; how many."""
    first, theirs = rows
    own = target.to_local()
    start = _first_row(target, rank, world)
    begin, end = max(first, start), min(first + len(theirs), start + len(own))
    if begin >= end:
        return 0
    with torch.no_grad():
        own[begin - start : end - start].copy_(
            torch.from_numpy(theirs[begin - first : end - first])
        )
    return int(end - begin)


def _all_rows(checkpoint: Checkpoint, kind: str, world: int, begin: int) -> Iterator[Rows]:
    """The rows of each worker that has written some, from one on, so that not all read one file."""
    for index in range(world):
        yield checkpoint.part(part_name(kind, (begin + index) % world, world))


def _see_that_all_is_there(
    checkpoint: Checkpoint, wanted: Mapping[str, int], there: Mapping[str, int]
) -> None:
    for place, count in wanted.items():
        if there.get(place, 0) != count:
            raise CheckpointError(
                f"{checkpoint.path}: holds {there.get(place, 0)} of {count} rows of {place}. "
                f"{FALL_BACK}"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Of the outlines in a tree, by place."""
    shapes: dict[str, tuple[int, ...]] = {}

    def look(place: str, leaf: Any) -> Any:
        if _is_outline(leaf):
            shapes[place] = tuple(leaf[OUTLINE])
        return leaf

    _mapped(tree, look)
    return shapes


def _mapped(tree: Any, change: Callable[[str, Any], Any], place: str = "") -> Any:
    """A tree with every leaf, and every outline, changed by (its place, itself)."""
    if isinstance(tree, Mapping) and not _is_outline(tree):
        return {key: _mapped(value, change, f"{place}/{key}") for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_mapped(value, change, f"{place}/{i}") for i, value in enumerate(tree)]
    return change(place, tree)


def _is_outline(node: Any) -> bool:
    return isinstance(node, Mapping) and node.keys() == {OUTLINE}


def _is_split(leaf: Any) -> bool:
    if not isinstance(leaf, torch.Tensor):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(leaf, DTensor)


def _first_row(tensor: DTensor, rank: int, world: int) -> int:
    """Of this worker's rows in the whole; all but the last workers have equally many."""
    from torch.distributed.tensor import Shard

    assert tuple(tensor.placements) == (Shard(0),), "FSDP2 splits by rows"
    whole = tensor.shape[0]
    each = -(-whole // world)
    first = min(whole, rank * each)
    assert len(tensor.to_local()) == min(each, whole - first)
    return first
