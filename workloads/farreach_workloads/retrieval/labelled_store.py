"""Labelled texts, tokenised once: each text that occurs is kept once, in a folder that is mapped.

```
<store>/
  tokens.bin       all texts' tokens without special ones, uint16 (uint32 for large vocabularies)
  *.npy            where texts begin, their keys, and the numbers of the texts of every row
  manifest.json    counts, and the vocabulary
```
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from farreach.data.text import Document
from farreach.data.wordpieces import WordPieces, normalised
from farreach.disk import sync
from farreach.errors import DataError

if TYPE_CHECKING:
    from farreach_workloads.retrieval.labelled import Row

MANIFEST, TOKENS = "manifest.json", "tokens.bin"
FORMAT = 1
# Texts that are tokenised together.
_TOGETHER = 4096
_LISTS = ("positives", "negatives", "hard")

Numbers = NDArray[np.int64]


def key_of(text: str) -> int:
    """Of 63 bits, the same for texts that differ in case, spaces, hyphens or quotes alone."""
    plain = " ".join(normalised(text).lower().split())
    return int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "little") >> 1


@dataclass(frozen=True)
class Lists:
    """A list of numbers of texts for every row.

    Attributes:
        values: one list after the other.
        begins: where each begins, and where the last one ends, (rows + 1,).
    """

    values: Numbers
    begins: Numbers

    def of(self, row: int) -> Numbers:
        """The list of a row, (any,)."""
        return np.asarray(self.values[self.begins[row] : self.begins[row + 1]])


class LabelledStore:
    """What `build` has written. It can be pickled: what is sent is the path.

    Attributes:
        path: its folder.
        count: rows to learn from; they come first.
        held_out: rows that follow.
        skipped: rows that were left out since nothing answers them.
        questions: number of each row's question, (rows,).
        positives: texts that answer it, at least one each.
        negatives: texts that do not.
        hard: texts that do not though they look as if.
        corpus: any texts, each once, (any,).
        keys: see `key_of`, (texts,).
    """

    def __init__(self, path: Path) -> None:
        """Map what is there.

        Raises:
            DataError: it is missing or damaged.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            arrays = {
                name: np.load(path / f"{name}.npy", mmap_mode="r") for name in manifest["arrays"]
            }
            tokens = np.memmap(path / TOKENS, manifest["dtype"], "r")
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{path}: cannot be read: {error}. Delete it to have it made again; with several "
                "machines put data.cache on storage that all of them share."
            ) from error
        self.path = path
        self.count, self.held_out = int(manifest["count"]), int(manifest["held_out"])
        self.skipped = int(manifest["skipped"])
        self.questions: Numbers = arrays["questions"]
        self.corpus: Numbers = arrays["corpus"]
        self.keys: Numbers = arrays["keys"]
        self.positives, self.negatives, self.hard = (
            Lists(arrays[name], arrays[f"{name}_begins"]) for name in _LISTS
        )
        self._begins, self._tokens = arrays["begins"], tokens

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps it again."""
        return LabelledStore, (self.path,)

    def text(self, number: int) -> NDArray[np.int32]:
        """Tokens of a text, without special ones, (any,)."""
        begin, end = self._begins[number], self._begins[number + 1]
        return np.asarray(self._tokens[begin:end]).astype(np.int32)


def build(
    rows: Iterable[Row],
    held_out: Iterable[Row],
    corpus: Iterable[Document],
    out: Path,
    words: WordPieces,
    *,
    normalise: bool = False,
) -> LabelledStore:
    """Tokenise all texts, each once, or open what is there already.

    Memory: about 100 bytes for each different text.

    Args:
        rows: to learn from; those that nothing answers are left out and counted.
        held_out: likewise, to measure with.
        corpus: texts that negatives may be drawn from.
        out: the folder, which appears when all is written.
        words: the vocabulary.
        normalise: bring hyphens, quotation marks and the like into one form first.

    Raises:
        DataError: nothing is left to learn from, or what reading the rows raises.
    """
    if (out / MANIFEST).is_file():
        return LabelledStore(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    working = out.with_name(f".tmp-{out.name}-{os.getpid()}")
    shutil.rmtree(working, ignore_errors=True)
    try:
        working.mkdir()
        with (working / TOKENS).open("wb") as file:
            writer = _Writer(file, words, normalise)
            counts = [writer.add_rows(rows), writer.add_rows(held_out)]
            if not counts[0]:
                raise DataError("no row has a text that answers it. Give rows with positive_ctxs.")
            writer.add_corpus(corpus)
            writer.flush()
        writer.save(working, counts)
        for path in working.iterdir():
            sync(path)
        if not out.exists():
            os.rename(working, out)
            sync(out.parent)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return LabelledStore(out)


class _Writer:
    """Numbers texts as they come, and writes their tokens."""

    def __init__(self, file: Any, words: WordPieces, normalise: bool) -> None:
        self._file, self._words, self._normalise = file, words, normalise
        self._dtype = "uint16" if words.size < 1 << 16 else "uint32"
        self._numbers: dict[bytes, int] = {}
        self._waiting: list[str] = []
        self._begins, self._keys = array("q", [0]), array("q")
        self._questions, self._corpus = array("q"), array("q")
        self._lists = {name: (array("q"), array("q", [0])) for name in _LISTS}
        self._skipped = 0

    def add_rows(self, rows: Iterable[Row]) -> int:
        """How many were added."""
        before = len(self._questions)
        for row in rows:
            if not row.positives:
                self._skipped += 1
                continue
            self._questions.append(self._number(row.question))
            for name in _LISTS:
                values, begins = self._lists[name]
                texts = dict.fromkeys(self._number(one.whole) for one in getattr(row, name))
                values.extend(texts)
                begins.append(len(values))
        return len(self._questions) - before

    def add_corpus(self, documents: Iterable[Document]) -> None:
        """Each different text once."""
        for number in dict.fromkeys(self._number(one.whole) for one in documents):
            self._corpus.append(number)

    def _number(self, text: str) -> int:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:16]
        number = self._numbers.setdefault(digest, len(self._keys))
        if number == len(self._keys):
            self._keys.append(key_of(text))
            self._waiting.append(normalised(text) if self._normalise else text)
            if len(self._waiting) == _TOGETHER:
                self.flush()
        return number

    def flush(self) -> None:
        """Tokenise what waits."""
        for ids in self._words.encode(self._waiting):
            self._file.write(ids.astype(self._dtype).tobytes())
            self._begins.append(self._begins[-1] + len(ids))
        self._waiting.clear()

    def save(self, folder: Path, counts: list[int]) -> None:
        """All but the tokens."""
        arrays = {
            "begins": self._begins,
            "keys": self._keys,
            "questions": self._questions,
            "corpus": self._corpus,
        }
        for name, (values, begins) in self._lists.items():
            arrays |= {name: values, f"{name}_begins": begins}
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", np.array(values, np.int64))
        manifest = {
            "format": FORMAT,
            "arrays": list(arrays),
            "dtype": self._dtype,
            "vocabulary": self._words.fingerprint,
            "count": counts[0],
            "held_out": counts[1],
            "skipped": self._skipped,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
