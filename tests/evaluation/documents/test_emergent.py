"""Emergent abilities: prompts, examples and labels, as section 2.2 of the study's specification has them."""

from collections import Counter
from pathlib import Path

import pytest

from qllm_hf.evaluation.documents import emergent
from qllm_hf.evaluation.questions import documents_of
from qllm_hf.evaluation.sources import read_jsonl

HAND_MADE = Path(__file__).parents[2] / "data" / "eval"


@pytest.fixture(scope="module")
def real(shared):
    def read(name: str) -> list[dict]:
        return read_jsonl(shared / "data" / "emergent" / f"{name}.jsonl")

    return read


def exam(question="Which is even?", subject="number_theory", answer=1, choices=("1", "2", "3", "5")) -> dict:
    return {"question": question, "subject": subject, "choices": list(choices), "answer": answer}


def test_mmlu_shows_examples_before_the_question():
    shot = exam("Which is odd?", answer=0, choices=("1", "2", "4", "6"))
    (found,) = emergent.mmlu([exam()], [shot])
    assert found["prompt"] == (
        "The following are multiple choice questions (with answers) about  number theory.\n\n"
        "Which is odd?\nA. 1\nB. 2\nC. 4\nD. 6\nAnswer: A\n\n"
        "Which is even?\nA. 1\nB. 2\nC. 3\nD. 5\nAnswer:"
    )
    assert (found["choices"], found["label"], found["group"]) == ([" A", " B", " C", " D"], 1, "number_theory")


def test_mmlu_examples_are_the_five_of_the_subject_in_order(real, shared):
    documents, _ = documents_of("qllm_mmlu", shared / "data")
    of_subject: dict[str, list[dict]] = {}
    for shot in real("mmlu_fewshot_dev"):
        of_subject.setdefault(shot["subject"], []).append(shot)
    assert len(documents) == len(real("mmlu")) and len(of_subject) == 57
    for found in documents:
        *shown, asked = found["prompt"].partition("\n\n")[2].split("\nAnswer:")[:-1]
        examples = of_subject[found["group"]]
        assert len(examples) == len(shown) == 5
        place = 0
        for example in examples:
            text = f"{example['question']}\nA. {example['choices'][0]}\n"
            place = found["prompt"].index(text, place) + len(text)
        question = asked.split("\nA. ")[0].removeprefix(" " + "ABCD"[examples[-1]["answer"]]).strip()
        assert question not in {example["question"].strip() for example in examples}


def test_mmlu_labels_name_the_answer_of_the_row(real, shared):
    rows = {(row["subject"], row["question"], *row["choices"]): row for row in real("mmlu")}
    seen = Counter()
    for found in documents_of("qllm_mmlu", shared / "data", shots=0)[0]:
        text = found["prompt"].split("\n\n", 1)[1]
        (row,) = (
            row
            for (subject, question, *_), row in rows.items()
            if subject == found["group"] and text == emergent.mmlu([row], ())[0]["prompt"].split("\n\n", 1)[1]
        )
        assert f"\n{'ABCD'[found['label']]}. {row['choices'][row['answer']]}\n" in text
        seen[found["label"]] += 1
    assert set(seen) == {0, 1, 2, 3} and max(seen.values()) < 0.4 * len(rows)


def test_subjects_take_turns():
    """The first items of a partial run are of many subjects, and no item is lost."""
    rows = [exam(f"{subject}{number}?", subject) for subject in "abc" for number in range(2)]
    documents = emergent.mmlu(rows, ())
    assert [found["group"] for found in documents] == ["a", "b", "c", "a", "b", "c"]
    assert [found["prompt"].split("\n\n")[1].split("?")[0] for found in documents] == [
        "a0",
        "b0",
        "c0",
        "a1",
        "b1",
        "c1",
    ]


def test_the_first_57_questions_of_mmlu_are_of_57_subjects(shared):
    documents, found = documents_of("qllm_mmlu", shared / "data")
    assert len({document["group"] for document in documents[:57]}) == 57
    assert len({row["subject"] for row in found.rows[:57]}) < 57, "which its rows are not"


def test_fewer_and_no_examples(shared):
    for shots in (0, 2, 5):
        documents, _ = documents_of("qllm_mmlu", shared / "data", shots=shots)
        for found in documents[:57]:
            assert found["prompt"].count("\nAnswer: ") == shots, found["group"]


def test_first_shots_are_the_first_of_each_subject_in_their_order():
    rows = [{"subject": subject, "n": n} for n in range(3) for subject in ("b", "a")]
    assert [(row["subject"], row["n"]) for row in emergent.first_shots(rows, 2)] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
    ]
    assert emergent.first_shots([{"n": 0}, {"n": 1}], 1) == [{"n": 0}]


def test_ceval_asks_in_chinese():
    row = {"question": "一加一等于____。", "A": "一", "B": "二", "C": "三", "D": "四", "answer": "B", "subject": "数学"}
    (found,) = emergent.ceval([row], [{**row, "question": "三减二等于____。", "answer": "A"}])
    assert found["prompt"] == (
        "以下是中国关于数学考试的单项选择题，请选出其中的正确答案。\n"  # noqa: RUF001 - Chinese punctuation
        "三减二等于____。\nA. 一\nB. 二\nC. 三\nD. 四\n答案: A\n\n"
        "一加一等于____。\nA. 一\nB. 二\nC. 三\nD. 四\n答案:"
    )
    assert (found["label"], found["choices"]) == (1, [" A", " B", " C", " D"])


@pytest.mark.parametrize("task", ["qllm_ceval", "qllm_gaokao"])
def test_chinese_examinations_have_five_examples_of_their_subject(task, shared):
    folder = HAND_MADE if task == "qllm_ceval" else shared / "data"
    name = {"qllm_ceval": "ceval_fewshot_dev", "qllm_gaokao": "gaokao_fewshot_dev"}[task]
    shots = read_jsonl(folder / "emergent" / f"{name}.jsonl")
    documents, rows = documents_of(task, folder)
    assert len(documents) == len(rows.rows)
    for found in documents:
        own = [shot["question"] for shot in shots if shot["subject"] == found["group"]]
        assert len(own) == 5
        places = [found["prompt"].index(question) for question in own]
        assert places == sorted(places)
        assert found["prompt"].count("答案: ") == 5, "those of no other subject"
        asked = found["prompt"].rsplit("\n\n", 1)[-1]
        texts = [emergent.ceval([shot], ())[0]["prompt"].split("\n", 1)[1] for shot in shots]
        assert asked not in texts, "stems such as 'which is right' return, whole questions do not"


def test_strategyqa_thinks_in_the_authors_facts():
    shot = {"question": "Can a cat fly?", "answer": False, "facts": ["Cats have no wings. ", "Wings are needed to fly"]}
    row = {"question": "Is ice cold?", "answer": True, "facts": ["Ice is frozen."]}
    (found,) = emergent.strategyqa([row], [shot])
    assert found["prompt"] == (
        "Q: Can a cat fly?\nA: Cats have no wings. Wings are needed to fly. So the answer is no.\n\nQ: Is ice cold?\nA:"
    )
    assert found["answers"] == ["yes"]
    assert "Ice is frozen" not in found["prompt"], "the facts of the question itself would give the answer away"


def test_strategyqa_reads_facts_as_one_text():
    rows = [{"question": "Q?", "answer": True, "facts": "One fact. Another."}]
    assert emergent.strategyqa(rows, rows)[0]["prompt"].startswith("Q: Q?\nA: One fact. Another. So the answer is yes.")


def test_strategyqa_examples_are_not_asked(real, shared):
    rows = real("strategyqa")
    documents, found = documents_of("qllm_strategyqa", shared / "data")
    assert len(documents) == len(rows) - 6 == len(found.rows)
    examples = [row["question"] for row in rows[:6]]
    for document, row in zip(documents, rows[6:], strict=True):
        head, _, asked = document["prompt"].rpartition("Q: ")
        assert [line.removeprefix("Q: ") for line in head.split("\n") if line.startswith("Q: ")] == examples
        assert asked == f"{row['question']}\nA:"
        assert row["question"] not in examples
        assert document["answers"] == ["yes" if row["answer"] else "no"]
    assert {answer for document in documents for answer in document["answers"]} == {"yes", "no"}
    everything, _ = documents_of("qllm_strategyqa", shared / "data", shots=0)
    assert len(everything) == len(rows), "without examples all of them are asked"


def test_gsm8k_shows_steps_without_the_calculator():
    shot = {"question": "2 pens at $3?", "answer": "2 pens cost 2*3=$<<2*3=6>>6.\nSo $6.\n#### 6"}
    row = {"question": "1000 and 234?", "answer": "1000+234=<<1000+234=1234>>1,234\n#### 1,234"}
    (found,) = emergent.gsm8k([row], [shot])
    assert found["prompt"] == (
        "Question: 2 pens at $3?\nLet's think step by step\nAnswer:\n2 pens cost 2*3=$6.\nSo $6.\nThe answer is 6\n\n"
        "Question: 1000 and 234?\nLet's think step by step\nAnswer:"
    )
    assert found["answers"] == ["1,234"]
    assert (found["question"], found["solution"]) == (row["question"], row["answer"])


def test_gsm8k_has_four_examples_and_no_calculator_marks(real, shared):
    documents, _ = documents_of("qllm_gsm8k", shared / "data")
    examples = [row["question"] for row in real("gsm8k_train")[:4]]
    for found in documents:
        assert found["prompt"].count("\nThe answer is ") == 4
        places = [found["prompt"].index(f"Question: {question}\n") for question in examples]
        assert places == sorted(places) and places[0] == 0
        assert "<<" not in found["prompt"] and "####" not in found["prompt"]
        assert found["answers"][0].replace(",", "").lstrip("-").isdigit()
    assert any("<<" in row["answer"] for row in real("gsm8k_train")[:4]), "they were there"


def test_arc_compares_whole_texts_whatever_the_labels_are_called():
    row = {"question": "What is hot?", "choices": {"text": ["ice", "fire", "rain"], "label": ["1", "2", "3"]}}
    (found,) = emergent.arc([{**row, "answerKey": "2"}], ())
    assert found["choices"] == [
        "Question: What is hot?\nAnswer: ice",
        "Question: What is hot?\nAnswer: fire",
        "Question: What is hot?\nAnswer: rain",
    ]
    assert (found["prompt"], found["label"]) == ("", 1)


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge"])
def test_arc_labels_of_real_rows(name, real):
    rows = real(name)
    for row, found in zip(rows, emergent.arc(rows, ()), strict=True):
        texts = dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))
        assert found["choices"][found["label"]] == f"Question: {row['question']}\nAnswer: {texts[row['answerKey']]}"


def test_hellaswag_goes_on():
    row = {"ctx": "A man throws a ball. the ball", "endings": ["sings.", "flies.", "eats.", "sleeps."], "label": "1"}
    (found,) = emergent.hellaswag([row], ())
    assert found["choices"][found["label"]] == "A man throws a ball. the ball flies."
    assert (len(found["choices"]), found["prompt"]) == (4, "")


def test_calibration_asks_about_an_answer():
    (found,) = emergent.calibration([exam()], ())
    head, _, shown = found["prompt"].partition("\nProposed answer: ")
    assert head == "Question: Which is even?\nA. 1\nB. 2\nC. 3\nD. 5"
    proposal, ask, end = shown.split("\n")
    assert proposal in {"A. 1", "B. 2", "C. 3", "D. 5"}
    assert (ask, end) == ("Is the proposed answer True or False?", "Answer:")
    assert found["choices"] == [" True", " False"]
    assert (found["label"] == 0) == (proposal == "B. 2")


def test_calibration_is_balanced_and_its_wrong_answers_are_wrong(real):
    rows = real("mmlu_calib")
    documents = emergent.calibration(rows, ())
    assert len(documents) == 285
    right, letters = 0, Counter()
    for row, found in zip(rows, documents, strict=True):
        shown = found["prompt"].rpartition("\nProposed answer: ")[2].split("\n")[0]
        answer = f"{'ABCD'[row['answer']]}. {row['choices'][row['answer']]}".split("\n")[0]
        assert (shown == answer) == (found["label"] == 0)
        if found["label"] == 1:
            assert shown[3:] != answer[3:], "another letter with the same text would be right"
        right += found["label"] == 0
        letters[shown[0]] += 1
    assert 0.4 <= right / len(rows) <= 0.6
    assert min(letters[letter] for letter in "ABCD") > 0.15 * len(rows), "no letter gives it away"
    assert emergent.calibration(rows, ()) == documents, "the same questions every time"
    assert emergent.calibration(rows[::-1], ()) == documents[::-1], "whatever stands around a question"


def test_calibration_depends_on_the_question():
    """One proposal for all would be balanced for no set of questions."""
    labels = {emergent.calibration([exam(f"Question {number}?")], ())[0]["label"] for number in range(20)}
    assert labels == {0, 1}
