import sys

import pytest

from farreach.cli.jobs import with_shared_cache
from farreach.cli.main import main
from farreach.cluster import jobs
from farreach.cluster.jobs import Order

NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def count(tmp_path, monkeypatch):
    """A configuration, and the folder that has its workload."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "code").mkdir()
    (tmp_path / "code/shipped_counting.py").write_text(
        "from farreach.config import Config as Base\n"
        "class Config(Base):\n    name: str = 'c'\n    lr: float = 1.0\n"
        "def run(config, run, checkpoint): ...\n"
    )
    (tmp_path / "c.yaml").write_text("workload: shipped_counting\nlr: 0.5\n")
    return ["submit", "c.yaml", "--working-dir", "code", "--address", NOBODY]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lrr=1"], "lrr: unknown key. Did you mean 'lr'?"),
        (["lr=fast"], "command line 'lr=fast': lr:"),
        (["--run-dir", "runs/x"], "--run-dir runs/x: the job runs elsewhere. Give an absolute"),
        (["--root", "../shared"], "--root ../shared: the job runs elsewhere."),
        (["--driver-cpus", "-1"], "should be 0 or more (got '-1')"),
        (["--env", "A"], "should read NAME=VALUE (got 'A')"),
        (["--code", "git"], "invalid choice: 'git'"),
    ],
)
def test_what_is_wrong_is_said_before_anybody_is_asked(words, message, count, capsys):
    assert main([*count, *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert NOBODY not in shown.err
    assert shown.out == ""


def test_an_address_where_nobody_answers_is_one_error(count, capsys):
    assert main(count) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: no cluster answers at {NOBODY}: ")
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_caches_of_a_job_lie_beside_its_run_unless_it_says_where():
    whole = {"name": "x", "data": {"path": "p", "cache": "/here/runs/cache"}, "mix": {"alpha": 1}}
    said = {"name": "x", "data": {"path": "p"}}
    shared = with_shared_cache(said, whole, "/shared", None)
    assert shared == {"name": "x", "data": {"path": "p", "cache": "/shared/runs/cache"}}
    assert said == {"name": "x", "data": {"path": "p"}}
    for unused in (None, "~/farreach"):  # what --root is by default
        shared = with_shared_cache({}, whole, unused, "/shared/one")
        assert shared["data"]["cache"] == "/shared/cache"
    own = {"data": {"cache": "/mine"}}
    assert with_shared_cache(own, whole, "/shared", None) == own
    for root in ("s3://bucket/runs", "~/runs", None):
        assert with_shared_cache(said, whole, root, None) == said
    assert with_shared_cache({}, {"name": "x", "training": {"epochs": 3}}, "/shared", None) == {}


def test_caches_stay_where_they_are_when_a_job_is_submitted_again_with_its_run_directory():
    whole = {"name": "x", "data": {"path": "p", "cache": "runs/cache"}}
    first = with_shared_cache({}, whole, "/shared/farreach/", None)
    job = jobs._named(Order("x", {}, root="/shared/farreach/"), "x-1")
    for again in (job.run_dir, f"{job.run_dir}/"):  # with a slash, as shells complete it
        assert with_shared_cache({}, whole, "~/farreach", again) == first
