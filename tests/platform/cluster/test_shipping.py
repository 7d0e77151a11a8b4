import os
from pathlib import Path

import pytest
import yaml

from farreach.cluster import shipping
from farreach.cluster.shipping import check_size, clone, runtime_env
from farreach.errors import ClusterError

ROOT = Path(__file__).resolve().parents[3]


def test_a_clone_is_sent_with_its_source_roots_on_the_path():
    assert clone() == ROOT
    environment = runtime_env("seed: 1\n")
    assert environment["working_dir"] == str(ROOT)
    assert environment["env_vars"]["PYTHONPATH"] == "platform:workloads"
    assert environment["env_vars"]["FARREACH_CONFIG"] == "seed: 1\n"
    assert "py_modules" not in environment


def test_rays_own_command_sends_the_same():
    theirs = yaml.safe_load((ROOT / "cluster/runtime_env.yaml").read_text())
    ours = runtime_env("")
    del ours["env_vars"]["FARREACH_CONFIG"]
    assert ours["env_vars"] == theirs["env_vars"]
    assert ours["excludes"] == [*theirs["excludes"], "__pycache__"]


def test_more_variables_are_added_and_may_give_more_time():
    given = {
        "A": "b",
        "RAY_JOB_STOP_WAIT_TIME_S": "600",
        "PYTHONPATH": "more",
        "FARREACH_CONFIG": "",
    }
    variables = runtime_env("seed: 1\n", given=given)["env_vars"]
    assert variables == {
        "A": "b",
        "RAY_JOB_STOP_WAIT_TIME_S": "600",
        "PYTHONPATH": "platform:workloads:more",
        "FARREACH_CONFIG": "seed: 1\n",
    }


@pytest.mark.parametrize("folder", [None, "mine"])
def test_an_installed_farreach_is_sent_as_packages(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "clone", lambda: None)
    environment = runtime_env("", tmp_path if folder else None)
    packages = {Path(path).name for path in environment["py_modules"]}
    assert packages == {"farreach", "farreach_workloads"}
    assert environment.get("working_dir") == (str(tmp_path) if folder else None)
    assert "PYTHONPATH" not in environment["env_vars"]


def test_a_farreach_in_the_image_is_not_sent(tmp_path):
    environment = runtime_env("", installed=True)
    assert not {"working_dir", "py_modules"} & set(environment)
    environment = runtime_env("", tmp_path, installed=True)
    assert environment["working_dir"] == str(tmp_path)
    assert "py_modules" not in environment


@pytest.fixture
def folder(tmp_path):
    for name, size in {"a.py": 10, "data/big": 3000, "data/small": 5, "sub/ignored": 700}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "sub/.gitignore").write_text("ignored\n")  # 8 bytes
    return tmp_path


def test_what_is_ignored_or_left_out_has_no_size(folder):
    assert check_size(folder, []) == 10 + 3000 + 5 + 8
    assert check_size(folder, ["data/"]) == 10 + 8
    (folder / ".rayignore").write_text("big\n")  # 4 bytes
    assert check_size(folder, []) == 10 + 5 + 8 + 4


def test_too_much_is_refused_with_the_largest_entries(folder, monkeypatch):
    """The job server takes less than the cluster's store, and counts what is packed."""
    monkeypatch.setattr("ray._private.ray_constants.DASHBOARD_CLIENT_MAX_SIZE", 2000)
    assert check_size(folder, []) == 10 + 3000 + 5 + 8
    (folder / "data/big").write_bytes(os.urandom(3000))
    with pytest.raises(ClusterError, match=r"too large to be sent.*the most is in data \(0 MiB\)"):
        check_size(folder, [])
    with pytest.raises(ClusterError, match=r"nowhere: there is no such folder\."):
        check_size(folder / "nowhere", [])
