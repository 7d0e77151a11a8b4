"""A gymnasium environment that breaks down in the middle of a run; importing registers it."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box

GOOD_STEPS = 3000  # more than evaluation needs to find its goals


class TurnsNan(gymnasium.Env):
    """Moves by its action, until one copy has taken `GOOD_STEPS` steps in all."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self):
        self.taken = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-0.1, 0.1, 2).astype(np.float32)
        return self.at, {}

    def step(self, action):
        self.taken += 1
        self.at = self.at + (action if self.taken < GOOD_STEPS else np.float32("nan"))
        return self.at, 0.0, False, False, {}


gymnasium.register("TurnsNan-v0", TurnsNan)
