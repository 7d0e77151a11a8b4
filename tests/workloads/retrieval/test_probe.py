"""The small search by which training is followed, and what is kept of it for the next process."""

import json

import numpy as np
import pytest
import torch

from farreach.data import wordpieces
from farreach.errors import DataError
from farreach.learn.place import Place
from farreach_workloads.retrieval import figures
from farreach_workloads.retrieval import probe as probes
from farreach_workloads.retrieval.config import ProbeConfig
from farreach_workloads.retrieval.encoder import Bag, EncoderConfig
from farreach_workloads.retrieval.probe import Probe

TEXTS = {
    "cat": "a small animal that says meow",
    "dog": "an animal that barks at cats",
    "ship": "a vessel that crosses the sea",
    "train": "a vehicle on rails",
    "oak": "a tree with acorns",
}
ASKED = {"q1": "meow", "q2": "barks", "q3": "crosses the sea"}
RELEVANT = {"q1": {"cat": 2, "dog": 1}, "q2": {"dog": 1}, "q3": {"ship": 1}}


def write_set(folder, texts=TEXTS):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, content in (("corpus", texts), ("queries", ASKED)):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in content.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    rows = [f"{q}\t{d}\t{grade}" for q, own in RELEVANT.items() for d, grade in own.items()]
    (folder / "qrels" / "dev.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))
    return folder


@pytest.fixture(scope="module")
def words():
    return wordpieces.trained([*TEXTS.values(), *ASKED.values()], 120)


@pytest.fixture
def encoder(words):
    torch.manual_seed(0)
    return Bag(words.size, EncoderConfig(kind="bag", width=16)).eval()


@pytest.fixture
def unread(monkeypatch):
    """Whether the set is read from now on."""

    def refuse():
        def read(*arguments):
            raise AssertionError("the set is read again")

        monkeypatch.setattr(probes, "open_beir", read)

    return refuse


def seen(probe, encoder):
    with torch.no_grad():
        queries, documents = probe.vectors(encoder, Place())
    return probe.names, probe.titles, queries, documents, probe.measured(queries, documents)


def test_it_searches_the_documents_of_the_set_with_its_questions(tmp_path, words, encoder):
    folder = write_set(tmp_path / "set")
    probe = Probe(folder, ProbeConfig(), words, 64, tmp_path / "cache")
    names, titles, queries, documents, metrics = seen(probe, encoder)
    # Documents with answers come first, in the order of their names.
    assert names == ["q1", "q2", "q3"]
    assert titles == [TEXTS[name] for name in ("cat", "dog", "ship", "train", "oak")]
    best = (queries @ documents.T).argsort(dim=1, descending=True)
    answers = [{0, 1}, {1}, {2}]
    firsts = [next(i for i, d in enumerate(row.tolist()) if d in own) for row, own in
              zip(best, answers, strict=True)]  # fmt: skip
    assert metrics["evaluation/mrr@10"] == pytest.approx(sum(1 / (1 + i) for i in firsts) / 3)
    assert metrics["evaluation/documents"] == 5


def test_a_question_that_is_a_document_is_no_answer_to_itself(tmp_path, words, encoder):
    """As in ArguAna and Quora: the best answer comes first once the question itself is left out."""
    folder = write_set(tmp_path / "set", {"q1": ASKED["q1"], **TEXTS})
    probe = Probe(folder, ProbeConfig(), words, 64, tmp_path / "cache")
    place = probe.titles.index(ASKED["q1"])
    documents = torch.eye(6)
    queries = torch.zeros(3, 6)
    queries[0, place] = 9.0  # nothing is more like it than itself
    for row, answers in enumerate(RELEVANT.values()):
        for rank, name in enumerate(answers):
            queries[row, probe.titles.index(TEXTS[name])] = 5.0 - rank
    for again in (probe, Probe(folder, ProbeConfig(), words, 64, tmp_path / "cache")):
        metrics = again.measured(queries, documents)
        assert metrics["evaluation/ndcg@10"] == pytest.approx(1.0)
        assert metrics["evaluation/mrr@10"] == 1.0
    right, others = probe.pairs()
    assert (len(right), len(others)) == (4, 3 * 6 - 4 - 1)
    assert 9.0 not in others
    probe.only(1)
    assert probe.measured(queries[:1], documents)["evaluation/mrr@10"] == 1.0


def test_documents_that_are_not_searched_are_not_kept(tmp_path, words):
    """Of 3,000 documents 40 are: memory does not grow with the text."""
    texts = {f"d{number:04d}": f"{TEXTS['cat']} number {number}" for number in range(3000)}
    folder = write_set(tmp_path / "set", TEXTS | texts)
    probe = Probe(folder, ProbeConfig(documents=40), words, 64, tmp_path / "cache")
    assert probe.documents == 40
    assert probe.titles[:3] == [TEXTS[name] for name in ("cat", "dog", "ship")]
    others = [*[TEXTS["train"], TEXTS["oak"]], *texts.values()]
    expected = np.linspace(0, len(others) - 1, 37).astype(int)
    assert probe.titles[3:] == [others[place] for place in expected]


def test_what_is_judged_and_answers_nothing_is_no_answer(tmp_path, words, encoder):
    """Sets of TREC judge thousands of documents that are of no use to a question."""
    folder = write_set(tmp_path / "set")
    useless = [f"q1\t{name}\t0" for name in ("ship", "train", "oak")]
    with (folder / "qrels" / "dev.tsv").open("a") as file:
        file.write("\n" + "\n".join(useless))
    for documents in (5, 4):  # cat, dog and ship answer something
        config = ProbeConfig(documents=documents)
        probe = Probe(folder, config, words, 64, tmp_path / "cache")
        *_, metrics = seen(probe, encoder)
        assert metrics["evaluation/documents"] == documents
        right, others = probe.pairs()
        assert (len(right), len(others)) == (4, 3 * documents - 4)
        assert figures.similarities(probe).axes[0].get_title().endswith(f"{documents} documents")


def test_scores_are_drawn_where_every_document_is_an_answer(tmp_path, words, encoder):
    folder = write_set(tmp_path / "set", {"cat": TEXTS["cat"]})
    probe = Probe(folder, ProbeConfig(), words, 64, tmp_path / "cache")
    seen(probe, encoder)
    (label,) = [text.get_text() for text in figures.similarities(probe).axes[0].legend_.texts]
    assert label == "right documents (1)"


class Apart(Place):
    """One of several workers, whose sum is taken later."""

    def sum(self, values):
        return values


def test_more_workers_than_questions_find_the_same_together(tmp_path, words, encoder):
    """Some have no question at all, or no document."""
    probe = Probe(write_set(tmp_path / "set"), ProbeConfig(), words, 64, tmp_path / "cache")
    with torch.no_grad():
        whole = probe.vectors(encoder, Place())
        shares = [probe.vectors(encoder, Apart(rank, 7)) for rank in range(7)]
    for part, expected in enumerate(whole):
        torch.testing.assert_close(sum(share[part] for share in shares), expected)
    assert any(not share[0].any() for share in shares)


def test_the_next_process_need_not_read_the_set(tmp_path, words, encoder, unread):
    folder = write_set(tmp_path / "set")
    arguments = (folder, ProbeConfig(), words, 64, tmp_path / "cache")
    names, titles, queries, documents, metrics = seen(Probe(*arguments), encoder)
    unread()
    again = seen(Probe(*arguments), encoder)
    assert again[:2] == (names, titles)
    assert torch.equal(again[2], queries)
    assert torch.equal(again[3], documents)
    assert again[4] == metrics


@pytest.mark.parametrize("change", ["text", "settings", "longest", "damage"])
def test_what_is_kept_counts_for_the_same_text_and_settings_alone(tmp_path, words, encoder, change):
    folder, cache = write_set(tmp_path / "set"), tmp_path / "cache"
    config, longest = ProbeConfig(), 64
    Probe(folder, config, words, longest, cache)
    if change == "text":  # of the same size
        write_set(folder, TEXTS | {"cat": TEXTS["cat"].replace("meow", "woem")})
    elif change == "settings":
        config = ProbeConfig(documents=4)
    elif change == "longest":
        longest = 4
    else:
        (file,) = cache.glob("probe-*.npz")
        file.write_bytes(file.read_bytes()[:-100])
    found = seen(Probe(folder, config, words, longest, cache), encoder)
    fresh = seen(Probe(folder, config, words, longest, tmp_path / "other"), encoder)
    assert found[:2] == fresh[:2]
    assert torch.equal(found[3], fresh[3])
    assert found[4] == fresh[4]
    assert len(found[1]) == (4 if change == "settings" else 5)


def test_a_set_that_is_none_is_refused_with_or_without_a_cache(tmp_path, words):
    folder, cache = write_set(tmp_path / "set"), tmp_path / "cache"
    Probe(folder, ProbeConfig(), words, 64, cache)
    (folder / "qrels" / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"dev\.tsv"):
        Probe(folder, ProbeConfig(), words, 64, cache)
