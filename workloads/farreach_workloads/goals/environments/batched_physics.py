"""Many simulations of one MuJoCo model, stepped together without Python in between."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from mujoco.batch import Batch, SimulationError

from farreach_workloads.goals.environments.base import Floats, Ints

_DIVERGED = [
    int(mujoco.mjtWarning.mjWARN_BADQPOS),
    int(mujoco.mjtWarning.mjWARN_BADQVEL),
    int(mujoco.mjtWarning.mjWARN_BADQACC),
]
_COUNT = 1  # column of Batch.warning; column 0 says which degree of freedom was seen last
_NO_STAGE = int(mujoco.mjtStage.mjSTAGE_NONE)
_POSITIONS = int(mujoco.mjtStage.mjSTAGE_POS)


class BatchedPhysics:
    """`mujoco.batch.Batch` with the few operations that environments need.

    `qpos`, `qvel`, `ctrl` and whatever `bind` returns are live views, (num_envs, ...) float64:
    what is written into the first three is the state at the next call. The result is the same bit
    by bit at any number of threads.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, num_threads: int) -> None:
        """`num_envs` simulations of `model` in its default state, on `num_threads` threads."""
        self.model = model
        self._batch = Batch(model, num_envs, num_threads)
        self.qpos: Floats = self._batch.bind("qpos")
        self.qvel: Floats = self._batch.bind("qvel")
        self.ctrl: Floats = self._batch.bind("ctrl")

    def bind(self, field: str) -> Any:
        """Live view of a field of MjData, such as `xmat`, (num_envs, ...)."""
        return self._batch.bind(field)

    def reset(self, ids: Ints | None = None) -> None:
        """Put the named simulations, or all, into the model's default state, at time 0."""
        self._batch.reset(ids, stage=_NO_STAGE)

    def update_positions(self, ids: Ints | None = None) -> None:
        """Make derived positions (`xpos`, `xmat`) those of the state that was written."""
        self._batch.forward(ids, stage=_POSITIONS)

    def step(self, substeps: int, positions: bool = False) -> Ints:
        """Advance all simulations.

        Args:
            substeps: number of physics steps with the same controls.
            positions: whether derived positions shall be those of the new state; without this
                they lag by one physics step, as they do in MuJoCo.

        Returns:
            The ids of the simulations that diverged. Their state means nothing; reset them.
        """
        failed: Ints = np.empty(0, np.int64)
        try:
            self._batch.step(nstep=substeps, stage=_POSITIONS if positions else _NO_STAGE)
        except SimulationError as error:
            failed = np.asarray(error.ids, np.int64)
        # The counters stand at zero here: a diverged simulation is reset, which clears them.
        counts = self._batch.warning[:, _DIVERGED, _COUNT]
        if counts.any() or len(failed):
            return np.union1d(np.flatnonzero(counts.any(axis=1)), failed)
        return failed
