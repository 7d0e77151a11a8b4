import json
import shutil

import numpy as np
import pytest
import torch

from farreach.data import wordpieces
from farreach.errors import ConfigError, DataError
from farreach.index.fusion import fused
from farreach.index.lexical import Bm25
from farreach.index.store import Index
from farreach_workloads.retrieval import indexes, words
from farreach_workloads.retrieval.embed import EmbedConfig, embed
from farreach_workloads.retrieval.encoder import Bag, EncoderConfig
from farreach_workloads.retrieval.hub import open_encoder, save_encoder
from farreach_workloads.retrieval.indexes import BuildConfig, FusionConfig
from farreach_workloads.retrieval.searcher import Searcher
from farreach_workloads.retrieval.snippets import marked, matched, places, snippet
from farreach_workloads.retrieval.tuning import TuneConfig, tune

TOPICS = {
    "mail": "server letters inbox spam delivers messages",
    "chess": "board king opponent plays pieces games",
    "sound": "music audio records plays tracks volume",
    "disk": "mounts partitions formats files storage drive",
}


def texts(count=40, seed=0):
    """Ids, texts of words of one topic, and the topic."""
    rng = np.random.default_rng(seed)
    names = list(TOPICS)
    for number in range(count):
        topic = names[number % len(names)]
        chosen = rng.choice(TOPICS[topic].split(), 5)
        yield f"d{number}", f"{topic} {' '.join(chosen)} number{number}", topic


def write(file, rows):
    lines = [
        {"_id": name, "title": f"About {topic}", "text": text, "topic": topic}
        for name, text, topic in rows
    ]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


def save_model(folder, width=64, seed=0):
    vocabulary = wordpieces.trained([text for _, text, _ in texts(100)], 400)
    torch.manual_seed(seed)
    config = EncoderConfig(kind="bag", width=width, positions=64)
    save_encoder(Bag(vocabulary.size, config).eval(), vocabulary, folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("bag") / "model")


def make(model, folder, rows, **settings):
    folder.mkdir()
    source = write(folder / "corpus.jsonl", rows)
    embed(model, source, folder / "vectors", EmbedConfig(stored="float32"))
    indexes.build(folder / "vectors", folder / "index", BuildConfig(**settings))
    return folder / "index"


@pytest.fixture
def index(model, tmp_path):
    return make(model, tmp_path / "made", texts())


def ids_of(found):
    return [[one.id for one in own] for own in found]


QUERIES = ["chess king", "a disk that mounts files"]


def test_dense_search_is_that_of_the_vectors_of_the_model(model, index):
    searcher = Searcher.open(index)
    encoder, vocabulary = open_encoder(model)
    rows = [f"About {topic} {text}" for _, text, topic in texts()]
    vectors = []
    for text in [*rows, *QUERIES]:
        ids = torch.tensor([[vocabulary.cls, *vocabulary.encode([text])[0], vocabulary.sep]])
        with torch.no_grad():
            vectors.append(encoder(ids, torch.tensor([ids.shape[1]]))[0].numpy())
    scores = np.array(vectors[len(rows) :]) @ np.array(vectors[: len(rows)]).T
    found = searcher.search(QUERIES, 6, mode="dense")
    for query, own in enumerate(found):
        order = np.argsort(-scores[query], kind="stable")[:6]
        assert [one.id for one in own] == [f"d{row}" for row in order]
        np.testing.assert_allclose([one.score for one in own], scores[query][order], rtol=1e-4)
        assert all(one.dense == one.score and one.lexical is None for one in own)
        assert [one.rank for one in own] == [1, 2, 3, 4, 5, 6]


def test_ids_that_are_there_are_named_before_anything_is_embedded(index, tmp_path, monkeypatch):
    more = write(tmp_path / "more.jsonl", [("new", "a clock", "time"), ("d3", "a lamp", "light")])
    with monkeypatch.context() as patch:
        patch.setattr(indexes, "embed", None)
        with pytest.raises(DataError, match=r"1 of the ids to add .* 'd3'.*\(replace=true\)"):
            indexes.add(index, more)
    assert indexes.add(index, more, ["replace=true"]) == 2
    assert not list(index.glob("added-*"))


def test_words_and_vectors_make_one_ranking(index):
    searcher = Searcher.open(index)
    searcher.fusion = FusionConfig(weight=0.3)
    dense = searcher.index.search(searcher.encode(QUERIES), 100)
    lexical = Bm25.open(next(index.glob("words-*"))).search(QUERIES, 100)
    expected = fused(dense, lexical, 5, 0.3)
    found = searcher.search(QUERIES, 5)
    assert ids_of(found) == [[f"d{row}" for row in own] for own in expected.rows]
    assert ids_of(searcher.search(QUERIES, 3)) == [own[:3] for own in ids_of(found)]
    by_words = searcher.search(QUERIES, 5, mode="lexical")
    assert ids_of(by_words) == [[f"d{row}" for row in own[:5]] for own in lexical.rows]
    assert {one.matched for one in by_words[0]} <= {("chess", "king"), ("chess",), ("king",)}


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_a_filter_holds_for_vectors_and_words(index, mode):
    searcher = Searcher.open(index)
    found = searcher.search(["plays chess"], 10, mode=mode, where="topic = 'sound'")[0]
    assert found
    assert {one.meta["topic"] for one in found} == {"sound"}
    assert len(found) == len({one.id for one in found})
    if mode == "lexical":  # of ten on sound, those that say "plays"
        assert len(found) == sum("plays" in t for _, t, topic in texts() if topic == "sound")


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_documents_come_and_go_in_every_mode(index, mode, tmp_path):
    top = Searcher.open(index).search(["chess king"], 2, mode=mode)[0]
    indexes.delete(index, [top[0].id])
    after = Searcher.open(index).search(["chess king"], 1, mode=mode)[0]
    assert after[0].id == top[1].id
    new = write(tmp_path / "new.jsonl", [("new", "chess king", "chess")])
    assert indexes.add(index, new) == 1
    assert Searcher.open(index).search(["chess king"], 1, mode=mode)[0][0].id == "new"
    newer = write(tmp_path / "newer.jsonl", [("new", "zeppelin disk drive", "disk")])
    with pytest.raises(DataError, match="are there already: 'new'"):
        indexes.add(index, newer)
    indexes.add(index, newer, ["replace=true"])
    assert Searcher.open(index).search(["chess king"], 1, mode=mode)[0][0].id == top[1].id
    indexes.compact(index, ["workers=0"])
    searcher = Searcher.open(index)
    assert searcher.documents == 40
    assert len(searcher.index.deleted) == 0
    assert searcher.search(["chess king"], 1, mode=mode)[0][0].id == top[1].id
    assert searcher.search(["zeppelin disk"], 1, mode=mode)[0][0].id == "new"
    assert not list(index.glob("added-*"))


def test_documents_in_passages_come_and_go_in_every_mode(model, tmp_path):
    rows = [(name, f"{text} " * 6, topic) for name, text, topic in texts(40)]
    embed(model, write(tmp_path / "corpus.jsonl", rows), tmp_path / "v", EmbedConfig(passage=10))
    indexes.build(tmp_path / "v", tmp_path / "i", BuildConfig())
    more = [("new0", "chess clocks " * 20, "chess"), ("d4", "mail clocks " * 20, "mail")]
    source = write(tmp_path / "more.jsonl", more)
    assert indexes.add(tmp_path / "i", source, ["replace=true"]) == 2
    indexes.delete(tmp_path / "i", ["d7"])
    searcher = Searcher.open(tmp_path / "i")
    assert searcher.documents == 40
    assert searcher.index.state.points > 3 * searcher.index.state.rows
    for mode in ("dense", "lexical", "hybrid"):
        found = [one.id for one in searcher.search(["clocks"], 2, mode=mode)[0]]
        assert sorted(found) == ["d4", "new0"]
        everything = searcher.search(["chess plays pieces"], 40, mode=mode)[0]
        names = [one.id for one in everything]
        assert len(set(names)) == len(names)
        assert "d7" not in names
    indexes.compact(tmp_path / "i")
    compact = Searcher.open(tmp_path / "i").search(["clocks"], 2)[0]
    assert sorted(one.id for one in compact) == ["d4", "new0"]
    facts = dict(indexes.facts(tmp_path / "i"))
    assert facts["documents"] == "40"
    assert "passage=10, whole=0.5" in facts["texts"]


def test_a_merged_index_is_that_of_all_documents(model, tmp_path):
    rows = list(texts())
    whole = make(model, tmp_path / "whole", rows)
    parts = [make(model, tmp_path / f"part{i}", rows[20 * i : 20 * i + 20]) for i in range(2)]
    indexes.merge(parts, tmp_path / "merged")
    one, other = Searcher.open(whole), Searcher.open(tmp_path / "merged")
    for mode in ("dense", "lexical", "hybrid"):
        assert ids_of(one.search(QUERIES, 8, mode=mode)) == ids_of(
            other.search(QUERIES, 8, mode=mode)
        )


def test_what_does_not_go_together_is_not_merged(model, tmp_path):
    rows = list(texts(8))
    first = make(model, tmp_path / "first", rows)
    same = make(model, tmp_path / "same", rows)
    with pytest.raises(DataError, match="8 ids belong to several documents"):
        indexes.merge([first, same], tmp_path / "merged")
    with pytest.raises(DataError, match="holds no index, or not a whole one yet"):
        Searcher.open(tmp_path / "merged")
    other = make(save_model(tmp_path / "other", seed=1), tmp_path / "foreign", rows)
    with pytest.raises(DataError, match="is of another model than"):
        indexes.merge([first, other], tmp_path / "merged2")


def test_a_model_that_is_not_the_index_s_is_refused(index, tmp_path):
    shutil.rmtree(index / "model")
    save_model(index / "model", seed=1)
    with pytest.raises(DataError, match="is not the model of the index's vectors"):
        Searcher.open(index)
    shutil.rmtree(index / "model")
    save_model(index / "model", width=32)
    with pytest.raises(DataError, match="makes vectors of 32 numbers, and the index has 64"):
        Searcher.open(index)


def test_wrong_questions_are_answered_with_what_is_wrong(index):
    searcher = Searcher.open(index)
    with pytest.raises(ConfigError, match="k=41: the index holds 40 documents"):
        searcher.search(["chess"], 41)
    with pytest.raises(DataError, match="query 1: is empty"):
        searcher.search(["chess", " "], 1)
    with pytest.raises(DataError, match="query 0: has half a character"):
        searcher.search(["che\ud83dss"], 1)
    with pytest.raises(DataError, match=r"nothing called 'topik'.*'topic'"):
        searcher.search(["chess"], 1, where="topik = 'x'")


def test_modes_side_by_side_find_what_each_finds_alone(index, monkeypatch):
    searcher, encoded = Searcher.open(index), []
    encode = searcher.encode
    monkeypatch.setattr(searcher, "encode", lambda queries: encoded.append(1) or encode(queries))
    found = searcher.compared("king opponent mail", 7, "topic != 'sound'")
    assert encoded == [1]
    assert list(found) == ["dense", "lexical", "hybrid"]
    for mode, hits in found.items():
        alone = searcher.search(["king opponent mail"], 7, mode=mode, where="topic != 'sound'")[0]
        assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in alone]
    with pytest.raises(ConfigError, match="Ask for 1 to so many"):
        searcher.compared("king", 0)


def test_without_words_vectors_alone_are_searched(model, tmp_path):
    index = make(model, tmp_path / "made", texts(), lexical=False)
    searcher = Searcher.open(index)
    assert ids_of(searcher.search(["chess"], 3)) == ids_of(
        searcher.search(["chess"], 3, mode="dense")
    )
    with pytest.raises(ConfigError, match="has no words to search by"):
        searcher.search(["chess"], 3, mode="hybrid")


def test_words_of_other_rows_are_not_used(index):
    indexes.delete(index, ["d1"])
    Index.open(index).compact()  # and then the process dies
    assert words.opened(Index.open(index)) is None
    assert Searcher.open(index).mode_for(None) == "dense"
    assert ("words", "out of date: compact the index") in list(indexes.facts(index))
    indexes.compact(index)
    assert Searcher.open(index).mode_for(None) == "hybrid"


def write_queries(folder, relevant):
    """A query for each topic, whose documents are relevant by a function of id, text and topic."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    rows = write(folder / "corpus.jsonl", texts()) and list(texts())
    queries = [{"_id": f"q{topic}", "text": f"{topic} {words}"} for topic, words in TOPICS.items()]
    (folder / "queries.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in queries))
    lines = ["query-id\tcorpus-id\tscore"]
    lines += [f"q{topic}\t{name}\t1" for name, text, topic in rows if relevant(name, text, topic)]
    (folder / "qrels" / "dev.tsv").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_the_weight_is_the_best_on_judged_queries_and_is_kept(index, tmp_path):
    queries = write_queries(tmp_path / "set", lambda name, text, topic: int(name[1:]) % 3 == 0)
    tuned = tune(index, queries, TuneConfig())
    assert tuned.curve[tuned.weight] == max(tuned.curve.values())
    assert set(tuned.curve) == {step / 10 for step in range(11)}
    assert indexes.fusion_of(index).weight == tuned.weight
    assert Searcher.open(index).fusion.tuned_by == f"{queries}, dev, 4 queries"
    assert tuned.recall is None


def test_queries_of_other_documents_tune_nothing(model, index, tmp_path):
    other = make(model, tmp_path / "other", [("x", "chess", "chess"), ("y", "disk", "disk")])
    queries = write_queries(tmp_path / "set", lambda *_: True)
    with pytest.raises(DataError, match="has none of the documents that"):
        tune(other, queries, TuneConfig())


def test_vectors_that_are_not_finished_build_no_index(tmp_path):
    (tmp_path / "vectors").mkdir()
    with pytest.raises(DataError, match="Run the embedding to its end"):
        indexes.build(tmp_path / "vectors", tmp_path / "index", BuildConfig())


def test_an_index_of_another_model_stays(index, tmp_path):
    source = write(tmp_path / "corpus.jsonl", texts(8))
    other = save_model(tmp_path / "other", seed=1)
    embed(other, source, tmp_path / "vectors", EmbedConfig())
    with pytest.raises(DataError, match="is of another model than"):
        indexes.build(tmp_path / "vectors", index, BuildConfig())
    assert Searcher.open(index).documents == 40


def test_words_of_the_query_are_found_whole_in_their_order():
    assert matched("The Kings of chess, the", "Chess for THE king") == ("the", "chess")
    assert places("a cat, a catalogue and a Cat", ["cat"]) == [(2, 5), (25, 28)]
    assert places("東京都の地図", ["京都"]) == [(1, 3)]
    assert marked("a cat sat", ["cat", "sat"], "<", ">") == "a <cat> <sat>"
    assert places("nothing", []) == []


def test_a_snippet_is_where_most_words_are():
    text = " ".join(["cat", *["filler"] * 60, "cat dog", *["filler"] * 60])
    shown = snippet(text, ["cat", "dog"], 100)
    assert "cat dog" in shown
    assert len(shown) <= 102
    assert shown.startswith("…filler")
    assert shown.endswith("filler…")
    assert snippet("short\n text", ["x"]) == "short text"
    assert snippet(text, [], 50).startswith("cat filler")
