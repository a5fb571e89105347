"""Calibrates a model block by block: see, scale, round, go on with what the rounded block puts out.

    for each decoder block, in float32:
        run all calibration tokens through it and gather what its layers read     moments
        move scales along its pairs                                               scaling   (awq, smoothquant)
        choose ranges and codes, and pack                                         rounding  (rtn, gptq)
        run the tokens through the packed block: what the next one gets

Only one block is in float32 at a time. What is random (the order of texts) has a fixed seed, so the same text and model
give the same codes on the same machine.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..config import QllmConfig
from ..errors import QllmWarning
from ..method import AWQ, GPTQ, SMOOTHQUANT, options_of, scaling_of
from ..plan import Entry, Plan, make_plan, patterns_of, shared_weights
from ..surgery import pack_modules_, replace_modules_
from .as_packed import run_as_packed_
from .blocks import Blocks
from .calibration import Calibration, check_fits
from .encoder import Encoder
from .heads import heads_of
from .memory import give_back
from .moments import SAMPLE, Inputs, keeping, watching
from .residence import Residence
from .scales import scale_input
from .scaling import Scaled, scale_block
from .work import Hidden, Work

BATCH_TOKENS = 1024
"""Tokens that go through a block at a time: enough for its products to be efficient, few enough for its activations
to be small beside its weights."""
TRIAL_TOKENS = 32
"""Tokens on which pairs are tried."""


@dataclass
class _Run:
    """One calibration: what does not change from block to block."""

    model: PreTrainedModel
    config: QllmConfig
    blocks: Blocks
    plan: Plan
    batches: list[Tensor]
    hidden: Hidden
    floats: Hidden | None
    residence: Residence
    unscaled: dict[str, str] = field(default_factory=dict)
    """Layer -> why no scale could be moved out of its input, of all blocks so far."""


def calibrate_(
    model: PreTrainedModel,
    config: QllmConfig,
    calibration: Calibration,
    *,
    blocks: Blocks,
    residence: Residence,
    work: Work | None = None,
    progress: bool = False,
) -> Plan:
    """Pack the weights of a float model by the config's method, in place. Returns the plan that was carried out.

    `config.input_scales` and `config.calibration` then say what was done.

    Raises:
        CalibrationError: the text is no use for this model, or activations are not finite.
        ModelError: a block cannot be run on its own, or a weight is not finite.
    """
    check_fits(model, calibration)
    plan = make_plan(model, config)
    size = max(1, BATCH_TOKENS // calibration.ids.shape[1])
    batches = list(calibration.ids.split(size))
    gptq: Any = options_of(config.method, config.method_options).get(GPTQ)
    floats = Hidden(work, "float") if gptq and gptq.correction else None
    run = _Run(model, config, blocks, plan, batches, Hidden(work), floats, residence)
    run_as_packed_(model)
    scaled: set[str] = set(work.notes.get("input_scales", ())) if work else set()
    done = work.done if work else 0
    if work and done:
        blocks.lengths = list(work.notes["lengths"])
        run.unscaled.update(work.notes.get("unscaled", {}))
        _replay(run, done, scaled)
    if work:
        work.begin()
    if not done:
        for batch, ids in enumerate(batches):
            first = blocks.embed(ids)
            for stream in (run.hidden, run.floats):
                if stream is not None:
                    stream.save(0, batch, first)
    name = f"{config.method} {config.scheme}"
    bar = tqdm(desc=name, initial=done, total=len(blocks), unit="block", disable=not progress)
    for index in range(done, len(blocks)):
        scaled |= _quantize_block(run, index)
        bar.update()
        if work:
            work.advance(
                index + 1, {"lengths": blocks.lengths, "input_scales": sorted(scaled), "unscaled": run.unscaled}
            )
    bar.close()
    residence.finish()
    _say_unscaled(run)
    outside = Plan(tuple(entry for entry in plan.entries if not entry.module.startswith(f"{blocks.name}.")))
    pack_modules_(model, outside)
    config.input_scales = patterns_of(scaled, plan) or None
    config.calibration = calibration.summary()
    return plan.with_input_scales(scaled)


def _quantize_block(run: _Run, index: int) -> set[str]:
    """Pack one block; returns the layers that multiply their input."""
    prefix = f"{run.blocks.name}.{index}"
    block = run.residence.open(index)
    dtypes = run.residence.dtypes(index)
    entries = {e.name.removeprefix(f"{prefix}."): e for e in run.plan.quantized() if e.name.startswith(f"{prefix}.")}
    options = options_of(run.config.method, run.config.method_options)
    scaling = scaling_of(run.config.method)
    # Rounding an input does not commute with scaling it: where both happen, scales come first.
    rounds_inputs = GPTQ in options and any(entry.activation for entry in entries.values())
    inputs = _gather(run, index, block, entries, rounded=rounds_inputs and scaling is None)
    scaled = Scaled()
    if scaling in (AWQ, SMOOTHQUANT):
        ids, hidden = run.batches[0][:1, :TRIAL_TOKENS], run.hidden.load(index, 0)[:1, :TRIAL_TOKENS]
        device = next(block.parameters()).device
        scaled = scale_block(
            block,
            lambda: run.blocks.run(index, ids, hidden.to(device)),
            entries,
            inputs,
            options[scaling],  # type: ignore[arg-type]
            heads_of(run.model.config),
            _shared_modules(run.model, prefix),
            dtypes,
        )
        run.unscaled |= {e.module: scaled.skipped[name] for name, e in entries.items() if name in scaled.skipped}
    if scaling is not None and rounds_inputs:
        with contextlib.ExitStack() as hooks:
            for name, factor in scaled.factors.items():
                hooks.callback(scale_input(block.get_submodule(name), factor).remove)
            inputs = _gather(run, index, block, entries, rounded=True)
    layers = {f"{prefix}.{name}": factor for name, factor in scaled.factors.items()}
    part = Plan(tuple(entries.values())).with_input_scales(layers)
    gptq, awq = options.get(GPTQ), options.get(AWQ)
    encoder = Encoder(prefix, inputs, dtypes, gptq, awq)  # type: ignore[arg-type]
    pack_modules_(run.model, part, encoder)
    for name, factor in layers.items():
        packed: Any = run.model.get_submodule(name)
        dtype = dtypes[f"{name.removeprefix(f'{prefix}.')}.weight"]
        packed.assign_input_scale(factor.to(dtype))
    with _all_in_float32(block):
        for batch, ids in enumerate(run.batches):
            hidden = run.hidden.load(index, batch).to(next(block.parameters()).device)
            run.hidden.save(index + 1, batch, run.blocks.advance(index, ids, hidden))
    run.residence.close(index)
    give_back()
    return set(layers)


def _say_unscaled(run: _Run) -> None:
    """A warning that names the layers which were rounded without what the method is for."""
    if run.unscaled:
        names = ", ".join(patterns_of(set(run.unscaled), run.plan))
        reasons = " or ".join(sorted(set(run.unscaled.values())))
        warnings.warn(
            f"{run.config.method}: {names} ({len(run.unscaled)} layers) were rounded without a scale: {reasons}.",
            QllmWarning,
            stacklevel=3,
        )


@contextlib.contextmanager
def _all_in_float32(block: nn.Module) -> Iterator[None]:
    """Within, the scales of packed weights are in float32 too: Mamba multiplies by one of its weights itself."""
    stored = [(parameter, parameter.dtype) for parameter in block.parameters() if parameter.is_floating_point()]
    try:
        for parameter, dtype in stored:
            parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))
        yield
    finally:
        for parameter, dtype in stored:
            parameter.data = parameter.data.to(dtype)


def _gather(run: _Run, index: int, block: nn.Module, entries: dict[str, Entry], *, rounded: bool) -> Inputs:
    """What the layers of a float block read, in the model that is being rounded and in the float one."""
    prefix = f"{run.blocks.name}.{index}"
    inputs = Inputs(prefix, {name: entry.activation for name, entry in entries.items()} if rounded else None)
    linears = [name.rpartition(".")[0] for name, entry in entries.items() if entry.kind != "experts"]
    experts = sorted({name.rpartition(".")[0] for name, entry in entries.items() if entry.kind == "experts"})
    keep = -(-SAMPLE // len(run.batches))
    device = next(block.parameters()).device
    for batch, ids in enumerate(run.batches):
        inputs.next_pass()
        if run.floats is not None:
            with keeping(block, linears, experts, inputs.float_inputs):
                after = run.blocks.advance(index, ids, run.floats.load(index, batch).to(device))
            run.floats.save(index + 1, batch, after)
        with watching(block, linears, experts, inputs, keep):
            run.blocks.run(index, ids, run.hidden.load(index, batch).to(device))
    inputs.next_pass()
    give_back()
    return inputs


def _replay(run: _Run, done: int, scaled: set[str]) -> None:
    """Give the blocks that an earlier run finished their packed form, still without weights."""
    prefixes = tuple(f"{run.blocks.name}.{index}." for index in range(done))
    part = Plan(tuple(entry for entry in run.plan.quantized() if entry.name.startswith(prefixes)))
    replace_modules_(run.model, part.with_input_scales(scaled), placeholders=False)


def _shared_modules(model: PreTrainedModel, prefix: str) -> frozenset[str]:
    """Modules within a block whose weights another block uses too."""
    names = [name.removeprefix(f"{prefix}.") for name in shared_weights(model) if name.startswith(f"{prefix}.")]
    return frozenset(name.rpartition(".")[0] for name in names)
