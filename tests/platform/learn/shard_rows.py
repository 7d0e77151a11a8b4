"""Programs of several ranks with split parameters: what each keeps and takes over."""

from pathlib import Path

import torch
from regression import Notes, Regression

from farreach.checkpoint import CheckpointStore
from farreach.errors import CheckpointError
from farreach.learn.keeping import Keeper
from farreach.learn.place import Place
from farreach.testing.ranks import as_rank


def _keeper(folder, place, wide=False):
    torch.manual_seed(0)
    task = Regression()
    if wide:
        task.model.layers[1] = torch.nn.Linear(8, 2)
    place.split(task.model)
    optimizer = task.optimizer()
    store = CheckpointStore(folder)
    return task, optimizer, Keeper(task, optimizer, place, Notes(), store), store


def as_worker(rank, world, words):
    """`rows`: bytes of what this worker has packed; `wide`: what a wider network is told."""
    out, what = words
    folder, place = Path(out, "checkpoints"), Place(rank, world, sharded=True)
    task, optimizer, keeper, store = _keeper(folder, place)
    loss = task.model(torch.ones(2, 3)).sum()
    loss.backward()
    optimizer.step()
    keeper.begin(1, {"step": 1}, {}, None, held=False)
    keeper.finish()
    keeper.close()
    place.agree(0)
    if what == "rows":
        return {name: record.size for name, record in store.newest().files.items()}
    _, _, other, _ = _keeper(folder, place, wide=True)
    try:
        other.restore(store.newest())
    except CheckpointError as error:
        return str(error)
    finally:
        other.close()


if __name__ == "__main__":
    as_rank(as_worker)
