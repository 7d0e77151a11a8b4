"""Halves of characters, which JSON can name and no vocabulary reads, are refused where they are."""

import json

import pytest

from farreach.errors import ConfigError, DataError
from farreach_workloads.retrieval.evaluation.beir import open_beir, problems_in
from farreach_workloads.retrieval.evaluation.open_questions import read_questions
from farreach_workloads.retrieval.half_characters import half_in
from farreach_workloads.retrieval.labelled import rows_of
from farreach_workloads.retrieval.serving import _question

HALF, WHOLE = "half \ud83d of a smile", "a whole \U0001f600"
SAID = r"half a character, '\\ud83d'"


def lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_halves_are_told_from_whole_characters():
    assert half_in("", "ä", WHOLE) == ""
    assert half_in("ä", HALF) == r"'\ud83d'"


@pytest.mark.parametrize("key", ["question", "positive_ctxs", "hard_negative_ctxs"])
def test_a_labelled_row_with_half_a_character_is_named(tmp_path, key):
    row = {"question": WHOLE, "positive_ctxs": [{"text": WHOLE}]}
    bad = row | {key: HALF if key == "question" else [{"title": HALF, "text": "x"}]}
    path = lines(tmp_path / "rows.jsonl", row, bad)
    with pytest.raises(DataError, match=rf"line 2: '{key}' has {SAID}"):
        list(rows_of(path, ""))


def test_a_query_of_a_set_with_half_a_character_is_named(tmp_path):
    lines(tmp_path / "corpus.jsonl", {"_id": "a", "text": WHOLE})
    lines(tmp_path / "queries.jsonl", {"_id": "q", "text": WHOLE}, {"_id": "r", "text": HALF})
    (tmp_path / "qrels").mkdir()
    judged = "query-id\tcorpus-id\tscore\nq\ta\t1\n"
    (tmp_path / "qrels" / "test.tsv").write_text(judged)
    with pytest.raises(DataError, match=rf"queries.jsonl, line 2: has {SAID}"):
        open_beir(tmp_path)
    (problem,) = problems_in(tmp_path)
    assert "queries.jsonl, line 2: has half a character" in problem


@pytest.mark.parametrize("bad", [{"question": HALF}, {"answers": ["x", HALF]}])
def test_a_question_with_half_a_character_is_named(tmp_path, bad):
    record = {"question": "what", "answers": ["x"]}
    path = lines(tmp_path / "asked.jsonl", record, record | bad)
    with pytest.raises(DataError, match=rf"question 2: has {SAID}"):
        read_questions(path)


@pytest.mark.parametrize("query", [HALF, [WHOLE, HALF]])
def test_a_service_tells_the_client(query):
    """Else it would be an error of the server."""
    assert _question({"query": WHOLE}).query == WHOLE
    with pytest.raises(ConfigError, match=rf"query: has {SAID}"):
        _question({"query": query})
