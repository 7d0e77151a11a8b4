"""Attention of a few queries over many tokens, without keys and values of the tokens.

A query pushed through the key projection is compared with the tokens themselves, and what the
value projection makes of a weighted mean of tokens is the weighted mean of what it makes of them:
for h queries over N tokens of width C that is 2 N C h multiplications in place of 2 N C². The key's
bias raises all scores of a query alike and drops out; weights that sum to 1 keep the value's bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attend(
    query: Tensor,
    tokens: Tensor,
    key: nn.Linear,
    value: nn.Linear,
    drop_rate: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """softmax(query keyᵀ) value for keys and values that are linear in the tokens.

    Args:
        query: (b, h, q, d) or (1, h, q, d), scaled.
        tokens: (b, n, c).
        key: c → h × d.
        value: c → h × d.
        drop_rate: dropout of the weights.

    Returns:
        (b, h, q, d), and the weights (b, h, q, n).
    """
    heads, queries, dim = query.shape[1:]
    batch = query.shape[0]
    by_head = query.transpose(0, 1).flatten(1, 2)  # (h, b × q, d)
    pushed = torch.bmm(by_head, key.weight.view(heads, dim, -1))
    if queries == 1:
        pushed = pushed.transpose(0, 1)  # (b, h, c)
    else:
        pushed = pushed.unflatten(1, (batch, queries)).transpose(0, 1).flatten(1, 2)
    scores = torch.bmm(pushed.expand(tokens.shape[0], -1, -1), tokens.transpose(1, 2))
    weights = scores.softmax(dim=-1)
    kept = F.dropout(weights, drop_rate) if drop_rate > 0 else weights
    # An exported model takes any number of tokens: it cannot ask.
    if torch.compiler.is_exporting() or heads * queries <= tokens.shape[1]:
        mean = torch.bmm(kept, tokens)  # (b, h × q, c)
        if queries == 1:
            mean = mean.transpose(0, 1)  # (h, b, c)
        else:
            mean = mean.unflatten(1, (heads, queries)).transpose(0, 1).flatten(1, 2)
        result = torch.bmm(mean, value.weight.view(heads, dim, -1).transpose(1, 2))
        result = result.unflatten(1, (tokens.shape[0], queries)).transpose(0, 1)
    else:
        values = F.linear(tokens, value.weight).unflatten(2, (heads, dim)).transpose(1, 2)
        result = kept.unflatten(1, (heads, queries)) @ values
    if value.bias is not None:
        bias = value.bias.view(heads, 1, dim)
        if drop_rate > 0:  # what is left of the weights is no longer 1 in all
            bias = bias * kept.sum(dim=-1).unflatten(1, (heads, queries))[..., None]
        result = result + bias
    if key.bias is not None and torch.is_grad_enabled():
        # It has no influence, but every parameter gets a gradient: DDP counts them.
        result = result + 0.0 * key.bias.sum()
    return result, weights.unflatten(1, (heads, queries))
