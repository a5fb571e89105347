"""Basic NLP: LAMBADA, CHID, WinoGrande, RACE, PIQA, SIQA (section 2.1 of the study's specification).

All but LAMBADA compare whole texts: the one with the lowest mean loss per token is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..task import Document, Row
from .document import choice, written

_BLANK = re.compile(r"#idiom\d*#")
_FLUENT = "以下句子是否通顺？\n{}\n这个句子是通顺的。"  # noqa: RUF001 - Chinese punctuation


def lambada(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """Write the last word of a passage."""
    split = [row["text"].rstrip().rsplit(" ", 1) for row in rows]
    return [written(f"Please complete the following sentence:\n{start}", [word]) for start, word in split]


def chid(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """Which idiom fits into a Chinese sentence. Rows as in FewCLUE: content with #idiom#, candidates, answer."""
    return [
        choice(
            "",
            [_FLUENT.format(_BLANK.sub(idiom, row["content"])) for idiom in row["candidates"]],
            int(row["answer"]),
        )
        for row in rows
    ]


def winogrande(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """Which of two names a sentence means."""
    return [
        choice(
            "",
            [f"Good sentence: {row['sentence'].replace('_', row[name])}" for name in ("option1", "option2")],
            int(row["answer"]) - 1,
        )
        for row in rows
    ]


def race(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """Questions about a text, from examinations. The four letters are compared in one place."""
    return [
        choice(
            "Read the article, and answer the question by replying A, B, C or D.\n\n"
            f"{row['article']}\n\nQ: {row['question']}\n\n"
            + "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", row["options"], strict=True))
            + "A:",
            [" A", " B", " C", " D"],
            "ABCD".index(row["answer"]),
        )
        for row in rows
    ]


def piqa(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """How a thing is done."""
    return [
        choice(
            "",
            [f"The following makes sense: \nQ: {row['goal']}\nA: {row[name]}\n" for name in ("sol1", "sol2")],
            int(row["label"]),
        )
        for row in rows
    ]


def siqa(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """What people do and feel."""
    return [
        choice(
            "",
            [f"{row['context']}\nQuestion: {row['question']}\nAnswer: {row[f'answer{name}']}" for name in "ABC"],
            int(row["label"]) - 1,
        )
        for row in rows
    ]


def wikitext(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """Articles of WikiText, joined from its lines: a title between single equals signs begins one."""
    pages: list[list[str]] = []
    for row in rows:
        if not pages or re.fullmatch(r"\s*= [^=].*[^=] =\s*", row["text"]):
            pages.append([])
        pages[-1].append(row["text"])
    texts = ["".join(line if line.endswith("\n") else line + "\n" for line in page) for page in pages]
    return [{"page": text} for text in texts if text.strip()]
