"""PatchConvNet against a plain implementation of the paper's description, with the same weights.

The peer's one-pixel convolutions are convolutions, and its pooling computes keys and values of all
patches, for every image and query. `python benchmarks/patchconvnet.py` prints one JSON line per
row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy

import backbones
import measure
import timm
import torch
from timm.layers import SqueezeExcite
from torch import Tensor, nn
from torch.nn import functional as F

import farreach_workloads.vision.backbones

BATCH = 4


class PlainBlock(nn.Module):
    """One block of the column on images (b, c, rows, columns)."""

    def __init__(self, dim: int, drop_path: nn.Module) -> None:
        """For a width of `dim`; `drop_path` follows the branch."""
        super().__init__()
        self.drop_path = copy.deepcopy(drop_path)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.qkv_pos = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            SqueezeExcite(dim, rd_ratio=0.25),
            nn.Conv2d(dim, dim, 1),
        )
        self.gamma_1 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) → the same; n is a square."""
        batch, count, dim = x.shape
        side = round(count**0.5)
        image = self.norm1(x).transpose(1, 2).reshape(batch, dim, side, side)
        branch = self.qkv_pos(image).reshape(batch, dim, count).transpose(1, 2)
        return x + self.drop_path(self.gamma_1 * branch)


class Plain(nn.Module):
    """The whole network; stem, pooling parameters and head are copies of ours."""

    def __init__(self, ours: nn.Module) -> None:
        """With the weights of `ours`."""
        super().__init__()
        self.own = copy.deepcopy(ours)
        for part in self.own.modules():
            if isinstance(part, nn.Linear):
                part.__class__ = nn.Linear
        self.blocks = nn.ModuleList(
            PlainBlock(ours.embed_dim, block.drop_path) for block in ours.blocks
        )
        del self.own.blocks
        names = {"attn.": "", "conv_reduce": "fc1", "conv_expand": "fc2"}
        for mine, theirs in zip(self.blocks, ours.blocks, strict=True):
            state = theirs.state_dict()
            for old, new in names.items():
                state = {key.replace(old, new): value for key, value in state.items()}
            mine.load_state_dict(state)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, height, width) → (b, classes)."""
        own = self.own
        pool = own.blocks_token_only[0]
        x = own.patch_embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        queries = own.cls_token.expand(len(x), -1, -1)
        rows = pool.norm1(torch.cat([queries, x], dim=1))
        query = pool.attn.q(rows[:, : queries.shape[1]])
        if own.multi_class:
            rows = rows[:, queries.shape[1] :]
        scores = pool.attn.scale * query @ pool.attn.k(rows).transpose(1, 2)
        pooled = pool.attn.proj(scores.softmax(dim=-1) @ pool.attn.v(rows))
        rows = queries + pool.gamma_1 * pooled
        hidden = F.gelu(pool.mlp.fc1(pool.norm2(rows)))
        rows = own.norm(rows + pool.gamma_2 * pool.mlp.fc2(hidden))
        if not own.multi_class:
            return own.head(rows[:, 0])
        weight, bias = own.head.weight, own.head.bias
        heads = [rows[:, k] @ weight[k] + bias[k] for k in range(len(weight))]
        return torch.stack(heads, dim=1)


def main() -> None:
    """Print all rows."""
    measure.rows_asked(__doc__)
    assert farreach_workloads.vision.backbones.patchconvnet  # importing it registers the models
    for name in ("s60", "s60_multi"):
        ours = backbones.scatter(timm.create_model(f"patchconvnet_{name}"))
        backbones.compare(name, "infer", ours, Plain(ours), BATCH)
    backbones.compare_precision("s60_bf16", timm.create_model("patchconvnet_s60"), BATCH)


if __name__ == "__main__":
    main()
