import re

import pytest

from farreach.errors import ConfigError, RegistryError
from farreach.registry import Registry, near_match


@pytest.fixture
def registry():
    registry = Registry("environment")
    registry.add("walker")("W")
    registry.add("maze")("M")
    return registry


def test_an_entry_is_found_by_its_name(registry):
    assert registry.get("maze") == "M"
    assert registry.get("walker") == "W"


def test_the_decorator_gives_back_what_it_registers():
    registry = Registry("thing")

    @registry.add("one")
    class One:
        pass

    assert registry.get("one") is One


def test_names_are_sorted_and_countable(registry):
    assert registry.names() == ["maze", "walker"]
    assert list(registry) == ["maze", "walker"]
    assert "maze" in registry
    assert "cube" not in registry


def test_a_name_cannot_be_registered_twice(registry):
    with pytest.raises(RegistryError, match="environment 'maze' is registered twice"):
        registry.add("maze")("other")
    assert registry.get("maze") == "M"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mase", "unknown environment 'mase'. Did you mean 'maze'?"),
        ("cube", "unknown environment 'cube'. Known: maze, walker."),
    ],
)
def test_an_unknown_name_is_answered_with_a_near_match_or_all_names(registry, name, message):
    with pytest.raises(RegistryError, match=re.escape(message)):
        registry.get(name)


def test_an_unknown_name_is_a_configuration_error_for_the_command_line(registry):
    with pytest.raises(ConfigError) as caught:
        registry.get("cube")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("mase", ["maze"], "Did you mean 'maze'?"),
        ("x", ["b", "a"], "Known: a, b."),
        ("x", [], "Known: none."),
    ],
)
def test_near_match_is_a_sentence(name, known, expected):
    assert near_match(name, known) == expected


def test_two_registries_share_nothing():
    first, second = Registry("a"), Registry("b")
    first.add("x")(1)
    assert second.names() == []
