import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from farreach import config as configs
from farreach.checkpoint import CheckpointStore
from farreach.errors import ConfigError
from farreach.learn.loop import Loop
from farreach.learn.place import Place
from farreach.learn.settings import WorkersConfig
from farreach_workloads.vision.selfsup.msn import MsnTask

sys.path.insert(0, str(Path(__file__).parent))
from joined import trained

PROGRAM = Path(__file__).with_name("joined.py")
DEBUG = "vision/msn_clipart_debug"


def config_of(*words):
    return configs.load(configs.find(DEBUG), list(words)).config


def task_of(*words):
    torch.manual_seed(0)
    return MsnTask(config_of(*words))


def test_a_step_is_the_papers_view_by_view():
    """The loss once more, with loops over views and without any of our parts but the modules."""
    task = task_of("msn.sinkhorn=none", "msn.weight=2")
    task.optimizer()
    batch = task.data.batch(np.arange(6), np.arange(6))
    task.model.train()
    loss, metrics = task.loss(task.model, batch, 3, 0)
    branch, prototypes = task.model.branch, F.normalize(task.model.prototypes, dim=1)
    seen = {}

    def keep(module, inputs):
        if inputs[1] is not None:
            seen["kept"] = inputs[1]

    hook = branch.encoder.register_forward_pre_hook(keep)
    task.loss(task.model, batch, 3, 0)
    hook.remove()
    large = branch.head(branch.encoder(batch["random"][:, 0], seen["kept"]))
    small = [branch.encoder(batch["focal"][:, v]) for v in range(2)]
    small = branch.head(torch.cat(small)).chunk(2)  # one pass of the head for all focal views
    p = [(F.normalize(z, dim=1) @ prototypes.t() / 0.1).softmax(1) for z in (large, *small)]
    with torch.no_grad():
        reached = task.target.head(task.target.encoder(batch["target"]))
        t = (F.normalize(reached, dim=1) @ prototypes.t() / 0.1).softmax(1) ** 4
        t = t / t.sum(1, keepdim=True)
    cross = sum(-(t * view.log()).sum(1).mean() for view in p) / 3
    mean = torch.cat(p).mean(0)
    spread = np.log(32) + float((mean * mean.log()).sum().detach())
    assert float(metrics["learner/cross_entropy"]) == pytest.approx(float(cross.detach()), rel=1e-5)
    assert float(metrics["learner/prior_divergence"]) == pytest.approx(spread, rel=1e-4)
    whole = float(cross.detach()) + 2 * spread
    assert float(loss.detach()) == pytest.approx(whole, rel=1e-5)
    assert len(seen["kept"]) == int(16 * 0.85)


def test_schedules_worked_by_hand(tmp_path):
    """Four epochs of five updates, one of them to warm up; stretched to 25 updates."""
    task = task_of("training.batch=847", "training.epochs=4", "training.warmup_epochs=1",
                   "training.lr=1e-3", "training.warmup_lr=2e-4", "training.min_lr=1e-6",
                   "msn.momentum=0.996")  # fmt: skip
    assert len(task.data) == 5 * 847
    loop = Loop(
        task, task._config.training, WorkersConfig(), 0, Place(), None, CheckpointStore(tmp_path)
    )
    expected = {
        1: (3.6e-4, 0.041419, 0.996),
        4: (8.4e-4, 0.062265, 0.99648),
        5: (1e-3, 0.074377, 0.99664),
        10: (8.537e-4, 0.164377, 0.99744),
        20: (1.4730e-4, 0.365623, 0.99904),
    }
    for number, (rate, decay, momentum) in expected.items():
        loop.step = number - 1
        assert loop.lr() == pytest.approx(rate, rel=1e-4), number
        assert task.weight_decay(number - 1) == pytest.approx(decay, abs=1e-6), number
        assert task.momentum(number - 1) == pytest.approx(momentum, abs=1e-9), number


def test_the_target_follows_the_weights_and_not_the_statistics():
    task = task_of("msn.momentum=0.9")
    task.optimizer()
    before = {n: p.clone() for n, p in task.target.named_parameters()}
    with torch.no_grad():
        for parameter in task.model.branch.parameters():
            parameter.add_(1.0)
        for buffer in task.model.branch.buffers():
            buffer.add_(7)
    buffers = {n: b.clone() for n, b in task.target.named_buffers()}
    task.after_update(0)
    for name, parameter in task.target.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.1)
    for name, buffer in task.target.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_what_is_decayed_and_what_is_clipped():
    task = task_of()
    groups = task.optimizer().param_groups
    names = {id(p): n for n, p in task.model.named_parameters()}
    decayed, plain, last = ({names[id(p)] for p in group["params"]} for group in groups)
    assert {"branch.encoder.vit.cls_token", "branch.encoder.vit.pos_embed"} <= decayed
    assert {"branch.head.0.weight", "branch.encoder.vit.patch_embed.proj.weight"} <= decayed
    assert {"branch.head.0.bias", "branch.head.1.weight", "branch.encoder.vit.norm.bias"} <= plain
    assert last == {"prototypes"}
    assert [group["weight_decay"] for group in groups] == [0.04, 0.0, 0.0]
    assert [group.get("clipped", True) for group in groups] == [True, True, False]
    bound = 16**-0.5
    assert float(task.model.prototypes.detach().abs().max()) <= bound
    assert float(task.model.prototypes.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_all_views_are_drawn_on_their_own_and_again_the_same():
    task = task_of()
    batch = task.data.batch(np.arange(2), np.arange(2))
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "target": (2, 3, 32, 32), "random": (2, 1, 3, 32, 32), "focal": (2, 2, 3, 16, 16),
    }  # fmt: skip
    assert not torch.equal(batch["target"], batch["random"][:, 0])
    assert not torch.equal(batch["focal"][:, 0], batch["focal"][:, 1])
    again = task.data.batch(np.arange(1, 2), np.arange(1, 2))
    torch.testing.assert_close(again["focal"][0], batch["focal"][1])
    later = task.data.batch(np.arange(1, 2), np.arange(5, 6))
    assert not torch.equal(later["focal"][0], batch["focal"][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [[], ["msn.sinkhorn=prior", "msn.prior.kind=power", "msn.weight=1"]]
)
def test_two_workers_are_as_one(tmp_path, words):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", str(port), str(tmp_path), *words], env=environment
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in ranks] == [0, 0]
    one = trained(Place(), words)
    for rank in range(2):
        other = torch.load(tmp_path / f"rank{rank}.pt")
        assert other["losses"] == pytest.approx(one["losses"], rel=2e-5)
        assert other["used"] == one["used"]
        # All together: shifts that normalisation takes out have rounding errors for gradients.
        theirs, ours = (
            torch.cat([g.flatten() for g in r["gradients"].values()]) for r in (other, one)
        )
        assert float((theirs - ours).norm() / ours.norm()) < 1e-5
        for kind in ("model", "target"):
            for name, value in one[kind].items():
                if value.is_floating_point() and "running" in name:
                    torch.testing.assert_close(other[kind][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["msn.prior.kind=power", "msn.sinkhorn=uniform"], "Set msn.sinkhorn to prior, or to none"),
        (["views.focal_size=32"], "focal views could not be told from"),
        (
            ["runtime.workers=3"],
            r"32 images are not equally many on each of 3 .* 1, 2, 4, 8, 16, 32",
        ),
        (["training.part=8"], "Leave it out"),
        (["runtime.sharded=true"], "the target network is whole on every worker"),
        (["backbone.drop_path=0.1"], "without dropped paths"),
    ],
)
def test_settings_that_cannot_work_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        config_of(*words)
