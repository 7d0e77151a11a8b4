"""What an encoder looks at: maps over its patches, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from farreach_workloads.vision import pictures
from farreach_workloads.vision.backbones.resmlp import Resmlp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 3


@torch.no_grad()
def maps_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Maps of what the model says it looks at; empty if it cannot say.

    Args:
        model: in evaluation mode. XCiT gives those of its class attention, PatchConvNet those of
            its pool, ResMLP the rows of its matrices, and timm's vision transformers those of the
            last block: of the class token, or of all patches on average where there is none.
        images: (b, 3, height, width).

    Returns:
        name → (b, maps, rows, columns).
    """
    own = getattr(model, "attention_maps", None)
    if own is not None:
        return dict(own(images))
    if isinstance(model, VisionTransformer):
        return _of_last_block(model, images)
    return {}


def draw(model: nn.Module, images: Tensor, logits: Tensor, classes: Sequence[str]) -> Figure | None:
    """A picture of the maps; None if the model has none.

    Args:
        model: in evaluation mode.
        images: (b, 3, height, width), normalised.
        logits: (b, k), by which the maps of a class each are chosen.
        classes: k names.
    """
    maps = maps_of(model, images)
    if not maps:
        return None
    if isinstance(model, Resmlp):
        return pictures.patch_weights({name: m[0] for name, m in maps.items()})
    chosen, names = by_class(maps, logits, classes)
    return pictures.attention(images, chosen, names)


def by_class(
    maps: dict[str, Tensor], logits: Tensor, classes: Sequence[str]
) -> tuple[dict[str, Tensor], list[list[str]]]:
    """Where there is a map for each class: those of the best classes, and their names per image."""
    pool = maps.get("pool")
    if pool is None or pool.shape[1] != len(classes):
        return maps, []
    best = logits.topk(min(MOST_CLASSES, len(classes))).indices
    chosen = torch.stack([m[b] for m, b in zip(pool, best, strict=True)])
    return {"pool": chosen}, [[classes[int(index)] for index in row] for row in best]


def _of_last_block(model: Any, images: Tensor) -> dict[str, Tensor]:
    attention: Any = getattr(model.blocks[-1], "attn", None)
    if not isinstance(attention, Attention):
        return {}
    seen: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        model.forward_features(images)
    finally:
        hook.remove()
    x = seen[0]  # (b, prefix + n, c)
    q, k, _ = attention.qkv(x).unflatten(2, (3, attention.num_heads, -1)).unbind(2)
    q, k = attention.q_norm(q.transpose(1, 2)), attention.k_norm(k.transpose(1, 2))
    weights = (attention.scale * q @ k.transpose(2, 3)).softmax(dim=3)  # (b, h, prefix + n, …)
    prefix = model.num_prefix_tokens
    rows = weights[:, :, 0] if model.has_class_token else weights[:, :, prefix:].mean(2)
    grid = model.patch_embed.dynamic_feat_size(images.shape[2:])
    return {"last_block": rows[:, :, prefix:].unflatten(2, grid)}
