import unicodedata

import numpy as np
import pytest

from farreach.errors import DataError
from farreach_workloads.retrieval.evaluation.answers import (
    answered,
    contains,
    hit_rates,
    tokens_of,
)


def tokens_by_categories(text):
    """Runs of letters, numbers and marks; other characters but separators and controls."""
    tokens, run = [], ""
    for character in unicodedata.normalize("NFD", text):
        kind = unicodedata.category(character)[0]
        if kind in "LNM":
            run += character
            continue
        if run:
            tokens.append(run.lower())
        run = ""
        if kind not in "ZC":
            tokens.append(character.lower())
    return [*tokens, run.lower()] if run else tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's 3.5 km!", ["it", "'", "s", "3", ".", "5", "km", "!"]),
        ("a_b", ["a", "_", "b"]),
        ("tab\tand\u00a0space\u200b!", ["tab", "and", "space", "!"]),
        ("\u00c9t\u00e9", ["e\u0301te\u0301"]),
        ("ΟΔΟΣ. ΑΣ", ["οδος", ".", "ας"]),
        ("हिन्दी", ["हिन्दी"]),
        ("", []),
        (" \n", []),
    ],
)
def test_tokens_of_a_text(text, tokens):
    assert tokens_of(text) == tokens == tokens_by_categories(text)


def test_tokens_follow_the_categories_of_characters():
    codes = [*range(0xD800), *range(0xE000, 0x20100), *range(0xE0000, 0xE0200)]
    every = [chr(code) for code in codes]
    for begin in range(0, len(every), 4096):
        # Between letters that do not compose with what stands there.
        text = "".join(f"x{character}x " for character in every[begin : begin + 4096])
        assert tokens_of(text) == tokens_by_categories(text)


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("art", "The art of war", True),
        ("art", "A party", False),
        ("ART", "the art", True),
        ("the art", "of the Art.", True),
        ("art the", "of the Art.", False),
        ("caf\u00e9", "a cafe\u0301 here", True),
        ("cafe", "a caf\u00e9 here", False),
        ("3.5", "about 3.5 km", True),
        ("3.5", "about 3 . 5 km", True),
        ("3 5", "about 3.5 km", False),
        ("U.S.", "the U.S. army", True),
        ("U.S.", "the US army", False),
        ("a b", "a\u00a0b", True),
        ("x", "", False),
        ("", "any text", False),
        ("...", "well... yes", False),
        ("_", "a_b", False),
        ("€", "5 €", False),
    ],
)
def test_an_answer_is_looked_for_by_whole_tokens(answer, text, expected):
    assert contains([answer], text) is expected
    assert contains(["nothing of it", answer], text) is expected


def test_no_answers_are_found_nowhere():
    assert not contains([], "text")
    assert not contains([], "")


def test_questions_are_answered_and_unusable_answers_counted():
    answers = [["Paris"], ["...", "!?"], ["", "42"], ["x"]]
    passages = [["In Rome.", "In Paris."], ["well... !?"], ["It is 42", "42", "no"], []]
    result = answered(answers, passages)
    assert result.found.tolist() == [
        [False, True, False],
        [False, False, False],
        [True, True, False],
        [False, False, False],
    ]
    assert (result.unusable, result.unanswerable) == (3, 1)
    assert hit_rates(result.found, (1, 2, 100)) == {1: 0.25, 2: 0.5, 100: 0.5}


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(DataError, match="of 1 questions, and passages of 2"):
        answered([["a"]], [["a"], ["b"]])
    with pytest.raises(DataError, match="there are no questions"):
        hit_rates(np.zeros((0, 5), np.bool_))
