"""The contract of a batched goal environment, which every part of goal reaching relies on.

An environment steps `num_envs` copies at once with arrays. Episodes have no end of their own: the
caller decides how many steps a phase takes, so all copies share one clock and need no masks
(an environment that terminates by itself holds its last state until the next reset).

Whatever looks like a reward or a distance here is an *oracle*: evaluation, pictures and the oracle
baselines may read it, learning may not (arXiv:2206.11733, the problem statement).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from farreach.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class GoalEnvironmentSpec:
    """What the agent and the evaluation must know about an environment.

    Attributes:
        name: registered name, or the gymnasium id.
        observation_dim: length d of an observation.
        action_dim: length of an action; every component lies in [-1, 1].
        horizon: steps of an evaluation episode (decisions of the policy).
        success_threshold: oracle distance below which a goal counts as reached.
        reachability_dims: what the reachability network sees (no velocities, no clock).
        policy_dims: what the policy sees when `features.dims` is `state`.
        goal_dims: the dims that define a goal when goals are masked.
        angle_dims: dims that are raw angles in radians.
        plane_dims: two dims to draw, or None if there is no natural plane.
        categories: names of the groups that success is reported for.
        action_repeat: physics-control steps for which evaluation holds each action.
    """

    name: str
    observation_dim: int
    action_dim: int
    horizon: int
    success_threshold: float
    reachability_dims: tuple[int, ...]
    policy_dims: tuple[int, ...]
    goal_dims: tuple[int, ...]
    angle_dims: tuple[int, ...] = ()
    plane_dims: tuple[int, int] | None = None
    categories: tuple[str, ...] = field(default=("all",))
    action_repeat: int = 1


class GoalEnvironment(ABC):
    """A batch of copies of one environment, stepped together.

    ```
    env = Maze(num_envs=32, rng=np.random.default_rng(0))
    observations = env.reset()                     # (32, d)
    for _ in range(env.spec.horizon):
        observations = env.step(policy(observations))
    reached = env.distance(observations, goals) < env.spec.success_threshold
    ```
    """

    spec: GoalEnvironmentSpec
    # Arguments of the constructor that no recorded transition depends on.
    FREE_OPTIONS: ClassVar[frozenset[str]] = frozenset({"num_threads"})

    def __init__(self, num_envs: int, rng: np.random.Generator) -> None:
        """A batch of `num_envs` copies that draws all its randomness from `rng`."""
        self.num_envs = num_envs
        self.rng = rng

    @abstractmethod
    def reset(self) -> Floats:
        """Put every copy into its start distribution; (num_envs, d) float32, freshly allocated."""

    def scatter(self, rngs: Sequence[np.random.Generator]) -> Floats:
        """Put each copy where the episodes of a data set begin, (num_envs, d) float32.

        Args:
            rngs: one generator per copy. A copy's start depends on its own alone, so that an
                episode does not depend on which others are recorded beside it.

        Raises:
            ConfigError: the environment has no such start.
        """
        raise ConfigError(
            f"environment {self.spec.name!r} cannot record data sets: its class has no `scatter`. "
            "Add one, or name another environment."
        )

    @abstractmethod
    def step(self, actions: Floats) -> Floats:
        """Advance every copy by one decision.

        Args:
            actions: (num_envs, action_dim), clipped to [-1, 1].

        Returns:
            (num_envs, d) float32, freshly allocated.
        """

    def walk(self, actions: Floats) -> Floats:
        """Advance by a whole sequence of actions that is known beforehand.

        Args:
            actions: (steps, num_envs, action_dim).

        Returns:
            (steps, num_envs, d) float32: the observation after each action.
        """
        observations = np.empty(
            (len(actions), self.num_envs, self.spec.observation_dim), np.float32
        )
        for step, action in enumerate(actions):
            observations[step] = self.step(action)
        return observations

    @abstractmethod
    def goals(self, count: int, rng: np.random.Generator) -> Floats:
        """Held-out goals, uniform over what can be reached: (count, d) float32, as observations."""

    @abstractmethod
    def distance(self, observations: Floats, goals: Floats) -> Floats:
        """Oracle distance that decides success: (n, d), (n, d) → (n,).

        It may read no more of `goals` than `spec.goal_dims`, which is all that goal environments
        of gymnasium hand over.
        """

    def path_distance(self, observations: Floats, goals: Floats) -> Floats:
        """Oracle length of the shortest free path, (n,); `distance` where nothing is in the way."""
        return self.distance(observations, goals)

    def categories(self, observations: Floats) -> Ints:
        """Index into `spec.categories` of each observation, (n,); -1 where it belongs to none."""
        return np.zeros(len(observations), np.int64)

    def goal_categories(self, goals: Floats) -> Ints:
        """Category that each of all held-out goals, in their order, is reported under, (n,)."""
        return self.categories(goals)

    def cells(self, observations: Floats) -> tuple[Ints, int]:
        """Coverage cell of each observation, (n,), and how many cells can be reached.

        -1 marks an observation outside of all cells; a count of 0 says there is no such notion.
        """
        return np.full(len(observations), -1), 0

    def draw(self, axes: Axes) -> None:  # noqa: B027 (not every environment has walls)
        """Draw what is fixed (walls) into the plane of `spec.plane_dims`."""

    def render(self, observations: Floats) -> NDArray[np.uint8] | None:
        """A picture of each observation, (n, height, width, 3), or None if there is none."""
        return None

    def close(self) -> None:  # noqa: B027 (not every environment holds something)
        """Free what the environment holds."""
