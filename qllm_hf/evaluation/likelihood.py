"""How likely a model finds texts: the sum of the log-probabilities of their tokens, and nothing else computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, islice
from typing import Any, Final

import torch

from ..errors import ModelError

PAD: Final = 0
"""Stands behind shorter rows, where no token looks."""


class Likelihood(tuple[float, bool]):
    """(log-likelihood in nats, whether every token was the likeliest) of a text, with its number of tokens."""

    tokens: int

    def __new__(cls, value: float, is_greedy: bool, tokens: int) -> Likelihood:
        pair = super().__new__(cls, (value, is_greedy))
        pair.tokens = tokens
        return pair


@torch.no_grad()
def score(
    model: Any, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[list[int]]], keeps_logits: bool
) -> list[list[list[Any]]]:
    """[[[log-likelihood, is greedy] of each continuation] of each input].

    Args:
        model: a causal language model.
        inputs: token ids of each row, without the last token of its continuations.
        targets: for each row its continuations, which end one token behind it: several if they differ in that one.
        keeps_logits: whether the model takes `logits_to_keep`, and so makes logits only where they are needed.

    Raises:
        ModelError: an output is nan; the likeliest of several texts would be any of them.
    """
    longest = max(map(len, inputs))
    ids = torch.full((len(inputs), longest), PAD)
    for row, tokens in enumerate(inputs):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    # the last token of a continuation is no input, so its k tokens are predicted by the last k inputs
    starts = [len(row) - max(map(len, found)) for row, found in zip(inputs, targets, strict=True)]
    first = min(starts)
    if keeps_logits:
        logits = model(
            ids.to(model.device), logits_to_keep=torch.arange(first, longest, device=model.device), use_cache=False
        ).logits
    else:
        logits = model(ids.to(model.device), use_cache=False).logits[:, first:]
    rows = [row for row, tokens in enumerate(inputs) for _ in range(starts[row], len(tokens))]
    places = [place - first for row, tokens in enumerate(inputs) for place in range(starts[row], len(tokens))]
    needed = logits[rows, places]  # [places, vocabulary]
    needed = needed.to(torch.promote_types(needed.dtype, torch.float32))
    likeliest = needed.argmax(dim=-1).tolist()
    ends = list(accumulate(len(tokens) - start for tokens, start in zip(inputs, starts, strict=True)))
    spans = [
        (range(end - len(continuation), end), continuation)
        for end, found in zip(ends, targets, strict=True)
        for continuation in found
    ]
    flat = [place for span, _ in spans for place in span]
    chosen = [token for _, continuation in spans for token in continuation]
    log_probabilities = (needed[flat, chosen] - needed.logsumexp(dim=-1)[flat]).tolist()
    if any(map(math.isnan, log_probabilities)):
        raise ModelError(
            f"the model's outputs are no numbers (nan) in {model.dtype}, so they say nothing of a text. Where float16 "
            "is too small for a model, bfloat16 or float32 (--dtype) is not."
        )
    values = iter(log_probabilities)
    answers = (
        [math.fsum(islice(values, len(continuation))), likeliest[span.start : span.stop] == continuation]
        for span, continuation in spans
    )
    return [list(islice(answers, len(found))) for found in targets]
