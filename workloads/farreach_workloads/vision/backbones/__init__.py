"""Backbones; importing this registers them with timm."""

from farreach_workloads.vision.backbones import patchconvnet, resmlp, xcit

FAMILIES = (xcit, resmlp, patchconvnet)
