import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from farreach.errors import CheckpointError
from farreach.messages import generator_state, pack, pack_into, restore_generator, unpack

DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "c8", "c16"]


def round_trip(tree):
    return unpack(pack(tree))


@pytest.mark.parametrize(
    "tree",
    [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        float("inf"),
        "näme",
        b"\x00\xff",
        [],
        {},
        {"a": {"b": [1, [2.0, None]]}, "": ""},
        {0: "zero", -7: "minus", 2**70: "large", "0": "text"},
    ],
)
def test_plain_trees_come_back_equal_and_of_the_same_types(tree):
    back = round_trip(tree)
    assert back == tree
    assert repr(back) == repr(tree)


@pytest.mark.parametrize("exponent", [31, 63, 64, 127, 128, 300])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_integers_of_any_size_come_back(exponent, sign, offset):
    value = sign * 2**exponent + offset
    assert round_trip({"n": [value]}) == {"n": [value]}


def test_tuples_come_back_as_lists():
    assert round_trip({"shape": (1, (2, 3))}) == {"shape": [1, [2, 3]]}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_arrays_of_every_dtype_and_shape_come_back(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    back = round_trip(array)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array, strict=True)


def test_byte_order_is_kept():
    array = np.array([1, 256], dtype=">i4")
    back = round_trip([array])[0]
    assert back.dtype.str == ">i4"
    assert back.tolist() == [1, 256]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0).reshape(3, 4)[:, ::2],
        np.arange(12)[::-3],
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.broadcast_to(np.float32(2.0), (3, 2)),
        np.broadcast_to(np.arange(3), (2, 3)),
    ],
)
def test_non_contiguous_arrays_come_back_contiguous(array):
    back = round_trip(array)
    np.testing.assert_array_equal(back, array, strict=True)
    assert back.flags.c_contiguous


def test_unpacked_arrays_are_writable_and_independent():
    data = pack({"a": np.zeros(3), "b": np.zeros(3)})
    first, second = unpack(data), unpack(data)
    first["a"][:] = 1
    assert first["b"].tolist() == [0, 0, 0]
    assert second["a"].tolist() == [0, 0, 0]


def test_packing_copies_so_that_later_writes_do_not_show():
    array = np.zeros(2)
    data = pack(array)
    array[:] = 1
    assert unpack(data).tolist() == [0, 0]


def test_a_frame_is_the_same_in_memory_that_is_there(tmp_path):
    tree = {"a": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 2)), "b": [True, "text"]}
    tree["tensor"] = torch.arange(8).reshape(2, 4).t()
    room = np.full(4096, 255, np.uint8)
    frame = pack_into(tree, room)
    assert frame.base is room
    assert frame.tobytes() == pack(tree) == pack_into(tree, None).tobytes()
    for size in (0, len(frame) - 1):  # too small: left alone
        small = np.full(size, 255, np.uint8)
        assert pack_into(tree, small).tobytes() == pack(tree)
        assert (small == 255).all()


@pytest.mark.parametrize(
    "scalar",
    [np.float32(0.1), np.float64(0.1), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True)],
)
def test_numpy_scalars_keep_their_type(scalar):
    back = round_trip({"x": scalar})["x"]
    assert type(back) is type(scalar)
    assert back == scalar


def test_strings_that_are_numpy_scalars_come_back_as_strings():
    assert round_trip(list(np.array(["up", "down"]))) == ["up", "down"]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]
)
def test_tensors_come_back_as_arrays(dtype):
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    back = round_trip({"w": tensor})["w"]
    assert isinstance(back, np.ndarray)
    np.testing.assert_array_equal(back, tensor.numpy(), strict=True)


def test_parameters_and_views_of_tensors_are_packed():
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    back = round_trip([parameter, parameter.t(), torch.tensor(7)])
    assert back[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert back[1].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert back[2].shape == ()


def test_tensors_that_are_views_of_others_are_packed_as_they_look():
    z = torch.tensor([[1 + 2j, 3j], [4.0, 5]])
    tree = [z.conj(), z.conj().imag, torch.zeros(0, 3), torch.arange(10)[::2], torch.tensor(2j)]
    for back, tensor in zip(round_trip(tree), tree, strict=True):
        expected = tensor.resolve_conj().resolve_neg().numpy()
        np.testing.assert_array_equal(back, expected, strict=True)


def test_an_optimizer_goes_on_exactly_as_if_it_had_not_stopped():
    def updates(weight, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()

    whole = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.Adam([whole], lr=0.1)
    updates(whole, optimizer, 3)
    state = round_trip({"weight": whole, "optimizer": optimizer.state_dict()})
    updates(whole, optimizer, 3)

    resumed = torch.nn.Parameter(torch.from_numpy(state["weight"]))
    fresh = torch.optim.Adam([resumed], lr=0.1)
    for slots in state["optimizer"]["state"].values():
        slots.update({key: torch.from_numpy(value) for key, value in slots.items()})
    fresh.load_state_dict(state["optimizer"])
    updates(resumed, fresh, 3)
    assert torch.equal(resumed, whole)


def test_bfloat16_is_refused_with_its_place_and_a_mend():
    tree = {"learner": [{"w": torch.zeros(2, dtype=torch.bfloat16)}]}
    with pytest.raises(TypeError, match=r"learner\.0\.w: NumPy has no torch.bfloat16.*\.float\(\)"):
        pack(tree)


def test_sparse_tensors_are_refused():
    with pytest.raises(TypeError, match=r"w: cannot pack a sparse"):
        pack({"w": torch.eye(2).to_sparse()})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "a.b: cannot pack a set."),
        (object(), "a.b: cannot pack a object."),
        (np.random.default_rng(0), "a.b: cannot pack a numpy.random._generator.Generator."),
        (np.array([None]), "a.b: cannot pack dtype object"),
        (np.array(["x"]), "a.b: cannot pack dtype <U1"),
        (np.zeros(1, dtype="f4,i4"), "a.b: cannot pack dtype"),
        (np.datetime64("2020-01-01"), "a.b: cannot pack dtype datetime64[D]"),
        ({1.5: 0}, "a.b: key 1.5 is a float; keys are str or int."),
        ({True: 0}, "a.b: key True is a bool; keys are str or int."),
    ],
)
def test_what_cannot_be_packed_is_named_with_its_place(value, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        pack({"a": {"b": value}})


FRAME = pack({"w": np.arange(4.0), "n": np.float32(1), "i": 2**100, "s": "text", "l": [1, 2]})


@pytest.mark.parametrize("size", range(len(FRAME)))
def test_a_truncated_frame_is_refused(size):
    with pytest.raises(CheckpointError):
        unpack(FRAME[:size])


def test_bytes_after_the_frame_are_refused():
    with pytest.raises(CheckpointError, match="but its header says"):
        unpack(FRAME + b"\0")


@pytest.mark.parametrize("data", [b"", b"\x80", b"PK\x03\x04" * 20, b"{}", bytes(200)])
def test_foreign_bytes_are_refused(data):
    with pytest.raises(CheckpointError, match="not a farreach frame"):
        unpack(data)


def test_another_version_is_refused_with_both_versions():
    frame = FRAME[:8] + (7).to_bytes(4, "little") + FRAME[12:]
    with pytest.raises(CheckpointError, match=r"version 7; this farreach reads version 1"):
        unpack(frame)


def test_altered_bytes_give_a_checkpoint_error_or_a_tree_but_nothing_else():
    rng = random.Random(0)
    for _ in range(3000):
        frame = bytearray(FRAME)
        for _ in range(rng.randint(1, 4)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        try:
            unpack(bytes(frame))
        except CheckpointError:
            continue


@pytest.mark.parametrize("bit_generator", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_every_numpy_generator_goes_on_where_it_was(bit_generator):
    kind = getattr(np.random, bit_generator)
    rng = np.random.Generator(kind(3))
    rng.random(5, dtype=np.float32)  # an odd number of 32-bit draws leaves half a word behind
    state = round_trip(generator_state(rng))
    expected = rng.integers(0, 2**63, size=20)
    rng.random(11)

    other = np.random.Generator(kind(99))
    restore_generator(other, state)
    np.testing.assert_array_equal(other.integers(0, 2**63, size=20), expected)


@pytest.mark.parametrize("state", [{}, {"bit_generator": "PCG64"}, {"bit_generator": "Philox"}])
def test_the_state_of_another_generator_is_refused(state):
    with pytest.raises(CheckpointError, match="not the state of a PCG64 generator"):
        restore_generator(np.random.default_rng(0), state)


def test_importing_and_using_messages_does_not_import_torch():
    code = (
        "import sys, numpy; from farreach.messages import pack, unpack;"
        "unpack(pack({'a': numpy.zeros(2)})); sys.exit('torch' in sys.modules)"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=path)
    assert done.returncode == 0
