"""Gradients of small networks, written by hand.

At these sizes autograd's bookkeeping, and its product for narrow layers, cost as much as the large
matrix products. Every gradient is tested against autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from farreach_workloads.goals.networks import HEAD_WIDTH, PairHeads


class Chain:
    """Forward and backward pass of a sequence of linear layers, into buffers of its own.

    What `forward` returns is overwritten by the next `forward`.
    """

    def __init__(self, layers: nn.Module) -> None:
        """For an `nn.Sequential` of linear layers with ReLU or tanh between them."""
        linear = [m for m in layers.modules() if isinstance(m, nn.Linear)]
        self._weights = [layer.weight.detach() for layer in linear]
        self._biases = [layer.bias.detach() for layer in linear]
        self._gradients = [(layer.weight.grad, layer.bias.grad) for layer in linear]
        self._tanh = any(isinstance(m, nn.Tanh) for m in layers.modules())
        self._outputs: list[Tensor] = []
        self._flows: list[Tensor] = []

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """(n, before) → the inputs and the output (n, width) of each layer, the result last."""
        if not self._outputs or len(self._outputs[0]) != len(inputs):
            shapes = [(len(inputs), len(weight)) for weight in self._weights]
            self._outputs = [inputs.new_empty(shape) for shape in shapes]
            self._flows = [inputs.new_empty(shape) for shape in shapes[:-1]]
        kept = [inputs]
        for weight, bias, output in zip(self._weights, self._biases, self._outputs, strict=True):
            if len(kept) > 1:
                kept[-1].tanh_() if self._tanh else kept[-1].relu_()
            kept.append(torch.addmm(bias, kept[-1], weight.t(), out=output))
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
            flow = self._flows[layer - 1][: len(gradient)]
            if gradient.shape[1] == 1:
                torch.mul(gradient, self._weights[layer], out=flow)
            else:
                torch.mm(gradient, self._weights[layer], out=flow)
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
        if inputs.shape[1] < gradient.shape[1]:
            # The other way round, a product with few columns is several times slower on a CPU.
            weight.copy_(torch.mm(inputs.t(), gradient).t())
        else:
            torch.mm(gradient.t(), inputs, out=weight)
        torch.sum(gradient, 0, out=bias)

    def inputs(self, gradient: Tensor, columns: slice) -> Tensor:
        """The gradient of some columns of the inputs, from what `backward` returns."""
        narrow = self._weights[0][:, columns].t().contiguous()
        return torch.mm(narrow, gradient.t()).t()  # in this order for speed, see `_write`


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
