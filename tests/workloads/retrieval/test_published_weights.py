"""The published Contriever, for those who have it: `FARREACH_CONTRIEVER`, a folder in the layout of
Hugging Face with facebook/contriever, and `FARREACH_BEIR`, a folder of BEIR's sets.
"""

import os
from pathlib import Path

import pytest

from farreach_workloads.retrieval import models
from farreach_workloads.retrieval.embedding import embedded
from farreach_workloads.retrieval.evaluation.evaluate import SearchConfig, search_set
from farreach_workloads.retrieval.evaluation.published import BEIR
from farreach_workloads.retrieval.jobs import EmbedConfig

WEIGHTS, SETS = os.environ.get("FARREACH_CONTRIEVER"), os.environ.get("FARREACH_BEIR")
# Of the release's README, with the inner products that it prints.
TEXTS = (
    "Where was Marie Curie born?",
    "Maria Sklodowska, later known as Marie Curie, was born on November 7, 1867.",
    "Born in Paris on 15 May 1859, Pierre Curie was the son of Eugène Curie, a doctor of French "
    "Catholic origin from Alsace.",
)
PRODUCTS = (1.0473, 1.0095)
SMALL = ("scifact", "nfcorpus", "fiqa", "arguana", "scidocs")

needs_weights = pytest.mark.skipif(not WEIGHTS, reason="FARREACH_CONTRIEVER names no folder")


@needs_weights
def test_vectors_are_those_of_the_release():
    encoder, words = models.open_model(Path(str(WEIGHTS)))
    ids = models.ids_of(TEXTS, words, EmbedConfig(), encoder.longest)
    question, *others = embedded(encoder.eval(), ids)
    assert [float(question @ one) for one in others] == pytest.approx(PRODUCTS, abs=5e-5)


@needs_weights
@pytest.mark.slow
@pytest.mark.skipif(not SETS, reason="FARREACH_BEIR names no folder")
@pytest.mark.parametrize("name", SMALL)
def test_a_set_is_searched_as_published(name, tmp_path):
    path = Path(str(SETS)) / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    config = SearchConfig(path=str(path), modes=("dense",), longest=512)
    found = search_set(Path(str(WEIGHTS)), config, tmp_path / "kept", tmp_path / "out")
    place = BEIR.systems.index("Contriever")
    for measure in ("ndcg@10", "recall@100"):
        published = BEIR.values[measure][name][place]
        assert 100 * found[f"dense/{measure}"] == pytest.approx(published, abs=0.1)
