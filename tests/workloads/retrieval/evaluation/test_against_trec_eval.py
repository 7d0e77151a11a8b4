"""Our measures beside those of trec_eval, from the same files."""

import numpy as np
import pytest
import pytrec_eval

from farreach_workloads.retrieval.evaluation import trec
from farreach_workloads.retrieval.evaluation.measures import measured_run

CUTS = (1, 3, 5, 10, 100)
# Name → trec_eval's, before its cut-off.
NAMES = {
    "ndcg": "ndcg_cut",
    "map": "map_cut",
    "recall": "recall",
    "precision": "P",
    "hit": "success",
}


def drawn(seed, queries=60, documents=200):
    """Judgements of several grades, some of them 0 or below, and a run with equal scores."""
    rng = np.random.default_rng(seed)
    judgements, run = {}, {}
    for query in range(queries):
        judged = rng.choice(documents, rng.integers(1, 40), replace=False)
        grades = rng.integers(-1, 4, len(judged))
        grades[0] = 2  # trec_eval leaves out queries that nothing answers
        judgements[f"q{query}"] = {f"d{d}": int(g) for d, g in zip(judged, grades, strict=True)}
        found = rng.choice(documents, rng.integers(0, 150), replace=False)
        run[f"q{query}"] = {f"d{d}": float(rng.integers(0, 30) / 4) for d in found}
    return judgements, run


@pytest.mark.parametrize("seed", [0, 1])
def test_measures_are_those_of_trec_eval(seed, tmp_path):
    judgements, run = drawn(seed)
    trec.write_qrels(tmp_path / "qrels", judgements)
    trec.write_run(tmp_path / "run", run)
    with open(tmp_path / "qrels") as file:
        qrels = pytrec_eval.parse_qrel(file)
    with open(tmp_path / "run") as file:
        theirs_run = pytrec_eval.parse_run(file)
    assert qrels == judgements
    cuts = ",".join(map(str, CUTS))
    asked = {f"{name}.{cuts}" for name in NAMES.values()} | {"recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(theirs_run)

    wanted = dict.fromkeys(NAMES, CUTS) | {"mrr": [1000]}
    ours = measured_run(trec.ranked(trec.read_run(tmp_path / "run")), judgements, wanted)
    names = {f"{ours}@{cut}": f"{name}_{cut}" for ours, name in NAMES.items() for cut in CUTS}
    for number, query in enumerate(judgements):
        found = theirs.get(query, {})  # of a query that found nothing there is no line in a run
        for name, other in (names | {"mrr@1000": "recip_rank"}).items():
            assert ours[name][number] == pytest.approx(found.get(other, 0), abs=1e-6), (query, name)
