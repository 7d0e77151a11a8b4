import hashlib
import json

import pytest

from farreach.data.text import Document, documents
from farreach.errors import DataError
from farreach_workloads.retrieval.corpora.layout import (
    Corpus,
    Facts,
    Query,
    Shares,
    is_done,
    parted,
    write,
    written,
)

FACTS = Facts("Animals", "By hand.", {"zoo": "2"}, "Free.")
CORPUS = Corpus(
    [
        Document("a", "", "a cat\nand a bird", {"kind": "pet"}),
        Document("b", "Dogs", 'two "dogs" ☂', {}),
    ],
    [Query("q1", "what purrs", ("a",), "a"), Query("q2", "what is alive", ("a", "b"), "b")],
)


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_a_corpus_is_written_as_beir_has_it(tmp_path):
    out = tmp_path / "deep" / "animals"
    manifest = write(out, CORPUS, FACTS, Shares(test=1, dev=0))
    assert [json.loads(line) for line in lines(out / "corpus.jsonl")] == [
        {"_id": "a", "title": "", "text": "a cat\nand a bird", "kind": "pet"},
        {"_id": "b", "title": "Dogs", "text": 'two "dogs" ☂'},
    ]
    queries = {"q1": "what purrs", "q2": "what is alive"}
    read = [json.loads(line) for line in lines(out / "queries.jsonl")]
    assert {query["_id"]: query["text"] for query in read} == queries
    head, *judgements = lines(out / "qrels" / "test.tsv")
    assert head == "query-id\tcorpus-id\tscore"
    assert sorted(judgements) == ["q1\ta\t1", "q2\ta\t1", "q2\tb\t1"]
    assert not (out / "qrels" / "train.tsv").exists()
    assert list(documents(out)) == CORPUS.documents
    assert (manifest["documents"], manifest["words"], manifest["queries"]) == (2, 8, {"test": 2})
    for name, facts in manifest["files"].items():
        data = (out / name).read_bytes()
        assert facts["sha256"] == hashlib.sha256(data).hexdigest()
        assert (facts["bytes"], facts["lines"]) == (len(data), data.count(b"\n"))
    readme = (out / "README.md").read_text()
    assert "2 documents of 8 words" in readme
    assert "- zoo: 2" in readme
    assert manifest["content"] in readme


def test_the_same_corpus_has_the_same_bytes(tmp_path):
    one = write(tmp_path / "one", CORPUS, FACTS, Shares())
    two = write(tmp_path / "two", CORPUS, FACTS, Shares())
    assert one == two
    other = Corpus(CORPUS.documents[:1], CORPUS.queries[:1])
    assert write(tmp_path / "three", other, FACTS, Shares())["content"] != one["content"]


def test_what_is_done_is_not_made_again(tmp_path):
    def never(folder):
        raise AssertionError

    out = tmp_path / "animals"
    out.mkdir()
    manifest = write(out, CORPUS, FACTS, Shares())
    assert written(out, never) == manifest


def test_a_failure_leaves_nothing_behind(tmp_path):
    def fail(folder):
        (folder / "corpus.jsonl").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "animals", fail)
    assert list(tmp_path.iterdir()) == []


def test_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"is no corpus made by farreach\. Name another folder"):
        write(tmp_path, CORPUS, FACTS, Shares())
    with pytest.raises(DataError, match="is no corpus made by farreach"):
        is_done(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_changed_files_and_manifests_are_named(tmp_path):
    out = tmp_path / "animals"
    write(out, CORPUS, FACTS, Shares())
    with open(out / "corpus.jsonl", "a") as file:
        file.write("{}\n")
    with pytest.raises(
        DataError, match=r"corpus.jsonl: is missing or was changed. Remove .*animals"
    ):
        is_done(out)
    (out / "manifest.json").write_text('{"files": ')
    with pytest.raises(DataError, match="is no manifest of a corpus"):
        is_done(out)


def test_a_family_is_in_one_part_that_depends_on_its_name_alone():
    queries = [Query(f"q{n}", "", (), f"family {n // 4}") for n in range(4000)]
    parts = parted(queries, Shares(test=0.2, dev=0.1))
    families = {name: {query.family for query in part} for name, part in parts.items()}
    assert sum(map(len, parts.values())) == 4000
    assert sum(map(len, families.values())) == 1000
    # Three standard deviations of a binomial count.
    assert abs(len(families["test"]) - 200) < 3 * (1000 * 0.2 * 0.8) ** 0.5
    assert abs(len(families["dev"]) - 100) < 3 * (1000 * 0.1 * 0.9) ** 0.5
    some = parted(reversed(queries[::7]), Shares(test=0.2, dev=0.1))
    for name, part in some.items():
        assert {query.family for query in part} <= families[name]


def test_the_seed_stays_as_it_is():
    """SHA-256 of `0:name`, its first 48 bits as a fraction."""
    shares = {}
    for name in ("amarok", "bash", "curl"):
        shares[name] = int(hashlib.sha256(f"0:{name}".encode()).hexdigest()[:12], 16) / 16**12
    queries = [Query(name, "", (), name) for name in shares]
    limit = sorted(shares.values())[1]
    parts = parted(queries, Shares(test=limit, dev=0))
    assert [query.id for query in parts["test"]] == [min(shares, key=shares.__getitem__)]
    assert len(parts["train"]) == 2


def test_no_more_queries_are_used_than_asked_for():
    queries = [Query(f"q{n}", "", (), f"{n}") for n in range(200)]
    parts = parted(queries, Shares(test=0.5, dev=0.3, most_test=20, most_dev=10))
    assert (len(parts["test"]), len(parts["dev"])) == (20, 10)
    assert len({query.id for part in parts.values() for query in part}) == len(parts["train"]) + 30
