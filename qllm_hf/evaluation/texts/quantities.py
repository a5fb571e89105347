"""The numbers that a text states, in digits and in words, each with the values a calculation may use for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Final, NamedTuple

NUMBER: Final = r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"

_COUNTS: Final = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_POWERS: Final = {"dozen": 12, "dozens": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_PARTS: Final = {
    "half": 2, "halves": 2, "third": 3, "fourth": 4, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "twelfth": 12, "twentieth": 20, "hundredth": 100,
}  # fmt: skip
_OTHERS: Final = {
    "once": (1,), "single": (1,), "alone": (1,), "each": (1,), "every": (1,), "another": (1,), "second": (2,),
    "twice": (2,), "double": (2,), "doubled": (2,), "doubles": (2,), "couple": (2,), "pair": (2,), "pairs": (2,),
    "both": (2,), "twin": (2,), "twins": (2,), "other": (2,), "either": (2,), "equal": (2,), "equally": (2,),
    "biweekly": (2,), "bicycle": (2,), "triple": (3,), "tripled": (3,), "triples": (3,), "thrice": (3,),
    "triplets": (3,), "tricycle": (3,), "quadruple": (4,), "quadrupled": (4,), "decade": (10,), "century": (100,),
    "fortnight": (14, 2), "weekend": (2,), "weekends": (2,), "weekday": (5,), "weekdays": (5,),
}  # fmt: skip

_TOKEN: Final = re.compile(rf"(?P<number>{NUMBER})|(?P<glyph>[½⅓⅔¼¾⅕⅛])|(?P<word>[^\W\d_]+)|(?P<sign>\S)")


class Quantity(NamedTuple):
    """One number of a text: its value, and every value it may lend to a calculation, itself included.

    25% lends 25 and 0.25, the rest (75, 0.75) and the changed whole (1.25); 3/4 lends 3, 4, and the rest 1/4; "half"
    lends 2, 0.5 and 1.5; "3 dozen" lends 3, 12 and 36.
    """

    value: Fraction
    lends: frozenset[Fraction]


def quantities(text: str) -> list[Quantity]:
    """All numbers of `text` in order. "a" and "an" are none."""
    return list(_quantities(text))


def _quantities(text: str) -> Iterator[Quantity]:
    tokens = [(match.lastgroup, match[0].lower()) for match in _TOKEN.finditer(text)]
    at = 0
    while at < len(tokens):
        kind, token = tokens[at]
        at += 1
        if kind == "number" or token in _COUNTS:
            value, lends, at = _count(tokens, at - 1)
            part, after = _part(tokens, at)
            if part:
                lends |= _fraction(value, part)
                value, at = value / part, after
            elif tokens[at : at + 1] in ([("sign", "%")], [("word", "percent")]):
                lends |= _percent(value)
                at += 1
            yield Quantity(value, lends)
        elif kind == "glyph":
            value = {"½": Fraction(1, 2), "⅓": Fraction(1, 3), "⅔": Fraction(2, 3), "¼": Fraction(1, 4),
                     "¾": Fraction(3, 4), "⅕": Fraction(1, 5), "⅛": Fraction(1, 8)}[token]  # fmt: skip
            yield Quantity(value, _fraction(Fraction(value.numerator), Fraction(value.denominator)))
        elif token.removesuffix("s") in _PARTS or token in _PARTS:
            part = Fraction(_PARTS.get(token) or _PARTS[token.removesuffix("s")])
            lends = _fraction(Fraction(1), part)
            yield Quantity(1 / part, lends | {1 + 1 / part})
        elif token in _OTHERS or token in _POWERS:
            lends = frozenset(map(Fraction, _OTHERS.get(token) or (_POWERS[token],)))
            yield Quantity(max(lends), lends)


def _count(tokens: list[tuple[str | None, str]], at: int) -> tuple[Fraction, frozenset[Fraction], int]:
    """A whole number or a decimal from `at` on, what it lends, and where it ends: 12, twenty-five, 3 hundred and 5."""
    kind, token = tokens[at]
    value = exact(token) if kind == "number" else Fraction(_COUNTS[token])
    lends = {value}
    at += 1
    while at < len(tokens):
        word = tokens[at][1]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if kind == "word" and word == "-" and 0 < _COUNTS.get(following, 0) < 10 <= value % 100:
            value, at = value + _COUNTS[following], at + 2
        elif kind == "word" and 0 < _COUNTS.get(word, 0) < 10 <= value % 100 and value % 100 >= 20:
            value, at = value + _COUNTS[word], at + 1
        elif word in _POWERS:
            lends.add(Fraction(_POWERS[word]))
            value, at = value * _POWERS[word], at + 1
        elif word == "and" and value >= 100 and tokens[at - 1][1] in _POWERS and following in _COUNTS:
            value, at = value + _COUNTS[following], at + 2
        elif value >= 100 and tokens[at - 1][1] in _POWERS and word in _COUNTS:
            value, at = value + _COUNTS[word], at + 1
        else:
            break
        lends.add(value)
    return value, frozenset(lends), at


def _part(tokens: list[tuple[str | None, str]], at: int) -> tuple[Fraction | None, int]:
    """The denominator that follows a count, and where it ends: /4, -fourths, quarters."""
    texts = [token for _, token in tokens[at : at + 2]] + ["", ""]
    if texts[0] == "/" and re.fullmatch(NUMBER, texts[1]) and exact(texts[1]):
        return exact(texts[1]), at + 2
    word = texts[1] if texts[0] == "-" else texts[0]
    part = _PARTS.get(word) or _PARTS.get(word.removesuffix("s"))
    return (Fraction(part), at + 1 + (texts[0] == "-")) if part else (None, at)


def _fraction(above: Fraction, below: Fraction) -> frozenset[Fraction]:
    share = above / below
    return frozenset({above, below, share, 100 * share, below - above, 1 - share, 1 + share, below + above})


def _percent(value: Fraction) -> frozenset[Fraction]:
    share = value / 100
    return frozenset({value, share, 100 - value, 1 - share, 100 + value, 1 + share})


def exact(digits: str) -> Fraction:
    """What `digits` ("1,250.5", ".3") is worth, without the error of a float."""
    return Fraction(digits.replace(",", ""))
