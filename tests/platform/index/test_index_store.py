import numpy as np
import pytest

from farreach.errors import DataError
from farreach.index import shards, store
from farreach.index import state as states
from farreach.index.files import only_writer
from farreach.index.hits import Hits
from farreach.index.kinds import IndexConfig
from farreach.index.store import WASTE, Index
from farreach.index.vectors import Vectors

KINDS = ["flat", "ivf_flat", "ivf_fastscan", "hnsw", "sq8"]


def config(kind="flat", **settings):
    return IndexConfig.model_validate({"kind": kind, "lists": 10, "probes": 10, **settings})


def language(i):
    return {"lang": "de" if i % 125 == 0 else "en", "third": str(i % 3)}


@pytest.fixture
def built(embedded, tmp_path):
    """Builds an index over vectors, named `name`; other arguments are settings or of `embedded`."""

    def build(name, vectors, kind="flat", prefix="d", **settings):
        folder = embedded(f"{name}-vectors", vectors, meta=language, prefix=prefix)
        return Index.build(folder, tmp_path / name, config(kind, **settings))

    return build


def same(one, other):
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.scores, other.scores)


def files(index):
    return {file.name for file in index.path.iterdir()} - {".lock", "manifest.json"}


@pytest.mark.parametrize("kind", KINDS)
def test_search_finds_what_numpy_finds_and_names_it(built, clustered, truth, kind):
    vectors, queries = clustered(1500), clustered(12, seed=1)
    index = built("a", vectors, kind, ef=300)
    hits = index.search(queries, 10)
    scores, rows = truth(vectors, queries, 10)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-5)
    assert index.ids(hits.rows[0]) == [f"d{row}" for row in rows[0]]
    assert [d.title for d in index.documents(hits.rows[0][:2])] == [
        f"title {r}" for r in rows[0][:2]
    ]
    assert (index.count, index.width, index.model) == (1500, 32, "0123abcd")


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_opened_again_finds_the_same(built, clustered, kind):
    queries = clustered(12, seed=1)
    index = built("a", clustered(1500), kind)
    same(Index.open(index.path).search(queries, 10), index.search(queries, 10))


def test_codes_of_pieces_are_searched_and_changed_as_other_kinds_are(
    built, embedded, clustered, truth, tmp_path
):
    """ivf_pq, whose codes need 9,984 vectors to be trained; all candidates are scored again."""
    vectors, queries = clustered(11_000, width=16), clustered(8, width=16, seed=1)
    index = built("a", vectors, "ivf_pq", shards=2, rerank=400, lists=4, probes=4)

    def check(index, vectors, left=None, where=None):
        for one in (index, Index.open(index.path)):
            hits = one.search(queries, 10, where=where)
            np.testing.assert_array_equal(hits.rows, truth(vectors, queries, 10, left)[1])

    check(index, vectors)
    third = np.arange(len(vectors)) % 3 == 1
    check(index, vectors, third, "third = '1'")
    gone = np.unique(index.search(queries, 3).rows)
    index.delete([f"d{row}" for row in gone])
    alive = ~np.isin(np.arange(len(vectors)), gone)
    check(index, vectors, alive)
    more = clustered(300, width=16, seed=2)
    index.add(embedded("more", more, prefix="n", meta=language))
    both, found = np.concatenate([vectors, more]), np.concatenate([alive, np.ones(300, bool)])
    check(index, both, found)
    index.compact()
    check(index, both[found])
    other = built("b", clustered(10_000, width=16, seed=3), "ivf_pq", prefix="x", rerank=400)
    merged = Index.merge([index.path, other.path], tmp_path / "merged")
    check(merged, np.concatenate([both[found], clustered(10_000, width=16, seed=3)]))


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "sq8"])
def test_four_shards_find_the_same_as_one_to_the_bit(built, clustered, kind):
    vectors, queries = clustered(2000), clustered(30, seed=1)
    whole = built("whole", vectors, kind, probes=3)
    parted = built("parted", vectors, kind, probes=3, shards=4)
    assert len(parted.state.shards) == 4
    same(parted.search(queries, 10), whole.search(queries, 10))
    where = "third = '1'"
    same(parted.search(queries, 10, where=where), whole.search(queries, 10, where=where))


def test_vectors_in_half_precision_are_kept_and_searched_as_such(embedded, clustered, truth):
    vectors, queries = clustered(300), clustered(5, seed=1)
    folder = embedded("v", vectors, dtype=np.float16)
    index = Index.build(folder, folder.with_name("i"), config())
    rows = truth(vectors.astype(np.float16), queries, 5)[1]
    np.testing.assert_array_equal(index.search(queries, 5).rows, rows)


def test_numbers_that_half_precision_does_not_hold_are_refused(built, clustered):
    with pytest.raises(DataError, match=r"norm 1e\+05, which half precision does not hold"):
        built("a", 1e5 * clustered(100), "ivf_flat")


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "hnsw", "sq8"])
def test_more_hits_than_documents_give_each_document_once(built, clustered, kind):
    hits = built("a", clustered(70), kind, lists=1).search(clustered(3, seed=1), 100)
    assert hits.rows.shape == (3, 100)
    for row in hits.rows:
        assert sorted(row[:70].tolist()) == list(range(70))
        assert (row[70:] == -1).all()
    assert np.isneginf(hits.scores[:, 70:]).all()


def test_lists_with_too_few_vectors_do_not_cost_hits(built, clustered):
    index = built("a", clustered(1000), "ivf_flat", lists=20, probes=1)
    assert (index.search(clustered(5, seed=1), 400).counts() == 400).all()


@pytest.mark.parametrize(
    ("queries", "k", "model", "message"),
    [
        (np.zeros((2, 31)), 5, None, r"shape \(2, 31\), and vectors here have 32 numbers"),
        (np.zeros((2, 2, 32)), 5, None, r"shape \(2, 2, 32\)"),
        (np.zeros(32), 0, None, "0 hits were asked for"),
        (np.full((2, 32), np.nan), 5, None, "2 queries are not finite"),
        (np.zeros(32), 5, "ffff", "by the model '0123abcd', and the queries by 'ffff'"),
    ],
)
def test_queries_that_cannot_be_right_are_refused(built, clustered, queries, k, model, message):
    with pytest.raises(DataError, match=message):
        built("a", clustered(50)).search(queries, k, model=model)


def test_the_hash_of_the_right_model_is_taken(built, clustered):
    vectors = clustered(50)
    assert built("a", vectors).search(vectors[7], 1, model="0123abcd").rows.tolist() == [[7]]


@pytest.mark.parametrize(("kind", "pieces", "rerank"), [("ivf_pq", 2, 40), ("ivf_fastscan", 4, 80)])
def test_codes_are_ranked_by_the_vectors_they_stand_for(
    built, clustered, truth, kind, pieces, rerank
):
    vectors, queries = clustered(10_000, 8), clustered(20, 8, seed=1)
    index = built("a", vectors, kind, subquantizers=pieces, rerank=rerank)
    rows = truth(vectors, queries, 10)[1]
    hits = index.search(queries, 10)
    assert (hits.rows == rows).mean() > 0.95
    for query, found in enumerate(hits.rows):
        exact = (vectors[found].astype(np.float64) @ queries[query].astype(np.float64)).tolist()
        np.testing.assert_allclose(hits.scores[query], exact, rtol=1e-6)
        assert exact == sorted(exact, reverse=True)
    rough = index.search(queries, 10, config=index.config.model_copy(update={"rerank": 0}))
    assert (rough.rows == rows).mean() < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_deleted_documents_are_not_found_again(built, clustered, truth, kind):
    vectors, queries = clustered(1000), clustered(8, seed=1)
    index = built("a", vectors, kind, shards=2, ef=300)
    gone = np.unique(index.search(queries, 3).rows)
    index.delete([f"d{row}" for row in gone])
    left = ~np.isin(np.arange(1000), gone)
    for one in (index, Index.open(index.path)):
        np.testing.assert_array_equal(
            one.search(queries, 10).rows, truth(vectors, queries, 10, left)[1]
        )
        assert one.count == left.sum()
        assert one.row_of(f"d{gone[0]}") is None


def test_unknown_ids_are_counted_and_named_and_nothing_is_deleted(built, clustered):
    index = built("a", clustered(50))
    with pytest.raises(DataError, match=r"2 of 3 ids to delete are not there: 'x', 'y'\. Nothing"):
        index.delete(["d1", "x", "y"])
    assert index.count == 50
    index.delete(["d1", "d1"])
    with pytest.raises(DataError, match="1 of 1 ids to delete are not there: 'd1'"):
        index.delete(["d1"])


def test_all_may_be_deleted_and_then_nothing_is_found(built, clustered):
    index = built("a", clustered(20))
    index.delete([f"d{i}" for i in range(20)])
    assert (index.search(clustered(2, seed=1), 3).rows == -1).all()
    with pytest.raises(DataError, match="no document is left"):
        index.compact()


@pytest.mark.parametrize("kind", KINDS)
def test_added_documents_are_found_beside_those_that_were_there(
    built, embedded, clustered, truth, kind
):
    old, new, queries = clustered(900), clustered(100, seed=2), clustered(8, seed=1)
    index = built("a", old, kind, ef=300)
    assert index.add(embedded("new", new, prefix="n")) == 0
    for one in (index, Index.open(index.path)):
        hits = one.search(queries, 10)
        np.testing.assert_array_equal(hits.rows, truth(np.concatenate([old, new]), queries, 10)[1])
        assert one.ids(np.array([899, 900])) == ["d899", "n0"]
    assert index.waste == pytest.approx(0.1)


def test_an_id_that_is_there_is_refused_or_replaced(built, embedded, clustered):
    old, new = clustered(60), clustered(5, seed=2)
    index, folder = built("a", old), embedded("new", new)
    with pytest.raises(DataError, match="5 of the ids to add are there already: 'd0', 'd1'"):
        index.add(folder)
    assert index.count == 60
    assert index.add(folder, replacing=True) == 5
    assert (index.count, index.row_of("d3"), index.row_of("d30")) == (60, 63, 30)
    assert index.search(new[3], 1).rows.tolist() == [[63]]
    assert 3 not in index.search(old[3], 60).rows
    # The same once more, from the same files, and deleted and added again.
    assert index.add(folder, replacing=True) == 5
    index.delete(["d3"])
    with pytest.raises(DataError, match="4 of the ids"):
        index.add(folder)
    assert Index.open(index.path).count == 59


def test_documents_of_another_model_or_width_cannot_be_added(built, embedded, clustered):
    index = built("a", clustered(60))
    with pytest.raises(DataError, match="has another model: 'ffff' and not '0123abcd'"):
        index.add(embedded("b", clustered(5), prefix="n", model="ffff"))
    with pytest.raises(DataError, match="has vectors of other width: 16 and not 32"):
        index.add(embedded("c", clustered(5, 16), prefix="n"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["lang = 'de'", "third = '1'", "lang != 'de' and third != '1'"])
def test_a_filter_leaves_the_best_of_what_it_selects(built, clustered, truth, kind, where):
    # Of the documents 0.8 %, a third, and two thirds.
    vectors, queries = clustered(1500), clustered(8, seed=1)
    index = built("a", vectors, kind, ef=400)
    third = np.arange(1500) % 3 == 1
    selected = {"lang = 'de'": np.arange(1500) % 125 == 0, "third = '1'": third}.get(
        where, (np.arange(1500) % 125 != 0) & ~third
    )
    hits = index.search(queries, 10, where=where)
    np.testing.assert_array_equal(hits.rows, truth(vectors, queries, 10, selected)[1])
    same(index.search(queries, 10, where=where), hits)


def test_a_filter_that_selects_few_is_exact_however_little_is_looked_at(built, clustered, truth):
    vectors, queries = clustered(3000), clustered(8, seed=1)
    index = built("a", vectors, "ivf_flat", probes=1)
    selected = (np.arange(3000) % 125 == 0) & (np.arange(3000) % 3 == 1)
    hits = index.search(queries, 8, where="lang = 'de' and third = '1'")
    assert selected.sum() == 8
    np.testing.assert_array_equal(hits.rows, truth(vectors, queries, 8, selected)[1])


def test_a_filter_and_deletions_go_together(built, clustered):
    vectors = clustered(400)
    index = built("a", vectors)
    assert index.search(vectors[125], 9, where="lang = 'de'").counts().tolist() == [4]
    index.delete(["d125"])
    assert sorted(index.search(vectors[125], 3, where="lang = 'de'").rows[0]) == [0, 250, 375]
    assert index.search(vectors[125], 3, where="lang = 'fr'").counts().tolist() == [0]
    with pytest.raises(DataError, match=r"nothing called 'long'\. Did you mean 'lang'"):
        index.search(vectors[:1], 1, where="long = 'de'")


@pytest.mark.parametrize("kind", KINDS)
def test_compacting_takes_everything_into_shards(built, embedded, clustered, truth, kind):
    old, new, queries = clustered(900), clustered(300, seed=2), clustered(8, seed=1)
    index = built("a", old, kind, shards=2, ef=300)
    index.add(embedded("new", new, prefix="n"))
    index.delete(["d5", "d899", "n7", *(f"n{i}" for i in range(200, 300))])
    before = index.search(queries, 10)
    names = [index.ids(rows) for rows in before.rows]
    assert index.waste == pytest.approx((300 + 103) / 1200)
    assert index.waste > WASTE
    index.compact()
    after = index.search(queries, 10)
    assert [index.ids(rows) for rows in after.rows] == names
    np.testing.assert_allclose(after.scores, before.scores, rtol=1e-5)
    assert (index.waste, index.count, index.state.rows) == (0, 1097, 1097)
    assert index.documents(np.array([5]))[0].id == "d6"


def test_files_of_the_state_before_stay_until_the_next_change(built, clustered):
    index = built("a", clustered(300), "ivf_flat")
    reader, queries = Index.open(index.path), clustered(3, seed=1)
    before = reader.search(queries, 5)
    index.delete(["d1"])
    index.compact()
    same(reader.search(queries, 5), before)
    assert reader.documents(np.array([1]))[0].id == "d1"
    assert reader.refresh()
    assert not reader.refresh()
    assert reader.count == 299
    index.delete(["d2"])
    index.delete(["d3"])
    assert files(index) == index.state.files() | set(index.state.earlier)


def test_merged_indexes_find_what_one_index_finds(built, clustered, truth, tmp_path):
    one, other, queries = clustered(800), clustered(500, seed=2), clustered(8, seed=1)
    for kind in ("flat", "ivf_flat", "sq8"):
        first = built(f"{kind}-1", one, kind, shards=2)
        second = built(f"{kind}-2", other, kind, prefix="n")
        second.delete(["n3"])
        index = Index.merge([first.path, second.path], tmp_path / f"{kind}-both")
        left = np.arange(1300) != 803
        hits = index.search(queries, 10)
        rows = truth(np.concatenate([one, other]), queries, 10, left)[1]
        np.testing.assert_array_equal(hits.rows, rows)
        assert (index.count, len(index.state.shards)) == (1299, 3)
        assert index.ids(np.array([799, 800])) == ["d799", "n0"]


def test_indexes_that_do_not_fit_together_are_not_merged(built, embedded, clustered, tmp_path):
    first = built("a", clustered(200))
    lists = built("b", clustered(200), "ivf_flat", prefix="n")
    with pytest.raises(DataError, match=r"b: is of kind ivf_flat, and .*a is of kind flat"):
        Index.merge([first.path, lists.path], tmp_path / "m")
    again = built("c", clustered(3, seed=3))
    with pytest.raises(DataError, match="3 ids belong to several documents: 'd0', 'd1', 'd2'"):
        Index.merge([first.path, again.path], tmp_path / "m")
    other = Index.build(embedded("v", clustered(9), model="ffff"), tmp_path / "o", config())
    with pytest.raises(DataError, match="has another model"):
        Index.merge([first.path, other.path], tmp_path / "m")
    with pytest.raises(DataError, match="is one of those to merge"):
        Index.merge([first.path, again.path], again.path)
    with pytest.raises(DataError, match="no index to merge"):
        Index.merge([], tmp_path / "m")
    assert not (tmp_path / "m" / "manifest.json").exists()
    first.delete(["d0", "d1", "d2"])
    assert Index.merge([first.path, again.path], tmp_path / "m").count == 200


def test_a_build_that_broke_off_goes_on_and_leaves_the_old_index_in_use(
    built, embedded, clustered, monkeypatch
):
    index, queries = built("a", clustered(200), "ivf_flat"), clustered(3, seed=1)
    before = index.search(queries, 5)
    folder, calls = embedded("more", clustered(600, seed=5)), []

    def build_shard(path, vectors, shard):
        calls.append(shard.begin)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(path, vectors, shard)

    original = shards.build_shard
    monkeypatch.setattr(shards, "build_shard", build_shard)
    settings = config("ivf_flat", shards=4)
    with pytest.raises(KeyboardInterrupt):
        Index.build(folder, index.path, settings)
    same(Index.open(index.path).search(queries, 5), before)
    monkeypatch.setattr(shards.kinds, "trained", lambda *_: pytest.fail("trained again"))
    rebuilt = Index.build(folder, index.path, settings)
    assert calls == [0, 150, 300, 300, 450]
    assert rebuilt.count == 600
    same(index.search(queries, 5), before)
    assert files(rebuilt) == rebuilt.state.files() | set(rebuilt.state.earlier)


def test_a_merge_that_broke_off_can_be_run_again(built, clustered, tmp_path, monkeypatch):
    paths = [built(name, clustered(50, seed=3), prefix=name).path for name in ("a", "b")]
    with monkeypatch.context() as patch:
        patch.setattr(states, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Index.merge(paths, tmp_path / "m")
    with pytest.raises(DataError, match=r"m: has no manifest\.json"):
        Index.open(tmp_path / "m")
    assert Index.merge(paths, tmp_path / "m").count == 100


@pytest.mark.parametrize("change", ["add", "delete", "compact"])
def test_a_change_that_broke_off_changes_nothing(built, embedded, clustered, monkeypatch, change):
    index, queries = built("a", clustered(200), "ivf_flat"), clustered(3, seed=1)
    index.delete(["d7"])
    new = embedded("new", clustered(20, seed=2), prefix="n")
    work = {
        "add": lambda: index.add(new),
        "delete": lambda: index.delete(["d9"]),
        "compact": lambda: index.compact(),
    }[change]
    before = index.search(queries, 5)
    with monkeypatch.context() as patch:
        patch.setattr(store.states, "atomic_write", lambda *_: (_ for _ in ()).throw(OSError))
        with pytest.raises(OSError, match=r"^$"):
            work()
    same(index.search(queries, 5), before)
    same(Index.open(index.path).search(queries, 5), before)
    work()
    assert index.count == {"add": 219, "delete": 198, "compact": 199}[change]


def test_a_reader_that_opens_while_a_writer_moves_on_sees_the_new_state(
    built, clustered, monkeypatch
):
    index = built("a", clustered(200), "ivf_flat")
    old = index.state
    index.delete(["d1"])
    index.compact()
    index.delete(["d2"])
    index.delete(["d3"])
    present = states.read
    answers = [old]
    monkeypatch.setattr(states, "read", lambda path: answers.pop() if answers else present(path))
    assert Index.open(index.path).count == 197


def test_one_writer_at_a_time(built, clustered):
    index = built("a", clustered(50))
    with only_writer(index.path), pytest.raises(DataError, match="another process is writing"):
        index.delete(["d1"])


def test_a_writer_sees_what_others_have_changed_since_it_was_opened(built, clustered):
    one = built("a", clustered(50))
    other = Index.open(one.path)
    one.delete(["d1"])
    other.delete(["d2"])
    assert (one.refresh(), one.count, other.count) == (True, 48, 48)


def test_the_folder_of_the_vectors_stays_as_it_was(embedded, clustered, tmp_path):
    folder = embedded("v", clustered(50))
    with pytest.raises(DataError, match="holds the vectors"):
        Index.build(folder, folder, config())
    index = Index.build(folder, tmp_path / "i", config())
    index.delete(["d1"])
    index.compact()
    assert Vectors.open(folder).count == 50
    with pytest.raises(DataError, match="holds embedded documents and no index"):
        Index.build(tmp_path / "v", embedded("w", clustered(5)), config())


def test_tuning_keeps_the_least_effort_that_finds_enough(built):
    vectors = np.random.default_rng(0).standard_normal((2200, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[2000:]
    for kind, setting, most in (("ivf_flat", "probes", 40), ("hnsw", "ef", 2000)):
        index = built(kind, vectors[:2000], kind, lists=40, probes=40, ef=2000)
        reached = index.tune(queries, recall=0.97)
        effort = getattr(Index.open(index.path).config, setting)
        assert reached >= 0.97
        assert effort < most

        def recall(index, effort, setting=setting):
            settings = index.config.model_copy(update={setting: effort})
            found = index.search(queries, 10, config=settings)
            rows = index.search_exactly(queries, 10).rows
            return (found.rows[:, :, None] == rows[:, None, :]).any(2).mean()

        assert recall(index, effort) == pytest.approx(reached)
        if kind == "ivf_flat":
            assert recall(index, effort - 1) < 0.97


@pytest.mark.parametrize(("kind", "pieces"), [("ivf_pq", 1), ("ivf_fastscan", 2)])
def test_tuning_raises_the_candidates_of_codes_that_find_too_little(built, clustered, kind, pieces):
    index = built("a", clustered(10_000, 8), kind, subquantizers=pieces, rerank=1)
    reached = index.tune(clustered(100, 8, seed=1), recall=0.8)
    assert reached >= 0.8
    assert index.config.rerank > 1


@pytest.mark.parametrize("content", ["{", "[]", '{"index": 9}', '{"index": 1, "config": {}}'])
def test_a_damaged_manifest_is_named(built, clustered, content):
    index = built("a", clustered(50))
    (index.path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"a/manifest\.json: "):
        Index.open(index.path)


def test_an_index_whose_file_is_missing_says_which(built, clustered):
    index = built("a", clustered(200), "sq8")
    (index.path / str(index.state.shards[0].file)).unlink()
    with pytest.raises(DataError, match=r"shard-.*\.faiss: cannot be read"):
        Index.open(index.path)


def test_no_hits_of_a_search_can_be_taken_for_a_document(built, clustered):
    index = built("a", clustered(3))
    hits = index.search(clustered(1, seed=1), 5)
    assert isinstance(hits, Hits)
    with pytest.raises(DataError, match="there is no row -1"):
        index.ids(hits.rows[0])
    assert len(index.ids(hits.of(0)[1])) == 3
