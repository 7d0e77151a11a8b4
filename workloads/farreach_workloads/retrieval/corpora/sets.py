"""The corpora that can be made on the machine at hand, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from farreach.errors import ConfigError, DataError
from farreach.progress import Progress
from farreach.registry import near_match
from farreach_workloads.retrieval.corpora import questions
from farreach_workloads.retrieval.corpora.aligned import ALIGNED, write_aligned
from farreach_workloads.retrieval.corpora.apt import Apt, NoPackageError, Package
from farreach_workloads.retrieval.corpora.descriptions import LICENCE, MADE, Descriptions, release
from farreach_workloads.retrieval.corpora.layout import Facts, Shares, is_done, write

Maker = Callable[[Path, Path, Progress], list[Path]]

LANGUAGES = (
    "cs",
    "da",
    "de",
    "es",
    "fi",
    "fr",
    "hu",
    "it",
    "ja",
    "ko",
    "nl",
    "pl",
    "pt",
    "pt_BR",
    "ru",
    "sk",
    "sv",
    "uk",
    "zh_CN",
)
LEAST_DOCUMENTS = 1000
OWN, ENGLISH = "own", "english"
FAQ_LICENCE = (
    "perlfaq: as Perl, the GPL, version 1 or later, or the Artistic License; code in it is in the "
    "public domain. Python's documentation: the PSF License. Debian's FAQ: free to copy, changed "
    "or not, with its notice and under its terms. An Anarchist FAQ: the GPL, version 2 or later. "
    "PostgreSQL's documentation: the PostgreSQL License. The full texts are in the packages, in "
    "/usr/share/doc/PACKAGE/copyright."
)
QUESTIONS_MADE = (
    "A document is a section of at least 20 words, of longer ones the first 500, without its "
    "heading. A query is a heading that asks something; its section is relevant. "
)


def debian(out: Path, cache: Path, progress: Progress) -> list[Path]:
    """English package descriptions."""
    if not is_done(out):
        index = Apt(cache).index()
        _say(progress, 1, "reading the package index")
        corpus = Descriptions.open(index).english()
        _say(progress, 2, f"writing {len(corpus.documents):,} descriptions")
        facts = Facts("Package descriptions, English", MADE, release(index), LICENCE)
        write(out, corpus, facts, Shares(most_test=1000, most_dev=500))
    return [out]


def debian_languages(out: Path, cache: Path, progress: Progress) -> list[Path]:
    """Package descriptions in other languages, to search in themselves and in English.

    Beside them a file of translated pairs, to train on.
    """
    index = Apt(cache).index(LANGUAGES)
    _say(progress, 1, "reading the package index")
    texts = Descriptions.open(index)
    made: list[Path] = []
    for number, language in enumerate(LANGUAGES):
        _say(progress, 1 + (1 + number) / len(LANGUAGES), f"writing {language}")
        places = (out / language / OWN, out / language / ENGLISH)
        if not all(is_done(place) for place in places):
            corpora = texts.translated(language)
            if len(corpora[0].documents) < LEAST_DOCUMENTS:
                continue
            for place, corpus in zip(places, corpora, strict=True):
                facts = _facts_of_translations(language, place.name, release(index))
                write(place, corpus, facts, Shares(most_test=300, most_dev=150))
        made += places
    if not made:
        raise DataError(
            f"the package index in {cache} has no language with {LEAST_DOCUMENTS:,} translated "
            "descriptions. Use an archive of Debian in /etc/apt, and another cache."
        )
    if not (out / ALIGNED).is_file():
        write_aligned(out, list(zip(made[::2], made[1::2], strict=True)), Shares())
    return made


def faq(out: Path, cache: Path, progress: Progress) -> list[Path]:
    """Frequently asked questions in English among passages of documentation."""
    if not is_done(out):
        apt = Apt(cache)
        answers, packages = _answers(apt)
        _say(progress, 1, "reading documentation")
        python, postgresql = (_newest(apt, name) for name in ("python3-doc", "postgresql-doc"))
        others = [
            *questions.python_passages(python),
            *questions.postgresql_passages(postgresql),
        ]
        _say(progress, 2, "writing")
        facts = Facts(
            "Frequently asked questions about Perl, Python, Debian and anarchism",
            f"{QUESTIONS_MADE}Other documents are passages of at most 250 words of the "
            "documentation of Python and PostgreSQL; some may answer a question, unmarked.",
            _versions([*packages, postgresql]),
            FAQ_LICENCE,
        )
        write(out, questions.corpus(answers, others), facts, Shares(test=0.7, dev=0.3))
    return [out]


def faq_languages(out: Path, cache: Path, progress: Progress) -> list[Path]:
    """Debian's FAQ in other languages, each to search in itself and in English."""
    apt = Apt(cache)
    answers, packages = _answers(apt)
    made: list[Path] = []
    for number, language in enumerate(questions.LANGUAGES):
        _say(progress, 1 + (1 + number) / len(questions.LANGUAGES), f"writing {language}")
        places = (out / language / OWN, out / language / ENGLISH)
        if not all(is_done(place) for place in places):
            try:
                package = apt.package(f"debian-faq-{language}")
            except NoPackageError:
                continue
            translations = questions.debian(package, language)
            corpora = questions.between_languages(translations, answers)
            for place, corpus in zip(places, corpora, strict=True):
                sources = [*packages, package] if place.name == ENGLISH else [package]
                facts = _facts_of_questions(language, place.name, sources)
                write(place, corpus, facts, Shares(test=0.7, dev=0.3))
        made += places
    return made


SETS: Mapping[str, Maker] = {
    "debian": debian,
    "debian_languages": debian_languages,
    "faq": faq,
    "faq_languages": faq_languages,
}


def prepare(name: str, out: Path, cache: Path) -> list[Path]:
    """Make a corpus, or go on with it where it was left; its folders in the BEIR layout.

    Args:
        name: one of `SETS`.
        out: the folder; the sets of languages have one below it for each language and for what is
            searched, such as `de/own` and `de/english`.
        cache: folder for what is downloaded; it may be removed afterwards.

    Raises:
        ConfigError: there is no set of that name.
        DataError: the machine has no apt-get, the network is away, the disk refuses, or something
            else is at `out`.
    """
    if name not in SETS:
        raise ConfigError(f"there is no corpus {name!r}. {near_match(name, list(SETS))}")
    with Progress(name, total=2, unit="steps") as progress:
        _say(progress, 0, "downloading")
        try:
            made = SETS[name](out, cache, progress)
        except OSError as error:
            raise DataError(
                f"{error.filename or out}: {error.strerror or error}. Free or mount the disk, fix "
                "the permissions, or name other folders."
            ) from error
        progress.update(2, {"": "done"})
    return made


def _say(progress: Progress, done: float, now: str) -> None:
    progress.update(done, {"": now})


def _answers(apt: Apt) -> tuple[list[questions.Answer], list[Package]]:
    """All answers in English, and the packages they come from."""
    perl, debian_faq, anarchism = map(apt.package, ("perl-doc", "debian-faq", "anarchism"))
    python = _newest(apt, "python3-doc")
    answers = [
        *questions.perl(perl),
        *questions.python(python),
        *questions.debian(debian_faq),
        *questions.anarchism(anarchism),
    ]
    return answers, [perl, python, debian_faq, anarchism]


def _newest(apt: Apt, name: str) -> Package:
    """The package of the version of some documentation that an unversioned package stands for."""
    versions = [other for other in apt.depends(name) if re.search(r"\d.*-doc$|-doc-\d", other)]
    return apt.package(versions[0] if versions else name)


def _versions(packages: Sequence[Package]) -> dict[str, str]:
    return {f"package {package.name}": package.version for package in packages}


def _facts_of_translations(language: str, searched: str, sources: Mapping[str, str]) -> Facts:
    what = "in English" if searched == ENGLISH else "in the same language"
    return Facts(
        f"Package descriptions, {language}: bodies {what}",
        f"A query is a synopsis in {language}, unless it was left in English, and a document the "
        f"body of a description {what}. Used are descriptions whose English body has at least 20 "
        "words, and whose translated body has at least 60 characters and differs; equal bodies "
        "are one. A family is a source package, and is in the same part in all languages.",
        sources,
        LICENCE,
    )


def _facts_of_questions(language: str, searched: str, packages: Sequence[Package]) -> Facts:
    what, where = (
        ("a section in English of the FAQs of Perl, Python, Debian and anarchism", "in English")
        if searched == ENGLISH
        else (f"a section of Debian's FAQ in {language} of at least 60 characters", "as well")
    )
    return Facts(
        f"Debian's FAQ, questions in {language}, answers {where}",
        f"A query is a heading in {language} whose English original asks something. A document is "
        f"{what}, of longer ones the first 500 words, without its heading. What was left in "
        "English counts as neither. A question is in the same part in all languages.",
        _versions(packages),
        FAQ_LICENCE,
    )
