import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from farreach import afterwards, launch
from farreach.errors import ConfigError, DataError
from farreach_workloads.retrieval import miner, mining
from farreach_workloads.retrieval.encoder import Bag, EncoderConfig
from farreach_workloads.retrieval.jobs import EmbedConfig
from farreach_workloads.retrieval.labelled import rows_of
from farreach_workloads.retrieval.miner import in_common
from farreach_workloads.retrieval.mining import MiningConfig, mine, mined_file
from farreach_workloads.retrieval.supervision import LabelledConfig, source_of

sys.path.insert(0, str(Path(__file__).parent))
from labelled_sets import beir, context, lines, words

# Scores for the question "red": the share of a text's words that are red.
TEXTS = {
    "gold": "red hat",  # ½
    "same": "Red   hat",  # ½, reads as the answer
    "long": "hat red fish",  # ⅓, holds all words of the answer
    "high": "red",  # 1
    "best": "red cup door",  # ⅓
    "next": "red cup door fish",  # ¼
    "last": "tree lamp",  # 0
}
ROW = {"question": "red", "positive_ctxs": [context("red hat")], "negative_ctxs": [context("cup")]}


def one_hot(size):
    encoder = Bag(size, EncoderConfig(kind="bag", width=size, positions=20)).eval()
    with torch.no_grad():
        encoder.word.weight.copy_(torch.eye(size))
    return encoder


@pytest.fixture
def found(tmp_path):
    """Mines with some settings; the names of the hard negatives, scores and what is told."""
    vocabulary = words(tmp_path / "words")
    corpus = [{"_id": name, "text": text} for name, text in TEXTS.items()]
    config = LabelledConfig(
        path=str(lines(tmp_path / "rows.jsonl", [ROW, ROW | {"positive_ctxs": []}])),
        corpus=str(lines(tmp_path / "corpus.jsonl", corpus)),
        cache=str(tmp_path / "cache"),
    )

    def mined(**settings):
        out = tmp_path / "mined.jsonl"
        embedding = EmbedConfig(stored="float32")
        told = mine(
            one_hot(vocabulary.size),
            vocabulary,
            source_of(config),
            MiningConfig(embedding=embedding, **settings),
            out,
            tmp_path / "cache",
        )
        (record,) = [json.loads(line) for line in out.read_text().splitlines()]
        assert {name: record[name] for name in ("question",)} == {"question": "red"}
        hard = record["hard_negative_ctxs"]
        return [one["id"] for one in hard], [one["score"] for one in hard], told, out

    return mined


def test_what_may_answer_is_left_out(found):
    """Above 0.95 · ½ is "high"; "long" has all two of the answer's words, "best" has one of two."""
    names, scores, told, out = found()
    assert names == ["best", "next", "last"]
    assert scores == pytest.approx([1 / 3, 1 / 4, 0], abs=1e-6)
    assert told == {
        "mining/questions": 1,
        "mining/negatives": 3,
        "mining/questions_without": 0,
        "mining/left_out_as_answers": 2,
        "mining/left_out_as_near_an_answer": 2,
        "mining/left_out_by_score": 0,
        "mining/answered_at_once": 0,
    }
    (row,) = rows_of(out, "")
    assert [one.text for one in row.negatives] == ["cup"]
    assert [one.text for one in row.positives] == ["red hat"]


def test_each_limit_can_be_lifted(found):
    """In the order of scores, and of the corpus: high, gold, same, long, best, next, last."""
    assert found(overlap=None)[0] == ["long", "best", "next", "last"]
    assert found(overlap=None)[2]["mining/left_out_by_score"] == 1
    assert found(overlap=None, guard=None)[0] == ["high", "long", "best", "next", "last"]
    assert found(overlap=None, guard=0.6)[0] == ["next", "last"]
    assert found(overlap=None, guard=None, passed_over=1, depth=5)[0] == ["long", "best"]
    assert found(overlap=0.4)[0] == ["last"]
    assert found(keep=2)[0] == ["best", "next"]
    assert found(keep=9)[0] == ["best", "next", "last"]
    assert found(depth=3)[2]["mining/questions_without"] == 1


def test_negatives_by_words_are_in_the_order_of_bm25_and_guarded_by_vectors(found):
    """Of those with "red" the shortest are first; the guard is at 0.95 · ½ of the encoder."""
    names, scores, told, _ = found(by="words", overlap=None)
    assert names == ["long", "best", "next"]  # "last" has no word of the question
    assert told["mining/left_out_by_score"] == 1  # "high"
    assert scores == sorted(scores, reverse=True)
    # One word in six of seven documents; lengths over their mean of 17 / 7.
    of_word = math.log(1 + (7 - 6 + 0.5) / (6 + 0.5))
    by_hand = [of_word / (1 + 0.9 * (0.6 + 0.4 * size * 7 / 17)) for size in (3, 3, 4)]
    assert scores == pytest.approx(by_hand, abs=1e-5)
    everything = found(by="words", overlap=None, guard=None)[0]
    assert everything == ["high", "long", "best", "next"]
    assert found(by="words")[0] == ["best", "next"]


def test_words_in_common_count_by_the_text_with_fewer():
    others = [np.array(one, np.int32) for one in ([1, 2], [1, 2, 3, 4], [7], [], [4, 5, 9])]
    shares = in_common(np.array([1, 2, 4], np.int32), others, 10)
    np.testing.assert_allclose(shares, [1, 1, 0, 0, 1 / 3])


def test_an_interruption_leaves_no_file(tmp_path, found):
    found()
    rows = tmp_path / "rows.jsonl"
    (tmp_path / "mined.jsonl").unlink()
    rows.write_text(rows.read_text() + "{oops\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3"):
        found()
    assert not [entry for entry in tmp_path.iterdir() if "mined" in entry.name]


def mined_from(tmp_path, cache, name, **settings):
    """Mines for the hundred questions of a set; the file."""
    vocabulary = words(tmp_path / "words")
    folder = tmp_path / "set"
    config = LabelledConfig(path=str(folder if folder.exists() else beir(folder)))
    embedding = EmbedConfig(stored="float32", **settings)
    config_ = MiningConfig(embedding=embedding, depth=12, guard=None)
    out, source = tmp_path / name, source_of(config)
    told = mine(one_hot(vocabulary.size), vocabulary, source, config_, out, tmp_path / cache)
    return out.read_bytes(), told


@pytest.mark.ray
def test_actors_find_what_this_process_does(tmp_path, ray_local, monkeypatch):
    monkeypatch.setattr(mining, "ASKED", 9)
    alone, told = mined_from(tmp_path, "cache", "alone.jsonl")
    assert told["mining/questions"] == 100
    together = mined_from(tmp_path, "other", "together.jsonl", workers=2)
    assert together == (alone, told)
    assert not list((tmp_path / "other").glob("mined-*-parts"))
    monkeypatch.setattr(mining, "ASKED", 1000)
    assert mined_from(tmp_path, "third", "whole.jsonl") == (alone, told)


def test_what_was_found_before_an_interruption_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "ASKED", 9)
    expected = mined_from(tmp_path, "cache", "whole.jsonl")
    records, searched = miner.Miner.records, []

    def counted(self, rows):
        searched.append(len(rows))
        if len(searched) == 5:
            raise KeyboardInterrupt
        return records(self, rows)

    monkeypatch.setattr(miner.Miner, "records", counted)
    with pytest.raises(KeyboardInterrupt):
        mined_from(tmp_path, "other", "broken.jsonl")
    assert not (tmp_path / "broken.jsonl").exists()
    assert mined_from(tmp_path, "other", "broken.jsonl") == expected
    assert len(searched) == 5 + 8  # of twelve blocks four were done


def test_another_model_text_or_setting_gives_another_file(tmp_path):
    vocabulary = words(tmp_path / "words")
    source = source_of(LabelledConfig(path=str(beir(tmp_path / "set"))))
    encoder = one_hot(vocabulary.size)

    def name(config=None, source=source):
        return mined_file(encoder, vocabulary, source, config or MiningConfig(), tmp_path).name

    first = name()
    assert name() == first
    elsewhere = EmbedConfig(longest=256, workers=2, budget=100)
    assert name(MiningConfig(embedding=elsewhere)) == first
    assert name(MiningConfig(depth=100)) != first
    assert name(MiningConfig(embedding=EmbedConfig(longest=9))) != first
    with torch.no_grad():
        encoder.word.weight[3, 3] = 2
    second = name()
    assert second != first
    queries = tmp_path / "set" / "queries.jsonl"
    queries.write_text(queries.read_text().replace("car red", "car  red"))
    assert name() != second


def test_nothing_is_mined_where_there_are_no_texts(tmp_path):
    vocabulary = words(tmp_path / "words")
    source = source_of(LabelledConfig(path=str(lines(tmp_path / "rows.jsonl", [ROW]))))
    with pytest.raises(ConfigError, match="hard negatives need texts to be found in"):
        mined_file(one_hot(vocabulary.size), vocabulary, source, MiningConfig(), tmp_path)


def test_a_run_mines_for_another_one(tmp_path):
    folder = beir(tmp_path / "set")
    words(tmp_path / "words")
    settings = [
        f"data.path={folder}",
        f"data.words={tmp_path / 'words'}",
        f"data.cache={tmp_path / 'cache'}",
        "second=null",
    ]
    debug = "retrieval/finetune_debian_debug"
    run = launch.train(debug, settings, run_dir=tmp_path / "run")
    told = afterwards.evaluate(run.path, what="mine", words=["guard=null", "depth=12"])
    assert told["mining/questions"] == 100
    out = run.path / "mined-3.jsonl"
    rows = list(rows_of(out, ""))
    assert all(1 <= len(row.hard) <= 12 for row in rows)
    settings += [f"data.path={out}", f"data.corpus={folder}", f"probe.path={folder}"]
    settings += [f"data.dev={folder}", "data.split=dev", "data.hard_ratio=1", "data.negatives=3"]
    again = launch.train(debug, settings, run_dir=tmp_path / "again")
    assert json.loads(again.result_path.read_text())["dev/questions"] == 12
    other = lines(tmp_path / "other.jsonl", [ROW])
    words_ = [f"path={other}", f"corpus={folder}", f"out={tmp_path / 'x.jsonl'}", "guard=null"]
    assert afterwards.evaluate(run.path, what="mine", words=words_)["mining/questions"] == 1
    assert (tmp_path / "x.jsonl").is_file()
