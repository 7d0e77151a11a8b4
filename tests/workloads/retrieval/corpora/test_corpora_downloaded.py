import gzip
import json

import pytest

from farreach.cli.main import main
from farreach.errors import ConfigError, DataError
from farreach_workloads.retrieval.corpora.downloaded import converted
from farreach_workloads.retrieval.evaluation.beir import open_beir
from farreach_workloads.retrieval.evaluation.open_questions import Question, read_questions


def mr_tydi(folder, packed):
    (folder / "collection").mkdir(parents=True)
    lines = [{"id": f"{n}#0", "title": f"T{n}", "contents": f"text\n{n}"} for n in range(3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if packed:
        (folder / "collection" / "docs.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "collection" / "docs.jsonl").write_text(text)
    (folder / "topic.tsv").write_text("7\tmikä?\n8\twho\n9\tnobody asks\n")
    (folder / "qrels.dev.txt").write_text("7 Q0 1#0 1\n")
    (folder / "qrels.test.txt").write_text("8 Q0 0#0 1\n8 Q0 2#0 1\n")
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_mr_tydi_becomes_a_set_of_each_language(tmp_path, packed, capsys):
    for language in ("finnish", "thai"):
        mr_tydi(tmp_path / "all" / f"mrtydi-v1.1-{language}", packed)
    words = ["data", "prepare", "mr_tydi", str(tmp_path / "out"), "--from", str(tmp_path / "all")]
    assert main(words) == 0
    made = [tmp_path / "out" / language for language in ("finnish", "thai")]
    assert capsys.readouterr().out.split() == [str(folder) for folder in made]
    found = open_beir(made[0], "test")
    assert found.queries == {"8": "who"}
    assert found.relevant == {"8": {"0#0": 1, "2#0": 1}}
    documents = list(found.documents())
    assert [(one.id, one.title, one.text) for one in documents][1] == ("1#0", "", "text\n1")
    assert open_beir(made[0], "dev").queries == {"7": "mikä?"}
    before = made[0].stat().st_mtime_ns
    assert main(words) == 0
    assert made[0].stat().st_mtime_ns == before
    alone = converted("mr_tydi", tmp_path / "all" / "mrtydi-v1.1-thai", tmp_path / "one")
    assert alone == [tmp_path / "one"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("topic.tsv", "7\n", r"topic\.tsv, line 1: is to be an id and a text"),
        ("qrels.test.txt", "8 0#0 1\n", r"qrels\.test\.txt, line 1: is to be a query, 0"),
        ("collection/docs.jsonl", '{"id": "a"}\n', r"docs\.jsonl, line 1: has no key 'text'"),
    ],
)
def test_what_of_mr_tydi_is_malformed_is_named_and_nothing_is_made(tmp_path, file, text, message):
    folder = mr_tydi(tmp_path / "in", packed=False)
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=message):
        converted("mr_tydi", folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_of_mr_tydi_is_missing_is_named(tmp_path):
    folder = mr_tydi(tmp_path / "in", packed=False)
    for split in ("dev", "test"):
        (folder / f"qrels.{split}.txt").unlink()
    with pytest.raises(DataError, match=r"has no qrels\.<split>\.txt"):
        converted("mr_tydi", folder, tmp_path / "out")
    (folder / "topic.tsv").unlink()
    with pytest.raises(DataError, match=r"holds no topic\.tsv, nor do its folders"):
        converted("mr_tydi", folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="is not there"):
        converted("mr_tydi", tmp_path / "no", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"there is no set 'mr_tidy' .*mr_tydi"):
        converted("mr_tidy", folder, tmp_path / "out")


def of_mkqa(number, *answers):
    queries = {"en": f"who {number}", "fi": f"kuka {number}"}
    return {"example_id": number, "query": "-", "queries": queries, "answers": {"en": [*answers]}}


def test_mkqa_becomes_questions_of_each_language_with_english_answers(tmp_path):
    records = [
        of_mkqa(1, {"type": "entity", "text": "Mary", "aliases": ["Maria", "M."]}),
        of_mkqa(2, {"type": "unanswerable", "text": None}),
        of_mkqa(3, {"type": "binary", "text": "yes"}),
        of_mkqa(4, {"type": "number", "text": "4"}, {"type": "date", "text": "May"}),
        of_mkqa(5, {"type": "long_answer", "text": None}),
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "mkqa.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (out,) = converted("mkqa", tmp_path / "mkqa.jsonl.gz", tmp_path / "out")
    assert read_questions(out / "fi.jsonl") == [
        Question("kuka 1", ["Maria", "M.", "Mary"]),
        Question("kuka 4", ["4", "May"]),
    ]
    assert {path.name for path in out.iterdir()} == {"en.jsonl", "fi.jsonl", "manifest.json"}
    first = json.loads((out / "en.jsonl").read_text().splitlines()[0])
    assert (first["id"], first["lang"]) == (1, "en")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: is no question of MKQA"),
        ('{"queries": {}}', "line 1: is no question of MKQA"),
    ],
)
def test_malformed_lines_of_mkqa_are_named(tmp_path, line, message):
    (tmp_path / "mkqa.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        converted("mkqa", tmp_path / "mkqa.jsonl", tmp_path / "out")
