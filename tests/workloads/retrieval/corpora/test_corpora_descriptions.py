import hashlib

import pytest

from farreach_workloads.retrieval.corpora.apt import Index
from farreach_workloads.retrieval.corpora.descriptions import Descriptions, plain, release

LONG = " ".join(f"word{n}" for n in range(20))


def md5(text):
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def stanza(**fields):
    return "".join(f"{key.replace('_', '-')}: {value}\n" for key, value in fields.items()) + "\n"


def described(package, synopsis, body, language="en", key=None):
    text = synopsis + "".join(f"\n {line}" for line in body.split("\n"))
    key = key or md5(text)
    fields = {"Package": package, "Description-md5": key, f"Description-{language}": text}
    return key, "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"


@pytest.fixture
def index(tmp_path):
    """Editors from one source, a copy of one, a short one, and translations of some."""
    red, red_text = described("red", "a red editor", f"Red edits.\n.\n{LONG}\n * fast\n  - small")
    blue, blue_text = described("blue", "an editor", f"Blue edits. {LONG}")
    copy, copy_text = described("blue-copy", "a copied editor", f"Blue edits.\n {LONG}".lstrip())
    twin, twin_text = described("twin", "an editor", f"Twin edits. {LONG}")
    _, short_text = described("short", "too short", " ".join(["w"] * 19))
    packages = tmp_path / "Packages"
    packages.write_text(
        stanza(
            Package="red", Source="colours (1.2)", Section="universe/editors", Description_md5=red
        ).rstrip("\n")
        + "\nTag: use::editing, role::program,\n interface::text\n\n"
        + stanza(Package="red-nox", Source="colours", Section="editors", Description_md5=red)
        + stanza(Package="blue", Section="editors", Description_md5=blue)
        + stanza(Package="stray", Section="misc")
    )
    english = tmp_path / "Translation-en"
    english.write_text(red_text + blue_text + copy_text + twin_text + short_text + red_text)
    german = tmp_path / "Translation-de"
    german.write_text(
        described("red", "ein roter Editor", f"Rot editiert. {LONG}", "de", red)[1]
        + described("blue", "an editor", f"Blau editiert. {LONG}", "de", blue)[1]
        + described("blue-copy", "eine Kopie", f"Blau kopiert. {LONG}", "de", copy)[1]
        + described("twin", "ein Editor", f"Twin edits. {LONG}", "de", twin)[1]
        + described("gone", "weg", f"Ist weg. {LONG}", "de", md5("gone"))[1]
    )
    inrelease = tmp_path / "InRelease"
    inrelease.write_text(
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nCodename: sid\n"
        "Version: 99.1\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n"
    )
    translations = {"en": (english,), "de": (german,)}
    return Index((packages,), translations, (inrelease,)), (red, blue, copy, twin)


def test_paragraphs_are_joined_and_lists_kept():
    lines = ["one", "two", ".", " * a", "   b", "three", ".", "."]
    assert plain(lines) == "one two\n* a\nb\nthree"
    assert plain([]) == ""


def test_ends_of_lines_are_no_spaces_in_japanese():
    assert plain(["これは日本語", "です。GNU", "です"]) == "これは日本語です。GNU です"


def test_bodies_are_documents_and_synopses_ask_for_them(index):
    index, (red, blue, copy, twin) = index
    corpus = Descriptions.open(index).english()
    found = {document.id: document for document in corpus.documents}
    assert list(found) == [red, blue, twin]
    assert found[red].text == f"Red edits.\n{LONG}\n* fast\n- small"
    assert found[red].title == ""
    assert dict(found[red].meta) == {
        "package": "red",
        "packages": "red, red-nox",
        "source": "colours",
        "section": "editors",
        "tags": "interface::text, role::program, use::editing",
    }
    assert found[blue].meta["packages"] == "blue"
    assert found[twin].meta == {
        "package": "twin",
        "packages": "twin",
        "source": "twin",
        "section": "",
        "tags": "",
    }
    asked = {query.text: query for query in corpus.queries}
    assert {text: query.relevant for text, query in asked.items()} == {
        "a red editor": (red,),
        "an editor": (blue, twin),
        "a copied editor": (blue,),
    }
    assert asked["a red editor"].family == "colours"
    assert not any("a red editor" in document.text for document in corpus.documents)
    assert copy not in found


def test_translations_are_aligned_and_english_ones_left_out(index):
    index, (red, blue, _, _) = index
    own, english = Descriptions.open(index).translated("de")
    # Of equal English bodies the first counts; of `twin` the body is not translated.
    assert [document.id for document in own.documents] == [red, blue]
    assert [document.id for document in english.documents] == [red, blue]
    assert own.documents[1].text == f"Blau editiert. {LONG}"
    assert english.documents[1].text == f"Blue edits. {LONG}"
    # The synopsis of `blue` was left in English.
    for corpus in (own, english):
        asked = [(query.text, query.relevant, query.family) for query in corpus.queries]
        assert asked == [("ein roter Editor", (red,), "colours")]


def test_a_language_that_is_missing_has_no_documents(index):
    own, english = Descriptions.open(index[0]).translated("eo")
    assert own.documents == english.documents == own.queries == []


def test_the_release_is_named(index):
    assert release(index[0]) == {
        "package index of Debian sid": "version 99.1, Sat, 11 Jul 2026 10:16:37 UTC"
    }
