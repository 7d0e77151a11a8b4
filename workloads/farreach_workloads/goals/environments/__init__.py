"""Batched goal environments; importing the package registers all of them."""

from farreach_workloads.goals.environments import maze

__all__ = ["maze"]
