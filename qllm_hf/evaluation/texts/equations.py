"""The equations written in a text, worked out exactly: which numbers each one uses, and whether it is true.

What is not certainly an equation between numbers is left out: one with a variable, a power, a clock time, or with
words where a number belongs. So a false equation is the fault of the text and not of this reader.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import pairwise
from typing import Final, NamedTuple

from .quantities import NUMBER, exact

_WORD_SIGNS: Final = {
    "plus": "+", "minus": "-", "times": "*", "divided by": "/", "multiplied by": "*", "equals": "=",
}  # fmt: skip
_SIGNS: Final = {
    **dict.fromkeys("+", "+"),
    **dict.fromkeys("-\u2212\u2013\u2014", "-"),
    **dict.fromkeys("*\u00d7\u00b7\u2715\u22c5", "*"),
    **dict.fromkeys("/\u00f7", "/"),
    **dict.fromkeys("=\u2248", "="),
    **dict.fromkeys("([", "("),
    **dict.fromkeys(")]", ")"),
}
_STOPS: Final = frozenset(".,;:!?\n\"'\u2019\u201c\u201d#`")
_LATEX: Final = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\$": "$", r"\%": "%", r"\(": " ", r"\)": " "}
_ANNOTATION: Final = re.compile(r"<<[^<>]*>>")
_TOKEN: Final = re.compile(
    rf"(?P<time>\d+:\d+|\d+\s?[ap]\.?m\b)"
    rf"|(?P<variable>(?:{NUMBER})[^\W\d_](?![^\W_])|[<>=!]=+|[<>]|[=\-]>)"
    rf"|(?P<number>(?:[$£€] ?)?(?:{NUMBER})(?P<percent> ?%)?)"
    r"|(?P<times>[xX])(?=\s*[$£€(\d.])"
    r"|(?P<word_sign>plus|minus|times|divided by|multiplied by|equals)\b"
    r"|(?P<word>(?:(?<=\w)[-/])?[^\W\d_]+(?:['\u2019/-][^\W\d_]+)*)"
    r"|(?P<sign>\S|\n)",
    re.IGNORECASE,
)
_MOST_WORDS: Final = 12


class Written(NamedTuple):
    """A number as it is written: its value, how many decimals it shows, and whether a % follows."""

    value: Fraction
    decimals: int
    is_percent: bool = False

    def stands_for(self, value: Fraction) -> bool:
        """Whether this is `value`, or `value` rounded up or down to the decimals shown."""
        scale = 10**self.decimals
        return self.value in (Fraction(math.floor(value * scale), scale), Fraction(math.ceil(value * scale), scale))


class Equation(NamedTuple):
    """`operands` = `results`, as written; the true value of the left side; whether the right side stands for it.

    `results` is what follows the equals sign: one number, or those of a calculation. `at` is where that sign stands.
    """

    operands: tuple[Written, ...]
    value: Fraction
    results: tuple[Written, ...]
    is_true: bool
    at: int


class _Token(NamedTuple):
    kind: str  # "number", "word", "variable", "stop", "other", or one of + - * / = ( )
    at: int
    number: Written | None = None
    is_glued: bool = False  # no space after it


def equations(text: str) -> list[Equation]:
    """The equations of `text` that hold nothing but numbers and words for their units, in order.

    Numbers may have $, £, €, commas, decimals and %; operators are + - * x \u00d7 / \u00f7 and the words for them;
    brackets count, and so does "3/4 of 12". a + b = c + d = e is two equations, and in a + b = c + d = e the first
    may mean a + b = c, as many people write. A % may be left out on one side.

    A right side may be rounded, up or down, to the decimals it shows: 10 / 3 = 3.33, 7 / 2 = 3 and 7 / 2 = 4.
    Calculator notes as in GSM8K (<<48/2=24>>) are passed over.
    """
    tokens = _tokens(text)
    found = (_equation(tokens, at) for at, token in enumerate(tokens) if token.kind == "=")
    return [equation for equation in found if equation]


def results_of(text: str) -> list[tuple[int, Written]]:
    """Each number right after an equals sign, and where that sign is: of equations that are not read, too."""
    tokens = _tokens(text)
    return [
        (token.at, following.number) for token, following in pairwise(tokens) if token.kind == "=" and following.number
    ]


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


def _tokens(text: str) -> list[_Token]:
    plain = _ANNOTATION.sub(_blank, text).replace("**", "  ")
    for name, sign in _LATEX.items():
        plain = plain.replace(name, sign.ljust(len(name)))
    tokens: list[_Token] = []
    for match in _TOKEN.finditer(plain):
        kind, shown, at = match.lastgroup or "", match[0], match.start()
        if match["number"]:
            digits = re.sub(r"[^\d.]", "", shown)
            is_percent = match["percent"] is not None
            number = Written(exact(digits), len(digits.partition(".")[2]), is_percent)
            kind, is_glued = "number", plain[match.end() : match.end() + 1] not in ("", " ")
            tokens.append(_Token(kind, at, number, is_glued))
            continue
        if kind == "times":
            kind = "*"
        elif kind == "word_sign":
            kind = _WORD_SIGNS[shown.lower()]
        elif kind == "time":
            kind = "variable"
        elif kind == "word":
            kind = _kind_of_word(shown, tokens, plain[match.end() :])
        elif kind == "sign":
            kind = "stop" if shown in _STOPS else _SIGNS.get(shown, "other")
        is_glued = plain[match.end() : match.end() + 1] not in ("", " ")
        tokens.append(_Token(kind, at, None, is_glued))
    return tokens


def _kind_of_word(word: str, before: list[_Token], after: str) -> str:
    if word.lower() == "of" and before and before[-1].number and re.match(r"\s*[$(\d]", after):
        is_share = before[-1].number.is_percent or (len(before) > 1 and before[-2].kind == "/")
        return "*" if is_share else "word"
    # A single letter is a variable, but for the article: "$5 a day".
    is_article = word.lower() == "a" and bool(re.match(r"\s+[^\W\d_]", after))
    return "variable" if len(word) == 1 and not is_article else "word"


def _equation(tokens: list[_Token], at: int) -> Equation | None:
    left = _left_side(tokens, at)
    if left is None:
        return None
    value = evaluate(left)
    right = _right_side(tokens, at)
    if value is None or not right or right[0].number is None:
        return None
    first = right[0].number
    whole = evaluate(right)
    sides = [whole] if whole is not None and len(right) > 1 else []
    operands = tuple(token.number for token in left if token.number)
    has_percent = any(number.is_percent for number in (*operands, first))
    scales = (Fraction(1), Fraction(100), Fraction(1, 100)) if has_percent else (Fraction(1),)
    # 7/8 = 1/2 must not pass because 7/8 rounds up to the 1.
    is_fraction = len(right) == 3 and right[1].kind == "/" and right[0].is_glued
    if not is_fraction and any(first.stands_for(value * scale) for scale in scales):
        return Equation(operands, value, (first,), True, tokens[at].at)
    is_true = any(side == value * scale for side in sides for scale in scales)
    results = tuple(token.number for token in right if token.number) if is_true else (first,)
    return Equation(operands, value, results, is_true, tokens[at].at)


def _left_side(tokens: list[_Token], end: int) -> list[_Token] | None:
    """The calculation before the equals sign at `end`, without its units; None if it is none, or not certain."""
    side: list[_Token] = []
    at = end - 1
    while True:
        at = _over_words(tokens, at)
        if at < 0:
            return None
        if tokens[at].number:
            side.insert(0, tokens[at])
            at -= 1
        elif tokens[at].kind == ")":
            start = _opening(tokens, at)
            inner = [token for token in tokens[start:at] if token.kind != "word"] if start is not None else []
            if start is None or any(token.kind in ("variable", "stop", "other", "=") for token in inner):
                return None
            side[:0] = [*inner, tokens[at]]
            at = start - 1
            if at >= 0 and tokens[at].number:
                side.insert(0, _Token("*", tokens[at].at))
                continue
        else:
            return None
        before = tokens[at].kind if at >= 0 else "stop"
        if before in "+-*/":
            if before == "-" and tokens[at].is_glued and _is_start(tokens, at - 1):
                side.insert(0, tokens[at])
                break
            side.insert(0, tokens[at])
            at -= 1
            continue
        if before in ("stop", "=", "("):
            break
        if before == ")" and at > 0 and _opening(tokens, at) is None:
            break
        # "the other + 3 = 5": after words, an operator would mean that a part of the calculation is in words.
        beyond = _over_words(tokens, at)
        if before == "word" and (beyond < 0 or tokens[beyond].kind not in "+-*/"):
            break
        return None
    return side if any(token.kind in "+-*/" for token in side[1:]) else None


def _is_start(tokens: list[_Token], at: int) -> bool:
    return at < 0 or tokens[at].kind in ("stop", "=", "(", "+", "-", "*", "/", "word")


def _over_words(tokens: list[_Token], at: int) -> int:
    """Where the words that end at `at` begin, less one; -1 if there are too many for a unit."""
    for _ in range(_MOST_WORDS):
        if at < 0 or tokens[at].kind != "word":
            return at
        at -= 1
    return -1


def _opening(tokens: list[_Token], closing: int) -> int | None:
    depth = 0
    for at in range(closing, -1, -1):
        depth += (tokens[at].kind == ")") - (tokens[at].kind == "(")
        if depth == 0:
            return at
        if tokens[at].kind == "stop":
            return None
    return None


def _right_side(tokens: list[_Token], at: int) -> list[_Token]:
    """What follows the equals sign at `at`: a number, or a calculation without its units; empty if neither."""
    side: list[_Token] = []
    for token in tokens[at + 1 :]:
        if token.kind == "variable" or (token.kind == "other" and not side):
            return []
        if token.kind in ("stop", "=", "other"):
            break
        if token.kind == "word":
            if not side:
                return []
            continue
        if side and side[-1].number and token.number:
            break
        side.append(token)
    while side and side[-1].kind in ("+", "-", "*", "/", "("):
        side.pop()
    if len(side) > 1 and side[0].kind == "-" and side[1].number:
        negative = side[1].number._replace(value=-side[1].number.value)
        side[:2] = [side[1]._replace(number=negative)]
    return side


def evaluate(side: list[_Token]) -> Fraction | None:
    """What a calculation is worth, or None if it is not well formed or divides by zero."""
    rest = list(reversed(side))

    def factor() -> Fraction | None:
        token = rest.pop() if rest else None
        if token is None:
            return None
        if token.number:
            value = token.number.value / (100 if token.number.is_percent else 1)
            return value * bracket if rest and rest[-1].kind == "(" and (bracket := factor()) is not None else value
        if token.kind == "-":
            value_or_none = factor()
            return None if value_or_none is None else -value_or_none
        if token.kind != "(":
            return None
        inner = total()
        return inner if rest and rest.pop().kind == ")" else None

    def product() -> Fraction | None:
        value = factor()
        while value is not None and rest and rest[-1].kind in "*/":
            is_division = rest.pop().kind == "/"
            other = factor()
            if other is None or (is_division and not other):
                return None
            value = value / other if is_division else value * other
        return value

    def total() -> Fraction | None:
        value = product()
        while value is not None and rest and rest[-1].kind in "+-":
            is_difference = rest.pop().kind == "-"
            other = product()
            if other is None:
                return None
            value = value - other if is_difference else value + other
        return value

    value = total()
    return value if not rest else None
