import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from regression import SAMPLES, Numbers, Regression, loop_of

from farreach.errors import DataError
from farreach.learn.batches import Steps, even_part, passes
from farreach.learn.order import Order
from farreach.learn.place import Place
from farreach.learn.settings import LoopConfig
from farreach.testing.ranks import as_rank, several

WORLD = 3  # of a batch of ten they have 3, 3 and 4 samples


class Normalised(Regression):
    """Its layers' statistics are those of all workers' samples."""

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)]
        self.model.layers = nn.ModuleList(layers)


def trained(folder, kind, part, place):
    torch.manual_seed(0)
    task = Normalised() if kind == "whole" else Regression()
    loop_of(folder, task, place=place, part=part).run()
    state = task.model.state_dict()
    whole = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}
    return whole, task.seen


def as_worker(rank, world, words):
    folder, kind, part = words
    return trained(folder, kind, int(part), Place(rank, world, sharded=kind == "sharded"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "part"), [("whole", 3), ("whole", 1), ("sharded", 3)])
def test_workers_with_a_sample_more_pass_as_often_as_the_others(tmp_path, kind, part):
    """Else they would wait for statistics, or for parameters, that no other worker gives."""
    found = several(Path(__file__), WORLD, tmp_path, [tmp_path / "run", kind, part])
    assert sorted(position for _, seen in found for position in seen) == list(range(3 * SAMPLES))
    for state, _ in found:
        for name, value in state.items():
            torch.testing.assert_close(value, found[0][0][name], atol=0, rtol=0)
    if kind == "sharded":
        alone, _ = trained(tmp_path / "alone", kind, None, Place())
        for name, value in alone.items():
            torch.testing.assert_close(found[0][0][name], value, atol=1e-6, rtol=1e-5)


def test_all_workers_have_as_many_parts_of_at_most_the_size_that_is_asked_for():
    for batch in range(1, 40):
        for world in range(1, batch + 1):
            for part in (1, 2, 3, 5, 8, 64):
                count = passes(batch, world, part)
                shares = {batch * (r + 1) // world - batch * r // world for r in range(world)}
                assert 1 <= count <= min(shares)
                assert -(-max(shares) // count) <= part + (part == 1)
                size = even_part(batch, world, part)
                assert len({-(-share // size) for share in shares}) == 1
                if len(shares) == 1:
                    assert size == part
                    assert count == -(-max(shares) // part)


class Sorted(Numbers):
    """Knows which samples are best computed together."""

    def parts(self, rows, positions, size):
        self.sizes = [*getattr(self, "sizes", []), size]
        cuts = np.array_split(np.arange(len(rows)), -(-len(rows) // size))
        return [self.batch(rows[some], positions[some]) for some in cuts]


@pytest.mark.parametrize(("part", "expected"), [(3, 2), (2, 2), (1, 2), (4, 1), (None, 1)])
def test_data_that_makes_its_own_parts_makes_as_many_for_all_workers(part, expected):
    config = LoopConfig(batch=10, part=part)
    for rank in range(WORLD):
        made = Steps(Sorted(), Order(SAMPLES, 0), config, rank, WORLD)[4]
        assert len(made) == expected
        assert sum(len(batch["x"]) for batch in made) == (4 if rank == 2 else 3)


class Missing(Numbers):
    def batch(self, rows, positions):
        raise DataError("images/7.png: is no image that can be read. Replace it.")


@pytest.mark.parametrize("loaders", [0, 1])
def test_errors_of_data_keep_their_words_whoever_makes_the_batches(tmp_path, loaders):
    task = Regression()
    task.data = Missing()
    with pytest.raises(DataError) as caught:
        loop_of(tmp_path, task, loaders=loaders).run()
    assert str(caught.value) == "images/7.png: is no image that can be read. Replace it."


if __name__ == "__main__":
    as_rank(as_worker)
