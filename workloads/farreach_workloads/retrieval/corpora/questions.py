"""Collections of frequently asked questions as corpora: headings ask, their sections answer.

They come from packages of documentation: Perl's, Python's and Debian's, and An Anarchist FAQ. The
reference documentation of Python and PostgreSQL gives passages that answer none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path

from farreach.data.text import Document
from farreach.errors import DataError
from farreach_workloads.retrieval.corpora.apt import ENGLISH, Package
from farreach_workloads.retrieval.corpora.layout import Corpus, Query
from farreach_workloads.retrieval.corpora.sections import (
    Section,
    html_sections,
    passages,
    pod_sections,
)

LEAST_WORDS = 20
LEAST_CHARACTERS = 60
MOST_ANSWER_WORDS = 500
MOST_PASSAGE_WORDS = 250
LANGUAGES = ("de", "fr", "it", "ja", "ko", "nl", "pt", "ru", "zh-cn")
# `1.2. ` in Debian's, `A.1.2 ` in An Anarchist FAQ.
NUMBER = re.compile(r"(?:[A-Z]\.)?\d+(?:\.\d+)*\.?\s+")
TITLE = re.compile(r"<title>([^<|]*?)\s*[<|]")
# Headings of perlfaq's pages that are about the page.
ABOUT_PAGE = frozenset(("NAME", "VERSION", "DESCRIPTION", "AUTHOR AND COPYRIGHT", "CREDITS"))
PYTHON_WITHOUT_TEXT = re.compile(
    r"(?:(?:genindex.*|contents|search|py-modindex|copyright|download|index|whatsnew/changelog)"
    r"\.html|faq/.*|_.*)"
)
POSTGRESQL_WITHOUT_TEXT = re.compile(r"(?:bookindex|index|release.*|biblio)\.html")


@dataclass(frozen=True)
class Answer:
    """A section of a collection.

    Attributes:
        id: source, page and place in it; translations have the same.
        heading: without its number.
        text: at most 500 words, so the opening of long ones.
        source: the package.
    """

    id: str
    heading: str
    text: str
    source: str

    @property
    def question(self) -> str:
        """The heading, or nothing where it asks nothing."""
        return self.heading if "?" in self.heading or "？" in self.heading else ""

    @property
    def document(self) -> Document:
        """The text, which does not tell the heading."""
        return Document(self.id, "", self.text, {"source": self.source})


def perl(package: Package) -> list[Answer]:
    """The answers of perlfaq1 to perlfaq9."""
    found: list[Answer] = []
    for file in package.files("usr/share/perl/*/pod/perlfaq[1-9].pod"):
        sections = pod_sections(_read(file))
        about_questions = [part for part in sections if part.heading not in ABOUT_PAGE]
        found += _answers(package, file.stem, about_questions)
    return found


def python(package: Package) -> list[Answer]:
    """The answers of Python's FAQs."""
    files = package.files("usr/share/doc/python*/html/faq/*.html")
    return [a for file in files for a in _answers(package, file.stem, html_sections(_read(file)))]


def debian(package: Package, language: str = ENGLISH) -> list[Answer]:
    """The answers of Debian's FAQ in a language, with the same ids in all languages."""
    below = "usr/share/doc/debian/FAQ/" + ("" if language == ENGLISH else f"{language}/")
    found: list[Answer] = []
    for file in package.files(f"{below}*.{language}.html"):
        sections = [section for section in html_sections(_read(file)) if section.anchor]
        for section in sections:
            place = f"debian-faq/{file.name.split('.')[0]}#{section.anchor}"
            found += _answer(package, place, section, language)
    return found


def anarchism(package: Package) -> list[Answer]:
    """The answers of sections A to J of An Anarchist FAQ.

    Its appendices repeat much of section F and are left out.
    """
    found: list[Answer] = []
    for file in package.files("usr/share/doc/anarchism/html/sec[A-J][0-9]*.html"):
        page = _read(file)
        first, *rest = html_sections(page)
        title = TITLE.search(page)
        if not first.heading and title is not None:
            first = Section("", unescape(title[1]), first.text)
        found += _answers(package, file.stem, [first, *rest])
    return found


def python_passages(package: Package) -> Iterator[Document]:
    """Passages of Python's documentation without its FAQs, lists of contents and changelog."""
    yield from _passages(package, "usr/share/doc/python*/html", PYTHON_WITHOUT_TEXT)


def postgresql_passages(package: Package) -> Iterator[Document]:
    """Passages of PostgreSQL's documentation without its index and release notes."""
    yield from _passages(package, "usr/share/doc/postgresql-doc-*/html", POSTGRESQL_WITHOUT_TEXT)


def corpus(answers: Iterable[Answer], others: Iterable[Document] = ()) -> Corpus:
    """Answers and other passages as documents, and the questions as queries.

    Texts that are there twice become one document, and questions one query with several answers.
    """
    answers = list(answers)
    kept, id_of = _merged([*(answer.document for answer in answers), *others])
    asked: dict[str, list[str]] = {}
    for answer in answers:
        if answer.question:
            asked.setdefault(answer.question, []).append(answer.id)
    return Corpus(kept, [_query(question, ids, id_of) for question, ids in asked.items()])


def between_languages(
    translations: Iterable[Answer], originals: Sequence[Answer]
) -> tuple[Corpus, Corpus]:
    """Translated questions: to translated answers, and to the answers in English.

    Args:
        translations: the answers of Debian's FAQ in another language.
        originals: answers in English, those and any others.

    Texts that were left in English are no translated answers, and headings no questions.
    """
    english = {answer.id: answer for answer in originals}
    own = [a for a in translations if a.id in english and a.text != english[a.id].text]
    pool, id_of = _merged([answer.document for answer in originals])
    own_pool, own_id_of = _merged([answer.document for answer in own])
    queries, own_queries = [], []
    for answer in own:
        original = english[answer.id]
        if original.question and answer.heading not in ("", original.heading):
            queries.append(_query(answer.heading, [answer.id], id_of))
            own_queries.append(_query(answer.heading, [answer.id], own_id_of))
    return Corpus(own_pool, own_queries), Corpus(pool, queries)


def _query(question: str, ids: Sequence[str], id_of: Mapping[str, str]) -> Query:
    relevant = tuple(dict.fromkeys(id_of[one] for one in ids))
    return Query(f"q-{ids[0]}", question, relevant, ids[0])


def _merged(documents: Iterable[Document]) -> tuple[list[Document], dict[str, str]]:
    """Documents of distinct texts, and the id of what stands for each."""
    first: dict[tuple[str, ...], Document] = {}
    id_of = {}
    for document in documents:
        id_of[document.id] = first.setdefault(tuple(document.text.split()), document).id
    return list(first.values()), id_of


def _answers(package: Package, page: str, sections: Iterable[Section]) -> Iterator[Answer]:
    seen: set[str] = set()
    for number, section in enumerate(sections):
        anchor = section.anchor if section.anchor not in seen | {""} else str(number)
        seen.add(anchor)
        yield from _answer(package, f"{package.name}/{page}#{anchor}", section)


def _answer(
    package: Package, place: str, section: Section, language: str = ENGLISH
) -> Iterator[Answer]:
    """The section as an answer, unless it is too short; not all languages part words by spaces."""
    text = next(passages(section.text, MOST_ANSWER_WORDS), "")
    is_english = language == ENGLISH
    if len(text.split()) >= LEAST_WORDS if is_english else len(text) >= LEAST_CHARACTERS:
        yield Answer(place, NUMBER.sub("", section.heading, count=1), text, package.name)


def _passages(package: Package, folder: str, without_text: re.Pattern[str]) -> Iterator[Document]:
    for file in package.files(f"{folder}/**/*.html"):
        page = file.as_posix().rpartition("/html/")[2]
        if without_text.fullmatch(page):
            continue
        texts = (
            text
            for section in html_sections(_read(file))
            for text in passages(section.text, MOST_PASSAGE_WORDS)
            if len(text.split()) >= LEAST_WORDS
        )
        for number, text in enumerate(texts):
            place = f"{package.name}/{page.removesuffix('.html')}#{number}"
            yield Document(place, "", text, {"source": package.name})


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}. Remove it and try again.") from error
