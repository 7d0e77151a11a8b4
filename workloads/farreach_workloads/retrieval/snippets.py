"""What to show of a found document: the part with most of the query's words, and where they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from farreach.index.lexical import words_of

LENGTH, BEFORE = 240, 40
CUT = "…"
_SPACES = re.compile(r"\s+")


def matched(query: str, text: str) -> tuple[str, ...]:
    """The words of a query that a text has, in the query's order; see `lexical.words_of`."""
    there = set(words_of(text))
    return tuple(word for word in dict.fromkeys(words_of(query)) if word in there)


def places(text: str, words: Iterable[str]) -> list[tuple[int, int]]:
    """Begin and end of every occurrence of some words in a text, as they come, not overlapping."""
    parts = [
        f"(?<!\\w){re.escape(word)}(?!\\w)"
        if words_of(f"{word}{word}") == [f"{word}{word}"]
        else re.escape(word)
        for word in sorted(words, key=len, reverse=True)
    ]
    if not parts:
        return []
    return [match.span() for match in re.finditer("|".join(parts), text, re.IGNORECASE)]


def snippet(text: str, words: Sequence[str], length: int = LENGTH) -> str:
    """About `length` characters of a text in one line, where most of the words are.

    It begins and ends between words, with … where text is left out.
    """
    text = _SPACES.sub(" ", text).strip()
    if len(text) <= length:
        return text
    found = places(text, words)
    begin = max(0, _densest(text, found, length - BEFORE) - BEFORE)
    begin = min(begin, len(text) - length)
    if begin > 0:
        space = text.find(" ", begin, begin + BEFORE)
        begin = begin if space < 0 else space + 1
    end = min(len(text), begin + length)
    if end < len(text):
        space = text.rfind(" ", end - BEFORE, end + 1)
        end = end if space < 0 else space
    return f"{CUT if begin else ''}{text[begin:end]}{CUT if end < len(text) else ''}"


def marked(text: str, words: Sequence[str], begin: str, end: str) -> str:
    """A text with something put around every occurrence of some words."""
    result, last = [], 0
    for first, after in places(text, words):
        result += [text[last:first], begin, text[first:after], end]
        last = after
    return "".join([*result, text[last:]])


def _densest(text: str, found: Sequence[tuple[int, int]], length: int) -> int:
    """Where a window begins that has most different words, of such the first."""
    best, best_count = 0, 0
    for number, (first, _) in enumerate(found):
        inside = {text[begin:end].lower() for begin, end in found[number:] if end <= first + length}
        if len(inside) > best_count:
            best, best_count = first, len(inside)
    return best
