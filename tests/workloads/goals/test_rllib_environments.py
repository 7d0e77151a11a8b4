import gymnasium
import numpy as np
import pytest

from farreach.errors import ConfigError
from farreach_workloads.goals.rllib_environments import register_for_rllib


def create(name, **options):
    """What RLlib makes of a registered id."""
    from ray.tune.registry import ENV_CREATOR, _global_registry

    return _global_registry.get(ENV_CREATOR, name)(options)


def test_rllib_makes_each_of_our_ids():
    ids = register_for_rllib()
    assert {"farreach/UFourRooms-v0", "farreach/WalkerGoal-v0"} <= set(ids)
    assert register_for_rllib() == ids
    for name in ids:
        ours, rllibs = gymnasium.make(name), create(name)
        assert rllibs.observation_space == ours.observation_space
        assert rllibs.action_space == ours.action_space


def test_whole_goals_are_observations_and_leave_the_reward_as_it_is():
    register_for_rllib()
    masked = create("farreach/UFourRoomsGoal-v0")
    full = create("farreach/UFourRoomsGoal-v0", goal="full")
    small, _ = masked.reset(seed=3)
    large, _ = full.reset(seed=3)
    np.testing.assert_array_equal(large["observation"], small["observation"])
    np.testing.assert_array_equal(large["achieved_goal"], large["observation"])
    np.testing.assert_array_equal(large["desired_goal"][:2], small["desired_goal"])
    assert full.observation_space.contains(large)
    # The maze's threshold is 1.0 in the plane; the other dims of a goal do not count.
    for offset, reward in (([0.9, 0.0], 0.0), ([0.0, 1.1], -1.0)):
        near = large["desired_goal"] + np.float32([*offset, 9, 9, 9, 9, 9])
        assert full.compute_reward(near, large["desired_goal"], {}) == reward


@pytest.mark.ray
def test_a_worker_that_never_imported_us_can_make_our_ids(ray_local, monkeypatch):
    from ray.tune.registry import _global_registry as registry

    # Ray keeps the id of this process's first job, and an earlier test may have had another one.
    monkeypatch.setattr(registry, "_prefix", None)
    register_for_rllib()

    # A runtime environment of its own gets a worker that no other test has used.
    @ray_local.remote(runtime_env={"env_vars": {"FARREACH_TEST": "fresh"}})
    def reset_in_worker():
        import sys

        from ray.tune.registry import ENV_CREATOR, _global_registry

        imported = any(name.startswith("farreach") for name in sys.modules)
        env = _global_registry.get(ENV_CREATOR, "farreach/UFourRoomsGoal-v0")({})
        return imported, env.reset(seed=3)[0]["observation"]

    imported, there = ray_local.get(reset_in_worker.remote())
    assert not imported
    expected = create("farreach/UFourRoomsGoal-v0").reset(seed=3)[0]["observation"]
    np.testing.assert_array_equal(there, expected)


def test_another_kind_of_goal_is_refused():
    register_for_rllib()
    with pytest.raises(ConfigError, match=r"goal is 'half'\. Known: masked, full"):
        create("farreach/WalkerGoal-v0", goal="half")
