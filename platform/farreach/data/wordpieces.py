"""Vocabularies of word pieces: opened, trained and saved in the layout of Hugging Face."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from farreach.data.wordpiece_training import Kind, bert, is_bert, learned
from farreach.disk import atomic_write
from farreach.errors import DataError

TOKENIZER_FILE, VOCABULARY_FILE = "tokenizer.json", "vocab.txt"
SETTINGS_FILE = "tokenizer_config.json"
# What BERT calls them, and what RoBERTa and its relatives do.
NAMES = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
UNUSED = re.compile(r"\[unused\d+\]")
# BERT cuts at white space and on both sides of punctuation, so what is beyond does not matter: the
# runs between those of ASCII can be looked up, and most are seen again soon.
_RUNS = re.compile(r"[!-/:-@\[-`{-~]|[^\t\n\r -/:-@\[-`{-~]+")
MOST_KNOWN = 1 << 18
PARALLEL = "TOKENIZERS_PARALLELISM"

# Hyphens and minus signs, double and single quotes with accents, slashes: as ASCII has them. Primes
# and the ellipsis become several characters.
_SAME = {
    "-": "‐‑‒–—―⁃−－⁻",
    '"': "“”„‟",
    "'": "‘’‚‛՚Ꞌꞌ＇`´′‵",
    "''": "″‶",
    "'''": "‴‷",
    "''''": "⁗",
    "...": "…",
    "/": "⁄∕",
    " ": "\x0b\x0c\x85",
    "": "\u00ad",
}
_NORMAL = {chr(code): "" for code in range(32) if chr(code) not in "\t\n\r"}
_NORMAL |= {old: new for new, olds in _SAME.items() for old in olds}
_CHANGED = re.compile(f"[{''.join(_NORMAL)}]")


class WordPieces:
    """A vocabulary, and what cuts texts into its tokens; can be pickled.

    Attributes:
        size: one more than the largest id.
        cls: id of what begins an input.
        sep: id of what ends it.
        pad: id of what fills it.
        mask: id of what stands for a hidden token.
        unknown: id of what the vocabulary cannot write.
        special: ids of these and of all other special tokens.
        first_word: the first id that is neither special nor unused.
        fingerprint: another one if anything about it differs; hex.
    """

    def __init__(self, content: str) -> None:
        """From a tokenizer.json that has the five special tokens; users call `open`."""
        # Kept as text: tokenizers itself does not read back every float that it writes.
        self._content = json.dumps(json.loads(content) | {"truncation": None, "padding": None})
        self.fingerprint = hashlib.sha256(self._content.encode()).hexdigest()
        self._tokenizer = tokenizer = Tokenizer.from_str(self._content)
        # "[MASK]" in a document is what somebody wrote, not a mask.
        tokenizer.encode_special_tokens = True
        vocabulary = tokenizer.get_vocab()
        self._names = {
            kind: next(name for name in names if name in vocabulary)
            for kind, names in NAMES.items()
        }
        ids = [vocabulary[name] for name in self._names.values()]
        self.pad, self.unknown, self.cls, self.sep, self.mask = ids
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(ids) | {i for i, token in added.items() if token.special}
        self._known: dict[str, list[int]] = {}
        self._keeps_to_runs = is_bert(tokenizer) and all(t.special for t in added.values())
        self.size = max(vocabulary.values()) + 1
        passed = self.special | {i for token, i in vocabulary.items() if UNUSED.fullmatch(token)}
        self.first_word = next((i for i in range(self.size) if i not in passed), self.size)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process parses it again."""
        return WordPieces, (self._content,)

    @classmethod
    def open(cls, path: Path) -> WordPieces:
        """A vocabulary from a folder with tokenizer.json or vocab.txt, or from either file.

        A vocab.txt alone is taken for one of BERT, in lower case unless a tokenizer_config.json
        beside it says that `do_lower_case` is false.

        Raises:
            DataError: it is missing, malformed or lacks a special token.
        """
        file = path
        if path.is_dir():
            file = path / TOKENIZER_FILE
            file = file if file.is_file() else path / VOCABULARY_FILE
        try:
            content = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{file}: cannot be read: {error}. Give a folder with {TOKENIZER_FILE} or "
                f"{VOCABULARY_FILE}, or either file."
            ) from error
        if file.suffix == ".txt":
            vocabulary = _vocabulary(file, content)
            _check_names(file, vocabulary, 1)
            lower = _lower_case(file.with_name(SETTINGS_FILE))
            return cls(bert(vocabulary, lower=lower).to_str())
        return _parsed(file, content)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Ids of each text, (tokens,), without special tokens and never cut short."""
        if not self._keeps_to_runs:
            return [np.array(ids, np.int32) for ids in self._encode(texts)]
        runs = [_RUNS.findall(text) for text in texts]
        known = self._known
        new = list(set().union(*runs).difference(known))
        known.update(zip(new, self._encode(new), strict=True))
        if len(known) > MOST_KNOWN:
            self._known = {}
        ids_of = known.__getitem__
        return [np.array(list(chain.from_iterable(map(ids_of, text))), np.int32) for text in runs]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [text.ids for text in found]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """What the vocabulary calls some ids; raises DataError for one that it lacks."""
        found = [(int(i), self._tokenizer.id_to_token(int(i))) for i in ids]
        missing = [i for i, token in found if token is None]
        if missing:
            raise DataError(
                f"the vocabulary of {self.size} tokens has none with the id {missing[0]}. Open "
                "the one that the tokens were made with."
            )
        return [token for _, token in found if token is not None]

    def text(self, ids: Iterable[int]) -> str:
        """Ids as text to read, with special tokens; lower case and spaces may differ."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, what transformers wants beside it, and vocab.txt of a WordPiece.

        Raises:
            RunDirectoryError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self._names}
        if isinstance(self._tokenizer.model, models.WordPiece):
            vocabulary = self._tokenizer.get_vocab()
            lines = [f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__)]
            atomic_write(folder / VOCABULARY_FILE, "".join(lines))
        atomic_write(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
        atomic_write(folder / TOKENIZER_FILE, self._content)


def trained(
    texts: Iterable[str],
    size: int,
    kind: Kind = "wordpiece",
    lower: bool = True,
) -> WordPieces:
    """A vocabulary learned from texts; [PAD] [UNK] [CLS] [SEP] [MASK] have the ids 0 to 4.

    The memory it takes grows with the different words. WordPiece gives the same for the same texts;
    Unigram may differ in details from one call to the next.

    Args:
        texts: are read once.
        size: most tokens; few texts give fewer.
        kind: "wordpiece" cuts as BERT does; "unigram" as SentencePiece, for any language.
        lower: whether to put all in lower case (WordPiece drops accents then, as BERT does).

    Raises:
        DataError: there are no words, or too few tokens for their characters.
    """
    return WordPieces(learned(texts, size, kind, lower=lower).to_str())


def normalised(text: str) -> str:
    """Text with its hyphens, quotes, primes, dots and slashes in ASCII, without control characters.

    Tab, line feed and carriage return stay, as do tildes and plus signs. From the code of
    Contriever, arXiv:2112.09118, after ChemDataExtractor.
    """
    return _CHANGED.sub(lambda found: _NORMAL[found[0]], text)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep `encode` to the calling thread for a while."""
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLEL]
        else:
            os.environ[PARALLEL] = before


def _vocabulary(file: Path, content: str) -> dict[str, int]:
    """The ids in a vocab.txt: the numbers of its lines, from 0."""
    tokens = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        first = next(number for number, token in enumerate(tokens) if ids[token] != number)
        raise DataError(
            f"{file}, line {first + 1}: {tokens[first]!r} is there again in line "
            f"{ids[tokens[first]] + 1}. Fetch the file again."
        )
    return ids


@lru_cache(maxsize=2)
def _parsed(file: Path, content: str) -> WordPieces:
    """Of a tokenizer.json; a process that opens it again need not parse it again."""
    try:
        vocabulary = Tokenizer.from_str(content).get_vocab()
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(
            f"{file}: is no tokenizer of Hugging Face: {error}. Fetch it again."
        ) from error
    _check_names(file, vocabulary, 2)
    return WordPieces(content)


def _check_names(file: Path, vocabulary: Mapping[str, int], first: int) -> None:
    """That each special token is there under one of the first names that it may have."""
    for names in NAMES.values():
        if not any(name in vocabulary for name in names[:first]):
            raise DataError(
                f"{file}: has no token {' or '.join(names[:first])}. Give the vocabulary of a "
                "masked language model, such as BERT's."
            )


def _lower_case(settings: Path) -> bool:
    if not settings.is_file():
        return True
    try:
        return bool(json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case", True))
    except (ValueError, AttributeError) as error:
        raise DataError(f"{settings}: is no JSON object: {error}. Fetch it again.") from error
