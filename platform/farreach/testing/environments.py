"""Checks that a batched goal environment keeps its contract; run them on your own environment.

```
from farreach.testing.environments import check_environment

check_environment(lambda num_envs, rng: MyEnvironment(num_envs, rng))
```

`CHECKS` holds every check as a function of a factory, so that a test can be made of each:

```
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_my_environment(check):
    check(MyEnvironment)
```
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from farreach.errors import ConfigError, EnvironmentFault

Array = NDArray[Any]

_COPIES = 3
_WALK_STEPS = 12
_GOALS = 30
_RANDOM_STEPS = 2000


class BatchedGoalEnvironment(Protocol):
    """What the checks use of an environment: copies in step, goals and an oracle distance."""

    @property
    def spec(self) -> Any:
        """Dims, horizon, success threshold, categories."""

    def reset(self) -> Array:
        """First observations, (num_envs, d) float32."""

    def scatter(self, rngs: Sequence[np.random.Generator]) -> Array:
        """First observations where data sets begin; ConfigError if there is no such start."""

    def step(self, actions: Array) -> Array:
        """Next observations."""

    def walk(self, actions: Array) -> Array:
        """Observations after each of the actions (steps, num_envs, a)."""

    def goals(self, count: int, rng: np.random.Generator) -> Array:
        """Held-out goals, (count, d)."""

    def distance(self, observations: Array, goals: Array) -> Array:
        """Oracle distance, (n,)."""

    def path_distance(self, observations: Array, goals: Array) -> Array:
        """Oracle length of the shortest path, (n,)."""

    def categories(self, observations: Array) -> Array:
        """Index of the category of each observation, (n,)."""

    def cells(self, observations: Array) -> tuple[Array, int]:
        """Coverage cell of each observation, (n,), and their number."""

    def close(self) -> None:
        """Free everything."""


Factory = Callable[[int, np.random.Generator], BatchedGoalEnvironment]


def _demand(claim: bool, message: str) -> None:
    """Raise EnvironmentFault with the message unless the claim holds."""
    if not claim:
        raise EnvironmentFault(message)


def _make(factory: Factory, seed: int = 0, copies: int = _COPIES) -> BatchedGoalEnvironment:
    return factory(copies, np.random.default_rng(seed))


def _random_actions(env: BatchedGoalEnvironment, steps: int, copies: int = _COPIES) -> Array:
    """Uniform actions, (steps, copies, a) float32."""
    shape = (steps, copies, env.spec.action_dim)
    return np.random.default_rng(7).uniform(-1, 1, shape).astype(np.float32)


def _trajectory(factory: Factory, seed: int) -> Array:
    """First observations and those of a random walk, (1 + steps, copies, d)."""
    env = _make(factory, seed)
    first = env.reset()
    walked = [env.step(action) for action in _random_actions(env, _WALK_STEPS)]
    env.close()
    return np.stack([first, *walked])


def check_spec(factory: Factory) -> None:
    """Dims lie in the observation without repetition, the horizon and threshold are positive."""
    env = _make(factory)
    spec = env.spec
    for name in ("reachability_dims", "policy_dims", "goal_dims", "angle_dims"):
        dims = getattr(spec, name)
        inside = all(0 <= dim < spec.observation_dim for dim in dims)
        _demand(
            inside and len(set(dims)) == len(dims),
            f"spec.{name} is {dims}; it must name different dims below {spec.observation_dim}.",
        )
    for name in ("reachability_dims", "policy_dims", "goal_dims", "categories"):
        _demand(len(getattr(spec, name)) > 0, f"spec.{name} is empty.")
    for name in ("action_dim", "horizon", "success_threshold", "action_repeat"):
        value = getattr(spec, name)
        _demand(value > 0, f"spec.{name} is {value}; it must be positive.")
    env.close()


def check_shapes_and_dtypes(factory: Factory) -> None:
    """Observations are (num_envs, d) float32, from reset as from step."""
    env = _make(factory)
    expected = (_COPIES, env.spec.observation_dim)
    for source, observations in (
        ("reset", env.reset()),
        ("step", env.step(_random_actions(env, 1)[0])),
    ):
        _demand(
            observations.shape == expected and observations.dtype == np.float32,
            f"{source} returned {observations.shape} {observations.dtype}, not {expected} float32.",
        )
    env.close()


def check_same_seed_same_trajectory(factory: Factory) -> None:
    """The generator and the actions determine everything, bit by bit."""
    first, second = _trajectory(factory, 0), _trajectory(factory, 0)
    _demand(
        np.array_equal(first, second),
        "two environments with the same seed and actions went apart at step "
        f"{int((first != second).any(axis=(1, 2)).argmax())}; draw from the given rng only.",
    )


def check_scattered_copies_depend_on_their_own_generator(factory: Factory) -> None:
    """An episode of a data set is the same whichever others are recorded beside it."""

    def recorded(first: int, copies: int) -> Array:
        env = _make(factory, seed=first, copies=copies)
        rngs = [np.random.default_rng(first + copy) for copy in range(copies)]
        begin = env.scatter(rngs)
        actions = _random_actions(env, _WALK_STEPS)[:, first : first + copies]
        walked = env.walk(actions)
        env.close()
        return np.concatenate([begin[None], walked])

    try:
        together = recorded(0, _COPIES)
    except ConfigError:
        return  # it records no data sets
    _demand(
        np.array_equal(together[:, -1:], recorded(_COPIES - 1, 1)),
        "a copy's episode depends on more than its own generator in scatter and its actions.",
    )


def check_different_seed_differs(factory: Factory) -> None:
    """Another seed gives other starts, or, where the start is fixed, other goals."""
    env = _make(factory)
    goals, others = (env.goals(_GOALS, np.random.default_rng(seed)) for seed in (0, 1))
    env.close()
    same_walk = np.array_equal(_trajectory(factory, 0), _trajectory(factory, 1))
    _demand(
        not same_walk or not np.array_equal(goals, others),
        "seeds 0 and 1 give the same trajectory and the same goals; draw from the given rng.",
    )


def check_observations_share_no_memory(factory: Factory) -> None:
    """What was returned before never changes, and changing it changes nothing."""
    env, twin = _make(factory), _make(factory)
    actions = _random_actions(env, 2)
    rows = [env.reset(), env.step(actions[0])]
    kept = [row.copy() for row in rows]
    rows.append(env.step(actions[1]))
    for earlier, copy in zip(rows, kept, strict=False):
        _demand(
            np.array_equal(earlier, copy) and not np.shares_memory(earlier, rows[-1]),
            "a returned observation changed at a later step; return a fresh array.",
        )
    twin.reset()
    for action in actions:
        observations = twin.step(action)
        last = observations.copy()
        observations[:] = 1e6
    _demand(
        np.array_equal(last, rows[-1]),
        "writing into a returned observation changed the next step; return a copy of the state.",
    )
    env.close()
    twin.close()


def check_actions_are_clipped(factory: Factory) -> None:
    """An action beyond [-1, 1] counts as the bound."""
    wide, clipped = _make(factory), _make(factory)
    wide.reset()
    clipped.reset()
    for action in 3 * _random_actions(wide, 4):
        _demand(
            np.array_equal(wide.step(action), clipped.step(action.clip(-1, 1))),
            "an action beyond [-1, 1] acts differently from the bound; clip actions in step.",
        )
    wide.close()
    clipped.close()


def check_goals(factory: Factory) -> None:
    """Held-out goals are finite observations, follow from their rng and disturb no copy."""
    env, undisturbed = _make(factory), _make(factory)
    actions = _random_actions(env, 2)
    for each in (env, undisturbed):
        each.reset()
        each.step(actions[0])
    goals = env.goals(_GOALS, np.random.default_rng(3))
    expected = (_GOALS, env.spec.observation_dim)
    _demand(
        goals.shape == expected and goals.dtype == np.float32,
        f"goals returned {goals.shape} {goals.dtype}, not {expected} float32.",
    )
    _demand(bool(np.isfinite(goals).all()), "a held-out goal holds NaN or infinity.")
    _demand(
        np.array_equal(goals, env.goals(_GOALS, np.random.default_rng(3))),
        "goals with the same rng differ; draw from the given rng only.",
    )
    _demand(
        np.array_equal(env.step(actions[1]), undisturbed.step(actions[1])),
        "drawing goals moved the running copies.",
    )
    categories = env.categories(goals)
    _demand(
        bool((categories >= 0).all()),
        f"held-out goal {int(np.argmin(categories))} belongs to no category; every goal needs one.",
    )
    env.close()
    undisturbed.close()


def check_distance(factory: Factory) -> None:
    """The oracle is 0 between equals, never negative, and reads the goal's dims only."""
    env = _make(factory)
    goals = env.goals(_GOALS, np.random.default_rng(3))
    observations = np.repeat(env.reset(), _GOALS // _COPIES, axis=0)
    zero, lengths = env.distance(goals, goals), env.distance(observations, goals)
    _demand(zero.shape == (_GOALS,), f"distance returned {zero.shape}, not ({_GOALS},).")
    _demand(
        bool((np.abs(zero) < 1e-5).all()),
        f"the distance between equal goals is {zero.max()}, not 0.",
    )
    _demand(bool((lengths >= 0).all()), f"a distance is negative: {lengths.min()}.")
    paths = env.path_distance(observations, goals)
    _demand(
        bool((paths >= lengths - 1e-4).all()),
        "a shortest path is shorter than the distance.",
    )
    other = np.setdiff1d(np.arange(env.spec.observation_dim), env.spec.goal_dims)
    changed = observations.copy()
    changed[:, other] += 1.0
    _demand(
        np.array_equal(env.distance(changed, goals), lengths),
        f"distance reads other dims than spec.goal_dims {env.spec.goal_dims}.",
    )
    env.close()


def check_success_is_reachable(factory: Factory) -> None:
    """A state that a random walk visits is a goal that the same walk reaches."""
    goals = _trajectory(factory, 0)[-1]
    again = _make(factory)
    again.reset()
    for action in _random_actions(again, _WALK_STEPS):
        observations = again.step(action)
    reached = again.distance(observations, goals) < again.spec.success_threshold
    _demand(
        bool(reached.all()),
        "a walk does not reach its own last state; look at distance and success_threshold.",
    )
    again.close()


def check_categories_and_cells(factory: Factory) -> None:
    """Categories and cells of what a walk visits are in range."""
    env = _make(factory)
    env.reset()
    visited = env.walk(_random_actions(env, _WALK_STEPS)).reshape(-1, env.spec.observation_dim)
    cells, cell_count = env.cells(visited)
    for name, values, count in (
        ("categories", env.categories(visited), len(env.spec.categories)),
        ("cells", cells, cell_count),
    ):
        integral = values.shape == (len(visited),) and np.issubdtype(values.dtype, np.integer)
        _demand(integral, f"{name} returned {values.shape} {values.dtype}, not (n,) integers.")
        _demand(
            bool(((values >= -1) & (values < max(count, 0))).all()),
            f"{name} lie in {values.min()} … {values.max()}, beyond -1 … {count - 1}.",
        )
    env.close()


def check_walk_equals_steps(factory: Factory) -> None:
    """`walk` is a faster way of stepping, with the same result."""
    walked, stepped = _make(factory), _make(factory)
    actions = _random_actions(walked, _WALK_STEPS)
    walked.reset()
    stepped.reset()
    expected = np.stack([stepped.step(action) for action in actions])
    _demand(
        np.array_equal(walked.walk(actions), expected),
        "walk gives other observations than the same actions one by one.",
    )
    walked.close()
    stepped.close()


def check_stays_finite(factory: Factory) -> None:
    """No NaN in 2,000 random steps."""
    env = _make(factory, copies=1)
    env.reset()
    rng = np.random.default_rng(11)
    for step in range(_RANDOM_STEPS):
        observations = env.step(rng.uniform(-1, 1, (1, env.spec.action_dim)).astype(np.float32))
        _demand(
            bool(np.isfinite(observations).all()),
            f"NaN or infinity in the observation after {step + 1} random steps.",
        )
    env.close()


CHECKS: tuple[Callable[[Factory], None], ...] = (
    check_spec,
    check_shapes_and_dtypes,
    check_same_seed_same_trajectory,
    check_scattered_copies_depend_on_their_own_generator,
    check_different_seed_differs,
    check_observations_share_no_memory,
    check_actions_are_clipped,
    check_goals,
    check_distance,
    check_success_is_reachable,
    check_categories_and_cells,
    check_walk_equals_steps,
    check_stays_finite,
)


def check_gymnasium_export(env: gymnasium.Env[Any, Any]) -> None:
    """Gymnasium's own checker passes.

    Raises:
        EnvironmentFault: with what gymnasium's checker found.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Observations have no bounds that would be known for every environment.
        warnings.filterwarnings(
            "ignore", message=".*(minimum value is -infin|maximum value is inf)"
        )
        try:
            check_env(env.unwrapped, skip_render_check=True)
        except (AssertionError, UserWarning, DeprecationWarning) as error:
            raise EnvironmentFault(f"gymnasium's checker: {error}") from error


def check_environment(factory: Factory) -> None:
    """Run all of `CHECKS`.

    Args:
        factory: called with a number of copies and a generator.

    Raises:
        EnvironmentFault: the first check that failed and why.
    """
    for check in CHECKS:
        _run_named(check, factory)


def _run_named(check: Callable[[Factory], None], factory: Factory) -> None:
    """Run one check; its fault says which one it was."""
    try:
        check(factory)
    except EnvironmentFault as error:
        raise EnvironmentFault(f"{check.__name__}: {error}") from error
