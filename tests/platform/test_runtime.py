import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farreach import runtime
from farreach.cluster import room
from farreach.errors import ClusterError, FarreachError
from farreach.rundir import RunDirectory
from farreach.unforeseen import explained

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = [str(ROOT / "platform"), str(ROOT / "workloads")]


@pytest.fixture
def unconnected(monkeypatch):
    """What `connect` does in a process that has no Ray yet; calls of ray.init, with the path."""
    calls = []

    def init(**arguments):
        calls.append(arguments | {"path": os.environ.get("PYTHONPATH")})

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    monkeypatch.setattr(room, "look", lambda: room.View(grows=False, status=""))
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in (*runtime.ENVIRONMENT, *runtime.LOCAL_ENVIRONMENT, "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # to be restored after the test
    yield calls
    runtime.disconnect()


@pytest.fixture
def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def open_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_named_quickly(
    unconnected, monkeypatch, closed_port, scheme
):
    address = f"{scheme}127.0.0.1:{closed_port}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    begun_s = time.monotonic()
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at {address}.*unset RAY_ADD"):
        runtime.connect(1)
    assert time.monotonic() - begun_s < 5
    assert unconnected == []


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "head:70000", "ray://"])
def test_a_malformed_address_is_refused(unconnected, address):
    with pytest.raises(ClusterError, match="is neither host:port"):
        runtime.connect(1, address=address)
    assert unconnected == []


def test_auto_means_the_cluster_that_was_started_on_this_machine(
    unconnected, monkeypatch, closed_port
):
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda: None)
    with pytest.raises(ClusterError, match="no Ray cluster was started on this machine"):
        runtime.connect(1, address="auto")
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda: f"127.0.0.1:{closed_port}")
    with pytest.raises(ClusterError, match=f"answers at 127.0.0.1:{closed_port}"):
        runtime.connect(1, address="auto")
    assert unconnected == []


@pytest.mark.parametrize(("is_local", "expected"), [(True, "10"), (False, None)])
def test_only_a_ray_of_its_own_is_given_up_early(
    unconnected, monkeypatch, open_port, is_local, expected
):
    name = "RAY_gcs_rpc_server_reconnect_timeout_s"
    monkeypatch.delenv(name)
    runtime.connect(1, address="local" if is_local else f"127.0.0.1:{open_port}")
    assert os.environ.get(name) == expected


def test_without_an_address_a_ray_of_its_own_is_started(unconnected, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"/somewhere{os.pathsep}")
    runtime.connect(4)
    (arguments,) = unconnected
    assert arguments["address"] == "local"
    assert arguments["include_dashboard"] is False
    assert arguments["log_to_driver"] is False
    # Ray's processes have the path of this one then; an environment of the job's own would keep
    # those that Ray begins in advance from being used.
    assert arguments["path"] == os.pathsep.join([*SOURCE_ROOTS, "/somewhere"])
    assert "runtime_env" not in arguments
    assert os.environ["PYTHONPATH"] == f"/somewhere{os.pathsep}"


def test_a_remote_cluster_is_sent_the_packages_unless_the_job_brings_them(
    unconnected, monkeypatch, open_port
):
    address = f"127.0.0.1:{open_port}"
    runtime.connect(4, address=address)
    packages = [str(ROOT / "platform/farreach"), str(ROOT / "workloads/farreach_workloads")]
    assert unconnected[0]["address"] == address
    assert unconnected[0]["runtime_env"] == {"py_modules": packages}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", address)
    runtime.connect(4)
    assert unconnected[1]["address"] == address
    assert "runtime_env" not in unconnected[1]


def test_a_refused_connection_is_a_cluster_error(unconnected, monkeypatch, open_port):
    def refuse(**arguments):
        raise ConnectionError("bad token")

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(ClusterError, match=r"refused the connection: bad token.*RAY_AUTH_MODE"):
        runtime.connect(1, address=f"127.0.0.1:{open_port}")


def test_too_few_cpus_are_reported_with_the_settings_to_lower(unconnected):
    settings = ["runtime.rollout_actors", "runtime.cpus.rollout"]
    with pytest.raises(ClusterError) as caught:
        runtime.connect(6.5, settings=settings)
    assert str(caught.value) == (
        "the run asks for 6.5 CPUs and Ray has 4. Lower runtime.rollout_actors, "
        "runtime.cpus.rollout, or use a larger machine or cluster."
    )


def test_variables_that_the_user_set_are_kept(unconnected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
    runtime.connect(1)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.2"


def test_the_object_store_fits_into_shared_memory(monkeypatch):
    monkeypatch.setattr("farreach.memory.limit_bytes", lambda *_: None)
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**22}.get)  # 16 GiB
    shared = {"free": 64 * 2**30}

    def usage(path):
        return type("Usage", (), shared)

    monkeypatch.setattr("shutil.disk_usage", usage)
    assert runtime.object_store_bytes() == 2**34 // 10
    shared["free"] = 2**30
    assert runtime.object_store_bytes() == 2**30 * 9 // 10
    shared["free"] = 64 * 2**20  # a container's default
    assert runtime.object_store_bytes() == 100 * 2**20


def test_the_object_store_is_a_tenth_of_a_containers_limit(monkeypatch):
    monkeypatch.setattr("farreach.memory.limit_bytes", lambda *_: 4 * 2**30)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**36}))
    assert runtime.object_store_bytes() == 4 * 2**30 // 10


@pytest.mark.ray
def test_a_ray_that_is_there_is_used_and_left_running(ray_local):
    runtime.connect(4)
    runtime.disconnect()
    with pytest.raises(ClusterError, match="asks for 5 CPUs and Ray has 4"):
        runtime.connect(5)
    assert ray_local.is_initialized()


@pytest.mark.ray
def test_an_error_from_an_actor_reaches_the_user_without_its_trace(ray_local, tmp_path):
    @ray_local.remote(num_cpus=0.1, max_retries=0)
    def fail():
        raise ClusterError("the cluster went home. Call it back.")

    run = RunDirectory.create(tmp_path, "maze", "", [], seed=0)
    with pytest.raises(FarreachError) as caught, explained(run):
        ray_local.get(fail.remote())
    assert type(caught.value) is ClusterError
    assert str(caught.value) == "the cluster went home. Call it back."
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


PROBE = """
import os, signal, sys, time
sys.path[:0] = {roots}
from farreach import runtime

asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append("TERM"))
signal.signal(signal.SIGINT, lambda *_: asked.append("INT"))
runtime.connect(1)
import ray

@ray.remote(num_cpus=0.5)
class Actor:
    def where(self):
        import farreach_workloads
        return os.getpid(), farreach_workloads.__file__

actor = Actor.remote()
before = ray.get(actor.where.remote())
os.kill(os.getpid(), signal.SIGTERM)
os.killpg(0, signal.SIGINT)  # what Ctrl-C does: every process of the terminal gets it
time.sleep(0.5)
assert asked == ["TERM", "INT"], asked
assert ray.get(actor.where.remote()) == before
runtime.disconnect()
runtime.disconnect()
assert not ray.is_initialized()
print(before[1])
"""


def probe(tmp_path, **variables):
    """Run the probe from a foreign folder, in a process group of its own; what it prints."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") and name != "PYTHONPATH"
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(roots=SOURCE_ROOTS)],
        cwd=tmp_path,
        env={**environment, "HOME": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_is_quiet_finds_the_packages_and_survives_ctrl_c(tmp_path):
    done = probe(tmp_path)
    assert done.stdout.strip() == str(ROOT / "workloads/farreach_workloads/__init__.py")
    assert done.stderr == ""
    assert not (tmp_path / ".ray").exists()  # no token file in the user's home


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_that_is_joined_gets_the_packages_and_goes_on(ray_local, tmp_path):
    address = ray_local.get_runtime_context().gcs_address
    done = probe(tmp_path, RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")
    assert "py_modules" in done.stdout

    @ray_local.remote(num_cpus=0.1)
    def still_there():
        return True

    assert ray_local.get(still_there.remote(), timeout=30)
