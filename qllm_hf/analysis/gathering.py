"""What one decoder block shows: its weights, what its layers read, what it would cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..cache import kv_format_of
from ..hooks import find_attentions
from ..methods.moments import expert_hidden
from ..nn import expert_parameters
from ..plan import Entry
from ..scheme import PER_ROW, Scheme, Spec
from .kv import watching_kv
from .noise import BITS, Noise
from .streaming import Stream, Summary

Kind = Literal["W", "A", "K", "V"]
Measure = Literal["sqnr", "output_sqnr", "logit_noise"]
KINDS: tuple[Kind, ...] = ("W", "A", "K", "V")


@dataclass(frozen=True)
class Row:
    """One tensor of a model.

    Attributes:
        name: of the layer; of K and V, the attention.
        block: number of the decoder block, or None outside of them.
        layer: the name within the block.
        readers: of A: further layers that read the same tensor.
        sqnr: {bits: signal to quantization noise in dB}, of the tensor; empty where it is never quantized, and None
            where nothing is lost.
        effect: {bits: what that does}, by `measure`.
        measure: "output_sqnr": dB in the output of the layer, for W and A. "logit_noise": nats in the logits of
            attention, for K. "sqnr": as `sqnr`, where neither can be said.
        channel_low, channel_high: [C], the range of each channel: input channels of W and A, heads times head dim of K
            and V.
    """

    kind: Kind
    name: str
    block: int | None
    layer: str
    readers: tuple[str, ...]
    summary: Summary
    sqnr: dict[int, float | None]
    effect: dict[int, float | None]
    measure: Measure
    channel_low: Tensor
    channel_high: Tensor


@dataclass
class _Probe:
    """What is gathered of one tensor, and of A which layers read it."""

    stream: Stream
    noise: Noise
    readers: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, x: Tensor, specs: Mapping[int, Spec]) -> _Probe:
        channels = x.shape[-1]
        return cls(Stream(name, channels, x.device), Noise(specs, channels, x.device))

    def add(self, x: Tensor) -> None:
        self.stream.add(x)
        self.noise.add(x)


class Gathered:
    """All that is seen of one block."""

    def __init__(self, model: PreTrainedModel, prefix: str, entries: list[Entry]) -> None:
        self._model, self._prefix, self._entries = model, prefix, entries
        self._probes: dict[tuple[Kind, str], _Probe] = {}
        self._readers: list[tuple[Tensor, str]] = []  # of this forward pass: tensor, first layer that read it
        self._heads: dict[str, tuple[int, float]] = {}

    def see_weight(self, entry: Entry, matrix: Tensor) -> None:
        """A weight [.., O, I] in the dtype that it is stored in."""
        assert entry.weight is not None
        name = entry.name.removesuffix(".weight")
        self._see("W", name, entry.name, matrix, {bits: replace(entry.weight, bits=bits) for bits in BITS})

    def next_pass(self) -> None:
        """Another forward pass begins."""
        self._readers.clear()

    def watching(self) -> ExitStack:
        """Within it, all that passes through the block is seen."""
        stack = ExitStack()
        for name in dict.fromkeys(entry.module for entry in self._entries):
            module = self._model.get_submodule(name)
            hook = self._experts_hook(name) if expert_parameters(module) else self._linear_hook(name)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        if kv_format_of(self._model.config, Scheme(kv=4)) and not getattr(self._model.config, "is_encoder_decoder", 0):
            found = find_attentions(self._model).items()
            attentions = {name: module for name, module in found if name.startswith(f"{self._prefix}.")}
            stack.enter_context(watching_kv(attentions, self._see_kv))
        return stack

    def rows(self, block: int | None) -> Iterator[Row]:
        """What was seen, weights first."""
        for kind in KINDS:
            for (found, name), probe in self._probes.items():
                if found == kind and probe.stream.count:
                    yield self._row(kind, name, probe, block)

    def _row(self, kind: Kind, name: str, probe: _Probe, block: int | None) -> Row:
        sqnr = probe.noise.sqnr()
        effect, how = sqnr, "sqnr"
        if kind in ("W", "A") and (met := self._met_by(kind, name, probe)) is not None:
            effect, how = probe.noise.sqnr(met), "output_sqnr"
        elif kind == "K" and name in self._heads and probe.noise.specs:
            effect, how = probe.noise.logit_noise(*self._heads[name]), "logit_noise"
        return Row(
            kind=kind,
            name=name,
            block=block,
            layer=name.removeprefix(f"{self._prefix}."),
            readers=tuple(probe.readers),
            summary=probe.stream.summary(),
            sqnr=sqnr,
            effect=effect,
            measure=how,  # type: ignore[arg-type]
            channel_low=probe.stream.channel_low.cpu(),
            channel_high=probe.stream.channel_high.cpu(),
        )

    def _met_by(self, kind: Kind, name: str, probe: _Probe) -> Tensor | None:
        """[C], the energy that the channels of a weight meet in its inputs, or those of inputs in the weights."""
        if kind == "W":
            inputs = next(
                (one for (found, first), one in self._probes.items() if found == "A" and name in (first, *one.readers)),
                None,
            )
            return inputs.noise.signal if inputs is not None and inputs.stream.count else None
        return sum((self._probes["W", each].noise.signal for each in (name, *probe.readers)), start=torch.tensor(0.0))

    def _see(self, kind: Kind, name: str, words: str, x: Tensor, specs: Mapping[int, Spec]) -> _Probe:
        if (kind, name) not in self._probes:
            self._probes[kind, name] = _Probe.of(words, x, specs)
        self._probes[kind, name].add(x)
        return self._probes[kind, name]

    def _see_input(self, name: str, x: Tensor) -> None:
        first = next((reader for tensor, reader in self._readers if tensor is x), None)
        if first is None:
            self._readers.append((x, name))
            self._see("A", name, f"the input of {name}", x, {bits: Spec(bits, PER_ROW) for bits in BITS})
        elif name not in (readers := self._probes["A", first].readers):
            readers.append(name)

    def _linear_hook(self, name: str) -> Any:
        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._see_input(name, args[0] if args else next(iter(kwargs.values())))

        return take

    def _experts_hook(self, name: str) -> Any:
        """Tokens count once for each expert that they go to."""

        def take(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, chosen = [*args, *kwargs.values()][:2]
            first = "gate_up_proj" if module.has_gate else "up_proj"
            for index in range(expert_parameters(module)["down_proj"].shape[0]):
                tokens = x[torch.where(chosen == index)[0]].float()
                if len(tokens):
                    self._see_input(f"{name}.{first}", tokens)
                    self._see_input(f"{name}.down_proj", expert_hidden(module, tokens, index))

        return take

    def _see_kv(self, name: str, keys: Tensor, values: Tensor) -> None:
        config = self._model.config
        formats = {bits: kv_format_of(config, Scheme(kv=bits)) for bits in BITS}
        for kind, x in (("K", keys), ("V", values)):
            specs = {}
            for bits, one in formats.items():
                spec = (one.keys(x) if kind == "K" else one.values(x)).spec if one is not None else None
                if spec is not None:
                    specs[bits] = spec
            # groups divide a head, so heads may stand side by side
            rows = x.transpose(1, 2).reshape(-1, x.shape[1] * x.shape[-1])
            words = f"what {name} caches as its {'keys' if kind == 'K' else 'values'}"
            self._see(kind, name, words, rows, specs)  # type: ignore[arg-type]
        if any(one is not None and not one.keys_only for one in formats.values()):  # else K is a latent, and no key
            length = keys.shape[-1]
            scaling = getattr(self._model.get_submodule(name), "scaling", None)
            self._heads[name] = (length, scaling if isinstance(scaling, float) else length**-0.5)
