"""Machines that share no cache make the same of a text, each once, or say why they cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from farreach import config as configs
from farreach import launch
from farreach.cli.main import main
from farreach.errors import ConfigError, DataError
from farreach_workloads.retrieval import pretrain, stores

MINI = "retrieval/debian_mini_debug"
SMALL = ("data.vocabulary=1500", "probe.documents=120")


def config_of(cache, *overrides):
    return configs.load(configs.find(MINI), [f"data.cache={cache}", *SMALL, *overrides]).config


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    """A cache as the driver leaves it."""
    cache = tmp_path_factory.mktemp("driver")
    stores.prepare(config_of(cache))
    return cache


def contents(cache):
    """Of words and tokens, by file; a manifest has the times of the text."""
    files = [*cache.glob("words-*/*"), *cache.glob("tokens-*/*.bin"), *cache.glob("tokens-*/*.doc")]
    return {file.relative_to(cache): file.read_bytes() for file in files}


def test_a_worker_on_a_machine_without_the_tokens_makes_the_same(drivers, tmp_path):
    config = config_of(tmp_path / "own")
    own = pretrain.make_task(config)
    shared = pretrain.make_task(config_of(drivers))
    positions = np.arange(20)
    ours, theirs = (task.data.batch(positions, positions) for task in (own, shared))
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)
    assert contents(tmp_path / "own") == contents(drivers)
    assert {file.suffix for file in contents(drivers)} >= {".json", ".bin", ".doc"}


def test_of_several_processes_on_a_machine_one_makes_them(tmp_path):
    program = (
        "import sys\n"
        "from farreach import config as configs\n"
        "from farreach_workloads.retrieval import stores\n"
        "config = configs.load(configs.find(sys.argv[1]), sys.argv[2:]).config\n"
        "words = stores.words_of(config)\n"
        "print(sum(store.tokens for store in stores.opened(config, words).values()))\n"
    )
    words = [sys.executable, "-c", program, MINI, f"data.cache={tmp_path / 'own'}", *SMALL]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    several = [
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    printed = [process.communicate(timeout=120)[0] for process in several]
    assert [process.returncode for process in several] == [0, 0, 0]
    assert sum("words     training" in text for text in printed) == 1
    assert len({text.splitlines()[-1] for text in printed}) == 1
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.use_:DeprecationWarning")  # settings of Ray Data
def test_a_run_whose_workers_find_no_cache_ends_as_one_whose_do(
    drivers, tmp_path, monkeypatch, ray_local
):
    words = [*SMALL, "runtime.workers=2", "training.epochs=2", "training.epoch_updates=2"]
    whole = launch.train(MINI, [f"data.cache={drivers}", *words], run_dir=tmp_path / "whole")

    def fit(config, *rest):
        """As on workers that do not see what the driver has made."""
        shutil.rmtree(config.data.cache)
        return fitted(config, *rest)

    fitted = pretrain.fit
    monkeypatch.setattr(pretrain, "fit", fit)
    cache = tmp_path / "own"
    away = launch.train(MINI, [f"data.cache={cache}", *words], run_dir=tmp_path / "run")
    name = "evaluation/ndcg@10"
    assert away.read_result()[name] == whole.read_result()[name]
    assert contents(cache) == contents(drivers)


def test_a_vocabulary_that_would_be_another_on_each_machine_is_refused(tmp_path, monkeypatch):
    config = config_of(tmp_path, "data.kind=unigram")
    monkeypatch.setattr(stores, "_is_worker", lambda: True)
    with pytest.raises(DataError, match=r"words-.*: is not on this machine.*Put data\.cache on"):
        stores.words_of(config)
    monkeypatch.setattr(stores, "_is_worker", lambda: False)
    assert stores.words_of(config).size == 1500
    monkeypatch.setattr(stores, "_is_worker", lambda: True)
    assert stores.words_of(config).size == 1500


@pytest.mark.ray
def test_an_actor_is_a_worker_and_a_driver_is_none(ray_local):
    actor = ray_local.remote(num_cpus=0)(_Asked).remote()
    assert ray_local.get(actor.is_worker.remote())
    assert not stores._is_worker()
    ray_local.kill(actor)


class _Asked:
    def is_worker(self):
        return stores._is_worker()


def test_a_cache_at_a_uri_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for config in (MINI, "retrieval/finetune_debian_debug", "goals/fresh_maze_debug"):
        with pytest.raises(ConfigError, match=r"data\.cache: s3://bucket/cache is a URI, and a"):
            launch.check(config, ["data.cache=s3://bucket/cache"])
    given = ["train", MINI, "data.cache=s3://bucket/cache", "--run-dir", "run"]
    assert main(given) == 2
    assert "Name a folder: one that all machines share" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_cache_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/cache: cannot be written: Not a directory"):
        stores.words_of(config_of(tmp_path / "file" / "cache"))
