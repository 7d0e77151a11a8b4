import json

import pytest

from farreach.data.text import Document, documents
from farreach.errors import DataError
from farreach_workloads.retrieval.corpora import extract
from farreach_workloads.retrieval.corpora.layout import Corpus, Facts, Query, Shares, write


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    return extract.folder(tmp_path_factory.mktemp("cache"))


def judgements(folder, name):
    lines = (folder / "qrels" / f"{name}.tsv").read_text().splitlines()[1:]
    return [tuple(line.split("\t")) for line in lines]


def test_the_extract_is_small_and_whole(unpacked):
    assert extract.FILE.stat().st_size < 1_200_000
    found = {document.id: document for document in documents(unpacked)}
    assert len(found) == 3893
    assert {document.meta["section"] for document in found.values()} == set(extract.SECTIONS)
    assert min(len(document.text.split()) for document in found.values()) >= 20
    assert len({tuple(document.text.split()) for document in found.values()}) == 3893
    queries = [json.loads(line) for line in (unpacked / "queries.jsonl").read_text().splitlines()]
    asked = {name: judgements(unpacked, name) for name in ("train", "dev", "test")}
    counts = {name: len({query for query, _, _ in of}) for name, of in asked.items()}
    assert counts == {"train": 2717, "dev": 100, "test": 400}
    assert {query for of in asked.values() for query, _, _ in of} == {q["_id"] for q in queries}
    assert {document for of in asked.values() for _, document, _ in of} <= found.keys()


def test_almost_nothing_that_is_trained_on_is_reported(unpacked):
    """One body is of several source packages, with a synopsis in either part."""
    parts = {
        name: {document for _, document, _ in judgements(unpacked, name)}
        for name in ("train", "dev", "test")
    }
    assert len(parts["test"] & parts["train"]) <= 1
    assert not parts["test"] & parts["dev"]


def test_it_is_unpacked_once_and_a_changed_one_is_named(tmp_path):
    folder = extract.folder(tmp_path)
    stamp = (folder / "corpus.jsonl").stat().st_mtime_ns
    assert extract.folder(tmp_path) == folder
    assert (folder / "corpus.jsonl").stat().st_mtime_ns == stamp
    assert list(tmp_path.iterdir()) == [folder]
    (folder / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"queries\.jsonl: is missing or was changed"):
        extract.folder(tmp_path)


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written: File exists"):
        extract.folder(tmp_path / "file")


def test_sections_are_kept_with_the_queries_that_they_answer():
    texts = [Document(name, "", name, {"section": name}) for name in ("games", "libs", "mail")]
    queries = [
        Query("q1", "a", ("games", "libs"), "f"),
        Query("q2", "b", ("libs",), "f"),
        Query("q3", "c", ("mail",), "g"),
    ]
    found = extract.sections_of(Corpus(texts, queries))
    assert found.documents == [texts[0], texts[2]]
    assert [(query.id, query.relevant) for query in found.queries] == [
        ("q1", ("games",)),
        ("q3", ("mail",)),
    ]


def test_packing_keeps_every_byte(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    corpus = Corpus([Document("a", "", "text")], [Query("q", "ask", ("a",), "f")])
    write(whole, corpus, Facts("t", "m", {}, "l"), Shares())
    files = [tmp_path / "one.tar.xz", tmp_path / "two.tar.xz"]
    for file in files:
        extract.pack(whole, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    monkeypatch.setattr(extract, "FILE", files[0])
    folder = extract.folder(tmp_path)
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(names) == 5
    for name in names:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
