"""Backbones; importing this registers them with timm."""

from farreach_workloads.vision.backbones import patchconvnet, regnety, resmlp, xcit

__all__ = ["FAMILIES", "regnety"]

# Of our own implementation; regnety is timm's.
FAMILIES = (xcit, resmlp, patchconvnet)
