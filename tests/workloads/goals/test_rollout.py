import pickle

import numpy as np
import pytest

from farreach import messages
from farreach.errors import EnvironmentFault, FarreachError
from farreach_workloads.goals.rollout import Planner, Rollout, guide_for_rollouts
from farreach_workloads.goals.sac import GoalSac

COPIES, POLICY_STEPS, RANDOM_STEPS = 4, 6, 5


class Recorder:
    """A policy that goes straight to what it pursues, and remembers what that was."""

    def __init__(self):
        self.pursued = []

    def act(self, observations, goals, rng):
        self.pursued.append(goals.copy())
        return np.clip(goals[:, :2] - observations[:, :2], -1, 1)


def collect(rollout, bundle, env_steps=0, policy=None):
    """What a rollout collects with a bundle as it is handed out."""
    guide = guide_for_rollouts(bundle, rollout._config)
    return rollout.collect(policy or {}, pickle.loads(pickle.dumps(guide)), env_steps)


def planner_of(toy, bundle, planning):
    config = toy.config(planning=planning)
    return Planner(bundle.guide("uniform"), config, bundle.features(config, toy.Plane.spec))


@pytest.fixture
def make(toy, monkeypatch):
    """A rollout whose policy is scripted and whose goals are the given slots."""

    def make_rollout(slots=None, env=None, index=0, incarnation=0, **sections):
        config = toy.config(**sections)
        rollout = Rollout(config, env or toy.env(COPIES), index, incarnation)
        recorder = Recorder()
        monkeypatch.setattr(rollout, "_load", lambda weights, features: recorder)
        if slots is not None:
            chosen = np.asarray(slots)
            monkeypatch.setattr(
                rollout, "_choose_goals", lambda bundle: (bundle.nodes[chosen], chosen)
            )
        return rollout, recorder

    return make_rollout


# --------------------------------------------------------------------------------- two phases


def test_the_random_walk_goes_on_from_where_the_policy_ended(make, toy):
    rollout, _ = make(slots=[1, 1, 2, 2])
    episodes, walks, _ = collect(rollout, toy.line(3))
    # From 0 towards 10 or 20, a unit per step.
    assert episodes["observations"][:, -1, 0].tolist() == [6.0] * 4
    np.testing.assert_array_equal(walks["observations"][:, 0], episodes["observations"][:, -1])
    moves = np.diff(walks["observations"][..., :2], axis=1)
    assert (np.abs(moves) <= 1).all()  # so the copies had not been reset
    assert (np.abs(moves).max(axis=(1, 2)) > 0.5).all()
    marks = walks["observations"][..., 2]
    np.testing.assert_array_equal(marks, np.repeat(episodes["observations"][:, :1, 2], 6, axis=1))


def test_the_control_walks_from_a_reset_state(make, toy):
    rollout, _ = make(slots=[1, 1, 2, 2], phases={"random_start": "reset"})
    episodes, walks, _ = collect(rollout, toy.line(3))
    assert (walks["observations"][:, 0, :2] == 0).all()
    assert (walks["observations"][:, 0, 2] != episodes["observations"][:, -1, 2]).all()
    assert (np.abs(walks["observations"][:, 1, :2]) <= 1).all()


def test_an_episode_holds_what_was_done_and_seen(make, toy):
    rollout, recorder = make(slots=[0, 1, 1, 0])
    episodes, _, _ = collect(rollout, toy.line(3, version=3))
    assert episodes["observations"].shape == (COPIES, POLICY_STEPS + 1, 3)
    assert episodes["observations"].dtype == episodes["actions"].dtype == np.float32
    moves = np.diff(episodes["observations"][..., :2], axis=1)
    np.testing.assert_allclose(moves, episodes["actions"], atol=1e-6)
    assert episodes["goal_slot"].tolist() == [0, 1, 1, 0]
    assert episodes["goals"][:, 0].tolist() == [0, 10, 10, 0]
    # From 0 to 6: node 1 (at 10) becomes nearest after 5.
    assert episodes["nearest"].tolist()[1] == [0, 0, 0, 0, 0, 0, 1]
    assert episodes["version"].tolist() == [3] * 4
    assert len(recorder.pursued) == POLICY_STEPS


def test_walks_say_which_node_was_pursued_and_whether_the_pursuit_ended_there(make, toy):
    rollout, _ = make(slots=[0, 1, 2, 0])
    _, walks, info = collect(rollout, toy.line(3, version=3), 1234)
    assert walks["goal_slot"].tolist() == [0, 1, 2, 0]
    assert walks["goal_version"].tolist() == [3] * 4
    assert walks["reached"].tolist() == [True, True, False, True]  # 6 lies nearer to 10 than to 20
    assert walks["env_steps"] == 1234
    assert info["metrics"]["rollout/reached_node"] == 0.75


def test_first_walks_start_at_the_reset_and_are_at_least_as_many_steps_as_asked(make):
    rollout, _ = make()
    walks, info = rollout.first_walks(41)  # 20 steps a round
    assert walks["observations"].shape == (12, RANDOM_STEPS + 1, 3)
    assert (walks["observations"][:, 0, :2] == 0).all()
    assert walks["goal_slot"].tolist() == [-1] * 12
    assert not walks["reached"].any()
    assert (info["walk_steps"], info["policy_steps"]) == (60, 0)
    assert info["visits"].sum() == 60


def test_counters_count_every_step_once(make, toy):
    rollout, _ = make(slots=[1, 1, 1, 1], index=2, incarnation=3)
    for seq in range(3):
        episodes, _, info = collect(rollout, toy.line(3))
        assert (episodes["producer"], episodes["seq"]) == (3_000_002, seq)
        assert info["policy_steps"] == COPIES * POLICY_STEPS
        assert info["walk_steps"] == COPIES * RANDOM_STEPS
        # Six steps to the right and five that lead at most five back: all right of the start.
        assert info["visits"].tolist() == [0, COPIES * (POLICY_STEPS + RANDOM_STEPS)]


@pytest.mark.parametrize(("dim", "step"), [(1, 3), (0, 6), (2, 8)])
def test_a_nan_stops_the_run_and_says_which_environment_dim_and_step(make, toy, dim, step):
    class Broken(toy.Plane):
        steps = 0

        def step(self, actions):
            observations = super().step(actions)
            self.steps += 1
            if self.steps == step:
                observations[2, dim] = np.nan
            return observations

    rollout, _ = make(slots=[1] * COPIES, env=Broken(COPIES, np.random.default_rng(0)))
    shown = step if step <= POLICY_STEPS else step - POLICY_STEPS
    message = rf"environment 'plane' returned nan in dim {dim} at step {shown} of copy 2\. Mend"
    with pytest.raises(EnvironmentFault, match=message):
        collect(rollout, toy.line(3))


@pytest.mark.parametrize("step", [1, POLICY_STEPS])
@pytest.mark.parametrize("kind", ["numb", "strict"])
def test_a_policy_that_has_diverged_ends_the_run_and_the_environment_is_not_blamed(
    make, toy, step, kind
):
    class Numb(toy.Plane):
        """Takes NaN for no action, as MuJoCo does."""

        def step(self, actions):
            return super().step(np.nan_to_num(actions))

    class Strict(toy.Plane):
        """Refuses NaN."""

        def step(self, actions):
            assert np.isfinite(actions).all()
            return super().step(actions)

    env = {"numb": Numb, "strict": Strict}[kind](COPIES, np.random.default_rng(0))
    rollout, recorder = make(slots=[1] * COPIES, env=env)
    act = recorder.act

    def act_or_not(observations, goals, rng):
        actions = act(observations, goals, rng)
        if len(recorder.pursued) == step:
            actions[1, 0] = np.nan
        return actions

    recorder.act = act_or_not
    with pytest.raises(
        FarreachError, match=r"no longer numbers: its training has diverged\. Lower"
    ):
        collect(rollout, toy.line(3))


# ------------------------------------------------------------------------------ what is pursued


@pytest.mark.parametrize("mode", ["uniform", "chained"])
def test_planned_copies_pursue_the_node_some_hops_ahead_and_the_others_the_goal(make, toy, mode):
    phases = {"planned_frac": 0.5}
    rollout, recorder = make(slots=[5, 2, 5, 2], phases=phases, goals={"mode": mode})
    collect(rollout, toy.line(6))  # no node has a predecessor
    for pursued in recorder.pursued:
        assert pursued[:, 0].tolist() == [30, 20, 50, 20]


def test_the_sub_goal_is_chosen_anew_every_few_steps(make, toy):
    # Nodes two units apart: after four steps at a unit each, the copy is at node 2.
    phases = {"planned_frac": 1.0}
    rollout, recorder = make(slots=[9] * COPIES, phases=phases)
    collect(rollout, toy.line(10, apart=2.0))
    assert [p[0, 0] for p in recorder.pursued] == [6, 6, 6, 6, 10, 10]


def test_a_planned_goal_within_the_lookahead_is_the_goal_itself_not_its_node(toy):
    bundle = toy.line(6)
    planner = planner_of(toy, bundle, {"lookahead_hops": 2})
    states, goals = toy.points([0.0, 31.0, 42.0]), toy.points([47.0, 47.0, 47.0])
    found = planner.subgoals(states, goals, np.array([5, 5, 5]))
    assert found[:, 0].tolist() == [20, 47, 47]
    assert planner.nearest(states).tolist() == [0, 3, 4]


def test_planned_execution_passes_over_nodes_that_look_like_where_it_is(toy):
    # One hop ahead lies half a unit away; the first node further than two units comes next, and
    # the goal itself if there is none.
    bundle = toy.line(10, apart=0.5)
    planner = planner_of(toy, bundle, {"lookahead_hops": 1})
    goals = toy.points([4.6, 4.6])
    found = planner.subgoals(toy.points([0.0, 3.0]), goals, np.array([9, 9]))
    assert found[:, 0].tolist() == pytest.approx([2.5, 4.6])


def test_a_copy_that_is_stuck_gets_nearer_subgoals_until_it_moves(toy):
    # Nodes ten units apart, and a unit is 1: 0.05 is no movement, 0.5 is.
    planner = planner_of(toy, toy.line(6), {"lookahead_hops": 3})
    goals, slots = toy.points([50.0] * 3), np.array([5] * 3)

    def pursued(*xs):
        return (planner.subgoals(toy.points(xs), goals, slots)[:, 0] / 10).tolist()

    assert pursued(0.0, 4.0, 0.0) == [3, 3, 3]
    assert pursued(0.05, 4.05, 1.0) == [2, 2, 3]
    assert pursued(0.0, 4.0, 2.0) == [1, 1, 3]
    # The first is at its own node, so that is no help; the second is not.
    assert pursued(0.05, 4.05, 3.0) == [3, 0, 3]
    assert pursued(0.0, 4.0, 2.0) == [2, 3, 3]
    # Four choices in motion give a hop back.
    assert [pursued(x, 4.0, 2.0)[0] for x in (1.2, 2.4, 3.6, 4.8, 3.6)] == [2, 2, 2, 3, 3]


def test_a_copy_that_goes_to_and_fro_is_stuck_too(toy):
    planner = planner_of(toy, toy.line(9), {"lookahead_hops": 3})
    goals, slots = toy.points([80.0] * 2), np.array([8] * 2)

    def pursued(*xs):
        return (planner.subgoals(toy.points(xs), goals, slots)[:, 0] / 10).tolist()

    # Half a unit each time is movement, but the first gets nowhere; the second goes on.
    found = [pursued(4.0 + 0.5 * (t % 2), 0.5 * t) for t in range(7)]
    assert [first for first, _ in found] == [3, 3, 3, 3, 3, 2, 2]
    assert [second for _, second in found] == [3] * 7


def test_a_copy_that_stands_at_its_goal_stays_there(toy):
    # The copy's node is 2, and node 4 stands for the goal: one hop nearer would lead away.
    planner = planner_of(toy, toy.line(6), {"lookahead_hops": 2})
    goals, slots = toy.points([24.8]), np.array([4])

    def pursued(x):
        return float(planner.subgoals(toy.points([x]), goals, slots)[0, 0])

    assert [pursued(24.5) for _ in range(3)] == pytest.approx([24.8] * 3)
    # Half a unit and more away it is no longer there, and standing still is being stuck.
    assert [pursued(24.1) for _ in range(3)] == pytest.approx([24.8, 30, 20])


def test_a_chained_pursuit_goes_to_the_predecessor_in_its_first_half(make, toy):
    rollout, recorder = make(slots=[0, 1, 3, 4], goals={"mode": "chained"})
    bundle = toy.line(5, predecessor=np.array([-1, 0, 0, 1, 2]))
    collect(rollout, bundle)
    pursued = [p[:, 0].tolist() for p in recorder.pursued]
    assert pursued == [[0, 0, 10, 20]] * 3 + [[0, 10, 30, 40]] * 3


def test_other_modes_pursue_the_goal_at_once(make, toy):
    rollout, recorder = make(slots=[0, 1, 3, 4], goals={"mode": "novelty"})
    collect(rollout, toy.line(5, predecessor=np.array([-1, 0, 0, 1, 2])))
    assert all(p[:, 0].tolist() == [0, 10, 30, 40] for p in recorder.pursued)


def test_goals_are_drawn_from_the_memory_by_their_weights(make, toy):
    rollout, _ = make(goals={"mode": "novelty"})
    bundle = toy.line(3, passes=np.array([0.0, 1e12, 1.0]))  # weights 1, 0, 1/2
    slots = [collect(rollout, bundle)[0]["goal_slot"] for _ in range(60)]
    counts = np.bincount(np.concatenate(slots), minlength=3)
    assert counts[1] == 0
    assert 135 < counts[0] < 185  # 160 expected, deviation 7.3


def test_goals_of_the_evaluation_and_of_the_replay_have_no_node(make, toy):
    rollout, _ = make(goals={"source": "evaluation"})
    episodes, walks, info = collect(rollout, toy.line(3))
    assert walks["goal_slot"].tolist() == [-1] * 4
    assert not walks["reached"].any()
    assert (np.abs(episodes["goals"][:, :2]) <= 4).all()
    assert (episodes["goals"][:, 1] != 0).all()
    assert info["metrics"] == {}

    relabel = {"original": 0.5, "future": 0.5, "node": 0.0}
    rollout, _ = make(goals={"source": "replay"}, relabel=relabel)
    seen = collect(rollout, toy.line(3))[0]["observations"].reshape(-1, 3).tolist()
    episodes, walks, _ = collect(rollout, toy.line(3))
    assert walks["goal_slot"].tolist() == [-1] * 4
    assert all(goal in seen for goal in episodes["goals"].tolist())


# ------------------------------------------------------------------------------------ restore


def real(toy, seed=0, incarnation=0):
    relabel = {"original": 0.5, "future": 0.5, "node": 0.0}
    config = toy.config(seed=seed, goals={"source": "replay"}, relabel=relabel)
    return config, Rollout(config, toy.env(COPIES), 0, incarnation)


def test_a_restored_rollout_continues_as_if_nothing_had_happened(toy):
    config, rollout = real(toy)
    bundle = toy.line(3)
    weights = GoalSac(config.agent, bundle.features(config, toy.Plane.spec), 2, 0, "cpu")
    policy = weights.export_policy()
    collect(rollout, bundle, 0, policy)
    _, restored = real(toy, seed=5, incarnation=1)
    restored.restore(messages.unpack(messages.pack(rollout.state())))
    for _ in range(2):
        results = [collect(each, bundle, 7, policy) for each in (rollout, restored)]
        for one, other in zip(*results, strict=True):
            assert one.keys() == other.keys()
            for name, value in one.items():
                np.testing.assert_array_equal(value, other[name], err_msg=name)
    assert results[0][0]["seq"] == 2


def test_a_rollout_acts_by_the_newest_weights_and_scales(toy):
    config = toy.config(features={"scale": "walk"})
    rollout = Rollout(config, toy.env(COPIES), 0)
    one, other = toy.line(3), toy.line(3, scale=np.full(3, 4.0, np.float32))
    actions = []
    for bundle, seed in ((one, 0), (one, 1), (other, 1), (one, 0)):
        features = bundle.features(config, toy.Plane.spec)
        policy = GoalSac(config.agent, features, 2, seed, "cpu").export_policy()
        rollout.begin_anew(0)
        actions.append(collect(rollout, bundle, 0, policy)[0]["actions"])
    np.testing.assert_array_equal(actions[0], actions[3])
    assert (actions[0] != actions[1]).any()
    assert (actions[1] != actions[2]).any()


def test_rollouts_differ_by_index_and_incarnation(toy):
    config = toy.config()
    walks = [
        Rollout(config, toy.env(COPIES), index, incarnation).first_walks(20)[0]["observations"]
        for index, incarnation in ((0, 0), (1, 0), (0, 1))
    ]
    assert (walks[0][:, 1:] != walks[1][:, 1:]).any()
    assert (walks[0][:, 1:] != walks[2][:, 1:]).any()


def test_a_rollout_that_begins_anew_is_as_another_of_that_incarnation(toy):
    config, used = real(toy)
    bundle = toy.line(3)
    weights = GoalSac(config.agent, bundle.features(config, toy.Plane.spec), 2, 0, "cpu")
    collect(used, bundle, 0, weights.export_policy())
    used.begin_anew(4)
    _, fresh = real(toy, incarnation=4)
    both = [each.first_walks(20)[0]["observations"] for each in (used, fresh)]
    np.testing.assert_array_equal(*both)
    episodes = [collect(each, bundle, 7, weights.export_policy())[0] for each in (used, fresh)]
    for name in ("producer", "seq"):
        assert episodes[0][name] == episodes[1][name]
    assert episodes[0]["seq"] == 0
