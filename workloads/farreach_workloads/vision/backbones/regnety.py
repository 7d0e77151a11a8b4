"""Sizes of RegNetY (arXiv:2003.13678) that timm lacks; its class and its names of weights.

Source of the largest: SEER, arXiv:2202.08360, 10 billion parameters.
"""

from __future__ import annotations

from typing import Any

from timm.models._registry import generate_default_cfgs
from timm.models.regnet import RegNet, RegNetCfg
from torch import nn

from farreach_workloads.vision.backbones.building import register

SIZES = {
    "regnety_tiny": RegNetCfg(w0=24, wa=44.0, wm=2.4, group_size=8, depth=8, se_ratio=0.25),
    "regnety_10b": RegNetCfg(w0=1744, wa=620.83, wm=2.52, group_size=1010, depth=27, se_ratio=0.25),
}
default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "stem.conv",
            "classifier": "head.fc",
            "num_classes": 1000,
        }
        for name in SIZES
    }
)


def _as_they_are(weights: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    return weights


for _name, _size in SIZES.items():
    register(__name__, _name, RegNet, {"model_cfg": _size}, _as_they_are, (0, 1, 2, 3, 4))
