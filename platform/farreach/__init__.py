"""farreach: a distributed actor-learner and self-supervised-learning platform on Ray."""

__version__ = "0.1.0"
