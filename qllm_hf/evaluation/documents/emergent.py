"""Emergent abilities: MMLU, C-Eval, StrategyQA, GSM8K, ARC, HellaSwag, self-calibration (section 2.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import groupby

from ..task import Document, Row
from .document import choice, written

LETTERS = "ABCD"
_STEPS = re.compile(r"<<.*?>>")


def mmlu(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """57 subjects, each with examples of its own; the four letters are compared in one place."""

    def head(subject: str) -> str:
        # two spaces before the subject: the study's prompt has them
        name = subject.replace("_", " ")
        return f"The following are multiple choice questions (with answers) about  {name}.\n\n"

    def text(row: Row) -> str:
        options = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, row["choices"], strict=True))
        return f"{row['question']}\n{options}Answer:"

    return _by_subject(rows, shots, head, text, lambda row: int(row["answer"]))


def ceval(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """The same in Chinese: columns question, A, B, C, D, answer."""

    def head(subject: str) -> str:
        return f"以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n"  # noqa: RUF001 - Chinese punctuation

    def text(row: Row) -> str:
        return f"{row['question']}\n" + "".join(f"{letter}. {row[letter]}\n" for letter in LETTERS) + "答案:"

    return _by_subject(rows, shots, head, text, lambda row: LETTERS.index(row["answer"]))


def _by_subject(
    rows: Sequence[Row],
    shots: Sequence[Row],
    head: Callable[[str], str],
    text: Callable[[Row], str],
    right: Callable[[Row], int],
) -> list[Document]:
    examples: dict[str, str] = {}
    for shot in shots:
        subject = shot.get("subject", "")
        examples[subject] = examples.get(subject, "") + f"{text(shot)} {LETTERS[right(shot)]}\n\n"
    taken: dict[str, int] = {}
    order = []
    for number, row in enumerate(rows):
        subject = row.get("subject", "")
        order.append((taken.get(subject, 0), number))
        taken[subject] = taken.get(subject, 0) + 1
    # one of each subject in turn, so that the first items of a partial run are not all of one subject
    return [
        choice(
            head(row.get("subject", "")) + examples.get(row.get("subject", ""), "") + text(row),
            [f" {letter}" for letter in LETTERS],
            right(row),
            group=row.get("subject", ""),
        )
        for row in (rows[number] for _, number in sorted(order))
    ]


def first_shots(rows: Sequence[Row], number: int) -> list[Row]:
    """The first examples of each subject, in their order."""
    ordered = sorted(rows, key=lambda row: str(row.get("subject", "")))
    grouped = groupby(ordered, key=lambda row: str(row.get("subject", "")))
    return [row for _, group in grouped for row in list(group)[:number]]


def strategyqa(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """Yes or no, after steps of thought. The examples' steps are the facts that their authors noted."""

    def example(row: Row) -> str:
        facts = row["facts"]  # a list as the authors have it, one string in the copy on the Hub
        if not isinstance(facts, str):
            facts = " ".join(fact.strip().rstrip(".") + "." for fact in facts)
        return f"Q: {row['question']}\nA: {facts} So the answer is {'yes' if row['answer'] else 'no'}.\n\n"

    head = "".join(example(row) for row in shots)
    return [written(f"{head}Q: {row['question']}\nA:", ["yes" if row["answer"] else "no"]) for row in rows]


def gsm8k(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """Sums in words, after steps of thought."""

    def steps(row: Row) -> tuple[str, str]:
        solution, answer = row["answer"].split("####")
        return _STEPS.sub("", solution).strip(), answer.strip()

    def example(row: Row) -> str:
        solution, answer = steps(row)
        return f"Question: {row['question']}\nLet's think step by step\nAnswer:\n{solution}\nThe answer is {answer}\n\n"

    head = "".join(example(row) for row in shots)
    return [
        written(
            f"{head}Question: {row['question']}\nLet's think step by step\nAnswer:",
            [steps(row)[1]],
            question=row["question"],
            solution=row["answer"],
        )
        for row in rows
    ]


def arc(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """Questions of science classes; whole texts are compared."""
    return [
        choice(
            "",
            [f"Question: {row['question']}\nAnswer: {option}" for option in row["choices"]["text"]],
            row["choices"]["label"].index(row["answerKey"]),
        )
        for row in rows
    ]


def hellaswag(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """How a scene goes on; whole texts are compared."""
    return [choice("", [f"{row['ctx']} {ending}" for ending in row["endings"]], int(row["label"])) for row in rows]


def calibration(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """Whether an answer that is shown is right: half of them are, and which is decided by the question's own digest.

    Source: the study calls this self-calibration on MMLU (two choices, chance 50 %) and gives no prompt; this one asks
    for True or False after a proposed answer.
    """
    documents = []
    for row in rows:
        number = int.from_bytes(sha256(row["question"].encode()).digest()[:8], "big")
        answer, is_right = int(row["answer"]), number % 2 == 0
        shown = answer if is_right else (answer + 1 + number // 2 % 3) % 4
        options = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, row["choices"], strict=True))
        documents.append(
            choice(
                f"Question: {row['question']}\n{options}Proposed answer: {LETTERS[shown]}. {row['choices'][shown]}\n"
                "Is the proposed answer True or False?\nAnswer:",
                [" True", " False"],
                0 if is_right else 1,
                group=row.get("subject", ""),
            )
        )
    return documents
