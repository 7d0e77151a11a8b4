"""A transformer that reads a question and a document together, and says how well they go together.

The input is [CLS] question [SEP] document [SEP], where the document's tokens have the second kind
of segment (Nogueira and Cho, arXiv:1901.04085). What is read and written is the layout of Hugging
Face's BertForSequenceClassification, as of the public re-rankers of MS MARCO.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.data.wordpieces import WordPieces
from farreach.disk import sync
from farreach.errors import ConfigError, DataError
from farreach.linear import linear
from farreach_workloads.retrieval.embedding import BUDGET, Ids, bundles
from farreach_workloads.retrieval.encoder import Bert, TextEncoder
from farreach_workloads.retrieval.hub import CONFIG, PICKLED, WEIGHTS, open_encoder, save_encoder
from farreach_workloads.retrieval.packed import exact, first_tokens, layout_of

ARCHITECTURE = "BertForSequenceClassification"
# What stands before the names of the transformer's weights, and theirs of the head.
_PREFIX = "bert."
_HEAD = {"pooler": "bert.pooler.dense", "classifier": "classifier"}
# What other software reads of an encoder alone.
_OF_AN_ENCODER = ("modules.json", "1_Pooling", "2_Normalize", "sentence_bert_config.json",
                  "config_sentence_transformers.json")  # fmt: skip


class Pair(NamedTuple):
    """A question and a document in one input.

    Attributes:
        ids: tokens, special ones included.
        first: how many are of the question, with the [CLS] and [SEP] around it.
    """

    ids: Ids
    first: int


def pair_of(question: Ids, document: Ids, words: WordPieces, longest: int) -> Pair:
    """[CLS] question [SEP] document [SEP] of at most `longest` tokens.

    A question is cut to half of them, and a document to what is left.
    """
    question = question[: max(1, longest // 2 - 2)]
    document = document[: max(0, longest - len(question) - 3)]
    cls, sep = np.array([words.cls], np.int32), np.array([words.sep], np.int32)
    return Pair(np.concatenate([cls, question, sep, document, sep]), len(question) + 2)


class CrossEncoder(nn.Module):
    """BERT with its pooler, and a linear layer on top of it.

    Attributes:
        bert: the transformer.
    """

    def __init__(self, bert: TextEncoder) -> None:
        """Around a transformer that learns on; the layers on top are random.

        Raises:
            ConfigError: it is none, or knows one kind of segments alone.
        """
        super().__init__()
        if not isinstance(bert, Bert) or bert.segment.num_embeddings < 2:
            raise ConfigError(
                "start: a re-ranker needs a BERT with two kinds of segments. Name one, or set "
                "encoder.kind=bert."
            )
        self.bert = bert
        self.pooler = nn.Linear(bert.width, bert.width)
        self.classifier = nn.Linear(bert.width, 1)
        for layer in (self.pooler, self.classifier):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, ids: Tensor, lengths: Tensor, firsts: Tensor) -> Tensor:
        """Scores of pairs, more is better.

        Args:
            ids: tokens, on the right padded, (n, l) int64.
            lengths: how many count, (n,).
            firsts: how many of these belong to the question, (n,).

        Returns:
            (n,) float32.
        """
        bert = self.bert
        layout = layout_of(lengths, ids.shape[1])
        second = layout.positions >= firsts[layout.order][layout.texts]
        x = F.embedding(ids.reshape(-1)[layout.places], bert.word.weight)
        x = x + F.embedding(second.long(), bert.segment.weight)
        x = x + F.embedding(layout.positions + bert.first_position, bert.position.weight)
        x = self._dropped(bert.norm(x))
        for block in bert.blocks:
            x = block(x, layout)
        first = first_tokens(x, layout)
        pooled = linear(first, self.pooler.weight, self.pooler.bias).tanh()
        scores = linear(self._dropped(pooled), self.classifier.weight, self.classifier.bias)
        return exact(scores[:, 0])

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.bert.dropout) if self.training and self.bert.dropout > 0 else x


def stacked(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """What `CrossEncoder` takes: ids (n, l), lengths (n,) and firsts (n,); int64."""
    lengths = torch.tensor([len(pair.ids) for pair in pairs], dtype=torch.int64)
    ids = torch.zeros(len(pairs), int(lengths.max()), dtype=torch.int64)
    for row, pair in enumerate(pairs):
        ids[row, : len(pair.ids)] = torch.from_numpy(pair.ids)
    return ids, lengths, torch.tensor([pair.first for pair in pairs], dtype=torch.int64)


@torch.inference_mode()
def scores_of(
    model: CrossEncoder,
    pairs: Sequence[Pair],
    *,
    device: torch.device | str = "cpu",
    autocast: bool = False,
    budget: int = BUDGET,
) -> NDArray[np.float32]:
    """Scores of pairs in their order, (n,).

    Args:
        model: in evaluation mode, on `device`.
        pairs: any number.
        device: where it is computed.
        autocast: compute in bfloat16.
        budget: tokens at a time.
    """
    result = np.empty(len(pairs), np.float32)
    device = torch.device(device)
    lengths = np.array([len(pair.ids) for pair in pairs], np.int64)
    cast = torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext()
    with cast:
        for some in bundles(lengths, budget):
            tensors = [part.to(device) for part in stacked([pairs[row] for row in some])]
            result[some] = model(*tensors).float().cpu().numpy()
    return result


def is_cross_encoder(folder: Path) -> bool:
    """Whether a folder says that it holds one."""
    try:
        named = json.loads((folder / CONFIG).read_text()).get("architectures") or [""]
    except (OSError, ValueError, AttributeError):
        return False
    return str(named[0]).endswith("ForSequenceClassification")


def open_cross_encoder(folder: Path) -> tuple[CrossEncoder, WordPieces]:
    """A re-ranker in evaluation mode, and its vocabulary.

    One with two classes scores the second against the first.

    Raises:
        DataError: no such folder, or what is in it is damaged or of another kind.
    """
    bert, words = open_encoder(folder)
    if not isinstance(bert, Bert) or bert.first_position or bert.segment.num_embeddings < 2:
        raise DataError(f"{folder}: is no re-ranker with two kinds of segments, as BERT has them.")
    weights = _read(folder)
    model = CrossEncoder(bert)
    for name, theirs in _HEAD.items():
        layer = getattr(model, name)
        for kind in ("weight", "bias"):
            value = weights.get(f"{theirs}.{kind}")
            if value is None:
                raise DataError(
                    f"{folder}: has no weights '{theirs}.{kind}': it is no re-ranker. Name a "
                    f"folder with a {ARCHITECTURE}."
                )
            if name == "classifier" and len(value) == 2:
                value = value[1:] - value[:1]
            own = getattr(layer, kind)
            if own.shape != value.shape:
                raise DataError(
                    f"{folder}: '{theirs}.{kind}' is {tuple(value.shape)}, and {tuple(own.shape)} "
                    "is needed. Name a model with one score, or with two classes."
                )
            with torch.no_grad():
                own.copy_(value)
    return model.eval(), words


def _read(folder: Path) -> dict[str, Tensor]:
    """All weights by their names, in a file that `open_encoder` has read before."""
    if (folder / WEIGHTS).is_file():
        found: dict[str, Tensor] = load_file(folder / WEIGHTS)
        return found
    return dict(torch.load(folder / PICKLED, map_location="cpu", weights_only=True))


def save_cross_encoder(model: CrossEncoder, words: WordPieces, folder: Path) -> None:
    """Make a folder, whole or not at all, that `open_cross_encoder` and other software open.

    Raises:
        ConfigError: it is there already.
    """
    if folder.exists():
        raise ConfigError(f"{folder}: is there already. Name a folder that is not.")
    working = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    try:
        save_encoder(model.bert, words, working)
        for name in _OF_AN_ENCODER:
            path = working / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        weights = {_PREFIX + name: value for name, value in load_file(working / WEIGHTS).items()}
        for name, theirs in _HEAD.items():
            state: dict[str, Tensor] = getattr(model, name).state_dict()
            weights |= {f"{theirs}.{kind}": value.cpu() for kind, value in state.items()}
        save_file(weights, working / WEIGHTS, metadata={"format": "pt"})
        config: dict[str, Any] = json.loads((working / CONFIG).read_text())
        config |= {"architectures": [ARCHITECTURE], "id2label": {"0": "LABEL_0"}}
        config |= {"label2id": {"LABEL_0": 0}}
        (working / CONFIG).write_text(json.dumps(config, indent=2))
        for path in working.rglob("*"):
            sync(path)
        os.rename(working, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(working, ignore_errors=True)
