"""Scores of an ability: worked out by hand, and laws that hold for any items."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.errors import ConfigError
from qllm_hf.evaluation.record import ABILITIES
from qllm_hf.evaluation.registry import TASKS
from qllm_hf.evaluation.scoring.abilities import score_ability
from qllm_hf.evaluation.statistics import mean, mean_of_ratio, normalised, recovery


def item(task, *answers, group=""):
    return {"task": task, "answers": list(answers), "group": group}


def choices(task, marks):
    """Predictions that are right where `marks` is true, and their references."""
    return ["1" if mark else "0" for mark in marks], [item(task, "1") for _ in marks]


def same(one, other):
    return one.keys() == other.keys() and all(
        value == other[name] or (math.isnan(value) and math.isnan(other[name])) for name, value in one.items()
    )


def test_two_tasks_by_hand():
    predictions, references = choices("qllm_piqa", [1, 1, 1, 0])
    predictions += ["Maria.", "the door"]
    references += [item("qllm_lambada", "Maria"), item("qllm_lambada", "door")]
    found = score_ability("nlp", predictions, references)
    piqa, lambada = math.sqrt(0.75 / 3 / 4), 0.5
    assert found == pytest.approx(
        {
            "nlp": ((0.75 - 0.5) / 0.5 + 0.5) / 2,
            "nlp_stderr": math.sqrt((piqa / 0.5) ** 2 + lambada**2) / 2,
            "nlp_tasks": 2,
            "qllm_piqa": 0.75,
            "qllm_piqa_stderr": piqa,
            "qllm_piqa_items": 4,
            "qllm_piqa_answered": 1.0,
            "qllm_lambada": 0.5,
            "qllm_lambada_stderr": lambada,
            "qllm_lambada_items": 2,
            "qllm_lambada_answered": 0.5,
        }
    )


def test_a_baseline_by_hand():
    """Quantized 1 1 0 0, before 1 1 1 0, chance 1/4: a quarter of 1 is left of a half, so recovery is a half."""
    predictions, references = choices("qllm_arc_easy", [1, 1, 0, 0] * 4)
    before, _ = choices("qllm_arc_easy", [1, 1, 1, 0] * 4)
    found = score_ability("emergent", predictions, references, before)
    assert found["qllm_arc_easy_recovery"] == found["emergent_recovery"] == 0.5
    assert found["qllm_arc_easy_change"] == -0.25
    # 16 differences, a quarter of them -1
    assert found["qllm_arc_easy_change_stderr"] == pytest.approx(math.sqrt(16 * 0.25 * 0.75 / 15 / 16))
    # (value - ratio * before) / (before - chance): 0.5 * (1, 1, -1, 0) / 0.5
    assert found["qllm_arc_easy_recovery_stderr"] == pytest.approx(np.std([1, 1, -1, 0] * 4, ddof=1) / 4)
    assert found["emergent_recovery_stderr"] == found["qllm_arc_easy_recovery_stderr"]


def test_nothing_to_lose_has_no_recovery_and_is_left_out_of_the_mean():
    guessing = choices("qllm_piqa", [1, 0] * 8)
    able = choices("qllm_siqa", [1] * 8)
    predictions, references = guessing[0] + able[0], guessing[1] + able[1]
    found = score_ability("nlp", predictions, references, predictions)
    assert math.isnan(found["qllm_piqa_recovery"]) and math.isnan(found["qllm_piqa_recovery_stderr"])
    assert found["qllm_piqa_change"] == 0.0
    assert found["qllm_siqa_recovery"] == found["nlp_recovery"] == 1.0
    alone = score_ability("nlp", *guessing, guessing[0])
    assert math.isnan(alone["nlp_recovery"])


def test_judgements_are_paired_where_both_runs_have_a_rating():
    references = [item("qllm_mt_bench", group=f"turn {1 + number % 2}") for number in range(4)]
    now = ["[[6]]", "no rating", "[[4]]", "[[5]]"]
    before = ["[[8]]", "[[9]]", "[[11]]", "[[7]]"]
    found = score_ability("dialogue", now, references, before)
    assert (found["qllm_mt_bench"], found["qllm_mt_bench_items"], found["qllm_mt_bench_answered"]) == (5.0, 3, 0.75)
    assert (found["qllm_mt_bench/turn 1"], found["qllm_mt_bench/turn 2"]) == (5.0, 5.0)
    assert found["dialogue"] == pytest.approx(4 / 9)
    # pairs: 6 after 8, and 5 after 7
    assert found["qllm_mt_bench_change"] == -2.0
    assert found["qllm_mt_bench_recovery"] == found["dialogue_recovery"] == pytest.approx((5.5 - 1) / (7.5 - 1))


def test_runs_without_a_common_rating_cannot_be_compared():
    references = [item("qllm_mt_bench")] * 2
    found = score_ability("dialogue", ["[[6]]", "none"], references, ["none", "[[6]]"])
    assert all(math.isnan(found[f"qllm_mt_bench_{name}"]) for name in ("recovery", "change", "change_stderr"))


def test_only_adversarial_items_count_and_the_drop_is_told():
    references = [
        item("qllm_adv_rte", "A", group=group) for group in ("original", "original", "adversarial", "adversarial")
    ]
    found = score_ability("trust", ["A", "A", "B", "The answer is A."], references, ["A"] * 4)
    assert (found["qllm_adv_rte"], found["qllm_adv_rte_items"]) == (0.5, 2)
    assert (found["qllm_adv_rte/acc_before"], found["qllm_adv_rte/acc_drop"]) == (1.0, 0.5)
    assert (found["qllm_adv_rte_recovery"], found["qllm_adv_rte_change"]) == (0.0, -0.5)


def test_the_mean_of_subjects():
    references = [item("qllm_mmlu", "0", group=group) for group in ("anatomy", "anatomy", "anatomy", "virology")]
    found = score_ability("emergent", ["0", "0", "1", "0"], references)
    assert found["qllm_mmlu"] == 0.75
    assert found["qllm_mmlu/mean_of_groups"] == pytest.approx((2 / 3 + 1) / 2)
    assert "qllm_mmlu/anatomy" not in found


def test_marks_of_lm_eval():
    found = score_ability(
        "trust", ["0.61", "0.49", "1.0", "0"], [item("truthfulqa_mc2")] * 2 + [item("truthfulqa_mc1")] * 2
    )
    assert (found["truthfulqa_mc2"], found["truthfulqa_mc1"]) == (pytest.approx(0.55), 0.5)
    assert found["trust"] == pytest.approx(((0.55 - 0.47) / 0.53 + (0.5 - 0.23) / 0.77) / 2)


@pytest.mark.parametrize("mark", ["B", "", "nan", "-0.1", "1.5"])
def test_what_is_no_mark(mark):
    with pytest.raises(ConfigError, match=r"item 1 of 'truthfulqa_mc1'.*from 0 to 1"):
        score_ability("trust", ["1.0", mark], [item("truthfulqa_mc1")] * 2)


def test_variants_are_reported_but_do_not_count():
    counted, variant = choices("qllm_piqa", [1, 1]), (["0.0", "0.0"], [item("piqa")] * 2)
    found = score_ability("nlp", counted[0] + variant[0], counted[1] + variant[1])
    assert (found["nlp"], found["nlp_tasks"], found["piqa"]) == (1.0, 1, 0.0)
    alone = score_ability("nlp", *variant, variant[0])
    assert alone["nlp_tasks"] == 0 and math.isnan(alone["nlp"]) and math.isnan(alone["nlp_recovery"])


def test_items_of_other_abilities_are_passed_over():
    mine, other = choices("qllm_piqa", [1, 0]), choices("qllm_mmlu", [1, 1])
    mixed = [text for pair in zip(mine[0], other[0], strict=True) for text in pair]
    references = [each for pair in zip(mine[1], other[1], strict=True) for each in pair]
    assert score_ability("nlp", mixed, references) == score_ability("nlp", *mine)
    nothing = score_ability("long", mixed, references)
    assert nothing.keys() == {"long", "long_stderr", "long_tasks"} and nothing["long_tasks"] == 0


def test_sized_tasks_and_miniature_ones():
    found = score_ability("long", ["It is 7", "1.0"], [item("qllm_lines_31", "7"), item("mini_lines_256")])
    assert (found["qllm_lines_31"], found["mini_lines_256"], found["long_tasks"]) == (1.0, 1.0, 2)
    assert math.isnan(found["qllm_lines_31_stderr"])


@pytest.mark.parametrize(
    ("ability", "predictions", "references", "message"),
    [
        ("nlp", [], [], "no items"),
        ("basic", ["0"], [item("qllm_piqa", "0")], "no ability 'basic'"),
        ("dialog", ["0"], [item("qllm_piqa", "0")], "mean 'dialogue'"),
        ("nlp", ["0"], [], "1 predictions and 0 references"),
        ("nlp", ["0"], [item("qllm_piq", "0")], "mean 'qllm_piqa'"),
        ("emergent", ["0"], [item("qllm_piq", "0")], "mean 'qllm_piqa'"),
        ("nlp", ["9.7"], [item("wikitext")], "perplexity"),
        ("dialogue", ["1.0"], [item("qllm_mt_bench_text")], "chance"),
        ("nlp", [2], [item("qllm_piqa", "2")], r'predictions\[0\] is 2. Give text: "2"'),
        ("nlp", ["B"], [item("qllm_piqa", "1")], "counted from 0.*not 'B'"),
        ("nlp", ["1"], [item("qllm_piqa", "B")], "counted from 0.*not 'B'"),
        ("nlp", ["1"], [item("qllm_piqa")], "right answer"),
        ("long", ["1"], [item("qllm_kv_retrieval_75", "")], "right answer"),
        ("nlp", ["1"], [{"task": "qllm_piqa", "answers": "1"}], "Give a list"),
        ("nlp", ["1"], [{"task": "qllm_piqa"}], r"references\[0\] lacks 'answers'"),
        ("long", ["1"], [item("qllm_lines_200", "one")], "'qllm_lines_200'"),
        ("dialogue", ["seven"], [item("qllm_mt_bench")], "'qllm_mt_bench'.*none of the 1"),
    ],
)
def test_what_cannot_be_scored(ability, predictions, references, message):
    with pytest.raises(ConfigError, match=message):
        score_ability(ability, predictions, references)


def test_a_baseline_of_other_items():
    with pytest.raises(ConfigError, match="1 baseline_predictions and 2 references"):
        score_ability("nlp", *choices("qllm_piqa", [1, 0]), ["0"])


CHOSEN = [name for name, info in TASKS.items() if info.rule == "choice" and info.in_ability]
MARKS = st.lists(st.tuples(st.sampled_from(CHOSEN), st.booleans(), st.booleans()), min_size=1, max_size=40)


def laid_out(rows):
    return ["01"[now] for _, now, _ in rows], [item(task, "1") for task, _, _ in rows], ["01"[old] for *_, old in rows]


@given(MARKS)
def test_the_order_of_the_items_does_not_matter(rows):
    for ability in ("nlp", "emergent"):
        found = score_ability(ability, *laid_out(rows))
        shuffled = score_ability(ability, *laid_out(random.Random(0).sample(rows, len(rows))))
        assert {name: pytest.approx(value, nan_ok=True) for name, value in found.items()} == shuffled


@given(MARKS)
def test_what_a_baseline_adds_changes_nothing_else(rows):
    predictions, references, before = laid_out(rows)
    for ability in ("nlp", "emergent"):
        plain, compared = (score_ability(ability, predictions, references, old) for old in (None, before))
        assert same(plain, {name: compared[name] for name in plain})


@given(MARKS)
def test_an_identical_run_recovers_everything(rows):
    predictions, references, _ = laid_out(rows)
    found = score_ability("emergent", predictions, references, predictions)
    kept = [value for name, value in found.items() if name.endswith("_recovery") and not math.isnan(value)]
    assert all(value == 1.0 for value in kept)
    assert all(value == 0.0 for name, value in found.items() if name.endswith("_change"))


@pytest.mark.parametrize("ability", ABILITIES)
def test_perfect_is_1(ability):
    tasks = [
        name for name, info in TASKS.items() if info.ability == ability and info.in_ability and info.chance is not None
    ]
    texts = {"": "1.0", "choice": "1", "rated": "[[10]]", "yes_no": "yes", "yes_no_chain": "yes", "option": "A"}
    texts |= {"reasonable": "unreasonable", "digits_chain": "18", "integer": "18"}
    predictions = [texts.get(TASKS[task].rule, "sea") for task in tasks]
    found = score_ability(
        ability, predictions, [item(task, text) for task, text in zip(tasks, predictions, strict=True)]
    )
    assert (found[ability], found[f"{ability}_tasks"]) == (pytest.approx(1.0), len(tasks))


# The statistics below them.


@given(st.floats(0, 0.9), st.floats(1, 10))
def test_normalised_is_0_at_chance_and_1_at_best(chance, best):
    assert normalised(chance, chance, best) == 0.0
    assert normalised(best, chance, best) == 1.0
    assert normalised(chance - 0.1, chance, best) < 0


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50))
def test_mean_is_numpys(values):
    found = mean(values)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-9)


def test_a_single_value_has_no_error():
    assert mean([0.5]).value == 0.5 and math.isnan(mean([0.5]).stderr)


@given(st.lists(st.booleans(), min_size=1, max_size=50), st.floats(0, 0.99))
def test_recovery_of_identical_runs_is_1(marks, chance):
    values = [float(mark) for mark in marks]
    found = recovery(values, values, chance)
    assert found is None or found.value == 1.0
    assert (found is None) == (not mean(values).value - chance > 2 * (mean(values).stderr if len(values) > 1 else 0))


def test_recovery_is_never_negative_and_wants_pairs():
    assert recovery([0.0] * 8, [1.0] * 8, 0.5).value == 0.0
    with pytest.raises(ValueError, match="one by one"):
        recovery([1.0], [1.0, 1.0], 0.5)


def bootstrap(estimate, *columns, times=2000):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(columns[0]), size=(times, len(columns[0])))
    return np.std([estimate(*(np.asarray(column)[row] for column in columns)) for row in rows])


@pytest.mark.parametrize("seed", range(3))
def test_errors_of_ratios_are_those_of_a_bootstrap(seed):
    rng = np.random.default_rng(seed)
    words = rng.integers(20, 200, size=300)
    nats = words * rng.normal(3.0, 0.5, size=300)
    found = mean_of_ratio(nats.tolist(), words.tolist())
    assert found.value == pytest.approx(nats.sum() / words.sum())
    assert found.stderr == pytest.approx(bootstrap(lambda up, down: up.sum() / down.sum(), nats, words), rel=0.1)

    before = rng.random(400) < 0.8
    now = np.where(rng.random(400) < 0.2, rng.random(400) < 0.5, before)
    kept = recovery(now.astype(float).tolist(), before.astype(float).tolist(), 0.25)
    assert kept.value == pytest.approx((now.mean() - 0.25) / (before.mean() - 0.25))
    again = bootstrap(lambda new, old: (new.mean() - 0.25) / (old.mean() - 0.25), now, before)
    assert kept.stderr == pytest.approx(again, rel=0.1)
