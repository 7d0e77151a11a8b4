"""Losses of supervised training, and of two submodels that teach each other.

Source: cosub, arXiv:2212.04884; the recipes it stands on are those of DeiT III, arXiv:2204.07118.
"""

from __future__ import annotations

import statistics
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach_workloads.vision.stochastic_depth import StochasticDepth

Kind = Literal["bce", "ce"]


def classification_loss(logits: Tensor, target: Tensor, kind: Kind) -> Tensor:
    """Mean loss of soft targets; linear in the target.

    Args:
        logits: (b, k).
        target: (b, k) in [0, 1].
        kind: `ce`: mean over b of -Σ y log softmax(o); `bce`: over b and k of softplus(o) - y o.

    Returns:
        ().
    """
    if kind == "ce":
        return F.cross_entropy(logits, target.to(logits.dtype))
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def soft_distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(t / T) ‖ softmax(o / T)), divided by b and by k.

    Args:
        logits: o, (b, k).
        teacher: t, (b, k).
        temperature: T.

    Returns:
        ().

    Source: arXiv:2012.12877, section 4, and its code, for the divisor.
    """
    own = (logits / temperature).log_softmax(dim=1)
    taught = (teacher / temperature).log_softmax(dim=1)
    divergence = F.kl_div(own, taught, reduction="sum", log_target=True)
    return divergence * temperature**2 / logits.numel()


def mutual_loss(first: Tensor, second: Tensor, target: Tensor, weight: float, kind: Kind) -> Tensor:
    """½ Σ [(1 - λ) ℓ(o_i, y) + λ ℓ(o_i, sg q(o_j))]: each learns from the label and from the other.

    As ℓ is linear in the target, that is one loss per submodel on a mixed target.

    Args:
        first: logits of one submodel, (b, k).
        second: of the other.
        target: y, (b, k).
        weight: λ.
        kind: `bce` (q is the sigmoid) or `ce` (the softmax).

    Returns:
        ().

    Source: arXiv:2212.04884, section 3.
    """
    total = first.new_zeros(())
    for own, other in ((first, second), (second, first)):
        mixed = (1.0 - weight) * target + weight * answers(other, kind)
        total = total + 0.5 * classification_loss(own.float(), mixed, kind)
    return total


def answers(logits: Tensor, kind: Kind) -> Tensor:
    """What a submodel teaches, without a gradient: sigmoid (bce) or softmax, (b, k) float32."""
    taught = logits.detach().float()
    return taught.sigmoid() if kind == "bce" else taught.softmax(dim=1)


def self_distillation_loss(
    model: nn.Module,
    depth: StochasticDepth,
    images: Tensor,
    target: Tensor,
    weight: float = 0.5,
    kind: Kind = "bce",
) -> tuple[Tensor, dict[str, Tensor]]:
    """One submodel learns from the label and from the whole network: what cosub is compared with.

    Args:
        model: with stochastic depth installed.
        depth: that stochastic depth; the pass that teaches keeps every branch.
        images: (b, 3, height, width), mixed already.
        target: (b, k).
        weight: λ, of what the whole network teaches.
        kind: of loss.

    Returns:
        The loss (), and metrics, see `_told`.
    """
    with torch.no_grad(), depth.whole():
        taught = model(images)
    own = model(images)
    mixed = (1.0 - weight) * target + weight * answers(taught, kind)
    loss = classification_loss(own.float(), mixed, kind)
    return loss, _told(depth, [(own, taught)], target, kind)


def cosub_loss(
    model: nn.Module,
    depth: StochasticDepth,
    images: Tensor,
    target: Tensor,
    weight: float = 0.5,
    kind: Kind = "bce",
) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward pass of both submodels of each image.

    Args:
        model: with stochastic depth installed.
        depth: that stochastic depth; its two halves then keep as many rows each.
        images: (b, 3, height, width), mixed already: both submodels see the same.
        target: (b, k).
        weight: λ, of what they teach each other.
        kind: of loss.

    Returns:
        The loss (), and metrics, see `_told`.

    Raises:
        ValueError: nothing is dropped, so that both submodels are the same.
    """
    if not any(depth.rates):
        raise ValueError(
            "cosub: every branch is kept, so both submodels are the whole model and have nothing "
            "to teach. Set a drop rate above 0."
        )
    depth.halves = 2
    logits = model(torch.cat([images, images]))
    first, second = logits.chunk(2)
    loss = mutual_loss(first, second, target, weight, kind)
    return loss, _told(depth, [(first, second), (second, first)], target, kind)


@torch.no_grad()
def _told(
    depth: StochasticDepth, pairs: list[tuple[Tensor, Tensor]], target: Tensor, kind: Kind
) -> dict[str, Tensor]:
    """What pairs of logits, of who learns and of who teaches, say of both parts of the loss.

    Returns:
        `learner/label_loss` and `learner/mutual_loss`, before they are weighted;
        `learner/disagreement`: how often the two name different classes; and
        `learner/dropped_share`: of the rows of all branches. Each ().
    """
    assert depth.plan is not None
    dropped = target.new_tensor(statistics.fmean(depth.plan.realised()))
    learners = torch.cat([own.float() for own, _ in pairs])
    teachers = torch.cat([other for _, other in pairs])
    labels = target.repeat(len(pairs), 1)
    return {
        "learner/label_loss": classification_loss(learners, labels, kind),
        "learner/mutual_loss": classification_loss(learners, answers(teachers, kind), kind),
        "learner/disagreement": (learners.argmax(1) != teachers.argmax(1)).float().mean(),
        "learner/dropped_share": dropped,
    }
