"""Package descriptions as corpora: synopses are the queries, bodies are the documents.

A package index gives every package a line that says what it is, the synopsis, and a body of some
paragraphs, in English and for many packages in other languages. Translations name the English
text they are of by its MD5, so texts in two languages are aligned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from farreach.data.text import Document
from farreach_workloads.retrieval.corpora.apt import ENGLISH, Index, stanzas
from farreach_workloads.retrieval.corpora.layout import Corpus, Query

KEY = "Description-md5"
LICENCE = (
    "Each description is under the licence of its package; the index may be redistributed freely "
    "as a part of the distribution. The licence of a package is in its file "
    "/usr/share/doc/PACKAGE/copyright."
)
MADE = (
    "A document is the body of a description of at least 20 words; equal bodies are one. A query "
    "is a synopsis, which no document holds; the bodies below it are relevant. A family is a "
    "source package."
)
LEAST_WORDS = 20
LEAST_CHARACTERS = 60
# Ends of lines between these do not stand for a space.
_WIDE = "[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]"
_JOINT = re.compile(f"(?<={_WIDE})\n(?={_WIDE})")


@dataclass(frozen=True)
class Description:
    """What one package, or several, say about themselves in one language.

    Attributes:
        key: MD5 of the English text.
        package: the first package that says it.
        body: paragraphs, list items and verbatim lines, one a line.
    """

    key: str
    package: str
    synopsis: str
    body: str

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the body; equal for bodies that differ in line ends alone."""
        return tuple(self.body.split())


@dataclass
class Described:
    """What the index says about the packages of one description."""

    packages: dict[str, None] = field(default_factory=dict)
    source: str = ""
    section: str = ""
    tags: dict[str, None] = field(default_factory=dict)


def plain(lines: Iterable[str]) -> str:
    """The text of a body, a paragraph a line.

    Lines of a paragraph are joined; a lone dot ends it, and lines that begin with a space stand
    alone (Debian Policy, 5.6.13).
    """
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.startswith((" ", "\t")):
            paragraphs += [[line.strip()], []]
        elif line.strip() in ("", "."):
            paragraphs.append([])
        else:
            paragraphs[-1].append(line.strip())
    joined = (_JOINT.sub("", "\n".join(part)).replace("\n", " ") for part in paragraphs)
    return "\n".join(text for text in joined if text)


def descriptions(files: Iterable[Path], language: str) -> dict[str, Description]:
    """The descriptions in `Translation` files of a language, by the MD5 of the English text.

    Raises:
        DataError: a file cannot be read.
    """
    found: dict[str, Description] = {}
    for file in files:
        for fields in stanzas(file):
            key, text = fields.get(KEY), fields.get(f"Description-{language}")
            if key and text and key not in found:
                synopsis, *lines = text.split("\n")
                found[key] = Description(key, fields.get("Package", ""), synopsis, plain(lines))
    return found


def packages(files: Iterable[Path]) -> dict[str, Described]:
    """What `Packages` files say about packages, by the MD5 of their description.

    Raises:
        DataError: a file cannot be read.
    """
    found: dict[str, Described] = {}
    for file in files:
        for fields in stanzas(file):
            name, key = fields.get("Package"), fields.get(KEY)
            if not name or not key:
                continue
            of = found.setdefault(key, Described())
            of.packages[name] = None
            of.source = of.source or fields.get("Source", name).split(" ")[0]
            of.section = of.section or fields.get("Section", "").rpartition("/")[2]
            tags = fields.get("Tag", "").replace("\n", " ").split(",")
            of.tags.update((tag.strip(), None) for tag in tags if tag.strip())
    return found


def release(index: Index) -> dict[str, str]:
    """Names and versions of the archives in an index."""
    named: dict[str, str] = {}
    for file in index.releases:
        fields = {key: value for part in stanzas(file) for key, value in part.items()}
        name = f"package index of {fields.get('Origin', '?')} {fields.get('Codename', '?')}"
        named[name] = f"version {fields.get('Version', '?')}, {fields.get('Date', '?')}"
    return named


@dataclass(frozen=True)
class Descriptions:
    """The descriptions of an index.

    Attributes:
        originals: the English ones, by their MD5.
        facts: of their packages, as far as these exist for the machine's architecture.
    """

    index: Index
    originals: Mapping[str, Description]
    facts: Mapping[str, Described]

    @classmethod
    def open(cls, index: Index) -> Descriptions:
        """Read the English ones.

        Raises:
            DataError: a file of the index cannot be read.
        """
        originals = descriptions(index.translations[ENGLISH], ENGLISH)
        return cls(index, originals, packages(index.packages))

    def english(self) -> Corpus:
        """Bodies of at least 20 words as documents, and their synopses as queries."""
        kept = [text for text in self.originals.values() if len(text.words) >= LEAST_WORDS]
        return _corpus([(text.synopsis, text) for text in kept], self.facts)

    def translated(self, language: str) -> tuple[Corpus, Corpus]:
        """Translated synopses as queries: to translated bodies, and to English bodies.

        A description counts if its English body has at least 20 words, its translated body at
        least 60 characters, and the two differ. Synopses that were left in English are no queries.

        Raises:
            DataError: a file of the index cannot be read.
        """
        texts = descriptions(self.index.translations.get(language, ()), language)
        own: list[tuple[str, Description]] = []
        other: list[tuple[str, Description]] = []
        seen = set()
        for key, text in texts.items():
            original = self.originals.get(key)
            if original is None or not _is_translation(text, original) or original.words in seen:
                continue
            seen.add(original.words)
            query = "" if text.synopsis == original.synopsis else text.synopsis
            own.append((query, text))
            other.append((query, original))
        return _corpus(own, self.facts), _corpus(other, self.facts)


def _is_translation(text: Description, original: Description) -> bool:
    return (
        len(original.words) >= LEAST_WORDS
        and len(text.body) >= LEAST_CHARACTERS
        and text.words != original.words
    )


def _corpus(pairs: Iterable[tuple[str, Description]], facts: Mapping[str, Described]) -> Corpus:
    """Descriptions as documents, with queries that may be empty.

    Equal bodies become one document, and equal queries one query with several answers.
    """
    members: dict[tuple[str, ...], list[Description]] = {}
    answers: dict[str, list[Description]] = {}
    for query, text in pairs:
        members.setdefault(text.words, []).append(text)
        if query:
            answers.setdefault(query, []).append(text)
    documents = [_document(same, facts) for same in members.values()]
    id_of = {words: same[0].key for words, same in members.items()}
    queries = []
    for query, texts in answers.items():
        relevant = tuple(dict.fromkeys(id_of[text.words] for text in texts))
        queries.append(Query(f"q-{texts[0].key}", query, relevant, _family(texts[0], facts)))
    return Corpus(documents, queries)


def _document(same: list[Description], facts: Mapping[str, Described]) -> Document:
    known = [facts[text.key] for text in same if text.key in facts]
    names = {name for of in known for name in of.packages} or {text.package for text in same}
    tags = {tag for of in known for tag in of.tags}
    meta = {
        "package": min(names),
        "packages": ", ".join(sorted(names)),
        "source": _family(same[0], facts),
        "section": next((of.section for of in known), ""),
        "tags": ", ".join(sorted(tags)),
    }
    return Document(same[0].key, "", same[0].body, meta)


def _family(text: Description, facts: Mapping[str, Described]) -> str:
    return facts[text.key].source if text.key in facts else text.package
