"""Whether passages contain an answer: the recall of open-domain question answering.

Source: the matching of DPR, arXiv:2004.04906, which Contriever, arXiv:2112.09118, uses too. Texts
are decomposed (NFD) and cut into tokens: runs of letters, numbers and marks, and single characters
of any other kind except separators and controls. A passage contains an answer whose lower-cased
tokens it has one after the other: whole tokens, with accents, without its title.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from farreach.errors import DataError
from farreach.index.lexical import marks

# Between tokens; it is a control, which no token contains.
_BREAK = "\0"
# What has no letter and no number.
_NOTHING = re.compile(r"[\W_]*")


@dataclass(frozen=True)
class Answered:
    """Which passages contain an answer.

    Attributes:
        found: (n, k) of n questions and as many passages as the most have; False where there is no
            passage.
        unusable: answers without a letter or number, which were not looked for.
        unanswerable: questions that have no other answers. They count as not found.
    """

    found: NDArray[np.bool_]
    unusable: int
    unanswerable: int


def tokens_of(text: str) -> list[str]:
    """The lower-cased tokens of a text; see above."""
    joined = _joined(text)
    return joined.split(_BREAK) if joined else []


def contains(answers: Sequence[str], text: str) -> bool:
    """Whether a text has the tokens of a usable answer one after the other."""
    whole = _framed(_joined(text))
    return any(key in whole for key in _keys(answers))


def answered(answers: Sequence[Sequence[str]], passages: Sequence[Sequence[str]]) -> Answered:
    """Look for the answers of each question in the passages that were found for it.

    Args:
        answers: of n questions, each with any number.
        passages: texts without titles, the best first, of each question.

    Raises:
        DataError: the numbers of questions differ.
    """
    if len(answers) != len(passages):
        raise DataError(
            f"answers: of {len(answers)} questions, and passages of {len(passages)}. Give the "
            "same questions in the same order."
        )
    found = np.zeros((len(answers), max(map(len, passages), default=0)), np.bool_)
    unusable = unanswerable = 0
    for number, (own, texts) in enumerate(zip(answers, passages, strict=True)):
        keys = _keys(own)
        unusable += len(own) - len(keys)
        unanswerable += not keys
        for rank, text in enumerate(texts):
            whole = _framed(_joined(text))
            found[number, rank] = any(key in whole for key in keys)
    return Answered(found, unusable, unanswerable)


def hit_rates(found: NDArray[np.bool_], cuts: Sequence[int] = (5, 10, 20, 100)) -> dict[int, float]:
    """The share of questions with an answer in the first k passages, by k.

    Raises:
        DataError: there are no questions.
    """
    if not len(found):
        raise DataError("answers: there are no questions. Give at least one.")
    return {k: float(found[:, :k].any(1).mean()) for k in cuts}


@cache
def _token() -> re.Pattern[str]:
    return re.compile(rf"(?:[^\W_]+|[{marks()}]+)+|\S")


@cache
def _is_shown(character: str) -> bool:
    """Whether a character is neither a separator nor a control, a format or unassigned."""
    return unicodedata.category(character)[0] not in "ZC"


def _joined(text: str) -> str:
    """The tokens with breaks between them, lower-cased one by one."""
    tokens = _token().findall(unicodedata.normalize("NFD", text))
    return _BREAK.join([t for t in tokens if len(t) > 1 or _is_shown(t)]).lower()


def _framed(joined: str) -> str:
    return f"{_BREAK}{joined}{_BREAK}"


def _keys(answers: Sequence[str]) -> list[str]:
    """What to look for, of answers that have a letter or a number."""
    return [_framed(_joined(answer)) for answer in answers if not _NOTHING.fullmatch(answer)]
