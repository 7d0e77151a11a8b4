"""From four maps of features to a class for every pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach_workloads.vision.dense.config import STRIDES

FPN_HEAD_WIDTH = 128
AUXILIARY_WIDTH = 256
AUXILIARY_LEVEL = 2
POOLS = (1, 2, 3, 6)
DROPOUT = 0.1


class FpnHead(nn.Module):
    """Semantic FPN (arXiv:1901.02446): all levels, grown to stride 4, are added up."""

    def __init__(self, widths: list[int], width: int, classes: int) -> None:
        """Of maps with `widths` channels, by way of a pyramid of `width`."""
        super().__init__()
        self.laterals = nn.ModuleList([nn.Conv2d(w, width, 1) for w in widths])
        self.outputs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in widths])
        self.scales = nn.ModuleList()
        for level in range(len(widths)):
            layers: list[nn.Module] = []
            for number in range(max(1, level)):
                layers.append(_convolution(width if not number else FPN_HEAD_WIDTH, FPN_HEAD_WIDTH))
                if level:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.scales.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(FPN_HEAD_WIDTH, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps of strides 4 to 32 → logits (b, classes, h / 4, w / 4)."""
        merged = _top_down([lateral(m) for lateral, m in zip(self.laterals, maps, strict=True)])
        levels = [output(m) for output, m in zip(self.outputs, merged, strict=True)]
        grown = [scale(m) for scale, m in zip(self.scales, levels, strict=True)]
        logits: Tensor = self.classifier(self.dropout(torch.stack(grown).sum(0)))
        return logits


class UperHead(nn.Module):
    """UperNet (arXiv:1807.10221): pooled context for the coarsest level, then a pyramid."""

    def __init__(self, widths: list[int], width: int, classes: int) -> None:
        """Of maps with `widths` channels, by way of a pyramid of `width`."""
        super().__init__()
        self.pools = nn.ModuleList(
            [nn.Sequential(nn.AdaptiveAvgPool2d(p), *_layers(widths[-1], width, 1)) for p in POOLS]
        )
        self.bottleneck = _convolution(widths[-1] + len(POOLS) * width, width)
        self.laterals = nn.ModuleList([_convolution(w, width, 1) for w in widths[:-1]])
        self.outputs = nn.ModuleList([_convolution(width, width) for _ in widths[:-1]])
        self.fusion = _convolution(len(widths) * width, width)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps of strides 4 to 32 → logits (b, classes, h / 4, w / 4)."""
        last = maps[-1]
        pooled = [_grown(pool(last), last) for pool in self.pools]
        context = self.bottleneck(torch.cat([last, *pooled], 1))
        finer = [lateral(m) for lateral, m in zip(self.laterals, maps[:-1], strict=True)]
        merged = _top_down([*finer, context], mode="bilinear")
        levels = [output(m) for output, m in zip(self.outputs, merged[:-1], strict=True)]
        fused = torch.cat([_grown(m, levels[0]) for m in (*levels, context)], 1)
        logits: Tensor = self.classifier(self.dropout(self.fusion(fused)))
        return logits


class AuxiliaryHead(nn.Module):
    """A small head on the level of stride 16, whose loss helps the backbone while it trains."""

    def __init__(self, widths: list[int], classes: int) -> None:
        """Of maps with `widths` channels."""
        super().__init__()
        self.convolution = _convolution(widths[AUXILIARY_LEVEL], AUXILIARY_WIDTH)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(AUXILIARY_WIDTH, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps of strides 4 to 32 → logits (b, classes, h / 16, w / 16)."""
        logits: Tensor = self.classifier(self.dropout(self.convolution(maps[AUXILIARY_LEVEL])))
        return logits


def _top_down(maps: list[Tensor], mode: str = "nearest") -> list[Tensor]:
    """Each level with all coarser ones added to it, from fine to coarse."""
    assert len(maps) == len(STRIDES)
    merged = [maps[-1]]
    for finer in reversed(maps[:-1]):
        merged.append(finer + _grown(merged[-1], finer, mode))
    return merged[::-1]


def _grown(coarse: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    corners = None if mode == "nearest" else False
    return F.interpolate(coarse, like.shape[2:], mode=mode, align_corners=corners)


def _layers(before: int, after: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]


def _convolution(before: int, after: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(*_layers(before, after, kernel))
