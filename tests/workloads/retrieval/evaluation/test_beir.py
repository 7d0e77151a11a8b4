import hashlib
import json
import logging

import pytest

from farreach.errors import DataError
from farreach_workloads.retrieval.evaluation.beir import (
    macro_average,
    open_beir,
    parts_of,
    problems_in,
)

HEADER = "query-id\tcorpus-id\tscore\n"
CORPUS = [{"_id": f"d{n}", "title": f"Title {n}", "text": f"text {n}"} for n in range(4)]
QUERIES = [{"_id": "q2", "text": "second"}, {"_id": "q1", "text": "first"}]
QUERIES += [{"_id": "q3", "text": "not judged"}]
QRELS = "q1\td0\t1\nq1\td1\t0\nq2\td3\t2\n"


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def put(path, corpus=CORPUS, queries=QUERIES, qrels=QRELS, split="test", header=HEADER):
    (path / "qrels").mkdir(parents=True, exist_ok=True)
    for name, content in (("corpus", corpus), ("queries", queries)):
        text = content if isinstance(content, str) else lines(content)
        (path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (path / "qrels" / f"{split}.tsv").write_text(header + qrels, encoding="utf-8")
    return path


def test_a_set_is_opened(tmp_path):
    found = open_beir(put(tmp_path))
    assert found.queries == {"q2": "second", "q1": "first"}
    assert list(found.queries) == list(found.relevant) == ["q2", "q1"]
    assert found.relevant == {"q1": {"d0": 1, "d1": 0}, "q2": {"d3": 2}}
    assert (found.split, found.count) == ("test", 4)
    assert (found.unknown_queries, found.unknown_documents) == (0, 0)
    assert found.hashes == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
    }
    read = list(found.documents())
    assert [document.id for document in read] == ["d0", "d1", "d2", "d3"]
    assert read[0].whole == "Title 0 text 0"
    assert problems_in(tmp_path) == []


def test_judgements_may_have_the_form_of_trec(tmp_path):
    qrels = "q1 0 d0 1\nq1 0\td1 0\n\nq2 Q0 d3 2\n"
    found = open_beir(put(tmp_path, qrels=qrels, header=""))
    assert found.relevant == open_beir(put(tmp_path / "other")).relevant
    with pytest.raises(DataError, match="line 5: is to be a query, 0, a document and a whole"):
        open_beir(put(tmp_path, qrels=qrels + "q1 d0 1\n", header=""))


def test_another_text_has_another_hash(tmp_path):
    first = open_beir(put(tmp_path)).hashes
    second = open_beir(put(tmp_path, [*CORPUS, {"_id": "d4", "text": "more"}])).hashes
    assert [name for name in first if first[name] != second[name]] == ["corpus.jsonl"]


def test_the_split_is_that_of_published_results(tmp_path):
    assert open_beir(put(tmp_path / "msmarco", split="dev")).split == "dev"
    assert open_beir(put(tmp_path / "nq", split="train"), "train").split == "train"
    with pytest.raises(DataError, match=r"nq/qrels/test\.tsv: cannot be read"):
        open_beir(tmp_path / "nq")


def test_judgements_of_what_does_not_exist_are_counted_and_left_out(tmp_path, caplog):
    put(tmp_path, qrels=QRELS + "q1\tgone\t1\nq9\td0\t1\nq9\td1\t1\nq3\tgone\t1\n")
    with caplog.at_level(logging.WARNING):
        found = open_beir(tmp_path)
    assert found.relevant == {"q1": {"d0": 1, "d1": 0}, "q2": {"d3": 2}}
    assert (found.unknown_queries, found.unknown_documents) == (2, 2)
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "2 judgements of unknown queries are left out.",
        "2 judgements of unknown documents are left out.",
    ]


@pytest.mark.parametrize("qrels", ["", "q1\tgone\t1\n", "q9\td0\t1\n", "q1\td0\t0\n"])
def test_a_set_without_relevant_documents_is_refused(tmp_path, qrels):
    with pytest.raises(DataError, match=r"test\.tsv: has no grade above 0 for a document of"):
        open_beir(put(tmp_path, qrels=qrels))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corpus": lines(CORPUS) + "{\n"}, r"corpus\.jsonl, line 5: is no JSON"),
        ({"queries": "\n" + lines([{"_id": 1, "text": "x"}])}, r"queries\.jsonl, line 2: is to be"),
        ({"corpus": lines([{"_id": "d0"}])}, "with the texts _id and text"),
        ({"corpus": "[]\n"}, "line 1: is to be an object"),
        ({"header": ""}, r"test\.tsv, line 1: is to be a line of names"),
        ({"qrels": QRELS + "q1\td0\n"}, "line 5: is to be a query, a document and a whole"),
        ({"qrels": "q1\td0\t1.5\n"}, "line 2: is to be a query, a document and a whole number"),
        ({"qrels": "q1 d0 1\n"}, "between tabs"),
    ],
)
def test_lines_of_another_form_are_refused(tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        open_beir(put(tmp_path, **changed))
    assert len(problems_in(tmp_path)) >= 1


def test_bytes_that_are_no_text_are_refused(tmp_path):
    put(tmp_path)
    (tmp_path / "corpus.jsonl").write_bytes(b'{"_id": "d0", "text": "\xff"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 1: is no JSON"):
        open_beir(tmp_path)


def test_all_problems_are_told(tmp_path):
    corpus = [*CORPUS, {"_id": "d0", "text": "again"}, {"_id": "d 5", "text": " "}]
    qrels = QRELS + "q1\td0\t2\nq1\tgone\t1\nq1\tgone2\t1\nq9\td0\t1\nbroken\n"
    put(tmp_path, corpus, lines(QUERIES) + "{\n{\n{\n", qrels)
    put(tmp_path, corpus, lines(QUERIES) + "{\n{\n{\n", "q1\td0\t0\n", split="dev")
    told = [line.removeprefix(f"{tmp_path}/") for line in problems_in(tmp_path)]
    assert told == [
        "corpus.jsonl, line 5: has an id that was there before.",
        "corpus.jsonl, line 6: has an id that is empty or has white space.",
        "corpus.jsonl, line 6: has no text.",
        "queries.jsonl, line 4: is no JSON (as do 2 other lines).",
        "qrels/dev.tsv: has no grade above 0.",
        "qrels/test.tsv, line 5: grades a document again and otherwise.",
        "qrels/test.tsv, line 6: judges a document that does not exist (as do 1 other lines).",
        "qrels/test.tsv, line 8: judges for a query that does not exist.",
        "qrels/test.tsv, line 9: is to be a query, a document and a whole number, between tabs.",
    ]


def test_a_folder_without_a_set_is_told(tmp_path):
    told = problems_in(tmp_path)
    assert [line.split(": ")[0].removeprefix(f"{tmp_path}/") for line in told] == [
        "corpus.jsonl",
        "queries.jsonl",
        "qrels",
    ]
    with pytest.raises(DataError, match=r"holds no corpus\.jsonl, nor do its folders"):
        parts_of(tmp_path)


def test_a_folder_of_several_sets_counts_as_one(tmp_path):
    """As CQADupStack among the others of BEIR."""
    for name in ("scifact", "cqadupstack/unix", "cqadupstack/android", "cqadupstack/unix/old"):
        put(tmp_path / name)
    (tmp_path / "other" / "empty").mkdir(parents=True)
    parts = parts_of(tmp_path)
    assert parts == {
        "cqadupstack": [tmp_path / "cqadupstack" / name for name in ("android", "unix")],
        "scifact": [tmp_path / "scifact"],
    }


def test_the_parts_of_a_set_count_equally(tmp_path):
    for name in ("b", "a"):
        put(tmp_path / name)
    (tmp_path / "other").mkdir()
    assert parts_of(tmp_path) == {"a": [tmp_path / "a"], "b": [tmp_path / "b"]}
    assert parts_of(tmp_path / "a") == {"a": [tmp_path / "a"]}
    results = {"a": {"ndcg@10": 0.5, "mrr@10": 1.0}, "b": {"mrr@10": 0.5, "ndcg@10": 0.1}}
    assert macro_average(results) == pytest.approx({"ndcg@10": 0.3, "mrr@10": 0.75})
    with pytest.raises(DataError, match="over 2 parts with 2 sets of measures"):
        macro_average({"a": {"ndcg@10": 0.5}, "b": {"mrr@10": 0.5}})
    with pytest.raises(DataError, match="over 0 parts"):
        macro_average({})
