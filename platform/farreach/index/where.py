"""Filters on what documents say of themselves, such as `section = 'devel' and lang != 'de'`.

```
filter     = term { "or" term }
term       = factor { "and" factor }
factor     = "not" factor | "(" filter ")" | name sign value | name ["not"] "in" "(" values ")"
sign       = "=" | "!=" | "<" | "<=" | ">" | ">="       value = 'text' | number
```
A name that is no word stands in double quotes; a quote in a text is doubled. Text compares by code
points; beside a number, a document's text is read as one. What a document lacks equals nothing, so
it fits `!=` and `not in` only. Nothing in a filter is ever run as code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from farreach.errors import DataError

Mask = NDArray[np.bool_]
Value = str | float

_TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*')
    | (?P<name>"(?:[^"]|"")+" | [^\W\d][\w.-]*)
    | (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<sign><=|>=|!=|<>|==|=|<|>|\(|\)|,)""",
    re.VERBOSE,
)
_SPACE = re.compile(r"\s*")
_WORDS = ("and", "or", "not", "in")
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_EQUAL, _UNEQUAL = ("=", "=="), ("!=", "<>")
_DEEPEST = 50  # brackets in brackets
_EXAMPLE = "A filter looks like section = 'devel' and (year >= 2020 or lang in ('de', 'fr'))."


class _Token(NamedTuple):
    kind: str  # text, name, number, sign, word or end
    text: str
    place: int


def selected(filter_text: str, column: Callable[[str], Any], count: int) -> Mask:
    """Which documents a filter selects.

    Args:
        filter_text: see above.
        column: gives the pyarrow column of a name, with `count` texts or nulls, or raises.
        count: number of documents.

    Returns:
        (count,) by row.

    Raises:
        DataError: the filter is malformed, or compares a number with text that is none; and what
            `column` raises.
    """
    reader = _Reader(filter_text, column, count)
    mask = reader.filter()
    reader.take("end")
    return mask


class _Reader:
    """Reads a filter from left to right and evaluates it on the way."""

    def __init__(self, text: str, column: Callable[[str], Any], count: int) -> None:
        self.text, self.column, self.count = text, column, count
        self.tokens, self.depth = _tokens(text), 0

    def filter(self) -> Mask:
        mask = self.term()
        while self.take_if("or"):
            mask = self.term() | mask
        return mask

    def term(self) -> Mask:
        mask = self.factor()
        while self.take_if("and"):
            mask = self.factor() & mask
        return mask

    def factor(self) -> Mask:
        negated = False
        while self.take_if("not"):
            negated = not negated
        return ~self.single() if negated else self.single()

    def single(self) -> Mask:
        if self.take_if("("):
            self.depth += 1
            if self.depth > _DEEPEST:
                raise self.error(f"is in more than {_DEEPEST} brackets")
            mask = self.filter()
            self.expect(")")
            self.depth -= 1
            return mask
        name = _unquoted(self.take("name").text, '"')
        if self.take_if("not"):
            self.expect("in")
            return ~self.among(name)
        if self.take_if("in"):
            return self.among(name)
        if self.tokens[0].text not in (*_EQUAL, *_UNEQUAL, *_COMPARE):
            raise self.error("stands where a comparison was expected")
        sign, value = self.take("sign").text, self.value()
        if sign in _EQUAL:
            return self.compared(name, value, pc.equal)
        if sign in _UNEQUAL:
            return ~self.compared(name, value, pc.equal)
        return self.compared(name, value, _COMPARE[sign])

    def among(self, name: str) -> Mask:
        self.expect("(")
        mask = self.compared(name, self.value(), pc.equal)
        while self.take_if(","):
            mask |= self.compared(name, self.value(), pc.equal)
        self.expect(")")
        return mask

    def value(self) -> Value:
        token = self.take("text", "number")
        return _unquoted(token.text, "'") if token.kind == "text" else float(token.text)

    def compared(self, name: str, value: Value, compare: Callable[[Any, Any], Any]) -> Mask:
        column = self.column(name)
        if isinstance(value, float):
            try:
                column = pc.cast(column, pa.float64())
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"filter {self.text!r}: {name} is not a number in every document: {error}. "
                    "Compare it with a text in quotes."
                ) from error
        result = pc.fill_null(compare(column, value), False)
        return np.asarray(result).astype(bool) if self.count else np.zeros(0, bool)

    def take(self, *kinds: str) -> _Token:
        """The next token, which must be of one of these kinds."""
        if self.tokens[0].kind not in kinds:
            article = "the" if kinds == ("end",) else "a"
            raise self.error(f"stands where {article} {' or '.join(kinds)} was expected")
        return self.tokens.pop(0)

    def expect(self, mark: str) -> None:
        """Take this sign or word, which must come next."""
        if not self.take_if(mark):
            raise self.error(f"stands where {mark!r} was expected")

    def take_if(self, mark: str) -> bool:
        """Whether this sign or word comes next, which is taken then."""
        token = self.tokens[0]
        if token.kind not in ("sign", "word") or token.text != mark:
            return False
        self.tokens.pop(0)
        return True

    def error(self, problem: str) -> DataError:
        token = self.tokens[0]
        shown = repr(token.text) if token.text else "its end"
        return DataError(f"filter {self.text!r}: {shown} {problem} (at {token.place}). {_EXAMPLE}")


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = _end_of_space(text, 0)
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise DataError(
                f"filter {text!r}: cannot read {text[place:][:10]!r} (at {place}). {_EXAMPLE}"
            )
        kind, found = str(match.lastgroup), match[0]
        if kind == "name" and found.lower() in _WORDS:
            kind, found = "word", found.lower()
        tokens.append(_Token(kind, found, place))
        place = _end_of_space(text, match.end())
    return [*tokens, _Token("end", "", len(text))]


def _end_of_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _unquoted(text: str, quote: str) -> str:
    if not text.startswith(quote):
        return text
    return text[1:-1].replace(2 * quote, quote)
