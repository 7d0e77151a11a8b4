"""Passages of documents: word pieces in, several vectors for each long document out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from farreach.data.wordpieces import WordPieces
from farreach_workloads.retrieval.embedding import Ids, Vectors, framed


class Passages:
    """Documents, each as a whole and, if it is longer than a passage, in passages that overlap.

    A document's score for a query is that of its best passage (MaxP; Dai and Callan, SIGIR 2019),
    of which the whole text has a share: share × whole · query + (1 - share) × passage · query. As
    this is an inner product too, the sum of both vectors is what is searched.

    Attributes:
        texts: to be encoded: first every document as a whole, then all passages; framed.
        counts: vectors of each document.
    """

    def __init__(
        self, ids: Sequence[Ids], words: WordPieces, *, longest: int, length: int, share: float
    ) -> None:
        """Cut documents.

        Args:
            ids: word pieces of n documents, not framed.
            words: their vocabulary.
            longest: tokens of a text with its frame; what is longer is cut.
            length: word pieces of a passage, each of which begins half a passage after the one
                before; 0: there are none.
            share: of the whole text in a passage's vector, 0 to 1.
        """
        self._share = share
        parts = [[one[begin : begin + length] for begin in begins(len(one), length)] for one in ids]
        self._passages = np.array([len(part) for part in parts], np.int64)
        self.counts = np.maximum(self._passages, 1)
        cut = [*ids, *(passage for part in parts for passage in part)]
        self.texts = [framed(one, words, longest) for one in cut]

    def vectors(self, encoded: Vectors) -> NDArray[np.float32]:
        """(points, width) vectors of the documents, of (texts, width) those of `texts`."""
        wholes, passages = np.split(encoded, [len(self.counts)])
        result = np.repeat(wholes, self.counts, axis=0)
        is_passage = np.repeat(self._passages > 0, self.counts)
        result[is_passage] *= self._share
        result[is_passage] += (1 - self._share) * passages
        return result


def begins(size: int, length: int) -> range:
    """Where the passages of a text begin; nowhere if it is no longer than one.

    Args:
        size: of the text.
        length: of a passage; 0: there are none.
    """
    if not length or size <= length:
        return range(0)
    step = max(1, length // 2)
    return range(0, size - length + step, step)
