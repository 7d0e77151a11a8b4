"""Text made ready and searched by its words: tokens in mapped files, and BM25.

Texts are made of the extract that is shipped: 50,000 of three sentences each, drawn at random.

- `tokenise`: tokens per CPU-second from lines of JSON to files that are mapped, on one thread; the
  peer is a tokenizer of transformers with the same vocabulary, called text by text, and torch.save,
  as Contriever's code makes its shards.
- `lexical`: queries per CPU-second, the best 100 documents of each by BM25; the peer is bm25s with
  words that are cut and numbered before, of which ours is made. `scores_differ_by` is the greatest
  difference between the two.

`python benchmarks/texts.py [ROW …]` prints one JSON line per row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import torch

from farreach.data import text, tokens, wordpieces
from farreach.data.text import Document
from farreach.data.wordpieces import WordPieces, one_thread
from farreach.index.lexical import Bm25, words_of
from farreach_workloads.retrieval.corpora import extract

DOCUMENTS, SENTENCES, QUERIES, PIECES, K = 50_000, 3, 2000, 16_000, 100


def drawn(folder: Path) -> list[Document]:
    """Texts of a few sentences each."""
    wholes = [one.text for one in text.documents(extract.folder(folder / "extract"))]
    sentences = [part.strip() for whole in wholes for part in whole.split(".") if part.strip()]
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(sentences), (DOCUMENTS, SENTENCES))
    return [
        Document(f"d{number}", "", ". ".join(sentences[place] for place in places))
        for number, places in enumerate(chosen)
    ]


def tokenise(documents: list[Document], folder: Path, rounds: int) -> None:
    """Print the row."""
    from transformers import PreTrainedTokenizerFast

    source = folder / "corpus.jsonl"
    source.write_text("".join(json.dumps({"text": one.text}) + "\n" for one in documents))
    wordpieces.trained((one.text for one in documents[:20_000]), PIECES).save(folder / "words")
    words = WordPieces.open(folder / "words")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "words" / "tokenizer.json"))
    counts = [0, 0]

    def ours() -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        with one_thread():
            counts[0] = tokens.build(source, folder / "store", words).tokens

    def peer() -> None:
        ids: list[int] = []
        with source.open() as lines:
            for line in lines:
                body = json.loads(line)["text"]
                ids += theirs(body, add_special_tokens=False, verbose=False)["input_ids"]
        torch.save(torch.tensor(ids, dtype=torch.int32), folder / "peer.pt")
        counts[1] = len(ids)

    spent = measure.medians([ours, peer], rounds)
    if counts[0] != counts[1]:
        raise SystemExit(f"tokens differ: {counts}")
    rates = [counts[0] / seconds for seconds in spent]
    measure.row("tokenise", *rates, "tokens per CPU-second", rates[0] / rates[1], tokens=counts[0])


def lexical(documents: list[Document], folder: Path, rounds: int) -> None:
    """Print the row."""
    import bm25s

    rng = np.random.default_rng(1)
    queries = []
    for number in rng.choice(len(documents), QUERIES):
        words = words_of(documents[number].text)
        queries.append(" ".join(rng.choice(words, min(6, len(words)), replace=False)))
    Bm25.build(documents, folder / "bm25")
    index = Bm25.open(folder / "bm25")
    theirs = bm25s.BM25(k1=index.k1, b=index.b, method="lucene")
    theirs.index([words_of(one.text) for one in documents], show_progress=False)
    cut = [words_of(query) for query in queries]
    found: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = [np.empty(0), np.empty(0)]

    def ours() -> None:
        found[0] = index.search(queries, K).scores

    def peer() -> None:
        found[1] = theirs.retrieve(cut, k=K, show_progress=False, n_threads=0).scores

    spent = measure.medians([ours, peer], rounds)
    both = np.isfinite(found[0])
    difference = float(np.abs(np.where(both, found[0] - found[1], 0)).max())
    rates = [QUERIES / seconds for seconds in spent]
    measure.row(
        "lexical",
        *rates,
        "queries per CPU-second",
        rates[0] / rates[1],
        scores_differ_by=difference,
    )


ROWS: dict[str, Callable[[list[Document], Path, int], None]] = {
    "tokenise": tokenise,
    "lexical": lexical,
}


def main() -> None:
    """Print the rows that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        documents = drawn(Path(name))
        for row in options.rows or ROWS:
            folder = Path(name, row)
            folder.mkdir()
            ROWS[row](documents, folder, options.rounds)


if __name__ == "__main__":
    main()
