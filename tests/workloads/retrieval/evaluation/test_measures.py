import math

import numpy as np
import pytest

from farreach.errors import ConfigError, DataError
from farreach_workloads.retrieval.evaluation.measures import (
    NAMES,
    means,
    measured,
    measured_run,
)

# Ranks: grade 1, unjudged, judged 0, grade 3, nothing more; one of grade 2 is not found.
ROWS = np.array([[4, 9, 2, 6, -1, -1]])
RELEVANT = [{4: 1, 2: 0, 6: 3, 1: 2}]


def one_by_one(found, grades, judged, name, k):
    """Each measure as trec_eval and BEIR define it, of one query."""
    top = found[:k]
    good = {document for document, grade in grades.items() if grade > 0}
    if name == "ndcg":
        order = sorted((grades[document] for document in good), reverse=True)
        gains = [max(grades.get(document, 0), 0) for document in top]
        dcg, best = (
            sum(gain / math.log2(rank + 2) for rank, gain in enumerate(row))
            for row in (gains, order[:k])
        )
        return dcg / best
    if name == "map":
        at = [rank for rank, document in enumerate(top) if document in good]
        return sum((number + 1) / (rank + 1) for number, rank in enumerate(at)) / len(good)
    if name == "mrr":
        return next((1 / rank for rank, d in enumerate(top, 1) if d in good), 0)
    hits = sum(document in good for document in top)
    return {
        "recall": hits / len(good),
        "capped_recall": hits / min(len(good), k),
        "precision": hits / k,
        "hit": float(hits > 0),
        "hole": sum(document not in judged for document in top) / k,
    }[name]


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, {"ndcg": 1 / 3, "map": 1 / 3, "recall": 1 / 3, "capped_recall": 1, "precision": 1}),
        (3, {"map": 1 / 3, "recall": 1 / 3, "capped_recall": 1 / 3, "hole": 1 / 3, "mrr": 1}),
        (4, {"map": (1 + 2 / 4) / 3, "recall": 2 / 3, "precision": 1 / 2, "hole": 1 / 4}),
        (10, {"map": (1 + 2 / 4) / 3, "capped_recall": 2 / 3, "precision": 2 / 10, "hit": 1}),
    ],
)
def test_measures_by_hand(k, expected):
    values = measured(ROWS, RELEVANT, dict.fromkeys(NAMES, (k,)))
    assert {name: values[f"{name}@{k}"][0] for name in expected} == pytest.approx(expected)
    if k >= 4:
        best = 3 + 2 / math.log2(3) + 1 / 2
        assert values[f"ndcg@{k}"][0] == pytest.approx((1 + 3 / math.log2(5)) / best)


def test_measures_of_many_queries_are_those_of_one_after_the_other():
    rng = np.random.default_rng(0)
    relevant = [
        {f"d{d}": int(rng.integers(-1, 4)) for d in rng.permutation(40)[: rng.integers(1, 12)]}
        for _ in range(60)
    ]
    for grades in relevant:
        grades["d99"] = 1
    found = [
        [f"d{document}" for document in rng.permutation(60)[: rng.integers(0, 30)]]
        for _ in range(60)
    ]
    names = [f"q{number}" for number in range(60)]
    run = dict(zip(names, found, strict=True))
    values = measured_run(run, dict(zip(names, relevant, strict=True)))
    assert len(values) == 8 * 6
    judged = {document for grades in relevant for document in grades}
    for label, own in values.items():
        name, k = label.split("@")
        pairs = zip(found, relevant, strict=True)
        expected = [one_by_one(row, grades, judged, name, int(k)) for row, grades in pairs]
        assert own == pytest.approx(expected), label


def test_rows_and_ids_give_the_same():
    run = {"q": ["d4", "d9", "d2", "d6"]}
    by_id = measured_run(run, {"q": {"d4": 1, "d2": 0, "d6": 3, "d1": 2}})
    by_row = measured(ROWS, RELEVANT)
    assert by_id.keys() == by_row.keys()
    for name, values in by_row.items():
        assert by_id[name] == pytest.approx(values)


def test_the_querys_own_document_is_taken_out_before_the_cut():
    rows = np.array([[3, 5, 7], [5, 3, 7], [8, 5, 7]])
    own = np.array([3, 3, -1])
    values = measured(rows, [{5: 1, 3: 1}, {7: 1}, {8: 1}], {"mrr": [1, 2], "recall": [1]}, own)
    assert values["mrr@1"].tolist() == [1, 0, 1]
    assert values["mrr@2"].tolist() == [1, 0.5, 1]
    assert values["recall@1"].tolist() == [1, 0, 1]
    by_id = measured_run({"a": ["a", "x"], "b": ["y", "b"]}, {"a": {"x": 1, "a": 1}, "b": {"z": 1}})
    assert by_id["recall@1"].tolist() == [1, 0]
    assert by_id["hole@1"].tolist() == [0, 1]
    assert by_id["hole@3"] == pytest.approx([0, 1 / 3])


def test_a_hole_is_a_document_that_is_judged_for_no_query():
    values = measured(np.array([[1, 2, 3, 4]]), [{1: 1}], {"hole": [4]})
    assert values["hole@4"].tolist() == [0.75]
    both = measured(np.array([[1, 2, 3, 4], [1, 2, 3, 4]]), [{1: 1}, {2: 1, 3: 0}], {"hole": [4]})
    assert both["hole@4"].tolist() == [0.25, 0.25]


def test_queries_that_found_nothing_count_and_those_without_relevant_ones_do_not():
    relevant = {"a": {"x": 1}, "b": {"x": 0}, "c": {"y": 1}}
    values = measured_run({"a": ["x"], "b": ["x"], "strange": ["x"]}, relevant)
    for name in NAMES:
        assert np.isnan(values[f"{name}@10"]).tolist() == [False, True, False]
    assert values["recall@10"][[0, 2]].tolist() == [1, 0]
    assert means(values)["recall@10"] == 0.5
    nothing = measured_run({}, {"a": {"x": 1}})
    assert {value for name, value in means(nothing).items() if "hole" not in name} == {0.0}


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(DataError, match="of 1 queries, with judgements of 2"):
        measured(ROWS, RELEVANT * 2)
    with pytest.raises(DataError, match="query 0 found document 4 twice"):
        measured(np.array([[4, 2, 4]]), RELEVANT)
    with pytest.raises(DataError, match="query q: found document y twice"):
        measured_run({"q": ["y", "x", "y"]}, {"q": {"x": 1}})
    with pytest.raises(ConfigError, match="measure 'recal': there is none"):
        measured(ROWS, RELEVANT, {"recal": [10]})
    with pytest.raises(ConfigError, match="ndcg@0: cuts off everything"):
        measured(ROWS, RELEVANT, {"ndcg": [10, 0]})
    with pytest.raises(DataError, match="ndcg@1: none of 1 queries has a relevant document"):
        means(measured(ROWS, [{4: 0}]))
