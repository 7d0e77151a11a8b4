"""Imports during which the garbage collector rests."""

import gc
import sys

import pytest

from farreach.imports import imported


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module and gives its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return make


def test_the_collector_rests_while_a_module_is_imported(module):
    name = module("resting", "import gc\nwas_on = gc.isenabled()\n")
    assert gc.isenabled()
    assert imported(name).was_on is False
    assert gc.isenabled()


def test_the_collector_goes_on_after_an_import_that_fails(module):
    with pytest.raises(ZeroDivisionError):
        imported(module("failing", "1 / 0\n"))
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off(module):
    gc.disable()
    try:
        imported(module("off", ""))
        assert not gc.isenabled()
    finally:
        gc.enable()
