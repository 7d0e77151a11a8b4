import json
import math
import pickle
import unicodedata
from collections import Counter

import bm25s
import numpy as np
import pytest

from farreach.data.text import Document
from farreach.errors import ConfigError, DataError
from farreach.index.lexical import Bm25, marks, order_hash, words_of


def documents(*texts):
    return [Document(f"d{number}", "", text, {}) for number, text in enumerate(texts)]


def zipf(count, seed=0):
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, 301)
    drawn = [rng.choice(300, rng.integers(1, 30), p=shares / shares.sum()) for _ in range(count)]
    return [" ".join(f"w{word}" for word in words) for words in drawn]


def scores_by_the_formula(texts, query, k1, b):
    bags = [Counter(text.split()) for text in texts]
    lengths = [sum(bag.values()) for bag in bags]
    mean = sum(lengths) / len(lengths)
    totals = []
    for bag, length in zip(bags, lengths, strict=True):
        total = 0.0
        for word in query.split():
            having = sum(word in other for other in bags)
            idf = math.log(1 + (len(bags) - having + 0.5) / (having + 0.5))
            total += idf * bag[word] / (bag[word] + k1 * (1 - b + b * length / mean))
        totals.append(total)
    return np.array(totals)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The APT-get tool, v2.1; its_name", ["the", "apt", "get", "tool", "v2", "1", "its_name"]),
        ("", []),
        ("… — !?", []),
        ("Größe ÉTÉ Ünïcode", ["größe", "été", "ünïcode"]),
        ("cafe\u0301 noir", ["caf\u00e9", "noir"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("東京都 の 天気", ["東京", "京都", "の", "天気"]),
        ("Python言語3", ["python", "言語", "3"]),
        ("カタカナー・テスト", ["カタ", "タカ", "カナ", "ナー", "テス", "スト"]),
        ("か\u3099く", ["がく"]),
        ("한국어 말", ["한국", "국어", "말"]),
        ("\U0002000b\U0002000c\U0002000d", ["\U0002000b\U0002000c", "\U0002000c\U0002000d"]),
        ("❤\ufe0f x", ["x"]),
    ],
)
def test_words_of_a_text(text, words):
    assert words_of(text) == words


def test_marks_are_all_and_nothing_else():
    told = set()
    pieces = marks()
    for at in range(0, len(pieces), 3):
        assert pieces[at + 1] == "-"
        told |= set(range(ord(pieces[at]), ord(pieces[at + 2]) + 1))
    assert told == {c for c in range(0x110000) if unicodedata.category(chr(c)).startswith("M")}


def test_scores_by_hand(tmp_path):
    """N = 3, lengths 2, 3 and 1 with mean 2; "cat" is in two documents, "sat" in one."""
    index = Bm25.build(documents("the cat", "cat cat sat", "dog"), tmp_path / "a", k1=1.0, b=0.5)
    hits = index.search(["Cat sat"], 3)
    cat, sat = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    second = cat * 2 / (2 + 1.25) + sat / (1 + 1.25)
    first = cat / (1 + 1.0)
    assert hits.rows.tolist() == [[1, 0, -1]]
    assert hits.scores[0] == pytest.approx([second, first, -np.inf], abs=1e-6)


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (0.01, 0.0), (2.0, 1.0)])
def test_scores_are_those_of_the_formula(tmp_path, k1, b):
    texts = zipf(120)
    index = Bm25.build(documents(*texts), tmp_path / "a", k1, b)
    queries = ["w0 w1 w2", "w17 w17 w90", "w299 nothing w5", *zipf(10, seed=1)]
    hits = index.search(queries, 120)
    for number, query in enumerate(queries):
        expected = scores_by_the_formula(texts, query, k1, b)
        scores, rows = hits.of(number)
        assert sorted(rows.tolist()) == np.flatnonzero(expected).tolist()
        assert scores == pytest.approx(expected[rows], rel=1e-5)
        assert (np.diff(scores) <= 0).all()


def test_scores_are_those_of_the_library(tmp_path):
    texts, queries = zipf(200), zipf(20, seed=1)
    index = Bm25.build(documents(*texts), tmp_path / "a")
    library = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
    library.index([text.split() for text in texts], show_progress=False)
    hits = index.search(queries, 10)
    for number, query in enumerate(queries):
        scores = library.get_scores(query.split())
        best = sorted(range(200), key=lambda row: (-scores[row], row))[:10]
        found, rows = hits.of(number)
        assert rows.tolist() == [row for row in best if scores[row] > 0]
        assert found == pytest.approx(scores[rows], rel=1e-5)


def test_titles_count_as_text(tmp_path):
    given = [Document("a", "Red cat", "sleeps", {}), Document("b", "", "red dog", {})]
    hits = Bm25.build(given, tmp_path / "a").search(["cat"], 1)
    assert hits.rows.tolist() == [[0]]


def test_of_equal_documents_the_first_ones_are_found(tmp_path):
    index = Bm25.build(documents(*["same words"] * 50, "same words words"), tmp_path / "a")
    assert index.search(["words"], 4).rows.tolist() == [[50, 0, 1, 2]]


def test_what_no_document_has_finds_nothing(tmp_path):
    index = Bm25.build(documents("a b", "", "c"), tmp_path / "a")
    hits = index.search(["x y", "", "c x", "…"], 5)
    assert hits.rows.tolist() == [[-1] * 5, [-1] * 5, [2, -1, -1, -1, -1], [-1] * 5]
    assert np.isneginf(hits.scores[[0, 1, 3]]).all()
    assert index.search([], 5).rows.shape == (0, 5)
    with pytest.raises(DataError, match="k=0: there is nothing to search for"):
        index.search(["a"], 0)


@pytest.mark.parametrize("mmap", [True, False])
def test_an_index_is_opened_again(tmp_path, mmap):
    built = Bm25.build(documents(*zipf(60)), tmp_path / "a", k1=1.2, b=0.3)
    opened = Bm25.open(tmp_path / "a", mmap=mmap)
    sent = pickle.loads(pickle.dumps(opened))
    queries = zipf(5, seed=1)
    expected = built.search(queries, 7)
    for index in (opened, sent):
        hits = index.search(queries, 7)
        assert np.array_equal(hits.rows, expected.rows)
        assert np.array_equal(hits.scores, expected.scores)
        assert (index.documents, index.k1, index.b) == (60, 1.2, 0.3)
        assert index.order == order_hash(f"d{number}" for number in range(60))
        assert isinstance(index._bm25.scores["data"].base, np.memmap) == mmap
    assert len(pickle.dumps(opened)) < 500


def test_files_do_not_depend_on_the_order_of_sets(tmp_path):
    Bm25.build(documents("b a", "c a b"), tmp_path / "a")
    vocabulary = json.loads((tmp_path / "a" / "vocab.index.json").read_text())
    assert vocabulary == {"b": 0, "a": 1, "c": 2}


def test_the_order_of_ids_has_a_hash_of_its_own():
    assert order_hash(["a", "b"]) == order_hash(iter(["a", "b"]))
    assert len({order_hash(ids) for ids in (["a", "b"], ["b", "a"], ["ab"], ["", "ab"], [])}) == 5


def test_what_cannot_be_built_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="none of 2 documents has a word"):
        Bm25.build(documents("", "…"), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"k1=-1, b=0\.4"):
        Bm25.build(documents("a"), tmp_path / "a", k1=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: is there already"):
        Bm25.build(documents("a"), tmp_path / "file")
    with pytest.raises(DataError, match="cannot be written"):
        Bm25.build(documents("a"), tmp_path / "file" / "a")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    assert Bm25.build(documents("a"), tmp_path / "empty").documents == 1
    with pytest.raises(DataError, match="empty: is there already"):
        Bm25.build(documents("a"), tmp_path / "empty")


def test_what_is_no_index_is_refused(tmp_path):
    Bm25.build(documents("a"), tmp_path / "a")
    manifest = tmp_path / "a" / "manifest.json"
    whole = json.loads(manifest.read_text())
    (tmp_path / "a" / "data.csc.index.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"/a: cannot be read: .*Delete it and build it again"):
        Bm25.open(tmp_path / "a")
    manifest.write_text(json.dumps(whole | {"format": 2}))
    with pytest.raises(DataError, match="has the format 2, and 1 is read"):
        Bm25.open(tmp_path / "a")
    manifest.write_text(json.dumps(whole | {"kind": "vectors"}))
    with pytest.raises(DataError, match="is no index of words"):
        Bm25.open(tmp_path / "a")
    manifest.write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        Bm25.open(tmp_path / "a")
    with pytest.raises(DataError, match=r"absent/manifest\.json: cannot be read"):
        Bm25.open(tmp_path / "absent")
