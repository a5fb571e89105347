"""One model writes, token by token, so that a page can show it, stop it and take turns with another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache

from ..cache import cache_nbytes
from ..errors import ConfigError
from ..families import family
from .holder import Twin

ENDS_OF_TURN: Final = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<|endoftext|>")
"""Tokens that end a turn in chat templates; a model may write them without calling them its end of text."""


@dataclass(frozen=True)
class Token:
    """One token that was written.

    Attributes:
        id: of the vocabulary.
        seconds: of the forward that chose it; the first one reads the whole prompt.
        cache_bytes: of keys and values after it.
        is_end: whether it ends the text, and is no part of it.
    """

    id: int
    seconds: float
    cache_bytes: int
    is_end: bool


def encode(tokenizer: Any, messages: Sequence[dict[str, str]], *, chat: bool, longest: int) -> Tensor:
    """Token ids [1, T] of a conversation: in the model's chat template, or as plain text that goes on.

    Raises:
        ConfigError: more than `longest` tokens, or a chat without a template.
    """
    if not chat:
        ids: Tensor = tokenizer("".join(each["content"] for each in messages), return_tensors="pt")["input_ids"]
    elif not tokenizer.chat_template:
        raise ConfigError("this model has no chat template: switch to 'Continue the text'.")
    else:
        encoded = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = encoded["input_ids"]
    if ids.shape[1] > longest:
        raise ConfigError(
            f"the conversation has {ids.shape[1]:,} tokens; this page takes {longest:,}. Shorten it, or begin anew."
        )
    if not ids.shape[1]:
        raise ConfigError("this text has no tokens. Write something else.")
    return ids


def write(twin: Twin, ids: Tensor, *, temperature: float, seed: int) -> Iterator[Token]:
    """The tokens that a model writes after `ids` [1, T], without end: the caller stops.

    A token is chosen by one number from the seed on the cumulated probabilities, so two models with the same seed
    differ only where their probabilities do.
    """
    model, device = twin.model, twin.model.device
    ends = _ends(twin)
    has_cache = family(model.config.get_text_config(decoder=True).model_type).kv != "none"
    cache = DynamicCache(config=model.config) if has_cache else None
    random = torch.Generator().manual_seed(seed)
    given = ids.to(device)
    while True:
        begin = time.perf_counter()
        with torch.inference_mode():
            # without keys and values the state is the model's own business: the text is read again
            options = {"past_key_values": cache, "use_cache": True} if has_cache else {"use_cache": False}
            logits = model(input_ids=given, **options).logits[0, -1].float().cpu()
        token = _choose(logits, temperature, random)
        seconds = time.perf_counter() - begin
        yield Token(token, seconds, 0 if cache is None else cache_nbytes(cache), token in ends)
        new = torch.tensor([[token]], device=device)
        given = new if has_cache else torch.cat([given, new], dim=1)


def _choose(logits: Tensor, temperature: float, random: torch.Generator) -> int:
    """The next token of logits [vocabulary]."""
    if temperature <= 0:
        return int(logits.argmax())
    cumulated = torch.softmax(logits.double() / temperature, dim=0).cumsum(0)
    place = torch.rand((), generator=random, dtype=torch.float64) * cumulated[-1]
    return min(int(torch.searchsorted(cumulated, place)), len(logits) - 1)


def _ends(twin: Twin) -> frozenset[int]:
    named = twin.model.generation_config.eos_token_id
    ends = set(named) if isinstance(named, list) else {named}
    vocabulary = twin.tokenizer.get_vocab()
    ends |= {twin.tokenizer.eos_token_id, *(vocabulary[text] for text in ENDS_OF_TURN if text in vocabulary)}
    return frozenset(each for each in ends if each is not None)
