"""Each rule on texts as models write them, marked by hand, and the score of a benchmark."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.errors import ConfigError
from qllm_hf.evaluation.registry import TASKS
from qllm_hf.evaluation.scoring.rules import RULES, Mark
from qllm_hf.evaluation.scoring.score import ADVERSARIAL, ORIGINAL, score

RIGHT, WRONG, SILENT = Mark(1.0), Mark(0.0), Mark(0.0, answered=False)
CASES = {
    "choice": [
        ("2", ["2"], RIGHT),
        (" 2 ", ["2"], RIGHT),
        ("0", ["2"], WRONG),
        ("0", ["0", "3"], RIGHT),
    ],
    "mass": [("0.37", [], Mark(0.37)), ("1.0", [], RIGHT), ("0", [], WRONG)],
    "word": [
        ("Maria.", ["Maria"], RIGHT),
        ("maria", ["Maria"], WRONG),
        ("Maria's", ["Maria"], RIGHT),
        ("the door", ["door"], SILENT),
        ("", ["door"], SILENT),
    ],
    "yes_no_chain": [
        ("So the answer is yes.", ["yes"], RIGHT),
        ("The answer is yes. Wait, the answer is no.", ["yes"], WRONG),
        ("Perhaps.", ["no"], SILENT),
        ("", ["no"], SILENT),
    ],
    "digits_chain": [
        ("The answer is $1,234.", ["1,234"], RIGHT),
        ("The answer is 18.", ["18"], RIGHT),
        ("The answer is $18.00.", ["18"], WRONG),
        ("The answer is -5.", ["5"], RIGHT),
        ("The answer is unknown.", ["18"], SILENT),
    ],
    "number_chain": [
        ("The answer is $1,234.", ["1,234"], RIGHT),
        ("The answer is $18.00.", ["18"], RIGHT),
        ("The answer is -5.", ["5"], WRONG),
        ("The answer is -5.", ["-5"], RIGHT),
        ("The answer is unknown.", ["18"], SILENT),
    ],
    "yes_no": [
        ("Yes.", ["yes"], RIGHT),
        ("No, this is fine.", ["yes"], WRONG),
        ("I cannot answer that.", ["no"], SILENT),
        ("I'm sorry, but I cannot judge this.", ["no"], SILENT),
        ("很抱歉,我无法判断", ["no"], SILENT),
        ('You ask me to answer "yes" or "no".', ["no"], SILENT),
        ("", ["no"], SILENT),
    ],
    "reasonable": [
        ("unreasonable", ["reasonable"], WRONG),
        ("unreasonable", ["unreasonable"], RIGHT),
        ("It is not reasonable.", ["unreasonable"], RIGHT),
        ("It isn't reasonable.", ["reasonable"], WRONG),
        ("As an AI language model, I cannot judge whether this is reasonable.", ["reasonable"], SILENT),
        ("", ["reasonable"], SILENT),
    ],
    "option": [
        ("B", ["B"], RIGHT),
        ("(B)", ["B"], RIGHT),
        ("The answer is B.", ["B"], RIGHT),
        ("The answer is B because it follows.", ["B"], RIGHT),
        ("A man sleeps.", ["A"], SILENT),
        ("A", ["B"], WRONG),
        ("", ["B"], SILENT),
    ],
    "integer": [
        ("It is <24169>.", ["24169"], RIGHT),
        ("Line 24169 says 17", ["24169"], WRONG),
        ("0024169", ["24169"], RIGHT),
        ("24169", [" 24169"], RIGHT),
        ("Nothing there", ["24169"], SILENT),
    ],
    "contains": [
        ("They began with the Effects of Sleep!", ["effects of sleep"], RIGHT),
        ("First line\nThen the effects of sleep", ["Effects of sleep"], RIGHT),
        ("They talked", ["effects of sleep"], WRONG),
        ("", ["effects of sleep"], SILENT),
        ("...", ["effects of sleep"], SILENT),
        ("anything", ["the"], WRONG),
    ],
    "contains_on_first_line": [
        ("Wilhelm Conrad Röntgen won it.", ["Wilhelm Conrad Röntgen"], RIGHT),
        ("It was the U.S.", ["US"], RIGHT),
        ("\n\nRöntgen", ["Röntgen"], RIGHT),
        ("Marie Curie\nRöntgen", ["Röntgen"], WRONG),
        ("Marie Curie", ["Röntgen", "Curie"], RIGHT),
        ("The", ["Röntgen"], SILENT),
    ],
    "contains_exactly": [
        ('The value is "2A8D601D-1d69".', ["2a8d601d-1D69"], RIGHT),
        ("2a8d601d 1d69", ["2a8d601d-1d69"], WRONG),
        ("{2a8d601d-1d69}", ["2a8d601d-1d69"], RIGHT),
        ("  ", ["2a8d601d-1d69"], SILENT),
    ],
    "rated": [
        ("Clear. Rating: [[7]]", [], Mark(7.0)),
        ("Rating: [[7.5]]", [], Mark(7.5)),
        ("Rating: [8]", [], Mark(8.0)),
        ("[1] [[9]]", [], Mark(9.0)),
        ("Rating: [[11]]", [], Mark(None, answered=False)),
        ("I rate it 7", [], Mark(None, answered=False)),
        ("评分:[[7]]", [], Mark(7.0)),
        ("", [], Mark(None, answered=False)),
    ],
}


def test_every_rule_has_cases_and_every_task_a_rule():
    assert CASES.keys() == RULES.keys()
    assert {info.rule for info in TASKS.values() if info.rule} <= RULES.keys()


@pytest.mark.parametrize(
    ("rule", "text", "answers", "mark"), [(rule, *case) for rule, cases in CASES.items() for case in cases]
)
def test_marks(rule, text, answers, mark):
    assert RULES[rule](text, answers) == mark


RIGHT_ANSWERS = {
    "yes_no": "yes",
    "reasonable": "unreasonable",
    "option": "B",
    "word": "door",
    "yes_no_chain": "no",
    "digits_chain": "18",
    "number_chain": "18",
    "integer": "18",
    "contains": "the sea",
    "contains_on_first_line": "the sea",
    "contains_exactly": "2a8d-11",
}


@given(st.sampled_from(sorted(RIGHT_ANSWERS)), st.text())
def test_any_text_is_right_or_wrong_and_silence_is_wrong(rule, text):
    mark = RULES[rule](text, [RIGHT_ANSWERS[rule]])
    assert mark.value in (0.0, 1.0)
    assert mark.answered or mark.value == 0.0


@pytest.mark.parametrize("rule", sorted(RIGHT_ANSWERS))
def test_the_right_answer_alone_is_right(rule):
    assert RULES[rule](RIGHT_ANSWERS[rule], [RIGHT_ANSWERS[rule]]) == RIGHT


def items(answers, groups=()):
    return [
        {"answers": [answer], "group": group}
        for answer, group in zip(answers, groups or [""] * len(answers), strict=True)
    ]


def test_score_worked_out_by_hand():
    found = score("yes_no", ["yes", "no", "I cannot answer that.", "No."], items(["yes", "yes", "no", "no"]))
    assert (found.value, found.items, found.answered) == (0.5, 4, 0.75)
    assert found.values == (1.0, 0.0, 0.0, 1.0)
    assert found.stderr == pytest.approx(math.sqrt(4 * 0.25 / 3 / 4))
    assert found.details == {}


def test_groups_count_the_same_in_their_mean():
    found = score("choice", ["0", "0", "1", "1"], items("0001", ["anatomy"] * 3 + ["virology"]))
    assert found.value == 0.75
    assert found.details == pytest.approx({"mean_of_groups": (2 / 3 + 1) / 2, "anatomy": 2 / 3, "virology": 1.0})


def test_robustness_before_and_after():
    groups = [ORIGINAL, ORIGINAL, ADVERSARIAL, ADVERSARIAL, ADVERSARIAL, ADVERSARIAL]
    found = score("option", ["A", "B", "A", "B", "", "B"], items("AAAAAA", groups))
    assert (found.value, found.items, found.values) == (0.25, 4, (1.0, 0.0, 0.0, 0.0))
    assert found.details == {"acc_after": 0.25, "acc_before": 0.5, "acc_drop": 0.5}
    assert found.answered == pytest.approx(5 / 6)


def test_robustness_without_anything_right_before_has_no_drop():
    found = score("option", ["B", "A"], items("AA", [ORIGINAL, ADVERSARIAL]))
    assert found.details == {"acc_after": 1.0, "acc_before": 0.0}
    assert score("option", ["A"], items("A")).details == {"acc_after": 1.0}


def test_judgements_without_a_rating_are_left_out():
    found = score("rated", ["[[8]]", "seven", "[[11]]", "[[5]]"], items([""] * 4))
    assert (found.value, found.items, found.answered, found.values) == (6.5, 2, 0.5, (8.0, 5.0))
    with pytest.raises(ConfigError, match="none of the 2"):
        score("rated", ["seven", ""], items(["", ""]))


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["0"], []), (["0"], items("00"))])
def test_lists_that_do_not_fit(predictions, references):
    with pytest.raises(ConfigError, match="predictions and"):
        score("choice", predictions, references)


@given(st.lists(st.tuples(st.sampled_from("0123"), st.sampled_from("0123"), st.sampled_from("ab")), min_size=2))
def test_a_score_lies_between_0_and_1_whatever_the_order(rows):
    def scored(rows):
        found = score("choice", [row[0] for row in rows], items([row[1] for row in rows], [row[2] for row in rows]))
        return found.value, found.stderr, found.answered, found.details

    value, error, answered, details = scored(rows)
    assert 0 <= value <= 1 and 0 <= error <= 0.5 and answered == 1
    assert all(0 <= part <= 1 for part in details.values())
    assert scored(random.Random(0).sample(rows, len(rows))) == (value, error, answered, details)
