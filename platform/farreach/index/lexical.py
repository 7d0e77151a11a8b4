"""Search by words: BM25 over documents, kept in a folder that is opened by memory mapping.

```
<index>/
  *.npy, *.json    what bm25s saves: a column of scores for each word, and the words
  manifest.json    settings, how many documents there are, and a hash of their ids in order
```
The score of a document d for a query is, with Lucene's variant of the formula, the sum over the
query's words w, as often as they occur in it, of

    ln(1 + (N - n_w + 0.5) / (n_w + 0.5)) · f / (f + k1 (1 - b + b |d| / mean |d|)),

where N documents are there, n_w have w, d has it f times, and |d| is the number of its words.
Sources: Robertson et al., TREC-3, 1994; bm25s, arXiv:2407.03618; for k1 and b Anserini's settings.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farreach.data.text import Document
from farreach.disk import atomic_write, sync
from farreach.errors import ConfigError, DataError
from farreach.index.hits import Hits

FORMAT = 1
MANIFEST_FILE = "manifest.json"
# Of so many documents one tells which scores may be among the best.
SAMPLED = 16
_MAKE_AGAIN = "Delete it and build it again."

_ASCII_WORD = re.compile(r"\w+", re.ASCII)
# Ideographs, kana and hangul: they are written without spaces, or glue endings to words.
_CJK = (
    "\u1100-\u11ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_CJK_RUN = re.compile(f"[{_CJK}]+")
_CJK_OR_NOT = re.compile(f"[{_CJK}]+|[^{_CJK}]+")


def words_of(text: str) -> list[str]:
    r"""The words of a text in their order, lower-cased, without stemming.

    A word is a run of `\w` with the combining marks that follow its letters, after composition
    (NFC). Runs of ideographs, kana or hangul become their overlapping pairs, a single one itself.
    """
    text = text.lower()
    if text.isascii():
        return _ASCII_WORD.findall(text)
    text = unicodedata.normalize("NFC", text)
    words = _word().findall(text)
    if _CJK_RUN.search(text) is None:
        return words
    return [word for mixed in words for run in _CJK_OR_NOT.findall(mixed) for word in _pairs(run)]


@cache
def marks() -> str:
    """All combining marks (Unicode's categories M…), as ranges for a regular expression's class."""
    codes = [code for code in range(0x110000) if unicodedata.category(chr(code))[0] == "M"]
    breaks = [at for at in range(1, len(codes)) if codes[at] != codes[at - 1] + 1]
    ends = zip([0, *breaks], [*breaks, len(codes)], strict=True)
    return "".join(f"{chr(codes[begin])}-{chr(codes[end - 1])}" for begin, end in ends)


def order_hash(ids: Iterable[str]) -> str:
    """A hash of ids in their order (SHA-256), to tell whether rows stand for the same documents."""
    whole = hashlib.sha256()
    for name in ids:
        whole.update(name.encode() + b"\0")
    return whole.hexdigest()


class Bm25:
    """A built index. It can be pickled: what is sent is the path.

    Attributes:
        path: its folder.
        documents: how many there are; rows are their numbers in the order they were given.
        order: `order_hash` of their ids.
        k1: how soon further occurrences of a word in a document count for little.
        b: from 0 to 1, how much long documents are marked down.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], retriever: Any, mmap: bool) -> None:
        """Use `build` or `open`."""
        self.path, self._bm25, self._mmap = path, retriever, mmap
        self.documents: int = manifest["documents"]
        self.order: str = manifest["order"]
        self.k1: float = manifest["k1"]
        self.b: float = manifest["b"]

    def __reduce__(self) -> tuple[Any, tuple[Path, bool]]:
        """Open it again where it is sent to."""
        return _open, (self.path, self._mmap)

    @classmethod
    def build(
        cls, documents: Iterable[Document], out: Path, k1: float = 0.9, b: float = 0.4
    ) -> Bm25:
        """Index titles and texts; memory grows by 4 bytes a word, and by the words themselves.

        Args:
            documents: read once.
            out: a folder that is not there yet or empty; it appears when all is written.
            k1: at least 0.
            b: from 0 to 1.

        Raises:
            ConfigError: k1 or b is out of range.
            DataError: `out` holds something, cannot be written, or no document has a word.
        """
        if k1 < 0 or not 0 <= b <= 1:
            raise ConfigError(f"k1={k1:g}, b={b:g}: k1 is to be at least 0 and b from 0 to 1.")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out}: is there already. Open it, or delete it to build it again.")
        numbers, vocabulary, order = _numbered(documents)
        if not vocabulary:
            raise DataError(
                f"{out}: none of {len(numbers)} documents has a word. Give some with text."
            )
        bm25s = _bm25s()
        retriever = bm25s.BM25(k1=k1, b=b, method="lucene")
        retriever.index((numbers, vocabulary), create_empty_token=False, show_progress=False)
        manifest = {
            "format": FORMAT,
            "kind": "bm25",
            "k1": k1,
            "b": b,
            "documents": len(numbers),
            "words": len(vocabulary),
            "order": order,
            "bm25s": bm25s.__version__,
        }
        _save(retriever, manifest, out)
        return cls.open(out)

    @classmethod
    def open(cls, path: Path, *, mmap: bool = True) -> Bm25:
        """Open what was built.

        Args:
            path: the folder.
            mmap: leave the scores on the disk; the words are read in either case.

        Raises:
            DataError: it is missing, unfinished, damaged or of another format.
        """
        manifest = _read_manifest(path)
        try:
            retriever = _bm25s().BM25.load(path, mmap=mmap, show_progress=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read: {error}. {_MAKE_AGAIN}") from error
        # A view of a memory map as a plain array is as lazy, and its slices are made faster.
        plain = ("data", "indices", "indptr")
        retriever.scores |= {name: np.asarray(retriever.scores[name]) for name in plain}
        return cls(path, manifest, retriever, mmap)

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """The k best documents for each query, of equal ones the lower row first.

        A document without any of the query's words is none of them.

        Args:
            queries: n texts.
            k: at least 1; may be more than there are documents.

        Returns:
            Of (n, k).

        Raises:
            DataError: k is below 1.
        """
        if k < 1:
            raise DataError(f"k={k}: there is nothing to search for. Ask for 1 or more.")
        hits = Hits.none(len(queries), k)
        for number, query in enumerate(queries):
            known = self._bm25.get_tokens_ids(words_of(query))
            if known:
                of_all = self._bm25.get_scores_from_ids(known)
                found = _best(of_all, k)
                hits.rows[number, : len(found)] = found
                hits.scores[number, : len(found)] = of_all[found]
        return hits


def _open(path: Path, mmap: bool) -> Bm25:
    return Bm25.open(path, mmap=mmap)


@cache
def _word() -> re.Pattern[str]:
    return re.compile(rf"\w[\w{marks()}]*")


@cache
def _bm25s() -> Any:
    """The library, with SciPy behind it, which takes a quarter of a second to import."""
    import bm25s

    # It sets itself to tell of every build, whatever the program wants to hear of.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def _pairs(run: str) -> list[str]:
    """The overlapping pairs of a run of ideographs; of any other run itself."""
    if len(run) < 2 or _CJK_RUN.match(run) is None:
        return [run]
    return [run[at : at + 2] for at in range(len(run) - 1)]


def _numbered(documents: Iterable[Document]) -> tuple[list[array[int]], dict[str, int], str]:
    """The numbers of each document's words, the number of each word, and the documents' order."""
    vocabulary: dict[str, int] = {}
    numbers, ids = [], []
    for document in documents:
        words = words_of(document.whole)
        numbers.append(array("i", [vocabulary.setdefault(word, len(vocabulary)) for word in words]))
        ids.append(document.id)
    return numbers, vocabulary, order_hash(ids)


def _best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Rows of the k highest scores above 0, the best first, of equal ones the lower row."""
    low = _kth(scores[::SAMPLED], k)  # no higher than that of all
    rows = np.flatnonzero(scores >= low if low > 0 else scores > 0)
    rows = rows[scores[rows] >= _kth(scores[rows], k)]
    return rows[np.argsort(-scores[rows], kind="stable")[:k]]


def _kth(scores: NDArray[np.float32], k: int) -> float:
    """The k-th highest, 0 if there are fewer."""
    return float(np.partition(scores, -k)[-k]) if k <= len(scores) else 0.0


def _save(retriever: Any, manifest: dict[str, Any], out: Path) -> None:
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        retriever.save(temporary, show_progress=False)
        for file in temporary.iterdir():
            sync(file)
        atomic_write(temporary / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")
        os.replace(temporary, out)
        sync(out.parent)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written: {error}. Mend that, or name another."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST_FILE
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read: {error}. Give the folder of an index of words, or build one."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("kind") != "bm25":
        raise DataError(f"{path}: is no index of words. Give the folder of one, or build it.")
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path}: has the format {manifest.get('format')}, and {FORMAT} is read. {_MAKE_AGAIN}"
        )
    return manifest
