"""Equations of the methods beside MSN, worked by hand or with loops."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from farreach import config as configs
from farreach_workloads.vision.selfsup.assignments import (
    codes,
    cosines,
    divergence,
    power_law,
    prior_of,
)
from farreach_workloads.vision.selfsup.mae import pixels_of_patches
from farreach_workloads.vision.selfsup.method_configs import PriorConfig
from farreach_workloads.vision.selfsup.simclr import contrast
from farreach_workloads.vision.selfsup.task import PretrainTask
from farreach_workloads.vision.selfsup.vicreg import covariance, lack_of_variance
from farreach_workloads.vision.view_pixels import normalised


def task_of(name, *words):
    config = configs.load(configs.find(name), list(words)).config
    torch.manual_seed(0)
    task = PretrainTask(config)
    task.optimizer()
    task.model.train()
    return task


def views_of(task, count=6):
    batch = task.data.batch(np.arange(count), np.arange(count))
    return {kind: normalised(x) for kind, x in batch.items() if kind != "replaced"}


def test_swav_codes_worked_by_hand():
    """Two images, three prototypes, ε 0.05, three iterations; τ 0.1."""
    scores = torch.tensor(
        [[[0.9, 0.1, -0.2], [0.2, 0.8, 0.0]], [[0.7, 0.3, -0.1], [0.1, 0.9, 0.1]]]
    )
    expected = torch.tensor([
        [[0.940324, 0.000003, 0.059673], [0.000000, 0.516384, 0.483616]],
        [[0.940307, 0.000021, 0.059671], [0.000001, 0.516379, 0.483621]],
    ])  # fmt: skip
    q = torch.stack([codes(s, power_law(3, 0), 0.05, 3) for s in scores])
    torch.testing.assert_close(q, expected, atol=2e-6, rtol=0)
    log_p = (scores / 0.1).log_softmax(2)
    losses = [-(q[a] * log_p[1 - a]).sum(1).mean().item() for a in (0, 1)]
    assert losses == pytest.approx([2.182736, 2.264343], abs=2e-5)


def test_codes_do_not_overflow_and_rows_sum_to_one():
    scores = torch.tensor([[1.0, -1.0, 0.9], [-1.0, 1.0, -1.0], [0.3, 0.2, -0.4]])
    q = codes(scores, power_law(3, 1.0), 0.025, 10)
    assert torch.isfinite(q).all()
    torch.testing.assert_close(q.sum(1), torch.ones(3))


def test_swavs_loss_is_the_mean_over_both_codes_and_all_other_crops():
    task = task_of("vision/swav_clipart_debug")
    views = views_of(task)
    loss, _ = task.method.loss(task.model, views, 0, 0)
    _, scores = task.model([_seen(views["large"]), _seen(views["small"])])
    crops = scores.detach().unflatten(0, (4, 6))
    swav = task.config.method
    parts = []
    for a in (0, 1):
        q = codes(crops[a], power_law(32, 0), swav.epsilon, swav.iterations)
        others = [crops[c] for c in range(4) if c != a]
        parts += [-(q * (crop / 0.1).log_softmax(1)).sum(1).mean() for crop in others]
    assert float(loss.detach()) == pytest.approx(float(torch.stack(parts).mean()), rel=1e-5)


def _seen(views):
    from farreach_workloads.vision.selfsup.encoder import Seen

    return Seen(views.transpose(0, 1).flatten(0, 1))


def test_swavs_prototypes_stay_at_first_and_keep_their_length():
    task = task_of("vision/swav_clipart_debug", "method.frozen_updates=1")
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.5)
    start = task.model.prototypes.detach().clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(32))
    for step in range(2):
        optimizer.zero_grad()
        task.method.loss(task.model, views_of(task), step, 0)[0].backward()
        assert task.model.prototypes.grad.abs().sum() > 0
        task.method.before_update(step)
        optimizer.step()
        task.method.after_update(step)
        moved = not torch.allclose(task.model.prototypes, start, atol=1e-6)
        assert moved == (step == 1)
    torch.testing.assert_close(task.model.prototypes.norm(dim=1), torch.ones(32))


def test_swavs_queue_holds_the_newest_embeddings_of_each_crop():
    words = ["method.queue=8", "method.queue_after_epochs=0"]
    task = task_of("vision/swav_clipart_debug", *words)
    views = views_of(task)
    embedded, _ = task.model([_seen(views["large"]), _seen(views["small"])])
    first = embedded.detach().unflatten(0, (4, 6))[:2]
    task.method.loss(task.model, views, 0, 0)
    queue = task.method.state()["queue"]
    torch.testing.assert_close(queue, first)
    task.method.loss(task.model, views, 1, 0)
    queue = task.method.state()["queue"]
    assert queue.shape == (2, 8, 16)
    torch.testing.assert_close(queue[:, 6:], first[:, :2])
    other = task_of("vision/swav_clipart_debug", *words)
    other.restore(task.state())
    torch.testing.assert_close(other.method.state()["queue"], queue)


def test_swav_is_the_same_with_activations_computed_again():
    found = []
    for again in ("false", "true"):
        task = task_of("vision/swav_clipart_debug", f"backbone.checkpointing={again}")
        loss, _ = task.method.loss(task.model, views_of(task), 5, 0)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in task.model.parameters())])
        # Statistics of normalisation too, which a second pass over the same crops would move twice.
        found[-1] += list(task.model.buffers())
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_dinos_loss_is_over_all_pairs_and_its_centre_follows():
    task = task_of("vision/dino_clipart_debug", "method.center_momentum=0.75")
    views = views_of(task)
    method = task.method
    method._center = torch.linspace(-0.1, 0.1, 64)
    before = method._center.clone()
    loss, _ = method.loss(task.model, views, 0, 0)
    student = (
        task.model([_seen(views["large"]), _seen(views["small"])]).detach().unflatten(0, (4, 6))
    )
    teacher = method.target([_seen(views["large"])]).unflatten(0, (2, 6))
    pairs = []
    for t in range(2):
        target = ((teacher[t] - before) / 0.04).softmax(1)
        others = [student[s] for s in range(4) if s != t]
        pairs += [-(target * (view / 0.1).log_softmax(1)).sum(1).mean() for view in others]
    assert len(pairs) == 6
    assert float(loss.detach()) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)
    expected = 0.75 * before + 0.25 * teacher.flatten(0, 1).mean(0)
    torch.testing.assert_close(method._center, expected)


def test_dinos_schedules_worked_by_hand():
    words = ["method.first_target_temperature=0.02", "method.target_warmup_epochs=1",
             "training.batch=847", "training.epochs=4", "method.momentum=0.9"]  # fmt: skip
    task = task_of("vision/dino_clipart_debug", *words)
    temperatures = [task.method.target_temperature(step) for step in (0, 2, 5, 9)]
    assert temperatures == pytest.approx([0.02, 0.028, 0.04, 0.04])
    # Half a cosine over 20 updates: in the middle half of the way to 1 is done.
    assert [task.method.momentum(s) for s in (0, 10, 20)] == pytest.approx([0.9, 0.95, 1.0])
    for step, stays in ((4, True), (5, False)):
        task.model.prototypes.grad = torch.ones_like(task.model.prototypes)
        task.method.before_update(step)
        assert (task.model.prototypes.grad is None) == stays


def test_nt_xent_worked_by_hand():
    """Two images whose views lie at 0, 10 and at 90, 100 degrees; τ 0.5."""
    angles = torch.tensor([0.0, 90.0, 10.0, 100.0]) * math.pi / 180
    z = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [2.0], [3.0], [0.5]])
    cosines = [[math.cos(a - b) for b in angles.tolist()] for a in angles.tolist()]
    partner = [2, 3, 0, 1]
    losses = []
    for i in range(4):
        others = [math.exp(cosines[i][j] / 0.5) for j in range(4) if j != i]
        losses.append(-math.log(math.exp(cosines[i][partner[i]] / 0.5) / sum(others)))
    found = contrast(z[:2], z[2:], 0.5)
    assert float(found) == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_variance_and_covariance_worked_by_hand():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.5], [0.0, -0.5]])
    # Unbiased variances 2/3 and 1/6, no covariance.
    spread = [math.sqrt(2 / 3 + 1e-4), math.sqrt(1 / 6 + 1e-4)]
    assert float(lack_of_variance(x)) == pytest.approx(1 - sum(spread) / 2, rel=1e-5)
    assert float(covariance(x)) == pytest.approx(0.0, abs=1e-7)
    y = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    # The covariance of both dimensions is (1·2 + 1·2) / 1 = 4; twice its square over d = 2.
    assert float(covariance(y)) == pytest.approx(16.0)


def test_vicreg_weighs_its_three_parts():
    task = task_of("vision/vicreg_clipart_debug")
    loss, metrics = task.method.loss(task.model, views_of(task), 0, 0)
    parts = [float(metrics[f"learner/{n}"]) for n in ("invariance", "variance", "covariance")]
    assert float(loss.detach()) == pytest.approx(25 * parts[0] + 25 * parts[1] + parts[2], rel=1e-5)


def test_patches_are_cut_row_by_row():
    image = torch.arange(3 * 4 * 6.0).reshape(1, 3, 4, 6)
    found = pixels_of_patches(image, 2)
    assert found.shape == (1, 6, 12)
    # The second patch of the first row of patches, all its channels.
    expected = image[0, :, 0:2, 2:4].reshape(-1)
    torch.testing.assert_close(found[0, 1], expected)
    torch.testing.assert_close(found[0, 3], image[0, :, 2:4, 0:2].reshape(-1))


def test_a_masked_autoencoder_paints_what_it_has_not_seen():
    task = task_of("vision/mae_clipart_debug", "method.normalised=false", "training.batch=6")
    views, model = views_of(task), task.model
    seen = {}

    def keep(module, inputs):
        seen["order"], seen["kept"] = inputs[1], inputs[2]

    hook = model.register_forward_pre_hook(keep)
    loss, _ = task.method.loss(model, views, 0, 0)
    hook.remove()
    assert seen["kept"] == 4  # a quarter of 16 patches
    images, order = views["large"][:, 0], seen["order"]
    painted = model(images, order, 4)
    errors = []
    for i in range(6):
        for place, patch in enumerate(order[i, 4:].tolist()):
            row, column = divmod(patch, 4)
            pixels = images[i, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(-1)
            errors.append((painted[i, place] - pixels).square().mean())
    assert float(loss.detach()) == pytest.approx(
        float(torch.stack(errors).mean().detach()), rel=1e-5
    )
    # What is hidden does not reach the encoder.
    changed = images.clone()
    row, column = divmod(int(order[0, 5]), 4)
    changed[0, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 3
    torch.testing.assert_close(model(changed, order, 4), painted)


def test_shares_of_classes_are_spread_over_their_prototypes():
    prior = prior_of(PriorConfig(kind="shares", shares=(0.7, 0.2, 0.1)), 6)
    torch.testing.assert_close(prior, torch.tensor([0.35, 0.1, 0.05, 0.35, 0.1, 0.05]))
    uneven = prior_of(PriorConfig(kind="shares", shares=(0.7, 0.3)), 3)
    torch.testing.assert_close(uneven, torch.tensor([0.35, 0.3, 0.35]))


@pytest.mark.parametrize("name", ["swav", "dino", "simclr", "vicreg", "mae", "msn"])
def test_every_parameter_that_learns_has_a_gradient_and_targets_have_none(name):
    task = task_of(f"vision/{name}_clipart_debug", "training.batch=6")
    task.method.loss(task.model, views_of(task), 10**6, 0)[0].backward()
    missing = [n for n, p in task.model.named_parameters() if p.grad is None]
    # A masked autoencoder's encoder gives its tokens alone; all of them are used.
    assert missing == []
    for target in task.companions:
        assert all(p.grad is None for p in target.parameters())
    scores = task.method.scores(views_of(task)["large"][:, 0])
    assert (scores is None) == (name in ("simclr", "vicreg", "mae"))
    assert scores is None or scores.shape[0] == 6


def test_cosines_are_those_of_torch():
    from farreach_workloads.vision.selfsup.assignments import cosines

    z, q = torch.randn(5, 8), torch.randn(3, 8)
    expected = F.cosine_similarity(z[:, None], q[None], dim=2)
    torch.testing.assert_close(cosines(z, q), expected)


@pytest.mark.parametrize("name", ["msn", "pmsn", "swav", "dino", "simclr", "vicreg", "mae"])
def test_methods_learn_in_bfloat16(name):
    found = []
    for reduced in (False, True):
        task = task_of(f"vision/{name}_clipart_debug", "training.batch=6")
        views = views_of(task)
        with torch.autocast("cpu", torch.bfloat16, reduced):
            for step in range(2):  # the second one uses what the first has left behind
                loss, _ = task.method.loss(task.model, views, step, 0)
        loss.backward()
        assert loss.dtype == torch.float32
        kept = task.method.state().values()
        assert {x.dtype for x in kept if isinstance(x, torch.Tensor)} <= {torch.float32}
        found.append(float(loss.detach()))
    assert found[1] == pytest.approx(found[0], rel=0.03)


def test_losses_are_as_precise_under_autocast():
    torch.manual_seed(0)
    one, other = torch.randn(6, 16), torch.randn(9, 16)

    def computed():
        yield cosines(one, other)
        yield contrast(one, other[:6], 0.1)
        yield covariance(one)
        yield divergence(cosines(one, other), 0.1, power_law(9, 0.5))

    expected = list(computed())
    with torch.autocast("cpu", torch.bfloat16):
        for found, exact in zip(computed(), expected, strict=True):
            assert found.dtype == torch.float32
            assert torch.equal(found, exact)
