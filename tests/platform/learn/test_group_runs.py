"""How the workers of a run meet."""

import json
import sys

import pytest
import yaml

from farreach import launch

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.use_:DeprecationWarning"),  # settings of Ray Data
]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_meet_and_ray_trains_controller_does_without_pytorch(ray_local, tmp_path):
    file = tmp_path / "group.yaml"
    settings = {"workload": "tests.platform.learn.group_run", "out": str(tmp_path)}
    file.write_text(yaml.safe_dump(settings | {"runtime": {"workers": 2, "cpus": 0.5}}))
    launch.train(str(file), run_dir=tmp_path / "run")
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["environment"] == {
            "RANK": rank,
            "WORLD_SIZE": 2,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": 2,
            "NODE_RANK": 0,
        }
        assert found["group"] == ["gloo", rank, 2]
        assert found["controllers"] == [False]
        assert found["has torch"] is True
