"""Convolutions with what follows them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise"
)


def gelu_convolution(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """gelu(convolution(x)); on CPUs in one go while nothing is learnt.

    Args:
        convolution: whose padding is of zeros, in numbers.
        x: (b, before, height, width), float32 for the one go.

    Returns:
        (b, after, ·, ·).
    """
    if not _suits(convolution, x):
        return F.gelu(convolution(x))
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x,
        convolution.weight,
        convolution.bias,
        convolution.padding,
        convolution.stride,
        convolution.dilation,
        convolution.groups,
        "gelu",
        [],
        "none",  # not the approximation
    )
    return result


def _suits(convolution: nn.Conv2d, x: Tensor) -> bool:
    if not _HAS_ONEDNN or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.numel() == 0:
        return False
    plain = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    kinds = (x.dtype, convolution.weight.dtype, x.device.type)
    return plain and x.ndim == 4 and kinds == (torch.float32, torch.float32, "cpu")
