import numpy as np
import pytest
from scipy import stats

from farreach.errors import ConfigError
from farreach_workloads.retrieval.spans import SpansConfig, Vocabulary, pairs

CHUNK, COUNT = 256, 8000
WORDS = Vocabulary(cls=1, sep=2, pad=0, mask=3, first_word=10, size=1000)
# Window n holds 10, 11, …, 265: what is left of a token tells its place.
PLACES = np.arange(10, 10 + CHUNK, dtype=np.uint16)


def made(count=COUNT, seed=0, windows=None, used=None, first=0, vocabulary=WORDS, **settings):
    """Pairs of `count` windows that all hold their tokens' places."""
    if windows is None:
        windows = np.tile(PLACES, (count, 1))
    config = SpansConfig(**{"augmentation": "none", **settings})
    samples = np.arange(first, first + count)
    return pairs(windows, samples, seed, config, vocabulary, used)


def texts(ids, lengths):
    """Each text without [CLS] and [SEP]; checks what is around it."""
    assert (ids[:, 0] == WORDS.cls).all()
    assert ids.shape[1] == lengths.max()
    result = []
    for row, length in zip(ids, lengths, strict=True):
        assert row[length - 1] == WORDS.sep
        assert (row[length:] == WORDS.pad).all()
        result.append(row[1 : length - 1])
    return result


def queries(found):
    return texts(found.query, found.query_lengths)


def keys(found):
    return texts(found.key, found.key_lengths)


def cuts(count):
    """Begin and length of queries and of keys, (4, count), by batches of 10,000."""
    parts = []
    for first in range(0, count, 10_000):
        found = made(10_000, first=first)
        spans = (found.query, found.query_lengths), (found.key, found.key_lengths)
        parts.append([column for ids, sizes in spans for column in (ids[:, 1] - 10, sizes - 2)])
    return np.concatenate(parts, 1)


def test_a_span_is_cut_out_in_one_piece():
    found = made(2000)
    for part in queries(found) + keys(found):
        np.testing.assert_array_equal(part, np.arange(part[0], part[0] + len(part)))


def test_spans_have_the_lengths_and_places_of_the_paper():
    """⌊256 r⌋ with r uniform from 0.05 to 0.5, then a place of those where the span fits."""
    spans = cuts(100_000)
    begins, lengths = spans[::2].ravel(), spans[1::2].ravel()
    assert (lengths.min(), lengths.max()) == (12, 127)
    # 256 r is uniform from 12.8 to 128: E⌊256 r⌋ = (12 · 0.2 + 13 + … + 127) / 115.2 = 69.9.
    assert lengths.mean() == pytest.approx(69.9, abs=0.3)
    assert stats.chisquare(np.bincount(lengths)[13:]).pvalue > 1e-3
    for length in (13, 70, 127):
        starts = begins[lengths == length]
        assert stats.chisquare(np.bincount(starts, minlength=257 - length)).pvalue > 1e-3
    assert (begins + lengths).max() == CHUNK


@pytest.mark.parametrize("kind", ["crop", "ict"])
def test_a_share_of_the_queries_begins_where_the_text_does(kind):
    found = made(20_000, kind=kind, lead=0.3, ratio=(0.25, 0.25))
    begins = found.query[:, 1].astype(int) - 10
    # The rest has 193 places, of which the first is one.
    assert (begins == 0).mean() == pytest.approx(0.3 + 0.7 / 193, abs=0.01)
    counts = np.bincount(begins, minlength=193)[1:]
    assert len(counts) == 192
    assert stats.chisquare(counts).pvalue > 1e-3
    plain, all_led = made(500, kind=kind), made(500, kind=kind, lead=1.0)
    assert (all_led.query[:, 1] == 10).all()
    np.testing.assert_array_equal(all_led.query_lengths, plain.query_lengths)
    if kind == "crop":  # the key is drawn as ever
        np.testing.assert_array_equal(all_led.key, plain.key)


def test_a_query_that_begins_a_part_of_the_window_begins_that_part():
    used = np.full(200, 40), np.full(200, 140)
    assert (made(200, kind="ict", lead=1.0, used=used).query[:, 1] == 50).all()


def test_query_and_key_are_independent_of_each_other_and_of_their_neighbours():
    spans = cuts(100_000)
    assert np.abs(np.corrcoef(spans)[:2, 2:]).max() < 0.01
    neighbours = [np.corrcoef(row[1:], row[:-1])[0, 1] for row in spans]
    assert np.abs(neighbours).max() < 0.01


def test_deletion_takes_a_tenth_of_the_tokens_anywhere():
    whole, found = made(), made(augmentation="delete")
    full = np.concatenate([whole.query_lengths, whole.key_lengths]) - 2
    left = np.concatenate([found.query_lengths, found.key_lengths]) - 2
    assert left.min() > 0
    assert 1 - left.sum() / full.sum() == pytest.approx(0.1, abs=0.002)
    # Deletions of a text are binomial: so is the variance.
    surprise = (full - left - 0.1 * full) / np.sqrt(0.09 * full)
    assert surprise.var() == pytest.approx(1, abs=0.04)
    kept = np.zeros(12)
    for text, part in zip(queries(whole), queries(found), strict=True):
        assert set(part) <= set(text)
        assert (np.diff(part) > 0).all()
        kept += np.isin(text[:12], part)
    np.testing.assert_allclose(kept / COUNT, 0.9, atol=0.012)


def test_deletions_of_query_and_key_have_nothing_to_do_with_each_other():
    config = {"ratio": (1.0, 1.0), "augmentation": "delete", "probability": 0.5}
    found = made(2000, **config)
    query, key = (
        np.array([np.isin(PLACES, part) for part in parts])
        for parts in (queries(found), keys(found))
    )
    assert (query == key).mean() == pytest.approx(0.5, abs=0.004)
    both = (query[:, 1:] & query[:, :-1]).mean()
    assert both == pytest.approx(0.25, abs=0.004)


def test_deletion_leaves_a_token_and_any_may_be_the_one():
    found = made(
        5000,
        windows=np.tile(PLACES[:4], (5000, 1)),
        ratio=(1.0, 1.0),
        augmentation="delete",
        probability=0.99,
    )
    parts = queries(found)
    assert min(map(len, parts)) == 1
    single = np.array([part[0] for part in parts if len(part) == 1])
    assert stats.chisquare(np.bincount(single - 10, minlength=4)).pvalue > 1e-3


def test_replaced_tokens_are_any_word_of_the_vocabulary():
    narrow = Vocabulary(cls=1, sep=2, pad=0, mask=3, first_word=300, size=340)
    whole, found = made(), made(augmentation="replace", vocabulary=narrow)
    before, after = (np.concatenate(queries(x) + keys(x)) for x in (whole, found))
    changed = before != after
    assert changed.mean() == pytest.approx(0.1, abs=0.002)
    assert stats.chisquare(np.bincount(after[changed] - 300, minlength=40)).pvalue > 1e-3


def test_masked_tokens_are_the_mask():
    whole, found = made(), made(augmentation="mask")
    before, after = (np.concatenate(queries(x) + keys(x)) for x in (whole, found))
    changed = before != after
    assert changed.mean() == pytest.approx(0.1, abs=0.002)
    assert (after[changed] == WORDS.mask).all()


def test_shuffled_tokens_change_places_with_one_another_in_every_order():
    config = {"ratio": (1.0, 1.0), "augmentation": "shuffle"}
    found = made(6000, **config)
    moved = []
    for part in queries(found):
        np.testing.assert_array_equal(np.sort(part), PLACES)
        moved.append((part != PLACES).sum())
    # Of c ~ B(256, 0.1) chosen tokens one stays where it is, on average, if there is any.
    assert np.mean(moved) == pytest.approx(25.6 - 1, abs=0.25)
    orders = np.zeros(6)
    for part in queries(
        made(30_000, windows=np.tile(PLACES[:3], (30_000, 1)), **config, probability=0.999)
    ):
        orders[(part[0] - 10) * 2 + (part[1] > part[2])] += 1
    assert orders.min() / 30_000 == pytest.approx(1 / 6, abs=0.01)
    assert orders.max() / 30_000 == pytest.approx(1 / 6, abs=0.01)


def test_windows_are_left_as_they_were():
    windows = np.tile(PLACES, (8, 1))
    for augmentation in ("delete", "replace", "mask", "shuffle"):
        made(8, windows=windows, augmentation=augmentation, probability=0.5)
        np.testing.assert_array_equal(windows, np.tile(PLACES, (8, 1)))


def test_the_key_of_ict_is_the_window_without_the_query():
    found = made(kind="ict")
    kept = 0
    for query, key in zip(queries(found), keys(found), strict=True):
        kept += len(key) == CHUNK
        rest = PLACES if len(key) == CHUNK else PLACES[~np.isin(PLACES, query)]
        np.testing.assert_array_equal(key, rest)
    assert kept / COUNT == pytest.approx(0.1, abs=0.01)
    assert found.query_lengths.mean() - 2 == pytest.approx(69.9, abs=1.2)


def test_the_key_of_ict_is_never_empty_and_may_lose_tokens_too():
    found = made(100, kind="ict", ratio=(1.0, 1.0), keep_span=0.0)
    np.testing.assert_array_equal(found.key, found.query)
    found = made(kind="ict", keep_span=0.0, augmentation="delete")
    whole = made(kind="ict", keep_span=0.0)
    left = (found.key_lengths - 2).sum() / (whole.key_lengths - 2).sum()
    assert left == pytest.approx(0.9, abs=0.002)


@pytest.mark.parametrize("kind", ["crop", "ict"])
@pytest.mark.parametrize("augmentation", ["none", "delete", "replace", "mask", "shuffle"])
def test_a_pair_is_the_same_in_any_batch(kind, augmentation):
    settings = {"kind": kind, "augmentation": augmentation, "chunk": 250}
    windows = np.tile(PLACES[:250], (1, 1))
    whole = made(60, windows=np.tile(windows, (60, 1)), first=1000, **settings)
    query, key = queries(whole), keys(whole)
    for first in (0, 17, 59):
        alone = made(1, windows=windows, first=1000 + first, **settings)
        np.testing.assert_array_equal(queries(alone)[0], query[first])
        np.testing.assert_array_equal(keys(alone)[0], key[first])
    order = np.random.default_rng(0).permutation(60)
    config = SpansConfig(**settings)
    mixed = pairs(np.tile(windows, (60, 1)), 1000 + order, 0, config, WORDS)
    for place, sample in enumerate(order):
        np.testing.assert_array_equal(queries(mixed)[place], query[sample])
    other = made(60, seed=1, windows=np.tile(windows, (60, 1)), first=1000, **settings)
    assert not np.array_equal(other.query_lengths, whole.query_lengths)


@pytest.mark.parametrize("kind", ["crop", "ict"])
def test_spans_stay_in_the_part_of_the_window_that_is_used(kind):
    count = 3000
    begins = np.arange(count) % 200
    ends = begins + 1 + np.arange(count) % 56
    found = made(count, used=(begins, ends), kind=kind, ratio=(0.3, 1.0))
    for i, (query, key) in enumerate(zip(queries(found), keys(found), strict=True)):
        for part in (query, key):
            assert 10 + begins[i] <= part[0]
            assert part[-1] < 10 + ends[i]
        size = ends[i] - begins[i]
        assert max(1, int(0.3 * size)) <= len(query) <= size
        if kind == "ict":
            assert len(key) in (size, size - len(query))


def test_wide_ids_keep_their_values():
    words = Vocabulary(cls=1, sep=2, pad=0, mask=3, first_word=10, size=119_547)
    windows = np.full((4, CHUNK), 119_546, np.uint32)
    found = made(4, windows=windows, vocabulary=words, augmentation="delete")
    assert found.query.max() == found.key.max() == 119_546
    assert found.query.dtype == found.key.dtype == np.int32


def test_an_augmentation_needs_what_it_puts_in():
    for augmentation, lacking in (
        ("mask", Vocabulary(cls=1, sep=2, pad=0, mask=-1, first_word=10, size=1000)),
        ("replace", Vocabulary(cls=1, sep=2, pad=0, mask=3, first_word=1000, size=1000)),
    ):
        with pytest.raises(ConfigError, match="augmentation: the vocabulary has no"):
            made(2, vocabulary=lacking, augmentation=augmentation)
        made(2, vocabulary=lacking, augmentation="delete")


@pytest.mark.parametrize("ratio", [(0.0, 0.5), (0.5, 0.1), (0.5, 1.5)])
def test_a_range_of_shares_must_be_one(ratio):
    with pytest.raises(ValueError, match="is no range of shares"):
        SpansConfig(ratio=ratio)
