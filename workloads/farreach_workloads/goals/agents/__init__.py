"""Agents that learn to reach goals from a data set, one file each, on one trunk."""
