"""Objects at a URI: S3, Google Cloud Storage, Azure or a folder, through pyarrow's filesystems.

Credentials come from the environment, see `filesystems.py`. Copies of what lies at URIs are in
`$FARREACH_CACHE`, by default `~/.cache/farreach`.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from farreach.errors import StorageError
from farreach.storage.filesystems import connected, explained, is_foreign, missing

Result = TypeVar("Result")

# Tries of one request, and the pause after the first of them in s, which doubles.
TRIES, PAUSE_S = 5, 0.5
# Objects that travel at the same time.
AT_ONCE = 8
BLOCK_BYTES = 4 << 20

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")


class Entry(NamedTuple):
    """An object: its size in bytes, and when it was written in ns since 1970 by its server."""

    size: int
    modified_ns: int


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URI (`s3://bucket/runs`), rather than a path on this machine."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def joined(root: str, name: str) -> str:
    """The URI of what is called so below another one; a query stays at the end."""
    before, mark, query = root.partition("?")
    return f"{before.rstrip('/')}/{name}{mark}{query}"


def last_name(uri: str) -> str:
    """The last part of a URI's path."""
    return uri.partition("?")[0].rstrip("/").rpartition("/")[2]


def cache() -> Path:
    """Folder for copies of what lies at URIs; it may be deleted while nothing runs."""
    given = os.environ.get("FARREACH_CACHE")
    return Path(given).absolute() if given else Path.home() / ".cache" / "farreach"


def copy_of(uri: str, kind: str) -> Path:
    """Where in the cache the copy of a URI lies; the kind is a folder of the cache."""
    number = hashlib.sha256(uri.encode()).hexdigest()[:12]
    return cache() / kind / f"{last_name(uri) or 'all'}-{number}"


class Remote:
    """The objects below a URI, by their names relative to it.

    ```
    remote = Remote("s3://bucket/runs/first")
    remote.check()
    remote.push({"config.yaml": Path("runs/first/config.yaml")})
    ```
    Every method tries again what may succeed later, and raises StorageError at the end.
    """

    def __init__(self, uri: str) -> None:
        """Nothing is asked for yet, but for the region of a bucket of Amazon's.

        Raises:
            StorageError: no such kind of URI, or it is malformed.
        """
        self.uri = uri
        self._files, self._root = connected(uri)
        self._is_local = self._files.type_name == "local"

    def below(self, folder: str) -> Remote:
        """The objects of a folder."""
        inner = object.__new__(Remote)
        inner.uri, inner._root = joined(self.uri, folder), f"{self._root}/{folder}"
        inner._files, inner._is_local = self._files, self._is_local
        return inner

    def check(self) -> None:
        """Raise StorageError within seconds if the server, the bucket or the rights are missing."""

        def look() -> bool:
            from pyarrow import fs

            if self._files.type_name in ("s3", "gcs"):  # which may list what is not there as empty
                return bool(self._files.get_file_info(self._bucket).type != fs.FileType.NotFound)
            self._listed("")
            return True

        if not self._tried("", look, tries=2):
            raise missing(self.uri, self._bucket)

    def list(self, folder: str = "") -> dict[str, Entry]:
        """All objects below a folder, at any depth; {} if there are none."""
        return self._tried(folder, lambda: self._listed(folder))

    def entry(self) -> Entry | None:
        """The object at the URI itself, if there is one."""
        from pyarrow import fs

        found = self._tried("", lambda: self._files.get_file_info(self._root))
        return Entry(found.size, found.mtime_ns or 0) if found.type == fs.FileType.File else None

    def read(self, name: str) -> bytes | None:
        """An object's content, or None if there is none."""

        def read() -> bytes:
            with self._files.open_input_stream(self._path(name)) as stream:
                return bytes(stream.read())

        try:
            return self._tried(name, read)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write an object, which readers see whole or not at all."""

        def write() -> None:
            with self._sink(name) as stream:
                stream.write(data)

        self._tried(name, write)

    def push(self, files: Mapping[str, Path]) -> int:
        """Write files under names, several at once; how many bytes.

        Raises:
            FileNotFoundError: one of the files has gone.
        """
        return sum(self._each(lambda name: self._push(name, files[name]), files))

    def pull(
        self, names: Iterable[str], folder: Path, told: Callable[[int], None] | None = None
    ) -> int:
        """Copy objects into a folder under their names, several at once; how many bytes.

        Args:
            names: of the objects.
            folder: to copy to; folders in it are made.
            told: hears of the bytes that have come, from several threads.

        Raises:
            FileNotFoundError: one of the objects is not there.
        """
        return sum(self._each(lambda name: self._pull(name, folder / name, told), names))

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already are passed over."""

        def delete(name: str) -> None:
            with suppress(FileNotFoundError):
                self._tried(name, lambda: self._files.delete_file(self._path(name)))

        self._each(delete, names)

    def delete_folder(self, folder: str) -> None:
        """Remove all objects below a folder, if there are any."""

        def delete() -> None:
            if self._is_local or self._listed(folder):  # Google's minds if there is nothing
                self._files.delete_dir(self._path(folder))

        with suppress(FileNotFoundError):
            self._tried(folder, delete)

    def copy(self, names: Mapping[str, str]) -> None:
        """Copy objects where they lie, old name → new name; S3 copies no more than 5 GB each."""

        def copy(name: str) -> None:
            path = self._path(names[name])
            if self._is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._tried(name, lambda: self._files.copy_file(self._path(name), path))

        self._each(copy, names)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _listed(self, folder: str) -> dict[str, Entry]:
        from pyarrow import fs

        path = self._path(folder)
        found = self._files.get_file_info(
            fs.FileSelector(path, recursive=True, allow_not_found=True)
        )
        skip = len(self._root) + 1
        return {
            info.path[skip:]: Entry(info.size, info.mtime_ns or 0)
            for info in found
            if info.type == fs.FileType.File and not info.path.endswith(".tmp")
        }

    def _push(self, name: str, file: Path) -> int:
        def push() -> int:
            with open(file, "rb") as source, self._sink(name) as stream:
                # What grows meanwhile comes with the next push.
                left = size = os.fstat(source.fileno()).st_size
                while left and (block := source.read(min(left, BLOCK_BYTES))):
                    stream.write(block)
                    left -= len(block)
                return size - left

        return self._tried(name, push)

    def _pull(self, name: str, file: Path, told: Callable[[int], None] | None) -> int:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")

        def pull() -> int:
            size = 0
            source = self._files.open_input_stream(self._path(name))
            with source as stream, open(temporary, "wb") as sink:
                while block := stream.read(BLOCK_BYTES):
                    sink.write(block)
                    size += len(block)
                    if told is not None:
                        told(len(block))
            os.replace(temporary, file)
            return size

        try:
            return self._tried(name, pull)
        finally:
            temporary.unlink(missing_ok=True)

    def _sink(self, name: str) -> Any:
        path = self._path(name)
        if self._is_local:
            return _WholeFile(Path(path))
        try:
            return self._files.open_output_stream(path)
        except FileNotFoundError as error:
            raise missing(self.uri, self._bucket) from error

    def _each(self, work: Callable[[str], Result], names: Iterable[str]) -> Sequence[Result]:
        """The work on every name, several at once; raises what the first failure raised."""
        names = list(names)
        if len(names) <= 1:
            return [work(name) for name in names]
        with ThreadPoolExecutor(min(AT_ONCE, len(names))) as pool:
            return list(pool.map(work, names))

    def _tried(self, name: str, work: Callable[[], Result], tries: int = TRIES) -> Result:
        """The work's result, after several tries if need be; FileNotFoundError passes."""
        for number in range(tries):
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno is not None and not is_foreign(str(error)):
                    raise StorageError(
                        f"cannot copy {name or self.uri}: {error.strerror or error}. Free the disk "
                        f"of {cache()}, or set FARREACH_CACHE to a folder on another."
                    ) from error
                place = joined(self.uri, name) if name else self.uri
                fault, is_passing = explained(self.uri, self._bucket, place, str(error))
                if not is_passing or number + 1 == tries:
                    raise fault from error
            time.sleep(PAUSE_S * 2**number * random.uniform(0.75, 1.25))
        raise AssertionError("every way out of the loop is above")

    @property
    def _bucket(self) -> str:
        return self._root.partition("/")[0]


class _WholeFile:
    """A file of this machine that is there when all of it was written."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by __exit__)

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def __enter__(self) -> _WholeFile:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)
