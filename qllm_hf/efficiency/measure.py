"""One run of `generate` with a clock in it, and what must hold before one is timed."""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from ..cache import cache_nbytes
from ..errors import ModelError
from ..ops import prefer
from ..ops.registry import LINEAR
from .cells import Case

PLAIN: Final = LINEAR[-1].name
"""The implementation that the others are held against: it accepts everything."""
ALIKE: Final = 0.9
"""Correlation of logits that mean the same. Rounding makes small differences larger; another meaning has about 0."""
_TOKENS: Final = 12
"""Of the text that is tried before anything is timed."""


class Run(NamedTuple):
    """Seconds of one run, and the bytes of its KV cache, if transformers kept one."""

    prefill: float
    decode: float
    total: float
    kv_bytes: int | None


class _Clock(StoppingCriteria):
    """Notes when each token is there; never stops."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def now(self) -> float:
        """Seconds, when all work handed to the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self.times.append(self.now())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def prompts(model: PreTrainedModel, case: Case) -> Tensor:
    """Token ids int64 [batch, input] drawn from the vocabulary: which they are makes no difference to the time.

    With experts it makes some: random tokens spread over more of them than text does.
    """
    vocabulary: int = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(case.batch * 1_000_003 + case.input)
    return torch.randint(vocabulary, (case.batch, case.input), generator=generator).to(model.device)


def run_once(model: PreTrainedModel, ids: Tensor, case: Case) -> Run:
    """Generate exactly `case.output` tokens for each prompt, greedily, and say how long it took.

    Prefill is the time until the first token is chosen, decode the mean of the others, as `generate` runs them.

    Raises:
        ModelError: another number of tokens came out.
    """
    clock = _Clock(ids.device)
    begin = clock.now()
    output = _generate(model, ids, case.output, stopping_criteria=StoppingCriteriaList([clock]))
    end = clock.now()
    expected = (case.batch, case.input + case.output)
    if tuple(output.sequences.shape) != expected or len(clock.times) != case.output:
        raise ModelError(
            f"generate gave token ids {tuple(output.sequences.shape)} in {len(clock.times)} steps, not {expected} in "
            f"{case.output}: this model cannot be timed."
        )
    cache: Any = getattr(output, "past_key_values", None)
    first, last = clock.times[0], clock.times[-1]
    return Run(
        prefill=first - begin,
        decode=(last - first) / (case.output - 1),
        total=end - begin,
        kv_bytes=cache_nbytes(cache) if hasattr(cache, "layers") else None,
    )


def check_model(model: PreTrainedModel, scheme: str) -> None:
    """Make sure that what is timed is right: a fast wrong answer has no speed.

    Logits are finite and one for each token of the vocabulary; those of the chosen implementation mean what the plain
    one says; and a token decoded with the cache gets those that one forward over the whole text gives it.

    Raises:
        ModelError: one of these does not hold.
    """
    ids = prompts(model, Case(1, _TOKENS, 2))
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    output = _generate(model, ids, 2, output_logits=True)
    decoded = output.logits[1][0]
    with torch.no_grad():
        text = output.sequences[:, :-1]
        whole = _last_logits(model, text)
        with prefer(PLAIN):
            plain = _last_logits(model, text)
    for name, logits in (("decoding", decoded), ("one forward", whole), (f"the implementation {PLAIN!r}", plain)):
        if logits.shape[-1] < vocabulary or not torch.isfinite(logits).all():
            raise ModelError(
                f"{scheme}: the logits of {name} are not finite numbers for {vocabulary} tokens "
                f"({tuple(logits.shape)}, {logits.dtype}): nothing is timed. Try another --dtype."
            )
    for name, other in (("one forward over the same text", whole), (f"the implementation {PLAIN!r}", plain)):
        alike = correlation(decoded, other)
        if alike < ALIKE:
            raise ModelError(
                f"{scheme}: the logits of a decoded token have a correlation of {alike:.2f} with those of {name}, and "
                f"at least {ALIKE} is needed: this is another model, and its speed says nothing."
            )


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's, of two vectors; 1 if both are constant."""
    a, b = (each.double().flatten() - each.double().mean() for each in (one.cpu(), other.cpu()))
    length = float(a.norm() * b.norm())
    return float(a @ b) / length if length else float(torch.equal(a, b))


def _last_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids, use_cache=False).logits[0, -1]
    return logits


def _generate(model: Any, ids: Tensor, tokens: int, **options: Any) -> Any:
    """Greedy, and with no way to end early."""
    pad = model.generation_config.pad_token_id
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        use_cache=True,
        pad_token_id=0 if pad is None else pad,
        return_dict_in_generate=True,
        **options,
    )
