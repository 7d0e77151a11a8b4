"""A small corpus that is shipped: package descriptions of some sections of Debian, whole.

It is packed as the folder that it unpacks to. Sections are kept whole, so that every document has
its near relatives beside it, and what somebody looks for is there if Debian had it.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from pathlib import Path

from farreach.disk import sync
from farreach.errors import DataError
from farreach_workloads.retrieval.corpora.apt import Apt
from farreach_workloads.retrieval.corpora.descriptions import (
    LICENCE,
    MADE,
    Descriptions,
    release,
)
from farreach_workloads.retrieval.corpora.layout import (
    MANIFEST,
    Corpus,
    Facts,
    Query,
    Shares,
    read_manifest,
    write,
    written,
)

FILE = Path(__file__).with_name("debian_extract.tar.xz")
SECTIONS = (
    "editors",
    "education",
    "games",
    "graphics",
    "mail",
    "news",
    "shells",
    "sound",
    "video",
    "web",
)
SHARES = Shares(most_test=400, most_dev=100)


def folder(cache: Path) -> Path:
    """The shipped corpus in the BEIR layout, unpacked below `cache` when it is first needed.

    Raises:
        DataError: the disk refuses, or what is there was changed.
    """
    out = cache / f"debian_extract-{hashlib.sha256(FILE.read_bytes()).hexdigest()[:12]}"
    try:
        written(out, _unpack)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written: {error.strerror or error}. Free or mount the disk, fix the "
            "permissions, or name another folder for the cache."
        ) from error
    return out


def sections_of(corpus: Corpus) -> Corpus:
    """The documents of some sections, and the queries that one of them answers."""
    documents = [document for document in corpus.documents if document.meta["section"] in SECTIONS]
    ids = {document.id for document in documents}
    queries = []
    for query in corpus.queries:
        relevant = tuple(one for one in query.relevant if one in ids)
        if relevant:
            queries.append(Query(query.id, query.text, relevant, query.family))
    return Corpus(documents, queries)


def build(cache: Path, file: Path) -> None:
    """Make the file that is shipped, from the package index of the machine.

    Args:
        cache: folder for what is downloaded.
        file: where to write.

    Raises:
        DataError: there is no apt-get, or no network.
    """
    index = Apt(cache).index()
    corpus = sections_of(Descriptions.open(index).english())
    made = f"{MADE} Only these sections are in it: {', '.join(SECTIONS)}."
    facts = Facts("Package descriptions, an extract", made, release(index), LICENCE)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "extract"
        write(whole, corpus, facts, SHARES)
        pack(whole, file)


def pack(whole: Path, file: Path) -> None:
    """Pack a corpus into one file, the same bytes for the same corpus."""
    names = [*read_manifest(whole)["files"], MANIFEST]
    with tarfile.open(file, "w:xz", preset=9, format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            data = (whole / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _unpack(out: Path) -> None:
    with tarfile.open(FILE) as archive:
        for entry in archive:
            content = archive.extractfile(entry)
            target = out / entry.name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(b"" if content is None else content.read())
            sync(target)
