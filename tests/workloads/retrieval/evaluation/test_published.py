import pytest

from farreach.errors import DataError
from farreach_workloads.retrieval.evaluation.published import (
    BEIR,
    MKQA,
    MR_TYDI,
    OPEN_QUESTIONS,
    beside,
)


def column(table, measure, system, left_out=()):
    place = table.systems.index(system)
    return [row[place] for name, row in table.values[measure].items() if name not in left_out]


@pytest.mark.parametrize(
    ("table", "measure", "printed"),
    [
        (MR_TYDI, "mrr@100", [33.3, 25.0, 38.4, 65.2]),
        # Printed is 74.3 for BM25, which is not the mean of its row.
        (MR_TYDI, "recall@100", [75.8, 77.2, 87.0, 93.6]),
        (MKQA, "hit@100", [49.2, 65.6]),
    ],
)
def test_averages_over_languages_are_those_printed(table, measure, printed):
    for system, average in zip(table.systems, printed, strict=True):
        values = column(table, measure, system)
        assert sum(values) / len(values) == pytest.approx(average, abs=0.051)


def test_what_is_not_published_is_left_open():
    lines = beside({"nq": 0.5}, "hit@5", OPEN_QUESTIONS).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["nq", "50.0", "–", "47.8", "65.7"],
        ["average", "50.0", "–", "47.8", "65.7"],
    ]


@pytest.mark.parametrize(
    ("measure", "system", "printed"),
    [
        ("ndcg@10", "BM25", 41.7),
        ("ndcg@10", "Contriever", 36.0),
        ("recall@100", "BM25", 63.6),
        ("recall@100", "Contriever", 60.1),
    ],
)
def test_averages_over_15_sets_are_those_printed(measure, system, printed):
    values = column(BEIR, measure, system)
    assert len(values) == 15
    assert sum(values) / 15 == pytest.approx(printed, abs=0.051)


@pytest.mark.parametrize(
    ("measure", "left_out", "system", "printed"),
    [
        ("ndcg@10", {"msmarco"}, "Contriever-ms", 46.6),
        ("ndcg@10", {"msmarco", "cqadupstack"}, "Contriever-ms", 47.5),
        ("ndcg@10", {"msmarco"}, "BM25", 43.0),
        ("ndcg@10", {"msmarco", "cqadupstack"}, "Contriever", 37.7),
        ("recall@100", {"msmarco"}, "Contriever-ms", 67.0),
        ("recall@100", {"msmarco", "cqadupstack"}, "Contriever-ms", 67.1),
        ("recall@100", {"msmarco"}, "BM25", 63.4),
    ],
)
def test_averages_over_fewer_sets_are_those_printed(measure, left_out, system, printed):
    values = column(BEIR, measure, system, left_out)
    assert sum(values) / len(values) == pytest.approx(printed, abs=0.051)


def test_averages_are_over_the_sets_that_are_measured_and_named():
    lines = beside({"scifact": 0.65, "mine": 0.9, "nfcorpus": 0.334}, "ndcg@10").splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["set", "measured", "BM25", "Contriever", "Contriever-ms"],
        ["nfcorpus", "33.4", "32.5", "31.7", "32.8"],
        ["scifact", "65.0", "66.5", "64.9", "67.7"],
        ["mine", "90.0", "–", "–", "–"],
        ["average", "49.2", "49.5", "48.3", "50.2"],
    ]
    assert lines[5:] == ["ndcg@10, average over 2 sets: nfcorpus, scifact"]
    assert len({len(line) for line in lines[:5]}) == 1


def test_remarks_are_made_where_they_matter():
    ndcg = beside({"trec-covid": 0.3, "arguana": 0.4}, "ndcg@10", systems=["BM25"])
    assert "capped" not in ndcg
    assert "arguana: BM25 was published" in ndcg
    assert "capped_recall@100" in beside({"trec-covid": 0.2}, "recall@100")


def test_a_set_of_ones_own_has_no_average():
    lines = beside({"mine": 0.5}, "recall@100", systems=["Contriever"]).splitlines()
    assert lines[2].split() == ["average", "–", "–"]
    assert lines[3] == "recall@100, average over 0 sets: none"


def test_what_cannot_be_set_beside_is_refused():
    with pytest.raises(DataError, match=r"measured ndcg@10: scifact is 65\.2"):
        beside({"scifact": 65.2}, "ndcg@10")
    with pytest.raises(DataError, match="there is none"):
        beside({}, "ndcg@10")
    with pytest.raises(DataError, match="system 'bm25': is none of BM25"):
        beside({"scifact": 0.6}, "ndcg@10", systems=["bm25"])
