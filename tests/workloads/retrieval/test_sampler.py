import hashlib
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from farreach.errors import ConfigError, DataError
from farreach.learn.order import share
from farreach_workloads.retrieval.sampler import Chunks, MixConfig, PairData, rarity
from farreach_workloads.retrieval.spans import SpansConfig, Vocabulary

WORDS = Vocabulary(cls=1, sep=2, pad=0, mask=3, first_word=10, size=30522)
CHUNK = 16


class Fake:
    """A token store in memory."""

    def __init__(self, ids, documents=(0,), size=WORDS.size, vocabulary="of the tests"):
        self._ids = np.asarray(ids, np.uint16)
        self._limits = np.append(documents, len(self._ids))
        self.tokens, self.size, self.vocabulary = len(self._ids), size, vocabulary

    def windows(self, starts, length):
        assert starts.min() >= 0
        assert starts.max() + length <= self.tokens
        return self._ids[starts[:, None] + np.arange(length)]

    def bounds(self, positions):
        after = np.searchsorted(self._limits, positions, side="right")
        return self._limits[after - 1], self._limits[after]


def of_windows(count):
    """A store whose passes have `count` windows, and one token less than another would take."""
    return Fake(np.arange(CHUNK * (count + 1) - 1) % 30_000 + 10)


def chunks(sizes, seed=0, **settings):
    stores = {f"corpus {i}": of_windows(size) for i, size in enumerate(sizes)}
    return Chunks(stores, MixConfig(**settings), CHUNK, seed)


def data(stores, seed=0, replacement=True, length=CHUNK, samples=None, **settings):
    drawn = Chunks(stores, MixConfig(replacement=replacement), length, seed)
    return PairData(drawn, SpansConfig(chunk=length, **settings), WORDS, seed, samples)


@pytest.mark.parametrize(
    ("alpha", "shares"), [(0.0, (1, 1, 1)), (0.5, (1, 2, 4)), (1.0, (1, 4, 16))]
)
@pytest.mark.parametrize("replacement", [True, False])
def test_corpora_come_as_often_as_a_power_of_their_size(alpha, shares, replacement):
    mix = chunks((1, 4, 16), alpha=alpha, replacement=replacement)
    expected = np.array(shares) / sum(shares)
    np.testing.assert_allclose(mix.probabilities, expected)
    assert mix.count == 21
    corpora, _ = mix.draw(np.arange(20_480 if replacement else 2048))
    drawn = np.bincount(corpora, minlength=3)
    if replacement:
        assert stats.chisquare(drawn, expected * 20_480).pvalue > 1e-3
    else:
        # The schedule of 1,024 places comes within a place of it.
        np.testing.assert_allclose(drawn / 2, expected * 1024, atol=0.7)


def test_with_replacement_any_token_begins_a_window():
    corpora, starts = chunks((2, 9)).draw(np.arange(40_000))
    for corpus, tokens in ((0, 47), (1, 159)):
        drawn = np.bincount(starts[corpora == corpus], minlength=tokens - CHUNK + 1)
        assert len(drawn) == tokens - CHUNK + 1
        assert stats.chisquare(drawn).pvalue > 1e-3
    assert abs(np.corrcoef(starts[1:], starts[:-1])[0, 1]) < 0.015


def test_a_pass_shows_every_window_once_and_the_next_ones_cut_elsewhere():
    for sizes in ((7,), (7, 100, 3)):
        corpora, starts = chunks(sizes, replacement=False, alpha=0.5).draw(np.arange(4096))
        for corpus, size in enumerate(sizes):
            shown = starts[corpora == corpus]
            passes = shown[: len(shown) // size * size].reshape(-1, size)
            grids = np.sort(passes, axis=1)
            assert len(passes) > 20
            assert (np.diff(grids, axis=1) == CHUNK).all()
            # Of 16 (c + 1) - 1 tokens 15 are left over: a pass begins at any of the first 16.
            firsts = np.bincount(grids[:, 0], minlength=CHUNK)
            assert len(firsts) == CHUNK
            assert (firsts > 0).sum() > 10
            assert len({tuple(row) for row in (passes - grids[:, :1]).tolist()}) > 5


def test_every_corpus_has_a_place_in_the_schedule():
    mix = chunks((1, 1, 30_000), replacement=False, alpha=1.0)
    corpora, _ = mix.draw(np.arange(2048))
    assert np.bincount(corpora).tolist() == [2, 2, 2044]
    assert corpora[:1024].tolist() == corpora[1024:].tolist()


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("augmentation", ["delete", "replace", "shuffle"])
def test_samples_do_not_depend_on_workers_or_restarts(replacement, augmentation):
    stores = {"a": of_windows(40), "b": of_windows(90)}
    settings = {"replacement": replacement, "augmentation": augmentation, "ratio": (0.3, 1.0)}
    batch, steps = 30, 5

    def sequence(world, first):
        """All pairs from step `first` on, each worker with data of its own."""
        workers = [pickle.loads(pickle.dumps(data(stores, **settings))) for _ in range(world)]
        found = []
        for step in range(first, steps):
            positions = step * batch + np.arange(batch)
            for rank, worker in enumerate(workers):
                own = positions[share(batch, rank, world)]
                part = {k: v.tolist() for k, v in worker.batch(own * 0, own).items()}
                found += [
                    (query[:size], key[:other])
                    for query, size, key, other, *_ in zip(*part.values(), strict=True)
                ]
        return found

    alone = sequence(1, 0)
    assert len(alone) == batch * steps
    for world in (2, 4):
        assert sequence(world, 0) == alone
    assert sequence(4, 2) == alone[2 * batch :]
    assert len({tuple(query + key) for query, key in alone}) > 0.9 * batch * steps


def test_batches_are_tensors_of_padded_ids():
    found = data({"a": of_windows(40)}, samples=123).batch(np.arange(9), np.arange(9))
    assert set(found) == {*("query", "query_length", "key", "key_length", "source", "place")}
    assert {value.dtype for value in found.values()} == {torch.int64}
    for side in ("query", "key"):
        ids, sizes = found[side], found[f"{side}_length"]
        assert ids.shape == (9, int(sizes.max()))
        assert (ids[:, 0] == WORDS.cls).all()
        assert (ids[torch.arange(9), sizes - 1] == WORDS.sep).all()
        assert ((ids != WORDS.pad).sum(1) == sizes).all()


def test_an_epoch_has_all_windows_unless_it_is_said():
    stores = {"a": of_windows(40), "b": of_windows(2)}
    assert len(data(stores)) == 42
    assert len(data(stores, samples=1000)) == 1000


def test_tokens_come_from_the_corpus_and_place_that_were_drawn():
    stores = {"a": Fake(np.arange(1000, 1200)), "b": Fake(np.arange(5000, 5100))}
    mix = Chunks(stores, MixConfig(), CHUNK, 0)
    corpora, starts = mix.draw(np.arange(50))
    windows = mix.windows(corpora, starts)
    begins = np.array([1000, 5000])[corpora] + starts
    np.testing.assert_array_equal(windows, begins[:, None] + np.arange(CHUNK))


DOCUMENTS = np.array([0, 3, 43, 44, 60, 95])


def of_documents():
    """Each token is 10 + the number of its document; the last one has 5 tokens."""
    lengths = np.diff(np.append(DOCUMENTS, 100))
    return Fake(np.repeat(10 + np.arange(len(DOCUMENTS)), lengths), DOCUMENTS)


def test_windows_move_into_the_document_where_they_start():
    mix = Chunks({"a": of_documents()}, MixConfig(), CHUNK, 0)
    starts = np.array([0, 2, 3, 20, 40, 43, 44, 59, 80, 84])
    reads, (begins, ends) = mix.inside_documents(np.zeros(10, np.int64), starts)
    assert (reads + begins).tolist() == [0, 0, 3, 20, 27, 43, 44, 44, 79, 79]
    assert (reads + ends).tolist() == [3, 3, 19, 36, 43, 44, 60, 60, 95, 95]
    # All that is read from the last document begins before it.
    reads, (begins, ends) = mix.inside_documents(np.zeros(1, np.int64), np.array([97]))
    assert (reads[0], begins[0], ends[0]) == (84, 11, 16)


@pytest.mark.parametrize("kind", ["crop", "ict"])
def test_texts_stay_in_one_document_if_they_shall(kind):
    settings = {"kind": kind, "augmentation": "none", "ratio": (0.2, 1.0)}
    positions = np.arange(4000)
    found = data({"a": of_documents()}, respect_documents=True, **settings).batch(
        positions, positions
    )
    texts = torch.cat([found["query"], found["key"]], 1)
    words = torch.where(texts >= 10, texts, -1)
    document = words.max(1).values
    assert ((words == -1) | (words == document[:, None])).all()
    # Documents of 3, 40, 1 and 16 tokens come up by length; of the last tokens none begins a
    # window.
    drawn = torch.bincount(document - 10).numpy()
    assert stats.chisquare(drawn, np.array([3, 40, 1, 16, 25]) / 85 * 4000).pvalue > 1e-3
    longest = [found["query_length"][document == 10 + i].max().item() - 2 for i in range(4)]
    # ⌊r n⌋ with r below 1, but one token at least.
    assert longest == [2, 15, 1, 15]
    across = data({"a": of_documents()}, **settings).batch(positions, positions)
    words = torch.where(across["query"] >= 10, across["query"], -1)
    assert ((words != -1) & (words != words.max(1, keepdim=True).values)).any()


def test_words_in_fewer_windows_are_rarer():
    """Of 4 windows word 10 is in all, 11 in two, 12 in one: log 4/5 (at least 0.05), 4/3, 4/2."""
    ids = np.full(4 * CHUNK, 10)
    ids[[1, 2, CHUNK + 3]] = 11
    ids[2 * CHUNK + 5] = 12
    found = rarity({"a": Fake(ids, size=13)}, CHUNK)
    raw = np.array([*[np.log(4)] * 10, 0.05, np.log(4 / 3), np.log(4 / 2)])
    np.testing.assert_allclose(found, raw / raw.mean(), rtol=1e-6)


def test_pairs_that_start_in_one_document_have_one_source():
    """Those of `a` begin at 0, 20, 50 of 200 tokens, those of `b` at 0 and 30: 200 and 230."""
    ids = np.arange(200) % 100 + 10
    stores = {"a": Fake(ids, (0, 20, 50)), "b": Fake(ids[:80], (0, 30))}
    drawn = Chunks(stores, MixConfig(), CHUNK, 0)
    corpora = np.array([0, 0, 0, 0, 1, 1])
    starts = np.array([0, 19, 20, 184, 29, 31])
    assert drawn.documents(corpora, starts).tolist() == [0, 0, 20, 50, 200, 230]


@pytest.mark.parametrize(
    ("replacement", "expected"),
    [(True, "a77e840161f8318a"), (False, "f41c5f580bf7f0f3")],
)
def test_the_first_thousand_samples_are_what_they_were(replacement, expected):
    """Whoever changes the order or the random numbers changes what a seed stands for."""
    stores = {
        "a": Fake(np.arange(20_000) * 7919 % 30_000 + 10),
        "b": Fake(np.arange(90_000) * 104_729 % 30_000 + 10),
    }
    positions = np.arange(1000)
    found = data(stores, replacement=replacement, length=256).batch(positions, positions)
    digest = hashlib.sha256()
    for name in ("query", "query_length", "key", "key_length"):
        digest.update(found[name].numpy().astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == expected


def test_corpora_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="corpus b: its 15 tokens are fewer than the 16"):
        Chunks({"a": of_windows(3), "b": Fake(np.arange(15))}, MixConfig(), CHUNK, 0)
    assert Chunks({"b": Fake(np.arange(16))}, MixConfig(), CHUNK, 0).count == 1
    with pytest.raises(DataError, match="none to draw from"):
        Chunks({}, MixConfig(), CHUNK, 0)
    with pytest.raises(ConfigError, match="1025 corpora are more than the 1024"):
        chunks([1] * 1025, replacement=False)


def test_another_vocabulary_is_refused():
    with pytest.raises(DataError, match="corpus b: its vocabulary of 7 tokens is not the model's"):
        data({"a": of_windows(3), "b": Fake(np.arange(99), size=7)})
    drawn = Chunks({"a": of_windows(3)}, MixConfig(), CHUNK, 0)
    own = Vocabulary(cls=1, sep=2, pad=0, mask=-1, first_word=10, size=30522, fingerprint="mine")
    with pytest.raises(DataError, match="corpus a: its vocabulary"):
        PairData(drawn, SpansConfig(), own, 0)
    with pytest.raises(ConfigError, match="no mask token"):
        PairData(drawn, SpansConfig(augmentation="mask"), own, 0)
