import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from regression import SAMPLES, Notes, Regression, loop_of, trained

from farreach import cpu
from farreach.checkpoint import CheckpointStore
from farreach.errors import CheckpointError
from farreach.learn.keeping import Keeper, LearnError, as_tensors
from farreach.learn.place import Place
from farreach.learn.settings import WorkersConfig
from farreach.learn.shards import whole_state
from farreach.testing.ranks import several

PROGRAM = Path(__file__).with_name("regression.py")


def weights(task):
    return torch.cat([p.detach().flatten() for p in task.model.parameters()])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("lacks", [True, False])
def test_slow_products_in_bfloat16_are_remarked(tmp_path, monkeypatch, precision, lacks):
    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda: lacks)
    notes = Notes()
    loop_of(tmp_path, Regression(), notes, epochs=1, precision=precision).run()
    said = [step for step, text in notes.remarks if "training.precision=float32" in text]
    assert said == ([0] if lacks and precision == "bfloat16" else [])


def test_training_fits_and_says_so(tmp_path):
    notes, task = Notes(), Regression()
    loop = loop_of(tmp_path, task, notes, epochs=40, lr=0.05)
    before = task.evaluate(None)["evaluation/top1"]
    metrics, stopped = loop.run()
    assert not stopped
    assert loop.step == loop.total == 200
    assert notes.began == (0, 200)
    assert metrics["evaluation/top1"] > 0.1 * before
    last = notes.lines[-1]
    assert last[0] == 200
    assert last[2] == 1.0
    assert last[1]["evaluation/top1"] == metrics["evaluation/top1"]
    assert metrics["training/updates"] == 200
    assert metrics["training/epochs"] == 40
    assert metrics["training/minutes"] > 0
    shown = {name for _, line, _ in notes.lines for name in line}
    assert {
        "learner/loss",
        "learner/error",
        "learner/lr",
        "throughput/samples_per_s",
        "throughput/data_wait_share",
        "evaluation/seconds",
        "throughput/words_per_s",
    } <= shown
    for _, line, _ in notes.lines:
        if "throughput/words_per_s" in line:  # seven of each sample
            assert line["throughput/words_per_s"] == 7 * line["throughput/samples_per_s"]
    assert task.updates == list(range(200))


def test_every_sample_is_seen_once_per_epoch(tmp_path):
    task = trained(tmp_path)
    assert sorted(task.seen) == list(range(3 * SAMPLES))


def test_parts_of_a_batch_add_up_to_the_whole(tmp_path):
    whole, parts = trained(tmp_path / "a"), trained(tmp_path / "b", part=3)
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-6, rtol=1e-5)


def test_other_processes_prepare_the_same_batches(tmp_path):
    alone, helped = trained(tmp_path / "a"), trained(tmp_path / "b", loaders=2)
    torch.testing.assert_close(weights(helped), weights(alone), atol=0, rtol=0)


def together(folder, world, *words):
    """Train in so many processes; what each ended with."""
    return several(PROGRAM, world, folder, [folder, *words])


@pytest.mark.parametrize("kind", ["whole", "sharded"])
@pytest.mark.parametrize(("world", "words"), [(2, []), (3, ["part"]), (2, ["twice"])])
def test_several_workers_learn_as_one(tmp_path, world, words, kind):
    """With three, a batch of ten is 3 + 3 + 4 samples; twice: stopped and continued."""
    single = trained(tmp_path / "single")
    found = together(tmp_path, world, kind, *words)
    for one in found:
        vector = torch.cat([value.flatten() for value in one["model"].values()])
        torch.testing.assert_close(vector, weights(single), atol=1e-6, rtol=1e-5)
    seen = [position for one in found for position in one["seen"]]
    assert sorted(seen) == list(range(3 * SAMPLES))
    newest = CheckpointStore(tmp_path / "checkpoints").newest()
    assert newest.step == 15
    assert ("weights-00000-of-00002.msgpack" in newest.files) == (kind == "sharded" and world == 2)
    saved = torch.cat([v.flatten() for v in as_tensors(whole_state(newest)["model"]).values()])
    torch.testing.assert_close(saved, weights(single), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, "sharded"), (3, "sharded")),
        ((3, "sharded"), (2, "sharded")),
        ((2, "sharded"), (2, "whole")),
        ((2, "whole"), (2, "sharded")),
        ((2, "sharded"), (1, "sharded")),  # of one, nothing can be split
    ],
)
def test_a_run_goes_on_in_a_group_of_another_size_or_kind(tmp_path, before, after):
    single = trained(tmp_path / "single")
    together(tmp_path, *before, "first")
    found = together(tmp_path, *after, "second")
    for one in found:
        vector = torch.cat([value.flatten() for value in one["model"].values()])
        torch.testing.assert_close(vector, weights(single), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("stop_at", "ahead"), [(1, 0), (7, 0), (14, 0), (7, 1)])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path, stop_at, ahead):
    torch.manual_seed(0)
    whole = Regression(dropout=0.5)
    loop_of(tmp_path / "whole", whole).run()

    torch.manual_seed(0)
    first, notes = Regression(dropout=0.5), Notes(stop_at)
    loop = loop_of(tmp_path / "parts", first, notes)
    loop._ahead = ahead
    _, stopped = loop.run()
    assert stopped
    assert not loop._told
    assert loop.step == stop_at
    assert notes.checkpoints[-1] == stop_at

    torch.manual_seed(99)  # another start, which the checkpoint replaces
    second = Regression(dropout=0.5)
    loop = loop_of(tmp_path / "parts", second)
    loop.restore(CheckpointStore(tmp_path / "parts").newest())
    loop.run()
    torch.testing.assert_close(weights(second), weights(whole), atol=0, rtol=0)
    assert sorted(first.seen + second.seen) == list(range(3 * SAMPLES))
    assert second.updates == whole.updates


def test_checkpoints_and_evaluations_come_as_often_as_asked(tmp_path):
    notes = Notes()
    settings = {"evaluate_every_epochs": 0.4, "checkpoint_every_epochs": 1.0}
    loop_of(tmp_path, NeverBetter(), notes, **settings).run()
    evaluated = [step for step, line, _ in notes.lines if "evaluation/top1" in line]
    assert evaluated == [2, 4, 6, 8, 10, 12, 14, 15]
    assert notes.checkpoints == [2, 5, 10, 15]  # the first evaluation is the best
    newest = CheckpointStore(tmp_path).newest()
    assert newest.score == pytest.approx(notes.lines[-1][1]["evaluation/top1"])


def test_the_start_is_evaluated_where_asked_and_changes_nothing(tmp_path):
    found = {}
    for first in (False, True):
        torch.manual_seed(0)
        notes, task = Notes(), Scored([9.0, 1.0, 3.0, 2.0], before=0)
        loop_of(tmp_path / str(first), task, notes, evaluate_first=first, patience=2).run()
        evaluated = {n: line["evaluation/top1"] for n, line, _ in notes.lines if n in (0, 5, 10)}
        found[first] = evaluated, notes.checkpoints, weights(task)
        best = CheckpointStore(tmp_path / str(first)).best()
        assert (best.step, best.score) == (10, 3.0)  # the start has 9, and is none
    assert found[True][0] == {0: 9.0, 5: 1.0, 10: 3.0}
    assert found[False][0] == {5: 1.0, 10: 3.0}
    assert found[True][1] == found[False][1]
    torch.testing.assert_close(found[True][2], found[False][2], atol=0, rtol=0)


class Scored(Regression):
    """Evaluates to scores that are given, one after the other."""

    def __init__(self, scores, before=1):
        super().__init__()
        self.scores, self.before = list(scores), before

    def evaluate(self, place):
        return {"evaluation/top1": self.scores[len(self.updates) // 5 - self.before]}


class NeverBetter(Regression):
    """Evaluates to less and less."""

    def evaluate(self, place):
        return {"evaluation/top1": 5.0 - len(self.updates)}


RISE = [1.0, 3.0, 2.0, 4.0, 4.0, 3.9, 5.0, 6.0]


@pytest.mark.parametrize(("patience", "ends"), [(None, 8), (1, 3), (2, 6), (3, 8)])
def test_training_ends_when_scores_rise_no_more(tmp_path, patience, ends):
    """A score that is as good is no better; the best checkpoint is there, whatever came after."""
    notes, task = Notes(), Scored(RISE)
    _, stopped = loop_of(tmp_path, task, notes, epochs=8, patience=patience).run()
    assert not stopped
    assert len(task.updates) == 5 * ends
    assert notes.checkpoints[-1] == 5 * ends
    told = [text for _, text in notes.remarks if "ends early" in text]
    assert len(told) == (patience in (1, 2))


def test_the_best_of_all_evaluations_is_kept_however_rarely_it_is_saved(tmp_path):
    notes, task = Notes(), Scored([1.0, 3.0, 2.0, 5.0, 5.0, 4.0])
    loop_of(tmp_path, task, notes, epochs=6, checkpoint_every_epochs=3).run()
    assert notes.checkpoints == [5, 10, 15, 20, 30]  # the middle and the end, and what was better
    best = CheckpointStore(tmp_path).best()
    assert (best.step, best.score) == (20, 5.0)


def test_workers_save_the_best_together(tmp_path):
    together(tmp_path, 2, "best")
    best = CheckpointStore(tmp_path / "checkpoints").best()
    assert (best.step, best.score) == (10, 3.0)


def test_a_stopped_run_goes_on_waiting_for_better_scores(tmp_path):
    """Stopped after the first of two that brought nothing."""
    first = Scored(RISE)
    loop = loop_of(tmp_path, first, Notes(stop_at=27), epochs=8, patience=2)
    assert loop.run()[1]
    second = Scored(RISE)
    loop = loop_of(tmp_path, second, epochs=8, patience=2)
    loop.restore(CheckpointStore(tmp_path).newest())
    loop.run()
    assert len(second.updates) == 30


def test_a_checkpoint_has_the_score_of_its_own_weights_or_none(tmp_path):
    notes = Notes()
    loop_of(tmp_path, NeverBetter(), notes, checkpoint_every_epochs=0.8).run()
    assert notes.checkpoints == [4, 5, 8, 12, 15]  # the first evaluation is the best
    measured = {step: line.get("evaluation/top1") for step, line, _ in notes.lines}
    scores = {
        step: CheckpointStore.load(tmp_path / f"step_{step:012d}").score
        for step in notes.checkpoints
    }
    assert scores == {4: None, 5: 0.0, 8: None, 12: None, 15: measured[15]}


def test_pictures_are_shown_after_every_evaluation(tmp_path):
    notes = Notes()
    loop_of(tmp_path, Regression(), notes).run()
    assert [(step, name) for step, name, _ in notes.seen] == [
        (step, "evaluation/shade") for step in (5, 10, 15)
    ]
    assert [int(picture[0, 0, 0]) for _, _, picture in notes.seen] == [5, 10, 15]


def test_evaluations_do_not_count_as_time_of_training(tmp_path):
    class Slow(Regression):
        def evaluate(self, place):
            time.sleep(1.0)
            return super().evaluate(place)

    notes = Notes()
    loop_of(tmp_path, Slow(), notes).run()
    name = "throughput/updates_per_s"
    [rate] = [line[name] for _, line, _ in notes.lines if name in line]
    assert rate > 15  # with the two evaluations before the last update it would be 7 at most


def test_a_time_limit_ends_training_with_a_checkpoint(tmp_path):
    notes = Notes()
    loop = loop_of(tmp_path, Regression(), notes, epochs=1e6, max_minutes=0.02)
    _, stopped = loop.run()
    assert not stopped
    assert 0 < loop.step < loop.total
    assert notes.checkpoints[-1] == loop.step
    assert notes.lines[-1][2] == 1.0


@pytest.mark.parametrize("limit", [{"max_minutes": 0.001}, {"epochs": 1}])
def test_a_run_that_is_over_when_it_is_resumed_makes_no_further_update(tmp_path, limit):
    first = Regression()
    loop = loop_of(tmp_path, first, Notes(stop_at=7))
    assert loop.run()[1]
    again, notes = Regression(), Notes()
    loop = loop_of(tmp_path, again, notes, **limit)
    loop.restore(CheckpointStore(tmp_path).newest())
    loop._trained_s = 60.0
    metrics, stopped = loop.run()
    assert (stopped, loop.step, again.seen) == (False, 7, [])
    torch.testing.assert_close(weights(again), weights(first), atol=0, rtol=0)
    newest = CheckpointStore(tmp_path).newest()  # of weights that nobody had evaluated
    found = first.evaluate(None)["evaluation/top1"]
    assert metrics["evaluation/top1"] == newest.score == pytest.approx(found)

    once_more = Notes()
    loop = loop_of(tmp_path, Regression(), once_more, **limit)
    loop.restore(newest)
    assert loop.run()[0]["evaluation/top1"] == newest.score
    assert (once_more.lines, once_more.checkpoints) == ([], [])


def test_a_new_run_makes_an_update_however_long_its_first_evaluation_takes(tmp_path):
    loop = loop_of(tmp_path, Regression(), evaluate_first=True, max_minutes=1e-9)
    loop.run()
    assert loop.step == 1


def test_workers_whose_clocks_differ_stay_equal(tmp_path):
    """The rate follows the time that is left: were it each worker's own, their weights would."""
    first, second = together(tmp_path, 2, "late")
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name])


def test_a_loss_that_is_no_number_ends_the_run_and_is_named(tmp_path):
    loop = loop_of(tmp_path / "checkpoints", Regression(poison=17))
    with pytest.raises(LearnError, match=r"the loss of update \d+ is nan\. Lower training\.lr"):
        loop.run()
    assert CheckpointStore(tmp_path / "checkpoints").newest() is None
    assert loop.step < 5
    with np.load(tmp_path / f"batch-of-update-{loop.step}-rank-0.npz") as kept:
        assert kept["rows"][np.isnan(kept["y"])].tolist() == [17]
        assert kept["x"].shape == (10, 3)
        assert kept["positions"].tolist() == list(range(10 * loop.step, 10 * loop.step + 10))


def test_a_device_that_is_an_update_behind_tells_and_learns_the_same(tmp_path):
    """As with a GPU: what an update tells is read when the next one has been handed out."""
    notes, tasks = [Notes(), Notes()], []
    for ahead in (0, 1):
        torch.manual_seed(0)
        tasks.append(Regression())
        loop = loop_of(tmp_path / str(ahead), tasks[ahead], notes[ahead], max_grad_norm=1.0)
        loop._ahead = ahead
        loop.run()
        assert not loop._told
    assert torch.equal(weights(tasks[0]), weights(tasks[1]))
    here, there = (
        [
            (step, {k: v for k, v in line.items() if k.startswith("learner/")})
            for step, line, _ in of
        ]
        for of in (notes[0].lines, notes[1].lines)
    )
    assert here == there
    assert notes[0].checkpoints == notes[1].checkpoints


def test_a_loss_that_is_no_number_is_noticed_before_anything_is_saved(tmp_path):
    loop = loop_of(tmp_path / "checkpoints", Regression(poison=17), checkpoint_every_epochs=0.2)
    loop._ahead = 1
    with pytest.raises(LearnError, match=r"the loss of update \d+ is nan") as caught:
        loop.run()
    number = int(re.search(r"update (\d+)", str(caught.value))[1])
    newest = CheckpointStore(tmp_path / "checkpoints").newest()
    assert (newest.step if newest else 0) <= number
    with np.load(tmp_path / f"batch-of-update-{number}-rank-0.npz") as kept:
        assert kept["rows"][np.isnan(kept["y"])].tolist() == [17]
        assert kept["positions"].tolist() == list(range(10 * number, 10 * number + 10))


def test_a_compiled_model_learns_the_same(tmp_path):
    plain = trained(tmp_path / "plain")
    compiled = trained(tmp_path / "compiled", compiled=True)
    torch.testing.assert_close(weights(compiled), weights(plain), atol=1e-5, rtol=1e-5)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())


def test_batch_normalisation_sees_all_workers_images():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    kept = model[1].weight
    Place(world=2, device=torch.device("cpu")).join_statistics(model)
    assert type(model[1]).__module__ == "farreach.learn.collectives"
    Place(world=2, device=torch.device("cuda")).join_statistics(model)
    assert type(model[1]) is nn.SyncBatchNorm
    assert model[1].weight is kept


def test_gradients_are_clipped_where_asked(tmp_path):
    notes = Notes()
    loop_of(tmp_path, Regression(), notes, max_grad_norm=1e-3).run()
    norms = [line["learner/grad_norm"] for _, line, _ in notes.lines if "learner/grad_norm" in line]
    assert norms
    assert min(norms) > 1e-3  # what is shown is the norm before


AT_THE_END = {"evaluate_every_epochs": 3, "checkpoint_every_epochs": 3}


def test_a_checkpoint_is_written_at_once_when_a_machine_is_about_to_leave(tmp_path):
    notes = Notes(leaving_at=4)
    loop_of(tmp_path, Regression(), notes, **AT_THE_END).run()
    # Before the fourth update, and at the end.
    assert notes.checkpoints[0] == 3
    assert len(notes.checkpoints) == 2


def test_another_checkpoint_is_written_when_it_leaves_and_nothing_is_done_after_that(tmp_path):
    notes = Notes(leaving_at=2, last_moment_at=6)
    loop_of(tmp_path, Regression(), notes, **AT_THE_END).run()
    # Before the second update, before the seventh, and at the end.
    assert notes.checkpoints[:2] == [1, 6]
    assert len(notes.checkpoints) == 3
    assert notes.rested == 7  # it rested before it had asked again


@pytest.mark.parametrize("batch", [5, 20])
def test_a_run_does_not_go_on_with_batches_of_another_size(tmp_path, batch):
    """After 7 of 15 updates of 10 samples, those of 20 would be almost done, those of 5 not."""
    loop_of(tmp_path, Regression(), Notes(7)).run()
    newest = CheckpointStore(tmp_path).newest()
    with pytest.raises(LearnError, match=r"of updates of 10 samples .* training\.batch=10"):
        loop_of(tmp_path, Regression(), batch=batch).restore(newest)
    loop_of(tmp_path, Regression(), part=5).restore(newest)


def test_there_are_not_fewer_workers_than_the_least():
    with pytest.raises(ValueError, match="min_workers: 3 are more than workers, 2"):
        WorkersConfig(workers=2, min_workers=3)
    assert WorkersConfig(workers=3, min_workers=2).min_workers == 2


class SlowStore(CheckpointStore):
    """Writes its first checkpoint when the task has seen a number of updates more."""

    def __init__(self, directory, task, until):
        super().__init__(directory, 5)
        self._task, self._until, self.waited = task, until, []

    def save(self, parts, *, step, **more):
        deadline = time.monotonic() + 20
        while len(self._task.updates) < self._until and time.monotonic() < deadline:
            time.sleep(0.001)
        self.waited.append((step, len(self._task.updates)))
        return super().save(parts, step=step, **more)


def with_slow_store(folder, task, until, notes, **settings):
    loop = loop_of(folder, task, notes, **settings)
    store = SlowStore(folder, task, until)
    loop._keeper = Keeper(task, loop._optimizer, Place(), notes, store)
    return loop, store


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    torch.manual_seed(0)
    notes, task = Notes(), Regression()
    loop, store = with_slow_store(tmp_path / "slow", task, 8, notes)
    loop.run()
    assert store.waited[0][0] == 5
    assert store.waited[0][1] >= 8  # updates beyond that of the checkpoint
    assert notes.checkpoints == [5, 10, 15]
    # It holds the weights of its own update, whatever came while it was written.
    trained(tmp_path / "plain")
    for name in ("step_000000000005", "step_000000000015"):
        ours = CheckpointStore.load(tmp_path / "slow" / name).part("learner")
        theirs = CheckpointStore.load(tmp_path / "plain" / name).part("learner")
        for key, value in theirs["model"].items():
            np.testing.assert_array_equal(ours["model"][key], value)


def test_a_checkpoint_that_was_begun_is_finished_when_training_fails(tmp_path):
    class Failing(Regression):
        def after_update(self, step):
            super().after_update(step)
            if step == 7:
                raise LearnError("no more")

    notes, task = Notes(), Failing()
    loop, store = with_slow_store(tmp_path, task, 8, notes)
    with pytest.raises(LearnError, match="no more"):
        loop.run()
    assert notes.checkpoints == [5]
    assert store.newest().step == 5


def test_a_disk_that_refuses_a_checkpoint_ends_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="could not write the checkpoint"):
        loop_of(tmp_path / "file", Regression()).run()
