"""Feature maps of strides 4, 8, 16 and 32 from any backbone.

A backbone with stages gives its own. One whose tokens keep their number gives those after a third,
a half, two thirds and all of its blocks, brought to the four strides as XCiT does it
(arXiv:2106.09681, code of its detection and segmentation).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.errors import ConfigError
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.dense.config import STRIDES
from farreach_workloads.vision.models import make_model


class Pyramid(nn.Module):
    """A backbone and its adapters.

    Attributes:
        widths: channels of the four maps.
        frozen: whether the backbone does not learn.
    """

    def __init__(self, backbone: BackboneConfig, size: int, frozen: bool = False) -> None:
        """Make it, with the backbone's weights if it names a file.

        Args:
            backbone: any model of timm that can give its intermediate maps.
            size: side of the images, for models that take one size alone.
            frozen: whether the backbone stays as it begins, statistics included.

        Raises:
            ConfigError: the model does not exist, cannot give maps, or does not take the size.
        """
        super().__init__()
        model: Any = make_model(backbone, size, 0)
        if not hasattr(model, "forward_intermediates") or not hasattr(model, "feature_info"):
            raise _no_maps(backbone, "timm has no way to its intermediate layers")
        strides = [int(info["reduction"]) for info in _infos(model)]
        channels = [int(info["num_chs"]) for info in _infos(model)]
        self.backbone, self.frozen = model, frozen
        if frozen:
            model.requires_grad_(False)
        self._taken = taken_blocks(strides)
        self._order = sorted(set(self._taken))
        model.prune_intermediate_layers(self._order, prune_norm=True, prune_head=True)
        self.widths = [channels[index] for index in self._taken]
        self.adapters = nn.ModuleList(
            [
                adapter(strides[index], stride, channels[index])
                for index, stride in zip(self._taken, STRIDES, strict=True)
            ]
        )
        try:
            with torch.no_grad():
                self.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
            raise _no_maps(backbone, str(error)) from error
        self.train()

    def train(self, mode: bool = True) -> Pyramid:
        """As of any module; a frozen backbone drops nothing and keeps its statistics."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(b, 3, h, w), h and w multiples of 32 → four times (b, width, h / stride, w / stride)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = self.backbone.forward_intermediates(
                images, indices=self._order, output_fmt="NCHW", intermediates_only=True
            )
        by_index = dict(zip(self._order, found, strict=True))
        maps = []
        for index, stride, adapt in zip(self._taken, STRIDES, self.adapters, strict=True):
            adapted = adapt(by_index[index])
            wanted = (images.shape[2] // stride, images.shape[3] // stride)
            if adapted.shape[2:] != wanted:  # a backbone with a stride of its own, such as PiT
                adapted = F.interpolate(adapted, wanted, mode="bilinear", align_corners=False)
            maps.append(adapted)
        return maps


def taken_blocks(strides: list[int]) -> list[int]:
    """Which blocks the four maps come from, by the strides of all blocks."""
    if len(set(strides)) == 1:
        depth = len(strides)
        return [max(0, round(depth * share) - 1) for share in (1 / 3, 1 / 2, 2 / 3, 1)]
    taken = []
    for wanted in STRIDES:
        distance = [abs(math.log2(stride / wanted)) for stride in strides]
        # The last of those that are as near as any.
        taken.append(max(i for i, value in enumerate(distance) if value == min(distance)))
    return taken


def adapter(stride: int, wanted: int, width: int) -> nn.Module:
    """From one stride to another: transposed convolutions, nothing, or maximum pooling."""
    halvings = round(math.log2(stride / wanted))
    if halvings <= 0:
        return nn.MaxPool2d(2**-halvings) if halvings else nn.Identity()
    layers: list[nn.Module] = []
    for number in range(halvings):
        layers.append(nn.ConvTranspose2d(width, width, 2, 2))
        if number + 1 < halvings:
            layers += [nn.BatchNorm2d(width), nn.GELU()]
    return nn.Sequential(*layers)


def padded(images: Tensor) -> Tensor:
    """(b, 3, h, w) with zeros to the right and below, up to multiples of the largest stride."""
    height, width = images.shape[2:]
    below, right = -height % STRIDES[-1], -width % STRIDES[-1]
    return F.pad(images, (0, right, 0, below)) if below or right else images


def has_fixed_size(model: nn.Module) -> bool:
    """Whether a backbone takes images of one size alone."""
    with torch.no_grad():
        was_training = model.training
        model.eval()
        side = STRIDES[-1]
        try:
            for shape in ((2 * side, 3 * side), (5 * side, side)):
                model.forward_intermediates(  # type: ignore[operator]
                    torch.zeros(1, 3, *shape, device=next(model.parameters()).device),
                    intermediates_only=True,
                )
        except (AssertionError, RuntimeError, ValueError):
            return True
        finally:
            model.train(was_training)
    return False


def _no_maps(backbone: BackboneConfig, why: str) -> ConfigError:
    return ConfigError(
        f"backbone.name: {backbone.name} cannot give maps of features: {why}. Choose another, such "
        "as xcit_nano_12_p8."
    )


def _infos(model: Any) -> list[dict[str, Any]]:
    infos = model.feature_info
    return list(infos if isinstance(infos, list) else infos.info)
