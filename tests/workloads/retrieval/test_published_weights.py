"""The published Contrievers, for those who have them: `FARREACH_CONTRIEVER`, a folder in the layout
of Hugging Face with facebook/contriever, `FARREACH_CONTRIEVER_MSMARCO` and `FARREACH_MCONTRIEVER`
likewise; `FARREACH_BEIR`, a folder of BEIR's sets, and `FARREACH_MR_TYDI`, one of its languages.
"""

import os
from pathlib import Path

import pytest

from farreach_workloads.retrieval import models
from farreach_workloads.retrieval.embedding import embedded
from farreach_workloads.retrieval.evaluation.evaluate import SearchConfig, search_set
from farreach_workloads.retrieval.evaluation.published import BEIR, MR_TYDI
from farreach_workloads.retrieval.jobs import EmbedConfig

GIVEN = {
    name: os.environ.get(f"FARREACH_{name}")
    for name in ("CONTRIEVER", "CONTRIEVER_MSMARCO", "MCONTRIEVER", "BEIR", "MR_TYDI")
}
# Of the release's README, with the inner products that it prints.
TEXTS = (
    "Where was Marie Curie born?",
    "Maria Sklodowska, later known as Marie Curie, was born on November 7, 1867.",
    "Born in Paris on 15 May 1859, Pierre Curie was the son of Eugène Curie, a doctor of French "
    "Catholic origin from Alsace.",
)
PRODUCTS = (1.0473, 1.0095)
# What changed after it was published is left out.
SETS = [name for name in BEIR.values["ndcg@10"] if name != "webis-touche2020"]


def given(name):
    """A folder that the environment names."""
    if not GIVEN[name]:
        pytest.skip(f"FARREACH_{name} names no folder")
    return Path(GIVEN[name])


def check(table, system, name, found):
    place = table.systems.index(system)
    for measure, published in table.values.items():
        value = found[f"dense/{table.as_measured(name, measure)}"]
        assert 100 * value == pytest.approx(published[name][place], abs=0.1)


def test_vectors_are_those_of_the_release():
    encoder, words = models.open_model(given("CONTRIEVER"))
    ids = models.ids_of(TEXTS, words, EmbedConfig(), encoder.longest)
    question, *others = embedded(encoder.eval(), ids)
    assert [float(question @ one) for one in others] == pytest.approx(PRODUCTS, abs=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    ("weights", "system"),
    [("CONTRIEVER", "Contriever"), ("CONTRIEVER_MSMARCO", "Contriever-ms")],
)
def test_a_set_is_searched_as_published(weights, system, name, tmp_path):
    encoder, path = given(weights), given("BEIR") / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    measures = ("ndcg@10", "recall@100", "capped_recall@100")
    config = SearchConfig(path=str(path), modes=("dense",), longest=512, measures=measures)
    check(BEIR, system, name, search_set(encoder, config, tmp_path / "kept", tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MR_TYDI.values["mrr@100"])
def test_a_language_is_searched_as_published(name, tmp_path):
    """Folders as `farreach data prepare mr_tydi` makes them."""
    encoder, path = given("MCONTRIEVER"), given("MR_TYDI") / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    config = SearchConfig(
        path=str(path), modes=("dense",), normalise=True, measures=("mrr@100", "recall@100")
    )
    found = search_set(encoder, config, tmp_path / "kept", tmp_path / "out")
    check(MR_TYDI, "mContriever", name, found)
