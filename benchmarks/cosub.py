"""A step of two submodels that teach each other, against a plain step on the same images.

Both submodels of each image go through the network with half of the branches: as many
multiplications as the plain step, which drops nothing. The ratio is of the times: smaller is
better.
`python benchmarks/cosub.py` prints one JSON line.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy

import backbones
import measure
import timm
import torch
from torch.nn import functional as F

from farreach_workloads.vision.cosub import classification_loss, cosub_loss
from farreach_workloads.vision.stochastic_depth import install

BATCH = 8


def main() -> None:
    """Print the row."""
    measure.rows_asked(__doc__)
    plain = timm.create_model("vit_tiny_patch16_224").train()
    model = copy.deepcopy(plain)
    depth = install(model, 0.5)
    x = backbones.images(BATCH)
    target = F.one_hot(torch.arange(BATCH), 1000).float()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-4) for m in (model, plain)]

    def ours() -> None:
        optimizers[0].zero_grad()
        cosub_loss(model, depth, x, target)[0].backward()
        optimizers[0].step()

    def peer() -> None:
        optimizers[1].zero_grad()
        classification_loss(plain(x), target, "bce").backward()
        optimizers[1].step()

    seconds, peer_s = measure.medians([ours, peer], 7)
    measure.row("step", seconds, peer_s, "CPU seconds per step", seconds / peer_s, rate=0.5)


if __name__ == "__main__":
    main()
