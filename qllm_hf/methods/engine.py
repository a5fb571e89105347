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
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..config import QllmConfig
from ..families import family
from ..method import AWQ, GPTQ, SMOOTHQUANT, AwqOptions, GptqOptions, options_of, scaling_of
from ..packed import PackedTensor
from ..patterns import first_match
from ..plan import Entry, Plan, make_plan
from ..surgery import pack_modules_, replace_modules_
from .blocks import Blocks
from .calibration import Calibration, check_fits
from .heads import heads_of
from .memory import give_back
from .moments import SAMPLE, Inputs, Moments, keeping, watching
from .residence import Residence
from .rounding import encode
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
    model.eval()
    run_as_packed_(model)
    scaled: set[str] = set(work.notes.get("input_scales", ())) if work else set()
    done = work.done if work else 0
    if work and done:
        blocks.lengths = list(work.notes["lengths"])
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
            work.advance(index + 1, {"lengths": blocks.lengths, "input_scales": sorted(scaled)})
    bar.close()
    residence.finish()
    outside = Plan(tuple(entry for entry in plan.entries if not entry.module.startswith(f"{blocks.name}.")))
    pack_modules_(model, outside)
    config.input_scales = patterns_of(scaled, plan) or None
    config.calibration = calibration.summary()
    return _with_scales(plan, scaled)


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
    if scaling is not None and rounds_inputs:
        with contextlib.ExitStack() as hooks:
            for name, factor in scaled.factors.items():
                hooks.callback(scale_input(block.get_submodule(name), factor).remove)
            inputs = _gather(run, index, block, entries, rounded=True)
    layers = {f"{prefix}.{name}": factor for name, factor in scaled.factors.items()}
    part = Plan(tuple(replace(entry, input_scale=entry.module in layers) for entry in entries.values()))
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


@dataclass
class Encoder:
    """Chooses the codes of a block's weights from what is known of their inputs."""

    prefix: str
    inputs: Inputs
    dtypes: dict[str, torch.dtype]
    gptq: GptqOptions | None
    awq: AwqOptions | None

    def __call__(self, entry: Entry, matrix: Tensor) -> PackedTensor:
        """The packed form of a float weight [.., O, I]."""
        assert entry.weight is not None
        name = entry.name.removeprefix(f"{self.prefix}.")
        dtype = self.dtypes[name]
        moments = self.inputs.moments.pop(name, None)  # large, and not needed again but by those that share them
        clip = self.gptq or (self.awq if self.awq and not clips_badly(entry.module) else None)
        if matrix.dim() == 3:
            each = moments if isinstance(moments, list) else [None] * matrix.shape[0]
            parts = [self._one(part, one, entry, dtype, clip) for part, one in zip(matrix, each, strict=True)]
            return stacked(parts)
        assert not isinstance(moments, list)
        return self._one(matrix, moments, entry, dtype, clip)

    def _one(
        self,
        matrix: Tensor,
        moments: Moments | None,
        entry: Entry,
        dtype: torch.dtype,
        clip: AwqOptions | GptqOptions | None,
    ) -> PackedTensor:
        assert entry.weight is not None
        give_back()
        # with fewer tokens than columns (a rare expert), what is made up for on them is lost on all others
        gptq = self.gptq if moments is not None and moments.count >= matrix.shape[1] else None
        used_up = not any(other is moments for other in self.inputs.moments.values())
        return encode(matrix.float(), moments, entry.weight, dtype, gptq=gptq, clip=clip, used_up=used_up)


# AWQ's own list: what feeds the product of queries and keys is not clipped.
_QUERIES_AND_KEYS = ("q_", "k_", "query", "key", "Wqkv", "c_attn", "qkv")


def clips_badly(module: str) -> bool:
    """Whether a layer makes queries or keys, which AWQ does not clip: their errors are multiplied with each other."""
    last = module.rpartition(".")[2]
    return any(word in last for word in _QUERIES_AND_KEYS)


def stacked(parts: list[PackedTensor]) -> PackedTensor:
    """Packed matrices of one shape as one packed tensor [E, O, I]."""
    zeros = [part.zero_point for part in parts if part.zero_point is not None]
    return parts[0]._replace(
        words=torch.stack([part.words for part in parts]),
        scale=torch.stack([part.scale for part in parts]),
        zero_point=torch.stack(zeros) if zeros else None,
    )


def _replay(run: _Run, done: int, scaled: set[str]) -> None:
    """Give the blocks that an earlier run finished their packed form, still without weights."""
    prefixes = tuple(f"{run.blocks.name}.{index}." for index in range(done))
    entries = tuple(
        replace(entry, input_scale=entry.module in scaled)
        for entry in run.plan.quantized()
        if entry.name.startswith(prefixes)
    )
    replace_modules_(run.model, Plan(entries), placeholders=False)


def _with_scales(plan: Plan, scaled: set[str]) -> Plan:
    return Plan(tuple(replace(entry, input_scale=entry.module in scaled) for entry in plan.entries))


def patterns_of(modules: set[str], plan: Plan) -> list[str]:
    """The shortest list of patterns that means these modules of a plan and no others: one for all blocks if it can."""
    patterns: list[str] = []
    by_form: dict[str, set[str]] = {}
    for module in modules:
        by_form.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", module), set()).add(module)
    for form, members in sorted(by_form.items()):
        meant = {entry.module for entry in plan.quantized() if first_match(entry.module, [form])}
        patterns += [form] if meant == members else sorted(members)
    return patterns


def _shared_modules(model: PreTrainedModel, prefix: str) -> frozenset[str]:
    """Modules within a block whose weights another block uses too, by transformers' own table of ties."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    names = {*tied.keys(), *tied.values()}
    return frozenset(
        name.removeprefix(f"{prefix}.").rpartition(".")[0] for name in names if name.startswith(f"{prefix}.")
    )


@contextlib.contextmanager
def running_as_packed(model: PreTrainedModel) -> Iterator[None]:
    """As `run_as_packed_`, but only within the block."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    before = [(config, dict(config.__dict__)) for config in configs]
    run_as_packed_(model)
    try:
        yield
    finally:
        for config, values in before:
            for key in config.__dict__.keys() - values.keys():
                del config.__dict__[key]
            config.__dict__.update(values)


def run_as_packed_(model: PreTrainedModel) -> None:
    """Let a float model take the paths of a packed one: Jamba then calls a layer whose matrix it would take itself."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._is_quantized = True  # as transformers marks what it quantizes
    for key, value in family(model.config.model_type).config_updates.items():
        setattr(model.config, key, value)
