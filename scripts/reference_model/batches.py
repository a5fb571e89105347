"""Batches of curriculum text: rows of whole documents, and which tokens of them are to be learned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from qllm_hf.curriculum import emergent, stories, trust
from qllm_hf.curriculum.dialogue import END
from qllm_hf.curriculum.item import held_out, shuffled
from qllm_hf.curriculum.long_context import lines_with_many_questions
from qllm_hf.curriculum.tasks import TASKS, training_item

from .exercises import EXERCISES, Document, repetition
from .shares import FIRST_SHARES

SCENES = {
    "calibration": emergent.shown_answers,
    "understanding": stories.belongings,
    "robustness": trust.claims,
    "unanswerable": trust.strangers,
}
# A prompt is mostly random words. Learning a part of it keeps the model fluent without drowning the answers.
PROMPT_PART = 0.1
LOOKAHEAD = 64  # documents that wait to fill the end of a row
SHORTEST = 40  # tokens of a document of lines


@dataclass(frozen=True)
class Batch:
    """Rows of tokens.

    Attributes:
        tokens: int64 [B, T].
        learned: bool [B, T]: the tokens that count, to be predicted from those before them.
    """

    tokens: torch.Tensor
    learned: torch.Tensor


def short_document(rng: Random, shares: Mapping[str, float] = FIRST_SHARES) -> Document:
    """A story, or a text with its answers. Where a text allows it, more is learned from it than a test asks for."""
    name = rng.choices(list(shares), weights=list(shares.values()))[0]
    if name in EXERCISES:
        return EXERCISES[name](rng)
    if name in SCENES:
        text, questions = SCENES[name](rng)
        pieces: Document = [(text, False)]
        for question, answer, key in shuffled(rng, questions):
            if not held_out(key):
                pieces += [(question, False), (answer, True)]
        return [*pieces, (END, True)]
    item = training_item(TASKS[name], rng)
    if name == "in_context":  # every example after the first of its kind can be told from those before it
        examples = re.split(r"(?<=:)(.*\n?)", item.prompt)
        return [(text, at % 2 == 1) for at, text in enumerate(examples[:-1])] + [(item.answer + END, True)]
    return [(item.prompt, False), (item.answer + END, True)]


def long_document(rng: Random, tokens: int) -> Document:
    """Lines that take almost `tokens` tokens with the questions about them."""
    text, questions = lines_with_many_questions(rng, tokens - 2)
    pieces: Document = [(text, False)]
    for question, answer in questions:
        pieces += [(question, False), (f"{answer}\n", True)]
    return pieces


class Batches:
    """An endless row of batches that depend on the seed and nothing else.

    Rows hold lines if `lines`; else short documents, and `repetitions` of them are repetitions (0 to 1),
    the others of the tasks in `shares`.
    """

    def __init__(
        self,
        tokenizer: Any,
        rows: int,
        length: int,
        *,
        seed: str,
        lines: bool = False,
        repetitions: float = 0.0,
        shares: Mapping[str, float] = FIRST_SHARES,
    ) -> None:
        self.tokenizer, self.rows, self.length = tokenizer, rows, length
        self.lines, self.repetitions, self.shares = lines, repetitions, shares
        self.rng = Random(seed)
        self.waiting: list[tuple[list[int], list[bool]]] = []

    def next(self) -> Batch:
        """The next batch."""
        tokens = torch.full((self.rows, self.length), self.tokenizer.pad_token_id)
        learned = torch.zeros((self.rows, self.length), dtype=torch.bool)
        for row in range(self.rows):
            ids, answers = self._fill_row()
            tokens[row, : len(ids)] = torch.tensor(ids)
            learned[row, : len(ids)] = torch.tensor(answers)
        return Batch(tokens, learned)

    def _fill_row(self) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        answers: list[bool] = []
        lookahead = LOOKAHEAD if self.length < 1024 else LOOKAHEAD // 8
        while True:
            if len(self.waiting) < lookahead:
                self.waiting += self._encode([self._document() for _ in range(lookahead)])
            room = self.length - len(ids)
            fits = next((i for i, (document, _) in enumerate(self.waiting) if len(document) <= room), None)
            if fits is None:
                return ids, answers
            document, mask = self.waiting.pop(fits)
            ids += document
            answers += mask

    def _document(self) -> Document:
        if self.lines:  # half of them fill a row, the others are of every length
            length = self.length - 1 if self.rng.random() < 0.5 else self.rng.randint(SHORTEST, self.length - 1)
            return long_document(self.rng, length)
        return repetition(self.rng) if self.rng.random() < self.repetitions else short_document(self.rng, self.shares)

    def _encode(self, documents: list[Document]) -> list[tuple[list[int], list[bool]]]:
        pieces = [text for document in documents for text, _ in document]
        encoded = iter(self.tokenizer(pieces, add_special_tokens=False)["input_ids"])
        result = []
        for document in documents:
            ids, answers = [self.tokenizer.bos_token_id], [False]
            for _, is_answer in document:
                piece = next(encoded)
                ids += piece
                answers += [is_answer or self.rng.random() < PROMPT_PART for _ in piece]
            result.append((ids, answers))
        return result
