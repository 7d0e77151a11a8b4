"""Every command that the documentation and the configurations show can be typed as it stands."""

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from farreach import config as configs
from farreach.cli.main import main, parsed

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [*sorted((ROOT / "configs").rglob("*.yaml")), *sorted((ROOT / "cluster").rglob("*.yaml"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = (">", "|", "&&", "&", ";")
# In the middle of a text, such as `farreach data prepare faq data/faq`.
INLINE = re.compile(r"`(farreach [^`]+)`")
COMMAND = re.compile(r"^(?:\$ |\.venv/bin/)?(?:python -m )?(farreach .*)$")
# Commands that are mentioned with all that they need, if with anything.
WHOLE = ("train", "embed", "evaluate", "search", "resume", "plot")
# Of what somebody else has: names of their own files, and what stands for a name.
THEIRS = re.compile(r"my_|[A-Z]{2}|^/|…|=S$")


def commands_of(lines):
    """The command lines of farreach among some lines, continued ones in one piece, as words."""
    joined = re.sub(r"\\\n\s*", " ", "\n".join(line.strip() for line in lines))
    found, begun = [], ""
    for line in joined.splitlines():
        begun = f"{begun} {line}" if begun else line
        if match := COMMAND.match(begun):
            try:
                words = shlex.split(match[1], comments=True)
            except ValueError:  # a quotation that goes on in the next line
                continue
            found.append(list(itertools.takewhile(lambda word: word not in SHELL, words[1:])))
        begun = ""
    assert not begun
    return found


def shown():
    """(where, words) of each."""
    for file in DOCUMENTS:
        text = file.read_text()
        for block in BLOCK.findall(text):
            yield from ((file, words) for words in commands_of(block.splitlines()))
        spans = BLOCK.sub("", text)
        for inline in INLINE.findall(spans):
            words = commands_of([" ".join(inline.split())])[0]
            if words[0] in WHOLE and len(words) > 1 and "…" not in words:
                yield file, words
    for file in WRITTEN:
        comments = [line[1:] for line in file.read_text().splitlines() if line.startswith("#  ")]
        yield from ((file, words) for words in commands_of(comments))


SHOWN = [
    pytest.param(file, words, id=f"{file.relative_to(ROOT)}:{' '.join(words)[:60]}")
    for file, words in shown()
]


def test_they_are_found():
    assert len(SHOWN) > 200
    assert {words.values[1][0] for words in SHOWN} >= {"train", "embed", "search", "evaluate"}


@pytest.mark.parametrize(("file", "words"), SHOWN)
def test_a_command_that_is_shown_can_be_typed(file, words):
    options = parsed(words)
    config = getattr(options, "config", None)
    if words[0] in ("train", "submit", "check") and not THEIRS.search(str(config)):
        configs.load(configs.find(str(config)), ours(options.overrides))


def ours(words):
    return [word for word in words if not THEIRS.search(word)]


TEXTS = {
    "graphviz": "rich set of graph drawing tools, to draw diagrams of a network",
    "dia": "editor of diagrams, for networks and flow charts",
    "sox": "convert files of sound from one format to another",
    "mount": "attach the file system of a disk to a folder",
    "vim": "edit text in a terminal, with highlighted syntax",
}


def test_the_readme_searches_as_it_says(tmp_path, monkeypatch, capsys):
    """From the first command on that needs no network; training is cut short."""
    (block,) = (b for b in BLOCK.findall((ROOT / "README.md").read_text()) if "embed latest" in b)
    first, train, *others = commands_of(block.splitlines())
    assert first == ["data", "prepare", "debian", "data/debian"]
    monkeypatch.chdir(tmp_path)
    for name in ("data/debian", "beir/scifact"):
        (tmp_path / name / "qrels").mkdir(parents=True)
        lines = [json.dumps({"_id": key, "text": f"{text}. " * 8}) for key, text in TEXTS.items()]
        (tmp_path / name / "corpus.jsonl").write_text("\n".join(lines))
        queries = [json.dumps({"_id": f"q-{key}", "text": key}) for key in TEXTS]
        (tmp_path / name / "queries.jsonl").write_text("\n".join(queries))
        judged = ["query-id\tcorpus-id\tscore", *(f"q-{key}\t{key}\t1" for key in TEXTS)]
        for split in ("dev", "test"):
            (tmp_path / name / "qrels" / f"{split}.tsv").write_text("\n".join(judged))
    short = ["training.epochs=1", "training.epoch_updates=2", "training.batch=64"]
    assert main([*train, *short, "encoder.width=16", "data.vocabulary=300"]) == 0
    assert main(["export", "latest", "--format", "hub", "--out", "models/contriever"]) == 0
    for words in others:
        capsys.readouterr()
        assert main(words) == 0, words
        said = capsys.readouterr().out
        if words[0] == "search":
            assert "graphviz" in said
