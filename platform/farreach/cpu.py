"""What the CPU of this machine can do."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

import torch

# AMD's first family, Zen 5, whose 512-bit units are as wide.
_FULL_WIDTH_FAMILY = 26


@cache
def is_intel() -> bool:
    """Whether it is one for which MKL has its best instructions."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return "Intel" in platform.processor()


@cache
def halves_wide_instructions() -> bool:
    """Whether it is a Zen 4, which computes 512 bits in two halves: no faster than 256-bit code."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    family = re.search(r"^cpu family\s*:\s*(\d+)$", text, re.MULTILINE)
    return "AuthenticAMD" in text and family is not None and int(family[1]) < _FULL_WIDTH_FAMILY


def has(*instructions: str) -> bool:
    """Whether it has any of these, by PyTorch's names such as `avx512_vnni`."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(known.get(name, False) for name in instructions)


def lacks_bfloat16() -> bool:
    """Whether products in bfloat16 are slower here than in float32; false where nobody knows."""
    is_x86 = platform.machine().lower() in {"x86_64", "amd64"}
    return is_x86 and not has("avx512_bf16", "amx_bf16")
