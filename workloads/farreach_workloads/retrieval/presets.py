"""What the paper's runs were, and in what a run differs from them."""

from __future__ import annotations

from collections.abc import Mapping

from farreach.config import differences as all_differences
from farreach_workloads.retrieval.config import (
    RetrievalConfig,
    RetrievalLoopConfig,
    TextConfig,
)
from farreach_workloads.retrieval.contrast import MocoConfig
from farreach_workloads.retrieval.encoder import EncoderConfig
from farreach_workloads.retrieval.spans import SpansConfig

# Sections and keys that make the method; the others say where text is and how often to look.
_OF_THE_METHOD = (
    "mix.",
    "spans.",
    "encoder.",
    "contrast.",
    "optimizer.",
    "data.normalised",
    "training.batch",
    "training.epoch",
    "training.lr",
    "training.warmup",
    "training.min_lr",
    "training.schedule",
    "training.max_grad_norm",
    "training.precision",
)

_CONTRIEVER = RetrievalConfig(contrast=MocoConfig(masked=False))

PRESETS: Mapping[str, RetrievalConfig] = {
    # Section A.1: 500,000 updates of 2,048 pairs of English Wikipedia and CCNet.
    "contriever": _CONTRIEVER,
    # Section B.1: 29 languages; batches of 4,096, as its script says.
    "mcontriever": RetrievalConfig(
        data=TextConfig(normalised=True),
        encoder=EncoderConfig(),
        spans=SpansConfig(ratio=(0.1, 0.5), augmentation="none"),
        contrast=MocoConfig(queue=32_768, momentum=0.999, masked=False),
        training=RetrievalLoopConfig(batch=4096),
    ),
    # Section 6: 200,000 updates on Wikipedia, nothing deleted unless said.
    "ablation": RetrievalConfig(
        spans=SpansConfig(augmentation="none"),
        contrast=MocoConfig(masked=False),
        training=RetrievalLoopConfig(epochs=200),
    ),
}


def differences(config: RetrievalConfig) -> list[str]:
    """Lines `preset NAME: key: its value → ours`, of all that make the method; none without one."""
    if config.preset is None:
        return []
    found = [
        change
        for change in all_differences(PRESETS[config.preset], config)
        if change.startswith(_OF_THE_METHOD)
    ]
    return [f"differs from {config.preset}: {change}" for change in found]
