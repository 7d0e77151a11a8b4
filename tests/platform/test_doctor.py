import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from farreach.cli.main import main
from farreach.doctor import checkup, packages, probes
from farreach.doctor.finding import Finding, fault, ok, warning
from farreach.doctor.packages import Wanted
from farreach.doctor.probes import Probed

ROOT = Path(__file__).resolve().parents[2]
TORCH = {
    "version": "2.14",
    "is_right": True,
    "built_for": "13.0",
    "driver": None,
    "gpus": 0,
    "threads": 2,
    "error": "",
}


def probed(errors=(), found=(), died=()):
    return Probed(dict(errors), dict(found), ("numpy", "torch"), dict(died))


def torch_facts(**changes):
    return probed(found={probes.TORCH: {**TORCH, **changes}})


def test_a_file_that_hides_the_standard_library_is_a_fault(tmp_path):
    (tmp_path / "platform").mkdir()
    (tmp_path / "other").mkdir()
    standard = packages.standard_library()
    folders = [tmp_path, tmp_path / "other", standard]
    assert packages.shadows(folders, standard) == []
    assert packages.shadowing([]).level == "ok"
    (tmp_path / "platform/__init__.py").touch()
    (tmp_path / "other/platform.py").touch()
    found = packages.shadows(folders, standard)
    assert found == [tmp_path / "platform/__init__.py", tmp_path / "other/platform.py"]
    finding = packages.shadowing(found)
    assert finding.level == "fault"
    assert f"rm {found[0]} {found[1]}" in finding.mend


@pytest.mark.parametrize(
    ("version", "level"), [("3.11.7", "ok"), ("3.9.2", "fault"), ("3.15.0a1", "fault")]
)
def test_the_python_must_be_one_that_farreach_takes(version, level):
    wanted = Wanted("pyproject.toml", ">=3.10,<3.14", [])
    assert packages.python_version(version, wanted).level == level


def test_what_is_missing_or_of_another_version_is_named_with_the_command_that_mends_it():
    lines = ["ray[default]==2.60.0", "torch>=2.9", "rich>=13", 'onnx>=1.18; extra == "onnx"']
    installed = {"ray": "2.59.0", "rich": "13.9", "onnx": "1.17"}.get
    wanted = Wanted("pyproject.toml", "", lines, ["onnx"])
    assert packages.requirements(wanted, installed) == [
        fault("ray 2.59.0 is installed, not ==2.60.0", "pip install 'ray==2.60.0'"),
        fault("torch is not installed", "pip install 'torch>=2.9'"),
        warning("onnx 1.17 is installed, not >=1.18", "pip install 'onnx>=1.18'"),
    ]


def test_packages_that_nobody_needs_here_may_be_missing():
    lines = ["rich>=13", 'onnx>=1.18; extra == "onnx"', 'winreg>=1; sys_platform == "win32"']
    wanted = Wanted("its metadata", "", [*lines, 'farreach[onnx]; extra == "dev"'], ["onnx", "dev"])
    found = packages.requirements(wanted, {"rich": "14.0"}.get)
    assert found == [ok("1 packages in versions that its metadata takes")]


def test_the_wheel_for_gpus_stands_in_for_that_for_cpus():
    wanted = Wanted("its metadata", "", ["faiss-cpu>=1.11"])
    (found,) = packages.requirements(wanted, {"faiss-gpu-cu12": "1.12"}.get)
    assert found.level == "ok"


def test_without_metadata_and_without_a_clone_it_says_so(tmp_path, monkeypatch):
    def missing(name):
        raise packages.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.importlib.metadata, "metadata", missing)
    assert packages.wanted_here(tmp_path) is None
    (found,) = packages.requirements(None, {}.get)
    assert found.level == "warning"


def test_a_clone_is_compared_with_its_own_pyproject(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "farreach"\nrequires-python = ">=3.10"\ndependencies = ["torch>=2.9"]\n'
        "[project.optional-dependencies]\n"
        "dev = [\"ruff>=0.14; python_version >= '3.8'\"]\n"
    )
    wanted = packages.wanted_here(tmp_path)
    assert wanted.extras == ["dev"]
    (found,) = packages.requirements(wanted, {"torch": "2.9", "ruff": "0.1"}.get)
    assert found == warning("ruff 0.1 is installed, not >=0.14", "pip install 'ruff>=0.14'")


def test_gymnasium_has_exactly_the_version_that_ray_pins():
    lines = ["msgpack", 'gymnasium==1.2.2; extra == "rllib"', 'aiohttp; extra == "default"']
    right = {"ray": "2.60.0", "msgpack": "1", "gymnasium": "1.2.2", "aiohttp": "3"}
    (found,) = packages.pins_of_ray(lines, right.get)
    assert found == ok("all of ray[default,rllib,train] 2.60.0, gymnasium==1.2.2 among it")
    wrong = {**right, "gymnasium": "1.3.0", "aiohttp": None}
    assert packages.pins_of_ray(lines, wrong.get) == [
        fault("ray[default]: aiohttp is not installed", "pip install 'aiohttp'"),
        fault(
            "ray[rllib]: gymnasium 1.3.0 is installed, not ==1.2.2",
            "pip install 'gymnasium==1.2.2'",
        ),
    ]
    assert packages.pins_of_ray([], {}.get)[0].level == "fault"


@pytest.mark.parametrize(
    ("installed", "level"),
    [
        ({"faiss-cpu": "1.15"}, "ok"),
        ({"faiss-cpu": "1.15", "faiss-gpu-cu12": "1.12"}, "fault"),
        ({}, "fault"),
    ],
)
def test_the_two_faiss_wheels_exclude_each_other(installed, level):
    assert packages.faiss_wheels(installed.get).level == level


def test_this_clone_is_sound():
    assert packages.shadows(packages.folders_looked_into(), packages.standard_library()) == []
    assert [f.level for f in packages.pins_of_ray(packages.requirements_of_ray(), _version)] == [
        "ok"
    ]


def _version(name):
    return packages.installed_version(name)


def test_the_lines_of_a_process_are_sorted_and_the_last_begun_is_known():
    errors, found, done = {}, {}, []
    text = "\n".join(
        [
            '{"begin": "numpy"}',
            "a module prints",
            '{"done": "numpy"}',
            '{"begin": "timm"}',
            '{"done": "timm", "error": "ImportError: no"}',
            '{"begin": "mujoco at work"}',
            '{"done": "mujoco at work", "found": {"is_drawn": true}}',
            '{"begin": "ray"}',
        ]
    )
    assert probes.read(text, errors, found, done) == "ray"
    assert errors == {"timm": "ImportError: no"}
    assert found == {"mujoco at work": {"is_drawn": True}}
    assert done == ["numpy"]


def test_a_process_that_crashes_is_named_with_what_it_was_doing(monkeypatch):
    outputs = {"learning": ('{"begin": "torch"}', "ended with SIGSEGV"), "worlds": ("", "")}
    monkeypatch.setattr(probes, "_run", outputs.get)
    found = probes.probe()
    assert found.died == {"torch": "ended with SIGSEGV"}
    assert "torch: the process ended with SIGSEGV" in probes.imports(found)[0].text
    assert "ended with SIGSEGV" in probes.torch_at_work(found).text


def test_modules_that_cannot_be_imported_are_faults():
    (found,) = probes.imports(probed(errors={"timm": "ImportError: no torch"}))
    assert found.level == "fault"
    assert found.text == "import timm: ImportError: no torch"
    assert probes.imports(probed())[0].level == "ok"


@pytest.mark.parametrize(
    ("facts", "level", "text"),
    [
        ({}, "ok", "no GPU driver here"),
        ({"is_right": False}, "fault", "multiplies wrongly"),
        ({"built_for": None, "driver": "12.4"}, "warning", "is built for CPUs"),
        ({"driver": "12.4"}, "warning", "the driver runs CUDA up to 12.4"),
        ({"driver": "13.1"}, "warning", "none is seen"),
        ({"driver": "13.1", "gpus": 2, "error": "out of memory"}, "warning", "out of memory"),
        ({"driver": "13.1", "gpus": 2}, "ok", "computes on 2 GPUs"),
        ({"driver": "unknown", "gpus": 1}, "ok", "computes on 1 GPUs"),
    ],
)
def test_pytorchs_build_is_compared_with_the_driver(facts, level, text):
    found = probes.torch_at_work(torch_facts(**facts))
    assert found.level == level
    assert text in found.text


def test_mujoco_need_not_draw_but_it_is_said():
    broken = probed(errors={probes.RENDERING: "ImportError: libEGL"})
    assert probes.rendering(broken, None).level == "warning"
    assert "libEGL" in probes.rendering(broken, "egl").text
    assert probes.rendering(broken, "disabled").level == "ok"
    drawn = probed(found={probes.RENDERING: {"platform": "egl", "is_drawn": True}})
    assert probes.rendering(drawn, "egl") == ok("MuJoCo draws with egl, MUJOCO_GL=egl")
    black = probed(found={probes.RENDERING: {"platform": "egl", "is_drawn": False}})
    assert probes.rendering(black, None).level == "warning"


def test_a_check_that_fails_itself_ends_no_other():
    def broken():
        raise OSError("no /proc here")

    def lacking():
        raise ModuleNotFoundError("No module named 'x'", name="x")

    found = checkup.look(
        [
            checkup.Check("a", broken),
            checkup.Check("b", lacking),
            checkup.Check("c", lambda: [ok("one"), warning("two", "mend it")]),
        ]
    )
    assert [one.finding.level for one in found] == ["warning", "fault", "ok", "warning"]
    assert checkup.lines(found)[-3:] == [
        "warning  c              two",
        "                        → mend it",
        "1 faults, 2 warnings, 1 ok",
    ]


def light(monkeypatch, finding):
    monkeypatch.setattr(checkup, "checks", lambda root: [checkup.Check("a", lambda: finding)])


@pytest.mark.parametrize(
    ("finding", "code"), [(ok("x"), 0), (warning("x", "y"), 0), (fault("x", "y"), 1)]
)
def test_the_command_fails_for_faults_alone(monkeypatch, capsys, finding, code):
    light(monkeypatch, finding)
    assert main(["doctor"]) == code
    assert main(["doctor", "--json"]) == code
    text = capsys.readouterr().out
    (one,) = json.loads(text[text.index("[") :])
    assert Finding(one["level"], one["text"], one["mend"]) == finding


@pytest.mark.slow
def test_all_checks_work_here(tmp_path):
    found = checkup.look(checkup.checks(tmp_path))
    assert len({one.check for one in found}) >= 22
    assert [one for one in found if "could not be looked at" in one.finding.text] == []
    by_name = {one.check: one.finding.level for one in found}
    assert by_name["shadowing"] == by_name["imports"] == by_name["pytorch"] == "ok"


@pytest.mark.slow
def test_without_any_package_it_still_tells_what_is_missing(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:2]\n"
        "from farreach.cli.main import main; sys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(ROOT / "platform")],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1, done.stderr
    faults = {one["check"] for one in json.loads(done.stdout) if one["level"] == "fault"}
    assert {"python", "packages", "ray", "faiss"} <= faults
