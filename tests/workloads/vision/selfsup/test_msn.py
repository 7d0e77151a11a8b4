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
from farreach_workloads.vision.selfsup.encoder import Seen
from farreach_workloads.vision.selfsup.task import PretrainTask
from farreach_workloads.vision.view_pixels import normalised

DEBUG = "vision/msn_clipart_debug"


def config_of(*words):
    return configs.load(configs.find(DEBUG), list(words)).config


def task_of(*words):
    torch.manual_seed(0)
    return PretrainTask(config_of(*words))


def test_a_step_is_the_papers_view_by_view():
    """The loss once more, with loops over views and without any of our parts but the modules."""
    task = task_of("method.sinkhorn=none", "method.weight=2")
    task.optimizer()
    batch = task.data.batch(np.arange(6), np.arange(6))
    task.model.train()
    loss, metrics = task.loss(task.model, batch, 3, 0)
    branch, prototypes = task.model.branch, F.normalize(task.model.prototypes, dim=1)
    seen = {}

    def keep(module, inputs):
        seen["kept"] = inputs[0][0].kept

    hook = branch.encoder.register_forward_pre_hook(keep)
    task.loss(task.model, batch, 3, 0)
    hook.remove()
    batch = {kind: normalised(batch[kind]) for kind in ("large", "small")}
    large = branch.head(branch.encoder([Seen(batch["large"][:, 1], seen["kept"])])[0])
    small = [branch.encoder([Seen(batch["small"][:, v])])[0] for v in range(2)]
    small = branch.head(torch.cat(small)).chunk(2)  # one pass of the head for all focal views
    p = [(F.normalize(z, dim=1) @ prototypes.t() / 0.1).softmax(1) for z in (large, *small)]
    with torch.no_grad():
        target = task.method.target
        reached = target.head(target.encoder([Seen(batch["large"][:, 0])])[0])
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
                   "method.momentum=0.996")  # fmt: skip
    assert len(task.data) == 5 * 847
    loop = Loop(
        task, task.config.training, WorkersConfig(), 0, Place(), None, CheckpointStore(tmp_path)
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
        assert task.method.momentum(number - 1) == pytest.approx(momentum, abs=1e-9), number


def test_the_target_follows_the_weights_and_not_the_statistics():
    task = task_of("method.momentum=0.9")
    task.optimizer()
    before = {n: p.clone() for n, p in task.method.target.named_parameters()}
    with torch.no_grad():
        for parameter in task.model.branch.parameters():
            parameter.add_(1.0)
        for buffer in task.model.branch.buffers():
            buffer.add_(7)
    buffers = {n: b.clone() for n, b in task.method.target.named_buffers()}
    task.after_update(0)
    for name, parameter in task.method.target.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.1)
    for name, buffer in task.method.target.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_what_is_decayed_and_what_is_clipped():
    task = task_of()
    groups = task.optimizer().param_groups
    names = {id(p): n for n, p in task.model.named_parameters()}
    decayed, plain, last = ({names[id(p)] for p in group["params"]} for group in groups)
    assert {"branch.encoder.trunk.cls_token", "branch.encoder.trunk.pos_embed"} <= decayed
    assert {"branch.head.0.weight", "branch.encoder.trunk.patch_embed.proj.weight"} <= decayed
    assert {"branch.head.0.bias", "branch.head.1.weight", "branch.encoder.trunk.norm.bias"} <= plain
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
        "large": (2, 2, 3, 32, 32), "small": (2, 2, 3, 16, 16), "replaced": (2,),
    }  # fmt: skip
    assert not torch.equal(batch["large"][:, 0], batch["large"][:, 1])
    assert not torch.equal(batch["small"][:, 0], batch["small"][:, 1])
    again = task.data.batch(np.arange(1, 2), np.arange(1, 2))
    torch.testing.assert_close(again["small"][0], batch["small"][1])
    later = task.data.batch(np.arange(1, 2), np.arange(5, 6))
    assert not torch.equal(later["small"][0], batch["small"][1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["method.prior.kind=power", "method.sinkhorn=uniform"],
            "Set method.sinkhorn to prior, or to none",
        ),
        (["views.small_size=32"], "small views could not be told from"),
        (
            ["runtime.workers=3"],
            r"32 images are not equally many on each of 3 .* 1, 2, 4, 8, 16, 32",
        ),
        (["training.part=8"], "Leave it out"),
        (["backbone.drop_path=0.1"], "backbone.options.drop_path_rate"),
        (["method.prior.kind=shares"], "belong to kind shares"),
        (["method.prior={kind: shares, shares: [0.5, 0.6]}", "method.sinkhorn=none"], "sum to 1.1"),
        (["method.kind=simclr"], "unknown key"),
    ],
)
def test_settings_that_cannot_work_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        config_of(*words)
