import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from cluster_edits import CLUSTER, edited, line_of, report_of

from farreach.cluster.kuberay import kuberay_plan
from farreach.cluster.plan import Group
from farreach.yaml_source import read_documents

JOB = "kuberay/rayjob.yaml"
CLUSTER_FILE = "kuberay/raycluster.yaml"
SERVICE = "kuberay/rayservice.yaml"
SPOT = 'nodeSelector: {cloud.google.com/gke-spot: "true"} # EKS, AKS: see docs/cluster.md'
DROPPED = "Kubernetes would drop it without a word."
ROLLOUTS = """resources: '"{\\"rollout\\": 14}"'"""
# What is wrong → file, the text that is replaced, by what, what begins in the line that is named
# then, what is said of it, and of what follows from it.
MISTAKES = yaml.safe_load(Path(__file__).with_name("kuberay_mistakes.yaml").read_text())


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_how_to_mend_it(what, tmp_path, monkeypatch):
    case = MISTAKES[what]
    report, text = edited(tmp_path, monkeypatch, case["file"], (case["old"], case["new"]))
    expected = f"f.yaml:{line_of(text, case['at'])}: {case['says']}"
    assert expected in report.problems
    others = [one.partition(": ")[2] for one in report.problems if one != expected]
    assert others == case.get("also", [])
    assert report.plans == ()


def test_a_service_without_applications_serves_nothing(tmp_path, monkeypatch):
    text = (CLUSTER / SERVICE).read_text()
    begin, end = text.index("  serveConfigV2"), text.index("  rayClusterConfig")
    report = report_of(tmp_path, monkeypatch, text[:begin] + text[end:])
    (problem,) = report.problems
    assert problem.endswith(": spec.serveConfigV2: is missing: what is to be served?")


def test_an_upgrade_in_steps_wants_a_cluster_that_grows(tmp_path, monkeypatch):
    strategy = {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": {
            "gatewayClassName": "istio",
            "stepSizePercent": 5,
            "intervalSeconds": 9,
        },
    }
    tree = yaml.safe_load((CLUSTER / SERVICE).read_text())
    tree["spec"]["upgradeStrategy"] = strategy
    assert report_of(tmp_path, monkeypatch, yaml.safe_dump(tree)).problems == ()
    del tree["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"]
    del tree["spec"]["rayClusterConfig"]["autoscalerOptions"]
    (problem,) = report_of(tmp_path, monkeypatch, yaml.safe_dump(tree)).problems
    assert problem.endswith(
        "spec.upgradeStrategy.type: NewClusterWithIncrementalUpgrade needs "
        "rayClusterConfig.enableInTreeAutoscaling: true."
    )


def test_a_job_by_the_clock_has_a_shorter_name(tmp_path, monkeypatch):
    tree = yaml.safe_load((CLUSTER / JOB).read_text())
    tree |= {"kind": "RayCronJob", "spec": {"schedule": "0 3 * * *", "jobTemplate": tree["spec"]}}
    tree["metadata"]["name"] = "a" * 36
    assert report_of(tmp_path, monkeypatch, yaml.safe_dump(tree)).problems == ()
    tree["metadata"]["name"] = "a" * 37
    (problem,) = report_of(tmp_path, monkeypatch, yaml.safe_dump(tree)).problems
    assert problem.endswith("metadata.name: has 37 characters; KubeRay takes at most 36.")


WARNINGS = [
    (
        JOB,
        ('      RAY_JOB_STOP_WAIT_TIME_S: "120"', '      OTHER: "1"'),
        "spec.runtimeEnvYAML: sets no RAY_JOB_STOP_WAIT_TIME_S: a job that is stopped has 3 s for "
        'its last checkpoint. Write env_vars: {RAY_JOB_STOP_WAIT_TIME_S: "120"}.',
    ),
    (
        JOB,
        ("  shutdownAfterJobFinishes: true\n  ttlSecondsAfterFinished: 600\n", ""),
        "spec.shutdownAfterJobFinishes: is not true: the cluster stays, and costs, when the job is "
        "done.",
    ),
    (
        CLUSTER_FILE,
        ("version: v2", "version: v1"),
        "spec.autoscalerOptions.version: v1 knows no idle time and no priority of a group. Write "
        "v2.",
    ),
    (
        CLUSTER_FILE,
        ("      maxReplicas: 32\n", ""),
        "spec.workerGroupSpecs.0.maxReplicas: is missing: the group could grow without end. Write "
        "it.",
    ),
    (
        CLUSTER_FILE,
        ('cpu: "15", memory: 28Gi', 'cpu: "7", memory: 28Gi'),
        "spec.workerGroupSpecs.0.rayStartParams: 14 rollouts on 7 CPUs: a rollout takes at least "
        "one of its own.",
    ),
    (
        SERVICE,
        ("  serveConfigV2", "  serveService: {spec: {type: LoadBalancer}}\n  serveConfigV2"),
        "spec.serveService.spec.type: LoadBalancer lets everybody outside of the cluster ask the "
        "service, which knows no users.",
    ),
]


@pytest.mark.parametrize("case", WARNINGS, ids=range(len(WARNINGS)))
def test_what_is_hardly_meant_is_a_warning(case, tmp_path, monkeypatch):
    name, change, message = case
    report, _ = edited(tmp_path, monkeypatch, name, change)
    assert report.problems == ()
    assert [one.partition(": ")[2] for one in report.warnings] == [message]
    assert len(report.plans) == 1


def test_another_command_than_farreach_is_not_looked_at(tmp_path, monkeypatch):
    command = "farreach train goals/walk_maze --run-dir /shared/runs/walk_maze --continue"
    report, text = edited(tmp_path, monkeypatch, JOB, (command, "python mine.py"))
    line = line_of(text, "entrypoint")
    note = f"f.yaml:{line}: spec.entrypoint: does not run `farreach train`, and was not looked at."
    assert note in report.notes
    assert report.problems == ()


def test_a_run_in_a_bucket_outlives_its_pods(tmp_path, monkeypatch):
    change = ("--run-dir /shared/runs/walk_maze", "--run-dir s3://bucket/runs/walk_maze")
    report, _ = edited(tmp_path, monkeypatch, JOB, change)
    assert report.problems == ()


def test_resources_beside_the_start_parameters_need_no_quoting(tmp_path, monkeypatch):
    change = (f"rayStartParams:\n        {ROLLOUTS}", 'resources: {CPU: "15", rollout: "14"}')
    report, _ = edited(tmp_path, monkeypatch, CLUSTER_FILE, change)
    assert report.problems == ()
    assert report.plans[0].groups[1].resources == {"CPU": 15, "rollout": 14}


def test_other_kinds_in_the_same_file_are_checked_or_said_not_to_be(tmp_path, monkeypatch):
    text = (CLUSTER / "kuberay/storage.yaml").read_text()
    text += "---\nkind: ConfigMap\napiVersion: v1\nmetadata: {nam: x}\ndata: {a: b}\n"
    text += "---\n---\nkind: Deployment\napiVersion: apps/v1\n"
    report = report_of(tmp_path, monkeypatch, text)
    (problem,) = report.problems
    assert problem.endswith(f"metadata.nam: unknown key. Did you mean 'name'? {DROPPED}")
    assert any("a Deployment is not known here and was not checked." in one for one in report.notes)


def test_a_secret_in_a_file_is_refused(tmp_path, monkeypatch):
    text = "kind: Secret\napiVersion: v1\nmetadata: {name: x}\nstringData: {auth_token: abc}\n"
    report = report_of(tmp_path, monkeypatch, text)
    assert report.problems[0] == (
        "f.yaml:4: stringData: is a secret in a file. Make it by `kubectl create secret generic "
        "NAME --from-literal=KEY=…` instead, and make a new one: this one has been read."
    )


def test_what_a_file_would_launch_is_said():
    ((tree, _),) = read_documents(CLUSTER / JOB, JOB)
    plan = kuberay_plan(tree)
    image = "CHANGE-ME-registry/farreach:0.1.0"
    rollouts = {"CPU": 15, "rollout": 14}
    learner = {"CPU": 15, "GPU": 1, "learner": 1}
    assert plan.title == "a RayJob for KubeRay: walk-maze"
    assert plan.groups == (
        Group("head", 1, 1, {"CPU": 0}, image, head=True),
        Group("rollout", 0, 32, rollouts, image, spot=True, idle_s=300),
        Group("learner", 0, 2, learner, image, idle_s=300),
    )
    assert (plan.room("rollout"), plan.room("learner")) == (448, 2)


def test_ray_makes_the_same_node_types_of_it():
    from ray.autoscaler._private.kuberay import autoscaling_config

    ((tree, _),) = read_documents(CLUSTER / CLUSTER_FILE, CLUSTER_FILE)
    tree["metadata"]["namespace"] = "default"
    config = autoscaling_config._derive_autoscaling_config_from_ray_cr(tree)
    types = config["available_node_types"]
    assert (config["max_workers"], config["idle_timeout_minutes"]) == (34, 5)
    assert types["rollout"]["max_workers"] == 32
    assert types["rollout"]["resources"] == {"CPU": 15, "rollout": 14, "memory": 28 * 2**30}
    assert types["learner"]["resources"]["learner"] == 1
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
