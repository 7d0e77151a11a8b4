import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from farreach.data.wordpieces import trained
from farreach.errors import ConfigError, DataError
from farreach_workloads.retrieval.config import RetrievalConfig
from farreach_workloads.retrieval.embedding import embedded, tokenised
from farreach_workloads.retrieval.encoder import Bag, Bert, EncoderConfig
from farreach_workloads.retrieval.hub import make_encoder, open_encoder, save_encoder
from farreach_workloads.retrieval.models import TextsConfig, fingerprint, ids_of
from farreach_workloads.retrieval.spans import SpansConfig
from farreach_workloads.retrieval.task import encoder_for

sys.path.insert(0, str(Path(__file__).parent))
from small_bert import small_bert

TEXTS = ["a small editor of text", "plays music files", "the library that draws, quickly", "x"]
SIZES = {"width": 24, "depth": 2, "heads": 3, "hidden": 48, "positions": 30}


@pytest.fixture(scope="module")
def words():
    return trained(TEXTS * 5, 120)


def mean_of(model, ids, mask):
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def padded(words, texts):
    rows = tokenised(texts, words, 30)
    ids = torch.full((len(rows), max(map(len, rows))), words.pad, dtype=torch.int64)
    for row, text in enumerate(rows):
        ids[row, : len(text)] = torch.from_numpy(text.astype(np.int64))
    lengths = torch.tensor([len(row) for row in rows])
    return ids, lengths


def test_transformers_opens_what_is_written(words, tmp_path):
    torch.manual_seed(0)
    encoder = Bert(words.size, EncoderConfig(**SIZES)).eval()
    save_encoder(encoder, words, tmp_path / "model")
    theirs = AutoModel.from_pretrained(tmp_path / "model", add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    ids, lengths = padded(words, TEXTS)
    assert batch["input_ids"].tolist() == ids.tolist()
    expected = mean_of(theirs, batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(encoder(ids, lengths), expected, rtol=1e-5, atol=1e-5)


def test_what_is_written_opens_as_it_was(words, tmp_path):
    torch.manual_seed(0)
    config = EncoderConfig(**SIZES, pooling="cls", normalised=True)
    for name, encoder in (
        ("bert", Bert(words.size, config)),
        ("bag", Bag(words.size, EncoderConfig(kind="bag", width=9, positions=30, normalised=True))),
    ):
        save_encoder(encoder.eval(), words, tmp_path / name)
        again, same = open_encoder(tmp_path / name)
        assert same.fingerprint == words.fingerprint
        assert (again.pooling, again.normalised, again.longest) == (
            encoder.pooling,
            encoder.normalised,
            encoder.longest,
        )
        texts = tokenised(TEXTS, words, 30)
        np.testing.assert_array_equal(embedded(again, texts), embedded(encoder, texts))
    with pytest.raises(ConfigError, match="is there already"):
        save_encoder(encoder, words, tmp_path / "bag")


def test_positions_that_were_not_trained_stay_unused(words, tmp_path):
    """Wherever texts are embedded, by us and by others; more training may reach further."""
    torch.manual_seed(0)
    encoder = Bert(words.size, EncoderConfig(**SIZES)).eval()
    whole = fingerprint(encoder, words)
    encoder.train_up_to(9)
    save_encoder(encoder, words, tmp_path / "model")
    again, _ = open_encoder(tmp_path / "model")
    assert (again.longest, again.positions) == (9, 30)
    assert fingerprint(again, words) == fingerprint(encoder, words) != whole
    theirs = json.loads((tmp_path / "model" / "sentence_bert_config.json").read_text())
    assert theirs["max_seq_length"] == 9
    assert (
        json.loads((tmp_path / "model" / "config.json").read_text())["max_position_embeddings"]
        == 30
    )
    begun = make_encoder(EncoderConfig(path=str(tmp_path / "model")), words)
    assert begun.longest == 9
    long = "editor of text " * 10
    (cut,) = ids_of([long], words, TextsConfig(), again.longest)
    assert len(cut) == 9
    for chunk, longest in ((12, 14), (4, 9), (28, 30)):
        config = RetrievalConfig(
            encoder=EncoderConfig(path=str(tmp_path / "model")),
            spans=SpansConfig(kind="ict", chunk=chunk),
        )
        assert encoder_for(config, words).longest == longest


def test_spans_that_an_encoder_has_no_positions_for_are_refused_before_training(words, tmp_path):
    """Otherwise the first span that is too long ends training with an index out of range."""
    save_encoder(Bert(words.size, EncoderConfig(**SIZES)).eval(), words, tmp_path / "model")
    given = EncoderConfig(path=str(tmp_path / "model"))
    for spans in ({"chunk": 57}, {"chunk": 28, "kind": "ict"}):
        fits = RetrievalConfig(encoder=given, spans=SpansConfig(**spans))
        assert encoder_for(fits, words).longest == 30
        longer = SpansConfig(**spans | {"chunk": spans["chunk"] + 1})
        with pytest.raises(ConfigError, match="positions for 30 tokens, fewer than a span of 29"):
            encoder_for(RetrievalConfig(encoder=given, spans=longer), words)


@pytest.mark.parametrize("prefix", ["", "bert.", "encoder_q.", "encoder."])
def test_weights_are_found_under_the_names_that_trainings_give_them(words, prefix, tmp_path):
    """Contriever's checkpoints hold the whole of its training, `encoder_q.` and a queue."""
    config = small_bert(words)
    torch.manual_seed(0)
    theirs = BertModel(config).eval()
    folder = tmp_path / "model"
    config.save_pretrained(folder)
    words.save(folder)
    state = {f"{prefix}{name}": value.clone() for name, value in theirs.state_dict().items()}
    if prefix == "encoder_q.":
        model = state | {"queue": torch.zeros(24, 8)}
        opt = argparse.Namespace(retriever_model_id="bert-base-uncased", queue_size=8)
        torch.save({"step": 9, "model": model, "opt": opt}, folder / "checkpoint.pth")
    else:
        save_file(state, folder / "model.safetensors")
    encoder, _ = open_encoder(folder)
    ids, lengths = padded(words, TEXTS)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    expected = mean_of(theirs, ids, mask)
    torch.testing.assert_close(encoder(ids, lengths), expected, rtol=1e-5, atol=1e-5)


def test_positions_of_xlm_roberta_begin_behind_its_padding(words, tmp_path):
    """It numbers them from the padding's id + 1; the first of our pieces is the padding, 0."""
    config = XLMRobertaConfig(
        vocab_size=words.size,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=48,
        max_position_embeddings=32,
        type_vocab_size=1,
        pad_token_id=words.pad,
    )
    torch.manual_seed(0)
    theirs = XLMRobertaModel(config, add_pooling_layer=False).eval()
    folder = tmp_path / "model"
    theirs.save_pretrained(folder)
    words.save(folder)
    encoder, _ = open_encoder(folder)
    assert encoder.longest == 31
    ids, lengths = padded(words, TEXTS)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    torch.testing.assert_close(
        encoder(ids, lengths), mean_of(theirs, ids, mask), rtol=1e-5, atol=1e-5
    )


def test_a_transformer_can_begin_with_the_vectors_of_a_bag(words, tmp_path):
    bag = Bag(words.size, EncoderConfig(kind="bag", width=24, positions=30))
    save_encoder(bag, words, tmp_path / "bag")
    config = EncoderConfig(**SIZES, embeddings=str(tmp_path / "bag"))
    encoder = make_encoder(config, words)
    cosines = torch.cosine_similarity(encoder.words.weight, bag.words.weight)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))
    assert 0.015 < float(encoder.words.weight.detach().std()) < 0.025
    with pytest.raises(ConfigError, match=r"vectors of 24 numbers. Set encoder\.width"):
        make_encoder(config.model_copy(update={"width": 30}), words)


def damage_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(content))


def test_damaged_folders_are_named(words, tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "model"
    with pytest.raises(DataError, match=r"has no config.json"):
        open_encoder(tmp_path)
    save_encoder(Bert(words.size, EncoderConfig(**SIZES)), words, folder)
    damage_config(folder, hidden_size=25)
    with pytest.raises((DataError, ConfigError), match="25"):
        open_encoder(folder)
    damage_config(folder, hidden_size=24, num_hidden_layers=3)
    with pytest.raises(DataError, match=r"no weights 'encoder.layer.2.attention"):
        open_encoder(folder)
    damage_config(folder, num_hidden_layers=2, model_type="gpt2")
    with pytest.raises(DataError, match="model_type is 'gpt2'; what can be read: bert"):
        open_encoder(folder)
    damage_config(folder, model_type="bert", hidden_act="relu")
    with pytest.raises(DataError, match="hidden_act is 'relu'"):
        open_encoder(folder)
    damage_config(folder, hidden_act="gelu")
    weights = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()  # it may still be mapped
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is damaged"):
        open_encoder(folder)
    del weights["embeddings.word_embeddings.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(DataError, match="are of no BERT"):
        open_encoder(folder)


def test_a_vocabulary_larger_than_the_network_is_refused(words, tmp_path):
    folder = tmp_path / "model"
    small = trained(["a b c"], 40)
    save_encoder(Bert(small.size, EncoderConfig(**SIZES)), small, folder)
    with pytest.raises(ConfigError, match=r"Leave out data\.words"):
        make_encoder(EncoderConfig(path=str(folder)), words)
    words.save(folder)
    with pytest.raises(DataError, match="Take the files of one model"):
        open_encoder(folder)


def test_an_encoder_to_begin_with_is_trained_as_configured(words, tmp_path):
    folder = tmp_path / "model"
    given = EncoderConfig(dropout=0.3, pooling="cls", **SIZES)
    save_encoder(Bert(words.size, given), words, folder)
    assert open_encoder(folder)[0].pooling == "cls"
    encoder = make_encoder(EncoderConfig(path=str(folder), dropout=0.2), words)
    assert encoder.pooling == "average"
    dropouts = {part.dropout for part in encoder.modules() if hasattr(part, "dropout")}
    assert dropouts == {0.2}


def test_texts_come_back_in_their_order_whatever_the_budget(words):
    torch.manual_seed(0)
    encoder = Bert(words.size, EncoderConfig(**SIZES)).eval()
    texts = tokenised([*TEXTS, *reversed(TEXTS)], words, 30)
    told = []
    whole = embedded(encoder, texts, budget=1000, done=told.append)
    np.testing.assert_allclose(embedded(encoder, texts, budget=1), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole[:4], whole[:3:-1], rtol=1e-5, atol=1e-6)
    assert sum(told) == 8
    assert all(text[0] == words.cls and text[-1] == words.sep for text in texts)
