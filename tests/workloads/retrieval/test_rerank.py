import hashlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from farreach import afterwards, launch
from farreach.errors import ConfigError, DataError
from farreach.learn.place import Place
from farreach_workloads.retrieval.candidates import Candidates, CandidatesConfig
from farreach_workloads.retrieval.cross_encoder import (
    CrossEncoder,
    open_cross_encoder,
    pair_of,
    save_cross_encoder,
    scores_of,
    stacked,
)
from farreach_workloads.retrieval.encoder import Bag, Bert, EncoderConfig
from farreach_workloads.retrieval.evaluation import trec
from farreach_workloads.retrieval.evaluation.beir import open_beir
from farreach_workloads.retrieval.evaluation.measures import measured_run
from farreach_workloads.retrieval.hub import save_encoder
from farreach_workloads.retrieval.rerank import Reranker
from farreach_workloads.retrieval.rerank_task import list_loss

sys.path.insert(0, str(Path(__file__).parent))
from labelled_sets import COLOURS, THINGS, beir, context, lines, words

DEBUG = "retrieval/rerank_debian_debug"
SIZES = {"width": 16, "depth": 2, "heads": 2, "hidden": 32, "positions": 40}


def theirs(folder, labels=1, seed=0):
    """A folder of transformers with random weights, and the model."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=25,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        num_labels=labels,
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for value in model.parameters():  # norms and biases begin as ones and zeros
            value.add_(0.2 * torch.randn_like(value))
    model.save_pretrained(folder)
    words(folder)
    return model


def logits(model, pairs):
    """One pair after the other, without padding."""
    found = []
    for pair in pairs:
        ids = torch.from_numpy(pair.ids).long()[None]
        types = (torch.arange(ids.shape[1]) >= pair.first).long()[None]
        with torch.no_grad():
            found.append(model(input_ids=ids, token_type_ids=types).logits[0])
    return torch.stack(found)


def random_pairs(vocabulary, count=30):
    rng = np.random.default_rng(0)
    return [
        pair_of(*(rng.integers(5, 25, rng.integers(1, 15)).astype(np.int32) for _ in range(2)),
                vocabulary, 40)
        for _ in range(count)
    ]  # fmt: skip


def test_scores_and_gradients_are_those_of_transformers(tmp_path):
    model = theirs(tmp_path / "theirs")
    ours, vocabulary = open_cross_encoder(tmp_path / "theirs")
    pairs = random_pairs(vocabulary)
    expected = logits(model, pairs)[:, 0]
    assert float(expected.std()) > 0.05
    np.testing.assert_allclose(scores_of(ours, pairs, budget=100), expected, rtol=1e-4, atol=1e-5)
    pair = pairs[0]
    ours(*stacked([pair])).sum().backward()
    ids = torch.from_numpy(pair.ids).long()[None]
    types = (torch.arange(ids.shape[1]) >= pair.first).long()[None]
    model(input_ids=ids, token_type_ids=types).logits.sum().backward()
    torch.testing.assert_close(
        ours.bert.segment.weight.grad,
        model.bert.embeddings.token_type_embeddings.weight.grad,
        rtol=1e-4,
        atol=1e-5,
    )


def test_two_classes_give_their_difference(tmp_path):
    model = theirs(tmp_path / "theirs", labels=2)
    ours, vocabulary = open_cross_encoder(tmp_path / "theirs")
    pairs = random_pairs(vocabulary, 5)
    expected = logits(model, pairs)
    np.testing.assert_allclose(
        scores_of(ours, pairs), expected[:, 1] - expected[:, 0], rtol=1e-4, atol=1e-5
    )
    theirs(tmp_path / "three", labels=3)
    with pytest.raises(DataError, match="Name a model with one score, or with two classes"):
        open_cross_encoder(tmp_path / "three")


def test_a_question_is_asked_of_texts(tmp_path):
    model = theirs(tmp_path / "theirs")
    reranker = Reranker.open(tmp_path / "theirs")
    texts = ["red car", "blue", "fish " * 60]
    vocabulary = words(tmp_path / "theirs")
    asked, *read = vocabulary.encode(["red hat", *texts])
    expected = logits(model, [pair_of(asked, one, vocabulary, 40) for one in read])[:, 0]
    found = reranker.scores("red hat", texts)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reranker.scores("red hat", texts[::-1]), found[::-1], rtol=1e-4)
    assert reranker.scores("red hat", []).shape == (0,)


def test_a_pair_is_cut_where_it_is_too_long(tmp_path):
    vocabulary = words(tmp_path)
    question, text = vocabulary.encode(["red " * 9, "car " * 9])
    assert vocabulary.text(pair_of(question[:2], text[:1], vocabulary, 40).ids) == (
        "[CLS] red red [SEP] car [SEP]"
    )
    pair = pair_of(question, text, vocabulary, 10)
    assert (vocabulary.text(pair.ids), pair.first) == (
        "[CLS] red red red [SEP] car car car car [SEP]", 5,
    )  # fmt: skip
    assert len(pair_of(question[:1], text, vocabulary, 10).ids) == 10


def test_what_is_written_opens_elsewhere_and_here(tmp_path):
    vocabulary = words(tmp_path / "words")
    torch.manual_seed(0)
    ours = CrossEncoder(Bert(25, EncoderConfig(**SIZES))).eval()
    with torch.no_grad():
        for value in ours.parameters():
            value.add_(0.2 * torch.randn_like(value))
    out = tmp_path / "out"
    save_cross_encoder(ours, vocabulary, out)
    pairs = random_pairs(vocabulary, 6)
    expected = scores_of(ours, pairs)
    again, _ = open_cross_encoder(out)
    np.testing.assert_array_equal(scores_of(again, pairs), expected)
    model = BertForSequenceClassification.from_pretrained(out).eval()
    np.testing.assert_allclose(logits(model, pairs)[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert not [path for path in out.iterdir() if "sentence" in path.name or path.is_dir()]
    with pytest.raises(ConfigError, match="is there already"):
        save_cross_encoder(ours, vocabulary, out)


def test_an_encoder_alone_is_no_re_ranker(tmp_path):
    vocabulary = words(tmp_path / "words")
    save_encoder(Bert(25, EncoderConfig(**SIZES)), vocabulary, tmp_path / "encoder")
    with pytest.raises(DataError, match=r"has no weights 'bert\.pooler\.dense\.weight'"):
        open_cross_encoder(tmp_path / "encoder")
    with pytest.raises(ConfigError, match="a re-ranker needs a BERT"):
        CrossEncoder(Bag(25, EncoderConfig(kind="bag", width=4)))


def test_the_loss_of_lists_by_hand():
    """One of three with scores 1, 0, 2, and one of two with 0, 3 whose second does not count."""
    scores = torch.tensor([1.0, 0.0, 2.0, 0.0, 3.0])
    excluded = torch.tensor([False, False, False, False, True])
    loss, accuracy = list_loss(scores, torch.tensor([3, 2]), excluded)
    first = -math.log(math.e / (math.e + 1 + math.e**2))
    assert loss.item() == pytest.approx(first / 2, rel=1e-6)
    assert float(accuracy) == 0.5
    loss, _ = list_loss(scores, torch.tensor([3, 2]), excluded & False)
    second = math.log(1 + math.e**3)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_hits_change_places_and_none_is_lost(tmp_path):
    """The document d1 is the question d1 itself; of the others the third is right."""
    texts = {"d1": "red hat", "d2": "red cup", "d3": "red", "d4": "red door fish", "d5": "blue"}
    lines(tmp_path / "corpus.jsonl", [{"_id": n, "text": t} for n, t in texts.items()])
    lines(tmp_path / "queries.jsonl", [{"_id": "d1", "text": "red"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nd1\td4\t1\nd1\td1\t1")
    vocabulary = words(tmp_path / "words")
    config = CandidatesConfig(depth=3)
    candidates = Candidates(tmp_path, config, vocabulary, 20, tmp_path / "cache")
    # By BM25 the shortest text is first, and the longest last.
    assert candidates.hits.rows.tolist() == [[2, 1, 3]]
    found = candidates.measured(np.array([[0.0, -1.0, 5.0]], np.float32))
    assert found["first/ndcg@10"] == pytest.approx(1 / math.log2(4))
    assert found["evaluation/ndcg@10"] == 1
    assert found["first/recall@3"] == found["evaluation/recall@3"] == 1
    assert candidates.ranks(np.array([[0.0, -1.0, 5.0]])) == ([3], [1])
    # Of equal scores d4 comes before d3 and d2, as in the files that are kept.
    equal = np.zeros((1, 3), np.float32)
    assert candidates.ranks(equal) == ([3], [1])
    assert candidates.measured(equal)["evaluation/mrr@10"] == 1
    assert trec.ranked(candidates.runs(equal)[1]) == {"d1": ["d4", "d3", "d2"]}
    unchanged = candidates.measured(np.array([[3.0, 2.0, 1.0]], np.float32))
    assert unchanged["evaluation/ndcg@10"] == unchanged["first/ndcg@10"]
    scores = candidates.scores(CrossEncoder(Bert(25, EncoderConfig(**SIZES))).eval(), Place())
    assert np.isfinite(scores).all()
    fewer = Candidates(tmp_path, CandidatesConfig(depth=9), vocabulary, 20, tmp_path / "cache")
    assert fewer.hits.rows[0, 3:].tolist() == [-1] * 6
    scores = fewer.scores(CrossEncoder(Bert(25, EncoderConfig(**SIZES))).eval(), Place())
    assert np.isneginf(scores[0, 3:]).all()
    idle = SimpleNamespace(rank=1, world=2, device=torch.device("cpu"), sum=lambda values: values)
    model = CrossEncoder(Bert(25, EncoderConfig(**SIZES))).eval()
    assert (candidates.scores(model, idle) == 0).all()  # more workers than questions


@pytest.fixture
def given(tmp_path):
    words(tmp_path / "words")
    return [
        f"data.path={beir(tmp_path / 'set')}",
        f"data.words={tmp_path / 'words'}",
        f"data.cache={tmp_path / 'cache'}",
    ]


def test_a_re_ranker_learns_and_goes_on(tmp_path, given):
    """What is gold answers: the one of four that has the word."""
    rows = [
        {
            "question": thing,
            "positive_ctxs": [context(f"gold {other}")],
            "negative_ctxs": [context(f"{colour} {other}") for colour in COLOURS[:3]],
        }
        for thing in THINGS
        for other in THINGS
    ]
    path = lines(tmp_path / "rows.jsonl", rows)
    settings = [f"data.path={path}", "data.dev=null", f"probe.path={tmp_path / 'set'}"]
    settings += ["data.questions=80", "training.epochs=10", "training.evaluate_every_epochs=10"]
    settings += ["training.lr=0.01", "encoder.dropout=0"]
    run = launch.train(DEBUG, [*given, *settings], run_dir=tmp_path / "run")
    found = json.loads(run.result_path.read_text())
    assert found["training/updates"] == 100
    lines_ = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    last = [line for line in lines_ if "learner/loss" in line][-1]
    assert last["learner/loss"] < 0.2 * math.log(4)
    assert last["data/negatives"] == 3
    assert [file.name for file in afterwards.plot(run.path)] == ["ranks.png"]
    again = afterwards.evaluate(run.path)
    assert again["evaluation/ndcg@10"] == pytest.approx(found["evaluation/ndcg@10"])
    more = [f"path={tmp_path / 'set'}", "split=dev", "depth=30", "queries=6"]
    more = afterwards.evaluate(run.path, what="rerank", words=more)
    assert more["evaluation/questions"] == 6
    assert more["evaluation/recall@30"] == more["first/recall@30"]
    (out,) = (run.path / "evaluations").glob("rerank-set-dev-*")
    about = json.loads((out / "about.json").read_text())
    assert about["metrics"]["evaluation/questions"] == 6
    digest = hashlib.sha256((tmp_path / "set" / "corpus.jsonl").read_bytes()).hexdigest()
    assert about["files"]["corpus.jsonl"] == digest
    relevant = open_beir(tmp_path / "set", "dev").relevant
    for name, group in (("first", "first"), ("reranked", "evaluation")):
        found = trec.ranked(trec.read_run(out / f"{name}.run"))
        values = measured_run(found, {q: relevant[q] for q in found}, {"mrr": [10]})
        assert values["mrr@10"].mean() == pytest.approx(more[f"{group}/mrr@10"])
    out = afterwards.export(run.path, tmp_path / "out", "hub")
    texts = [f"{colour} car" for colour in COLOURS]
    scores = Reranker.open(out).scores("hat red", texts)
    assert scores.argmax() == COLOURS.index("gold")
    np.testing.assert_array_equal(Reranker.open(run.path).scores("hat red", texts), scores)
    for start in (out, run.path):
        slow = [*given, f"start={start}", "training.lr=1e-9", "training.epochs=0.3"]
        kept = launch.train(DEBUG, slow, run_dir=tmp_path / f"from-{start.name}")
        np.testing.assert_allclose(
            Reranker.open(kept.path).scores("hat red", texts), scores, rtol=1e-4, atol=1e-5
        )


def test_an_encoder_can_be_the_first_stage_and_the_start(tmp_path, given):
    torch.manual_seed(0)
    encoder = Bert(25, EncoderConfig(**SIZES))
    save_encoder(encoder, words(tmp_path / "words"), tmp_path / "encoder")
    start = f"start={tmp_path / 'encoder'}"
    run = launch.train(DEBUG, [*given, start, "training.lr=1e-9"], run_dir=tmp_path / "run")
    state = afterwards.find_checkpoint(run, "newest").part("learner")["model"]
    np.testing.assert_allclose(state["bert.word.weight"], encoder.word.weight.detach(), atol=1e-6)
    settings = [f"first={tmp_path / 'encoder'}", "split=dev", "depth=100"]
    found = afterwards.evaluate(run.path, what="rerank", words=settings)
    assert found["first/recall@100"] == found["evaluation/recall@100"] == 1


def test_what_a_run_names_is_found_from_any_folder(tmp_path, given, monkeypatch):
    """Workers begin in other folders, and whoever goes on with a run may be elsewhere."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_encoder(Bert(25, EncoderConfig(**SIZES)), words(tmp_path / "words"), tmp_path / "encoder")
    settings = ["start=encoder", "probe.path=set", "probe.first=encoder", "training.lr=1e-9"]
    run = launch.train(DEBUG, [*given, *settings], run_dir=tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = json.loads(run.result_path.read_text())
    again = afterwards.evaluate(run.path)
    assert again["evaluation/ndcg@10"] == pytest.approx(found["evaluation/ndcg@10"])
    assert Reranker.open(run.path).scores("red hat", ["red hat"]).shape == (1,)


def test_rows_without_negatives_teach_nothing(tmp_path, given):
    path = lines(
        tmp_path / "rows.jsonl",
        [{"question": colour, "positive_ctxs": [context(colour)]} for colour in COLOURS],
    )
    with pytest.raises(ConfigError, match="there is no corpus to draw some from"):
        launch.check(DEBUG, [*given[1:], f"data.path={path}", "data.dev=null", "training.batch=2"])
    with pytest.raises(DataError, match="200 questions at a time, of 24"):
        launch.check(DEBUG, [*given, "training.batch=200"])
