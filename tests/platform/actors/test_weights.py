import numpy as np
import pytest

from farreach.actors.weights import Kept, WeightBoard


def test_versions_count_up_per_name():
    board = WeightBoard()
    assert board.version("policy") == 0
    assert board.publish("policy", "a") == 1
    assert board.publish("policy", "b") == 2
    assert board.publish("network", "x") == 1
    assert board.newest("policy").value == "b"


def test_a_reader_gets_only_what_is_newer():
    board = WeightBoard()
    assert board.newer_than("policy", 0) is None
    board.publish("policy", "a")
    found = board.newer_than("policy", 0)
    assert found is not None
    assert found.value == "a"
    assert board.newer_than("policy", found.version) is None


def test_old_versions_are_not_kept_alive():
    import weakref

    class Value:
        pass

    board, value = WeightBoard(), Value()
    gone = weakref.ref(value)
    board.publish("policy", value)
    del value
    board.publish("policy", Value())
    assert gone() is None


def test_an_unknown_name_is_an_error():
    with pytest.raises(KeyError):
        WeightBoard().newest("policy")


@pytest.mark.ray
def test_a_reader_fetches_a_value_once(ray_local):
    kept, first = Kept(), ray_local.put({"w": np.arange(3)})
    value = kept.read([first])
    assert value["w"].tolist() == [0, 1, 2]
    assert kept.read([first]) is value
    second = ray_local.put({"w": np.arange(4)})
    assert kept.read([second])["w"].tolist() == [0, 1, 2, 3]
    assert kept.read([first]) is not value
    assert kept.read(["a value"]) == "a value"


@pytest.mark.ray
def test_what_cannot_be_fetched_is_no_value(ray_local):
    @ray_local.remote
    def broken():
        raise ValueError("broken")

    kept, good = Kept(), ray_local.put(1)
    assert kept.read([good]) == 1
    with pytest.raises(ValueError, match="broken"):
        kept.read([broken.remote()])
    assert kept.read([good]) == 1
