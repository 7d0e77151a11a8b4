import numpy as np
import pytest
import torch

from farreach import messages
from farreach_workloads.goals.config import AgentConfig
from farreach_workloads.goals.learner import Learner, learning_rate

STEPS = 6


def episodes(toy, seed=0, count=10, producer=0, seq=0, version=1, xs=None):
    rng = np.random.default_rng(seed)
    observations = toy.points(rng.uniform(0, 20, (count, STEPS + 1)) if xs is None else xs)
    return {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (count, STEPS, 2)).astype(np.float32),
        "goals": toy.points(rng.uniform(0, 20, count)),
        "goal_slot": rng.integers(0, 3, count),
        "nearest": np.zeros((count, STEPS + 1), np.int32),
        "version": np.full(count, version),
        "producer": producer,
        "seq": seq,
    }


@pytest.fixture
def make(toy):
    def make_learner(seed=0, bundle=None, **agent):
        learner = Learner(toy.config(seed=seed, agent=agent), toy.env())
        learner.set_bundle(bundle or toy.line(3))
        return learner

    return make_learner


def stored(learner):
    return learner.state()["ring"]["total"]


def test_a_message_that_came_before_is_dropped(make, toy):
    learner = make()
    for producer, seq, total in [
        (0, 0, 10), (0, 0, 10), (0, 1, 20), (0, 0, 20), (0, 1, 20),
        (7, 0, 30), (7, 0, 30), (0, 5, 40), (0, 4, 40),
    ]:  # fmt: skip
        learner.add(episodes(toy, producer=producer, seq=seq))
        assert stored(learner) == total


def test_what_has_come_is_remembered_across_a_restore(make, toy):
    learner, restored = make(), make()
    learner.add(episodes(toy, producer=3, seq=4))
    restored.restore(messages.unpack(messages.pack(learner.state())))
    restored.add(episodes(toy, producer=3, seq=4))
    assert stored(restored) == 10
    restored.add(episodes(toy, producer=3, seq=5))
    assert stored(restored) == 20


def test_the_replay_keeps_the_configured_number_of_steps(make, toy):
    learner = make(replay_steps=60)
    for seq in range(3):
        learner.add(episodes(toy, seq=seq))
    assert len(learner.state()["ring"]["columns"]["actions"]) == 10


@pytest.mark.parametrize(
    ("decay", "progress", "expected"),
    [
        (0.4, 0.0, 1.0),
        (0.4, 0.6, 1.0),
        (0.4, 0.8, 0.55),  # half-way from 1 to 0.1
        (0.4, 0.9, 0.325),
        (0.4, 1.0, 0.1),
        (0.4, 1.3, 0.1),
        (1.0, 0.5, 0.55),
        (0.0, 1.0, 1.0),
    ],
)
def test_the_learning_rate_is_constant_then_falls_to_a_tenth(decay, progress, expected):
    config = AgentConfig(lr=2e-3, lr_decay_frac=decay)
    assert learning_rate(config, progress) == pytest.approx(expected * 2e-3)


def test_the_scheduled_learning_rate_is_what_the_optimisers_use(make, toy):
    learner = make(lr=1e-2, lr_decay_frac=0.5)
    learner.add(episodes(toy))
    metrics, _ = learner.update(1, progress=1.0)
    assert metrics["learner/lr"] == pytest.approx(1e-3)
    for name in ("actor_optimiser", "critic_optimiser"):
        (group,) = learner.state()["agent"][name]["param_groups"]
        assert group["lr"] == pytest.approx(1e-3)


def test_a_restored_learner_updates_bit_for_bit_like_one_that_never_stopped(
    make, toy, expect_equal_states
):
    learner = make()
    learner.add(episodes(toy))
    learner.update(5, progress=0.1)
    frame = messages.pack(learner.state())
    restored = make(seed=9, bundle=toy.line(4))  # other weights, another stream, another bundle
    restored.restore(messages.unpack(frame))
    outcomes = []
    for each in (learner, restored):
        each.add(episodes(toy, seed=1, seq=1))
        _, first = each.update(7, progress=0.7)
        each.set_bundle(toy.line(3, version=2))
        _, last = each.update(3, progress=0.9)
        outcomes.append((first, last))
    for one, other in zip(*outcomes, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)
    expect_equal_states(learner.state(), restored.state())
    assert learner.state()["updates"] == 15


def test_updates_are_counted_and_change_the_policy(make, toy):
    learner = make()
    learner.add(episodes(toy))
    before = learner.policy()
    metrics, after = learner.update(3, progress=0.0)
    assert learner.state()["updates"] == 3
    assert all((before[name] != after[name]).any() for name in before)
    assert all(np.isfinite(value) for value in metrics.values())
    kept = {name: value.copy() for name, value in after.items()}
    learner.update(1, progress=0.0)
    for name, value in after.items():
        np.testing.assert_array_equal(value, kept[name])


def test_a_batch_holds_features_of_both_states_with_the_goal(make, toy):
    learner = make()
    learner.add(episodes(toy, xs=np.arange(7.0)[None] + np.arange(10)[:, None] * 100))
    batch = learner.batch(50)
    # pair is x, y of the state, then x, y of the goal; each step goes one to the right.
    assert batch["pair"].shape == (50, 4)
    torch.testing.assert_close(batch["next_pair"][:, 0], batch["pair"][:, 0] + 1)
    torch.testing.assert_close(batch["next_pair"][:, 2:], batch["pair"][:, 2:])


def test_a_new_bundle_annotates_stored_episodes_anew(make, toy):
    learner = make()
    # All states of episode i are at 10 × (i mod 3): by the nodes at 0, 10, 20 that is node i mod 3.
    xs = np.repeat((np.arange(200) % 3 * 10.0)[:, None], STEPS + 1, axis=1)
    learner = make(replay_steps=1200)
    learner.add(episodes(toy, count=200, xs=xs))
    slot = learner.state()["ring"]["columns"]["goal_slot"].copy()
    assert (learner.state()["ring"]["columns"]["nearest"] == 0).all()
    learner.set_bundle(toy.line(3, version=5, born=np.array([1, 1, 4])))
    columns = learner.state()["ring"]["columns"]
    new = columns["version"] == 5
    assert 40 <= new.sum() <= 64  # 64 draws with replacement
    expected = np.where(new[:, None], (np.arange(200) % 3)[:, None], 0)
    np.testing.assert_array_equal(columns["nearest"], np.broadcast_to(expected, (200, 7)))
    # Slot 2 means another node since version 4, so goals there have none until looked up.
    np.testing.assert_array_equal(columns["goal_slot"], np.where(new & (slot == 2), -1, slot))
    assert (new & (slot == 2)).any()
    assert (columns["version"][~new] == 1).all()
