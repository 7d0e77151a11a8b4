"""Reads and writes encoders in the layout of Hugging Face: config.json, weights and vocabulary.

BERT and XLM-RoBERTa are read, as they are, as sentence-transformers keeps them, or inside of a
checkpoint of Contriever's; what is written opens in transformers and in sentence-transformers (mean
pooling, scores by inner product).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from farreach.data.fetched import here
from farreach.data.wordpieces import WordPieces
from farreach.disk import sync
from farreach.errors import ConfigError, DataError
from farreach_workloads.retrieval import sentence_modules
from farreach_workloads.retrieval.encoder import Bag, Bert, EncoderConfig, Pooling, TextEncoder
from farreach_workloads.retrieval.packed import Attention, Block

CONFIG, WEIGHTS, PICKLED = "config.json", "model.safetensors", "pytorch_model.bin"
# Ours, where the field's has no name for it.
FARREACH = "farreach"
_FAMILIES = {"bert": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}
# What stands before the names of an encoder's weights, by who has saved them.
_PREFIXES = ("encoder_q.", "encoder.", "bert.", "roberta.", "model.", "")
_FIRST = "embeddings.word_embeddings.weight"
_EMBEDDINGS = {
    "word.weight": _FIRST,
    "position.weight": "embeddings.position_embeddings.weight",
    "segment.weight": "embeddings.token_type_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "attention.out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "rise": "intermediate.dense",
    "fall": "output.dense",
    "norm2": "output.LayerNorm",
}
_THREE = ("query", "key", "value")
_OURS = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


def open_encoder(folder: Path) -> tuple[TextEncoder, WordPieces]:
    """An encoder in evaluation mode, and its vocabulary.

    Raises:
        DataError: no such folder, or what is in it is damaged or of another kind.
    """
    config = _config_of(folder)
    words = WordPieces.open(folder)
    encoder = _made(folder, config, words)
    if len(encoder.words.weight) < words.size:
        raise DataError(
            f"{folder}: has vectors of {len(encoder.words.weight):,} word pieces, and a vocabulary "
            f"of {words.size:,}. Take the files of one model."
        )
    return encoder.eval(), words


def load_weights(encoder: TextEncoder, folder: Path) -> None:
    """Put the weights of a folder in; raises DataError, naming what is missing or of another size.

    Vectors of special pieces that the file has beyond the encoder's are left out, none is made up.
    """
    found = _weights(folder)
    if isinstance(encoder, Bert):
        theirs = _stripped(found, folder)
        state = {name: _from_hub(name, theirs, folder) for name in encoder.state_dict()}
    else:
        state = dict(found)
    for name, value in encoder.state_dict().items():
        if name not in state:
            raise DataError(f"{folder}: has no weights {name!r}.")
        if state[name].shape != value.shape:
            raise DataError(
                f"{folder}: {name!r} is {tuple(state[name].shape)}, and {tuple(value.shape)} is "
                "needed. Its config.json is of another model."
            )
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})


def _sizes(folder: Path, config: Mapping[str, Any]) -> EncoderConfig:
    """The encoder that a config.json and what lies beside it describe."""
    pooling, normalised = _manner(folder, config)
    given = EncoderConfig(dropout=_dropout(config), pooling=pooling, normalised=normalised)
    if config["model_type"] == "farreach-bag":
        sizes = {"kind": "bag", "width": config["hidden_size"]}
        return given.model_copy(update=sizes | {"positions": config["max_position_embeddings"]})
    return given.model_copy(
        update={
            "kind": "bert",
            "width": config["hidden_size"],
            "depth": config["num_hidden_layers"],
            "heads": config["num_attention_heads"],
            "hidden": config["intermediate_size"],
            "positions": config["max_position_embeddings"],
        }
    )


def _manner(folder: Path, config: Mapping[str, Any]) -> tuple[Pooling, bool]:
    """How tokens become one vector, and whether it is normalised.

    Contriever says the first in config.json, we say both there, and for all others it counts what
    sentence-transformers says beside it; re-rankers make no vectors.
    """
    ours = config.get(FARREACH, {})
    pooling, is_normalised = config.get("pooling", ours.get("pooling")), ours.get("normalised")
    architectures = config.get("architectures") or [""]
    is_encoder = not str(architectures[0]).endswith("ForSequenceClassification")
    if is_encoder and (pooling is None or is_normalised is None):
        theirs = sentence_modules.manner(folder)
        pooling = theirs[0] if pooling is None else pooling
        is_normalised = theirs[1] if is_normalised is None else is_normalised
    if pooling not in (None, *get_args(Pooling)):
        known = ", ".join(get_args(Pooling))
        raise DataError(f"{folder / CONFIG}: pooling is {pooling!r}; what is known: {known}.")
    return pooling or "average", bool(is_normalised)


def _made(folder: Path, config: dict[str, Any], words: WordPieces) -> TextEncoder:
    """The encoder that a config.json describes, with the folder's weights."""
    encoder = _shaped(folder, config, words)
    load_weights(encoder, folder)
    return encoder


def blank_encoder(file: Path, words: WordPieces) -> TextEncoder:
    """An encoder as a file of `description` has it, for weights that follow from elsewhere.

    Raises:
        DataError: the file is none of these.
    """
    return _shaped(file.parent, _config_in(file), words).eval()


def _shaped(folder: Path, config: dict[str, Any], words: WordPieces) -> TextEncoder:
    """The encoder that a config.json describes, with any weights."""
    ours = config.get(FARREACH, {})
    sizes = _sizes(folder, config)
    encoder: TextEncoder
    if sizes.kind == "bag":
        encoder = Bag(config["vocab_size"], sizes)
    else:
        first = words.pad + 1 if _FAMILIES[config["model_type"]] else 0
        encoder = Bert(
            config["vocab_size"],
            sizes,
            types=config.get("type_vocab_size", 2),
            first_position=first,
            epsilon=config.get("layer_norm_eps", 1e-12),
        )
        encoder.train_up_to(ours.get("longest", encoder.positions))
    return encoder


def make_encoder(config: EncoderConfig, words: WordPieces) -> TextEncoder:
    """A new encoder for a vocabulary, or the one of `config.path`, to be trained.

    Dropout, pooling and whether vectors are normalised are as configured, whatever the folder says.

    Raises:
        ConfigError: sizes do not go together, or the vectors to begin with have others.
        DataError: a folder to begin with is no encoder, or of another vocabulary.
    """
    if config.path is not None:
        folder = here(config.path)
        found = _config_of(folder)
        wanted = {"pooling": config.pooling, "normalised": config.normalised}
        ours = {**found.get(FARREACH, {}), **wanted}
        encoder = _made(folder, found | {"pooling": config.pooling, FARREACH: ours}, words)
        if len(encoder.words.weight) < words.size:
            raise ConfigError(
                f"encoder.path: {folder} has vectors of {len(encoder.words.weight):,} word pieces, "
                f"and the vocabulary has {words.size:,}. Leave out data.words to take its own."
            )
        reset_dropout(encoder, config.dropout)
        return encoder
    encoder = Bag(words.size, config) if config.kind == "bag" else Bert(words.size, config)
    if config.embeddings is not None:
        _begin_with(encoder, here(config.embeddings), words)
    return encoder


def reset_dropout(encoder: TextEncoder, share: float) -> None:
    """Drop another share of tokens and of attention than the encoder came with."""
    for part in encoder.modules():
        if isinstance(part, Bert | Block | Attention):
            part.dropout = share


def _begin_with(encoder: TextEncoder, folder: Path, words: WordPieces) -> None:
    """Take over vectors of word pieces; those of a transformer keep their usual lengths."""
    other, theirs = open_encoder(folder)
    if theirs.fingerprint != words.fingerprint:
        raise ConfigError(
            f"encoder.embeddings: {folder} has another vocabulary. Set data.words to {folder}."
        )
    vectors = other.words.weight.detach()
    if vectors.shape[1] != encoder.width:
        raise ConfigError(
            f"encoder.embeddings: {folder} has vectors of {vectors.shape[1]} numbers. Set "
            f"encoder.width to that, which is {encoder.width}."
        )
    with torch.no_grad():
        scale = encoder.words.weight.std() / vectors.std() if isinstance(encoder, Bert) else 1.0
        encoder.words.weight.copy_(vectors * scale)


def save_encoder(encoder: TextEncoder, words: WordPieces, folder: Path) -> None:
    """Make a folder, whole or not at all, that `open_encoder` and other software open.

    Raises:
        ConfigError: it is there already.
    """
    if folder.exists():
        raise ConfigError(f"{folder}: is there already. Name a folder that is not.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    working = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    try:
        working.mkdir()
        words.save(working)
        save_file(_to_hub(encoder), working / WEIGHTS, metadata={"format": "pt"})
        (working / CONFIG).write_text(json.dumps(description(encoder), indent=2))
        if isinstance(encoder, Bert):
            _write_sentence_transformers(encoder, words, working)
        for path in sorted(working.rglob("*")):
            if path.is_file():
                sync(path)
        os.rename(working, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def description(encoder: TextEncoder) -> dict[str, Any]:
    """What config.json says of it."""
    ours: dict[str, Any] = {"pooling": encoder.pooling, "normalised": encoder.normalised}
    if isinstance(encoder, Bert) and encoder.longest < encoder.positions:
        ours["longest"] = encoder.longest
    vocabulary, width = encoder.words.weight.shape
    if not isinstance(encoder, Bert):
        return {
            "model_type": "farreach-bag",
            "vocab_size": vocabulary,
            "hidden_size": width,
            "max_position_embeddings": encoder.longest,
            FARREACH: ours,
        }
    block: Any = encoder.blocks[0] if len(encoder.blocks) else None
    is_roberta = encoder.first_position > 0
    return {
        "architectures": ["XLMRobertaModel" if is_roberta else "BertModel"],
        "model_type": "xlm-roberta" if is_roberta else "bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attention.heads if block is not None else 1,
        "intermediate_size": block.rise.out_features if block is not None else width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": encoder.dropout,
        "attention_probs_dropout_prob": encoder.dropout,
        "max_position_embeddings": encoder.position.num_embeddings,
        "type_vocab_size": encoder.segment.num_embeddings,
        "layer_norm_eps": encoder.norm.eps,
        "pad_token_id": encoder.first_position - 1 if is_roberta else 0,
        "position_embedding_type": "absolute",
        FARREACH: ours,
    }


def _write_sentence_transformers(encoder: Bert, words: WordPieces, folder: Path) -> None:
    """What sentence-transformers reads beside the model: its modules and how texts are compared."""
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if encoder.normalised:
        kinds.append(("Normalize", "2_Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    pooling = {
        "word_embedding_dimension": encoder.width,
        "pooling_mode_cls_token": encoder.pooling == "cls",
        "pooling_mode_mean_tokens": encoder.pooling == "average",
    }
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": encoder.longest, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "dot"},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": encoder.longest,
            "cls_token": words.tokens([words.cls])[0],
            "sep_token": words.tokens([words.sep])[0],
            "pad_token": words.tokens([words.pad])[0],
            "mask_token": words.tokens([words.mask])[0],
            "unk_token": words.tokens([words.unknown])[0],
        },
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2))
    if encoder.normalised:
        (folder / "2_Normalize").mkdir()


def _config_of(folder: Path) -> dict[str, Any]:
    """config.json of a folder; raises DataError where it is none that is known."""
    path = folder / CONFIG
    if not path.is_file():
        raise DataError(
            f"{folder}: has no {CONFIG}. Name a folder that `farreach export RUN --format hub` has "
            "written, or one with config.json, model.safetensors and tokenizer.json or vocab.txt."
        )
    return _config_in(path)


def _config_in(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: is no JSON ({error}). Get the file again.") from error
    kind = config.get("model_type")
    if kind not in (*_FAMILIES, "farreach-bag"):
        known = ", ".join([*_FAMILIES, "farreach-bag"])
        raise DataError(f"{path}: model_type is {kind!r}; what can be read: {known}.")
    needed = ["vocab_size", "hidden_size", "max_position_embeddings"]
    if kind != "farreach-bag":
        needed += ["num_hidden_layers", "num_attention_heads", "intermediate_size"]
    missing = [key for key in needed if not isinstance(config.get(key), int)]
    if missing:
        raise DataError(f"{path}: has no {', '.join(missing)}. Get the file again.")
    if config.get("hidden_act", "gelu") != "gelu":
        raise DataError(f"{path}: hidden_act is {config['hidden_act']!r}; gelu alone is known.")
    if (places := config.get("position_embedding_type", "absolute")) != "absolute":
        raise DataError(f"{path}: position_embedding_type is {places!r}; absolute alone is known.")
    return config


def _dropout(config: Mapping[str, Any]) -> float:
    return float(config.get("hidden_dropout_prob", 0.0))


def _weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder by their names there, without running anything that is in them."""
    if (folder / WEIGHTS).is_file():
        try:
            return load_file(folder / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{folder / WEIGHTS}: is damaged ({error}). Get it again.") from error
    for name in (PICKLED, "checkpoint.pth"):
        path = folder / name
        if path.is_file():
            try:
                # Contriever's own checkpoints hold the arguments of its command beside the weights.
                with torch.serialization.safe_globals([argparse.Namespace]):
                    loaded = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:
                raise DataError(
                    f"{path}: cannot be read as weights alone ({error}). Convert it to "
                    f"{WEIGHTS} where it was made."
                ) from error
            inner: dict[str, Tensor] = loaded.get("model", loaded)
            return {key: value for key, value in inner.items() if isinstance(value, Tensor)}
    raise DataError(f"{folder}: has no {WEIGHTS}.")


def _stripped(weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Without what stands before the names."""
    for prefix in _PREFIXES:
        if prefix + _FIRST in weights:
            return {
                name.removeprefix(prefix): value
                for name, value in weights.items()
                if name.startswith(prefix)
            }
    raise DataError(f"{folder}: its weights are of no BERT: there is no {_FIRST!r}.")


def _theirs(name: str) -> list[str]:
    """Their names of one of our weights; three of queries, keys and values."""
    if name in _EMBEDDINGS:
        return [_EMBEDDINGS[name]]
    match = _OURS.fullmatch(name)
    assert match is not None, name
    layer, part, kind = match.groups()
    begin = f"encoder.layer.{layer}."
    if part == "attention.qkv":
        return [f"{begin}attention.self.{one}.{kind}" for one in _THREE]
    return [f"{begin}{_LAYER[part]}.{kind}"]


def _from_hub(name: str, theirs: Mapping[str, Tensor], folder: Path) -> Tensor:
    names = _theirs(name)
    missing = [one for one in names if one not in theirs]
    if missing:
        raise DataError(
            f"{folder}: has no weights {', '.join(map(repr, missing))}. Its config.json is of "
            "another model, or the file is not whole."
        )
    return torch.cat([theirs[one] for one in names]).float()


def _to_hub(encoder: TextEncoder) -> dict[str, Tensor]:
    state = {name: value.detach().cpu() for name, value in encoder.state_dict().items()}
    if not isinstance(encoder, Bert):
        return {name: value.contiguous() for name, value in state.items()}
    result = {}
    for name, value in state.items():
        names = _theirs(name)
        for one, part in zip(names, value.chunk(len(names)), strict=True):
            result[one] = part.clone()
    return result
