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

# Up to so many queries of all heads, PyTorch's fused attention on CPUs is the quicker one: it goes
# over the tokens once. Tokens are both its keys and its values.
_FEW = 8


def attend(
    query: Tensor, tokens: Tensor, key: nn.Linear, value: nn.Linear, drop_rate: float = 0.0
) -> Tensor:
    """softmax(query keyᵀ) value for keys and values that are linear in the tokens.

    Args:
        query: (b, h, q, d) or (1, h, q, d), scaled.
        tokens: (b, n, c).
        key: c → h × d.
        value: c → h × d.
        drop_rate: dropout of the weights.

    Returns:
        (b, h, q, d).
    """
    few = query.shape[1] * query.shape[2] <= _FEW
    if not few or drop_rate > 0 or tokens.device.type != "cpu" or torch.compiler.is_exporting():
        return attend_with_weights(query, tokens, key, value, drop_rate)[0]
    pushed = _pushed(query, tokens, key)[:, None]
    mean = F.scaled_dot_product_attention(pushed, tokens[:, None], tokens[:, None], scale=1.0)
    return _with_bias(_valued(mean[:, 0], query, value), value)


def attend_with_weights(
    query: Tensor, tokens: Tensor, key: nn.Linear, value: nn.Linear, drop_rate: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As `attend`, and the weights before dropout (b, h, q, n)."""
    heads, queries, dim = query.shape[1:]
    weights = weights_over(query, tokens, key)
    kept = F.dropout(weights, drop_rate) if drop_rate > 0 else weights
    # An exported model takes any number of tokens: it cannot ask.
    if torch.compiler.is_exporting() or heads * queries <= tokens.shape[1]:
        result = _valued(torch.bmm(kept, tokens), query, value)
    else:
        values = F.linear(tokens, value.weight).unflatten(2, (heads, dim)).transpose(1, 2)
        result = kept.unflatten(1, (heads, queries)) @ values
    # What is left of the weights is no longer 1 in all.
    share = kept.sum(dim=-1).unflatten(1, (heads, queries))[..., None] if drop_rate > 0 else None
    return _with_bias(result, value, share), weights.unflatten(1, (heads, queries))


def weights_over(query: Tensor, tokens: Tensor, key: nn.Linear) -> Tensor:
    """softmax(query keyᵀ), (b, h × q, n); arguments as for `attend`."""
    return torch.bmm(_pushed(query, tokens, key), tokens.transpose(1, 2)).softmax(dim=-1)


def _pushed(query: Tensor, tokens: Tensor, key: nn.Linear) -> Tensor:
    """Queries through the key projection, to be compared with the tokens: (b, h × q, c)."""
    batch, heads, queries, dim = query.shape
    by_head = query.transpose(0, 1).flatten(1, 2)  # (h, b × q, d)
    pushed = torch.bmm(by_head, key.weight.view(heads, dim, -1))
    if queries == 1:
        pushed = pushed.transpose(0, 1)
    else:
        pushed = pushed.unflatten(1, (batch, queries)).transpose(0, 1).flatten(1, 2)
    if key.bias is not None and torch.is_grad_enabled():
        # It has no influence, but every parameter gets a gradient: DDP counts them.
        pushed = pushed + 0.0 * key.bias.sum()
    return pushed.expand(tokens.shape[0], -1, -1)


def _valued(mean: Tensor, query: Tensor, value: nn.Linear) -> Tensor:
    """Means of tokens (b, h × q, c) through the value projection, but its bias: (b, h, q, d)."""
    batch, (heads, queries, dim) = mean.shape[0], query.shape[1:]
    if queries == 1:
        mean = mean.transpose(0, 1)  # (h, b, c)
    else:
        mean = mean.unflatten(1, (heads, queries)).transpose(0, 1).flatten(1, 2)
    result = torch.bmm(mean, value.weight.view(heads, dim, -1).transpose(1, 2))
    return result.unflatten(1, (batch, queries)).transpose(0, 1)


def _with_bias(result: Tensor, value: nn.Linear, share: Tensor | None = None) -> Tensor:
    """(b, h, q, d) → the same; `share`: of its bias that each row gets, (b, h, q, 1)."""
    if value.bias is None:
        return result
    bias = value.bias.view(result.shape[1], 1, -1)
    return result + (bias if share is None else bias * share)
