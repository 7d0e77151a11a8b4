"""Episodes in shards: who gives how much, and who has what after a change of their number."""

import numpy as np
import pytest

from farreach import messages
from farreach_workloads.goals.experience import Experience, capacity, dealt_out
from farreach_workloads.goals.learner import Learner
from farreach_workloads.goals.stores import Stores, apportioned

STEPS = 6


def episodes(toy, first, count, producer=0, seq=0):
    """Episodes that stand still at first, first + 1, …"""
    xs = np.repeat(np.arange(first, first + count, dtype=float)[:, None], STEPS + 1, axis=1)
    return {
        "observations": toy.points(xs),
        "actions": np.zeros((count, STEPS, 2), np.float32),
        "goals": toy.points(xs[:, 0]),
        "goal_slot": np.zeros(count, np.int64),
        "nearest": np.zeros((count, STEPS + 1), np.int32),
        "version": np.ones(count, np.int64),
        "producer": producer,
        "seq": seq,
    }


def places(state):
    """Where the episodes of a state stand, in the order of its rows."""
    return state["ring"]["columns"]["observations"][:, 0, 0].tolist()


@pytest.fixture
def config_of(toy):
    return lambda shards, copies=4, **agent: toy.config(
        environment={"num_envs": copies}, runtime={"replay_shards": shards}, agent=agent
    )


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (10, [1, 1], [5, 5]),
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [3, 0, 1], [5, 0, 2]),  # 5.25 and 1.75
        (5, [0, 0], [0, 0]),
        (0, [2, 1], [0, 0]),
        (100, [], []),
    ],
)
def test_shares_are_whole_and_in_proportion(total, weights, expected):
    assert apportioned(total, weights).tolist() == expected


class Recorder:
    """A shard that notes down what it is asked for."""

    def __init__(self, index, asked):
        self.role, self._asked = f"replay-{index}", asked

    def call(self, method, count, returns):
        self._asked.append((self.role, method, count))
        return f"rows of {self.role}", count


def test_shards_give_in_proportion_to_what_they_hold(config_of):
    asked = []

    class Parts:
        learner = "learner"
        shards = tuple(Recorder(i, asked) for i in range(3))

    stores = Stores(Parts, config_of(3, batch=10, replay_steps=1800))
    assert stores.draw(4) == []
    stores.added("replay-0", 30)
    stores.added("replay-1", 10)
    stores.added("learner", 10)
    draws = stores.draw(4)
    assert asked == [("replay-0", "draw", 30), ("replay-1", "draw", 10)]
    assert [draw.rows for draw in draws] == ["rows of replay-0", "rows of replay-1"]
    # Each keeps 100 episodes of six steps: more has overwritten what was there.
    stores.added("replay-1", 1000)
    stores.added("replay-0", 70)
    stores.draw(1)
    assert [count for *_, count in asked[2:]] == [5, 5]
    stores.lost("replay-0", 100)
    stores.lost("memory", 100)
    stores.draw(1)
    assert asked[4:] == [("replay-1", "draw", 10)]


@pytest.mark.parametrize(
    ("rollouts", "shards", "expected"),
    [
        (5, 2, [[0], [1], [0], [1], [0]]),  # always the same of its own machine
        (3, 3, [[0], [1], [2]]),
        (2, 5, [[0, 2, 4], [1, 3]]),  # else some would get nothing, and never lose what they have
        (1, 3, [[0, 1, 2]]),
    ],
)
def test_every_shard_gets_episodes_from_the_rollouts_beside_it(toy, rollouts, shards, expected):
    class Parts:
        learner = "learner"

    Parts.shards = [Recorder(i, []) for i in range(shards)]
    settings = {"replay_shards": shards, "rollout_actors": rollouts}
    stores = Stores(Parts, toy.config(runtime=settings))
    for _ in range(3):
        for rollout, own in enumerate(expected):
            for index in own:
                store = stores.store_of(rollout)
                assert store.role == f"replay-{index}"
                stores.added(store.role, 4)


def test_turns_go_on_where_a_checkpoint_has_left_them(config_of):
    class Parts:
        learner = "learner"
        shards = tuple(Recorder(i, []) for i in range(2))

    stores = Stores(Parts, config_of(2))
    stores.restored({f"replay-{i}": {"ring": {"total": total}} for i, total in enumerate((8, 4))})
    assert stores.store_of(0).role == "replay-1"


def test_a_shard_too_small_for_what_one_rollout_sends_is_refused(toy):
    # Four copies with episodes of six steps.
    toy.config(runtime={"replay_shards": 2}, agent={"replay_steps": 48})
    with pytest.raises(
        ValueError, match=r"leaves each of the 3 runtime\.replay_shards room for less"
    ):
        toy.config(runtime={"replay_shards": 3}, agent={"replay_steps": 48})


def test_the_learner_mixes_what_several_have_drawn(toy, config_of):
    config = config_of(2, batch=20)
    learner, bundle = Learner(config, toy.env()), toy.line(3)
    learner.set_bundle(bundle)
    drawn = []
    for index in range(2):
        shard = Experience(config, toy.env(), index)
        shard.set_bundle(bundle)
        shard.add(episodes(toy, 100 * index, 5))
        rows, told = shard.draw(30)
        assert told == len(rows["reward"]) == 30
        drawn.append(rows)
    seen = []

    class Agent:
        config, device = learner._agent.config, "cpu"

        def set_lr(self, lr):
            pass

        def update(self, batch):
            seen.append(batch["pair"][:, 0].numpy().copy())
            return {"loss": batch["reward"].sum()}

        def export_policy(self):
            return {}

    learner._agent = Agent()
    learner.update(3, 0.0, *drawn)
    assert [len(batch) for batch in seen] == [20] * 3
    expected = np.concatenate([rows["pair"][:, 0] for rows in drawn])
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.sort(expected))
    assert all(2 < (batch >= 100).sum() < 18 for batch in seen)


def test_a_shard_that_is_restored_draws_what_it_would_have_drawn(toy, config_of):
    config, bundle = config_of(2), toy.line(3)
    shard, restored = (Experience(config, toy.env(), index) for index in (1, 0))
    shard.set_bundle(bundle)
    shard.add(episodes(toy, 0, 9))
    shard.rows(5)
    restored.restore(messages.unpack(messages.pack(shard.state())), bundle)
    for _ in range(2):
        one, other = shard.rows(12), restored.rows(12)
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])


def test_shards_draw_differently(toy, config_of):
    drawn = []
    for index in range(2):
        shard = Experience(config_of(2), toy.env(), index)
        shard.set_bundle(toy.line(3))
        shard.add(episodes(toy, 0, 9))
        drawn.append(shard.rows(50)["pair"])
    assert (drawn[0] != drawn[1]).any()


def states(toy, config, sizes):
    """States of a learner and of shards that have got so many episodes, one at a time."""
    shards = config.runtime.replay_shards
    holders = [Experience(config, toy.env(), i) for i in range(shards)]
    own = Experience(config, toy.env())
    first = 0
    for index, (holder, count) in enumerate(zip(holders or [own], sizes, strict=True)):
        for number in range(count):
            holder.add(episodes(toy, first + number, 1, producer=index, seq=number))
        first += 1000
    found = {f"replay-{i}": holder.state() for i, holder in enumerate(holders)}
    return found | {"learner": own.state() | {"updates": 7}, "memory": "as it was"}


def test_the_same_number_of_shards_keeps_what_it_has(toy, config_of):
    for shards, sizes in ((0, [5]), (2, [5, 3])):
        content = states(toy, config_of(shards), sizes)
        assert dealt_out(content, config_of(shards)) == content


def test_episodes_are_dealt_out_to_more_and_to_fewer(toy, config_of):
    content = states(toy, config_of(0), [7])
    more = dealt_out(content, config_of(3))
    assert [places(more[f"replay-{i}"]) for i in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert more["learner"]["ring"]["total"] == 0
    assert (more["learner"]["updates"], more["memory"]) == (7, "as it was")
    assert more["learner"]["rng"] == content["learner"]["rng"]
    assert [more[f"replay-{i}"]["last_seq"] for i in range(3)] == [{0: 6}] * 3
    back = dealt_out(more, config_of(0))
    assert sorted(places(back["learner"])) == list(range(7))
    assert back["learner"]["last_seq"] == {0: 6}
    assert "replay-0" not in back
    # A shard that was not there before has the generator that it begins with.
    shard = Experience(config_of(3), toy.env(), 1)
    before = shard.state()["rng"]
    shard.restore(more["replay-1"], toy.line(3))
    assert shard.state()["ring"]["total"] == 2
    assert shard.state()["rng"] == before


def test_fewer_places_keep_the_newest(toy, config_of):
    # Two shards of five places; the second has wrapped around: 3 to 7 of its eight are left.
    wide, narrow = config_of(2, 1, replay_steps=60), config_of(3, 1, replay_steps=30)
    assert (capacity(wide), capacity(narrow)) == (5, 1)
    content = states(toy, wide, [2, 8])
    found = dealt_out(content, narrow)
    # By age: 1003, 1004, 1005, then 0 and 1006, then 1 and 1007.
    assert [places(found[f"replay-{i}"]) for i in range(3)] == [[1007], [1006], [1]]
    for i in range(3):
        Experience(narrow, toy.env(), i).restore(found[f"replay-{i}"])


def test_nothing_can_be_dealt_out(toy, config_of):
    found = dealt_out(states(toy, config_of(0), [0]), config_of(2))
    shard = Experience(config_of(2), toy.env(), 0)
    shard.restore(found["replay-0"])
    shard.add(episodes(toy, 0, 3))
    assert shard.state()["ring"]["total"] == 3
