"""A train step with stochastic depth that skips what it drops, against DropPath at the same rate.

One model of each of eight block families; the ratio is of the times, so smaller is better, and
`saved_ratio` is that of the bytes kept for the backward pass.
`python benchmarks/stochastic_depth.py [FAMILY …]` prints one JSON line per row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")


import backbones
import measure
import timm
from timm.layers import DropPath

import farreach_workloads.vision.backbones
from farreach_workloads.vision.bench import saved_bytes
from farreach_workloads.vision.stochastic_depth import install

# A small one of each family, and how many images.
MODELS = {
    "vit": ("vit_tiny_patch16_224", 8),
    "pit": ("pit_ti_224", 8),
    "xcit": ("xcit_tiny_12_p16", 8),
    "swin": ("swin_tiny_patch4_window7_224", 4),
    "convnext": ("convnext_atto", 8),
    "regnety": ("regnety_004", 16),
    "resmlp": ("resmlp_s12", 8),
    "patchconvnet": ("patchconvnet_s60", 8),
}


def main() -> None:
    """Print the rows of the families named, or of all."""
    assert farreach_workloads.vision.backbones.xcit  # importing it registers the models
    for family in measure.rows_asked(__doc__, list(MODELS)):
        model_name, batch = MODELS[family]
        x = backbones.images(batch)
        for label, rate in (("p50", 0.5), ("p10", 0.1)):
            peer = timm.create_model(model_name, drop_path_rate=rate).train()
            for part in peer.modules():
                if isinstance(part, DropPath):
                    part.drop_prob = rate  # constant over depth, as ours
            ours = timm.create_model(model_name).train()
            ours.load_state_dict(peer.state_dict())
            install(ours, rate)
            memory = saved_bytes(ours, x) / saved_bytes(peer, x)
            ours_s, peer_s = measure.medians(
                [backbones.train_step(model, x) for model in (ours, peer)], 3
            )
            unit = "CPU seconds per step"
            ratio = ours_s / peer_s
            name = f"{family}_{label}"
            measure.row(name, ours_s, peer_s, unit, ratio, saved_ratio=round(memory, 3))


if __name__ == "__main__":
    main()
