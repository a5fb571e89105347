"""Answers found in texts as models write them, each case worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.evaluation.scoring import extract

REASONABLE = ("reasonable", "unreasonable")
YES_NO = ("yes", "no")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Maria.", "Maria"),
        ("  Maria, and then", "Maria"),
        ("coffee\nThe next line", "coffee"),
        ("don't go", "don"),
        ("well-known", "well"),
        ("naïve people", "naïve"),
        ("the door", None),  # the study's rule: only the first word counts, and it loses its article
        ("A", None),
        ("Another day", "Another"),
        ("Anna", "Anna"),
        ("{Maria}", None),
        ('"Maria"', None),
        ("...", None),
        ("", None),
        (" \n ", None),
    ],
)
def test_first_word(text, word):
    assert extract.first_word(text) == word


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Hamsters are prey. So the answer is yes.", "yes"),
        ("Pears float. So the answer is No.", "no"),
        ("Is the answer is yes? Thus, the answer is no.", "no"),
        ("The answer is yes, but some say no.", "yes"),
        ("The answer is yes.\n\nQ: Do owls fly?\nA: The answer is no.", "yes"),
        ("No, it would not.", "no"),
        ("Nobody knows, and nothing is noted. Yesterday it was.", None),
        ("So the answer is not certain.", None),
        ("The Answer Is YES", "yes"),
        ("I cannot answer this.", None),
        ("", None),
        ("\n\nThe answer is yes.", None),  # the first paragraph is empty
    ],
)
def test_chain_yes_no(text, word):
    assert extract.chain_yes_no(text) == word


@pytest.mark.parametrize(
    ("text", "digits", "number"),
    [
        ("16 - 3 - 4 = 9 eggs, 9 * 2 = 18. The answer is 18.", "18", 18.0),
        ("The answer is 5. No, the answer is 6.", "6", 6.0),
        ("She earns $1,234.", "1234", 1234.0),
        ("It costs 1,234,567 dollars.", "1234567", 1234567.0),
        ("The answer is $18.00", "1800", 18.0),  # the study keeps digits only
        ("The answer is 2.5.", "25", 2.5),
        ("The answer is -5.", "5", -5.0),
        ("She loses money: -$5", "5", -5.0),
        ("It falls to \u22125 degrees.", "5", -5.0),
        ("10-3", "103", 3.0),
        ("Half of it is .5", "5", 0.5),
        ("So x=4,y=7 and thus,18", "18", 18.0),
        (r"\boxed{42}", "42", 42.0),
        ("{18}", "18", 18.0),
        ("It is 20% of them", "20", 20.0),
        ("The answer is 18.\n\nQ: There are 77 birds.", "18", 18.0),
        ("Eighteen", None, None),
        ("x² = four", None, None),
        ("$", None, None),
        ("", None, None),
        ("所以答案是18。", "18", 18.0),
    ],
)
def test_chain_digits_and_number(text, digits, number):
    assert (extract.chain_digits(text), extract.chain_number(text)) == (digits, number)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Reasonable", "reasonable"),
        ("unreasonable.", "unreasonable"),
        ("UNREASONABLE", "unreasonable"),
        ("It is not reasonable.", "unreasonable"),
        ("It is not unreasonable.", "reasonable"),
        ("This isn't reasonable.", "unreasonable"),
        ("That would not be very reasonable to say.", "unreasonable"),
        ("Most people wouldn\u2019t find this unreasonable.", "reasonable"),
        ("Not at all. It is reasonable.", "reasonable"),
        ('You ask "reasonable" or "unreasonable": unreasonable', "unreasonable"),
        ("Is it reasonable or unreasonable? Reasonable.", "reasonable"),
        ("Unreasonable/reasonable?", None),
        ("\u201creasonable\u201d or \u201cunreasonable\u201d", None),
        ("答案是reasonable。", "reasonable"),
        ("{unreasonable}", "unreasonable"),
        ("It is unreasonably expensive.", None),
        ("It depends.", None),
        ("", None),
    ],
)
def test_one_of_reasonable(text, word):
    assert extract.one_of(text, REASONABLE) == word


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes.", "yes"),
        ("no", "no"),
        ("**No**", "no"),
        ("yes or no? No", "no"),
        ('You can answer with "yes" or "no". Yes', "yes"),
        ("Yes/No: no", "no"),
        ("No, it is not wrong; yes, it is odd.", "no"),
        ("I do not know, nor did I notice.", None),
        ("Not sure, yes", "yes"),
        ("Yesterday", None),
        ("", None),
    ],
)
def test_one_of_yes_no(text, word):
    assert extract.one_of(text, YES_NO) == word


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("B. no", "B"),
        ("(B)", "B"),
        ("B) no", "B"),
        ("  A\nbecause", "A"),
        ("The answer is B.", "B"),
        ("The answer is: (C) no", "C"),
        ("**Answer:** B", "B"),
        ("Answer:\nB", "B"),
        ("The answer is B because A is false.", "B"),
        ("The correct answer is option A.", "A"),
        ("(A) is wrong, so the answer is C", "C"),
        ("Option C", "C"),
        ("B is correct.", "B"),
        ("B no", "B"),
        ("A yes", "A"),
        ("A is the correct answer.", "A"),
        ("I would pick C, not A.", "C"),
        (r"\boxed{B}", "B"),
        ("{B}", "B"),
        ("A man is riding a horse.", None),
        ("Answer: A man is riding.", None),
        ("A person would say B", "B"),
        ("D", None),  # not among the letters of this question
        ("b", None),
        ("I'd rather not say.", None),
        ("BBC and ABC", None),
        ("答案:B", "B"),
        ("答案是B。", "B"),
        ("yes", None),
        ("", None),
    ],
)
def test_option_letter(text, letter):
    assert extract.option_letter(text, "ABC") == letter


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The <REGISTER_CONTENT> in line torpid-kid is <24169>.", 24169),
        ("24169, in line 17", 17),
        ("24,169", 169),  # LongEval's rule takes the last run of digits
        ("24169.0", 0),
        ("-5", 5),
        ("寄存器的内容是24169。", 24169),
        ("none", None),
        ("", None),
    ],
)
def test_last_integer(text, number):
    assert extract.last_integer(text) == number


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Mona Lisa!", "mona lisa"),
        ("  an  apple,\ta day\n", "apple day"),
        ("U.S.A.", "usa"),
        ("{Anthem}", "anthem"),
        ("Röntgen", "röntgen"),
        ("The", ""),
        ("", ""),
    ],
)
def test_normalise(text, normal):
    assert extract.normalise(text) == normal


@given(st.text())
def test_no_text_is_an_error(text):
    extract.first_word(text), extract.chain_yes_no(text), extract.chain_digits(text), extract.chain_number(text)
    extract.option_letter(text), extract.last_integer(text), extract.one_of(text, REASONABLE)
    assert extract.normalise(extract.normalise(text)) == extract.normalise(text)


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{:d}", "{:,d}", "{:d}.00", "${:,d}", "**{:d}**", "{:d}."]))
def test_a_number_is_found_however_it_is_written(number, form):
    text = f"First 12, then 7. The answer is {form.format(number)}"
    assert extract.chain_number(text.replace("$-", "-$")) == number


@given(st.sampled_from("ABCD"), st.sampled_from(["{}", "({})", "{}.", "The answer is {}.", "Answer: {}", "I pick {}"]))
def test_a_letter_is_found_however_it_is_written(letter, form):
    assert extract.option_letter(form.format(letter)) == letter
