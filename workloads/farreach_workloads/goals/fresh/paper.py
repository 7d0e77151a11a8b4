"""What arXiv:2301.02099 and its released configuration set, by environment and by method.

`fidelity: paper` puts these values in wherever a configuration says nothing, and the start of every
run prints the settings that still differ from them.
"""

from __future__ import annotations

import copy
from typing import Any

ENVIRONMENTS = ("maze", "pusher", "walker")

_EVERYWHERE: dict[str, dict[str, Any]] = {
    "features": {
        "dims": "all",
        "angles": "raw",
        "goal": "full",
        "relative": False,
        "scale": "none",
        "frequencies": 0,
    },
    "reachability": {
        "directed": True,
        "dims": "state",
        "encoder_layers": 3,
        "comparator": "network",
        "weight_decay": 1e-5,
        "batch": 512,
        "negative_frac": 0.5,
        "in_trajectory_frac": 0.5,
        "epochs": 100,
        "epoch_pairs": 500_000,
        "validation_pairs": 100_000,
    },
    "memory": {"threshold": 0.0},
    "graph": {"min_edge_support": 1, "min_edge_probability": 0.0},
    "reward": {"distance": "hops", "temperature": 1.0},
    "relabel": {
        "path": 1.0,
        "future": 0.0,
        "node": 0.0,
        "subgoal_rows": True,
        "edge_rows": True,
    },
    "agent": {
        "network": "heads",
        "hidden": 256,
        "lr_decay_frac": 0.0,
        "batch": 2_048,
        "polyak": 0.005,
        "behaviour_weight": 0.0,
    },
    "training": {"epochs": 1_001, "epoch_updates": 1_000},
    "evaluation": {"episodes": 500},
}

# One value for each of `ENVIRONMENTS`.
Columns = dict[str, dict[str, tuple[Any, Any, Any]]]

_BY_ENVIRONMENT: Columns = {
    "reachability": {
        "window": (5, 10, 2),
        "embedding": (16, 16, 128),
        "hidden": (64, 64, 128),
        "comparator_layers": (2, 2, 4),
        "lr": (1e-3, 1e-3, 3e-4),
    },
    "memory": {"capacity": (1_000, 1_000, 10_000), "keep_frac": (0.01, 0.01, 0.05)},
    "graph": {"edge_frac": (0.01, 0.01, 0.05)},
    "reward": {"scale": (0.1, 0.01, 0.5), "weight": (1.0, 100.0, 1.0)},
    "agent": {
        "lr": (3e-4, 5e-4, 3e-4),
        "discount": (0.9, 0.95, 0.95),
        "entropy_weight": (0.05, 1e-4, 0.01),
    },
    "training": {"evaluate_every_epochs": (10, 20, 20)},
}

# What the baselines (`method: hindsight`) have instead or besides.
_BASELINES: Columns = {
    "agent": {
        "lr": (1e-4, 1e-4, 1e-4),
        "discount": (0.99, 0.99, 0.99),
        "entropy_weight": (0.01, 0.005, 0.001),
    },
    "hindsight": {"scale": (1.0, 1.0, 10.0), "rescale_values": (True, True, True)},
}


def paper_values(environment: Any, method: Any) -> dict[str, dict[str, Any]] | None:
    """The paper's values, section → key → value; None if it has no such environment."""
    if environment not in ENVIRONMENTS:
        return None
    column = ENVIRONMENTS.index(environment)
    values = copy.deepcopy(_EVERYWHERE)
    for table in (_BY_ENVIRONMENT, _BASELINES)[: 2 if method == "hindsight" else 1]:
        for section, keys in table.items():
            own = {key: row[column] for key, row in keys.items()}
            values[section] = values.get(section, {}) | own
    return values
