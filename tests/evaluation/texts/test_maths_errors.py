"""Kinds of mistakes, on solutions of GSM8K as they are and with one mistake of a known kind put in."""

import json
import re
from collections import Counter
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.errors import QllmError
from qllm_hf.evaluation.texts.equations import equations
from qllm_hf.evaluation.texts.maths_errors import KINDS, error_rates, maths_error, needed, unexplained
from qllm_hf.evaluation.texts.quantities import NUMBER, quantities

APPLES = "Tom has 53 apples and eats 5. Half of the rest is red. How many are red?"
RIGHT = "53 - 5 = <<53-5=48>>48 apples are left.\n48 / 2 = <<48/2=24>>24 are red.\n#### 24"


@pytest.fixture(scope="module")
def problems(shared) -> list[tuple[str, str]]:
    """Question and solution: 400 of the test set, 64 of the training set."""
    rows = []
    for name in ("gsm8k", "gsm8k_train"):
        with (shared / "data" / "emergent" / f"{name}.jsonl").open(encoding="utf-8") as lines:
            rows += [json.loads(line) for line in lines]
    return [(row["question"], row["answer"]) for row in rows]


def plain(solution: str) -> str:
    return re.sub(r"<<.*?>>", "", solution).partition("####")[0]


def kind_of(written: str, question: str = APPLES, solution: str = RIGHT) -> str | None:
    return maths_error(question, solution, written, answer_is_right=False)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("Tom eats the apples.", "empty"),
        ("53 - 5 = 49, 49 / 2 = 24.5", "calculation error"),
        ("35 - 5 = 30, 30 / 2 = 15", "copy mistake"),
        ("53 / 2 = 26.5", "missed condition"),
        ("The answer is 24", "missed condition"),
        ("53 + 5 = 58, 58 / 2 = 29", "logic error"),
        ("53 - 5 = 48, and that is it.", "missed condition"),
        ("From fifty-three he eats five, and half is left: 24.", "logic error"),
        ("35 - 5 = 31", "calculation error"),  # what is certain from the text alone comes first
        ("35 / 2 = 17.5", "copy mistake"),
    ],
)
def test_each_kind(written, kind):
    assert kind_of(written) == kind
    assert maths_error(APPLES, RIGHT, written, answer_is_right=True) is None


@pytest.mark.parametrize(
    "text",
    [
        "$1.50 x 50 = $75",
        "10 cages * 5 pieces of straw per cage = 50 pieces",
        "30,000*.1=$3000",
        "20 \u00d7 3 ÷ 4 = 15",
        "(3 + 4) * 2 = 14",
        "5 * (10 - 4) / 3 = 10",
        "1/2 (68) + 10 = 44",
        "25% * 40 = 10",
        "3/4 of 12 eggs = 9 eggs",
        "100% - 25% = 75%",
        "30/60 = 50%",
        "10 / 3 = 3.33",
        "7 / 2 = 4 and 7 / 2 = 3",
        "2 + 3 = 1 + 4 = 5",
        "12 * 2 = 24 + 6 = 30",
        "1 - 1/4 = 3/4",
        "$20/hour * 35 hours/week = $700/week",
        "5 plus 3 equals 8, 5 times 3 equals 15",
        "160 pieces \u2013 70 pieces for the rats and rabbits = 90",
        "3 - 5 = -2",
        r"4 \times 5 = **20**",
    ],
)
def test_true_equations(text):
    """And one wrong digit makes each of them false."""
    found = equations(text)
    assert found and all(equation.is_true for equation in found)
    wrong = re.sub(r"(\d)(\D*)$", lambda end: str((int(end[1]) + 5) % 10) + end[2], text)
    assert not all(equation.is_true for equation in equations(wrong))


@pytest.mark.parametrize(
    "text",
    [
        "x + 3 = 7",
        "2x = 80",
        "x+x+30=110",
        "y = 5 m + 2 = 9",
        "5^2 + 3 = 28",
        "8:30 + 2 = 10:30",
        "the rest + 5 = 9",
        "5 = 5",
        "30*=90",
        "A bag has 20 sweets.",
        "4 / 0 = 4",
        "3 + 4 <= 9",
    ],
)
def test_what_is_no_equation_of_numbers(text):
    assert equations(text) == []


@given(st.integers(0, 9999), st.integers(1, 999), st.sampled_from("+-*/"), st.integers(1, 50))
def test_sums_are_checked_exactly(a, b, sign, off):
    value = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b)}[sign]
    shown = str(value) if value.denominator == 1 else f"{float(value):.3f}"
    assert [found.is_true for found in equations(f"So {a} {sign} {b} = {shown} in all.")] == [True]
    wrong = value + off if value.denominator == 1 else round(float(value) + off, 3)
    assert [found.is_true for found in equations(f"So {a} {sign} {b} = {wrong} in all.")] == [False]


@given(st.text(alphabet="0123456789 +-*/=()x.,$%\nab:<>", max_size=60))
def test_any_text_is_read(text):
    assert kind_of(text) in KINDS
    assert len(equations(text)) <= text.count("=")


@pytest.mark.parametrize(
    ("text", "value", "lent"),
    [
        ("twenty-five", 25, [25]),
        ("two hundred and five", 205, [205]),
        ("3 dozen", 36, [3, 12, 36]),
        ("1.5 million", 1_500_000, [1_500_000]),
        ("$1,250.50", Fraction("1250.5"), []),
        ("25%", 25, [Fraction(1, 4), 75, Fraction(5, 4)]),
        ("two-thirds", Fraction(2, 3), [2, 3, Fraction(1, 3)]),
        ("3/4", Fraction(3, 4), [3, 4, Fraction(1, 4)]),
        ("half", Fraction(1, 2), [2, Fraction(3, 2)]),
        ("twice", 2, [2]),
        ("½", Fraction(1, 2), [2]),
    ],
)
def test_quantities(text, value, lent):
    (quantity,) = quantities(f"He saw {text} of them")
    assert quantity.value == value
    assert quantity.lends >= {value, *map(Fraction, lent)}
    assert Fraction(77) not in quantity.lends


def test_a_text_without_numbers_has_none():
    assert quantities("A man saw an attic, often.") == []


def test_where_numbers_come_from():
    assert unexplained("He works 3 hours a day.", "3 * 7 = 21 a week") == []
    assert unexplained("He buys 3 pens.", "3 * 7 = 21") == [7]  # no word for a week
    assert unexplained("He sold 3 of 9.", "So 6 are left.\n6 * 3 = 18") == []
    assert unexplained("He sold 3 of 9.", "So 6 are left, 6 * 3 = 18") == [6]
    assert unexplained("He sold 3 of 9.", "So 50 are left.\n50 * 3 = 150") == [50]


def test_what_a_solution_needs():
    assert [quantity.value for quantity in needed(APPLES, RIGHT)] == [53, 5, Fraction(1, 2)]
    assert [
        quantity.value for quantity in needed("Of 8 cats and 3 dogs, how many are cats and more?", "8 + 1 = 9")
    ] == [8]


def test_error_rates():
    kinds = ["logic error", None, "logic error", "empty", "copy mistake", None]
    rates = error_rates(kinds)
    assert list(rates) == list(KINDS)
    assert rates["logic error"] == 0.5 and rates["empty"] == 0.25 and sum(rates.values()) == 1
    assert error_rates([None]) == dict.fromkeys(KINDS, 0.0)
    with pytest.raises(QllmError, match="Did you mean 'logic error'"):
        error_rates(["logic eror"])


def test_right_solutions_show_no_mistake(problems):
    """464 solutions, called wrong: what is found besides "logic error" is a false alarm."""
    found = Counter(maths_error(q, solution, plain(solution), answer_is_right=False) for q, solution in problems)
    assert found["calculation error"] <= 0.01 * len(problems)
    assert found["copy mistake"] <= 0.04 * len(problems)
    assert found["missed condition"] == found["empty"] == 0


# Mistakes of a known kind. A solution is text, calculation, result, text, calculation, result, ..., text.
Pieces = list[str]


def pieces(solution: str) -> Pieces:
    return re.split(r"<<([^<>=]*)=([^<>]*)>>", solution.partition("####")[0])


def quantities_of(question: str) -> set[str]:
    return {str(value) for quantity in quantities(question) for value in quantity.lends}


def worked_out(calculation: str) -> Fraction | None:
    return next((equation.value for equation in equations(f"{calculation} = 0")), None)


def replay(parts: Pieces, other: dict[str, str]) -> str | None:
    """The text with numbers replaced, and every later result worked out anew; None if one is no natural number."""
    other = dict(other)

    def swap(text: str) -> str:
        return re.sub(NUMBER, lambda number: other.get(number[0].replace(",", ""), number[0]), text)

    text = swap(parts[0])
    for place in range(1, len(parts), 3):
        calculation, result, following = parts[place : place + 3]
        value = worked_out(swap(calculation))
        if value is None or value != worked_out(calculation):
            if value is None or value.denominator != 1 or value <= 0:
                return None
            other[result] = str(value)
        text += swap(following)
    return text


def with_false_result(question, parts, random):
    place = random.randrange(2, len(parts), 3)
    if not parts[place].isdigit() or not parts[place + 1].startswith(parts[place]):
        return None
    wrong = str(int(parts[place]) + random.randint(1, 9))
    return "".join(parts[0:place:3]) + parts[place + 1].replace(parts[place], wrong, 1) + "".join(parts[place + 4 :: 3])


def with_copied_number(question, parts, random):
    used = [number for number in re.findall(r"\d+", " ".join(parts[1::3])) if re.search(rf"\b{number}\b", question)]
    if not (used := [number for number in used if int(number) > 2 and number not in parts[2::3]]):
        return None
    right = random.choice(used)
    wrong = str(random.choice([n for n in range(3, 3 * int(right) + 9) if not re.search(rf"\b{n}\b", question)]))
    return replay(parts, {right: wrong})


def without_a_condition(question, parts, random):
    """One step is left out, and what it changed is used as it was."""
    steps = list(range(1, len(parts), 3))
    random.shuffle(steps)
    for place in steps:
        operands = re.findall(NUMBER, parts[place])
        others = " ".join(parts[1:place:3] + parts[place + 3 :: 3])
        for left_out, kept in (operands, operands[::-1]) if len(operands) == 2 else ():
            in_question = re.search(rf"\b{left_out}\b", question) and int(float(left_out)) > 2
            is_ambiguous = parts[place + 1] in quantities_of(question) or parts[2::3].count(parts[place + 1]) > 1
            if in_question and not is_ambiguous and not re.search(rf"\b{left_out}\b", others) and len(steps) > 1:
                line_before = parts[place - 1].rpartition("\n")[0] + "\n"
                line_after = parts[place + 2].partition("\n")[2]
                rest = [*parts[: place - 1], line_before + line_after, *parts[place + 3 :]]
                return replay(rest, {parts[place + 1]: kept})
    return None


def with_wrong_sign(question, parts, random):
    steps = [place for place in range(1, len(parts), 3) if re.fullmatch(r"[\d.]+[+-][\d.]+", parts[place])]
    if not steps:
        return None
    place = random.choice(steps)
    old, new = ("+", "-") if "+" in parts[place] else ("-", "+")
    before, found, after = parts[place - 1].rpartition(old)
    calculation = parts[place].replace(old, new)
    value = worked_out(calculation)
    if not found or value is None or value.denominator != 1 or value <= 0:
        return None
    changed = [*parts[: place - 1], before + new + after, calculation, parts[place + 1]]
    head = "".join(changed[::3])
    tail = replay(["", "0+" + parts[place + 1], parts[place + 1], *parts[place + 2 :]], {parts[place + 1]: str(value)})
    return None if tail is None else head + tail


@pytest.mark.parametrize(
    ("damage", "kind", "at_least"),
    [
        (with_false_result, "calculation error", 0.95),
        (with_copied_number, "copy mistake", 0.75),
        (without_a_condition, "missed condition", 0.75),
        (with_wrong_sign, "logic error", 0.9),
    ],
)
def test_mistakes_are_recognised(problems, damage, kind, at_least):
    random, found = Random(0), Counter()
    for question, solution in problems:
        # A step without a calculator note would keep its old result, which is a second mistake.
        if "<<" not in solution or len(equations(plain(solution))) != solution.count("<<"):
            continue
        if (written := damage(question, pieces(solution), random)) is not None:
            found[maths_error(question, solution, written, answer_is_right=False)] += 1
    assert found.total() > 100
    assert found[kind] >= at_least * found.total()
