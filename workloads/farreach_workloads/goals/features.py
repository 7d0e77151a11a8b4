"""How observations become the inputs of the networks: one pure transformation for every process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from farreach_workloads.goals.environments.base import Floats, GoalEnvironmentSpec

if TYPE_CHECKING:
    from farreach_workloads.goals.config import FeaturesConfig, NetworkConfig

# A dim that hardly moves in the first walks is not blown up beyond this share of the median spread.
LEAST_SPREAD = 0.1


class _Columns:
    """Some dims of an observation: angles as sine and cosine, the rest divided by a scale.

    With frequencies, the sines and cosines of 1, 2, 4, … times the scaled dims follow.
    """

    def __init__(
        self, dims: tuple[int, ...], angles: tuple[int, ...], scale: Floats, frequencies: int = 0
    ) -> None:
        self.angles = np.array([d for d in dims if d in angles], np.int64)
        self.plain = np.array([d for d in dims if d not in angles], np.int64)
        self.inverse = (1.0 / scale[self.plain]).astype(np.float32)
        self.factors = (2.0 ** np.arange(frequencies)).astype(np.float32)
        self.width = (1 + 2 * frequencies) * len(self.plain) + 2 * len(self.angles)

    def __call__(self, observations: Floats) -> Floats:
        plain = observations[:, self.plain] * self.inverse
        parts = [plain]
        if len(self.angles):
            angles = observations[:, self.angles]
            parts += [np.sin(angles), np.cos(angles)]
        if len(self.factors):
            phase = (plain[:, :, None] * self.factors).reshape(len(plain), -1)
            parts += [np.sin(phase), np.cos(phase)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


class Features:
    """Network inputs of an environment's observations.

    `scale` (d,) divides plain dims; `unit` (d,) is the length that the relative input is measured
    in. Both come from the first random walks (`measure`), so that no knowledge of the
    environment's extent is put in by hand, and stay fixed for the run.
    """

    def __init__(
        self,
        spec: GoalEnvironmentSpec,
        features: FeaturesConfig,
        reachability: NetworkConfig,
        scale: Floats,
        unit: Floats,
    ) -> None:
        """See the class; `scale` and `unit` are (d,) float32."""
        self.scale, self.unit = scale, unit
        divide = scale if features.scale == "walk" else np.ones_like(scale)
        angles = spec.angle_dims if features.angles == "sincos" else ()
        everything = tuple(range(spec.observation_dim))
        policy_dims = spec.policy_dims if features.dims == "state" else everything
        goal_dims = spec.goal_dims if features.goal == "masked" else policy_dims
        reach_dims = spec.reachability_dims if reachability.dims == "state" else spec.goal_dims
        frequencies = features.frequencies
        self._policy = _Columns(policy_dims, angles, divide, frequencies)
        self._goal = _Columns(goal_dims, angles, divide, frequencies)
        self._reach = _Columns(reach_dims, angles, divide)
        self._goal_dims = np.array(spec.goal_dims, np.int64)
        self._is_masked = features.goal == "masked"
        self._relative = np.array(spec.goal_dims if features.relative else (), np.int64)
        self.observation_width = self._policy.width
        self.goal_width = self._goal.width
        self.pair_width = self._policy.width + self._goal.width + len(self._relative)
        self.reachability_width = self._reach.width

    def pair(self, observations: Floats, goals: Floats) -> Floats:
        """Policy and critic input: (n, d), (n, d) → (n, observation | goal | relative) float32."""
        parts = [self._policy(observations), self._goal(goals)]
        if len(self._relative):
            dims = self._relative
            gap = goals[:, dims] - observations[:, dims]
            parts.append(np.arcsinh(gap / self.unit[dims]))
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def observation(self, observations: Floats) -> Floats:
        """The state's part of `pair`: (n, d) → (n, observation_width) float32."""
        return self._policy(observations).astype(np.float32, copy=False)

    def reachability(self, observations: Floats) -> Floats:
        """Input of the reachability network: (n, d) → (n, reachability_width) float32."""
        return self._reach(observations).astype(np.float32, copy=False)

    def as_goal(self, goals: Floats, observations: Floats) -> Floats:
        """The goals as whoever pursues them sees them: (n, d), (n, d) → (n, d).

        If goals are masked, what does not define a goal is taken from the state, so that a goal
        is where nothing has to change any more.
        """
        if not self._is_masked:
            return goals
        seen = observations.copy()
        seen[:, self._goal_dims] = goals[:, self._goal_dims]
        return seen

    def units_apart(self, one: Floats, other: Floats) -> Floats:
        """Distance of states in the goal's dims, in units: (n, d), (n, d) → (n,)."""
        gap = (other - one)[:, self._goal_dims] / self.unit[self._goal_dims]
        return np.sqrt(np.square(gap).sum(axis=1))


def measure(walks: Floats, window: int) -> tuple[Floats, Floats]:
    """Spread and unit of length of each dim, from random walks.

    Args:
        walks: (walks, steps + 1, d).
        window: τ, the reachability window in steps.

    Returns:
        See `spread_and_unit`.
    """
    change = walks[:, window:] - walks[:, :-window]
    return spread_and_unit(walks.reshape(-1, walks.shape[-1]), change.reshape(-1, walks.shape[-1]))


def spread_and_unit(states: Floats, change: Floats) -> tuple[Floats, Floats]:
    """Spread and unit of length of each dim.

    Args:
        states: (n, d).
        change: (m, d), between states τ steps apart.

    Returns:
        scale (d,): standard deviation over all states, and unit (d,): root mean square change, both
        float32 and bounded from below by a share of the median over the dims.
    """
    unit = np.sqrt(np.square(change, dtype=np.float64).mean(axis=0))
    return _bounded(states.std(axis=0)), _bounded(unit)


def _bounded(spread: Floats) -> Floats:
    moving = spread[spread > 1e-8]
    least = LEAST_SPREAD * float(np.median(moving)) if len(moving) else 1.0
    return np.maximum(spread, least).astype(np.float32)
