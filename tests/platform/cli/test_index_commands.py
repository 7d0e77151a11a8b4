import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from farreach.cli.main import main
from farreach.data import wordpieces
from farreach_workloads.retrieval.encoder import Bag, Bert, EncoderConfig
from farreach_workloads.retrieval.hub import save_encoder

TEXTS = {
    "vim": ("Vim", "edits text in a terminal", "editors"),
    "nano": ("Nano", "edits small text files", "editors"),
    "postfix": ("Postfix", "delivers mail between servers", "mail"),
    "mutt": ("Mutt", "reads mail in a terminal", "mail"),
    "gnuchess": ("", "plays chess against you", "games"),
}
COMMANDS = ["embed", "search", "index build", "index add", "index delete", "index merge"]
COMMANDS += ["index compact", "index show", "index tune", "index compare", "data prepare"]


def write(file, names):
    lines = [
        {"_id": name, "title": title, "text": text, "section": section}
        for name, (title, text, section) in TEXTS.items()
        if name in names
    ]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with an encoder, documents, and an index of all but the last."""
    folder = tmp_path_factory.mktemp("made")
    words = wordpieces.trained([" ".join(texts) for texts in TEXTS.values()], 200)
    torch.manual_seed(0)
    config = EncoderConfig(kind="bag", width=48, positions=32)
    save_encoder(Bag(words.size, config).eval(), words, folder / "model")
    write(folder / "four.jsonl", [*TEXTS][:4])
    write(folder / "five.jsonl", [*TEXTS][4:])
    return folder


@pytest.fixture
def index(made, tmp_path, monkeypatch, capsys):
    """In a working directory with an index."""
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(made / "model"), str(made / "four.jsonl"), "vectors"]) == 0
    assert main(["index", "build", "vectors", "index"]) == 0
    capsys.readouterr()
    return "index"


def found(capsys, *arguments):
    assert main(["search", "index", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)["hits"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    assert f"examples:\n  farreach {command}" in capsys.readouterr().out


def test_help_of_a_group_names_its_commands(capsys):
    for arguments in (["index"], ["index", "--help"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        for command in COMMANDS[2:9]:
            assert re.search(rf"^    {command.split()[1]} ", shown, re.MULTILINE)


def test_a_query_is_answered_with_titles_snippets_and_scores(index, capsys):
    assert main(["search", index, "mail terminal", "--k", "2", "--mode", "lexical"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"  1  \d\.\d{4}  Mutt  \(mutt\)", shown[0])
    assert shown[1] == "     reads mail in a terminal"
    assert len(shown) == 4


def test_json_has_all_of_a_hit(index, capsys):
    hit = found(capsys, "reads mail", "--k", "1")[0]
    assert hit["id"] == "mutt"
    assert hit["matched"] == ["reads", "mail"]
    assert hit["meta"] == {"section": "mail"}
    assert hit["dense"] is not None
    assert hit["lexical"] is not None


def test_a_filter_leaves_only_what_fits(index, capsys):
    assert {hit["id"] for hit in found(capsys, "text", "--where", "section = 'mail'")} == {
        "postfix",
        "mutt",
    }


def test_an_addition_that_broke_off_before_the_words_goes_on(made, index, capsys, monkeypatch):
    from farreach_workloads.retrieval import words

    def broken(index):
        raise KeyboardInterrupt

    addition = ["index", "add", index, str(made / "five.jsonl")]
    with monkeypatch.context() as patch:
        patch.setattr(words, "refresh", broken)
        assert main(addition) == 130
    capsys.readouterr()
    assert main(["search", index, "chess", "--mode", "lexical", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["hits"] == []
    assert "before the last documents were added" in shown.err
    assert main(addition) == 0
    capsys.readouterr()
    assert [hit["id"] for hit in found(capsys, "chess", "--mode", "lexical")] == ["gnuchess"]
    assert not list(Path(index).glob("added-*"))
    # By now it is an addition of what is there.
    assert main(addition) == 1
    assert "are there already: 'gnuchess'" in capsys.readouterr().err


def test_a_re_ranker_has_the_last_word(made, index, tmp_path, capsys):
    from farreach_workloads.retrieval.cross_encoder import CrossEncoder, save_cross_encoder
    from farreach_workloads.retrieval.hub import open_encoder
    from farreach_workloads.retrieval.rerank import Reranker

    _, words = open_encoder(made / "model")
    sizes = {"width": 16, "depth": 1, "heads": 2, "hidden": 32, "positions": 64}
    torch.manual_seed(3)
    model = CrossEncoder(Bert(words.size, EncoderConfig(**sizes)))
    with torch.no_grad():  # a new one tells nothing apart
        for weights in model.parameters():
            weights.normal_(std=0.3)
    save_cross_encoder(model.eval(), words, tmp_path / "judge")
    before = found(capsys, "reads mail", "--k", "4")
    after = found(capsys, "reads mail", "--k", "4", "--rerank", str(tmp_path / "judge"))
    texts = {name: f"{title} {text}".strip() for name, (title, text, _) in TEXTS.items()}
    names = [hit["id"] for hit in before]
    judge = Reranker.open(tmp_path / "judge")
    scores = dict(zip(names, judge.scores("reads mail", [texts[n] for n in names]), strict=True))
    assert [hit["id"] for hit in after] == sorted(names, key=lambda name: -scores[name])
    assert [hit["id"] for hit in after] != names
    assert [hit["score"] for hit in after] == pytest.approx(sorted(scores.values())[::-1], abs=1e-5)
    best = found(capsys, "reads mail", "--k", "1", "--rerank", str(tmp_path / "judge"))
    assert best[0]["id"] == after[0]["id"]  # of all that are read, and not of one


@pytest.mark.ray
@pytest.mark.slow
def test_shards_on_actors_find_the_same(ray_local, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(made / "model"), str(made / "four.jsonl"), "vectors"]) == 0
    assert main(["index", "build", "vectors", "index", "shards=2"]) == 0
    capsys.readouterr()
    query = ["reads mail in a terminal", "--k", "4"]
    here = found(capsys, *query)
    assert found(capsys, *query, "--spread") == here
    assert [hit["id"] for hit in here][:1] == ["mutt"]


def test_queries_are_read_line_by_line_where_none_is_given(index, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("reads mail\n\nsmall files\n"))
    assert main(["search", index, "--k", "1"]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"\((\w+)\)", shown) == ["mutt", "nano"]


def test_documents_are_added_deleted_and_compacted(index, made, capsys):
    assert main(["index", "add", index, str(made / "five.jsonl")]) == 0
    assert "index: 1 documents added" in capsys.readouterr().out
    assert found(capsys, "plays chess", "--k", "1")[0]["id"] == "gnuchess"
    assert main(["index", "delete", index, "gnuchess", "vim"]) == 0
    assert "index: 2 documents deleted" in capsys.readouterr().out
    assert main(["index", "compact", index]) == 0
    assert re.search(r"^documents +3$", capsys.readouterr().out, re.MULTILINE)
    assert {hit["id"] for hit in found(capsys, "edits", "--k", "3")} <= {"nano", "postfix", "mutt"}


def test_indexes_are_merged(index, made, capsys):
    assert main(["embed", str(made / "model"), str(made / "five.jsonl"), "more"]) == 0
    assert main(["index", "build", "more", "other"]) == 0
    assert main(["index", "merge", index, "other", "both"]) == 0
    assert main(["index", "show", "both"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^documents +5$", shown, re.MULTILINE)
    assert re.search(r"^words +of 5 documents$", shown, re.MULTILINE)


def test_tuning_shows_each_weight_and_keeps_the_best(index, tmp_path, capsys):
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [*TEXTS][:4])
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "reads mail"}\n')
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\tmutt\t1\n")
    assert main(["index", "tune", index, "set"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("ndcg@10") == 11
    assert shown.count("*") == 1
    assert main(["index", "show", index]) == 0
    assert "tuned by set, dev, 1 queries" in capsys.readouterr().out


def test_a_corpus_that_is_not_known_is_named(capsys):
    assert main(["data", "prepare", "debain", "out"]) == 2
    assert "there is no corpus 'debain'. Did you mean 'debian'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["index", "biuld"], 2, "unknown command 'index biuld'. Did you mean 'index build'?"),
        (["search", "nowhere", "x"], 1, "nowhere: has no manifest.json, so it holds no index"),
        (["search", "index", "mail", "--k", "9"], 2, "k=9: the index holds 4 documents"),
        (["search", "index", "mail", "--k", "0"], 2, "should be a whole number above 0"),
        (["search", "index", " "], 1, "query 0: is empty"),
        (["search", "index", "x", "--where", "section ="], 1, "filter 'section ='"),
        (["search", "index", "x", "--mode", "fuzzy"], 2, "invalid choice: 'fuzzy'"),
        (["index", "merge", "index", "out"], 2, "name two indexes or more"),
        (["index", "delete", "index", "emacs"], 1, "1 of 1 ids to delete are not there: 'emacs'"),
        (["index", "build", "vectors", "index", "kind=tree"], 2, "kind"),
        (["index", "add", "index", "nothing.jsonl"], 1, "nothing.jsonl: there is nothing"),
        (["embed", "nowhere", "index", "out"], 1, "is neither a run nor a folder"),
        (["embed", "index/model", "gone.txt", "out"], 1, "gone.txt: there is nothing"),
        (["embed", "index/model", "index", "out", "long=3"], 2, "long: unknown key"),
        (["search", "vectors", "x"], 1, "vectors: holds embedded documents and no index of them"),
        (["index", "build", "vectors", "vectors/manifest.json"], 1, "not a directory. Correct"),
        (["data", "prepare", "mr_tydi", "out"], 2, "say where it is with --from PATH"),
    ],
)
def test_wrong_input_is_one_message(index, arguments, code, message, capsys):
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_what_the_system_refuses_is_one_message(index, capsys, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", f"{folder}/manifest.json")

    monkeypatch.setattr("farreach_workloads.retrieval.indexes.facts", refuse)
    assert main(["index", "show", index]) == 1
    shown = capsys.readouterr().err
    assert shown == (
        "error: index/manifest.json: permission denied. Correct the path, or who may read and "
        "write it.\n"
    )


def test_a_gpu_that_is_not_there_is_named_before_anything_is_made(index, made, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["embed", "index/model", str(made / "four.jsonl"), "out", "gpus=1"]) == 2
    assert "gpus: 1, but PyTorch sees no GPU here" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_line_that_is_no_text_does_not_end_the_others(index):
    """Piped in; each query stands above what is found for it."""
    command = [sys.executable, "-m", "farreach", "search", index, "--k", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"}
    given = b"reads mail\n\xff\xfe bad\nsmall files\n"
    done = subprocess.run(command, input=given, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0
    shown = done.stdout.decode()
    assert re.findall(r"^\w.*$|\(\w+\)", shown, re.MULTILINE) == [
        *("reads mail", "(mutt)", "small files", "(nano)")
    ]
    assert b"a line is not UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_hit_without_a_title_is_called_as_its_metadata_call_it(
    made, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    lines = [{"_id": "8f1a", "text": "plays chess", "package": "gnuchess", "stars": 4}]
    lines.append({"_id": "77b2", "text": "reads mail"})
    Path("own.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert main(["embed", str(made / "model"), "own.jsonl", "vectors"]) == 0
    assert main(["index", "build", "vectors", "index"]) == 0
    capsys.readouterr()
    assert main(["search", "index", "chess mail"]) == 0
    shown = capsys.readouterr().out
    assert "gnuchess  (8f1a)" in shown
    assert re.search(r"\d  77b2$", shown, re.MULTILINE)
    assert [hit["id"] for hit in found(capsys, "chess", "--where", "stars > 3")] == ["8f1a"]


def test_the_page_listens_until_it_is_interrupted(index):
    """In a process of its own, which Ctrl-C ends."""
    command = [sys.executable, "-m", "farreach", "search", index, "--page"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        # A shell in the background would have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in line
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            assert b"<title>" in page.read()
    finally:
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        try:
            code = process.wait(30)
        finally:
            process.kill()
    assert code in (0, 130)


def test_kinds_of_index_are_compared_and_drawn(index, tmp_path, capsys):
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "queries.jsonl").write_text('{"_id": "q", "text": "reads mail"}\n')
    assert main(["index", "compare", "vectors", "asked", "--out", "speed.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("flat") and "recall 1.000" in line for line in lines)
    # Lists and codes want more than four vectors.
    assert {line.split()[0] for line in lines[:-1]} == {"flat", "hnsw", "sq8"}
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_set_of_questions_is_checked(made, tmp_path, capsys):
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [*TEXTS])
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "which reads mail?"}\n')
    table = folder / "qrels" / "test.tsv"
    table.write_text("query-id\tcorpus-id\tscore\nq\tmutt\t1\n")
    assert main(["data", "check", str(folder)]) == 0
    assert f"{folder} is fine" in capsys.readouterr().out
    table.write_text("query-id\tcorpus-id\tscore\nq\tmutt\t1\nq\televen\t1\n")
    assert main(["data", "check", str(folder)]) == 1
    shown = capsys.readouterr()
    assert "judges a document that does not exist" in shown.out
    assert "1 kinds of faults" in shown.err
