import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from farreach.errors import ConfigError
from farreach_workloads.retrieval import int8
from farreach_workloads.retrieval.embedding import embedded
from farreach_workloads.retrieval.encoder import Bag, Bert, EncoderConfig
from farreach_workloads.retrieval.int8 import quantised

WORDS = 400
SIZES = {"width": 64, "depth": 3, "heads": 4, "hidden": 256, "positions": 130}


def bert(changes=None, **options):
    """Attends unevenly: its weights are larger than those that BERT begins with."""
    torch.manual_seed(0)
    encoder = Bert(WORDS, EncoderConfig(**(SIZES | (changes or {}))), **options).eval()
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if name.startswith("blocks") and value.ndim == 2:
                value *= 5
            elif value.ndim == 1:
                value += 0.2 * torch.randn_like(value)
    return encoder


def texts(count=60, longest=120, seed=1):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, count)
    return [rng.integers(5, WORDS, length).astype(np.int32) for length in lengths]


def least_cosine(encoder, some=None):
    some = texts() if some is None else some
    exact, rough = (embedded(one, some) for one in (encoder, quantised(encoder)))
    assert np.isfinite(rough).all()
    return float(F.cosine_similarity(torch.tensor(exact), torch.tensor(rough)).min())


@pytest.mark.parametrize("pooling", ["average", "cls"])
@pytest.mark.parametrize("first_position", [0, 2])
def test_vectors_are_nearly_those_of_float32(pooling, first_position):
    encoder = bert({"pooling": pooling}, first_position=first_position)
    assert least_cosine(encoder) > 0.999


def test_vectors_have_length_one_where_those_of_the_encoder_have():
    found = embedded(quantised(bert({"normalised": True})), texts())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_cpus_without_bfloat16_and_without_sums_of_bytes_come_as_near(monkeypatch):
    monkeypatch.setattr(int8, "KIND", torch.float32)
    monkeypatch.setattr(int8, "LEVELS", 127)
    assert least_cosine(bert()) > 0.998


def test_columns_that_are_far_larger_than_others_do_not_coarsen_these():
    encoder = bert()
    with torch.no_grad():
        for block in encoder.blocks:
            block.norm1.weight[3] = 20
            block.norm2.weight[7] = 20
            # An output of the GELU that may be 40 beside others of about 1.
            block.rise.weight[5] = 2 * torch.eye(64)[3]
            block.fall.weight[:, 5] *= 0.05
    assert least_cosine(encoder) > 0.999


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_of_which_no_exponential_is_a_number_are_attended_by_all_the_same(sign):
    encoder = bert()
    with torch.no_grad():
        for block in encoder.blocks:
            query, key, _ = block.attention.qkv.bias.chunk(3)
            query[:] = 40
            key[:] = 40 * sign
            # What all keys share gives every score the same 6,400; the rest of them is nothing.
            block.attention.qkv.weight[:64] = 0
            block.attention.qkv.weight[64:128] = 0
    score = math.log2(math.e) * 40 * 40 * 16 / 16**0.5
    assert score > 128 > -126 > -score  # the exponents that a float has
    assert least_cosine(encoder) > 0.999


def test_a_vector_does_not_depend_on_the_other_texts():
    some = texts(20)
    encoder = bert()
    small = quantised(encoder)
    together, exact = embedded(small, some), embedded(encoder, some)
    alone = np.concatenate([embedded(small, [one]) for one in some])
    assert np.abs(together - alone).max() < 0.2 * np.abs(together - exact).max()


def test_texts_of_all_lengths_and_equal_ones_are_encoded_in_their_places():
    rng = np.random.default_rng(0)
    lengths = [2, 3, 3, 4, 120, 120, 7, 7, 7, 2]
    some = [rng.integers(5, WORDS, length).astype(np.int32) for length in lengths]
    assert least_cosine(bert(), some) > 0.999


def test_a_search_ranks_as_well_as_with_float32():
    """Each query is half of the tokens of one of 300 documents; the mean of eight such sets."""
    encoder = bert({"normalised": True})
    gains = {kind: [] for kind in (encoder, quantised(encoder))}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(20, 120, 300)
        documents = [rng.integers(5, WORDS, length).astype(np.int32) for length in lengths]
        queries = [rng.choice(one, len(one) // 2, replace=False) for one in documents]
        asked = embedded(encoder, queries)
        for kind, own in gains.items():
            scores = asked @ embedded(kind, documents).T
            ranks = (scores > np.diag(scores)[:, None]).sum(1)
            own.append(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean())
    exact, small = (np.mean(own) for own in gains.values())
    assert exact > 0.1  # by chance: 0.015
    assert small > exact - 0.006  # 0.0017 is the standard error


def test_the_encoder_stays_as_it_is():
    encoder = bert({"dropout": 0.3}).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    small = quantised(encoder)
    assert encoder.training
    assert not small.training
    assert not small(torch.full((1, 3), 7), torch.tensor([3])).requires_grad
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    np.testing.assert_array_equal(embedded(small, texts()), embedded(small, texts()))
    with torch.no_grad():
        encoder.words.weight.zero_()
    assert small.words.weight.abs().sum() > 0


def test_two_copies_are_equal():
    encoder = bert()
    found = [embedded(quantised(encoder), texts()) for _ in range(2)]
    np.testing.assert_array_equal(*found)


def test_a_bag_is_refused():
    with pytest.raises(ConfigError, match=r"a bag, has no linear layers.*Leave int8 out"):
        quantised(Bag(WORDS, EncoderConfig(kind="bag", width=8)))


def test_an_encoder_elsewhere_is_refused():
    with pytest.raises(ConfigError, match=r"is on meta\. Move it to the CPU"):
        quantised(bert().to("meta"))


def test_a_pytorch_without_onednn_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="without oneDNN"):
        quantised(bert())
