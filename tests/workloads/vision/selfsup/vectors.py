"""MSN on vectors whose classes are known: a stand-in for images that takes seconds.

A sample is the centre of its class in 16 dimensions, and 4 dimensions that have nothing to do with
it but are the same in all of its views; views add noise and leave dimensions out.
"""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from farreach.learn.momentum import follow
from farreach_workloads.vision.selfsup import assignments

CLASSES, WIDTH, NUISANCE = 10, 16, 4
TAU, TARGET_TAU = 0.1, 0.025


def views_of(centres, labels, nuisance, generator, noise=0.5, dropped=0.2):
    rows = torch.cat([centres[labels], nuisance], 1)
    rows = rows + noise * torch.randn(rows.shape, generator=generator)
    return rows * (torch.rand(rows.shape, generator=generator) > dropped)


def trained(
    seed, *, classes_per_batch=CLASSES, shares=None, exponent=0.0, prototypes=10, steps=1200
):
    """What prototypes tell of classes on balanced samples, and how they are used.

    Args:
        seed: of everything.
        classes_per_batch: of which a batch has samples; the classes come as often as one another.
        shares: of the classes in training, (10,); None: all alike.
        exponent: of the prior.
        prototypes: how many.
        steps: updates.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    body = [nn.Linear(WIDTH + NUISANCE, 128), nn.BatchNorm1d(128), nn.ReLU()]
    body += [nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 16)]
    student = nn.Sequential(*body)
    target = copy.deepcopy(student).requires_grad_(False)
    centroids = nn.Parameter(torch.empty(prototypes, 16).uniform_(-0.25, 0.25))
    optimizer = torch.optim.AdamW([*student.parameters(), centroids], lr=2e-3, weight_decay=1e-4)
    prior = assignments.power_law(prototypes, exponent)
    weights = torch.ones(CLASSES) if shares is None else torch.tensor(shares)
    for _ in range(steps):
        some = torch.randperm(CLASSES, generator=generator)[:classes_per_batch]
        chosen = torch.multinomial(weights[some], 256, replacement=True, generator=generator)
        labels = some[chosen]
        nuisance = 2 * torch.randn(256, NUISANCE, generator=generator)
        one, other = (views_of(centres, labels, nuisance, generator) for _ in range(2))
        logits = assignments.cosines(student(one), centroids)
        with torch.no_grad():
            reached = assignments.cosines(target(other), centroids)
            wanted = assignments.targets(reached, TARGET_TAU)
        spread = assignments.divergence(logits, TAU, prior)
        loss = assignments.cross_entropy(wanted, logits, TAU) + 5 * spread
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow(target, student, 0.99)
    return judged(target.eval(), centres, centroids, generator) | {
        "divergence": float(spread.detach()),
        "loss": float(loss.detach()),
    }


@torch.no_grad()
def judged(target, centres, prototypes, generator):
    labels = torch.arange(CLASSES).repeat(300)
    nuisance = 2 * torch.randn(len(labels), NUISANCE, generator=generator)
    rows = torch.cat([centres[labels], nuisance], 1)
    rows = rows + 0.5 * torch.randn(rows.shape, generator=generator)
    named = (F.normalize(target(rows), dim=1) @ F.normalize(prototypes, dim=1).t()).argmax(1)
    table = np.zeros((len(prototypes), CLASSES))
    np.add.at(table, (named.numpy(), labels.numpy()), 1 / len(labels))
    independent = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
    found = table > 0
    information = float((table[found] * np.log(table[found] / independent[found])).sum())
    return {
        "score": float(information / np.log(CLASSES)),
        "used": int((table.sum(1) > 0.002).sum()),
    }
