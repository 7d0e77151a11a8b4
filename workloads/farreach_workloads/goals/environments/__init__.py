"""Batched goal environments; importing the package registers all of them, with gymnasium too."""

from farreach_workloads.goals.environments import (
    gymnasium_goals,
    maze,
    ogbench_maze,
    pusher,
    walker,
)
from farreach_workloads.goals.environments.export import register

__all__ = ["gymnasium_goals", "maze", "ogbench_maze", "pusher", "walker"]

register()
