"""What is shipped in `cluster/` is fine, and agrees with what is installed and with one another."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from cluster_edits import CLUSTER, FILES, ROOT

import farreach
from farreach import config as configs
from farreach.cli import main as cli
from farreach.cluster import schemas
from farreach.cluster.check import check_file
from farreach.cluster.demand import fits
from farreach.cluster.forecast import Forecast, forecast
from farreach.cluster.images import PYTHONS

PROJECT = (ROOT / "pyproject.toml").read_text()
RAY = re.search(r'"ray\[default,rllib,train\]==([\d.]+)"', PROJECT)[1]
SCHEMAS = sorted(path.stem for path in schemas.FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_shipped_file_is_fine(path):
    report = check_file(path)
    assert (report.problems, report.warnings) == ((), ())
    if path.name != "storage.yaml":
        (plan,) = report.plans
        assert plan.groups[0].head
        assert not plan.groups[0].resources.get("CPU")


def test_files_for_every_way_are_shipped():
    names = {str(path.relative_to(CLUSTER)) for path in FILES}
    assert names == {
        *("aws.yaml", "azure.yaml", "gcp.yaml", "local.yaml"),
        *(f"kuberay/{kind}.yaml" for kind in ("raycluster", "rayjob", "rayservice", "storage")),
    }


@pytest.mark.parametrize("name", ["aws.yaml", "azure.yaml", "gcp.yaml"])
def test_rollouts_are_on_spot_and_learners_are_not(name):
    (plan,) = check_file(CLUSTER / name).plans
    assert {group.name: group.spot for group in plan.groups} == {
        "head": False,
        "rollout": True,
        "learner": False,
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_images_bring_the_versions_of_this_project(path):
    text = path.read_text()
    assert set(re.findall(r"rayproject/ray:([\d.]+)", text)) <= {RAY}
    assert set(re.findall(r"/farreach:([\d.]+\d)", text)) <= {farreach.__version__}
    assert set(re.findall(r"rayVersion: (\S+)", text)) <= {RAY}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_that_files_tell_or_run_can_be_typed(path):
    text = re.sub(r" \\\n#\s*", " ", path.read_text())  # lines of a comment that go on
    for found in re.findall(r"farreach (?:cluster|submit) [^\n&>#]*", text):
        cli.parsed(shlex.split(found)[1:])


def trainings(path):
    """The trainings that a file tells to begin in its comments, or begins as a job."""
    text = re.sub(r" \\\n#\s*", " ", path.read_text())
    jobs = [tree.get("spec", {}).get("entrypoint") for tree in yaml.safe_load_all(text)]
    told = re.findall(r"farreach submit [^\n&>#]*", text)
    for command in [*told, *filter(None, jobs)]:
        options = cli.parsed(shlex.split(command)[1:])
        loaded = configs.load(configs.find(options.config), options.overrides)
        yield importlib.import_module(loaded.workload).demand(loaded.config)


def test_files_with_machines_on_spot_tell_how_to_begin_a_training():
    plans = {path: check_file(path).plans for path in FILES}
    on_spot = [path for path in FILES if any(g.spot for p in plans[path] for g in p.groups)]
    assert {path.name for path in on_spot} == {
        *("aws.yaml", "azure.yaml", "gcp.yaml", "raycluster.yaml", "rayjob.yaml"),
    }
    assert all(list(trainings(path)) for path in on_spot)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_trainings_that_files_begin_hold_state_on_machines_that_stay(path):
    for demands in trainings(path):
        (plan,) = check_file(path).plans
        spot = [group.resources for group in plan.groups if group.spot]
        may_go = {d.role for d in demands if any(fits(d.asked, there) for there in spot)}
        assert may_go <= {"rollout"}
        if all(group.resources for group in plan.groups):
            # 28 rollouts, 14 on a machine; all the rest on one
            assert forecast(plan, demands) == Forecast({"rollout": 2, "learner": 1}, {})


def test_the_pythons_that_images_may_bring_are_those_of_the_project():
    low, high = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', PROJECT).groups()
    assert [list(version) for version in PYTHONS] == [[3, int(low)], [3, int(high)]]


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_json_schemas_whose_kinds_are_all_there(name):
    from jsonschema import Draft202012Validator

    files = (name, "kubernetes") if name == "kuberay" else (name,)
    kinds = yaml.safe_load((schemas.FOLDER / f"{name}.yaml").read_text())
    schema = schemas.schema(next(iter(kinds)), *files)
    Draft202012Validator.check_schema(schema)
    named = set(re.findall(r'"#/\$defs/(\w+)"', str(schema).replace("'", '"')))
    assert named <= set(schema["$defs"])


def test_the_wheel_has_the_schemas():
    packages = re.search(r"^packages = \[(.*)\]", PROJECT, re.M)[1].split(",")
    folders = [ROOT / package.strip(' "') for package in packages]
    assert any(schemas.FOLDER.is_relative_to(folder) for folder in folders)
    assert not re.search(r"^(exclude|only-include)", PROJECT, re.M)


def instructions():
    """The instructions of the container file: name, rest of the line; continued lines joined."""
    text = (CLUSTER / "Containerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines()]


def test_the_container_file_copies_what_there_is_and_its_ignore_file_lets_through():
    stages = {rest.rpartition(" AS ")[2] for name, rest in instructions() if name == "FROM"}
    ignored = (CLUSTER / "Containerfile.dockerignore").read_text().splitlines()
    for name, rest in instructions():
        if name != "COPY":
            continue
        options = [word for word in rest.split() if word.startswith("--")]
        *sources, _ = [word for word in rest.split() if not word.startswith("--")]
        if options:
            assert options[0].removeprefix("--from=") in stages
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored
    packages = {
        f"{Path(one).parts[0]}/" for one in ("platform/farreach", "workloads/x", "configs/")
    }
    copied = {word for name, rest in instructions() if name == "COPY" for word in rest.split()}
    assert packages | {"pyproject.toml", "README.md"} <= copied


def test_the_container_file_names_this_projects_python_and_runs_as_nobody_special():
    names = [name for name, _ in instructions()]
    bases = {rest.split()[0] for name, rest in instructions() if name == "FROM"}
    (base,) = bases
    python = tuple(map(int, re.search(r"python:(\d+)\.(\d+)-slim", base).groups()))
    assert PYTHONS[0] <= python < PYTHONS[1]
    users = [rest for name, rest in instructions() if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    assert "ENTRYPOINT" not in names  # Ray's launcher starts the image with `bash`
    variables = next(rest for name, rest in instructions() if name == "ENV")
    assert f"HOME=/home/{users[-1]} " in variables
    assert "RAY_AUTH_MODE=token" in variables
    assert farreach.__version__ in (CLUSTER / "Containerfile").read_text()


def test_the_container_file_has_what_ray_s_launcher_and_kuberay_need():
    packages = next(rest for name, rest in instructions() if name == "RUN" and "apt-get" in rest)
    assert {"rsync", "openssh-client", "wget", "ca-certificates"} <= set(packages.split())


def extras_of_the_image():
    """What the container file installs of pyproject.toml's extras unless it is told otherwise."""
    (argument,) = [rest for name, rest in instructions() if name == "ARG" and "EXTRAS" in rest]
    return set(argument.partition("=")[2].split(","))


def extras_asked(path):
    """What the machines of a file install, or say that their image must have."""
    text = path.read_text()
    return {
        *re.findall(r"farreach-\*\.whl\)\[(\w+)\]", text),
        *re.findall(r"farreach\[(\w+)\]", text),
    }


def test_the_image_has_what_heads_need_to_start_machines_of_their_cloud_and_to_serve():
    for name in ("aws", "gcp", "azure"):
        assert extras_asked(CLUSTER / f"{name}.yaml") == {name}
    assert extras_asked(CLUSTER / "kuberay" / "rayservice.yaml") == {"serve"}
    assert extras_of_the_image() == {extra for path in FILES for extra in extras_asked(path)}
    (install,) = [rest for name, rest in instructions() if name == "RUN" and "$EXTRAS" in rest]
    assert "farreach-*.whl)[$EXTRAS]" in install


def test_extras_that_files_ask_for_exist():
    told = re.findall(r"pip install -e '\.\[(\w+)\]'", "".join(path.read_text() for path in FILES))
    asked = extras_of_the_image()
    assert set(told) == asked - {"serve"}
    for extra in asked:
        assert re.search(rf"^{extra} = \[", PROJECT, re.M)
