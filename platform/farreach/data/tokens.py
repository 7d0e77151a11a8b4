"""Token stores: a corpus as one stream of token ids in memory-mapped files.

```
store/
  part-00000.bin   token ids without special tokens, uint16 (uint32 from 65,536 tokens on)
  part-00000.doc   .npy of uint64: where in the part each document begins
  …
  manifest.json    vocabulary, counts and checksums; written last
```
The stream goes on from part to part; a document lies in one part. Of a store that is larger than
the memory, the operating system keeps in memory what was read last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farreach.data.token_building import MANIFEST_FILE, build_files, read_manifest
from farreach.data.token_parts import fault_of, part_file, token_type
from farreach.data.wordpieces import WordPieces
from farreach.disk import atomic_write
from farreach.errors import DataError, FarreachError

VERIFIED_FILE = ".verified"
_READ_BYTES = 1 << 22

Numbers = NDArray[np.int64]


class TokenStore:
    """A stream of token ids, and where the documents in it begin and end; can be pickled.

    Attributes:
        path: the folder.
        tokens: how many there are.
        documents: with at least one token.
        skipped: documents that are blank or have no token.
        dtype: of the tokens.
        size: of the vocabulary.
        vocabulary: fingerprint of the `WordPieces` that it was built with.
        fingerprint: another one if the tokens, the documents or the vocabulary are others; hex.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Map the files; users call `open`."""
        self.path = path.absolute()
        self.tokens, self.documents = int(manifest["tokens"]), int(manifest["documents"])
        self.skipped = int(manifest["skipped"])
        self._hashes = [str(part["sha256"]) for part in manifest["parts"]]
        self.size, self.vocabulary = int(manifest["size"]), str(manifest["vocabulary"])
        self.dtype = token_type(self.size)
        content = hashlib.sha256(self.vocabulary.encode())
        self._parts: list[NDArray[Any]] = []
        self._starts: list[Numbers] = []
        for number, part in enumerate(manifest["parts"]):
            content.update(part["sha256"].encode())
            if part["tokens"]:
                binary, begins = (part_file(path, number, suffix) for suffix in (".bin", ".doc"))
                self._parts.append(np.asarray(np.memmap(binary, self.dtype, "r")))
                self._starts.append(np.asarray(np.load(begins, mmap_mode="r")).view(np.int64))
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)
        self._begins = self._ends - [len(part) for part in self._parts]
        self._views: dict[tuple[int, int], NDArray[Any]] = {}
        self.fingerprint = content.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it again."""
        return TokenStore.open, (self.path,)

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """A store that was built.

        Raises:
            DataError: there is none, its build was not finished, or a file is missing or damaged.
        """
        manifest = read_manifest(path)
        if manifest is None:
            unfinished = any(path.glob("part-*")) if path.is_dir() else False
            raise DataError(
                f"{path}: holds no {MANIFEST_FILE}. "
                + ("Build it again to go on." if unfinished else "Give the folder of a store.")
            )
        dtype = token_type(manifest["size"])
        for number, part in enumerate(manifest["parts"]):
            fault = fault_of(path, number, part["tokens"], part["documents"], dtype)
            if fault is not None:
                raise DataError(f"{fault} Copy the store again, or remove and build it again.")
        return cls(path, manifest)

    def verify(self) -> None:
        """Read all of it and compare it with what was written, unless it was since it was copied.

        What was found is kept beside the parts, and counts for files of the same sizes and times.

        Raises:
            DataError: a part is damaged.
        """
        files = [
            [part_file(self.path, number, suffix) for suffix in (".bin", ".doc")]
            for number in range(len(self._hashes))
        ]
        stats = [(file, file.stat()) for pair in files for file in pair]
        facts = "".join(f"{f.name} {facts.st_size} {facts.st_mtime_ns}\n" for f, facts in stats)
        note = self.path / VERIFIED_FILE
        with suppress(OSError, UnicodeDecodeError):
            if note.read_text() == facts:
                return
        for (binary, begins), expected in zip(files, self._hashes, strict=True):
            content = hashlib.sha256()
            with binary.open("rb") as opened:
                while block := opened.read(_READ_BYTES):
                    content.update(block)
            content.update(np.load(begins).data)
            if content.hexdigest() != expected:
                raise DataError(
                    f"{binary}: is damaged: it or {begins.name} is not what was written. Copy the "
                    "store again, or remove and build it again."
                )
        with suppress(OSError, FarreachError):  # a disk that is only read
            atomic_write(note, facts)

    def windows(self, starts: Numbers, length: int) -> NDArray[Any]:
        """Runs of tokens, across documents and parts: (n,) → (n, length) of the store's type.

        Args:
            starts: first token of each, in [0, tokens - length], in any order.
            length: tokens of each, at least 1.

        Raises:
            DataError: there are fewer tokens than one window has.
            IndexError: a window reaches out of the store.
        """
        if length > self.tokens:
            raise DataError(
                f"{self.path}: holds {self.tokens} tokens, fewer than one window of {length}. Add "
                "text, or shorten the window."
            )
        starts = self._checked(starts, self.tokens - length + 1)
        found = np.empty((len(starts), length), self.dtype)
        last = self._part_of(starts + length - 1)
        for part, rows in _groups(self._part_of(starts)):
            whole = last[rows] == part
            rows, split = rows[whole], rows[~whole]
            if len(rows):
                found[rows] = self._view(part, length)[starts[rows] - self._begins[part]]
            if len(split):
                found[split] = self._gathered(starts[split, None] + np.arange(length))
        return found

    def bounds(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """Begin and end of the document that each token is in: (n,) → two of (n,) int64.

        Raises:
            IndexError: a position is out of the store.
        """
        positions = self._checked(positions, self.tokens)
        begins, ends = np.empty((2, len(positions)), np.int64)
        for part, rows in _groups(self._part_of(positions)):
            starts, first = self._starts[part], self._begins[part]
            number = np.searchsorted(starts, positions[rows] - first, side="right") - 1
            begins[rows] = starts[number] + first
            following = starts[np.minimum(number + 1, len(starts) - 1)] + first
            ends[rows] = np.where(number + 1 < len(starts), following, self._ends[part])
        return begins, ends

    def _checked(self, positions: Numbers, stop: int) -> Numbers:
        positions = np.asarray(positions, np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < stop:
            raise IndexError(
                f"{self.path}: positions {positions.min()} to {positions.max()} are not within "
                f"0 and {stop - 1}"
            )
        return positions

    def _part_of(self, positions: Numbers) -> Numbers:
        return np.searchsorted(self._ends, positions, side="right")

    def _view(self, part: int, length: int) -> NDArray[Any]:
        """All windows of a part, (tokens - length + 1, length), without a copy."""
        key = part, length
        if key not in self._views:
            view = np.lib.stride_tricks.sliding_window_view(self._parts[part], length)
            self._views[key] = view
        return self._views[key]

    def _gathered(self, positions: Numbers) -> NDArray[Any]:
        """Tokens at positions in any parts, of any shape."""
        flat = positions.ravel()
        found = np.empty(len(flat), self.dtype)
        for part, rows in _groups(self._part_of(flat)):
            found[rows] = self._parts[part][flat[rows] - self._begins[part]]
        return found.reshape(positions.shape)


def build(
    source: Path,
    out: Path,
    words: WordPieces,
    *,
    workers: int = 0,
    normalise: bool = False,
    renew: bool = False,
) -> TokenStore:
    """Tokenise a corpus into a store, in the order of its pieces; title and text of each document.

    A build that was broken off goes on when it is called again: parts that are done stay, those
    whose files of text have changed since are made again. On several machines both paths must be on
    a disk that all share.

    Args:
        source: a file or folder of text; see `data.text`.
        out: the store's folder.
        words: the vocabulary.
        workers: 0 to work in this process; else in Ray tasks of one CPU each, as many at once as
            Ray has CPUs, which must be this many at least.
        normalise: whether to normalise the text first; see `wordpieces.normalised`.
        renew: make a store anew whose files of text have changed, or have been copied or touched;
            else that is an error.

    Raises:
        DataError: the text is malformed or gives no token; or `out` holds a store of another
            vocabulary or text, or with the other choice of `normalise`.
    """
    # Tasks may have another working directory.
    source, out = source.resolve(), out.resolve()
    build_files(source, out, words, workers, normalise, renew)
    return TokenStore.open(out)


def _groups(parts: Numbers) -> Iterator[tuple[int, Numbers]]:
    """Each part, and the rows that name it."""
    if not len(parts):
        return
    order = np.argsort(parts, kind="stable")
    cuts = np.flatnonzero(np.diff(parts[order])) + 1
    for rows in np.split(order, cuts):
        yield int(parts[rows[0]]), rows
