"""ResMLP against timm's, with the same weights.

`python benchmarks/resmlp.py` prints one JSON line per row; `gap` is the largest difference of the
logits in units of the largest logit.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil

import backbones
import measure
import timm
import torch

import farreach_workloads.vision.backbones

BATCH = 8


def main() -> None:
    """Print all rows."""
    measure.rows_asked(__doc__)
    assert farreach_workloads.vision.backbones.resmlp  # importing it registers the models
    peer = backbones.scatter(timm.create_model("resmlp_12_224"))
    ours = timm.create_model("resmlp_s12")
    ours.load_state_dict(peer.state_dict())
    x = backbones.images(BATCH)
    folded = ours.fold()
    ours_s, folded_s, peer_s = measure.medians(
        [backbones.inference(model, x) for model in (ours, folded, peer)], 5
    )
    gap = backbones.gap(folded, peer, x[:2])
    rates = [BATCH / seconds for seconds in (folded_s, peer_s, ours_s)]
    measure.row(
        "folded",
        rates[0],
        rates[1],
        backbones.UNIT,
        rates[0] / rates[1],
        unfolded_ratio=round(rates[2] / rates[1], 3),
        gap=round(gap, 9),
    )
    if shutil.which("g++") or shutil.which("clang++"):
        compiled = torch.compile(folded)
        compiled_s, after_s = measure.medians(
            [backbones.inference(model, x) for model in (compiled, peer)], 5
        )
        # Compiling leaves the process's memory such that the peer no longer asks the system for
        # 60,000 pages with every batch, as it does by itself.
        measure.row(
            "compiled",
            BATCH / compiled_s,
            rates[1],
            backbones.UNIT,
            peer_s / compiled_s,
            over_the_peer_afterwards=round(after_s / compiled_s, 3),
        )
    backbones.compare("train", "train", ours, peer, BATCH)
    backbones.compare_precision("bf16", ours, BATCH)


if __name__ == "__main__":
    main()
