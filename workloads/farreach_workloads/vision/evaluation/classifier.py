"""A trained classifier as evaluations of features want it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from farreach_workloads.vision.evaluation.features import Kind

# Layers from the last one on that may be looked at.
DEPTHS = 4


class Classifier(nn.Module):
    """A model of timm with its head; see `features.SeesImages`."""

    def __init__(self, model: Any) -> None:
        """Take over a model."""
        super().__init__()
        self.model: Any = model

    def seen(self, images: Tensor, kinds: Sequence[Kind]) -> dict[str, Tensor]:
        """`raw` features are those before the head as well."""
        found: dict[str, Tensor] = {}
        for kind in kinds:
            if kind == "logits":
                found[kind] = self.model(images)
            elif kind in ("normal", "raw"):
                x = self.model.forward_features(images)
                found[kind] = self.model.forward_head(x, pre_logits=True)
            else:
                found |= layers_of(self.model, images, kind)
        return found


def layers_of(model: Any, images: Tensor, kind: Kind) -> dict[str, Tensor]:
    """`layers` of any model of timm, pooled (b, d), or one of its last `map`s (b, d, h, w)."""
    depth = min(DEPTHS, len(model.feature_info))
    maps = model.forward_intermediates(
        images, indices=depth, intermediates_only=True, output_fmt="NCHW"
    )
    if kind in ("map", "earlier map"):
        return {kind: maps[-1 if kind == "map" else -2]}
    return {f"layer {number}": one.mean((2, 3)) for number, one in enumerate(maps, 1)}
