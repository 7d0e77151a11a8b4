"""Encoders as sentence-transformers keeps them, whose files say how tokens become one vector."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import BertModel

from farreach.data.wordpieces import trained
from farreach.errors import DataError
from farreach_workloads.retrieval.encoder import EncoderConfig
from farreach_workloads.retrieval.hub import make_encoder, open_encoder

sys.path.insert(0, str(Path(__file__).parent))
from small_bert import small_bert

IDS, LENGTHS = torch.tensor([[2, 9, 8, 7, 3], [2, 6, 3, 0, 0]]), torch.tensor([5, 3])


@pytest.fixture(scope="module")
def words():
    return trained(["a small editor of text", "plays music files"] * 5, 80)


@pytest.fixture
def theirs(words, tmp_path):
    """A model of transformers, in a folder beside which modules are described."""
    torch.manual_seed(0)
    config = small_bert(words)
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    words.save(tmp_path)
    return model


def describe(folder, kinds, pooling, package="sentence_transformers.models"):
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{package}.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def flags(**true):
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    wanted = {f"pooling_mode_{name}": name in true for name in names}
    return {"word_embedding_dimension": 24, **wanted}


@pytest.mark.parametrize(
    ("pooling", "is_first"),
    [
        (flags(cls_token=True), True),
        (flags(mean_tokens=True), False),
        ({"pooling_mode": "cls"}, True),
        ({"pooling_mode": "mean"}, False),
        ({"pooling_mode": ["mean"]}, False),
    ],
)
@pytest.mark.parametrize("normalised", [True, False])
def test_vectors_are_pooled_as_is_said_beside_the_model(
    theirs, tmp_path, pooling, is_first, normalised
):
    """As of BGE, which takes the first token, and of MiniLM, which takes the mean of all."""
    describe(tmp_path, ["Transformer", "Pooling", *["Normalize"] * normalised], pooling)
    encoder, _ = open_encoder(tmp_path)
    mask = (torch.arange(5) < LENGTHS[:, None]).long()
    hidden = theirs(input_ids=IDS, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / LENGTHS[:, None]
    expected = hidden[:, 0] if is_first else mean
    expected = F.normalize(expected, dim=1) if normalised else expected
    torch.testing.assert_close(encoder(IDS, LENGTHS), expected, rtol=1e-5, atol=1e-5)


def test_what_would_give_other_vectors_is_refused(theirs, tmp_path):
    describe(tmp_path, ["Transformer", "Pooling", "Dense"], flags(mean_tokens=True))
    with pytest.raises(DataError, match="Dense makes other vectors"):
        open_encoder(tmp_path)
    describe(tmp_path, ["Transformer", "Pooling"], flags(max_tokens=True))
    with pytest.raises(DataError, match=r"pools by max; one of mean, cls is known"):
        open_encoder(tmp_path)
    describe(tmp_path, ["Transformer", "Pooling"], flags(cls_token=True, mean_tokens=True))
    with pytest.raises(DataError, match=r"pools by cls and mean"):
        open_encoder(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(DataError, match=r"1_Pooling/config.json: cannot be read"):
        open_encoder(tmp_path)


def test_what_a_config_says_itself_counts_before_that(theirs, words, tmp_path):
    """Contriever's has a key of its own; and who trains on decides that alone."""
    describe(tmp_path, ["Transformer", "Pooling"], flags(mean_tokens=True))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pooling": "cls"}))
    assert open_encoder(tmp_path)[0].pooling == "cls"
    given = EncoderConfig(path=str(tmp_path), pooling="average")
    assert make_encoder(given, words).pooling == "average"
    (tmp_path / "config.json").write_text(json.dumps(config | {"pooling": "mean"}))
    with pytest.raises(DataError, match=r"pooling is 'mean'; what is known: average, cls"):
        open_encoder(tmp_path)
    relative = {"position_embedding_type": "relative_key"}
    (tmp_path / "config.json").write_text(json.dumps(config | relative))
    with pytest.raises(DataError, match=r"position_embedding_type is 'relative_key'"):
        open_encoder(tmp_path)
