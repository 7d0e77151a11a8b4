"""Signs of collapse in what an encoder computes."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(features: Tensor) -> float:
    """Exp of the entropy of the singular values' shares: RankMe, arXiv:2210.02885, section 2.

    Args:
        features: (n, d).
    """
    values = torch.linalg.svdvals(features.float())
    shares = values / values.sum() + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))
