"""The optimiser of a backbone with a head for dense prediction."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from farreach_workloads.vision.config import OptimizerConfig
from farreach_workloads.vision.dense.pyramid import Pyramid


def optimizer_of(
    model: nn.Module, pyramid: Pyramid, settings: OptimizerConfig, lr: float
) -> torch.optim.Optimizer:
    """timm's: of the backbone it decays what the backbone says, and above it all but vectors.

    With a layer decay the backbone's layers learn slower the deeper they lie, the last one by one
    factor than what is above it.

    Args:
        model: all that learns.
        pyramid: the part of it that has the backbone.
        settings: kind and rates.
        lr: of what lies above the backbone.
    """
    backbone, decay = pyramid.backbone, settings.weight_decay
    undecayed = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    groups: list[dict[str, Any]]
    if settings.layer_decay is None:
        groups = param_groups_weight_decay(backbone, decay, no_weight_decay_list=undecayed)
    else:
        groups = param_groups_layer_decay(
            backbone, decay, no_weight_decay_list=undecayed, layer_decay=settings.layer_decay
        )
        top = max((group["lr_scale"] for group in groups), default=1.0)
        for group in groups:
            group["lr_scale"] *= settings.layer_decay / top
    below = {id(parameter) for parameter in backbone.parameters()}
    above = [p for p in model.parameters() if p.requires_grad and id(p) not in below]
    groups += [
        {"params": [p for p in above if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in above if p.ndim > 1], "weight_decay": decay},
    ]
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        [group for group in groups if group["params"]],
        opt=settings.kind,
        lr=lr,
        weight_decay=decay,
    )
    return optimizer
