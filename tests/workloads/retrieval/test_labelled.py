import gzip
import json
import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from farreach.data.text import Document
from farreach.errors import DataError
from farreach_workloads.retrieval.labelled import LabelledData, NegativesConfig, Row, rows_of
from farreach_workloads.retrieval.labelled_store import LabelledStore, build, key_of

sys.path.insert(0, str(Path(__file__).parent))
from labelled_sets import COLOURS, beir, context, lines, words

ROW = {
    "question": "red hat",
    "positive_ctxs": [{"title": "red", "text": "hat", "id": 7}, context("hat red")],
    "hard_negative_ctxs": [context("red cup")],
    "answers": ["no key of ours"],
}


def documents(*texts):
    return tuple(Document("", "", text) for text in texts)


def made(tmp_path, rows, corpus=(), held_out=()):
    return build(rows, held_out, corpus, tmp_path / "store", words(tmp_path / "words"))


def data_of(tmp_path, store, longest=256, seed=0, **config):
    rows = np.arange(store.count)
    settings = NegativesConfig(**config)
    return LabelledData(store, rows, settings, words(tmp_path / "words"), longest, seed)


def texts_of(tmp_path, store, numbers):
    vocabulary = words(tmp_path / "words")
    return [" ".join(vocabulary.tokens(store.text(int(number)))) for number in numbers]


def test_rows_are_read_from_every_layout(tmp_path):
    other = {"question": "blue", "positive_ctxs": [], "negative_ctxs": None}
    plain = lines(tmp_path / "rows.jsonl", [ROW, other])
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes() + b"\n\n"))
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps([ROW, other], indent=2))
    first, second = found = list(rows_of(plain, "train"))
    assert found == list(rows_of(packed, "train")) == list(rows_of(listed, "train"))
    assert [one.whole for one in first.positives] == ["red hat", "hat red"]
    assert first.positives[0].id == "7"
    assert (first.negatives, [one.text for one in first.hard]) == ((), ["red cup"])
    assert second == Row("blue", ())
    (tmp_path / "empty.json").write_text(" [ ] ")
    assert list(rows_of(tmp_path / "empty.json", "")) == []


def test_a_folder_gives_the_questions_of_a_split_with_the_best_answers_first(tmp_path):
    folder = beir(tmp_path)
    judged = "query-id\tcorpus-id\tscore\nq3\td1\t1\nq3\td2\t2\nq3\td4\t0\nq5\td5\t0\n"
    (folder / "qrels" / "test.tsv").write_text(judged)
    first, second = rows_of(folder, "test")
    assert first.question == "door red"
    assert [one.id for one in first.positives] == ["d2", "d1"]
    assert second.positives == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": " "}, "'question' is to be a text, not ' '"),
        ({"question": 3}, "'question' is to be a text, not 3"),
        ({"positive_ctxs": {}}, "'positive_ctxs' is to be a list"),
        ({"negative_ctxs": ["x"]}, "number 1 of 'negative_ctxs' is to be an object"),
        ({"positive_ctxs": [context("x"), context(" ")]}, "number 2 of 'positive_ctxs'"),
        ({"positive_ctxs": [{"title": 3, "text": "x"}]}, "number 1 of 'positive_ctxs'"),
    ],
)
def test_a_malformed_row_is_refused_with_file_and_line(tmp_path, change, said):
    path = lines(tmp_path / "rows.jsonl", [ROW, ROW, ROW | change])
    with pytest.raises(DataError, match=f"rows.jsonl, line 3: .*{said}"):
        list(rows_of(path, ""))


def test_what_is_no_json_is_refused_with_file_and_line(tmp_path):
    for name, content, said in (
        ("a.jsonl", '{"question": "x"}\n', "a.jsonl, line 1: has no 'positive_ctxs'"),
        ("b.jsonl", json.dumps(ROW) + "\n{oops\n", "b.jsonl, line 2: is no JSON"),
        ("c.json", f"[\n{json.dumps(ROW)},\n\n {{oops]", "c.json, line 4: is no JSON"),
        ("d.json", f"[\n{json.dumps(ROW)}\n{json.dumps(ROW)}]", "line 2: no comma follows"),
        ("e.json", json.dumps(ROW), "e.json: is to be a list of rows"),
        ("f.json", "[\n[]]", "f.json, line 2: is no object"),
        ("g.csv", "", "g.csv: is of no known layout"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=said):
            list(rows_of(tmp_path / name, ""))
    with pytest.raises(DataError, match="cannot be read"):
        list(rows_of(tmp_path / "absent.json", ""))


def test_texts_that_read_alike_have_the_same_key():
    assert key_of("Red–hat ") == key_of("red-hat")
    assert key_of("red  \n hat") == key_of("Red hat")
    assert key_of("red hat") != key_of("hat red")
    assert 0 <= key_of("") < 1 << 63


def test_every_text_is_kept_once_and_read_from_the_disk(tmp_path):
    rows = [
        Row("red", documents("red hat", "red hat"), documents("blue hat"), documents("cup")),
        Row("pink", ()),
        Row("red", documents("blue hat")),
    ]
    store = made(tmp_path, rows, documents("cup", "red hat", "cup", "tree"), rows[:1])
    assert (store.count, store.held_out, store.skipped) == (2, 1, 1)
    assert len(store.keys) == 5
    assert texts_of(tmp_path, store, store.questions) == ["red", "red", "red"]
    assert texts_of(tmp_path, store, store.positives.of(0)) == ["red hat"]
    assert texts_of(tmp_path, store, store.negatives.of(0)) == ["blue hat"]
    assert texts_of(tmp_path, store, store.positives.of(1)) == ["blue hat"]
    assert store.hard.of(1).tolist() == []
    assert texts_of(tmp_path, store, store.corpus) == ["cup", "red hat", "tree"]
    again = pickle.loads(pickle.dumps(store))
    assert isinstance(again.keys, np.memmap)
    np.testing.assert_array_equal(again.text(1), store.text(1))


def test_a_store_that_is_there_is_not_made_again(tmp_path):
    made(tmp_path, [Row("red", documents("red hat"))])

    def never():
        raise AssertionError
        yield

    assert made(tmp_path, never()).count == 1
    (tmp_path / "store" / "keys.npy").unlink()
    with pytest.raises(DataError, match="Delete it to have it made again"):
        LabelledStore(tmp_path / "store")


def test_rows_without_answers_alone_leave_nothing_behind(tmp_path):
    with pytest.raises(DataError, match="no row has a text that answers it"):
        made(tmp_path, [Row("red", ())])
    assert [entry.name for entry in tmp_path.iterdir()] == ["words"]


def test_negatives_are_drawn_by_lot(tmp_path):
    """Of two, each is hard with ½, but there is one hard one beyond the first, and one other.

    So none is hard in a quarter of cases, and then there is one negative alone.
    """
    rows = [Row("red", documents("red hat"), documents("cup"), documents("door", "fish"))]
    store = made(tmp_path, rows, documents("tree"))
    data = data_of(tmp_path, store, negatives=2, hard_ratio=0.5, hard_from=1)
    drawn = [
        tuple(texts_of(tmp_path, store, data.draw(0, position).negatives))
        for position in range(1000)
    ]
    counts = Counter(drawn)
    assert set(counts) == {("cup",), ("cup", "fish")}
    assert counts["cup",] / 1000 == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 1000) ** 0.5)


def test_each_answer_is_drawn_as_often_and_negatives_never_twice(tmp_path):
    rows = [Row("red", documents("red hat", "hat"), documents(*COLOURS[1:5]))]
    store = made(tmp_path, rows)
    data = data_of(tmp_path, store, negatives=3)
    drawn = [data.draw(0, position) for position in range(1000)]
    counts = Counter(texts_of(tmp_path, store, [one.gold])[0] for one in drawn)
    assert counts["hat"] == pytest.approx(500, abs=4 * 250**0.5)
    assert {len(set(one.negatives.tolist())) for one in drawn} == {3}
    firsts = Counter(int(one.negatives[0]) for one in drawn)
    assert all(count == pytest.approx(250, abs=4 * 188**0.5) for count in firsts.values())


def test_rows_without_negatives_draw_from_the_corpus_what_does_not_answer(tmp_path):
    rows = [Row("red", documents("red hat", "cup")), Row("blue", documents("cup"))]
    store = made(tmp_path, rows, documents("Red  hat", "cup", "tree", "door"))
    data = data_of(tmp_path, store, negatives=4)
    for position in range(50):
        for row, others in ((0, ["door", "tree"]), (1, ["door", "red hat", "tree"])):
            found = texts_of(tmp_path, store, data.draw(row, position).negatives)
            assert sorted(found) == others


def test_negatives_can_be_what_answers_other_questions(tmp_path):
    rows = [Row("red", documents("red hat")), Row("blue", documents("cup")), *[
        Row("pink", documents(text)) for text in ("tree", "door", "Red hat")]]  # fmt: skip
    store = made(tmp_path, rows, documents("fish", "bird", "cup"))
    data = data_of(tmp_path, store, negatives=9, pool="answers")
    drawn = [texts_of(tmp_path, store, data.draw(0, position).negatives) for position in range(50)]
    assert {text for texts in drawn for text in texts} == {"cup", "tree", "door"}


def test_a_batch_has_right_texts_first_and_depends_on_positions_alone(tmp_path):
    rows = [
        Row("red", documents("red hat", "hat")),
        Row("blue cup", documents("cup"), documents("door")),
        Row("pink", documents("hat"), documents("door", "fish", "bird", "tree"), documents("lamp")),
    ]
    store = made(tmp_path, rows)
    data = data_of(tmp_path, store, negatives=3)
    batch = data.batch(np.array([1, 0, 2]), np.array([5, 6, 7]))
    vocabulary = words(tmp_path / "words")
    keys = [vocabulary.text(row[:length]) for row, length in zip(
        batch["key"].tolist(), batch["key_length"].tolist(), strict=True)]  # fmt: skip
    assert keys[0] == "[CLS] cup [SEP]"
    assert keys[2:4] == ["[CLS] hat [SEP]", "[CLS] door [SEP]"]
    assert len(keys) == 3 + 1 + 0 + 3
    assert batch["query_length"].tolist() == [4, 3, 3]
    assert next(iter(batch)) == "query"
    assert batch["key_text"][2] == key_of("hat")
    assert batch["answers"].tolist() == [
        [key_of("cup"), key_of("cup")],
        [key_of("red hat"), key_of("hat")],
        [key_of("hat"), key_of("hat")],
    ]
    again = data.batch(np.array([2]), np.array([7]))
    whole = {row[1] for row in batch["key"][4:].tolist()}
    assert {row[1] for row in again["key"][1:].tolist()} == whole
    other = data_of(tmp_path, store, negatives=3, seed=1)
    assert any(
        data.draw(2, position).negatives.tolist() != other.draw(2, position).negatives.tolist()
        for position in range(10)
    )


def test_long_texts_are_cut(tmp_path):
    store = made(tmp_path, [Row(" ".join(COLOURS), documents("red hat"))])
    batch = data_of(tmp_path, store, longest=5, negatives=0).batch(np.array([0]), np.array([0]))
    vocabulary = words(tmp_path / "words")
    assert vocabulary.text(batch["query"][0].tolist()) == "[CLS] red blue green [SEP]"
