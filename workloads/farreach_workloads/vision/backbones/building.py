"""Entry points in timm's registry."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn

# Weights as a file holds them, and the model that they are for → weights as the model names them.
Filter = Callable[[dict[str, Any], nn.Module], dict[str, Any]]


def register(
    module: str,
    name: str,
    cls: type[nn.Module],
    arguments: Mapping[str, Any],
    weights: Filter,
    out_indices: int | Sequence[int],
) -> None:
    """Make `timm.create_model(name)` build the class.

    Args:
        module: name of the module that calls; its `default_cfgs` says what timm should know.
        name: of the model.
        cls: its class.
        arguments: of the class, those of the user win.
        weights: see `Filter`.
        out_indices: features that `features_only` gives by default: so many of the last blocks, or
            these.
    """

    def create(pretrained: bool = False, **chosen: Any) -> nn.Module:
        indices = chosen.pop("out_indices", out_indices)
        model: nn.Module = build_model_with_cfg(
            cls,
            name,
            pretrained,
            pretrained_filter_fn=weights,
            feature_cfg={"out_indices": indices, "feature_cls": "getter"},
            **{**arguments, **chosen},
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__module__ = module
    create.__doc__ = f"{cls.__name__} of this size; see the module."
    setattr(sys.modules[module], name, create)
    register_model(create)
