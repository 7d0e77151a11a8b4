"""Pictures of a run: memory and graph, reachability, visits, success per goal, walked paths."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from farreach.disk import atomic_write
from farreach.figures import new_figure, png
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.environments.base import GoalEnvironment, Ints
from farreach_workloads.goals.evaluate import Outcome, shortcuts
from farreach_workloads.goals.rewards import sigmoid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from farreach_workloads.goals.config import ReachingConfig

DPI = 110
PATHS_SHOWN = 6
STATES_SHOWN = 6000
FRAME_MS = 400
MAX_FRAMES_SHOWN = 24
FRAMES_SHOWN = 12


class _Scene:
    """What all pictures of one moment draw from."""

    def __init__(
        self,
        config: ReachingConfig,
        env: GoalEnvironment,
        bundle: Bundle,
        outcome: Outcome,
        visits: Ints,
    ) -> None:
        assert env.spec.plane_dims is not None
        self.config, self.env, self.bundle = config, env, bundle
        self.outcome, self.visits = outcome, visits
        self.how = ""
        self.plane = list(env.spec.plane_dims)
        self.nodes = bundle.nodes[:, self.plane]

    def planned(self) -> _Scene:
        """The same moment with what happened along the graph."""
        assert self.outcome.planned is not None
        scene = copy.copy(self)
        scene.outcome, scene.how = self.outcome.planned, " along the graph"
        return scene

    def axes(self, title: str) -> tuple[Figure, Axes]:
        figure = new_figure(6, 5.4, DPI)
        axes = figure.subplots()
        self.env.draw(axes)
        axes.set_title(title)
        return figure, axes


def _memory(scene: _Scene) -> Figure:
    from matplotlib.collections import LineCollection

    bundle = scene.bundle
    figure, axes = scene.axes(f"{len(bundle)} memory nodes, by the step they were added at")
    i, j, is_shortcut = shortcuts(bundle, scene.env)
    segments: Any = np.stack([scene.nodes[i], scene.nodes[j]], axis=1)
    axes.add_collection(
        LineCollection(segments[~is_shortcut], colors="0.6", linewidths=0.4, alpha=0.5)
    )
    if is_shortcut.any():
        through = f"{is_shortcut.sum()} edges through walls"
        axes.add_collection(
            LineCollection(segments[is_shortcut], colors="tab:red", linewidths=0.9, label=through)
        )
    points = axes.scatter(
        scene.nodes[:, 0],
        scene.nodes[:, 1],
        c=bundle.added_at / 1e6,
        s=12,
        cmap="viridis",
        zorder=2,
    )
    axes.scatter(
        scene.nodes[0, 0],
        scene.nodes[0, 1],
        marker="*",
        s=120,
        color="red",
        zorder=3,
        label="first node",
    )
    axes.legend(loc="upper right")
    figure.colorbar(points, ax=axes, label="million environment steps")
    return figure


def _reachability(scene: _Scene) -> Figure:
    """Probability that a state is reached within τ steps from the middle of the graph."""
    bundle, positions = scene.bundle, scene.outcome.positions
    states = positions.reshape(-1, positions.shape[-1])
    states = states[:: max(1, len(states) // STATES_SHOWN)]
    chosen = _typical_node(bundle)
    features = bundle.features(scene.config, scene.env.spec)
    embeddings = bundle.network.embed(features.reachability(states))
    logits = bundle.network.all_pairs(bundle.embeddings[chosen : chosen + 1], embeddings)[0]
    order = np.argsort(logits)  # the reachable ones on top
    figure, axes = scene.axes(
        f"reachable within {scene.config.reachability.window} random steps from the star"
    )
    x, y = states[order][:, scene.plane].T
    points = axes.scatter(x, y, c=sigmoid(logits[order]), s=6, cmap="viridis", vmin=0, vmax=1)
    axes.scatter(scene.nodes[chosen, 0], scene.nodes[chosen, 1], marker="*", s=140, color="red")
    figure.colorbar(points, ax=axes, label="σ(R)")
    return figure


def _typical_node(bundle: Bundle) -> int:
    """The node in the middle of the graph: smallest mean hop distance."""
    return int(bundle.hops.mean(axis=1).argmin())


def _success(scene: _Scene) -> Figure:
    threshold = scene.env.spec.success_threshold
    reached = scene.outcome.final_distance < threshold
    passed = ~reached & (scene.outcome.least_distance < threshold)
    figure, axes = scene.axes(
        f"held-out goals{scene.how}: {reached.mean():.1%} reached at the last step"
    )
    goals = scene.outcome.goals[:, scene.plane]
    for mask, colour, label in (
        (reached, "tab:green", "reached"),
        (passed, "tab:orange", "passed on the way"),
        (~reached & ~passed, "tab:red", "missed"),
    ):
        axes.scatter(
            goals[mask, 0], goals[mask, 1], s=12, color=colour, label=f"{label} ({mask.sum()})"
        )
    axes.legend(loc="upper right", fontsize=8)
    return figure


def _visits(scene: _Scene) -> Figure:
    figure, axes = scene.axes("visits per cell, logarithmic")
    low, high = axes.get_xlim(), axes.get_ylim()
    x, y = np.meshgrid(np.linspace(*low, 240), np.linspace(*high, 240))
    probe = np.zeros((x.size, scene.env.spec.observation_dim), np.float32)
    probe[:, scene.plane[0]], probe[:, scene.plane[1]] = x.ravel(), y.ravel()
    cell, _ = scene.env.cells(probe)
    density = np.where(cell >= 0, np.log10(1.0 + scene.visits[np.maximum(cell, 0)]), np.nan)
    picture = axes.imshow(
        density.reshape(x.shape),
        origin="lower",
        extent=(*low, *high),
        cmap="inferno",
        vmin=0,
        vmax=5.5,
    )
    figure.colorbar(picture, ax=axes, label="log10(1 + visits)")
    seen = float((scene.visits > 0).mean())
    axes.set_title(f"visits per cell, logarithmic; {seen:.0%} of the cells seen")
    return figure


def _paths(scene: _Scene) -> Figure:
    """Shortest path on the graph (dashed) beside the path that was walked, for a few goals."""
    bundle, outcome = scene.bundle, scene.outcome
    figure, axes = scene.axes(f"walked{scene.how} (solid), shortest path on the graph (dashed)")
    order = np.argsort(scene.env.path_distance(outcome.positions[:, 0], outcome.goals))
    chosen = order[np.linspace(0, len(order) - 1, PATHS_SHOWN).astype(int)]
    features = bundle.features(scene.config, scene.env.spec)
    start, end = (
        nearest(bundle.network.embed(features.reachability(states)))
        for nearest, states in (
            (bundle.nearest, outcome.positions[chosen, 0]),
            (bundle.nearest_to_goals, outcome.goals[chosen]),
        )
    )
    for index, goal in enumerate(chosen):
        colour = f"C{index}"
        path = bundle.path(int(start[index]), int(end[index]))
        axes.plot(*scene.nodes[path].T, "--", color=colour, linewidth=1)
        axes.plot(*outcome.positions[goal][:, scene.plane].T, color=colour, linewidth=1.5)
        x, y = outcome.goals[goal, scene.plane]
        axes.scatter(x, y, marker="x", s=60, color=colour, zorder=3)
    return figure


def _distances(scene: _Scene) -> Figure:
    """Hops from every node to the goal that is farthest from the first node."""
    bundle = scene.bundle
    goal = int(bundle.hops[0].argmax())
    figure, axes = scene.axes("hops to the star along the graph")
    hops = bundle.hops[:, goal]
    points = axes.scatter(scene.nodes[:, 0], scene.nodes[:, 1], c=hops, s=22, cmap="viridis_r")
    axes.scatter(scene.nodes[goal, 0], scene.nodes[goal, 1], marker="*", s=140, color="red")
    figure.colorbar(points, ax=axes, label="hops")
    return figure


PICTURES: dict[str, Callable[[_Scene], Figure]] = {
    "memory": _memory,
    "reachability": _reachability,
    "distances": _distances,
    "success": _success,
    "visits": _visits,
    "paths": _paths,
    "success_planned": lambda scene: _success(scene.planned()),
    "paths_planned": lambda scene: _paths(scene.planned()),
}


def draw_all(
    config: ReachingConfig,
    env: GoalEnvironment,
    bundle: Bundle,
    outcome: Outcome,
    visits: Ints,
    folder: Path,
    suffix: str,
) -> dict[str, Path]:
    """Draw everything that the environment allows.

    Args:
        config: of the run.
        env: supplies the plane, the walls and the frames.
        bundle: memory and graph.
        outcome: of the newest evaluation.
        visits: (cells,) visited states per coverage cell.
        folder: where `<name>-<suffix>.png` goes.
        suffix: tells the pictures of one run apart.

    Returns:
        Name → file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    if env.spec.plane_dims is not None:
        scene = _Scene(config, env, bundle, outcome, visits)
        for name, draw in PICTURES.items():
            if name == "visits" and not len(visits):
                continue
            if name.endswith("_planned") and outcome.planned is None:
                continue
            files[name] = folder / f"{name}-{suffix}.png"
            atomic_write(files[name], png(draw(scene)))
    frames = _reached_frames(env, outcome)
    if frames is not None:
        files["frames"] = folder / f"frames-{suffix}.png"
        atomic_write(files["frames"], png(frames))
    return files


def _reached_frames(env: GoalEnvironment, outcome: Outcome) -> Figure | None:
    """Goals above the states that the policy ended in, one of each category, if env can render."""
    shown, titles = _goals_to_show(env, outcome)
    goals = env.render(outcome.goals[shown])
    ends = env.render(np.asarray(outcome.positions[shown, -1], np.float32))
    if goals is None or ends is None:
        return None
    figure = new_figure(1.2 * len(shown), 2.9, DPI)
    grid = figure.subplots(2, len(shown), squeeze=False)
    reached = outcome.final_distance[shown] < env.spec.success_threshold
    for column, title in enumerate(titles):
        grid[0, column].set_title(title, fontsize=8)
        for axes, picture in zip(grid[:, column], (goals[column], ends[column]), strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for side in axes.spines.values():
                side.set(color="tab:green" if reached[column] else "tab:red", linewidth=2.5)
    grid[0, 0].set_ylabel("goal", fontsize=8)
    grid[1, 0].set_ylabel("last step", fontsize=8)
    return figure


def _goals_to_show(env: GoalEnvironment, outcome: Outcome) -> tuple[Ints, list[str]]:
    """Rows of the goals to render and their titles: the first of each category, or some of all."""
    names, count = env.spec.categories, len(outcome.goals)
    if len(names) == 1:
        rows = np.linspace(0, count - 1, min(FRAMES_SHOWN, count)).astype(np.int64)
        return rows, [""] * len(rows)
    label = env.goal_categories(outcome.goals)
    reached = outcome.final_distance < env.spec.success_threshold
    there = [index for index in range(len(names)) if (label == index).any()]
    rows = np.array([int((label == index).argmax()) for index in there], np.int64)
    return rows, [f"{names[index]} {reached[label == index].mean():.0%}" for index in there]


def animate(folder: Path, name: str) -> Path | None:
    """Join `<name>-*.png` into `<name>.gif`; None if there are none."""
    files = sorted(folder.glob(f"{name}-*.png"))
    if not files:
        return None
    keep = np.unique(np.linspace(0, len(files) - 1, min(len(files), MAX_FRAMES_SHOWN)).astype(int))
    frames = [Image.open(files[i]).convert("RGB").quantize(128) for i in keep]
    target = folder / f"{name}.gif"
    movie, rest = io.BytesIO(), frames[1:]
    frames[0].save(movie, "gif", save_all=True, append_images=rest, duration=FRAME_MS, loop=0)
    atomic_write(target, movie.getvalue())
    return target
