"""What each layer's bits do to the model on their own: the measured divergence of its predictions.

One weight at a time is rounded to nearest, all others stay as they are, and the tokens run on from its block to the
logits. The cost is the mean Kullback-Leibler divergence of the rounded model's next-token distribution from the
float one's, in nats per token. Costs of different layers are added up when bits are allocated (`qllm_hf.budget`),
which is right to first order only: that is why the sum is a means of choosing, not a prediction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..budget import Choice
from ..config import SENSITIVITY_FORMAT, QllmConfig
from ..errors import ConfigError
from ..patterns import first_match
from ..plan import Entry, make_plan
from ..scheme import ALLOWED_BITS, Spec
from ..uniform import fake_quantize
from .blocks import Blocks, block_list
from .calibration import Calibration, calibration_for
from .engine import running_as_packed

BITS = (2, 3, 4, 5, 6, 8)
BLOCKS = 8
"""Blocks of calibration text that are enough: each measurement is a mean over thousands of tokens."""


@dataclass(frozen=True)
class Sensitivity:
    """What was measured, for one model and one way of grouping.

    Attributes:
        layers: name of a module -> (stored bits and cost of each bit-width).
        elements: name of a module -> number of its weights.
        group_size: of the weights.
        calibration: what was read, as in a saved config.
    """

    layers: Mapping[str, tuple[Choice, ...]]
    elements: Mapping[str, int]
    group_size: int
    calibration: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        layers = {
            name: {
                "elements": self.elements[name],
                "bits": {str(choice.bits): {"size": choice.size, "kl": choice.cost} for choice in choices},
            }
            for name, choices in self.layers.items()
        }
        calibration = dict(self.calibration)
        return {
            "format": SENSITIVITY_FORMAT,
            "group_size": self.group_size,
            "calibration": calibration,
            "layers": layers,
        }


@torch.no_grad()
def measure_sensitivity(
    model: PreTrainedModel,
    config: QllmConfig | None = None,
    *,
    bits: tuple[int, ...] = BITS,
    blocks: int = BLOCKS,
    progress: bool = False,
    **options: Any,
) -> Sensitivity:
    """The divergence, in nats per token, that each layer's rounding to each of `bits` causes on its own.

    The weights are put back bit for bit.

    Args:
        model: a float model in memory.
        config: with `calibration`, and what is kept, overridden and grouped; or its options instead.
        blocks: of calibration text that are used.

    Raises:
        CalibrationError: the config has no calibration text, or none that helps.
        ConfigError: bit-widths that cannot be.
    """
    config = config if config is not None else QllmConfig(w=4, bits_per_weight=4.0, **options)
    if not bits or not set(bits) <= set(ALLOWED_BITS):
        raise ConfigError(f"bits={bits!r}: give bit-widths from {ALLOWED_BITS[0]} to {ALLOWED_BITS[-1]}.")
    config.check_ready()
    calibration = calibration_for(config, model.config._name_or_path or model.name_or_path)
    ids = calibration.ids[:blocks]
    modules = _modules(model, config)
    walker = Blocks(model, block_list(model, make_plan(model, config)))
    model.eval()
    with running_as_packed(model):
        costs = _measure(model, walker, modules, bits, ids, progress=progress)
    layers = {name: _choices(entries, costs[name], model) for name, entries in modules.items()}
    elements = {name: sum(entry.elements for entry in entries) for name, entries in modules.items()}
    summary = Calibration(ids, calibration.source).summary()
    return Sensitivity(layers, elements, config.w_group_size, summary)


def _measure(
    model: PreTrainedModel,
    walker: Blocks,
    modules: Mapping[str, list[Entry]],
    bits: tuple[int, ...],
    ids: Tensor,
    *,
    progress: bool,
) -> dict[str, dict[int, float]]:
    """{module: {bits: divergence}}: from a module's block on, everything is run again for each of its bit-widths."""
    costs: dict[str, dict[int, float]] = {}
    bar = tqdm(total=len(modules) * len(bits), desc="sensitivity", unit="run", disable=not progress)
    batches = list(ids.split(max(1, 2048 // ids.shape[1])))
    device = next(model.parameters()).device
    batches = [batch.to(device) for batch in batches]
    hidden = [_own_dtype(model, walker.embed(batch)) for batch in batches]
    targets = [F.log_softmax(walker.finish(0, *pair), -1) for pair in zip(batches, hidden, strict=True)]

    def measure(names: list[str], logits: Callable[[int], Tensor]) -> None:
        for name in names:
            for width in bits:
                with _rounded(model, modules[name], width):
                    each = [_kl(target, logits(number)) for number, target in enumerate(targets)]
                    costs.setdefault(name, {})[width] = float(torch.cat(each).double().mean())
                bar.update()

    for index in range(len(walker)):
        inside = [name for name in modules if name.startswith(f"{walker.name}.{index}.")]
        measure(inside, lambda number: walker.finish(index, batches[number], hidden[number]))  # noqa: B023  (called at once)
        hidden = [_own_dtype(model, walker.advance(index, *pair)) for pair in zip(batches, hidden, strict=True)]
    outside = [name for name in modules if name not in costs]
    measure(outside, lambda number: model(input_ids=batches[number], use_cache=False).logits.float())
    bar.close()
    return costs


def _modules(model: PreTrainedModel, config: QllmConfig) -> dict[str, list[Entry]]:
    """The modules whose bits are to be chosen: quantized, and not named by an override."""
    plain = make_plan(model, config)
    return {name: entries for name, entries in plain.modules().items() if not first_match(name, config.overrides or {})}


def _choices(entries: list[Entry], costs: Mapping[int, float], model: PreTrainedModel) -> tuple[Choice, ...]:
    found = []
    for width, cost in costs.items():
        size = 0.0
        for entry in entries:
            spec, length = _spec(entry, width), entry.shape[-1]
            scale_bits = 8 * model.get_parameter(entry.name).element_size()
            size += spec.row_bits(length, scale_bits) * (entry.elements // length)
        found.append(Choice(width, round(size), cost))
    return tuple(found)


def _spec(entry: Entry, bits: int) -> Spec:
    assert entry.weight is not None
    return Spec(bits, entry.weight.group_size, entry.weight.symmetric, entry.weight.paper_exact)


@contextlib.contextmanager
def _rounded(model: PreTrainedModel, entries: list[Entry], bits: int) -> Iterator[None]:
    """Within the block, the weights of one module are rounded to nearest."""
    parameters = [model.get_parameter(entry.name) for entry in entries]
    before = [parameter.data for parameter in parameters]
    try:
        for entry, parameter in zip(entries, parameters, strict=True):
            turned = _stored_transposed(model, entry)
            matrix = parameter.data.transpose(-1, -2).contiguous() if turned else parameter.data
            rounded = fake_quantize(matrix, _spec(entry, bits))
            parameter.data = rounded.transpose(-1, -2).contiguous() if turned else rounded
        yield
    finally:
        for parameter, weight in zip(parameters, before, strict=True):
            parameter.data = weight


def _stored_transposed(model: PreTrainedModel, entry: Entry) -> bool:
    module: Any = model.get_submodule(entry.module)
    return entry.kind == "conv1d" or (entry.kind == "experts" and bool(module.is_transposed))


def _own_dtype(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    return hidden.to(model.dtype)


def _kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL(float || rounded) of each token, [B * T]."""
    return (target.exp() * (target - F.log_softmax(logits, -1))).sum(-1).flatten()
