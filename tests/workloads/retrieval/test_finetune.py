import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from farreach import afterwards, launch
from farreach import config as configs
from farreach.data.text import Document
from farreach.errors import ConfigError, DataError, RunDirectoryError
from farreach.learn.place import Place
from farreach.learn.report import Report
from farreach.metrics import read_metrics
from farreach.rundir import RunDirectory
from farreach.stopping import Stopped
from farreach_workloads.retrieval.encoder import Bag, Bert, EncoderConfig
from farreach_workloads.retrieval.finetune_config import PRESETS, differences
from farreach_workloads.retrieval.finetune_task import Dev, labelled_loss
from farreach_workloads.retrieval.hub import open_encoder, save_encoder
from farreach_workloads.retrieval.labelled import LabelledData, NegativesConfig, Row
from farreach_workloads.retrieval.labelled_store import build
from farreach_workloads.retrieval.supervision import LabelledConfig, begun, reset_dropout

sys.path.insert(0, str(Path(__file__).parent))
from joined_texts import NEGATIVES, as_joined, results
from labelled_sets import COLOURS, THINGS, beir, context, lines, words

DEBUG = "retrieval/finetune_debian_debug"


@pytest.fixture
def given(tmp_path):
    """Overrides for a set of 100 questions with its own vocabulary."""
    folder = beir(tmp_path / "set")
    words(tmp_path / "words")
    return [
        f"data.path={folder}",
        f"data.words={tmp_path / 'words'}",
        f"data.cache={tmp_path / 'cache'}",
    ]


def train(path, *overrides):
    return launch.train(DEBUG, list(overrides), run_dir=path)


def weights_of(run):
    state = afterwards.find_checkpoint(RunDirectory.open(run), "newest").part("learner")["model"]
    return np.concatenate([np.asarray(state[name], np.float64).ravel() for name in sorted(state)])


def test_the_loss_by_hand():
    """Two questions with answers a and b, and one more text each, of which one reads as b."""
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    keys = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 3.0]])
    texts, answers = torch.tensor([7, 8, 9, 8]), torch.tensor([[7], [8]])
    loss, metrics = labelled_loss(queries, keys, texts, answers, 0.5)
    first = -math.log(math.exp(4) / (math.exp(4) + 1 + math.exp(2) + 1))
    second = -math.log(math.exp(2) / (1 + math.exp(2) + math.exp(2)))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert float(metrics["data/left_out"]) == 0.5
    assert float(metrics["learner/accuracy"]) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_several_workers_are_as_one_whatever_negatives_they_have(tmp_path, world):
    one = results(Place(), torch.float64)
    for other in as_joined(world, tmp_path):
        for case in NEGATIVES:
            assert other[case]["loss"] == pytest.approx(one[case]["loss"], rel=1e-12)
            assert other[case]["left_out"] == pytest.approx(one[case]["left_out"])
            theirs, ours = other[case]["gradients"], one[case]["gradients"]
            assert float((theirs - ours).norm() / ours.norm()) < 1e-10, case


def test_chunks_have_the_gradient_of_the_whole_batch():
    whole, parts = results(Place(), torch.float64), results(Place(), torch.float64, chunk=3)
    for case in NEGATIVES:
        torch.testing.assert_close(
            parts[case]["gradients"], whole[case]["gradients"], rtol=1e-9, atol=1e-12
        )


def test_dropout_is_that_of_the_run_and_not_of_the_encoder():
    sizes = {"width": 8, "depth": 2, "heads": 2, "hidden": 8, "positions": 9}
    encoder = Bert(50, EncoderConfig(dropout=0.4, **sizes)).train()
    ids, lengths = torch.randint(5, 50, (4, 6)), torch.full((4,), 6)
    assert not torch.equal(encoder(ids, lengths), encoder(ids, lengths))
    reset_dropout(encoder, 0.0)
    assert torch.equal(encoder(ids, lengths), encoder(ids, lengths))


def test_held_out_questions_are_ranked_by_hand(tmp_path):
    """Vectors of words are one-hot: a score is the share of words in common.

    red: its own "red car" scores ½, "red" 1: second. blue: "red" scores 0, as does "red car", and
    one's own comes last: third of three, "red hat" being the wrong text of one; but the answers
    "red hat" and "red car" that it has besides do not count.
    """
    rows = [
        Row("red", (Document("", "", "red car"),), (Document("", "", "hat"),)),
        Row("blue", tuple(Document("", "", text) for text in ("red", "red car"))),
        Row("hat", (Document("", "", "hat hat"),)),
    ]
    vocabulary = words(tmp_path / "words")
    store = build(rows, (), (), tmp_path / "store", vocabulary)
    encoder = Bag(vocabulary.size, EncoderConfig(kind="bag", width=25, positions=9))
    with torch.no_grad():
        encoder.word.weight.copy_(torch.eye(25))
    data = LabelledData(store, np.arange(3), NegativesConfig(), vocabulary, 9, 0)
    dev = Dev(data)
    found = dev.measured(encoder, Place())
    # red: "red" above. blue: behind "hat hat" and "hat". hat: "hat" scores the same.
    assert found["dev/mrr"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert found["dev/accuracy"] == 0
    dev.only(1)
    assert dev.measured(encoder, Place())["dev/questions"] == 1


def test_questions_learn_to_find_their_texts(tmp_path, given):
    settings = ["training.epochs=40", "training.lr=0.05", "training.evaluate_every_epochs=40"]
    run = train(tmp_path / "run", *given, *settings, "second=null", "data.negatives=2")
    found = json.loads(run.result_path.read_text())
    assert found["evaluation/ndcg@10"] > 0.9
    assert found["dev/mrr"] > 0.9
    logged = [line for line in read_metrics(run.metrics_path) if "data/negatives" in line]
    assert logged[-1]["data/negatives"] == 2
    again = afterwards.evaluate(run.path)
    assert again["evaluation/ndcg@10"] == pytest.approx(found["evaluation/ndcg@10"])
    drawn = [file.name for file in afterwards.plot(run.path)]
    assert drawn == ["training.png", "scores.png", "projector"]
    out = afterwards.export(run.path, tmp_path / "encoder", "hub")
    encoder, vocabulary = open_encoder(out)
    np.testing.assert_allclose(
        encoder.words.weight.detach().numpy().ravel(), weights_of(run.path), rtol=1e-6
    )
    assert vocabulary.size == 25
    more = train(tmp_path / "more", *given, "second=null", f"start={run.path}", "training.lr=1e-9")
    np.testing.assert_allclose(weights_of(more.path), weights_of(run.path), atol=1e-6)
    with pytest.raises(ConfigError, match="is exported as hub"):
        afterwards.export(run.path, tmp_path / "other", "onnx")


def test_a_second_phase_learns_from_what_the_first_one_finds(tmp_path, given):
    """Both begin with the same weights, unless the second is to go on from the first."""
    start = tmp_path / "start"
    vocabulary = words(tmp_path / "words")
    torch.manual_seed(3)
    encoder = Bag(25, EncoderConfig(kind="bag", width=8, positions=20))
    save_encoder(encoder, vocabulary, start)
    before = encoder.words.weight.detach().double().numpy().ravel()
    phases = [*given, f"start={start}", "data.hard_ratio=1", "second.guard=null", "second.depth=9"]
    run = train(tmp_path / "run", *phases, "training.lr=0.1")
    found = json.loads(run.result_path.read_text())
    assert found["mining/questions"] == 100
    (mined,) = (tmp_path / "cache").glob("mined-*.jsonl")
    records = [json.loads(line) for line in mined.read_text().splitlines()]
    assert all(record["hard_negative_ctxs"] for record in records)
    config = configs.load(run.config_path).config
    first = Path(config.second.first)
    assert json.loads((first / "result.json").read_text())["training/updates"] == 3
    moved = np.abs(weights_of(first) - before).max()
    assert moved > 0.1
    slow = [*phases, "training.lr=1e-9", f"second.first={first}"]
    pretrained = train(tmp_path / "pretrained", *slow)
    np.testing.assert_allclose(weights_of(pretrained.path), before, atol=1e-6)
    kept = train(tmp_path / "kept", *slow, "second.begins_with=first")
    np.testing.assert_allclose(weights_of(kept.path), weights_of(first), atol=1e-6)
    assert len(list((tmp_path / "cache").glob("mined-*.jsonl"))) == 1


def test_a_first_phase_is_kept_for_the_same_texts_and_encoder_alone(tmp_path, given):
    """A folder of the same name may hold others tomorrow."""
    torch.manual_seed(3)
    start = tmp_path / "start"
    sizes = EncoderConfig(kind="bag", width=8, positions=20)
    save_encoder(Bag(25, sizes), words(tmp_path / "words"), start)
    settings = [*given, f"start={start}", "second.guard=null", "second.depth=9"]

    def first_of(name):
        run = train(tmp_path / name, *settings, "training.lr=1e-9")
        return Path(configs.load(run.config_path).config.second.first)

    first = first_of("one")
    assert first_of("again") == first
    beir(tmp_path / "set", questions=60)
    of_other_texts = first_of("other-texts")
    assert of_other_texts != first
    shutil.rmtree(start)
    save_encoder(Bag(25, sizes), words(tmp_path / "words"), start)
    of_another_encoder = first_of("another-encoder")
    assert of_another_encoder not in (first, of_other_texts)
    before = open_encoder(start)[0].words.weight.detach().numpy()
    np.testing.assert_allclose(weights_of(of_another_encoder), before.ravel(), atol=1e-6)


def test_the_latest_run_is_the_one_that_was_there_before(tmp_path, given, monkeypatch):
    """As `finetune_multilingual.yaml` shows: a run that begins is the latest itself."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunDirectoryError, match="there is no run under runs/"):
        launch.check(DEBUG, [*given, "start=latest"])
    first = train(None, *given, "second=null", "training.lr=0.1")
    second = train(None, *given, "second=null", "start=latest", "training.lr=1e-9")
    np.testing.assert_allclose(weights_of(second.path), weights_of(first.path), atol=1e-6)
    train(None, *given, "second=null")
    config = configs.load(second.config_path).config
    assert config.start == str(first.path.absolute())
    afterwards.export(second.path, tmp_path / "encoder", "hub")
    both = [*given, "start=latest", "second.first=latest", "training.lr=1e-9"]
    third = configs.load(configs.find(DEBUG), both).config
    assert third.start == third.second.first == str(RunDirectory.open("latest").path.absolute())


def test_held_out_files_are_found_from_any_folder(tmp_path, given, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines(
        tmp_path / "rows.jsonl",
        [{"question": "red", "positive_ctxs": [context("red car")]} for _ in range(3)],
    )
    for dev in ("rows.jsonl", "./set"):
        config = configs.load(configs.find(DEBUG), [*given, f"data.dev={dev}"]).config
        assert config.data.dev == str(tmp_path / Path(dev).name)
    assert configs.load(configs.find(DEBUG), [*given, "data.dev=dev"]).config.data.dev == "dev"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = [*given, f"data.dev={tmp_path / 'rows.jsonl'}", "data.questions=null"]
    notes = launch.check(DEBUG, settings)
    assert any("100 questions to learn from" in note and "3 held out" in note for note in notes)


def test_positions_that_others_have_trained_stay_of_use(tmp_path):
    """Whichever of the two keys names the encoder: at a search texts may be longer."""
    vocabulary = words(tmp_path / "words")
    sizes = {"width": 8, "depth": 1, "heads": 2, "hidden": 8}
    save_encoder(
        Bert(25, EncoderConfig(**sizes, positions=40)), vocabulary, tmp_path / "pretrained"
    )
    data = LabelledConfig(longest=12, cache=str(tmp_path), words=str(tmp_path / "words"))
    path = str(tmp_path / "pretrained")
    for start, given in ((path, {}), (None, {"path": path})):
        assert begun(start, EncoderConfig(**given), data, 0)[0].longest == 40
    random = EncoderConfig(**sizes, positions=40)
    assert begun(None, random, data, 0)[0].longest == 12


@pytest.mark.parametrize("kind", ["adamw", "asam"])
def test_a_run_in_two_parts_is_the_run_in_one_step_for_step(tmp_path, given, monkeypatch, kind):
    settings = [*given, "training.epochs=3", f"optimizer.kind={kind}", "second=null"]
    settings += ["encoder.kind=bert", "encoder.width=8", "encoder.depth=1", "encoder.heads=2"]
    settings += ["encoder.hidden=16", "encoder.positions=20", "training.lr=0.01"]
    whole = train(tmp_path / "whole", *settings)

    def stops_at_the_fourth(report):
        report.asked = getattr(report, "asked", 0) + 1
        if report.asked >= 4:
            report._stop.signum = signal.SIGTERM
        return report.asked >= 4

    monkeypatch.setattr(Report, "stop_asked", stops_at_the_fourth)
    with pytest.raises(Stopped):
        train(tmp_path / "part", *settings)
    monkeypatch.undo()
    assert afterwards.find_checkpoint(RunDirectory.open(tmp_path / "part"), "newest").step == 3
    launch.resume(tmp_path / "part")
    np.testing.assert_array_equal(weights_of(tmp_path / "part"), weights_of(whole.path))


@pytest.mark.slow
def test_a_killed_run_of_two_phases_goes_on_as_if_nothing_had_happened(tmp_path, given):
    settings = [*given, "training.epochs=60", "training.checkpoint_every_epochs=1"]
    settings += ["training.evaluate_every_epochs=60"]
    whole = train(tmp_path / "whole", *settings)
    second = [word.replace("/cache", "/other") for word in settings]
    command = [sys.executable, "-m", "farreach", "train", DEBUG, *second]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.Popen([*command, "--run-dir", str(tmp_path / "killed")], env=environment)
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("step_*")) and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    run = RunDirectory.open(tmp_path / "killed")
    assert afterwards.find_checkpoint(run, "newest").step < 180
    launch.resume(run.path)
    np.testing.assert_array_equal(weights_of(run.path), weights_of(whole.path))


def test_a_tenth_is_held_out_where_nothing_else_is_named(tmp_path, given):
    notes = launch.check(DEBUG, [*given, "data.dev=null", "data.questions=null"])
    assert any("90 questions to learn from in 3 updates, 10 held out" in note for note in notes)


def test_rows_of_a_file_can_be_all_there_is(tmp_path, given):
    rows = [
        {"question": f"{thing} {colour}", "positive_ctxs": [context(f"{colour} {thing}")]}
        for colour in COLOURS
        for thing in THINGS
    ]
    path = lines(tmp_path / "rows.jsonl", [*rows, {"question": "red", "positive_ctxs": []}])
    settings = [*given[1:], f"data.path={path}", "data.dev=null", f"probe.path={tmp_path / 'set'}"]
    notes = launch.check(DEBUG, [*settings, "data.questions=null"])
    assert "1 rows that nothing answers are left out" in notes
    assert any("those of the other questions are all there are" in note for note in notes)
    with pytest.raises(ConfigError, match="hard negatives need texts to be found in"):
        train(tmp_path / "run", *settings, "data.questions=40", "training.batch=20")


def test_mistakes_are_said_before_anything_is_trained(tmp_path, given):
    with pytest.raises(ConfigError, match=r"Set loss\.chunk"):
        launch.check(DEBUG, [*given, "training.part=8"])
    with pytest.raises(DataError, match="500 questions at a time, of 96 in all"):
        launch.check(DEBUG, [*given, "training.batch=500"])
    with pytest.raises(ConfigError, match=r"data.path: /nowhere is not there"):
        launch.check(DEBUG, [*given, "data.path=/nowhere"])
    with pytest.raises(ConfigError, match=r"data.dev: nowhere is not there"):
        launch.check(DEBUG, [*given, "data.dev=nowhere"])
    with pytest.raises(DataError, match="is neither a run nor a folder"):
        launch.check(DEBUG, [*given, f"start={tmp_path / 'words'}"])


def test_a_preset_says_where_a_run_differs(given):
    notes = launch.check(DEBUG, [*given, "preset=few_shot", "data.negatives=0"])
    assert "differs from few_shot: training.batch: 256 -> 32" in notes
    assert "differs from few_shot: training.epochs: 500.0 -> 1.0" in notes
    assert not any("negatives" in note for note in notes if note.startswith("differs"))
    notes = launch.check(DEBUG, [*given, "preset=msmarco"])
    assert "differs from msmarco: updates: 20,000 -> 3" in notes
    assert 'differs from msmarco: optimizer.kind: "asam" -> "adamw"' in notes
    assert not any("phases" in note for note in notes)
    notes = launch.check(DEBUG, [*given, "preset=msmarco", "second=null"])
    assert "differs from msmarco: phases: two -> one" in notes
    assert "differs from msmarco: data.normalised: true -> false" in notes
    notes = launch.check(DEBUG, [*given, "preset=multilingual", "training.warmup_epochs=0"])
    assert "differs from multilingual: updates of warm-up: 1,000 -> 0" in notes


def test_presets_are_the_runs_of_the_paper():
    """Sections A.2, A.3 and B.2, and table 3; that all text is normalised is the code's doing."""
    one, updates, _ = PRESETS["msmarco"]
    assert (updates, one.training.batch, one.training.lr) == (20_000, 1024, 1e-5)
    assert (one.optimizer.kind, one.second is not None) == ("asam", True)
    assert (one.data.negatives, one.data.hard_ratio, one.loss.temperature) == (1, 0.1, 0.05)
    assert (one.data.longest, one.encoder.dropout) == (256, 0.1)
    other, updates, warmup = PRESETS["multilingual"]
    assert (updates, warmup, other.training.batch, other.training.lr) == (20_000, 1000, 1024, 1e-5)
    assert (other.optimizer.kind, other.second, other.data.negatives) == ("adamw", None, 0)
    few, updates, _ = PRESETS["few_shot"]
    assert (updates, few.training.batch, few.training.epochs) == (None, 256, 500)
    assert (few.data.negatives, few.data.held_out) == (0, 0.1)
    for preset in PRESETS.values():
        config = preset.config
        assert config.data.normalised
        assert (config.optimizer.weight_decay, config.training.schedule) == (0.01, "warmup_linear")
        assert (config.optimizer.betas, config.optimizer.epsilon) == ((0.9, 0.98), 1e-6)


@pytest.mark.parametrize("name", ["msmarco", "multilingual"])
def test_shipped_configurations_differ_in_nothing_but_the_number_of_updates(name, tmp_path):
    """Of 502,939 questions, as MS MARCO has, so many epochs are about 20,000 updates."""
    config = configs.load(configs.find(f"retrieval/finetune_{name}")).config
    updates = round(config.training.epochs * 502_939 / config.training.batch)
    assert updates == pytest.approx(20_000, rel=1e-3)
    warmup = round(config.training.warmup_epochs * 502_939 / config.training.batch)
    assert warmup == pytest.approx(0 if name == "msmarco" else 1000, rel=2e-3)
    assert differences(config, 20_000) == []
