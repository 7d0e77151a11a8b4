"""Shape checks where a wrong shape would broadcast without a word."""

from __future__ import annotations

from typing import Protocol


class Shaped(Protocol):
    """Anything with a shape: a NumPy array or a torch tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""


def expect_shape(array: Shaped, shape: tuple[int | None, ...], name: str) -> None:
    """Raise unless an array has the expected shape.

    ```
    expect_shape(goals, (batch, None), "goals")  # two axes, the second of any length
    ```

    Args:
        array: NumPy array or torch tensor.
        shape: length of each axis; None where any length will do.
        name: what the array is called in the error.

    Raises:
        ValueError: another number of axes, or an axis of another length.
    """
    found = tuple(array.shape)
    fits = len(found) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, found, strict=True)
    )
    if not fits:
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        comma = "," if len(shape) == 1 else ""
        raise ValueError(f"{name}: expected shape ({expected}{comma}), found {found}.")
