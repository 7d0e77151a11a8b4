"""What a run of pretraining tells of its data, and settings that are easily lost."""

import json
import shutil

import numpy as np
import pytest
import torch

from farreach import afterwards, launch
from farreach import config as configs
from farreach.checkpoint import CheckpointStore
from farreach.errors import DataError
from farreach.learn.loop import Loop
from farreach.learn.place import Place
from farreach_workloads.retrieval import pretrain, stores
from farreach_workloads.retrieval.corpora import extract
from farreach_workloads.retrieval.evaluation.beir import open_beir
from farreach_workloads.retrieval.packed import attention_filled, layout_of

MINI = "retrieval/debian_mini_debug"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def words_of(cache, *more):
    settings = ["data.vocabulary=1500", "probe.documents=120", "probe.queries=20"]
    return [f"data.cache={cache}", *settings, *more]


def task_of(cache, *more):
    config = configs.load(configs.find(MINI), words_of(cache, *more)).config
    stores.prepare(config)
    torch.manual_seed(0)
    return config, pretrain.make_task(config)


def test_norms_and_biases_shrink_as_all_weights_do(cache):
    """As in the released code: AdamW has one group, with a decay of 0.01."""
    _, task = task_of(cache)
    optimizer = task.optimizer()
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.01
    learnt = {id(p) for p in task.model.parameters()}
    assert {id(p) for p in group["params"]} == learnt
    norms = [p for name, p in task.model.named_parameters() if "norm" in name or "bias" in name]
    assert norms
    before = [p.detach().clone() for p in norms]
    for p in task.model.parameters():
        p.grad = torch.zeros_like(p)
    group["lr"] = 0.5
    optimizer.step()
    for old, new in zip(before, norms, strict=True):
        torch.testing.assert_close(new.detach(), old * (1 - 0.5 * 0.01))


class Seen:
    """Notes down what is dropped of a tensor of ones in every loss."""

    def __init__(self, task):
        self.task, self.dropped = task, []

    def __getattr__(self, name):
        return getattr(self.task, name)

    def loss(self, model, batch, step, rank):
        self.dropped.append(torch.dropout(torch.ones(256), 0.5, train=True))
        return self.task.loss(model, batch, step, rank)


def test_each_worker_drops_other_numbers_in_every_update(cache, tmp_path):
    """Only torch's generator of the first is seeded alike in many a code base."""
    masks = []
    for rank in (0, 1):
        config, task = task_of(cache)
        seen = Seen(task)
        place = Place()
        loop = Loop(
            seen, config.training, config.runtime, 0, place, None, CheckpointStore(tmp_path)
        )
        loop._place = Place(rank, 2)
        for step, parts in zip(range(2), loop._feed(), strict=False):
            loop.step = step
            loop._pass(task.model, parts)
        masks += seen.dropped
    assert len(masks) == 4
    for one in range(4):
        for other in range(one):
            assert 64 < int((masks[one] != masks[other]).sum()) < 192


def test_a_run_says_what_it_has_learnt_from_and_was_measured_on(cache, tmp_path):
    run = launch.train(MINI, words_of(cache), run_dir=tmp_path / "run")
    (event,) = [event for event in run.events() if event["event"] == "data"]
    folder = extract.folder(cache)
    assert event["texts"] == {"extract": stores.fingerprint(folder)}
    assert event["files"] == open_beir(folder, "dev").hashes
    assert event["searched"] == str(folder)
    afterwards.evaluate(run.path)
    assert len([event for event in run.events() if event["event"] == "data"]) == 2
    versions = json.loads((tmp_path / "run" / "result.json").read_text())["versions"]
    assert {"faiss-cpu", "tokenizers", "safetensors", "pyarrow", "bm25s"} <= versions.keys()


def test_padding_that_attention_computes_is_told():
    """Texts of like length attend together; those of one length fill all places."""
    assert attention_filled(torch.full((40,), 17)) == 1.0
    lengths = torch.arange(1, 129).repeat(40)
    layout = layout_of(lengths, 128)
    places = sum(group.texts * group.longest for group in layout.groups)
    assert attention_filled(lengths) == pytest.approx(int(lengths.sum()) / places)
    assert 0.5 < attention_filled(lengths) < 1


def test_parts_of_a_batch_are_of_like_length_and_train_as_the_whole(cache, tmp_path):
    """Each has about as many tokens, and the queue holds keys in the order of samples."""
    _, task = task_of(cache, "training.batch=48")
    positions = np.arange(48)
    whole = task.data.batch(positions, positions)
    parts = task.data.parts(positions, positions, 10)
    assert len(parts) == 5
    tokens = [int(part["query_length"].sum()) for part in parts]
    assert max(tokens) - min(tokens) < 2 * int(whole["query_length"].max())
    lengths = torch.cat([part["query_length"] for part in parts])
    assert torch.equal(lengths, lengths.sort().values)
    assert all(part["query"].shape[1] == part["query_length"].max() for part in parts)
    for part in parts:
        for row, place in enumerate(part["place"].tolist()):
            for side in ("query", "key"):
                length = int(whole[f"{side}_length"][place])
                assert torch.equal(part[side][row, :length], whole[side][place, :length])
    assert sorted(torch.cat([part["place"] for part in parts]).tolist()) == list(range(48))
    found = []
    for size in (16, 5):
        words = words_of(cache, "encoder.dropout=0", f"training.part={size}")
        run = launch.train(MINI, words, run_dir=tmp_path / str(size))
        found.append(CheckpointStore(run.checkpoints).newest().part("learner"))
    np.testing.assert_allclose(
        found[1]["task"]["queue"]["keys"], found[0]["task"]["queue"]["keys"], rtol=1e-4, atol=1e-5
    )
    for name, value in found[0]["model"].items():
        np.testing.assert_allclose(found[1]["model"][name], value, rtol=1e-3, atol=1e-4)


def test_further_sets_are_searched_in_training(cache, tmp_path):
    """Of one the split that is asked for, of the other the one on which results are published."""
    folder = extract.folder(cache)
    for name, split in (("same", "dev"), ("tested", "test")):
        (tmp_path / name / "qrels").mkdir(parents=True)
        for file in ("corpus.jsonl", "queries.jsonl"):
            shutil.copy(folder / file, tmp_path / name / file)
        shutil.copy(folder / "qrels" / "dev.tsv", tmp_path / name / "qrels" / f"{split}.tsv")
    others = f"probe.others={{same: {tmp_path / 'same'}, tested: {tmp_path / 'tested'}}}"
    run = launch.train(MINI, words_of(cache, others), run_dir=tmp_path / "run")
    result = json.loads(run.result_path.read_text())
    for name in ("same", "tested"):
        for measure in ("ndcg@10", "recall@100", "documents", "questions"):
            assert result[f"{name}/{measure}"] == result[f"evaluation/{measure}"]
    assert afterwards.evaluate(run.path, episodes=5)["tested/questions"] == 5
    with pytest.raises(DataError, match=r"nowhere/qrels/dev\.tsv"):
        launch.check(MINI, words_of(cache, f"probe.others={{x: {tmp_path / 'nowhere'}}}"))


def test_bfloat16_learns_what_single_precision_does(cache, tmp_path):
    found = []
    for precision in ("float32", "bfloat16"):
        words = words_of(cache, f"training.precision={precision}", "encoder.dropout=0")
        run = launch.train(MINI, words, run_dir=tmp_path / precision)
        state = CheckpointStore(run.checkpoints).newest().part("learner")
        assert all(value.dtype == np.float32 for value in state["model"].values())
        found.append(np.concatenate([np.ravel(v) for v in state["model"].values()]))
    assert not np.array_equal(*found)
    np.testing.assert_allclose(found[1], found[0], atol=2e-2)
