"""How well the model in training does on questions that are never trained on: quick, and without lm_eval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from qllm_hf.curriculum.dialogue import END
from qllm_hf.curriculum.tasks import TASKS, held_out_items

ITEMS = 48
TOKENS_AT_ONCE = 2048
CHECK_SEED = 1  # other questions than those of the published scores


@dataclass(frozen=True)
class Checked:
    """`loss` in nats per token of the answer, `right` the part of answers whose every token was the likeliest."""

    loss: float
    right: float


class Checker:
    """The questions of every task, encoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self.questions: dict[str, list[tuple[list[int], int]]] = {}
        for name, task in TASKS.items():
            questions = []
            for item in held_out_items(task, ITEMS, CHECK_SEED):
                prompt = [tokenizer.bos_token_id, *tokenizer(item.prompt, add_special_tokens=False)["input_ids"]]
                answer = tokenizer(item.answer + END, add_special_tokens=False)["input_ids"]
                # Lines end with a newline, and where one of several answers is chosen, what follows does not matter.
                answer = answer[:-1] if task.ability == "long" or task.scoring == "choice" else answer
                questions.append((prompt + answer, len(answer)))
            self.questions[name] = questions

    @torch.no_grad()
    def check(self, model: Any, longest: int) -> dict[str, Checked]:
        """The score of every task whose questions have at most `longest` tokens."""
        model.eval()
        result = {}
        for name, questions in self.questions.items():
            length = max(len(ids) for ids, _ in questions)
            if length > longest:
                continue
            loss = right = tokens = 0.0
            at_once = max(1, TOKENS_AT_ONCE // length)
            for start in range(0, ITEMS, at_once):
                rows = questions[start : start + at_once]
                batch = torch.zeros((len(rows), length), dtype=torch.int64)
                for row, (ids, _) in enumerate(rows):
                    batch[row, : len(ids)] = torch.tensor(ids)
                hidden = model.model(batch, use_cache=False).last_hidden_state
                for row, (ids, count) in enumerate(rows):
                    logits = model.lm_head(hidden[row, len(ids) - count - 1 : len(ids) - 1]).float()
                    expected = torch.tensor(ids[-count:])
                    loss += F.cross_entropy(logits, expected, reduction="sum").item()
                    right += bool((logits.argmax(-1) == expected).all())
                    tokens += count
            result[name] = Checked(loss / tokens, right / ITEMS)
        model.train()
        return result
