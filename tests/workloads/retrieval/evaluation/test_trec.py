import numpy as np
import pytest

from farreach.errors import DataError
from farreach.index.hits import Hits
from farreach_workloads.retrieval.evaluation.measures import measured_run
from farreach_workloads.retrieval.evaluation.trec import (
    ranked,
    read_run,
    run_of,
    write_qrels,
    write_run,
)


def test_a_run_is_written_and_read(tmp_path):
    file = tmp_path / "run.txt"
    write_run(file, {"q1": {"a": 0.25, "b": 2.0}, "q2": {"c": -1e-30}, "q3": {}}, "mine")
    assert file.read_text().splitlines() == [
        "q1 Q0 b 1 2.0 mine",
        "q1 Q0 a 2 0.25 mine",
        "q2 Q0 c 1 -1e-30 mine",
    ]
    assert read_run(file) == {"q1": {"b": 2.0, "a": 0.25}, "q2": {"c": -1e-30}}


def test_scores_come_back_as_they_were(tmp_path):
    scores = np.random.default_rng(0).normal(size=100).astype(np.float32).tolist()
    run = {"q": {f"d{number}": score for number, score in enumerate(scores)}}
    write_run(tmp_path / "run", run)
    assert read_run(tmp_path / "run") == run


def test_equal_scores_are_ordered_by_falling_id_whatever_the_rank_says(tmp_path):
    (tmp_path / "run").write_text("q Q0 a 1 1.5 x\nq Q0 c 2 1.5 x\n\nq\tQ0 b 3 1.5 x\nq Q0 d 4 2 x")
    run = read_run(tmp_path / "run")
    assert ranked(run) == {"q": ["d", "c", "b", "a"]}
    values = measured_run(ranked(run), {"q": {"a": 1}}, {"mrr": [10]})
    assert values["mrr@10"].tolist() == [1 / 4]


def test_scores_are_compared_in_single_precision():
    assert ranked({"q": {"a": 1 + 1e-12, "b": 1.0}}) == {"q": ["b", "a"]}


def test_what_an_index_found_becomes_a_run():
    hits = Hits(np.array([[2, 1], [3, -np.inf]], np.float32), np.array([[5, 7], [6, -1]]))
    run = run_of(["x", "y"], hits, lambda rows: [f"d{row}" for row in rows])
    assert run == {"x": {"d5": 2.0, "d7": 1.0}, "y": {"d6": 3.0}}


def test_judgements_are_written(tmp_path):
    judgements = {"q1": {"a": 2, "b": 0}, "q2": {"a": -1}}
    write_qrels(tmp_path / "qrels", judgements)
    assert (tmp_path / "qrels").read_text() == "q1 0 a 2\nq1 0 b 0\nq2 0 a -1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 d 1 0.5\n", "line 1: has 5 fields, not 6"),
        ("\nq Q0 d 1 nan x\n", "line 2: the score 'nan' is no finite number"),
        ("q Q0 d 1 high x\n", "the score 'high' is no finite number"),
        ("q Q0 d 1 2 x\nq Q0 d 2 1 x\n", "line 2: query q has document d twice"),
    ],
)
def test_runs_of_another_form_are_refused(tmp_path, text, message):
    (tmp_path / "run").write_text(text)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "run")


def test_what_would_not_be_read_again_is_not_written(tmp_path):
    file = tmp_path / "run"
    with pytest.raises(DataError, match="'d 1': a document's id, found by query q, is empty or"):
        write_run(file, {"q": {"d 1": 1.0}})
    with pytest.raises(DataError, match="'': a query's id is empty"):
        write_run(file, {"": {"d": 1.0}})
    with pytest.raises(DataError, match="'my run': the run's name"):
        write_run(file, {"q": {"d": 1.0}}, "my run")
    with pytest.raises(DataError, match="document d has the score inf"):
        write_run(file, {"q": {"d": np.inf}})
    with pytest.raises(DataError, match="judged for query q"):
        write_qrels(file, {"q": {"d\u00a01": 1}})
    with pytest.raises(DataError, match="run: cannot be read"):
        read_run(file)
