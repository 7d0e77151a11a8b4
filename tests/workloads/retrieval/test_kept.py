"""A run and its checkpoint are all that is needed: what it began with may be gone."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from farreach import afterwards, launch
from farreach.errors import DataError
from farreach_workloads.retrieval.encoder import Bert, EncoderConfig
from farreach_workloads.retrieval.hub import open_encoder, save_encoder
from farreach_workloads.retrieval.kept import ENCODER, kept_encoder
from farreach_workloads.retrieval.models import fingerprint, open_model
from farreach_workloads.retrieval.rerank import Reranker

sys.path.insert(0, str(Path(__file__).parent))
from labelled_sets import COLOURS, beir, words

SHAPE = {"width": 16, "depth": 2, "heads": 2, "hidden": 32, "positions": 40}


@pytest.fixture
def start(tmp_path):
    """A folder with an encoder of a kind that no setting of a run says."""
    torch.manual_seed(0)
    vocabulary = words(tmp_path / "words")
    shape = EncoderConfig(**SHAPE, pooling="cls", normalised=True)
    encoder = Bert(vocabulary.size + 7, shape, types=3, epsilon=1e-6)
    encoder.train_up_to(24)
    save_encoder(encoder, vocabulary, tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def given(tmp_path):
    return [f"data.path={beir(tmp_path / 'set')}", f"data.cache={tmp_path / 'cache'}"]


def quality(run):
    return afterwards.evaluate(run.path)["evaluation/ndcg@10"]


def test_a_fine_tuned_encoder(tmp_path, given, start):
    settings = [*given, f"start={start}", "second=null", "training.epochs=2", "data.longest=8"]
    run = launch.train("retrieval/finetune_debian_debug", settings, run_dir=tmp_path / "run")
    before, found = fingerprint(*open_model(run.path)), quality(run)
    kept = (run.kept / ENCODER).read_text()
    (run.kept / ENCODER).unlink()  # as runs of earlier versions are
    assert kept_encoder(run) is None
    assert fingerprint(*open_model(run.path)) == before
    (run.kept / ENCODER).write_text(kept)
    shutil.rmtree(start)
    assert fingerprint(*open_model(run.path)) == before
    assert quality(run) == pytest.approx(found)
    assert "scores.png" in {file.name for file in afterwards.plot(run.path)}
    out = afterwards.export(run.path, tmp_path / "out", "hub")
    encoder, _ = open_encoder(out)
    assert (encoder.pooling, encoder.normalised, encoder.longest) == ("cls", True, 24)
    assert (encoder.segment.num_embeddings, encoder.norm.eps) == (3, 1e-6)
    assert len(encoder.words.weight) == 32

    (run.kept / ENCODER).write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(DataError, match=r"encoder\.json: model_type is 'gpt2'"):
        open_model(run.path)


def test_a_re_ranker(tmp_path, given, start):
    settings = [*given, f"start={start}", "training.epochs=0.5"]
    run = launch.train("retrieval/rerank_debian_debug", settings, run_dir=tmp_path / "run")
    texts = [f"{colour} car" for colour in COLOURS]
    before, found = Reranker.open(run.path).scores("red", texts), quality(run)
    shutil.rmtree(start)
    np.testing.assert_array_equal(Reranker.open(run.path).scores("red", texts), before)
    assert quality(run) == pytest.approx(found)
    assert afterwards.plot(run.path)
    assert afterwards.export(run.path, tmp_path / "out", "hub")


def test_a_pretrained_encoder(tmp_path, start):
    settings = [f"encoder.path={start}", f"data.cache={tmp_path / 'cache'}", "encoder.pooling=cls"]
    settings += ["spans.chunk=16", "training.epochs=0.02"]
    run = launch.train("retrieval/debian_debug", settings, run_dir=tmp_path / "run")
    before, found = fingerprint(*open_model(run.path)), quality(run)
    shutil.rmtree(start)
    assert fingerprint(*open_model(run.path)) == before
    assert quality(run) == pytest.approx(found)
    assert afterwards.export(run.path, tmp_path / "out", "hub")
