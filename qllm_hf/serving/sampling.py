"""How a request may change the way a model writes. Clients can send a whole generation config; most is not for them."""

from __future__ import annotations

from typing import Any, Final

from .faults import RefusedError
from .rules import STOP, TEMPERATURE, YES_OR_NO, Rule, number, shown, whole

MOST_ENDS: Final = 64


def _is_ends(value: Any) -> bool:
    tokens = value if isinstance(value, list) else [value]
    return len(tokens) <= MOST_ENDS and all(whole(-1).holds(token) for token in tokens)


ENDS: Final = Rule(_is_ends, f"a token id, or up to {MOST_ENDS} of them")
THEIRS: Final = {
    "do_sample": YES_OR_NO,
    "temperature": TEMPERATURE,
    "top_p": number(0.001, 1),
    "top_k": whole(0),
    "min_p": number(0, 1),
    "typical_p": number(0.001, 1),
    "epsilon_cutoff": number(0, 1),
    "eta_cutoff": number(0, 1),
    "repetition_penalty": number(0.01, 10),
    "no_repeat_ngram_size": whole(0),
    "max_new_tokens": whole(1),
    "min_new_tokens": whole(0),
    "max_length": whole(1),
    "min_length": whole(0),
    "stop_strings": STOP,
    "eos_token_id": ENDS,
    "pad_token_id": ENDS,
    "bos_token_id": ENDS,
    "use_cache": YES_OR_NO,
    "cache_implementation": Rule(lambda value: value == "static", "nothing, or static"),
    "sequence_bias": Rule(lambda value: isinstance(value, dict), "logit_bias"),  # which the request was checked for
    "transformers_version": Rule(lambda value: isinstance(value, str), "a version"),
}
"""Settings that a request may change. The others take memory (beams, sequences), or code and files of the host."""


def check_sampling(gen_config: Any, model: Any) -> None:
    """Compare a request's generation config with that of the model.

    Raises:
        RefusedError: it sets what is not for clients to set, or what the model has no tokens for.
    """
    own, usual = vars(model.generation_config), vars(type(gen_config)())
    for name, value in vars(gen_config).items():
        if name.startswith("_") or value is None or value is False or _is_one(value):
            continue
        if value in (own.get(name), usual.get(name)):
            continue
        if name not in THEIRS:
            raise RefusedError(400, f"{name}={shown(value)} cannot be asked for.")
        if not THEIRS[name].holds(value):
            raise RefusedError(400, f"{name}={shown(value)} cannot be. Give {THEIRS[name].allowed}.")
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    for tokens in gen_config.sequence_bias or {}:
        if not all(isinstance(token, int) and 0 <= token < vocabulary for token in tokens):
            raise RefusedError(400, f"a bias for token {shown(tokens)}: this model has {vocabulary} tokens.")


def _is_one(value: Any) -> bool:
    """One beam, one sequence: what transformers takes where nothing is said, and writes into configs."""
    return value == 1 and not isinstance(value, bool)
