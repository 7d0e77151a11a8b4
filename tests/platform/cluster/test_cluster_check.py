import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cluster_edits import CLUSTER, edited, line_of, report_of

from farreach.cli import main as cli
from farreach.cluster.check import check_file
from farreach.cluster.leaks import secrets
from farreach.errors import ConfigError


def test_the_command_says_what_a_file_would_launch(capsys):
    assert cli.main(["cluster", "check", str(CLUSTER / "aws.yaml")]) == 0
    out = capsys.readouterr().out.splitlines()
    path = CLUSTER / "aws.yaml"
    assert out[1:] == [
        f"{path}: a file of Ray's launcher, for aws",
        "  head      1 × m6i.2xlarge; runs no work",
        "  rollout   0 to 32 × c7i.4xlarge on spot; each 16 CPU, 14 rollout; removed after 5 min "
        "without work",
        "  learner   0 to 2 × g6.4xlarge; each 16 CPU, 1 GPU, 1 learner; removed after 5 min "
        "without work",
        "  together  at most 34 workers, with room for 448 rollouts or 2 learners",
        f"{path} is fine",
    ]
    line = line_of(path.read_text(), "ImageId: &image")
    assert out[0] == (
        f"note: {path}:{line}: available_node_types.head.node_config.ImageId: is still "
        "'CHANGE-ME-ami'. Fill it in."
    )


def test_all_problems_of_all_files_are_named_and_the_code_is_two(tmp_path, monkeypatch, capsys):
    for name, old, new in (
        ("aws.yaml", "upscaling_speed", "upscaling"),
        ("gcp.yaml", "rollout: 14", "rolout: 14"),
    ):
        text = (CLUSTER / name).read_text()
        (tmp_path / name).write_text(text.replace(old, new))
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cluster", "check", "aws.yaml", "gcp.yaml", "empty.yaml"]) == 2
    printed = capsys.readouterr()
    first, second, third = printed.err.splitlines()
    assert first.startswith("error: aws.yaml:")
    assert "upscaling: unknown key. Did you mean 'upscaling_speed'?" in first
    assert second.startswith("gcp.yaml:")
    assert third == "empty.yaml: is empty."
    assert "is fine" not in printed.out


def test_a_file_for_neither_is_told_so(tmp_path, monkeypatch):
    report = report_of(tmp_path, monkeypatch, "env_vars: {A: b}\n")
    assert report.problems == (
        "f.yaml: is neither for Ray's launcher (cluster_name, provider) nor for Kubernetes (kind).",
    )


def test_a_launcher_file_is_one_document(tmp_path, monkeypatch):
    text = (CLUSTER / "aws.yaml").read_text()
    report = report_of(tmp_path, monkeypatch, f"{text}---\n{text}")
    assert len(report.problems) == 2
    for problem in report.problems:
        assert problem.endswith("takes one document alone. Remove the lines with ---.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [\n", "f.yaml:2:1: malformed YAML: "),
        ("- a\n", "f.yaml: should hold a mapping of keys to values, but holds a list."),
        (
            "provider: {type: aws}\nprovider: {}\n",
            "f.yaml:2: provider: is written twice, first on ",
        ),
    ],
)
def test_what_is_no_yaml_is_an_error(text, message, tmp_path, monkeypatch):
    (tmp_path / "f.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_file(Path("f.yaml"))
    assert str(caught.value).startswith(message)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        check_file(tmp_path / "none.yaml")


def test_sections_of_the_wrong_kind_are_named_once(tmp_path, monkeypatch):
    text = "cluster_name: a\nmax_workers: 1\nprovider: aws\navailable_node_types: [a]\ndocker: 5\n"
    report = report_of(tmp_path, monkeypatch, text)
    told = [problem.partition(": ")[2] for problem in report.problems]
    for part in (
        'provider: should be a mapping of keys to values (got "aws").',
        'available_node_types: should be a mapping of keys to values (got ["a"]).',
        "docker: should be a mapping of keys to values (got 5).",
    ):
        assert told.count(part) == 1


@pytest.mark.parametrize(
    "text",
    [
        "kind: RayJob\napiVersion: ray.io/v1\nmetadata: 5\nspec: []\n",
        "kind: RayCluster\napiVersion: ray.io/v1\nmetadata: {name: a}\nspec: {headGroupSpec: 5,"
        " workerGroupSpecs: [5, {template: {spec: {containers: 7}}}, {rayStartParams: {x: 5}}]}"
        "\n",
        "kind: RayService\napiVersion: ray.io/v1\nmetadata: {name: a}\n"
        "spec: {serveConfigV2: '[1]', rayClusterConfig: {headGroupSpec: {template: []}}}\n",
        "kind: RayJob\napiVersion: ray.io/v1\nmetadata: {name: a}\n"
        "spec: {entrypoint: 5, runtimeEnvYAML: 5, rayClusterSpec: {autoscalerOptions: 5}}\n",
        "cluster_name: 5\nprovider: {type: 5}\nhead_node_type: 5\nmax_workers: a\n"
        "available_node_types: {a: 5, b: {resources: 5, node_config: 5, min_workers: a}}\n"
        "head_start_ray_commands: [5]\nworker_start_ray_commands: 5\nfile_mounts: 5\n",
        "cluster_name: a\nprovider: {type: local, worker_ips: 5, head_ip: 5}\ndocker: {image: 5}\n"
        "head_start_ray_commands: [\"ray start --head 'a\"]\n",
        "cluster_name: a\nprovider: {type: aws}\nhead_node_type: [head]\n"
        "available_node_types: {head: {}}\n",
        "kind: [RayJob]\napiVersion: ray.io/v1\n",
        "kind: {name: Service}\napiVersion: v1\n",
    ],
)  # fmt: skip
def test_nothing_that_can_be_written_ends_in_a_traceback(text, tmp_path, monkeypatch):
    report = report_of(tmp_path, monkeypatch, text)
    assert report.problems
    assert report.plans == ()


SECRETS = [
    ("a private key", "-----BEGIN OPENSSH PRIVATE KEY-----"),
    ("an access key of AWS", "AKIA" + "IOSFODNN7EXAMPLE"),
    ("a token of GitHub", "ghp_" + "a1" * 18),
    ("a token of Hugging Face", "hf_" + "a1" * 17),
    ("an API key of Google", "AIza" + "a1" * 17 + "x"),
    ("a signed token", "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abc"),
    ("a key of an Azure account", "AccountName=a;AccountKey=" + "ab" * 20 + "=="),
    ("a password in an address", "https://me:hunter2@example.org/wheels"),
    ("a secret in a command", "export RAY_AUTH_TOKEN=abcdef; ray start"),
    ("a secret in a command", "WANDB_API_KEY='abc' farreach train"),
]


@pytest.mark.parametrize(("what", "text"), SECRETS)
def test_a_secret_in_a_text_is_found_and_not_repeated(what, text):
    (finding,) = secrets({"setup_commands": ["true", text]})
    assert finding.path == ("setup_commands", 1)
    assert finding.message.startswith(f"holds {what}. Take it out and make a new one")
    assert text not in finding.message


@pytest.mark.parametrize(
    "tree",
    [
        {"provider": {"gcp_credentials": {"credentials": "abc"}}},
        {"aws_credentials": {"aws_secret_access_key": "abc"}},
        {"env": [{"name": "HF_TOKEN", "value": "abc"}]},
        {"redisPassword": {"value": "abc"}},
    ],
)
def test_the_value_of_a_secret_is_found_by_its_name(tree):
    assert len(list(secrets(tree))) == 1


@pytest.mark.parametrize(
    "tree",
    [
        {"file_mounts": {"~/.ray/auth_token": "~/.ray/auth_token"}},
        {
            "env": [
                {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "a", "key": "token"}}}
            ]
        },
        {"run": "export RAY_AUTH_TOKEN=$(cat ~/.ray/auth_token)"},
        {"run": 'export RAY_AUTH_TOKEN="$TOKEN"; RAY_AUTH_TOKEN_PATH=/run/token ray start'},
        {"MetadataOptions": {"HttpTokens": "required"}},
        {"authOptions": {"mode": "token", "secretName": "farreach"}},
        {"auth": {"ssh_private_key": "~/.ssh/id_ed25519"}},
        {"head": "http://10.0.0.1:8265/a:b@c"},
        {"serviceAccountToken": {"path": "token"}},
    ],
)
def test_where_a_secret_is_found_is_none(tree):
    assert list(secrets(tree)) == []


def test_a_secret_in_a_shipped_file_is_named_with_its_line(tmp_path, monkeypatch):
    change = ("--env=RAY_AUTH_MODE=token", "--env=RAY_AUTH_TOKEN=abcdef")
    report, text = edited(tmp_path, monkeypatch, "aws.yaml", change)
    line = line_of(text, "RAY_AUTH_TOKEN")
    assert any(
        one.startswith(f"f.yaml:{line}: docker.run_options.1: holds a secret in a command.")
        for one in report.problems
    )
