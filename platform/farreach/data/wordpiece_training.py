"""Learns vocabularies of word pieces from texts, with the tokenizers package.

Sources: WordPiece as in BERT, arXiv:1810.04805 (section 3); Unigram, arXiv:1804.10959.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from farreach.errors import DataError

Kind = Literal["wordpiece", "unigram"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNKNOWN, CLS, SEP = SPECIAL[1:4]
PREFIX = "##"
# A vocabulary spends at most half of its tokens on single characters, each of which may begin a
# word or go on with it.
ALPHABET_SHARE = 4


def learned(texts: Iterable[str], size: int, kind: Kind, *, lower: bool) -> Tokenizer:
    """What `wordpieces.trained` wraps; see there."""
    empty = bert({}, lower=lower) if kind == "wordpiece" else _unigram(lower=lower)
    normalizer: Any = empty.normalizer
    words: Counter[str] = Counter()
    for text in texts:
        words.update(normalizer.normalize_str(text).split())
    if not words:
        raise DataError("there are no words to learn a vocabulary from. Give texts with words.")
    if size <= len(SPECIAL) + ALPHABET_SHARE:
        raise DataError(f"a vocabulary of {size} tokens holds no words. Give it more.")
    stream = chain.from_iterable(repeat(word, count) for word, count in words.items())
    if kind == "unigram":
        return _learned_unigram(empty, stream, size)
    return _learned_wordpiece(empty, words, stream, size, lower=lower)


def bert(vocabulary: dict[str, int], *, lower: bool) -> Tokenizer:
    """A tokenizer as BERT's: WordPiece, with our special tokens, or none if it is empty."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    return _with_special(tokenizer) if vocabulary else tokenizer


def is_bert(tokenizer: Tokenizer) -> bool:
    """Whether it normalises and cuts texts as BERT's, whatever its vocabulary."""
    kinds: tuple[tuple[Any, Any], ...] = (
        (tokenizer.model, models.WordPiece),
        (tokenizer.normalizer, normalizers.BertNormalizer),
        (tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer),
    )
    return all(isinstance(part, kind) for part, kind in kinds)


def _unigram(*, lower: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    steps: list[Any] = [normalizers.Nmt(), normalizers.NFKC()]
    if lower:
        steps.append(normalizers.Lowercase())
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([*steps, *spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _with_special(tokenizer: Tokenizer) -> Tokenizer:
    """Register our special tokens, and have others than `WordPieces` put them around a text."""
    tokenizer.add_special_tokens(list(SPECIAL))
    ids = [(name, tokenizer.get_vocab()[name]) for name in (CLS, SEP)]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:1 {SEP}:1", special_tokens=ids
    )
    return tokenizer


def _learned_wordpiece(
    empty: Tokenizer, words: Counter[str], stream: Iterator[str], size: int, *, lower: bool
) -> Tokenizer:
    """Merges of equal weight are chosen by id, so all characters get theirs beforehand."""
    starts, insides = _alphabet(empty, words, size // ALPHABET_SHARE)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[*SPECIAL, *starts, *(PREFIX + character for character in insides)],
        initial_alphabet=starts,
        limit_alphabet=len(starts),
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    empty.train_from_iterator(stream, trainer)
    return bert(empty.get_vocab(), lower=lower)


def _alphabet(empty: Tokenizer, words: Counter[str], most: int) -> tuple[list[str], list[str]]:
    """The most frequent characters, and those of them that words go on with; both sorted."""
    pre_tokenizer: Any = empty.pre_tokenizer
    counts: Counter[str] = Counter()
    insides: set[str] = set()
    for word, count in words.items():
        for part, _ in pre_tokenizer.pre_tokenize_str(word):
            insides.update(part[1:])
            for character in part:
                counts[character] += count
    starts = sorted(sorted(counts, key=lambda character: (-counts[character], character))[:most])
    return starts, [character for character in starts if character in insides]


def _learned_unigram(empty: Tokenizer, stream: Iterator[str], size: int) -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), unk_token=UNKNOWN, show_progress=False
    )
    try:
        empty.train_from_iterator(stream, trainer)
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(
            f"cannot learn {size} tokens from these texts: {error} Ask for more, or give texts "
            "with fewer different characters."
        ) from error
    return _with_special(empty)
