"""Why a worked answer is wrong: the four kinds of mistakes that the study found in mathematical reasoning (section 4).

| kind | what it means | example: "Tom has 53 apples and eats 5. Half of the rest is red. How many are red?" |
|---|---|---|
| empty | nothing was written, or nothing with a number | "Tom eats the apples." |
| calculation error | an equation of the text is false | "53 - 5 = 49, 49 / 2 = 24.5" |
| copy mistake | a calculation uses a number that comes from nowhere | "35 - 5 = 30, 30 / 2 = 15" |
| missed condition | a number that the solution needs never appears | "53 / 2 = 26.5" |
| logic error | none of these: the steps are the wrong ones | "53 + 5 = 58, 58 / 2 = 29" |
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Final

from ...errors import QllmError, did_you_mean
from .equations import Written, equations, results_of
from .quantities import Quantity, quantities

KINDS: Final = ("empty", "calculation error", "copy mistake", "missed condition", "logic error")

# Everyday numbers that no question has to state, and the beginnings of the words by which they are meant.
CONSTANTS: Final[dict[int, str]] = {
    3: "yard feet triang meal",
    4: "month quarter square rectang season wheel tire car leg",
    5: "week workday nickel finger toe",
    6: "dice die",
    7: "week day",
    8: "ounce pint cup gallon",
    10: "dime decade cent % tenth digit",
    12: "month year dozen inch feet foot hour noon midnight",
    14: "week fortnight",
    16: "ounce pound cup gallon",
    20: "nickel score",
    24: "hour day",
    25: "quarter",
    28: "month february week",
    30: "month half minute",
    31: "month",
    32: "ounce quart",
    36: "inch yard",
    50: "half percent %",
    52: "week year card",
    60: "minute hour second",
    90: "angle degree",
    100: "percent % cent dollar $ meter metre century grade",
    180: "angle degree triang",
    360: "angle degree circle year",
    365: "day year daily",
    366: "leap",
    1000: "kilo km kg gram ml milli liter litre meter metre ton",
    1760: "mile",
    2000: "ton pound",
    3600: "hour second",
    5280: "mile",
}
_ALWAYS: Final = (0, 1, 2)


def maths_error(question: str, solution: str, written: str, *, answer_is_right: bool) -> str | None:
    """One of `KINDS`, or None if the answer is right.

    `solution` is a right way to the answer; calculator notes as in GSM8K (<<48/2=24>>) may be in it or not.

    The first kind of `KINDS` that holds is returned. They are in the order of how certain they are: a false equation
    shows in the text alone, a copied number needs the question, a missed one needs the solution as well, and an error
    of logic is what is left.

    * An equation is false as `equations` says; those with variables are not looked at, and rounding is allowed.
    * A number comes from somewhere if the question lends it (25% lends 0.25 and 0.75 too, see `quantities`), if it
      was the result of an equation before, if an earlier line says it and one step leads to it from two such numbers,
      if it is 0, 1 or 2, or if it is one of `CONSTANTS` and a word for it is in the question or the text.
    * A number of the question is needed if it, or what it lends, is in a calculation of the solution; it appears in
      `written` if anything that it lends does, in digits or in words.

    It takes the solution's way for the only one: another way, that needs other numbers and errs in its logic, can
    look like a missed condition. A number replaced by another of the question is no copy mistake, but a missed
    condition if it appears nowhere else.
    """
    if answer_is_right:
        return None
    stated = quantities(written)
    if not stated:
        return "empty"
    steps = equations(written)
    if not all(step.is_true for step in steps):
        return "calculation error"
    if unexplained(question, written):
        return "copy mistake"
    said = frozenset[Fraction]().union(*(quantity.lends for quantity in stated))
    if any(not quantity.lends & said for quantity in needed(question, solution)):
        return "missed condition"
    return "logic error"


def error_rates(kinds: Iterable[str | None]) -> dict[str, float]:
    """The share of each kind among the wrong answers: all of `KINDS`, which sum to 1, or are all 0 if none is wrong.

    `kinds` is what `maths_error` returned for each answer; None, for a right one, is left out.

    Raises:
        QllmError: something else is in it.
    """
    counts = Counter(kind for kind in kinds if kind is not None)
    for kind in counts:
        if kind not in KINDS:
            raise QllmError(f"{kind!r} is no kind of error.{did_you_mean(kind, KINDS)} There are {', '.join(KINDS)}.")
    return {kind: counts[kind] / max(counts.total(), 1) for kind in KINDS}


def unexplained(question: str, written: str) -> list[Fraction]:
    """The numbers in the calculations of `written` that come from nowhere, as `maths_error` explains it, in order."""
    lent = {value for quantity in quantities(question) for value in quantity.lends} | set(map(Fraction, _ALWAYS))
    context = f"{question} {written}".lower()
    lent |= {Fraction(value) for value, words in CONSTANTS.items() if _has_a_word(context, words)}
    results = results_of(written)
    found = []
    for step in equations(written):
        before = [number for at, number in results if at < step.at]
        # A number counts as said only on an earlier line: a line that copies wrongly often names the number first.
        said = {quantity.value for quantity in quantities(written[: written.rfind("\n", 0, step.at) + 1])}
        known = lent | {number.value for number in before}
        for operand in step.operands:
            if _is_lent(operand, lent) or any(_is_same(operand, number) for number in before):
                continue
            if not (operand.value in said and _is_near(operand, known)):
                found.append(operand.value)
    return found


def needed(question: str, solution: str) -> list[Quantity]:
    """The numbers of `question` that the calculations of `solution` use."""
    notes = " ; ".join(re.findall(r"<<([^<>]*)>>", solution))
    used = {operand.value for text in (solution, notes) for step in equations(text) for operand in step.operands}
    return [quantity for quantity in quantities(question) if quantity.lends & used]


def _is_lent(operand: Written, lent: set[Fraction]) -> bool:
    return abs(operand.value) in lent or (operand.is_percent and operand.value / 100 in lent)


def _is_same(operand: Written, result: Written) -> bool:
    """Whether an earlier result is used, as written, rounded, or as a percentage."""
    value = abs(result.value)
    return operand.stands_for(value) or operand.stands_for(100 * value) or operand.value == value / 100


def _is_near(operand: Written, known: set[Fraction]) -> bool:
    """Whether one step leads from two of the known numbers to this one, so that it can be done in the head."""
    return any(
        operand.value in (a + b, a - b, a * b) or (b and operand.stands_for(a / b)) for a in known for b in known
    )


def _has_a_word(text: str, beginnings: str) -> bool:
    return any(
        re.search(rf"\b{word}" if word.isalpha() else re.escape(word), text) is not None for word in beginnings.split()
    )
