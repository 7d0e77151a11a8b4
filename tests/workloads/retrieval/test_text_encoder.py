import math

import pytest
import torch
from transformers import BertConfig, BertModel

from farreach.errors import ConfigError
from farreach_workloads.retrieval import packed
from farreach_workloads.retrieval.encoder import Bag, Bert, EncoderConfig
from farreach_workloads.retrieval.packed import layout_of, spare_rows

SIZES = {"width": 32, "depth": 2, "heads": 4, "hidden": 64, "positions": 40}


def texts(count=17, longest=38, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator)
    ids = torch.randint(5, 100, (count, int(lengths.max())), generator=generator)
    return ids * (torch.arange(ids.shape[1]) < lengths[:, None]), lengths


def pair_of_networks():
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    theirs = BertModel(config, add_pooling_layer=False).eval()
    ours = Bert(100, EncoderConfig(**SIZES)).eval()
    state = theirs.state_dict()
    with torch.no_grad():
        for value in state.values():  # norms and biases begin as ones and zeros
            value.add_(0.05 * torch.randn_like(value)) if value.is_floating_point() else None
        ours.word.weight.copy_(state["embeddings.word_embeddings.weight"])
        ours.position.weight.copy_(state["embeddings.position_embeddings.weight"])
        ours.segment.weight.copy_(state["embeddings.token_type_embeddings.weight"])
        ours.norm.load_state_dict(theirs.embeddings.LayerNorm.state_dict())
        for block, layer in zip(ours.blocks, theirs.encoder.layer, strict=True):
            self_ = layer.attention.self
            for kind in ("weight", "bias"):
                three = [getattr(part, kind) for part in (self_.query, self_.key, self_.value)]
                getattr(block.attention.qkv, kind).copy_(torch.cat(three))
            block.attention.out.load_state_dict(layer.attention.output.dense.state_dict())
            block.norm1.load_state_dict(layer.attention.output.LayerNorm.state_dict())
            block.rise.load_state_dict(layer.intermediate.dense.state_dict())
            block.fall.load_state_dict(layer.output.dense.state_dict())
            block.norm2.load_state_dict(layer.output.LayerNorm.state_dict())
    return ours, theirs


def mean_of(theirs, ids, lengths):
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    hidden = theirs(ids, attention_mask=mask.long()).last_hidden_state
    return (hidden * mask[..., None]).sum(1) / lengths[:, None]


def test_vectors_and_gradients_are_those_of_transformers():
    ours, theirs = pair_of_networks()
    ids, lengths = texts()
    found, expected = ours(ids, lengths), mean_of(theirs, ids, lengths)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(
        ours.word.weight.grad, theirs.embeddings.word_embeddings.weight.grad, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        ours.blocks[0].rise.weight.grad,
        theirs.encoder.layer[0].intermediate.dense.weight.grad,
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_first_token_alone_can_count():
    ours, theirs = pair_of_networks()
    ours.pooling = "cls"
    ids, lengths = texts()
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    first = theirs(ids, attention_mask=mask.long()).last_hidden_state[:, 0]
    torch.testing.assert_close(ours(ids, lengths), first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "bag"])
def test_padding_order_and_company_change_nothing(kind):
    torch.manual_seed(0)
    make = Bert if kind == "bert" else Bag
    encoder = make(100, EncoderConfig(kind=kind, **SIZES)).eval()
    ids, lengths = texts()
    whole = encoder(ids, lengths)
    wider = torch.nn.functional.pad(ids, (0, 2), value=7)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(encoder(wider[order], lengths[order]), whole[order])
    for row in (0, 5, 16):
        alone = encoder(ids[row : row + 1, : lengths[row]], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row])


def test_a_normalised_vector_has_length_one():
    torch.manual_seed(0)
    encoder = Bert(100, EncoderConfig(normalised=True, **SIZES)).eval()
    lengths = encoder(*texts()).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_a_bag_is_the_mean_of_all_words_but_the_specials():
    """Of a word that comes three times 1 + log 3 count, beside 1 of another."""
    encoder = Bag(10, EncoderConfig(kind="bag", width=3, positions=8))
    ids = torch.tensor([[1, 5, 6, 5, 5, 2], [1, 4, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]])
    found = encoder(ids, torch.tensor([6, 3, 2]))
    words, thrice = encoder.word.weight, 1 + math.log(3)
    torch.testing.assert_close(found[0], (thrice * words[5] + words[6]) / (thrice + 1))
    torch.testing.assert_close(found[1], words[4])
    assert found[2].tolist() == [0, 0, 0]


def test_dropout_differs_from_call_to_call_around_what_there_is_without():
    torch.manual_seed(0)
    encoder = Bert(100, EncoderConfig(dropout=0.1, **SIZES)).train()
    ids, lengths = texts(count=2)
    found = torch.stack([encoder(ids, lengths).detach() for _ in range(300)])
    assert (found[0] - found[1]).abs().max() > 1e-3
    still = encoder.eval()(ids, lengths).detach()
    assert torch.cosine_similarity(found.mean(0), still).min() > 0.999


def test_the_layout_puts_texts_of_like_length_together():
    lengths = torch.tensor([3, 100, 95, 4, 98, 300])
    layout = layout_of(lengths, 300)
    assert layout.order.tolist() == [5, 1, 4, 2, 3, 0]
    assert [(g.texts, g.longest) for g in layout.groups] == [(1, 300), (3, 100), (2, 4)]
    assert layout.groups[0].slots is None
    assert sum(g.end - g.begin for g in layout.groups) == int(lengths.sum())


def test_rows_that_round_tokens_up_change_nothing(monkeypatch):
    """Vectors and gradients are those without."""
    torch.manual_seed(0)
    encoder = Bert(100, EncoderConfig(dropout=0.0, **SIZES)).double()
    ids, lengths = texts()
    found = []
    for least in (10**9, 1):
        monkeypatch.setattr(packed, "LEAST_ROUNDED", least)
        encoder.zero_grad()
        vectors = encoder(ids, lengths)
        vectors.square().sum().backward()
        found.append([vectors.detach(), *(p.grad.clone() for p in encoder.parameters())])
    assert spare_rows(torch.zeros(int(lengths.sum()), 1)) > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def test_heads_must_divide_the_width():
    with pytest.raises(
        ConfigError, match=r"encoder\.width: 32 is no multiple of encoder\.heads, 5"
    ):
        Bert(100, EncoderConfig(**SIZES | {"heads": 5}))
