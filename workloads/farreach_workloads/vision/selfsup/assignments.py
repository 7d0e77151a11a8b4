"""Soft assignments of embeddings to prototypes, and the losses on them.

Sources: MSN, arXiv:2204.07141 (equations 1 and 2, and its code for the constant and Sinkhorn);
PMSN, arXiv:2210.07277.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from farreach.errors import ConfigError
from farreach.learn.collectives import largest, summed, total
from farreach_workloads.vision.selfsup.heads import product
from farreach_workloads.vision.selfsup.method_configs import PriorConfig


def cosines(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """⟨z / ‖z‖, q / ‖q‖⟩: (n, d) and (k, d) → (n, k) float32."""
    return product(F.normalize(embeddings.float(), dim=1), F.normalize(prototypes.float(), dim=1))


@torch.no_grad()
def targets(logits: Tensor, temperature: float) -> Tensor:
    """softmax(s / τ⁺): (n, k) → (n, k).

    Sharpening p ∝ exp(s / τ) to p^(1/T) is the softmax at τ T: one step, without underflow.
    """
    return (logits / temperature).softmax(dim=1)


@torch.no_grad()
def balanced(rows: Tensor, prior: Tensor, iterations: int = 3) -> Tensor:
    """Sinkhorn: assignments whose mean over all workers' rows comes near a prior.

    Args:
        rows: weights above 0, such as distributions over prototypes, (n, k).
        prior: (k,), sums to 1.
        iterations: each brings the mean to the prior, and then the rows to sums of 1.

    Returns:
        (n, k), rows sum to 1.
    """
    q = rows.float()
    q = q / total(q.sum())
    everyone = total(torch.tensor(float(len(q)), device=q.device))
    for _ in range(iterations):
        q = q * (prior / total(q.sum(0)).clamp(min=1e-30))
        q = q / q.sum(1, keepdim=True) / everyone
    return q * everyone


@torch.no_grad()
def codes(scores: Tensor, prior: Tensor, epsilon: float, iterations: int) -> Tensor:
    """SwAV's assignments: Sinkhorn from exp(s / ε) over the rows of all workers.

    Args:
        scores: s, (n, k), as many rows on every worker.
        prior: (k,), sums to 1.
        epsilon: ε.
        iterations: of Sinkhorn.

    Returns:
        (n, k), rows sum to 1.
    """
    scaled = scores.float() / epsilon
    # One number for all workers: what is taken from some rows alone would change the result.
    return balanced((scaled - largest(scaled)).exp(), prior, iterations)


def cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Mean over anchors of -Σ t log softmax(s / τ).

    Args:
        target: (b, k), of the images.
        logits: s, (views × b, k): all images of the first view, then of the second, …
        temperature: τ.

    Returns:
        ().
    """
    log_p = (logits / temperature).log_softmax(dim=1).unflatten(0, (-1, len(target)))
    return -(target * log_p).sum(2).mean()


def divergence(logits: Tensor, temperature: float, prior: Tensor) -> Tensor:
    """KL(p̄ ‖ π) of the mean assignment of all workers' anchors; with π uniform log K - H(p̄).

    Args:
        logits: s, (n, k).
        temperature: τ.
        prior: π, (k,).

    Returns:
        (), the same on all workers, with the gradient of the mean over all rows.
    """
    count = total(torch.tensor(float(len(logits)), device=logits.device))
    mean = summed((logits / temperature).softmax(dim=1).sum(0)) / count
    return (torch.xlogy(mean, mean) - mean * prior.log()).sum()


@torch.no_grad()
def use_of_prototypes(target: Tensor) -> dict[str, Tensor]:
    """How sure the assignments of this worker's images are, and how many prototypes all name.

    Args:
        target: (n, k), rows sum to 1.

    Returns:
        Metrics, each ().
    """
    named = torch.bincount(target.argmax(1), minlength=target.shape[1]).float()
    return {
        "learner/target_confidence": target.max(1).values.mean(),
        "learner/prototypes_used": (total(named) > 0).sum().float(),
    }


def prior_of(config: PriorConfig, count: int) -> Tensor:
    """π: (count,) float32, sums to 1; with classes' shares, prototype k belongs to class k mod C.

    Raises:
        ConfigError: there are fewer prototypes than classes.
    """
    if config.kind != "shares":
        return power_law(count, config.exponent if config.kind == "power" else 0.0)
    classes = len(config.shares)
    if count < classes:
        raise ConfigError(
            f"method.prior.shares: {classes} classes do not fit {count} prototypes. Raise "
            "method.prototypes."
        )
    shares = torch.tensor(config.shares, dtype=torch.float64)
    owners = torch.arange(count) % classes
    spread = shares[owners] / torch.bincount(owners)[owners]
    return (spread / spread.sum()).float()


def power_law(count: int, exponent: float) -> Tensor:
    """π_k ∝ k^(-α): (k,) float32, the first the largest; uniform with α 0."""
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    weights = ranks**-exponent
    return (weights / weights.sum()).float()


def constant_output_loss(prior: Tensor, sharpening: float) -> float:
    """The cross-entropy of a network whose every output is the prior: where training may collapse.

    Args:
        prior: π, (k,).
        sharpening: T = τ⁺ / τ; the target is then ∝ π^(1 / T).
    """
    target = (prior.double().log() / sharpening).softmax(0)
    return float(-(target * prior.double().log()).sum())
