r"""Half characters: JSON may name one half of a pair (`\ud83d`), which no vocabulary reads."""

from __future__ import annotations


def half_in(*texts: str) -> str:
    """The first half character of some texts as Python writes it in ASCII; "" if there is none."""
    try:
        "\n".join(texts).encode()
    except UnicodeEncodeError as error:
        return ascii(error.object[error.start])
    return ""
