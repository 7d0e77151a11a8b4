import pytest

from farreach.data.text import Document
from farreach.errors import DataError
from farreach_workloads.retrieval.corpora import questions
from farreach_workloads.retrieval.corpora.apt import Package
from farreach_workloads.retrieval.corpora.questions import Answer


def words(start, count=20):
    return " ".join(f"{start}{n}" for n in range(count))


def package(root, name, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return Package(name, "1", root)


def chapter(*sections):
    parts = [
        f'<h2 class="title"><a id="{anchor}"></a>1.{n}. {heading}</h2><p>{text}</p>'
        for n, (anchor, heading, text) in enumerate(sections)
    ]
    return f"<html><body><h1><a id='c'></a>Chapter 1</h1>{''.join(parts)}</body></html>"


def test_headings_of_perlfaq_ask_and_sections_answer(tmp_path):
    pod = (
        f"=head1 DESCRIPTION\n\n{words('d')}\n\n=head2 How? Why?\n\n{words('a')}\n\n"
        f"=head2 A statement.\n\n{words('b')}\n\n=head2 Short?\n\nYes.\n\n"
        f"=head1 AUTHOR AND COPYRIGHT\n\n{words('c')}\n"
    )
    folder = "usr/share/perl/5.99.0/pod"
    files = {f"{folder}/perlfaq1.pod": pod, f"{folder}/perlfaq.pod": pod}
    found = questions.perl(package(tmp_path, "perl-doc", files))
    assert [(answer.question, answer.text) for answer in found] == [
        ("How? Why?", words("a")),
        ("", words("b")),
    ]
    assert found[0].document == Document(found[0].id, "", words("a"), {"source": "perl-doc"})


def test_a_page_of_python_with_two_names_is_read_once(tmp_path):
    page = f'<section id="why"><h2>Why?</h2><p>{words("a")}</p></section>'
    made = package(tmp_path, "python9-doc", {"usr/share/doc/python9/html/faq/general.html": page})
    other = tmp_path / "usr/share/doc/python9-doc"
    other.mkdir()
    (other / "html").symlink_to("../python9/html")
    assert [answer.id for answer in questions.python(made)] == ["python9-doc/general#why"]


def test_answers_of_debian_have_one_id_in_all_languages(tmp_path):
    below = "usr/share/doc/debian/FAQ"
    english = chapter(
        ("what", "What is it?", words("a")),
        ("stays", "What stays?", words("b")),
        ("asks", "Who asks?", words("c")),
        ("names", "Names", words("d")),
    )
    german = chapter(
        ("what", "Was ist es?", words("A")),
        ("stays", "Was bleibt?", words("b")),
        ("asks", "Who asks?", words("C")),
        ("names", "Namen?", words("D")),
    )
    files = {f"{below}/basics.en.html": english, f"{below}/basics.html": english}
    originals = questions.debian(package(tmp_path / "en", "debian-faq", files))
    files = {f"{below}/de/basics.de.html": german}
    translations = questions.debian(package(tmp_path / "de", "debian-faq-de", files), "de")
    ids = [f"debian-faq/basics#{anchor}" for anchor in ("what", "stays", "asks", "names")]
    assert [answer.id for answer in originals] == ids
    assert originals[0].heading == "What is it?"
    own, cross = questions.between_languages(translations, originals)
    # `stays` has an answer that was left in English, `asks` such a heading; `names` asks nothing.
    assert [document.text for document in own.documents] == [words("A"), words("C"), words("D")]
    assert [document.text for document in cross.documents] == [words(start) for start in "abcd"]
    for corpus in (own, cross):
        asked = [(query.text, query.relevant) for query in corpus.queries]
        assert asked == [("Was ist es?", (ids[0],))]


def test_short_answers_count_in_languages_without_spaces(tmp_path):
    files = {
        "usr/share/doc/debian/FAQ/ja/a.ja.html": chapter(
            ("x", "何?", "字" * 60), ("y", "誰?", "字" * 59)
        )
    }
    found = questions.debian(package(tmp_path, "debian-faq-ja", files), "ja")
    assert [answer.heading for answer in found] == ["何?"]


def test_a_page_without_a_heading_is_asked_for_by_its_title(tmp_path):
    below = "usr/share/doc/anarchism/html"
    page = (
        "<head><title>A.1 What is &quot;it&quot;? | Writers</title></head>"
        f"<p>{words('a')}</p><h2>A.1.1  Who?</h2><p>{words('b', 300)}</p><p>{words('c', 300)}</p>"
    )
    files = {f"{below}/secA1.html": page, f"{below}/secAcon.html": page}
    found = questions.anarchism(package(tmp_path, "anarchism", files))
    assert [(answer.question, answer.text) for answer in found] == [
        ('What is "it"?', words("a")),
        ("Who?", words("b", 300)),
    ]


def test_passages_leave_out_faqs_and_lists(tmp_path):
    below = "usr/share/doc/python9/html"
    page = f"<h1>re</h1><p>{words('a', 200)}</p><p>{words('b', 100)}</p><h2>x</h2><p>short</p>"
    names = ("library/re", "faq/general", "genindex-A", "whatsnew/changelog", "index")
    made = package(tmp_path, "python9-doc", {f"{below}/{name}.html": page for name in names})
    assert [(passage.id, passage.text) for passage in questions.python_passages(made)] == [
        ("python9-doc/library/re#0", words("a", 200)),
        ("python9-doc/library/re#1", words("b", 100)),
    ]
    page = f"<h2>1.1. Select</h2><p>{words('s')}</p>"
    below = "usr/share/doc/postgresql-doc-99/html"
    files = {f"{below}/{name}.html": page for name in ("select", "release-99", "bookindex")}
    found = list(questions.postgresql_passages(package(tmp_path, "postgresql-doc-99", files)))
    assert [passage.id for passage in found] == ["postgresql-doc-99/select#0"]


def test_equal_texts_and_equal_questions_are_one():
    answers = [
        Answer("a", "Why?", "because of this", "x"),
        Answer("b", "Why?", "because of that", "x"),
        Answer("c", "Who?", "because  of\nthis", "x"),
        Answer("d", "Nobody", "no one", "x"),
    ]
    corpus = questions.corpus(answers, [Document("p", "", "no one"), Document("r", "", "other")])
    assert [document.id for document in corpus.documents] == ["a", "b", "d", "r"]
    asked = [(query.text, query.relevant) for query in corpus.queries]
    assert asked == [("Why?", ("a", "b")), ("Who?", ("a",))]
    assert len({query.id for query in corpus.queries}) == 2


def test_a_package_without_the_files_is_named(tmp_path):
    with pytest.raises(DataError, match=r"package perl-doc 5 has no files .*perlfaq"):
        questions.perl(Package("perl-doc", "5", tmp_path))
