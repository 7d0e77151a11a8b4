"""Gradients of small networks, written by hand.

At these sizes autograd's bookkeeping, and its product for narrow layers, cost as much as the large
matrix products. Every gradient is tested against autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from farreach.linear import Activation, product, weight_gradient
from farreach_workloads.goals.networks import HEAD_WIDTH, PairHeads


class Chain:
    """Forward and backward pass of a sequence of linear layers."""

    def __init__(self, layers: nn.Module) -> None:
        """For an `nn.Sequential` of linear layers with ReLU or tanh between them."""
        linear = [m for m in layers.modules() if isinstance(m, nn.Linear)]
        self._weights = [layer.weight.detach() for layer in linear]
        self._biases = [layer.bias.detach() for layer in linear]
        self._gradients = [(layer.weight.grad, layer.bias.grad) for layer in linear]
        self._tanh = any(isinstance(m, nn.Tanh) for m in layers.modules())

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """(n, before) → the inputs and the output (n, width) of each layer, the result last."""
        kept, last = [inputs], len(self._weights)
        between: Activation = "tanh" if self._tanh else "relu"
        for layer, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True), 1):
            activation: Activation = between if layer < last else "none"
            kept.append(product(kept[-1], weight, bias, activation))
        return kept

    def backward(self, kept: list[Tensor], gradient: Tensor, parameters: bool = True) -> Tensor:
        """Write the gradients of the parameters, unless they are not wanted.

        Args:
            kept: from `forward`, or some consecutive rows of each.
            gradient: (n, after), of the result.
            parameters: whether to write.

        Returns:
            (n, width), the gradient of the first layer before its activation; see `inputs`.
        """
        for layer in range(len(self._weights) - 1, 0, -1):
            if parameters:
                self._write(layer, kept[layer], gradient)
            weight = self._weights[layer]
            flow = gradient * weight if len(weight) == 1 else product(gradient, weight.t())
            if self._tanh:
                flow.mul_(1 - kept[layer].square())
            else:
                torch.ops.aten.threshold_backward.grad_input(flow, kept[layer], 0, grad_input=flow)
            gradient = flow
        if parameters:
            self._write(0, kept[0], gradient)
        return gradient

    def _write(self, layer: int, inputs: Tensor, gradient: Tensor) -> None:
        weight, bias = self._gradients[layer]
        assert weight is not None
        weight.copy_(weight_gradient(inputs, gradient))
        torch.sum(gradient, 0, out=bias)

    def inputs(self, gradient: Tensor, columns: slice) -> Tensor:
        """The gradient of some columns of the inputs, from what `backward` returns."""
        return product(gradient, self._weights[0][:, columns].t().contiguous())


class Heads:
    """Forward and backward pass of what stands before the trunks: `PairHeads`, or nothing."""

    def __init__(self, heads: nn.Module) -> None:
        """For `PairHeads`; anything else passes its input on."""
        self._chains: list[Chain] = []
        if isinstance(heads, PairHeads):
            self._chains = [Chain(head) for head in heads.heads]
            self._sizes = heads.sizes
        self._kept: list[list[Tensor]] = []

    def forward(self, pair: Tensor) -> Tensor:
        """(n, pair width) → (n, width of the trunk's input without actions)."""
        if not self._chains:
            return pair
        parts = zip(self._chains, pair.split(self._sizes, dim=1), strict=True)
        self._kept = [chain.forward(part) for chain, part in parts]
        return torch.cat([kept[-1] for kept in self._kept], dim=1)

    def backward(self, rows: slice, trunks: list[tuple[Chain, Tensor]]) -> None:
        """Write the parameters' gradients, given what the `backward` of each trunk returned."""
        for head, (chain, kept) in enumerate(zip(self._chains, self._kept, strict=True)):
            columns = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            parts = [trunk.inputs(gradient, columns) for trunk, gradient in trunks]
            total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
            chain.backward([layer[rows] for layer in kept], total)


def flatten(module: nn.Module, lr: float) -> tuple[nn.Parameter, torch.optim.Adam]:
    """Move the parameters and their gradients into one vector each; the vector and its Adam."""
    flat = nn.Parameter(parameters_to_vector(module.parameters()).detach())
    vector_to_parameters(flat.detach(), module.parameters())  # views, not copies
    flat.grad = torch.zeros_like(flat)
    sizes = [parameter.numel() for parameter in module.parameters()]
    for parameter, gradient in zip(module.parameters(), flat.grad.split(sizes), strict=True):
        parameter.grad = gradient.view_as(parameter)
    return flat, torch.optim.Adam([flat], lr=lr, fused=True)
