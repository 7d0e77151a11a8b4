"""msgpack frames for nested state: what a checkpoint holds and what crosses an actor's border.

A frame is a fixed header, a msgpack skeleton of the tree, and the raw bytes of its arrays one after
the other. The arrays stay outside of the skeleton because msgpack ends at 4 GiB per value, and
because a large array is then copied once only. Nothing in a frame is ever executed when it is read.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from farreach.errors import CheckpointError

MAGIC = b"farreach"
VERSION = 1
# magic, version, bytes of the skeleton, bytes of the arrays
_HEADER = struct.Struct("<8sIQQ")

# Codes of the msgpack extension types in the skeleton.
_ARRAY, _SCALAR, _INTEGER = 1, 2, 3
_DTYPE = re.compile(r"[<>|][biufc]\d{1,2}")


def pack(tree: Any) -> bytes:
    """One frame that holds a nested tree.

    Args:
        tree: dict (keys are str or int), list, tuple, str, bytes, bool, None, float, int of any
            size, NumPy scalar, NumPy array of a numeric or boolean dtype, or torch tensor.

    Raises:
        TypeError: for anything else; the message names the place in the tree.
    """
    return b"".join(_bytes_of(piece) for piece in _pieces(tree))


def pack_into(tree: Any, room: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """The same frame in memory that is there already, which spares the system to provide it.

    Args:
        tree: as of `pack`.
        room: to write to; None, or one that is too small, is left alone and replaced.

    Returns:
        The frame (bytes,), the beginning of `room` or of a new one, which is its `base`.

    Raises:
        TypeError: as `pack`.
    """
    pieces = _pieces(tree)
    size = sum(piece.nbytes for piece in pieces)
    if room is None or len(room) < size:
        room = np.empty(size, np.uint8)
    end = 0
    for piece in pieces:
        begin, end = end, end + piece.nbytes
        if isinstance(piece, memoryview):
            room[begin:end] = np.frombuffer(piece, np.uint8)
        else:  # from wherever it lies, without a copy on the way
            piece.copy_to(room[begin:end])
    return room[:size]


def _pieces(tree: Any) -> list[memoryview | _TensorBytes]:
    """What makes a frame, one after the other; none is empty."""
    packer = _Packer()
    skeleton = msgpack.packb(packer.encode(tree), use_bin_type=True)
    size = sum(buffer.nbytes for buffer in packer.buffers)
    header = _HEADER.pack(MAGIC, VERSION, len(skeleton), size)
    pieces = [memoryview(header), memoryview(skeleton), *packer.buffers]
    return [piece for piece in pieces if piece.nbytes]


def _bytes_of(piece: memoryview | _TensorBytes) -> memoryview:
    if isinstance(piece, memoryview):
        return piece
    array = np.empty(piece.nbytes, np.uint8)
    piece.copy_to(array)
    return array.data


def unpack(data: bytes) -> Any:
    """The tree of a frame made by `pack`.

    Tuples come back as lists and torch tensors as NumPy arrays; arrays are writable copies in
    C order that keep their dtype, byte order included.

    Raises:
        CheckpointError: the bytes are truncated, altered, of another version or not a frame.
    """
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC[: len(view)] or len(view) == 0:
        raise CheckpointError("these bytes are not a farreach frame: they lack its header.")
    if len(view) < _HEADER.size:
        raise CheckpointError(f"truncated frame: {len(view)} bytes, shorter than its header.")
    _, version, skeleton_size, array_size = _HEADER.unpack_from(view)
    if version != VERSION:
        raise CheckpointError(
            f"frame of version {version}; this farreach reads version {VERSION}. "
            "Read it with the farreach that wrote it."
        )
    expected = _HEADER.size + skeleton_size + array_size
    if len(view) != expected:
        raise CheckpointError(f"frame of {len(view)} bytes, but its header says {expected}.")
    skeleton = view[_HEADER.size : _HEADER.size + skeleton_size]
    arrays = view[_HEADER.size + skeleton_size :]
    try:
        return msgpack.unpackb(
            skeleton,
            raw=False,
            strict_map_key=False,
            ext_hook=lambda code, payload: _decode(code, payload, arrays),
        )
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise CheckpointError(f"altered frame: {error or type(error).__name__}") from error


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """What `restore_generator` needs to continue a stream of random numbers; `pack` takes it.

    The seeds of children spawned later are not part of it.
    """
    return dict(rng.bit_generator.state)


def restore_generator(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Put a generator back to where `generator_state` was called.

    Raises:
        CheckpointError: the state belongs to another kind of generator or is not a state.
    """
    try:
        rng.bit_generator.state = dict(state)
    except (KeyError, ValueError, TypeError) as error:
        kind = type(rng.bit_generator).__name__
        raise CheckpointError(f"this is not the state of a {kind} generator: {error}") from error


class _Packer:
    """Turns a tree into what msgpack knows, and collects the arrays' bytes beside it."""

    def __init__(self) -> None:
        self.buffers: list[memoryview | _TensorBytes] = []
        self._offset = 0
        self._path: list[object] = []

    def encode(self, node: Any) -> Any:
        """The node with its arrays, NumPy scalars and large integers as extension types."""
        # NumPy's float64 is also a float, and bool also an int: the order matters.
        if isinstance(node, np.generic) and not isinstance(node, (str, bytes)):
            return msgpack.ExtType(_SCALAR, _scalar(np.asarray(node), self._place()))
        if node is None or isinstance(node, (bool, float, str, bytes)):
            return node
        if isinstance(node, int):
            return _integer(node)
        if isinstance(node, dict):
            return {self._key(key): self._child(key, value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return [self._child(index, value) for index, value in enumerate(node)]
        if isinstance(node, np.ndarray):
            return self._array(node)
        tensor = _TensorBytes(node, self._place())
        return self._put(tensor, tensor.dtype, tensor.shape)

    def _child(self, key: object, value: Any) -> Any:
        self._path.append(key)
        encoded = self.encode(value)
        self._path.pop()
        return encoded

    def _key(self, key: Any) -> Any:
        if isinstance(key, str):
            return key
        if isinstance(key, int) and not isinstance(key, bool):
            return _integer(key)
        raise TypeError(f"{self._place()}: key {key!r} is a {_kind(key)}; keys are str or int.")

    def _array(self, array: np.ndarray[Any, Any]) -> msgpack.ExtType:
        _check_dtype(array.dtype, self._place())
        # (bytes,) in C order, a copy only if it must be; flat first, so that () stays one element
        raw = np.ascontiguousarray(array.reshape(-1)).view(np.uint8).data
        return self._put(raw, array.dtype, array.shape)

    def _put(
        self, raw: memoryview | _TensorBytes, dtype: np.dtype[Any], shape: Sequence[int]
    ) -> msgpack.ExtType:
        entry = [dtype.str, list(shape), self._offset]
        self.buffers.append(raw)
        self._offset += raw.nbytes
        return msgpack.ExtType(_ARRAY, msgpack.packb(entry))

    def _place(self) -> str:
        return ".".join(map(str, self._path)) or "the tree"


class _TensorBytes:
    """The content of a tensor in C order, on whatever device it lies.

    Attributes:
        nbytes: of it.
        dtype: of the array that it will be.
        shape: likewise.
    """

    def __init__(self, node: Any, place: str) -> None:
        # Whoever passes a tensor has imported torch; nobody else should pay seconds for it.
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(node, torch.Tensor):
            raise TypeError(f"{place}: cannot pack a {_kind(node)}.")
        if node.layout != torch.strided or node.is_quantized:
            raise TypeError(
                f"{place}: cannot pack a sparse or quantized tensor. Make it dense first."
            )
        try:
            self.dtype: np.dtype[Any] = torch.empty(0, dtype=node.dtype).numpy().dtype
        except TypeError as error:
            raise TypeError(
                f"{place}: NumPy has no {node.dtype}, so it cannot be packed. "
                "Convert the tensor with .float() first."
            ) from error
        self.shape = tuple(node.shape)
        dense = node.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        real = torch.view_as_real(dense) if dense.is_complex() else dense
        self._flat = real.reshape(-1).view(torch.uint8)
        self.nbytes = self._flat.numel()

    def copy_to(self, array: NDArray[np.uint8]) -> None:
        sys.modules["torch"].from_numpy(array).copy_(self._flat)


def _check_dtype(dtype: np.dtype[Any], place: str) -> None:
    if not _DTYPE.fullmatch(dtype.str):
        raise TypeError(f"{place}: cannot pack dtype {dtype}; it is not numeric or boolean.")


def _scalar(value: np.ndarray[Any, Any], place: str) -> bytes:
    _check_dtype(value.dtype, place)
    packed: bytes = msgpack.packb([value.dtype.str, value.tobytes()], use_bin_type=True)
    return packed


def _integer(value: int) -> Any:
    if -(2**63) <= value < 2**64:
        return value
    length = value.bit_length() // 8 + 1  # one more bit for the sign
    return msgpack.ExtType(_INTEGER, value.to_bytes(length, "little", signed=True))


def _kind(node: object) -> str:
    return f"{type(node).__module__}.{type(node).__qualname__}".removeprefix("builtins.")


def _decode(code: int, payload: bytes, arrays: memoryview) -> Any:
    """The value of one extension type; raises ValueError or TypeError on altered payloads."""
    if code == _INTEGER:
        return int.from_bytes(payload, "little", signed=True)
    if code == _SCALAR:
        name, raw = msgpack.unpackb(payload)
        return np.frombuffer(raw, _dtype(name), count=1)[0]
    if code == _ARRAY:
        name, shape, offset = msgpack.unpackb(payload)
        dtype = _dtype(name)
        end = offset + math.prod(shape) * dtype.itemsize
        if min([offset, *shape]) < 0 or end > len(arrays):
            raise ValueError(f"an array of shape {shape} lies outside of the frame")
        return np.ndarray(shape, dtype, buffer=arrays, offset=offset).copy()
    raise ValueError(f"unknown extension type {code}")


def _dtype(name: str) -> np.dtype[Any]:
    if not _DTYPE.fullmatch(name):
        raise ValueError(f"{name!r} is not a numeric or boolean dtype")
    return np.dtype(name)
