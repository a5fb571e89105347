"""How much memory a job of a sweep takes, before it is placed anywhere.

Weights and caches are counted (`qllm_hf.cost`), tensor by tensor. What a forward needs on top is a bound from the same
numbers that batches are planned with; `benchmarks/cluster.py` compares the sum with what jobs really took.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from transformers import PreTrainedModel

from ..config import QllmConfig
from ..cost.model import cost_of
from ..evaluation.batches import tokens_to_read, tokens_to_write
from ..evaluation.lm import float_cache_bytes
from ..method import RTN
from ..plan import make_plan

PROCESS: Final = 1_000_000_000
"""Bytes of Python with torch, transformers and lm_eval, before any model."""
LONGEST: Final = 2_048
"""Tokens that a row is taken to have where rows are counted (--batch-size) and not tokens."""
_COPIES: Final = 3
"""Of the logits that are scored: as the model gives them, in float32, and as log-probabilities."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a job takes at most.

    Attributes:
        weights: as they are stored in memory; those of the float model too where a method looks at it.
        cache: keys and values of the largest batch that is written.
        work: activations and logits of the largest batch, and the largest weight while it is packed or unpacked.
        process: of the program itself.
    """

    weights: int
    cache: int
    work: int
    process: int = PROCESS

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.work + self.process

    @property
    def on_device(self) -> int:
        """What of it is on the accelerator, where there is one."""
        return self.weights + self.cache + self.work

    @property
    def beside_device(self) -> int:
        """What is left for the computer's own memory then: the program, and one weight on its way."""
        return self.process + self.work


def footprint(
    shapes: PreTrainedModel, config: QllmConfig | None, *, batch_size: int | None = None, on_gpu: bool = False
) -> Footprint:
    """What a job takes with a model under a scheme.

    Args:
        shapes: the float model on the meta device.
        config: the scheme; None is the float model.
        batch_size: rows of a batch; None goes by tokens.
        on_gpu: batches are larger there.

    Raises:
        ConfigError, ModelError: the model cannot be quantized so.
    """
    text: Any = shapes.config.get_text_config(decoder=True)
    cost = cost_of(shapes, config)
    itemsize = shapes.dtype.itemsize
    float_cache = float_cache_bytes(text, shapes.dtype)
    read, written = tokens_to_read(text.vocab_size, on_gpu), tokens_to_write(float_cache)
    if batch_size is not None:
        read = written = batch_size * LONGEST
    per_token = float_cache if cost.kv_unknown else cost.kv_bytes_per_token
    weights = cost.weight_bytes
    if config is not None and (config.method != RTN or config.needs_calibration):
        weights += sum(tensor.nbytes for tensor in shapes.parameters())  # both are there while codes are chosen
    inner = max(
        (max(entry.shape[-2:]) for entry in make_plan(shapes, QllmConfig()).entries if not entry.is_head), default=0
    )
    activations = max(read, written) * (8 * text.hidden_size + 3 * inner) * itemsize
    logits = _COPIES * 4 * read * text.vocab_size
    largest = max((tensor.numel() for tensor in shapes.parameters()), default=0) * (itemsize + 4)
    return Footprint(weights, written * per_token, activations + logits + largest)
