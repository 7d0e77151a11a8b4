import functools

import numpy as np
import pytest

from farreach.errors import EnvironmentFault
from farreach.registry import environments
from farreach.testing.environments import CHECKS, check_environment, check_gymnasium_export
from farreach_workloads.goals.environments.export import as_goal_env, as_gymnasium
from farreach_workloads.goals.environments.maze import Maze

OPTIONS = {
    "gymnasium": (
        {"id": "PointMaze_UMaze-v3"},
        {"id": "AntMaze_UMaze-v5"},
        {"id": "FetchReach-v4"},
        {"id": "Pendulum-v1"},
    ),
    "ogbench_pointmaze": ({}, {"maze": "giant"}),
}
CASES = [
    pytest.param(name, options, id="-".join([name, *options.values()]))
    for name in environments
    for options in OPTIONS.get(name, ({},))
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_environment_keeps_the_contract(name, options, check):
    check(functools.partial(environments.get(name), **options))


@pytest.mark.parametrize("export", [as_gymnasium, as_goal_env])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_gymnasiums_checker_accepts_the_export(name, options, export):
    check_gymnasium_export(export(name, **options))


class SharesItsBuffer(Maze):
    def step(self, actions):
        if not hasattr(self, "_buffer"):
            self._buffer = np.empty((self.num_envs, 7), np.float32)
        self._buffer[:] = super().step(actions)
        return self._buffer


class DrawsFromAnotherGenerator(Maze):
    def reset(self):
        return super().reset() + np.random.default_rng().normal(size=7).astype(np.float32)


class DoesNotClip(Maze):
    def step(self, actions):
        return super().step(actions) + np.abs(actions).max(axis=1, keepdims=True)


class MeasuresTheHeading(Maze):
    def distance(self, observations, goals):
        return np.linalg.norm(observations[:, :3] - goals[:, :3], axis=1)


class WalksElsewhere(Maze):
    def walk(self, actions):
        return super().walk(actions[::-1])


class ScattersFromOneGenerator(Maze):
    def scatter(self, rngs):
        return super().scatter([rngs[0]] * len(rngs))


class HasGoalsOutsideOfAllRooms(Maze):
    def categories(self, observations):
        return np.full(len(observations), -1)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (SharesItsBuffer, "check_observations_share_no_memory"),
        (DrawsFromAnotherGenerator, "check_same_seed_same_trajectory"),
        (DoesNotClip, "check_actions_are_clipped"),
        (MeasuresTheHeading, "check_distance"),
        (HasGoalsOutsideOfAllRooms, "check_goals"),
        (WalksElsewhere, "check_walk_equals_steps"),
        (ScattersFromOneGenerator, "check_scattered_copies_depend_on_their_own_generator"),
    ],
)
def test_a_broken_environment_is_found_out(broken, check):
    with pytest.raises(EnvironmentFault, match=check):
        check_environment(broken)
