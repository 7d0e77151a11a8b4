"""Builds token stores: which text makes which part, what is there already, and the manifest."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import ray

from farreach import runtime
from farreach.actors.tasks import done_in_any_order
from farreach.data.text import Piece, pieces
from farreach.data.token_parts import (
    Part,
    origin,
    part_file,
    read_part,
    token_type,
    write_part,
)
from farreach.data.wordpieces import WordPieces
from farreach.disk import atomic_write
from farreach.errors import DataError
from farreach.progress import Progress

MANIFEST_FILE = "manifest.json"
FORMAT = 1
PART_BYTES = 16 << 20
# A store that is open keeps two files of each part open, of which a process may have 1,024. So
# there are parts of more text than `PART_BYTES` rather than more than twice this number.
MOST_PARTS = 128


def build_files(
    source: Path, out: Path, words: WordPieces, workers: int, normalise: bool, renew: bool
) -> None:
    """Make all files of a store that are not there yet; see `tokens.build`."""
    parts = list(_in_parts(pieces(source, PART_BYTES)))
    made_from = [origin(part) for part in parts]
    manifest = read_manifest(out)
    if manifest is not None:
        _check_same(out, words, normalise, manifest)
        if [part["made_from"] for part in manifest["parts"]] == made_from:
            return
        if not renew:
            raise DataError(
                f"{out}: was built from another text than {source} holds now. Choose another "
                "folder, or remove this one."
            )
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        manifest = read_manifest(out)
        if manifest is not None:
            if [part["made_from"] for part in manifest["parts"]] == made_from:
                return  # another process has built it meanwhile
            (out / MANIFEST_FILE).unlink()
        done = _done(out, words, normalise, made_from)
        _build_missing(out, parts, words, normalise, workers, done)
        _finish(source, out, words, normalise, [done[number] for number in range(len(parts))])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process builds in a folder; one that ends lets go of it."""
    with open(folder / ".lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, or None if there is none; raises DataError if it is malformed."""
    file = path / MANIFEST_FILE
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text())
        known = manifest["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: is no manifest of a token store: {error}. Build the store again in another "
            "folder."
        ) from error
    if not known:
        raise DataError(
            f"{file}: is of format {manifest['format']}, this reads {FORMAT}. Build it again."
        )
    return manifest


def _in_parts(found: list[Piece]) -> Iterator[list[Piece]]:
    """Consecutive pieces that make a part together."""
    most = max(PART_BYTES, sum(piece.size for piece in found) // MOST_PARTS)
    part: list[Piece] = []
    size = 0
    for piece in found:
        if part and size + piece.size > most:
            yield part
            part, size = [], 0
        part.append(piece)
        size += piece.size
    yield part


def _done(out: Path, words: WordPieces, normalise: bool, made_from: list[str]) -> dict[int, Part]:
    """The parts that an earlier build has finished, by number."""
    done = {}
    for number, origin_now in enumerate(made_from):
        part = read_part(out, number, token_type(words.size))
        if part is not None:
            _check_same(out, words, normalise, asdict(part))
            if part.made_from == origin_now:
                done[number] = part
    return done


def _check_same(out: Path, words: WordPieces, normalise: bool, there: dict[str, Any]) -> None:
    mend = "Choose another folder, or remove this one."
    if there["vocabulary"] != words.fingerprint:
        raise DataError(
            f"{out}: holds tokens of another vocabulary ({there['vocabulary'][:8]}) than the one "
            f"given ({words.fingerprint[:8]}). {mend}"
        )
    if there["normalised"] != normalise:
        was = "normalised" if there["normalised"] else "unchanged"
        raise DataError(f"{out}: holds tokens of {was} text, which now is not asked for. {mend}")


def _build_missing(
    out: Path,
    parts: list[list[Piece]],
    words: WordPieces,
    normalise: bool,
    workers: int,
    done: dict[int, Part],
) -> None:
    missing = [number for number in range(len(parts)) if number not in done]
    inline = workers == 0 or not missing
    sizes = [sum(piece.size for piece in part) / 1e6 for part in parts]
    read = sum(sizes[number] for number in done)
    with (
        nullcontext() if inline else runtime.connection(workers, settings=("workers",)),
        Progress("tokens", sum(sizes), "MB of text") as progress,
    ):
        shared = words if inline else ray.put(words)
        items = [(out, number, parts[number], shared, normalise, inline) for number in missing]
        with closing(done_in_any_order(write_part, items, inline=inline)) as written:
            progress.update(read)
            for index, part in written:
                done[missing[index]] = part
                read += sizes[missing[index]]
                counts = {"parts": f"{len(done)}/{len(parts)}"}
                tokens = sum(part.tokens for part in done.values())
                progress.update(read, {**counts, "tokens": tokens})


def _finish(source: Path, out: Path, words: WordPieces, normalise: bool, parts: list[Part]) -> None:
    """Write the manifest; then remove what it makes needless."""
    tokens = sum(part.tokens for part in parts)
    if not tokens:
        raise DataError(f"{source}: gives no token. Give a source with text.")
    kept = [field.name for field in fields(Part) if field.name not in ("vocabulary", "normalised")]
    manifest = {
        "format": FORMAT,
        "vocabulary": words.fingerprint,
        "size": words.size,
        "dtype": token_type(words.size).name,
        "normalised": normalise,
        "tokens": tokens,
        "documents": sum(part.documents for part in parts),
        "skipped": sum(part.skipped for part in parts),
        "parts": [{name: getattr(part, name) for name in kept} for part in parts],
    }
    atomic_write(out / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")
    suffixes = (".bin", ".doc")
    files = {part_file(out, number, suffix) for number in range(len(parts)) for suffix in suffixes}
    for file in [*out.glob("part-*"), *out.glob(".part-*.tmp")]:
        if file not in files:
            file.unlink()
