from pathlib import Path

import pytest

from farreach import cpu


@pytest.mark.parametrize(
    ("machine", "known", "lacks"),
    [
        ("x86_64", {"avx512_vnni": True}, True),
        ("AMD64", {"avx512_bf16": False, "amx_bf16": False}, True),
        ("x86_64", {"avx512_bf16": True}, False),
        ("x86_64", {"amx_bf16": True}, False),
        ("aarch64", {}, False),
    ],
)
def test_bfloat16_is_a_matter_of_the_instructions_of_x86(monkeypatch, machine, known, lacks):
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    monkeypatch.setattr(cpu.torch.cpu, "get_capabilities", lambda: known)
    assert cpu.lacks_bfloat16() == lacks


@pytest.mark.parametrize(
    ("text", "intel"),
    [("vendor_id\t: GenuineIntel\n", True), ("vendor_id\t: AuthenticAMD\n", False)],
)
def test_the_maker_is_read_from_the_kernel(monkeypatch, text, intel):
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert cpu.is_intel.__wrapped__() == intel


@pytest.mark.parametrize(
    ("text", "halves"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n", True),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n", False),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\n", False),
        ("Processor\t: ARMv8\n", False),
    ],
)
def test_which_cpus_compute_wide_instructions_in_halves(monkeypatch, text, halves):
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert cpu.halves_wide_instructions.__wrapped__() == halves


def test_where_the_kernel_tells_nothing_wide_instructions_are_taken_as_whole(monkeypatch):
    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", absent)
    assert not cpu.halves_wide_instructions.__wrapped__()
