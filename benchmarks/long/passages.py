"""What windows of documents add to their whole vectors: a study of search by parts.

    farreach train retrieval/debian data.path=data/debian … --run-dir runs/bag
    farreach evaluate runs/bag search path=data/debian
    python benchmarks/long/passages.py runs/bag data/debian

A document is found by `weight` × its whole vector + (1 - weight) × that of one of its windows, by
the best of which it is judged; documents without a second window count as a whole. Since scores are
inner products this is a search among these sums. Prints a JSON line for each length of windows, in
words, and each weight: nDCG@10 and R@100 of the vectors, and nDCG@10 with BM25 at the weight that
is best on the split `dev`. Run it with the index that `evaluate` has left.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from farreach.index.fusion import fused, tuned_weight
from farreach.index.gains import gains_of, ideal_of, ndcg
from farreach.index.hits import Hits
from farreach_workloads.retrieval.evaluation.asked import Asked
from farreach_workloads.retrieval.evaluation.beir import open_beir
from farreach_workloads.retrieval.searcher import Searcher

WINDOWS = (16, 25, 32, 40)  # words; each begins half a window after the one before
WEIGHTS = (1.0, 0.7, 0.6, 0.5, 0.4, 0.25)
DEPTH, SHOWN, TOGETHER = 100, 10, 100


def windows(text: str, words: int) -> list[str]:
    """Windows of a text that is longer than one, none otherwise."""
    found, step = text.split(), words // 2
    if len(found) <= words:
        return []
    return [
        " ".join(found[begin : begin + words])
        for begin in range(0, len(found) - words + step, step)
    ]


class Split:
    """Queries of a split, and what vectors and words find."""

    def __init__(self, searcher: Searcher, path: Path, name: str, whole: Any) -> None:
        """Encode and search."""
        self.asked = Asked.of(open_beir(path, name), searcher.index)
        self.queries = searcher.encode(self.asked.texts)
        sides = self.asked.ask(searcher, DEPTH, "lexical")
        assert sides.lexical is not None
        self.lexical = sides.lexical
        self._whole = whole

    def dense(self, parts: Any, starts: Any, documents: Any, weight: float) -> Hits:
        """The best documents by their whole vectors and the best of their parts."""
        found: list[Hits] = []
        for begin in range(0, len(self.queries), TOGETHER):
            queries = self.queries[begin : begin + TOGETHER]
            scores = queries @ self._whole.T
            best = np.maximum.reduceat(queries @ parts.T, starts, axis=1)
            scores[:, documents] = weight * scores[:, documents] + (1 - weight) * best
            order = np.argpartition(-scores, DEPTH, axis=1)[:, : DEPTH + 1]
            found.append(Hits(np.take_along_axis(scores, order, 1), order.astype(np.int64)))
        hits = Hits(
            np.concatenate([hits.scores for hits in found]),
            np.concatenate([hits.rows for hits in found]),
        )
        return self.asked.without_own(hits, DEPTH)

    def quality(self, hits: Hits) -> tuple[float, float]:
        """Mean nDCG@10 and recall among all hits."""
        relevant = self.asked.relevant
        gains = gains_of(hits.rows[:, :SHOWN], relevant)
        answered = [
            len({row for row, grade in grades.items() if grade > 0} & set(rows)) / len(grades)
            for grades, rows in zip(relevant, hits.rows.tolist(), strict=True)
        ]
        return float(np.nanmean(ndcg(gains, ideal_of(relevant), SHOWN))), float(np.mean(answered))


def rows(searcher: Searcher, path: Path, lengths: list[int]) -> Iterator[dict[str, Any]]:
    """A row of results for each length and weight."""
    every = np.arange(searcher.documents)
    texts = [f"{d.title} {d.text}".strip() for d in searcher.index.documents(every)]
    whole = searcher.index.vectors.rows(every)
    splits = {name: Split(searcher, path, name, whole) for name in ("dev", "test")}
    for words in lengths:
        parts, owners = [], []
        for row, text in enumerate(texts):
            some = windows(text, words)
            parts += some
            owners += [row] * len(some)
        vectors, owned = searcher.encode(parts), np.array(owners)
        starts = np.flatnonzero(np.diff(owned, prepend=-1))
        for weight in WEIGHTS:
            hits = {
                name: split.dense(vectors, starts, owned[starts], weight)
                for name, split in splits.items()
            }
            dev = splits["dev"]
            share = tuned_weight(hits["dev"], dev.lexical, dev.asked.relevant)
            result: dict[str, Any] = {"words": words, "windows": len(parts), "whole": weight}
            for name, split in splits.items():
                quality = split.quality(hits[name])
                both = fused(hits[name], split.lexical, SHOWN, share)
                found = (*quality, split.quality(both)[0])
                keys = ("ndcg@10", "recall@100", "hybrid_ndcg@10")
                result[name] = dict(zip(keys, (round(value, 4) for value in found), strict=True))
            yield result


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run that `farreach evaluate RUN search` searched")
    parser.add_argument("path", type=Path, help="the folder that it searched, with dev and test")
    parser.add_argument("--words", type=int, nargs="+", default=list(WINDOWS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    places = sorted((arguments.run / "vectors").glob("*/index-*"))
    if not places:
        parser.error(f"{arguments.run}: has no index. Run farreach evaluate {arguments.run} search")
    searcher = Searcher.open(places[-1])
    for row in rows(searcher, arguments.path, arguments.words):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
