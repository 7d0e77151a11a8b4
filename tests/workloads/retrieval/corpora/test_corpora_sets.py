import json
import shutil

import pytest

from farreach.errors import ConfigError, DataError
from farreach_workloads.retrieval.corpora import sets
from farreach_workloads.retrieval.corpora.apt import Index, NoPackageError, Package

LISTS = "deb.debian.org_debian_dists_sid_main_i18n_Translation"


def words(start, count=20):
    return " ".join(f"{start}{n}" for n in range(count))


class FakeApt:
    """Stands for the client: a cache that is filled already."""

    calls = 0

    def __init__(self, cache):
        self._cache = cache

    def index(self, languages=()):
        type(self).calls += 1
        named = {path.name.rpartition("-")[2]: (path,) for path in self._cache.glob("Trans*")}
        return Index((self._cache / "Packages",), named, ())

    def package(self, name):
        if not (self._cache / name).is_dir():
            raise NoPackageError(name)
        return Package(name, "7", self._cache / name)

    def depends(self, name):
        return ["libjs-sphinxdoc", *(["python9-doc"] if name == "python3-doc" else [])]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "Apt", FakeApt)
    monkeypatch.setattr(FakeApt, "calls", 0)
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "Packages").write_text("")
    for language in ("en", "de", "fi"):
        count = 40 if language != "fi" else 5
        (folder / f"Translation-{language}").write_text(
            "".join(
                f"Package: p{n}\nDescription-md5: {n:032x}\n"
                f"Description-{language}: synopsis {n} {language}\n {words(f'{language}{n}-')}\n\n"
                for n in range(count)
            )
        )
    return folder


def put(root, text):
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_text(text, encoding="utf-8")


@pytest.fixture
def documentation(cache):
    doc = "usr/share/doc"
    pod = "".join(f"=head2 Perl {n}?\n\n{words(f'perl{n}-')}\n\n" for n in range(20))
    put(cache / "perl-doc/usr/share/perl/5/pod/perlfaq1.pod", pod)
    page = f"<h2>Python?</h2><p>{words('py')}</p>"
    put(cache / f"python9-doc/{doc}/python9/html/faq/general.html", page)
    put(cache / f"python9-doc/{doc}/python9/html/library/re.html", f"<p>{words('re')}</p>")
    put(cache / f"postgresql-doc/{doc}/postgresql-doc-9/html/a.html", f"<p>{words('pg')}</p>")
    put(cache / f"anarchism/{doc}/anarchism/html/secA1.html", f"<h1>A.1 An?</h1>{words('an')}")
    for below, language in (("debian-faq", "en"), ("debian-faq-de", "de")):
        folder = f"{below}/{doc}/debian/FAQ/{'' if language == 'en' else 'de/'}"
        text = "".join(
            f'<h2><a id="x{n}"></a>1.{n}. {language} {n}?</h2><p>{words(f"{language}{n}-")}</p>'
            for n in range(20)
        )
        put(cache / f"{folder}a.{language}.html", text)
    return cache


def counts(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest["documents"], sum(manifest["queries"].values())


def test_descriptions_become_a_corpus_once(cache, tmp_path):
    out = tmp_path / "out"
    assert sets.prepare("debian", out, cache) == [out]
    assert counts(out) == (40, 40)
    assert sets.prepare("debian", out, cache) == [out]
    assert FakeApt.calls == 1


def test_languages_with_few_descriptions_are_left_out(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "LEAST_DOCUMENTS", 10)
    out = tmp_path / "out"
    made = sets.prepare("debian_languages", out, cache)
    assert made == [out / "de" / "own", out / "de" / "english"]
    assert [counts(folder) for folder in made] == [(40, 40), (40, 40)]
    for name in ("dev", "test", "train"):
        own, english = ((folder / f"qrels/{name}.tsv").read_text() for folder in made)
        assert own == english
    shutil.rmtree(out / "de" / "english")
    assert sets.prepare("debian_languages", out, cache) == made
    monkeypatch.setattr(sets, "LEAST_DOCUMENTS", 100)
    with pytest.raises(DataError, match="no language with 100 translated descriptions"):
        sets.prepare("debian_languages", tmp_path / "other", cache)


def test_questions_of_four_collections_stand_among_passages(documentation, tmp_path):
    out = tmp_path / "out"
    assert sets.prepare("faq", out, documentation) == [out]
    assert counts(out) == (20 + 1 + 20 + 1 + 2, 20 + 1 + 20 + 1)
    assert not (out / "qrels/train.tsv").exists()
    readme = (out / "README.md").read_text()
    for name in ("perl-doc", "python9-doc", "debian-faq", "anarchism", "postgresql-doc"):
        assert f"- package {name}: 7" in readme


def test_a_question_is_in_one_part_in_all_languages(documentation, tmp_path):
    faq = tmp_path / "faq"
    sets.prepare("faq", faq, documentation)
    made = sets.prepare("faq_languages", tmp_path / "out", documentation)
    assert made == [tmp_path / "out/de/own", tmp_path / "out/de/english"]
    assert [counts(folder) for folder in made] == [(20, 20), (42, 20)]
    for name in ("dev", "test"):
        english = set((faq / f"qrels/{name}.tsv").read_text().splitlines())
        for folder in made:
            assert set((folder / f"qrels/{name}.tsv").read_text().splitlines()) < english


def test_unknown_names_and_refusing_disks_are_told(cache, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'debian'"):
        sets.prepare("debain", tmp_path / "out", cache)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"File exists\. Free or mount the disk"):
        sets.prepare("debian", tmp_path / "file" / "out", cache)
