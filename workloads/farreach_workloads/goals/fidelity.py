"""What the paper does differently from our defaults, in one place.

The full text of arXiv:2206.11733 gives no table; the values are those of the code it grew from.
`fidelity: paper` puts them in wherever the user says nothing, and the start of every run prints
the settings that still differ from them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from farreach.config import Config

PAPER: dict[str, dict[str, Any]] = {
    "features": {
        "dims": "all",
        "angles": "raw",
        "goal": "full",
        "relative": False,
        "scale": "none",
        "frequencies": 0,
    },
    "phases": {"random_start": "goal", "planned_frac": 0.0, "initial_random_steps": 10_000},
    "reachability": {
        "dims": "state",
        "window": 10,
        "directed": False,
        "comparator": "network",
        "embedding": 16,
        "hidden": 64,
        "encoder_layers": 3,
        "comparator_layers": 2,
        "lr": 1e-3,
        "weight_decay": 1e-5,
        "batch": 512,
        "negative_frac": 0.5,
        "in_trajectory_frac": 0.5,
        "recent_frac": 0.0,
        "first_pairs": 1_000_000,
        "refresh_pairs": 200_000,
        "refresh_every_steps": 20_000,
    },
    "memory": {
        "novelty": "reachability",
        "capacity": 500,
        "threshold": 0.0,
        "stride": 1,
        "replace": "random",
        "prune": False,
        "min_edge_support": 1,
        "min_edge_share": 0.0,
        "min_edge_probability": 0.0,
    },
    "goals": {"source": "memory", "mode": "uniform"},
    "reward": {"mode": "graph_goal", "scale": 0.1, "temperature": 1.0},
    "relabel": {"original": 1.0, "future": 0.0, "node": 0.0, "replay": 0.0},
    "agent": {
        "network": "heads",
        "hidden": 256,
        "lr": 1e-3,
        "lr_decay_frac": 0.0,
        "batch": 1024,
        "discount": 0.99,
        "entropy_weight": 0.05,
        "polyak": 0.005,
        "behaviour_weight": 0.0,
        "replay_steps": 100_000,
        "updates_per_policy_step": 2.0,
    },
}


Values = Mapping[str, Mapping[str, Any]]


def with_paper_values(raw: Mapping[str, Any], paper: Values = PAPER) -> dict[str, Any]:
    """The raw configuration with the paper's value wherever it sets none."""
    filled = copy.deepcopy(dict(raw))
    for section, values in paper.items():
        target = filled.get(section, {})
        if isinstance(target, Config):
            target = {name: getattr(target, name) for name in target.model_fields_set}
        if isinstance(target, dict):
            filled[section] = {**values, **target}
    return filled


def deviations(config: Config, paper: Values = PAPER) -> list[str]:
    """One line per setting that differs from the paper: `features.goal: masked (paper: full)`."""
    lines = []
    for section, values in paper.items():
        for key, value in values.items():
            ours = getattr(getattr(config, section), key)
            if ours != value:
                lines.append(f"{section}.{key}: {ours} (paper: {value})")
    return lines
