import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from cluster_edits import CLUSTER, edited, line_of, report_of

from farreach.cluster.launcher import launcher_plan
from farreach.cluster.plan import Group
from farreach.yaml_source import read_documents

AWS_TYPES = "available_node_types"
# What is wrong → file, the text that is replaced, by what, what begins in the line that is named
# then, what is said of it, and of what follows from it.
MISTAKES = yaml.safe_load(Path(__file__).with_name("launcher_mistakes.yaml").read_text())


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_how_to_mend_it(what, tmp_path, monkeypatch):
    case = MISTAKES[what]
    report, text = edited(tmp_path, monkeypatch, case["file"], (case["old"], case["new"]))
    expected = f"f.yaml:{line_of(text, case['at'])}: {case['says']}"
    assert expected in report.problems
    others = [one.partition(": ")[2] for one in report.problems if one != expected]
    assert others == case.get("also", [])
    assert report.plans == ()


def test_all_mistakes_are_named_at_once_in_the_order_of_their_lines(tmp_path, monkeypatch):
    report, text = edited(
        tmp_path,
        monkeypatch,
        "aws.yaml",
        ("head_node_type: head", "head_node_type: heads"),
        ("upscaling_speed", "upscaling"),
        ("InstanceType: c7i", "InstanceTyp: c7i"),
    )
    lines = [line_of(text, part) for part in ("upscaling:", "InstanceTyp:", "head_node_type")]
    assert [int(problem.split(":")[1]) for problem in report.problems] == lines


WARNINGS = [
    (
        ("InstanceType: c7i.4xlarge", "InstanceType: c7i.2xlarge"),
        ("{CPU: 16, rollout: 14}", "{CPU: 8, rollout: 14}"),
        "available_node_types.rollout.resources.rollout: rollout=14 on 8 CPUs: a rollout takes at "
        "least one of its own.",
    ),
    (
        ("max_workers: 32", "max_workers: 50"),
        ("idle_timeout_minutes: 5", "idle_timeout_minutes: 10"),
        "available_node_types.rollout.max_workers: max_workers=50 is above that of the cluster "
        "(34), which counts.",
    ),
    (
        ("max_workers: 34\n", ""),
        ("idle_timeout_minutes: 5", "idle_timeout_minutes: 10"),
        "max_workers: is not said, so that Ray takes 2. Write how many workers there may be "
        "together.",
    ),
    (
        ("{CPU: 16, rollout: 14}", "{CPU: 16, rollout: 14, scratch: 1}"),
        ("idle_timeout_minutes: 5", "idle_timeout_minutes: 10"),
        "available_node_types.rollout.resources.scratch: no workload of farreach asks for "
        "'scratch'. Those of roles are rollout and learner; others need runtime.resources.",
    ),
    (
        ("ray:2.60.0-py311-cpu", "ray:latest"),
        ("idle_timeout_minutes: 5", "idle_timeout_minutes: 10"),
        "docker.image: 'rayproject/ray:latest' is another image whenever it is built anew. Name a "
        "version, so that all machines have the same.",
    ),
    (
        ("image: rayproject/ray:2.60.0-py311-cpu", "image: me/farreach:0.0.1"),
        ("worker_image: rayproject/ray:2.60.0-py311-gpu", "worker_image: me/farreach:0.0.1"),
        "docker.image: is farreach 0.0.1, and here is 0.1.0. Build the image anew, or check with "
        "the version that runs.",
    ),
]


@pytest.mark.parametrize("case", WARNINGS, ids=range(len(WARNINGS)))
def test_what_is_hardly_meant_is_a_warning(case, tmp_path, monkeypatch):
    *changes, message = case
    report, _ = edited(tmp_path, monkeypatch, "aws.yaml", *changes)
    assert report.problems == ()
    assert [one.partition(": ")[2] for one in report.warnings][:1] == [message]
    assert len(report.plans) == 1


def test_how_ray_is_started_must_be_said(tmp_path, monkeypatch):
    text = (CLUSTER / "local.yaml").read_text()
    begin, end = text.index("head_start_ray_commands"), text.index("worker_start_ray_commands")
    report = report_of(tmp_path, monkeypatch, text[:begin] + text[end:])
    assert report.problems == (
        "f.yaml: head_start_ray_commands: is missing: Ray's default asks for no token, and on "
        "clouds opens the dashboard.",
    )


def test_a_script_that_starts_ray_is_said_to_be_unchecked(tmp_path, monkeypatch):
    text = (CLUSTER / "aws.yaml").read_text()
    begin, end = text.index("head_start_ray_commands"), text.index("worker_start_ray_commands")
    script = "head_start_ray_commands: [~/start_head.sh]\n"
    report = report_of(tmp_path, monkeypatch, text[:begin] + script + text[end:])
    assert report.problems == ()
    (warning,) = report.warnings
    assert warning.endswith("has no `ray start`: how Ray is started was not looked at.")


def test_another_python_than_here_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    report, _ = edited(tmp_path, monkeypatch, "aws.yaml")
    assert report.problems == ()
    assert "brings Python 3.11, and here is 3.12" in report.warnings[0]


def test_images_of_one_cluster_bring_the_same_python(tmp_path, monkeypatch):
    change = ("ray:2.60.0-py311-gpu", "ray:2.60.0-py312-gpu")
    report, text = edited(tmp_path, monkeypatch, "aws.yaml", change)
    assert report.problems == (
        f"f.yaml:{line_of(text, 'py312')}: available_node_types.learner.docker.worker_image: "
        "brings another version of Python than the cluster's first image.",
    )


@pytest.mark.parametrize("cloud", ["aliyun", "vsphere"])
def test_a_cloud_that_is_not_known_here_is_said_to_be_unchecked(cloud, tmp_path, monkeypatch):
    report, _ = edited(tmp_path, monkeypatch, "aws.yaml", ("type: aws", f"type: {cloud}"))
    note = f"the settings of machines of '{cloud}' are not known here and were not checked."
    assert any(note in one for one in report.notes)


def test_what_ray_alone_refuses_is_told_in_its_words(tmp_path, monkeypatch):
    change = ("container_name: farreach", 'container_name: ""')
    report, _ = edited(tmp_path, monkeypatch, "aws.yaml", change)
    assert report.problems == (
        "f.yaml: Ray refuses it: AssertionError: Must provide a container & image name",
    )


def test_machines_may_share_settings_by_merging(tmp_path, monkeypatch):
    text = (CLUSTER / "aws.yaml").read_text()
    text = text.replace(
        "    node_config:\n      InstanceType: m6i",
        "    node_config: &base\n      InstanceType: m6i",
    )
    text = text.replace(
        "    node_config:\n      InstanceType: g6.4xlarge",
        "    node_config:\n      <<: *base\n      InstanceType: g6.4xlarge",
    )
    report = report_of(tmp_path, monkeypatch, text)
    assert report.problems == ()
    assert [group.machine for group in report.plans[0].groups][2] == "g6.4xlarge"


def test_what_a_file_would_launch_is_said():
    ((tree, _),) = read_documents(CLUSTER / "aws.yaml", "aws.yaml")
    plan = launcher_plan(tree)
    spot = {"CPU": 16, "rollout": 14}
    learner = {"CPU": 16, "GPU": 1, "learner": 1}
    assert plan.groups == (
        Group("head", 1, 1, {"CPU": 0}, "m6i.2xlarge", head=True),
        Group("rollout", 0, 32, spot, "c7i.4xlarge", spot=True, idle_s=300),
        Group("learner", 0, 2, learner, "g6.4xlarge", idle_s=300),
    )
    assert (plan.room("rollout"), plan.room("learner")) == (32 * 14, 2)
    assert dict(plan.rows())["together"] == (
        "at most 34 workers, with room for 448 rollouts or 2 learners"
    )


def test_no_more_fit_than_the_whole_cluster_may_have(tmp_path, monkeypatch):
    report, _ = edited(tmp_path, monkeypatch, "aws.yaml", ("max_workers: 34", "max_workers: 10"))
    (plan,) = report.plans
    assert (plan.room("rollout"), plan.room("learner")) == (140, 2)
