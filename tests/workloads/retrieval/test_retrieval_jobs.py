"""From text to a search that is measured, every step a job of a cluster that is running already."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farreach.testing.heads import ray_head
from farreach_workloads.retrieval.searcher import Searcher

ROOT = Path(__file__).resolve().parents[3]
RAY = Path(sys.executable).parent / "ray"
PATIENCE_S = 120.0
NOT_YET = ("No available agent", "Server disconnected")
TEXTS = {
    "mount": "attach the file system of a disk to a folder",
    "umount": "let go of a disk that is mounted",
    "fdisk": "cut a disk into parts, a disk at a time",
    "sox": "convert files of sound",
    "vim": "edit text in a terminal",
    "gimp": "edit pictures and photographs",
}


@pytest.fixture(scope="module")
def job():
    """Submits a command of farreach as docs/cluster.md says; what it printed, once it is done."""

    def done(*command):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            done = subprocess.run(
                [RAY, "job", "submit", "--address", address, "--working-dir", ".",
                 "--runtime-env", "cluster/runtime_env.yaml", "--",
                 "python", "-m", "farreach", *map(str, command)],
                cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S,
            )  # fmt: skip
            said = done.stdout + done.stderr
            # The dashboard answers some seconds before the agent that takes jobs has come up.
            # An overloaded machine's closes connections.
            if done.returncode == 0 or not any(text in said for text in NOT_YET):
                assert done.returncode == 0, said
                return said
            assert time.monotonic() < deadline
            time.sleep(1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        with ray_head() as address:
            yield done


@pytest.mark.ray
@pytest.mark.slow
def test_a_corpus_becomes_a_search_by_jobs_alone(job, tmp_path):
    corpus, run = tmp_path / "corpus", tmp_path / "run"
    (corpus / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": name, "text": text}) for name, text in TEXTS.items()]
    (corpus / "corpus.jsonl").write_text("\n".join(lines))
    (corpus / "queries.jsonl").write_text('{"_id": "q", "text": "edit pictures"}\n')
    (corpus / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tgimp\t1\n")
    vectors, index = tmp_path / "vectors", tmp_path / "index"

    job("train", "retrieval/debian_debug", "--run-dir", run, "runtime.workers=1")
    assert (run / "result.json").is_file()
    said = job("embed", run, corpus, vectors, "workers=2")
    assert "vectors" in said
    job("index", "build", vectors, index, "shards=2", "kind=ivf_flat", "lists=1", "workers=2")
    said = job("search", index, "files of sound", "--spread", "--json", "--mode", "lexical")
    (hits,) = [json.loads(line) for line in said.splitlines() if line.startswith('{"query"')]
    assert (hits["query"], hits["hits"][0]["id"]) == ("files of sound", "sox")
    job("evaluate", run, "search", f"path={corpus}", "workers=2")
    result = json.loads(next((run / "evaluations").glob("search*.json")).read_text())
    assert result["lexical/ndcg@10"] == 1

    other, later = tmp_path / "other.jsonl", tmp_path / "later.jsonl"
    other.write_text('{"_id": "bike", "text": "repair a bicycle"}\n')
    later.write_text('{"_id": "tea", "text": "make a cup of tea"}\n')
    settings = ("kind=ivf_flat", "lists=1")
    job("embed", run, other, tmp_path / "vectors_other")
    job("index", "build", tmp_path / "vectors_other", tmp_path / "index_other", *settings)
    job("index", "merge", index, tmp_path / "index_other", tmp_path / "merged")
    job("index", "add", tmp_path / "merged", later, "workers=1")
    job("index", "delete", tmp_path / "merged", "vim", "gimp")
    searcher = Searcher.open(tmp_path / "merged")
    found = {hit.id for hit in searcher.search(["tea bicycle"], searcher.documents)[0]}
    assert found == {*TEXTS, "bike", "tea"} - {"vim", "gimp"}
