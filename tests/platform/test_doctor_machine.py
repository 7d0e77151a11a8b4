import time
from pathlib import Path

import pytest

from farreach import memory
from farreach.doctor import machine, ray_here, runs
from farreach.doctor.machine import GIB, Disk, Shared
from farreach.rundir import RunDirectory

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("omp", "level"), [(None, "ok"), ("1", "ok"), ("2", "ok"), ("4", "warning"), ("x", "warning")]
)
def test_threads_of_every_process_fit_beside_one_another(omp, level):
    assert machine.threads(4, omp, 4).level == level


@pytest.mark.parametrize(
    ("limits", "level"), [((1024, 65536), "ok"), ((1024, 4096), "warning"), ((256, 256), "fault")]
)
def test_enough_files_can_be_opened(limits, level):
    assert machine.open_files(*limits).level == level


@pytest.mark.parametrize(
    ("free", "level"), [(8 * GIB, "ok"), (GIB, "warning"), (GIB // 16, "fault")]
)
def test_the_object_store_fits_into_shared_memory(free, level):
    assert machine.shared_memory(Shared(8 * GIB, free), 2 * GIB, GIB // 10).level == level


def test_a_system_without_shared_memory_is_fine():
    assert machine.shared_memory(None, 2 * GIB, GIB // 10).level == "ok"
    assert machine.shared_here("/not/there") is None


def test_each_disk_has_one_line(tmp_path):
    full = [
        Disk(Path("runs"), 100 * GIB, GIB // 10, 1),
        Disk(Path("/tmp"), 100 * GIB, GIB // 10, 1),
    ]
    (found,) = machine.disk(full)
    assert found.level == "fault"
    assert found.text.startswith("runs and /tmp: 0.1 of 100 GiB free")
    levels = [f.level for f in machine.disk([Disk(Path("a"), 100 * GIB, 4 * GIB, 1)])]
    assert levels == ["warning"]
    here = machine.disks_of([tmp_path / "not" / "there", tmp_path])
    assert len({one.device for one in here}) == 1
    assert here[0].free > 0


@pytest.mark.parametrize(
    ("limit", "available", "level"),
    [
        (None, 20 * GIB, "ok"),
        (None, GIB, "warning"),
        (None, GIB // 4, "fault"),
        (4 * GIB, 3 * GIB, "ok"),
    ],
)
def test_there_is_memory_within_the_containers_limit(limit, available, level):
    found = machine.memory(64 * GIB, limit, available)
    assert found.level == level
    assert ("container" in found.text) == (limit is not None)


def test_a_containers_limit_counts_and_its_caches_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "physical_bytes", lambda: 64 * GIB)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable: {50 * 2**20} kB\n")
    assert memory.available_bytes(tmp_path, meminfo) == 50 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.limit_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text(f"{8 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{5 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2 * GIB}\n")
    assert memory.usable_bytes(tmp_path) == 8 * GIB
    assert memory.available_bytes(tmp_path, meminfo) == 5 * GIB


def test_the_first_version_of_cgroups_is_understood_too(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "physical_bytes", lambda: 64 * GIB)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert memory.limit_bytes(tmp_path) is None
    (tmp_path / "memory/memory.limit_in_bytes").write_text(str(2 * GIB))
    assert memory.limit_bytes(tmp_path) == 2 * GIB


def test_a_clock_in_the_past_and_a_file_server_off_time_are_found(tmp_path):
    now = 1_800_000_000.0
    assert machine.clock(now, now - 9000, now + 1).level == "ok"
    assert machine.clock(now, now - 9000, None).level == "ok"
    assert machine.clock(now, now + 10 * 86400, now).level == "fault"
    assert "+60 s off" in machine.clock(now, now, now + 60).text
    newest, written = machine.file_times(tmp_path, ROOT / "platform/farreach")
    assert newest > 0
    assert abs(written - time.time()) < 60
    assert list(tmp_path.iterdir()) == []


def test_a_name_without_an_address_is_a_warning(monkeypatch):
    assert machine.hostname("node", None).level == "warning"
    assert machine.hostname("node", "10.0.0.1").level == "ok"
    assert machine.own_address("localhost") is not None
    monkeypatch.setattr(machine, "RESOLVE_S", 0.05)
    monkeypatch.setattr(machine.socket, "gethostbyname", lambda name: time.sleep(1))
    assert machine.own_address("slow") is None


def test_variables_that_change_runs_are_named():
    assert machine.environment({})[0].level == "ok"
    variables = {"CUDA_VISIBLE_DEVICES": "", "CUDA_LAUNCH_BLOCKING": "1", "FARREACH_LOG": "xml"}
    assert [f.level for f in machine.environment(variables)] == ["warning", "warning", "fault"]


def test_ports_in_use_are_named(monkeypatch):
    assert ray_here.ports([]).level == "ok"
    assert "8265 (the dashboard)" in ray_here.ports([8265]).text
    with ray_here.socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setattr(ray_here, "PORTS", {port: "mine"})
        assert ray_here.taken_ports() == [port]
    assert ray_here.taken_ports() == []


def token(mode=0o600, is_empty=False):
    return ray_here.TokenFile(Path("/home/me/.ray/auth_token"), mode, is_empty)


@pytest.mark.parametrize(
    ("variables", "file", "levels"),
    [
        ({}, None, ["ok"]),
        ({}, token(), ["ok"]),
        ({}, token(mode=0o644), ["warning"]),
        ({}, token(is_empty=True), ["fault"]),
        ({"RAY_AUTH_TOKEN": "abc"}, token(is_empty=True), ["ok"]),
        ({"RAY_AUTH_MODE": "disabled"}, None, ["warning"]),
        ({"RAY_AUTH_MODE": "tokens"}, None, ["fault"]),
        ({"RAY_AUTH_TOKEN_PATH": "/not/there"}, None, ["fault"]),
        ({"RAY_AUTH_MODE": "token", "RAY_ADDRESS": "head:6379"}, None, ["fault"]),
        ({"RAY_AUTH_MODE": "token", "RAY_ADDRESS": "head:6379"}, token(), ["ok"]),
    ],
)
def test_tokens_keep_strangers_out_and_let_the_user_in(variables, file, levels):
    assert [finding.level for finding in ray_here.tokens(variables, file)] == levels


def test_the_tokens_file_is_that_of_the_variable(tmp_path):
    path = tmp_path / "token"
    variables = {"RAY_AUTH_TOKEN_PATH": str(path)}
    assert ray_here.token_file(variables) is None
    path.write_text("secret\n")
    path.chmod(0o640)
    assert ray_here.token_file(variables) == ray_here.TokenFile(path, 0o640, False)
    said = ray_here.tokens(variables, ray_here.token_file(variables))
    assert said[0].mend == f"chmod 600 {path}"
    assert "secret" not in str(said)


def test_a_cluster_that_does_not_answer_is_a_fault():
    assert ray_here.address(None).level == "ok"
    assert ray_here.address("local").level == "ok"
    with ray_here.socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ray_here.address(f"127.0.0.1:{port}").level == "ok"
        assert "takes jobs" in ray_here.address(f"http://127.0.0.1:{port}").text
    for given in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}", "nonsense"):
        assert ray_here.address(given).level == "fault"


def test_rays_folder_must_leave_room_for_names_of_sockets():
    assert ray_here.temporary_folder({"RAY_TMPDIR": "/scratch"}) == Path("/scratch/ray")
    assert ray_here.folder_length(Path("/tmp/ray")).level == "ok"
    assert ray_here.folder_length(Path("/" + 44 * "x")).level == "fault"


def test_processes_of_ray_are_told_from_others(tmp_path):
    def process(pid, parent, *words):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_bytes("\0".join(words).encode())
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a (b) c) S {parent} 1 1")

    process(10, 1, "/lib/ray/gcs/gcs_server", "--session-dir=/tmp/ray/session_a")
    process(11, 10, "/lib/ray/raylet/raylet", "--session_dir=/tmp/ray/session_b", "--head")
    process(12, 1, "python", "train.py")
    found = ray_here.ray_processes(tmp_path)
    assert found == [
        ray_here.Process(10, 1, "gcs_server", "/tmp/ray/session_a"),
        ray_here.Process(11, 10, "raylet", "/tmp/ray/session_b"),
    ]
    said = ray_here.left_processes(found)
    assert said.level == "warning"
    assert "kill 10 (" in said.mend
    assert "1 of running programs" in said.text
    assert ray_here.left_processes(found[1:]).level == "ok"


def test_old_sessions_and_objects_on_the_disk_are_counted(tmp_path, monkeypatch):
    for name, size in (("session_2026-01-01_a", 300), ("session_2026-01-02_b", 500)):
        (tmp_path / name / "ray_spilled_objects_1").mkdir(parents=True)
        (tmp_path / name / "logs").write_bytes(bytes(100))
        (tmp_path / name / "ray_spilled_objects_1" / "x").write_bytes(bytes(size))
    (tmp_path / "session_latest").symlink_to("session_2026-01-02_b")
    alive = str(tmp_path / "session_2026-01-02_b")
    found = ray_here.sessions(tmp_path, [alive])
    assert [(one.size, one.spilled, one.is_alive) for one in found] == [
        (400, 300, False),
        (600, 500, True),
    ]
    assert [f.level for f in ray_here.left_sessions(found)] == ["warning"]
    monkeypatch.setattr(ray_here, "BIG_BYTES", 399)
    assert [f.level for f in ray_here.left_sessions(found)] == ["warning", "warning"]
    assert ray_here.left_sessions([])[0].level == "ok"


def test_runs_that_hang_or_died_are_named(tmp_path):
    names = ("done", "died", "held")
    made = {n: RunDirectory.create(tmp_path, n, "", [], 0, path=tmp_path / n) for n in names}
    for run in made.values():
        run.event("started")
    made["done"].event("finished")
    (tmp_path / "other").mkdir()
    with made["held"].lock():
        found = runs.runs_below(tmp_path)
    assert [(run.path.name, run.is_held, run.ending) for run in found] == [
        ("died", False, ""),
        ("done", False, "finished"),
        ("held", True, ""),
    ]
    assert [f.text.split()[0] for f in runs.runs(found, tmp_path)] == [str(tmp_path / "died")]
    late = [run._replace(silent_s=3600.0) for run in found]
    assert "written nothing for 60 minutes" in runs.runs(late, tmp_path)[1].text
    assert runs.runs([], tmp_path)[0].level == "ok"
    assert runs.runs_below(tmp_path / "nothing") == []
