"""Vectors of all documents of a source: a job that goes on where it was left.

```
out/
  embedding.json    the model's fingerprint, the settings, and which text it is
  model/            the encoder in the layout of Hugging Face, for queries
  part-00000.npy    part-00000.parquet    …    one for each piece of the source; see
  manifest.json     written last                farreach.index.vectors
```
Pieces are embedded by actors, each of which takes the next one when it is done. A part appears
whole or not at all; what an actor that dies was at goes to another. Begun again, the job embeds the
pieces that have no part yet.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from farreach import runtime
from farreach.actors.pool import pulled
from farreach.cluster.demand import Demand
from farreach.console import say
from farreach.data import text
from farreach.data.text import Document, Piece
from farreach.data.wordpieces import one_thread
from farreach.errors import ConfigError, DataError
from farreach.index import vectors as stored
from farreach.index.files import only_writer, written_aside
from farreach.index.vectors import Vectors
from farreach.progress import Progress
from farreach_workloads.retrieval import hub, models
from farreach_workloads.retrieval.embedding import bundles, embedded
from farreach_workloads.retrieval.encoder import TextEncoder
from farreach_workloads.retrieval.jobs import JOB, MODEL, begin, job_of
from farreach_workloads.retrieval.jobs import EmbedConfig as EmbedConfig
from farreach_workloads.retrieval.models import Model
from farreach_workloads.retrieval.passages import Passages
from farreach_workloads.retrieval.source_check import check_source

UNPACKED = "unpacked"
# Documents that are sorted by length at a time, of those that are cut into passages fewer, and
# budgets of tokens between two messages.
TOGETHER, TOGETHER_IN_PASSAGES, TOLD_BUDGETS = 8192, 1024, 8
# A packed file is unpacked beside the parts if it may be larger than a piece: text packs to a
# quarter.
PACKED_SHARE = 4


class Told(NamedTuple):
    """How far a piece is.

    Attributes:
        documents: that are embedded.
        tokens: of these.
        share: of the piece.
    """

    documents: int
    tokens: int
    share: float


def embed(model: str | Path | Model, source: Path, out: Path, config: EmbedConfig) -> Vectors:
    """Embed a source, or what is left of it.

    Args:
        model: an encoder with its vocabulary, or a run, `latest`, or a folder of Hugging Face's
            layout.
        source: see `farreach.data.text`.
        out: a folder, which all workers must see.
        config: how; who goes on with it must say the same, but for what only says where and in what
            portions it is computed.

    Raises:
        DataError: the source is malformed, two documents share an id, `out` was begun with another
            model, text or setting, or another process is at it.
        ConfigError: passages are longer than texts; and, as CheckpointError, see
            `models.open_model`.
        ActorError: actors died again and again.
        ClusterError: there are fewer CPUs or GPUs than asked for.
    """
    out, source = out.absolute(), source.absolute()
    if config.gpus and not config.workers and not torch.cuda.is_available():
        raise ConfigError(
            f"gpus: {config.gpus:g}, but PyTorch sees no GPU here. Set it to 0, or workers to 1 or "
            "more to embed where Ray has GPUs."
        )
    encoder, words = model if isinstance(model, tuple) else models.open_model(model)
    _refuse_long_passages(encoder, config)
    job = job_of((encoder, words), source, config)
    pieces = text.pieces(source, config.piece_mb << 20)
    with only_writer(out):
        if not (out / JOB).exists():
            check_source(source, pieces)  # before anything is computed that would be lost
        begin(out, job, source)
        if (out / stored.MANIFEST).is_file():
            return Vectors.open(out)
        if not (out / MODEL).exists():
            hub.save_encoder(encoder, words, out / MODEL)
        normalised = encoder.normalised and not config.passage
        del encoder
        pieces = _unpacked(pieces, out / UNPACKED, config.piece_mb << 20)
        _embed_missing(pieces, out, config)
        _remove_leftovers(out)
        result = stored.finish(out, parts=len(pieces), model=job["model"], normalised=normalised)
        shutil.rmtree(out / UNPACKED, ignore_errors=True)
    return result


def _refuse_long_passages(encoder: TextEncoder, config: EmbedConfig) -> None:
    most = models.longest_of(config, encoder.longest) - 2
    if config.passage > most:
        raise ConfigError(
            f"passage: {config.passage} word pieces do not fit, for texts have {most} at most. Set "
            "it to that or less, or longest to more if the encoder has the positions."
        )


def _remove_leftovers(out: Path) -> None:
    """What processes left that were killed while they wrote."""
    for file in out.glob(".part-*.tmp"):
        file.unlink(missing_ok=True)
    for folder in out.glob(f".tmp-{MODEL}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _unpacked(pieces: Sequence[Piece], folder: Path, most: int) -> list[Piece]:
    """Pieces of which no one is a large packed file: such are unpacked first, which is kept."""
    found = []
    for piece in pieces:
        if piece.path.suffix.lower() != ".gz" or piece.size <= most // PACKED_SHARE:
            found.append(piece)
            continue
        name = piece.name or piece.path.name
        file = folder / hashlib.sha256(name.encode()).hexdigest()[:12] / piece.path.stem
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(file) as aside, gzip.open(piece.path) as packed:
                _copy(piece.path, packed, aside)
        found += [replace(own, name=name) for own in text.pieces(file, most)]
    return found


def _copy(path: Path, packed: Any, aside: Path) -> None:
    try:
        with aside.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: cannot be read: {error}. Fetch it again.") from error


def _embed_missing(pieces: Sequence[Piece], out: Path, config: EmbedConfig) -> None:
    numbers = [n for n in range(len(pieces)) if not stored.is_part_done(out, n)]
    sizes = [piece.size / 1e6 for piece in pieces]
    if not numbers:
        return
    with contextlib.ExitStack() as stack:
        if config.workers:
            workers = min(config.workers, len(numbers))
            if workers < config.workers:
                say(
                    f"note      {workers} of {config.workers} workers have something to do: there "
                    f"is no more text than {len(numbers)} pieces. Lower piece_mb for more"
                )
            needed = [Demand("worker", workers, {"CPU": config.cpus, "GPU": config.gpus})]
            stack.enter_context(runtime.connection(needed, settings=["workers", "cpus", "gpus"]))
        progress = stack.enter_context(Progress("embed", sum(sizes), "MB"))
        rates = _Rates(sizes, sum(sizes) - sum(sizes[n] for n in numbers), progress)
        messages = pulled(
            Embedder,
            (out, config),
            [(n, pieces[n]) for n in numbers],
            workers=config.workers,
            num_cpus=config.cpus,
            num_gpus=config.gpus,
            max_failures=config.max_failures,
        )
        for index, told in stack.enter_context(contextlib.closing(messages)):
            rates.take(numbers[index], told)


class _Rates:
    """Sums up what is told of all pieces, and shows it."""

    def __init__(self, sizes: Sequence[float], done: float, progress: Progress) -> None:
        self._sizes, self._done, self._progress = sizes, done, progress
        self._documents = self._tokens = 0
        self._last: dict[int, Told] = {}
        self._begun = time.monotonic()

    def take(self, number: int, told: Told | None) -> None:
        """Of the piece with a number; None: it is done."""
        last = self._last.pop(number, Told(0, 0, 0.0))
        now = last._replace(share=1.0) if told is None else told
        if told is not None:
            self._last[number] = told
        self._documents += now.documents - last.documents
        self._tokens += now.tokens - last.tokens
        self._done += (now.share - last.share) * self._sizes[number]
        seconds = max(time.monotonic() - self._begun, 1e-9)
        rates = {
            "documents": self._documents,
            "documents/s": self._documents / seconds,
            "tokens/s": self._tokens / seconds,
        }
        self._progress.update(self._done, rates)


class Embedder:
    """Embeds pieces, in an actor or in the driver."""

    def __init__(self, out: Path, config: EmbedConfig) -> None:
        """Open the model that is in the folder."""
        self._out, self._config = out, config
        encoder, self._words = hub.open_encoder(out / MODEL)
        self._positions, self._width = encoder.longest, encoder.width
        if config.int8:
            from farreach_workloads.retrieval.int8 import quantised

            encoder = quantised(encoder)
        self._device = torch.device("cuda" if config.gpus > 0 else "cpu")
        self._encoder: TextEncoder = encoder.to(self._device).eval()

    def __call__(self, number: int, piece: Piece) -> Iterator[Told]:
        """Write the part of a piece; how far that is, now and then."""
        if self._config.workers:
            torch.set_num_threads(self._config.cpus)
        documents: list[Document] = []
        parts: list[NDArray[Any]] = []
        counts: list[int] = []
        tokens, read = 0, 0
        for some, texts in self._read(piece):
            read += sum(map(len, texts))
            with one_thread() if self._config.workers else contextlib.nullcontext():
                cut = self._cut(texts)
            lengths = np.array([len(one) for one in cut.texts], np.int64)
            encoded = np.empty((len(lengths), self._width), np.float32)
            done = 0
            for rows in bundles(lengths, TOLD_BUDGETS * self._config.budget):
                encoded[rows] = embedded(
                    self._encoder,
                    [cut.texts[row] for row in rows],
                    device=self._device,
                    autocast=self._config.bfloat16,
                    budget=self._config.budget,
                )
                done += len(rows)
                tokens += int(lengths[rows].sum())
                ready = len(documents) + len(some) * done // len(lengths)
                share = min(1.0, read / max(piece.size, 1)) * ready / (len(documents) + len(some))
                yield Told(ready, tokens, share)
            documents += some
            counts += cut.counts.tolist()
            parts.append(cut.vectors(encoded).astype(self._config.stored))
        whole = np.concatenate([np.empty((0, self._width), self._config.stored), *parts])
        stored.write_part(self._out, number, whole, documents, counts)

    def _cut(self, texts: Sequence[str]) -> Passages:
        config = self._config
        return Passages(
            models.pieces_of(texts, self._words, config),
            self._words,
            longest=models.longest_of(config, self._positions),
            length=config.passage,
            share=config.whole,
        )

    def _read(self, piece: Piece) -> Iterator[tuple[list[Document], list[str]]]:
        """Documents that are sorted by length together, and what of them is encoded."""
        documents = text.documents(piece)
        together = TOGETHER_IN_PASSAGES if self._config.passage else TOGETHER
        while some := list(itertools.islice(documents, together)):
            yield some, [one.text if self._config.no_title else one.whole for one in some]
