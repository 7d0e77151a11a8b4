import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from farreach import afterwards
from farreach import config as configs
from farreach.checkpoint import CheckpointStore
from farreach.cli.main import main
from farreach.data import wordpieces
from farreach.errors import ConfigError, DataError
from farreach.rundir import RunDirectory
from farreach_workloads.retrieval.config import RetrievalConfig, TextConfig
from farreach_workloads.retrieval.contrast import Pair
from farreach_workloads.retrieval.encoder import Bag, EncoderConfig
from farreach_workloads.retrieval.evaluation import evaluate
from farreach_workloads.retrieval.evaluation.beir import open_beir
from farreach_workloads.retrieval.evaluation.evaluate import SearchConfig, search_set
from farreach_workloads.retrieval.evaluation.measures import measured_run
from farreach_workloads.retrieval.evaluation.open_questions import (
    AnswersConfig,
    Question,
    answer_rates,
    read_questions,
)
from farreach_workloads.retrieval.evaluation.trec import ranked, read_run
from farreach_workloads.retrieval.hub import open_encoder, save_encoder

WORKLOAD = "farreach_workloads.retrieval.pretrain"
SIZES = {"kind": "bag", "width": 48, "positions": 64}
ANIMAL_NAMES = "cat dog horse cow sheep goat hen duck goose mouse rat fox wolf bear lion tiger"
ANIMALS = ANIMAL_NAMES.split()
WHAT_THEY_DO = "sleeps eats runs swims flies hides hunts plays"
DOES = WHAT_THEY_DO.split()


def documents():
    """What each animal does; the first of it twice, in two documents."""
    for number, animal in enumerate(ANIMALS):
        first, second = DOES[number % 8], DOES[(3 * number + 1) % 8]
        yield f"{animal}1", f"the {animal} {first} and {second}"
        yield f"{animal}2", f"a {animal} often {first} at night"


def write_set(folder):
    """Queries of animals; odd ones are the test set, even ones the dev set."""
    (folder / "qrels").mkdir(parents=True)
    lines = [{"_id": name, "title": "", "text": text} for name, text in documents()]
    (folder / "corpus.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    queries = [{"_id": f"q{n}", "text": f"{a} {DOES[n % 8]}"} for n, a in enumerate(ANIMALS)]
    queries.append({"_id": "cat1", "text": "the cat sleeps and swims"})
    (folder / "queries.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in queries))
    for split, begin in (("dev", 0), ("test", 1)):
        rows = [f"q{n}\t{ANIMALS[n]}{i}\t{i}" for n in range(begin, 16, 2) for i in (1, 2)]
        if split == "test":
            rows += ["cat1\tcat2\t1", "cat1\tcat1\t1"]
        table = ["query-id\tcorpus-id\tscore", *rows]
        (folder / "qrels" / f"{split}.tsv").write_text("".join(f"{row}\n" for row in table))
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a set and an encoder."""
    folder = tmp_path_factory.mktemp("given")
    write_set(folder / "animals")
    words = wordpieces.trained([text for _, text in documents()], 300)
    torch.manual_seed(0)
    encoder = Bag(words.size, EncoderConfig(**SIZES)).eval()
    save_encoder(encoder, words, folder / "model")
    return folder


def evaluated(given, out, **settings):
    config = SearchConfig(path=str(given / "animals"), **settings)
    return search_set(given / "model", config, out / "kept", out / "results")


def test_metrics_are_those_of_the_runs_that_are_written(given, tmp_path):
    metrics = evaluated(given, tmp_path)
    folder = tmp_path / "results" / "search-animals-test"
    qrels = (given / "animals" / "qrels" / "test.tsv").read_text().splitlines()[1:]
    relevant = {}
    for line in qrels:
        query, document, grade = line.split("\t")
        relevant.setdefault(query, {})[document] = int(grade)
    wanted = {"ndcg": [10], "recall": [100], "mrr": [10]}
    lines = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    for mode in ("dense", "lexical", "hybrid"):
        run = read_run(folder / f"{mode}.run")
        assert "cat1" not in run["cat1"]
        again = measured_run(ranked(run), {q: relevant[q] for q in run}, wanted)
        for name, values in again.items():
            assert metrics[f"{mode}/{name}"] == pytest.approx(values.mean())
            found = {line["_id"]: line[mode][name] for line in lines}
            assert [found[query] for query in run] == pytest.approx(values.tolist())
    assert metrics["search/queries"] == 9
    assert metrics["search/documents"] == 32


def test_any_measure_at_any_rank_is_measured(given, tmp_path):
    names = ("map@20", "capped_recall@1", "hit@2", "recall@200")
    metrics = evaluated(given, tmp_path, measures=names, modes=("lexical",))
    folder = tmp_path / "results" / "search-animals-test"
    run = ranked(read_run(folder / "lexical.run"))
    relevant = open_beir(given / "animals", "test").relevant
    wanted = {"map": [20], "capped_recall": [1], "hit": [2], "recall": [200]}
    expected = measured_run(run, relevant, wanted)
    for name in names:
        assert metrics[f"lexical/{name}"] == pytest.approx(expected[name].mean())
    assert "lexical/ndcg@10" in metrics
    for wrong, message in (("ndgc@10", "measure 'ndgc'"), ("map", "has no rank")):
        with pytest.raises(ValueError, match=message):
            SearchConfig(measures=(wrong,))


def test_another_run_is_compared_with(given, tmp_path):
    first = evaluated(given, tmp_path)
    other = tmp_path / "results" / "search-animals-test" / "lexical.run"
    metrics = evaluated(given, tmp_path / "again", against=str(other))
    assert metrics["lexical_against_other/difference"] == 0
    assert metrics["lexical_against_other/p"] == 1
    difference = first["dense/ndcg@10"] - first["lexical/ndcg@10"]
    assert metrics["dense_against_other/difference"] == pytest.approx(difference)
    assert metrics["dense_against_other/low"] <= difference <= metrics["dense_against_other/high"]
    about = tmp_path / "again" / "results" / "search-animals-test" / "about.json"
    assert json.loads(about.read_text())["against"]["dense"]["queries"] == 9


def test_a_run_of_other_queries_or_for_several_sets_is_refused(given, tmp_path):
    other = tmp_path / "other.run"
    other.write_text("x1 Q0 cat1 1 0.5 name\n")
    with pytest.raises(DataError, match=r"other\.run: has none of the 9 queries of .* \(test\)"):
        evaluated(given, tmp_path, against=str(other))
    write_set(tmp_path / "sets" / "a")
    write_set(tmp_path / "sets" / "b")
    settings = SearchConfig(path=str(tmp_path / "sets"), against=str(other))
    with pytest.raises(ConfigError, match=r"against: is the run of one set, and .* holds 2"):
        search_set(given / "model", settings, tmp_path / "kept", tmp_path / "results")


def test_published_results_are_set_beside(given, tmp_path, capsys):
    write_set(tmp_path / "sets" / "scifact")
    settings = SearchConfig(path=str(tmp_path / "sets" / "scifact"), modes=("dense",))
    metrics = search_set(given / "model", settings, tmp_path / "kept", tmp_path / "results")
    shown = capsys.readouterr().out
    own = f"{100 * metrics['dense/ndcg@10']:.1f}"
    assert re.search(rf"^scifact +{own} +66\.5 +64\.9 +67\.7$", shown, re.MULTILINE)
    evaluated(given, tmp_path, modes=("dense",))
    assert "BM25" not in capsys.readouterr().out


def test_parts_of_a_set_count_together_as_one_of_several(given, tmp_path, capsys):
    """Two sub-forums of CQADupStack, of which one is easy, weigh as much as another set alone."""
    top = tmp_path / "sets"
    for name in ("scifact", "cqadupstack/android", "cqadupstack/unix"):
        write_set(top / name)
    easy = top / "cqadupstack" / "unix" / "qrels" / "test.tsv"
    easy.write_text("query-id\tcorpus-id\tscore\nq1\tdog1\t1\n")
    settings = SearchConfig(path=str(top), modes=("lexical", "dense"))
    metrics = search_set(given / "model", settings, tmp_path / "kept", tmp_path / "results")
    shown = capsys.readouterr().out
    assert "averages are over 2 sets: cqadupstack, scifact" in shown
    folders = {folder.name for folder in (tmp_path / "results").iterdir()}
    assert folders == {
        "search-sets-scifact-test",
        "search-sets-cqadupstack-android-test",
        "search-sets-cqadupstack-unix-test",
    }
    own = {
        name: json.loads((tmp_path / "results" / name / "about.json").read_text())["metrics"]
        for name in folders
    }
    plain, android, unix = (
        own[f"search-sets-{name}-test"]["dense/ndcg@10"]
        for name in ("scifact", "cqadupstack-android", "cqadupstack-unix")
    )
    assert unix != android == plain
    both = (android + unix) / 2
    assert metrics["dense/ndcg@10"] == pytest.approx((plain + both) / 2)
    assert re.search(rf"^cqadupstack +{100 * both:.1f} +29\.9 +28\.4 +34\.5$", shown, re.MULTILINE)


def test_the_recall_of_trec_covid_is_the_capped_one_beside_the_published(given, tmp_path, capsys):
    """Of 150 right documents 100 are the first 100: recall 2/3, capped 1."""
    folder = write_set(tmp_path / "trec-covid")
    lines = [{"_id": f"d{n}", "title": "", "text": f"the dog number {n}"} for n in range(150)]
    (folder / "corpus.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    rows = [f"q1\td{number}\t1" for number in range(150)]
    table = folder / "qrels" / "test.tsv"
    table.write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))
    settings = SearchConfig(path=str(folder), modes=("dense",))
    metrics = search_set(given / "model", settings, tmp_path / "kept", tmp_path / "results")
    assert metrics["dense/recall@100"] == pytest.approx(2 / 3)
    assert "dense/capped_recall@100" not in metrics
    shown = capsys.readouterr().out
    assert re.search(r"^trec-covid +100\.0 +49\.8 +17\.2 +40\.7$", shown, re.MULTILINE)


def test_an_encoder_without_a_run_is_evaluated(given, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["search", f"path={given / 'animals'}", "measures=[recall@5]"]
    assert main(["evaluate", str(given / "model"), *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = evaluated(given, tmp_path / "other", measures=("recall@5",))
    assert found["dense/recall@5"] == pytest.approx(expected["dense/recall@5"])
    assert found["hybrid/ndcg@10"] == pytest.approx(expected["hybrid/ndcg@10"])
    (run,) = (tmp_path / "runs" / "evaluations").glob("model-*/search-animals-test/dense.run")
    assert read_run(run)
    assert main(["evaluate", str(given / "model")]) == 2
    assert "is an encoder and no run" in capsys.readouterr().err


def test_the_weight_is_chosen_on_the_other_split(given, tmp_path):
    metrics = evaluated(given, tmp_path)
    about = json.loads((tmp_path / "results" / "search-animals-test" / "about.json").read_text())
    assert about["fusion"]["tuned_by"] == "dev, 8 queries"
    on_dev = {
        step / 10: evaluated(given, tmp_path, split="dev", weight=step / 10, modes=("hybrid",))[
            "hybrid/ndcg@10"
        ]
        for step in range(11)
    }
    assert on_dev[metrics["hybrid/weight"]] == pytest.approx(max(on_dev.values()))
    assert len(about["files"]["corpus.jsonl"]) == 64
    assert about["settings"]["kind"] == "flat"


def test_the_weight_is_chosen_among_as_many_candidates_as_are_measured(
    given, tmp_path, monkeypatch
):
    """Standardised scores depend on how many there are."""
    depths = []

    def chosen(asked, sides, kind):
        depths.append((sides.dense.rows.shape[1], sides.lexical.rows.shape[1]))
        return {0.5: 1.0}

    monkeypatch.setattr(evaluate, "curve", chosen)
    for measures in (("recall@200",), ("recall@20",)):
        evaluated(given, tmp_path, measures=measures)
    assert depths == [(200, 200), (100, 100)]


def test_without_another_split_the_weight_is_said(given, tmp_path, capsys):
    assert evaluated(given, tmp_path, split="dev")["hybrid/weight"] == 0.5
    assert "no split to choose the weight of words on; it is 0.5" in capsys.readouterr().err


def test_hybrid_is_compared_with_words_over_the_same_queries(given, tmp_path):
    metrics = evaluated(given, tmp_path, weight=0.4)
    lines = (tmp_path / "results" / "search-animals-test" / "queries.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    differences = [row["hybrid"]["ndcg@10"] - row["lexical"]["ndcg@10"] for row in rows]
    assert metrics["hybrid_against_lexical/difference"] == pytest.approx(np.mean(differences))
    assert 0 < metrics["hybrid_against_lexical/p"] <= 1
    assert "hybrid_against_lexical/p" not in evaluated(given, tmp_path, modes=("dense",))


def test_documents_are_embedded_once(given, tmp_path):
    evaluated(given, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "kept").rglob("*") if p.is_file()}
    evaluated(given, tmp_path, split="dev")
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "kept").rglob("*") if p.is_file()}
    assert after == before
    evaluated(given, tmp_path, longest=5)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_folder_of_sets_gives_the_mean_of_theirs(given, tmp_path):
    both = tmp_path / "both"
    write_set(both / "one")
    write_set(both / "two")
    judged = both / "two" / "qrels" / "test.tsv"
    judged.write_text("".join(judged.read_text().splitlines(keepends=True)[:3]))
    config = SearchConfig(path=str(both), modes=("dense",))
    metrics = search_set(given / "model", config, tmp_path / "kept", tmp_path / "out")
    alone = [
        search_set(
            given / "model",
            SearchConfig(path=str(both / name), modes=("dense",)),
            tmp_path / "kept",
            tmp_path / "out",
        )["dense/ndcg@10"]
        for name in ("one", "two")
    ]
    assert metrics["dense/ndcg@10"] == pytest.approx(np.mean(alone))
    assert (tmp_path / "out" / "search-both-one-test" / "dense.run").is_file()


def test_a_run_is_evaluated_by_name(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder, _ = open_encoder(given / "model")
    config = RetrievalConfig(
        data=TextConfig(words=str(given / "model")),
        encoder=EncoderConfig(**SIZES),
        spans={"chunk": 32},
    )
    text = configs.dump(config, WORKLOAD)
    run = RunDirectory.create(Path("runs"), "tiny", text, ["test"], 0)
    parts = {"learner": {"model": Pair(encoder).state_dict()}}
    CheckpointStore(run.checkpoints).save(parts, step=7, info={}, score=0.5)
    words = [f"path={given / 'animals'}", "modes=[dense]"]
    result = afterwards.evaluate("latest", what="search", words=words)
    expected = evaluated(given, tmp_path, modes=("dense",))
    assert result["dense/ndcg@10"] == pytest.approx(expected["dense/ndcg@10"])
    assert (run.path / "evaluations" / "search-animals-test-7" / "dense.run").is_file()
    assert (run.path / "evaluations" / "search-7.json").is_file()
    assert len(list((run.path / "vectors").iterdir())) == 1


def test_results_on_mr_tydi_stand_beside_published_ones(given, tmp_path, capsys):
    for name in ("english", "other/english"):
        write_set(tmp_path / name)
    manifest = tmp_path / "english" / "manifest.json"
    for text, is_it in (('{"title": "Mr. TyDi, english"}', True), ("[]", False), ("{", False)):
        manifest.write_text(text)
        for path in (tmp_path / "english", tmp_path / "other" / "english"):
            config = SearchConfig(path=str(path), modes=("dense",), measures=("mrr@100",))
            search_set(given / "model", config, tmp_path / "kept", tmp_path / "results")
            said = capsys.readouterr()
            is_said = "mrr@100, average over 1 sets: english" in said.out + said.err
            assert is_said == (is_it and path.parent == tmp_path)


def write_questions(file, records):
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return file


def test_questions_are_answered_by_passages_that_contain_an_answer(given, tmp_path):
    questions = write_questions(
        tmp_path / "questions.jsonl",
        [
            {"question": "what does the cat do", "answers": ["sleeps"]},
            {"question": "where is the horse", "answers": ["in the house"]},
            {"question": "when does the fox hunt", "answer": "At Night", "id": 3},
            {"question": "anything", "answers": ["?!"]},
        ],
    )
    config = AnswersConfig(
        path=str(given / "animals"), questions=str(questions), cuts=(1, 32), weight=0.5
    )
    rates = answer_rates(given / "model", config, tmp_path / "kept", tmp_path / "out")
    assert rates["answers/questions"] == 4
    assert rates["answers/unusable"] == rates["answers/unanswerable"] == 1
    assert rates["dense/hit@32"] == 0.5  # all passages are looked at
    about = json.loads((tmp_path / "out" / "answers-questions" / "about.json").read_text())
    assert about["questions_sha256"] == hashlib.sha256(questions.read_bytes()).hexdigest()
    assert about["metrics"] == rates
    for mode in ("dense", "lexical", "hybrid"):
        lines = (tmp_path / "out" / "answers-questions" / f"{mode}.jsonl").read_text()
        records = [json.loads(line) for line in lines.splitlines()]
        assert [record["answers"] for record in records][2] == ["At Night"]
        for record in records[:3]:
            for passage in record["ctxs"]:
                has = record["answers"][0].lower() in passage["text"]
                assert passage["hasanswer"] == has
        first = [any(p["hasanswer"] for p in record["ctxs"][:1]) for record in records]
        assert rates[f"{mode}/hit@1"] == np.mean(first)


def test_an_answer_in_a_title_alone_does_not_count(given, tmp_path):
    lines = [
        json.dumps({"_id": name, "title": title, "text": text})
        for name, title, text in (("a", "The horse", "runs and eats"), ("b", "Eats", "the horse"))
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    questions = write_questions(
        tmp_path / "questions.jsonl",
        [
            {"question": "who runs", "answers": ["horse"]},
            {"question": "what", "answers": ["plays"]},
        ],
    )
    config = AnswersConfig(
        path=str(tmp_path / "corpus.jsonl"), questions=str(questions), cuts=(2,), modes=("dense",)
    )
    rates = answer_rates(given / "model", config, tmp_path / "kept", tmp_path / "out")
    assert rates["dense/hit@2"] == 0.5
    text = (tmp_path / "out" / "answers-questions" / "dense.jsonl").read_text()
    found = [
        {passage["id"]: passage["hasanswer"] for passage in json.loads(line)["ctxs"]}
        for line in text.splitlines()
    ]
    assert found == [{"a": False, "b": True}, {"a": False, "b": False}]


def test_questions_of_dpr_are_read_and_published_results_are_set_beside(
    given, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    written = "what does the cat do\t['sleeps', \"he's\"]\nwho \"runs\"\t['the horse']\n"
    (tmp_path / "nq-test.qa.csv").write_text(written)
    assert read_questions(tmp_path / "nq-test.qa.csv") == [
        Question("what does the cat do", ["sleeps", "he's"]),
        Question('who "runs"', ["the horse"]),
    ]
    words = [f"path={given / 'animals'}", "questions=nq-test.qa.csv", "modes=[dense]"]
    assert main(["evaluate", str(given / "model"), "answers", *words]) == 0
    said = capsys.readouterr()
    assert "hit@100, average over 1 sets: nq" in said.out + said.err
    assert list((tmp_path / "runs" / "evaluations").glob("model-*/answers-nq-test.qa/dense.jsonl"))
    (tmp_path / "bad.csv").write_text("what\n")
    with pytest.raises(DataError, match=r"bad\.csv, question 1: is to have"):
        read_questions(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_text("what\t[open\n")
    with pytest.raises(DataError, match=r"bad\.csv: cannot be read"):
        read_questions(tmp_path / "bad.csv")


@pytest.mark.parametrize(
    "content", ["", "{", '{"question": "x"}', '{"question": "x", "answers": [1]}', "[1]"]
)
def test_malformed_questions_are_named(given, tmp_path, content):
    (tmp_path / "q.jsonl").write_text(content)
    config = AnswersConfig(path=str(given / "animals"), questions=str(tmp_path / "q.jsonl"))
    with pytest.raises(DataError, match=r"q\.jsonl"):
        answer_rates(given / "model", config, tmp_path / "kept", tmp_path / "out")


def test_what_is_missing_is_asked_for(given, tmp_path):
    with pytest.raises(ConfigError, match="path: names no set"):
        search_set(given / "model", SearchConfig(), tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="path, questions: are both needed"):
        answer_rates(given / "model", AnswersConfig(), tmp_path, tmp_path)
