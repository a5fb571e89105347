"""What each layer's bits do to the model on their own: the measured divergence of its predictions.

One weight at a time is rounded to nearest, all others stay as they are, and the tokens run on from its block to the
logits. The cost is the mean Kullback-Leibler divergence of the rounded model's next-token distribution from the
float one's, in nats per token. Costs of different layers are added up when bits are allocated (`qllm_hf.budget`),
which is right to first order only: that is why the sum is a means of choosing, not a prediction.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..budget import Choice
from ..config import BUDGET_W, QllmConfig
from ..errors import CalibrationError, ConfigError, ModelError
from ..patterns import first_match
from ..plan import Entry, Plan, make_plan, packed_bits
from ..scheme import ALLOWED_BITS, FLOAT_BITS
from ..sensitivity_table import SENSITIVITY_FORMAT, read_table
from ..uniform import fake_quantize
from .as_packed import running_as_packed
from .blocks import Blocks, block_list
from .calibration import Calibration, calibration_for, check_fits

BITS = (2, 3, 4, 5, 6, 8)
BLOCKS = 8
"""Blocks of calibration text that are enough: each measurement is a mean over thousands of tokens."""


@dataclass(frozen=True)
class Sensitivity:
    """What was measured, for one model and one way of grouping.

    Attributes:
        layers: name of a module -> (stored bits and cost of each bit-width). One that a module cannot bear, because
            the model then computes no finite numbers, is left out.
        elements: name of a module -> number of its weights.
        group_size, symmetric: of the weights.
        calibration: what was read, as in a saved config.
    """

    layers: Mapping[str, tuple[Choice, ...]]
    elements: Mapping[str, int]
    group_size: int
    symmetric: bool
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
        return {
            "format": SENSITIVITY_FORMAT,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "calibration": dict(self.calibration),
            "layers": layers,
        }

    @classmethod
    def from_dict(cls, source: Mapping[str, Any] | str | Path) -> Sensitivity:
        """What `to_dict` or a JSON file of it holds.

        Raises:
            ConfigError: it is no table of this format, or damaged.
        """
        table = read_table(source)
        layers = {
            name: tuple(Choice(int(bits), value["size"], value["kl"]) for bits, value in layer["bits"].items())
            for name, layer in table["layers"].items()
        }
        elements = {name: layer["elements"] for name, layer in table["layers"].items()}
        return cls(layers, elements, table["group_size"], table["symmetric"], table.get("calibration", {}))


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

    The weights are put back bit for bit. Sizes are those of the model's dtype, in which scales are stored: measure it
    in the one that it will be quantized in.

    Args:
        model: a float model in memory.
        config: with `calibration`, and what is kept, overridden and grouped; or its options instead.
        blocks: of calibration text that are used.

    Raises:
        CalibrationError: the config has no calibration text, or none that helps.
        ConfigError: bit-widths that cannot be.
        ModelError: no layer is left to measure, or one bears none of the bit-widths.
    """
    config = config if config is not None else QllmConfig(bits_per_weight=float(FLOAT_BITS), **options)
    if not bits or not set(bits) <= set(ALLOWED_BITS):
        raise ConfigError(f"bits={bits!r}: give bit-widths from {ALLOWED_BITS[0]} to {ALLOWED_BITS[-1]}.")
    config.check_ready()
    if config.w == FLOAT_BITS:
        config = copy.copy(config)
        config.w = BUDGET_W  # any bits will do: the plan only has to name the layers
    modules = _modules(model, config)
    if not modules:
        raise ModelError("no layer's bits are left to choose: all are kept in floating point, or overridden.")
    calibration = calibration_for(config, model.config._name_or_path or model.name_or_path)
    check_fits(model, calibration)
    ids = calibration.ids[:blocks]
    walker = Blocks(model, block_list(model, make_plan(model, config)))
    with running_as_packed(model):
        costs = _measure(model, walker, modules, bits, ids, progress=progress)
    layers = {name: _choices(model, entries, costs[name]) for name, entries in modules.items()}
    if unbearable := [name for name, choices in layers.items() if not choices]:
        raise ModelError(
            f"with {unbearable[0]} at any of {', '.join(map(str, bits))} bits, the model computes no finite numbers. "
            "Measure it in a wider dtype, or keep that layer in modules_to_not_convert."
        )
    elements = {name: sum(entry.elements for entry in entries) for name, entries in modules.items()}
    summary = Calibration(ids, calibration.source).summary()
    return Sensitivity(layers, elements, config.w_group_size, config.w_symmetric, summary)


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
    if not all(bool(torch.isfinite(target).all()) for target in targets):
        raise CalibrationError(
            "the float model's own predictions of the calibration text are not finite. Check the checkpoint, or load "
            "it with dtype=torch.float32."
        )

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
    """The modules whose bits are to be chosen: quantized, not named by an override, and not the output head."""
    plain = make_plan(model, config)
    inside = Plan(tuple(entry for entry in plain.entries if not entry.is_head)).modules()
    return {name: entries for name, entries in inside.items() if not first_match(name, config.overrides or {})}


def _choices(model: PreTrainedModel, entries: list[Entry], costs: Mapping[int, float]) -> tuple[Choice, ...]:
    finite = {width: cost for width, cost in costs.items() if math.isfinite(cost)}
    return tuple(Choice(width, packed_bits(model, entries, width), cost) for width, cost in finite.items())


@contextlib.contextmanager
def _rounded(model: PreTrainedModel, entries: list[Entry], bits: int) -> Iterator[None]:
    """Within the block, the weights of one module are rounded to nearest."""
    parameters = [model.get_parameter(entry.name) for entry in entries]
    before = [parameter.data for parameter in parameters]
    try:
        for entry, parameter in zip(entries, parameters, strict=True):
            turned = _stored_transposed(model, entry)
            matrix = parameter.data.transpose(-1, -2).contiguous() if turned else parameter.data
            assert entry.weight is not None
            rounded = fake_quantize(matrix, replace(entry.weight, bits=bits))
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
