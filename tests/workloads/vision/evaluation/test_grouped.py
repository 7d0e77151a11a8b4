import numpy as np
import pytest
from scipy.stats import binomtest

from farreach.errors import DataError
from farreach_workloads.vision.evaluation.grouped import (
    Share,
    age_buckets,
    crossed,
    grouped_accuracy,
    hits_at_k,
    household_mean,
    income_buckets,
    label_association,
    precision_at_k,
    skin_tones,
    wilson,
)


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (5, 5), (1, 1), (37, 100), (997, 1000)])
def test_the_interval_of_a_share_is_that_of_scipy(hits, count):
    expected = binomtest(hits, count).proportion_ci(0.95, "wilson")
    assert wilson(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_accuracy_of_groups_by_hand():
    hit = np.array([True, True, False, True, False])
    groups = np.array(["b", "b", "b", "b", "a"])
    results = grouped_accuracy(hit, groups, minimum=2)
    assert list(results) == ["a", "b"]
    assert results["a"] == Share(0.0, *wilson(0.0, 1), 1, few=True)
    assert results["b"] == Share(0.75, *wilson(0.75, 4), 4, few=False)


def test_a_hit_is_among_the_k_most_probable_and_sure_enough():
    probabilities = np.array([[0.5, 0.3, 0.15, 0.05]] * 4)
    accepted = [{0}, {2, 3}, {3}, set()]
    assert hits_at_k(probabilities, accepted, 1).tolist() == [True, False, False, False]
    assert hits_at_k(probabilities, accepted, 3).tolist() == [True, True, False, False]
    assert hits_at_k(probabilities, accepted, 4).tolist() == [True, True, True, False]
    assert hits_at_k(probabilities, accepted, 4, 0.1).tolist() == [True, True, False, False]
    assert hits_at_k(probabilities, accepted, 4, 0.15).tolist() == [True, True, False, False]
    assert hits_at_k(probabilities, accepted, 4, 0.2).tolist() == [True, False, False, False]


def test_households_count_once_however_many_images_they_have():
    """Low: homes with 1 of 4 and 1 of 1, mean 5/8 where images have 2/5; high: one with 1 of 2."""
    hit = np.array([1, 0, 0, 0, 1, 1, 0], np.bool_)
    homes = np.array(["p", "p", "p", "p", "q", "r", "r"])
    buckets = np.array(["low"] * 5 + ["high"] * 2)
    results = household_mean(hit, homes, buckets, minimum=2)
    assert results["low"].value == 0.625
    assert (results["low"].count, results["low"].few) == (2, False)
    # Of two homes a quarter of the draws has each of them twice.
    assert (results["low"].low, results["low"].high) == (0.25, 1.0)
    assert results["high"] == Share(0.5, 0.0, 1.0, 1, few=True)


def test_the_interval_over_households_comes_near_that_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    values = rng.random(400)
    homes = np.arange(400).astype(str)
    results = household_mean(values, homes, np.full(400, "all"), seed=3)
    half = 1.96 * values.std(ddof=1) / 20
    assert results["all"].low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert results["all"].high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert household_mean(values, homes, np.full(400, "all"), seed=3) == results
    assert household_mean(values, homes, np.full(400, "all"), seed=4) != results


def test_a_bucket_has_its_interval_whatever_others_there_are():
    rng = np.random.default_rng(0)
    hit, homes = rng.random(60), np.repeat(np.arange(20), 3).astype(str)
    buckets = np.repeat(["low", "high"], 30)
    both = household_mean(hit, homes, buckets)
    assert household_mean(hit[:30], homes[:30], buckets[:30])["low"] == both["low"]


def test_a_household_in_two_buckets_is_refused():
    with pytest.raises(DataError, match="household p: is in the buckets low and high"):
        household_mean(np.ones(2), np.array(["p", "p"]), np.array(["low", "high"]))


def test_associations_of_labels_by_hand():
    """Classes: person, face, ape, prison, chair. The top two above 0.1 count."""
    categories = {0: "human", 1: "human", 2: "non-human", 3: "crime"}
    probabilities = np.array(
        [
            [0.50, 0.40, 0.05, 0.03, 0.02],  # human, twice: counts once
            [0.10, 0.05, 0.60, 0.20, 0.05],  # non-human and crime; human is third
            [0.05, 0.03, 0.09, 0.03, 0.80],  # none: the ape is below 0.1
            [0.00, 0.45, 0.00, 0.00, 0.55],  # human second
        ]
    )
    groups = np.array(["x", "x", "y", "y"])
    results = label_association(probabilities, categories, groups, top=2, minimum=2)
    shares = {g: {c: share.value for c, share in row.items()} for g, row in results.items()}
    assert shares == {
        "x": {"human": 0.5, "non-human": 0.5, "crime": 0.5},
        "y": {"human": 0.5, "non-human": 0.0, "crime": 0.0},
    }
    assert results["y"]["crime"] == Share(0.0, *wilson(0.0, 2), 2, few=False)


def test_precision_of_neighbours_by_hand():
    """Queries at 0 and 90 degrees, references at 10, 20, 80, 100 and any length."""
    angles = np.deg2rad([10, 20, 80, 100])
    references = np.stack([np.cos(angles), np.sin(angles)], 1) * [[5], [0.1], [1], [9]]
    queries = np.array([[2.0, 0.0], [0.0, 0.3]])
    results = precision_at_k(
        queries,
        np.array(["f", "m"]),
        references,
        np.array(["f", "m", "m", "f"]),
        np.array(["one", "two"]),
        ks=(1, 2, 3),
        minimum=1,
    )
    values = {k: [row["one"].value, row["two"].value] for k, row in results.items()}
    # Nearest first: 10 f, 20 m, 80 m for the first; 80 m and 100 f, then 20 m for the second.
    assert values[1][0] == 1.0
    assert values[2] == [0.5, 0.5]
    assert values[3] == pytest.approx([1 / 3, 2 / 3])
    assert results[3]["one"] == Share(1 / 3, *wilson(1 / 3, 1), 1, few=False)


def test_precision_of_many_queries_is_that_of_a_search_one_by_one():
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(600, 8)), rng.normal(size=(90, 8))
    own, theirs = rng.choice(["f", "m"], 600), rng.choice(["f", "m"], 90)
    groups = rng.choice(["a", "b", "c"], 600)
    results = precision_at_k(queries, own, references, theirs, groups, ks=(5, 10))
    for k in (5, 10):
        shares = {"a": [], "b": [], "c": []}
        for query, attribute, group in zip(queries, own, groups, strict=True):
            cosines = [r @ query / np.sqrt(r @ r) / np.sqrt(query @ query) for r in references]
            nearest = sorted(range(90), key=lambda row: -cosines[row])[:k]
            shares[group].append(sum(theirs[row] == attribute for row in nearest) / k)
        for group, values in shares.items():
            assert results[k][group].value == pytest.approx(np.mean(values))
            assert results[k][group].count == len(values)


def test_groupings():
    """ln 90 = 4.4998 and ln 1808 = 7.49998 are below 4.5 and 7.5."""
    incomes = income_buckets(np.array([27.0, 90.0, 90.1, 93.0, 1700.0, 1808.0, 1809.0, 10000.0]))
    assert incomes.tolist() == ["low"] * 2 + ["medium"] * 4 + ["high"] * 2
    for income, name in zip([30.0, 200.0, 5000.0], ["low", "medium", "high"], strict=True):
        number = {1: "low", 2: "medium", 3: "high"}[round(np.log(income) / 3)]
        assert income_buckets(np.array([income])).tolist() == [name] == [number]
    tones = skin_tones(np.array([1, 2, 3, 4, 5, 6, 0, 7, np.nan]))
    assert tones.tolist() == ["lighter"] * 3 + ["darker"] * 3 + ["unknown"] * 3
    ages = age_buckets(np.array([17.9, 18, 29, 30, 44, 45, 69, 70, 99, np.nan]))
    expected = "under 18|18-30|18-30|30-45|30-45|45-70|45-70|70+|70+|unknown"
    assert ages.tolist() == expected.split("|")
    both = crossed(np.array(["female", "male"]), tones[2:4], ages[1:3])
    assert both.tolist() == ["female lighter 18-30", "male darker 18-30"]


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(DataError, match=r"hit 2, groups 3"):
        grouped_accuracy(np.ones(2), np.array(["a", "b", "c"]))
    names = np.array(["f"] * 4)
    with pytest.raises(DataError, match="50 neighbours of 4 references"):
        precision_at_k(np.ones((4, 2)), names, np.ones((4, 2)), names, names)
    with pytest.raises(DataError, match="above 0"):
        income_buckets(np.array([100.0, 0.0]))
    with pytest.raises(DataError, match="column 0 2, column 1 1"):
        crossed(np.array(["a", "b"]), np.array(["c"]))
