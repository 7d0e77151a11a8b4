import mujoco
import numpy as np
import pytest

from farreach_workloads.goals.environments.batched_physics import BatchedPhysics

BALL = """
<mujoco>
  <worldbody>
    <body name="ball">
      <joint name="x" type="slide" axis="1 0 0"/>
      <geom size="0.1" mass="2"/>
    </body>
  </worldbody>
  <actuator><motor joint="x"/></actuator>
</mujoco>
"""


@pytest.fixture
def physics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log of diverged simulations here
    return BatchedPhysics(mujoco.MjModel.from_xml_string(BALL), num_envs=3, num_threads=1)


def test_a_force_accelerates_each_copy_by_itself(physics):
    physics.ctrl[:, 0] = [0.0, 4.0, -4.0]
    assert len(physics.step(substeps=10)) == 0
    # 10 steps of 0.002 s at 4 N / 2 kg.
    np.testing.assert_allclose(physics.qvel[:, 0], [0.0, 0.04, -0.04], atol=1e-12)


def test_derived_positions_follow_the_state_only_when_asked(physics):
    centres = physics.bind("xpos")
    physics.qvel[:, 0] = 1.0
    physics.step(substeps=1)
    np.testing.assert_allclose(centres[:, 1, 0], 0.0)
    physics.step(substeps=1, positions=True)
    np.testing.assert_allclose(centres[:, 1, 0], physics.qpos[:, 0])


def test_a_diverged_copy_is_named_and_runs_again_after_its_reset(physics):
    physics.qvel[1, 0] = np.nan
    np.testing.assert_array_equal(physics.step(substeps=2), [1])
    physics.reset(np.array([1]))
    assert len(physics.step(substeps=2)) == 0
    assert np.isfinite(physics.qpos).all()


def test_threads_do_not_change_the_result():
    model = mujoco.MjModel.from_xml_string(BALL)
    results = []
    for num_threads in (1, 2):
        physics = BatchedPhysics(model, num_envs=5, num_threads=num_threads)
        physics.ctrl[:, 0] = np.arange(5)
        physics.step(substeps=50)
        results.append(physics.qpos.copy())
    np.testing.assert_array_equal(*results)
