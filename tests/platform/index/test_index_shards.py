import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from farreach.actors.services import ActorService
from farreach.errors import ActorError, ClusterError
from farreach.index import shards
from farreach.index.kinds import IndexConfig
from farreach.index.shards import RemoteShards
from farreach.index.store import Index
from farreach.index.vectors import Vectors

pytestmark = pytest.mark.ray


def language(i):
    return {"lang": "de" if i % 3 else "en"}


@pytest.fixture
def make(embedded, tmp_path):
    def build(vectors, kind, *, workers=0, shards=2):
        settings = {"kind": kind, "lists": 10, "probes": 4, "shards": shards}
        folder = tmp_path / "vectors"
        if not folder.exists():
            embedded("vectors", vectors, meta=language)
        name = f"{kind}-{shards}-{workers}"
        config = IndexConfig.model_validate(settings)
        return Index.build(folder, tmp_path / name, config, workers)

    return build


def same(one, other):
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_shards_that_tasks_built_are_those_that_one_process_builds(ray_local, clustered, make):
    vectors, queries = clustered(900), clustered(9, seed=1)
    there = make(vectors, "ivf_flat", workers=2)
    same(there.search(queries, 10), make(vectors, "ivf_flat").search(queries, 10))
    assert len(there.state.shards) == 2


def test_vectors_to_train_on_come_from_all_parts(embedded, clustered):
    """Of vectors in the order of their first number, as of a corpus that is sorted."""
    vectors = clustered(8000)
    vectors = vectors[np.argsort(vectors[:, 0])]
    held = Vectors.open(embedded("sorted", vectors, parts=7))
    config = IndexConfig(kind="ivf_fastscan", lists=4, samples_per_list=50)
    sample = shards._sample(held, config)
    assert sample.shape == (800, 32)
    rows = np.searchsorted(vectors[:, 0], sample[:, 0])
    np.testing.assert_array_equal(vectors[rows], sample)
    # Of 800 of 8,000 drawn uniformly a tenth lies in each tenth, give or take 3.5 deviations.
    counts = np.histogram(rows, bins=10, range=(0, 8000))[0]
    assert (np.abs(counts - 80) < 3.5 * np.sqrt(800 * 0.1 * 0.9)).all()


def test_actors_find_what_this_process_finds_to_the_bit(ray_local, embedded, clustered, make):
    index, queries = make(clustered(900), "ivf_flat"), clustered(9, seed=1)
    index.delete(["d3", "d500"])
    index.add(embedded("new", clustered(50, seed=2), prefix="n", meta=language))
    with index.serve() as remote:
        for where in (None, "lang = 'de'", "id in ('d7', 'n9')"):
            same(
                remote.search(queries, 10, where=where, model="0123abcd"),
                index.search(queries, 10, where=where),
            )
        found = remote.search(queries, 1)
        assert remote.ids(found.rows[0]) == index.ids(found.rows[0])
        assert remote.documents(found.rows[0]) == index.documents(found.rows[0])


@pytest.mark.slow
def test_shards_are_on_several_machines_of_which_one_may_be_lost(clustered, make, tmp_path):
    index = make(clustered(900), "ivf_flat")
    np.save(tmp_path / "queries.npy", clustered(9, seed=1))
    script = Path(__file__).with_name("spread_search.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, script, index.path, tmp_path / "queries.npy"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"nodes": [2, 2], "same": [True, True]}
    assert "no longer answers" in done.stderr
    assert "another takes its place" in done.stderr


def test_an_actor_that_dies_is_started_again_but_not_forever(
    ray_local, clustered, make, monkeypatch
):
    queries, started = clustered(3, seed=1), []
    expected = make(clustered(900), "flat", shards=1).search(queries, 10)

    class Watched(ActorService):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr("farreach.index.shards.ActorService", Watched)
    with make(clustered(900), "flat").serve() as remote:
        same(remote.search(queries, 10), expected)
        os.kill(started[1].wait_until_ready(), signal.SIGKILL)
        same(remote.search(queries, 10), expected)
        assert len(started) == 3
        monkeypatch.setattr(RemoteShards, "_start", lambda self, number: self._services[number])
        monkeypatch.setattr(ActorService, "wait_until_ready", lambda self: 0)
        ray.kill(started[0]._actor)
        with pytest.raises(ActorError, match="the actor of shard 0 died 3 times in one search"):
            remote.search(queries, 1)


def test_more_shards_than_the_cluster_has_cpus_are_refused(ray_local, clustered, make):
    index = make(clustered(300), "flat", shards=9)
    problem = r"asks for 9 CPUs and Ray has 4\. Lower shards, num_cpus"
    with pytest.raises(ClusterError, match=problem), index.serve():
        pass
