"""Pretraining from raw text: several workers are as one, and a killed run ends as another does."""

import json
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
from farreach.checkpoint import CheckpointStore
from farreach.errors import ConfigError, DataError, FarreachError
from farreach.learn.place import Place
from farreach.metrics import read_metrics
from farreach_workloads.retrieval import pretrain, stores
from farreach_workloads.retrieval.hub import open_encoder

sys.path.insert(0, str(Path(__file__).parent))
from joined_pairs import as_joined, trained

MINI, BAG = "retrieval/debian_mini_debug", "retrieval/debian_debug"
BERT = (
    "encoder={kind: bert, width: 32, depth: 2, heads: 2, hidden: 64, positions: 260, "
    "normalised: true, dropout: 0}"
)
WORDS = [
    "mount",
    "umount",
    "disk",
    "folder",
    "file",
    "text",
    "sound",
    "music",
    "mail",
    "chess",
    "board",
    "editor",
    "game",
]
SHARP = ["contrast.temperature=0.5", "encoder.dropout=0", "contrast.queue=40"]
CASES = {
    "moco": (MINI, SHARP),
    "moco, all places count": (MINI, [*SHARP, "contrast.masked=false"]),
    "moco, a share of the queue each": (MINI, [*SHARP, "contrast.sharded=true"]),
    "moco, shares in bfloat16": (
        MINI,
        [*SHARP, "contrast.sharded=true", "contrast.precision=bfloat16", "contrast.queue=19"],
    ),
    "in batch": (BAG, [BERT]),
    "in batch, in chunks": (BAG, [BERT, "contrast.chunk=3"]),
    "bag": (BAG, []),
}


def words_of(case, cache):
    name, words = CASES[case]
    words = [f"data.cache={cache}", "data.vocabulary=1500", "probe.documents=120", *words]
    return name, words


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def check_that_they_agree(one, other):
    assert other["losses"] == pytest.approx(one["losses"], rel=2e-5)
    names = list(one["gradients"])
    theirs, ours = (torch.cat([r["gradients"][n].flatten() for n in names]) for r in (other, one))
    assert float((theirs - ours).norm() / ours.norm()) < 1e-5
    for mine, yours in zip(one["networks"], other["networks"], strict=True):
        for name, value in yours.items():  # split parameters are whole on the first worker alone
            torch.testing.assert_close(value, mine[name], rtol=1e-3, atol=2e-4)
    for name, value in one["evaluation"].items():
        assert other["evaluation"][name] == pytest.approx(value, rel=1e-2, abs=2e-2), name
    if one["queue"] is not None and one["queue"].dtype == np.int16:
        bits = [torch.from_numpy(each["queue"]).view(torch.bfloat16) for each in (one, other)]
        torch.testing.assert_close(bits[1].float(), bits[0].float(), rtol=1e-2, atol=1e-3)
    elif one["queue"] is not None:
        np.testing.assert_allclose(other["queue"], one["queue"], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_three_workers_with_unequal_shares_are_as_one(case, cache, tmp_path):
    name, words = words_of(case, cache)
    one = trained(Place(), name, words)
    for other in as_joined(3, tmp_path, name, words, sharded=False):
        check_that_they_agree(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["moco", "in batch", "in batch, in chunks"])
def test_two_workers_with_a_half_of_the_parameters_each_are_as_one(case, cache, tmp_path):
    name, words = words_of(case, cache)
    one = trained(Place(), name, words)
    others = as_joined(2, tmp_path, name, words, sharded=True)
    assert others[0]["networks"][0].keys() == one["networks"][0].keys()
    for other in others:
        check_that_they_agree(one, other)


def config_text(cache, **changes):
    """A run of some seconds whose every update ends with a checkpoint."""
    settings = {
        "workload": "farreach_workloads.retrieval.pretrain",
        "name": "pairs",
        "data": {"cache": str(cache), "vocabulary": 1500},
        "encoder": {"width": 16, "depth": 1, "heads": 2, "hidden": 32, "positions": 140},
        "contrast": {"kind": "moco", "queue": 100},
        "probe": {"documents": 120, "queries": 20, "longest": 40},
        "training": {
            "epochs": 8,
            "epoch_updates": 1,
            "batch": 12,
            "lr": 1e-3,
            "warmup_epochs": 2,
            "keep_checkpoints": 20,
        },
    }
    return json.dumps(settings | changes)


def state_of(run):
    store = CheckpointStore(run / "checkpoints")
    return store.newest().part("learner")


def assert_equal(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if key not in ("trained_s",):
                assert_equal(value, other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "pairs.yaml").write_text(config_text(cache))
    launch.train(str(folder / "pairs.yaml"), run_dir=folder / "run")
    return folder / "run"


def test_a_run_that_is_killed_goes_on_bit_for_bit(undisturbed, cache, tmp_path):
    """Weights, moments, the queue with its ages, the moving average: all as if nothing had been."""
    config, run = tmp_path / "pairs.yaml", tmp_path / "run"
    config.write_text(config_text(cache))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "farreach", "train", str(config), "--run-dir", str(run)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(run.glob("checkpoints/*"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "result.json").exists()
    launch.resume(run)
    assert_equal(state_of(run), state_of(undisturbed))
    assert state_of(run)["step"] == 8


def test_a_queue_that_is_not_saved_begins_anew(cache, tmp_path):
    """Stopped after 4 of 8 updates of 12 pairs: 4 more fill 48 of the 100 places."""
    contrast = {"kind": "moco", "queue": 100, "saved": False}
    config = tmp_path / "pairs.yaml"
    config.write_text(config_text(cache, contrast=contrast))
    with pytest.raises(ConfigError, match=r"saved: a queue that is not saved .* masked=true"):
        launch.check(str(config), ["contrast.masked=false"])
    launch.train(str(config), ["training.epochs=4"], run_dir=tmp_path / "run")
    assert "queue" not in state_of(tmp_path / "run")["task"]
    launch.resume(tmp_path / "run", ["training.epochs=8"])
    state = state_of(tmp_path / "run")
    assert state["step"] == 8
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    filled = [line["learner/queue_filled"] for line in lines if "learner/queue_filled" in line]
    assert max(filled) < 0.48


def test_a_run_is_evaluated_drawn_and_exported(undisturbed, tmp_path):
    result = afterwards.evaluate(undisturbed)
    assert 0 <= result["evaluation/ndcg@10"] <= 1
    assert result["evaluation/questions"] == 20
    assert afterwards.evaluate(undisturbed, episodes=5)["evaluation/questions"] == 5
    names = {path.name for path in afterwards.plot(undisturbed)}
    assert names == {"training.png", "scores.png", "projector"}
    folder = afterwards.export(undisturbed, tmp_path / "model", "hub")
    encoder, words = open_encoder(folder)
    assert (encoder.width, words.size) == (16, 1500)
    with pytest.raises(ConfigError, match="is exported as hub"):
        afterwards.export(undisturbed, tmp_path / "other", "timm")
    newest = CheckpointStore(undisturbed / "checkpoints").newest()
    own, _ = pretrain.encoder_of(undisturbed, newest.path)
    assert own.width == 16
    # Its spans have 128 tokens and two more, and of its 140 positions the others are never trained.
    assert (own.longest, own.positions) == (130, 140)
    assert (encoder.longest, encoder.positions) == (130, 140)


def test_a_run_keeps_its_vocabulary_whatever_becomes_of_the_text(cache, tmp_path):
    """What is made of the run uses it, without text or tokens; training goes on with no other."""
    source = tmp_path / "own.jsonl"
    texts = [f"{word} {other}" for word in WORDS for other in WORDS]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 6))
    data = {"cache": str(tmp_path / "cache"), "path": str(source), "vocabulary": 300}
    config, run = tmp_path / "pairs.yaml", tmp_path / "run"
    config.write_text(config_text(cache, data=data))
    launch.train(str(config), ["training.epochs=4"], run_dir=run)
    before = afterwards.evaluate(run)
    _, words = pretrain.encoder_of(run, CheckpointStore(run / "checkpoints").newest().path)
    assert (run / "kept" / "words" / "tokenizer.json").is_file()
    shutil.rmtree(tmp_path / "cache")
    source.write_text(source.read_text().replace("mount", "climb"))
    again = afterwards.evaluate(run)
    assert again["evaluation/ndcg@10"] == before["evaluation/ndcg@10"]
    assert (
        pretrain.encoder_of(run, CheckpointStore(run / "checkpoints").newest().path)[1].fingerprint
        == words.fingerprint
    )
    (run / "kept" / "words").rename(run / "words")  # as earlier versions kept it
    assert afterwards.evaluate(run)["evaluation/ndcg@10"] == before["evaluation/ndcg@10"]
    (run / "words").rename(run / "kept" / "words")
    with pytest.raises(DataError, match=r"kept/words: is another vocabulary .* text now"):
        launch.resume(run, ["training.epochs=8"])
    source.unlink()
    assert afterwards.evaluate(run)["evaluation/ndcg@10"] == before["evaluation/ndcg@10"]
    afterwards.plot(run)
    folder = afterwards.export(run, tmp_path / "model", "hub")
    assert open_encoder(folder)[1].fingerprint == words.fingerprint


def test_a_checkpoint_of_another_vocabulary_is_refused(cache):
    name, words = words_of("moco", cache)
    config = configs.load(configs.find(name), words).config
    stores.prepare(config)
    task = pretrain.make_task(config)
    state = task.state()
    task.restore(state)
    with pytest.raises(DataError, match="its vocabulary is another than that of the checkpoint"):
        task.restore(state | {"words": "0" * 64})


def test_bad_text_is_named_before_anything_starts(cache, tmp_path):
    config = tmp_path / "pairs.yaml"

    def refused(error, match, **data):
        config.write_text(config_text(cache, data={"cache": str(cache), **data}))
        with pytest.raises(error, match=match):
            launch.train(str(config), run_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused(
        ConfigError,
        r"data\.path: .*nowhere \(nowhere\) is not there",
        path=str(tmp_path / "nowhere"),
    )
    (tmp_path / "blank.txt").write_text(" \n\n")
    refused(DataError, "blank", path=str(tmp_path / "blank.txt"))
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\xfe\n")
    refused(FarreachError, r"bad\.txt", path=str(tmp_path / "bad.txt"))
    refused(DataError, "no-words", words=str(tmp_path / "no-words"))


def test_a_corpus_smaller_than_a_window_is_named(cache, tmp_path):
    (tmp_path / "small.txt").write_text("a few words alone\nand some more of them\n")
    words = stores.words_of(configs.load(configs.find(MINI), [f"data.cache={cache}"]).config)
    words.save(tmp_path / "words")
    config = tmp_path / "pairs.yaml"
    data = {"cache": str(tmp_path), "path": str(tmp_path / "small.txt")}
    config.write_text(config_text(cache, data=data | {"words": str(tmp_path / "words")}))
    with pytest.raises(DataError, match=r"corpus small: its .* tokens are fewer than the 256"):
        launch.train(str(config), run_dir=tmp_path / "run")


def test_a_preset_says_in_what_a_run_differs_from_it():
    notes = launch.check("retrieval/contriever_debug", ["data.vocabulary=4000"])
    assert "differs from contriever: encoder.width: 768 -> 32" in notes
    assert not any("spans" in note or "temperature" in note for note in notes)


def test_positions_that_no_text_reaches_are_told(cache):
    words = [f"data.cache={cache}", "data.vocabulary=1500", "encoder.positions=260"]
    (note,) = [n for n in launch.check("retrieval/debian_mini", words) if "never trained" in n]
    assert note.startswith("positions 131 to 260 are never trained, as no text is longer than 130")
    whole = [*words, "spans.kind=ict", "spans.chunk=258"]
    assert not any("never trained" in n for n in launch.check("retrieval/debian_mini", whole))


@pytest.mark.parametrize(
    "contrast", ["{kind: in_batch}", "{kind: moco, queue: 4096, momentum: 0.99}"]
)
def test_scores_rise_as_a_bag_learns(contrast, cache, tmp_path):
    """In seconds, on the shipped extract; see docs/results.md for what it comes to in the end."""
    words = [
        f"data.cache={cache}",
        "data.vocabulary=8000",
        "encoder.width=128",
        f"contrast={contrast}",
        "probe.documents=2000",
        "probe.queries=200",
        "training.epochs=3",
        "training.epoch_updates=75",
        "training.batch=512",
        "training.lr=5.0e-3",
    ]
    loaded = configs.load(configs.find("retrieval/debian_debug"), words).config
    stores.prepare(loaded)
    untrained = pretrain.make_task(loaded)
    before = untrained.evaluate(Place())["evaluation/ndcg@10"]
    launch.train("retrieval/debian_debug", words, run_dir=tmp_path / "run")
    after = json.loads((tmp_path / "run" / "result.json").read_text())["evaluation/ndcg@10"]
    assert after > before + 0.15
