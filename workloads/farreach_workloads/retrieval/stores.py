"""From raw text to token stores: what a run learns from, made once and kept in a cache.

Names in the cache follow from the text's files, the vocabulary and the settings: a worker finds
what the driver has made, a changed text is tokenised anew. Where machines share no cache, each
makes its own: the first of its processes does, the others wait. What is in it is the same, since
it follows from the text; what would not be is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from farreach.console import say, warn
from farreach.data import text, tokens, wordpieces
from farreach.data.digests import digest
from farreach.data.fetched import here
from farreach.data.text_records import layout
from farreach.data.token_building import MANIFEST_FILE
from farreach.data.tokens import TokenStore
from farreach.data.wordpieces import WordPieces
from farreach.disk import sync
from farreach.errors import ConfigError, DataError
from farreach_workloads.retrieval.config import RetrievalConfig
from farreach_workloads.retrieval.corpora import extract
from farreach_workloads.retrieval.sampler import Chunks, PairData
from farreach_workloads.retrieval.spans import Vocabulary

# Characters that word pieces are trained on.
_TRAINED_ON = 200_000_000


def sources(config: RetrievalConfig) -> dict[str, Path]:
    """The corpora by name; raises ConfigError where there is none.

    The extract is unpacked into the cache when it is first asked for.
    """
    path, cache = config.data.path, Path(config.data.cache)
    if path is None:
        with _alone(cache, "extract"):
            return {"extract": extract.folder(cache)}
    named = path if isinstance(path, dict) else {Path(path).stem or "text": path}
    if not named:
        raise ConfigError("data.path: names no text. Give a file, a folder, or several by name.")
    found = {name: here(place) for name, place in named.items()}
    for name, place in found.items():
        if not place.exists():
            raise ConfigError(f"data.path: {place} ({name}) is not there.")
    return found


def fingerprint(source: Path) -> str:
    """Of the files of a text, or of a folder with rows: their names and all that is in them."""
    whole = hashlib.sha256()
    files = [source]
    if source.is_dir():  # in which other things may lie
        files = sorted(p for p in source.rglob("*") if p.is_file() and (layout(p) or _has_rows(p)))
    for path in files:
        whole.update(f"{path.relative_to(source)} {digest(path)} ".encode())
    return whole.hexdigest()


def _has_rows(file: Path) -> bool:
    return file.suffix.lower() == ".json"


def words_of(config: RetrievalConfig) -> WordPieces:
    """The vocabulary of a run: given, that of the encoder's folder, or trained and kept.

    Raises:
        DataError: it cannot be opened, there is too little text to train one, or a worker would
            train another one than others.
    """
    given = config.data.words or config.encoder.path or config.encoder.embeddings
    if given is not None:
        return WordPieces.open(here(given))
    folder = Path(config.data.cache) / f"words-{_words_key(config)}"
    if not folder.is_dir():
        with _alone(folder.parent, "words"):
            if not folder.is_dir():  # another process may have been faster
                _train_words(config, folder)
    return WordPieces.open(folder)


def prepare(config: RetrievalConfig) -> dict[str, TokenStore]:
    """The token stores by name, built where they are missing; whoever calls it waits for that."""
    words = words_of(config)
    stores = {}
    for name, source in sources(config).items():
        folder = _store_folder(config, source, words)
        stores[name] = store = _built(config, name, source, folder, words, config.data.workers)
        if store.skipped:
            warn(f"warning: {source}: {store.skipped:,} blank documents are passed over")
        store.verify()
    return stores


def opened(config: RetrievalConfig, words: WordPieces) -> dict[str, TokenStore]:
    """The token stores that `prepare` has left, or the same ones, built on this machine.

    Raises:
        DataError: they cannot be built.
    """
    stores = {}
    for name, source in sources(config).items():
        folder = _store_folder(config, source, words)
        if (folder / MANIFEST_FILE).is_file():
            stores[name] = TokenStore.open(folder)
        else:  # the tasks of Ray that `prepare` may have them built by would wait for this worker
            stores[name] = _built(config, name, source, folder, words, workers=0)
    return stores


def _built(
    config: RetrievalConfig,
    name: str,
    source: Path,
    folder: Path,
    words: WordPieces,
    workers: int,
) -> TokenStore:
    """A token store, built if it is missing; one process does, the others wait for it."""
    if not (folder / MANIFEST_FILE).is_file():
        say(f"tokens    {name}: {source} → {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    normalise = config.data.normalised
    return tokens.build(source, folder, words, workers=workers, normalise=normalise, renew=True)


def pairs(config: RetrievalConfig, words: WordPieces) -> PairData:
    """The pairs that a run learns from, of the token stores that `prepare` has left.

    Raises:
        ConfigError, DataError: as `opened`, `Chunks` and `PairData` do.
    """
    chunks = Chunks(opened(config, words), config.mix, config.spans.chunk, config.seed)
    samples = config.training.batch * config.training.epoch_updates
    return PairData(chunks, config.spans, vocabulary_of(words), config.seed, samples)


def vocabulary_of(words: WordPieces) -> Vocabulary:
    """What spans need to know of word pieces."""
    return Vocabulary(
        cls=words.cls,
        sep=words.sep,
        pad=words.pad,
        mask=words.mask,
        first_word=words.first_word,
        size=words.size,
        fingerprint=words.fingerprint,
    )


def _store_folder(config: RetrievalConfig, source: Path, words: WordPieces) -> Path:
    key = key_of(fingerprint(source), words.fingerprint, config.data.normalised)
    return Path(config.data.cache) / f"tokens-{key}"


def _words_key(config: RetrievalConfig) -> str:
    data = config.data
    texts = [fingerprint(source) for source in sources(config).values()]
    return key_of(*texts, data.vocabulary, data.kind, data.lower, data.normalised)


def key_of(*parts: object) -> str:
    """A short name that follows from some settings."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _train_words(config: RetrievalConfig, folder: Path) -> None:
    data = config.data
    if data.kind == "unigram" and _is_worker():
        raise DataError(
            f"{folder}: is not on this machine, where a worker trains, and unigram pieces come out "
            "others on every machine that learns them. Put data.cache on storage that all machines "
            "share, or set data.words to a vocabulary, which may lie at a URI."
        )
    say(f"words     training {data.vocabulary:,} word pieces → {folder}")
    found = wordpieces.trained(_texts(config), data.vocabulary, data.kind, data.lower)
    try:
        save_words(found, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _is_worker() -> bool:
    """Whether this process is an actor of a run, whose driver has a vocabulary already."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


@contextmanager
def _alone(cache: Path, what: str) -> Iterator[None]:
    """Wait until no other process makes the same in a cache; one that ends lets go of it."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(cache, error) from error
    try:
        file: Any = open(cache / f".{what}.lock", "a+")  # noqa: SIM115 (closed below)
    except OSError:  # a cache that is only read: nobody makes anything there
        file = nullcontext()
    with file as lock:
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder}: cannot be written: {error.strerror or error}. Free the disk, or set data.cache "
        "to a folder that this machine may write to."
    )


def save_words(words: WordPieces, folder: Path) -> None:
    """Write a vocabulary, whole or not at all; one that is there stays."""
    working = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    try:
        working.mkdir(exist_ok=True)
        words.save(working)
        for path in working.iterdir():
            sync(path)
        if not folder.exists():
            os.rename(working, folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _texts(config: RetrievalConfig) -> Iterator[str]:
    """Texts to train word pieces on: of each corpus as much, from all over it."""
    found = sources(config)
    share = _TRAINED_ON // len(found)
    for source in found.values():
        pieces = text.pieces(source)
        for piece in pieces:
            left = share // len(pieces)
            for document in text.documents(piece):
                whole = document.whole
                yield wordpieces.normalised(whole) if config.data.normalised else whole
                left -= len(whole)
                if left <= 0:
                    break
