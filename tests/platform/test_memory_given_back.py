"""Memory that was freed goes back to the system."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from farreach import memory

SCATTERED = """
from farreach.memory import give_back, own_bytes

blocks = [bytes(2000) for _ in range(50_000)]
blocks = blocks[::1000]
before = own_bytes()
give_back()
print(before - own_bytes())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library")
def test_what_lies_between_blocks_in_use_goes_back():
    path = {"PYTHONPATH": str(Path(memory.__file__).parents[1])}
    command = [sys.executable, "-c", SCATTERED]
    found = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    assert int(found.stdout) > 50e6  # of 100 MB
