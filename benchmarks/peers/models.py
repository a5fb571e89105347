"""Whole models on a CPU, as each library makes them of the same checkpoint, behind the four things that are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache, QuantizedCache

import qllm_hf
from qllm_hf.ops import Request, resolve
from qllm_hf.scheme import Scheme

from . import autoround, modules
from .interleaved import Sample, timed
from .llamacpp import LlamaCpp
from .method import need

BASELINE = "bf16"
EXACT, EIGHT_BITS, FOUR_BITS = 0.01, 0.2, 0.8
"""Relative errors of logits. Through a cache alone, that of 4 bits is as small as that of weights of 8."""


class Runner(Protocol):
    """A model that was loaded."""

    detail: str

    def logits(self, prompt: list[int], forced: list[int]) -> Tensor:
        """After the prompt, one forced token at a time: float32 [len(forced), V]."""

    def prefill(self, tokens: int) -> float:
        """Seconds of one forward of that many tokens that writes a fresh cache."""

    def fill(self, tokens: int) -> None:
        """Have that many tokens in a fresh cache, of any content."""

    def decode(self, tokens: int) -> list[Sample]:
        """Generate greedily after what is in the cache."""


class Transformers:
    """A model of transformers, with the cache that goes with the method."""

    def __init__(self, model: Any, new_cache: Callable[[Any], Cache], detail: str = "") -> None:
        self.model, self.new_cache, self.detail = model.eval(), new_cache, detail
        self.cache: Cache | None = None
        self.last = torch.zeros(1, 1, dtype=torch.long)

    def _forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        return found

    def logits(self, prompt: list[int], forced: list[int]) -> Tensor:
        self.cache = self.new_cache(self.model.config)
        self._forward(torch.tensor([prompt]))
        return torch.cat([self._forward(torch.tensor([[token]])).float() for token in forced])

    def prefill(self, tokens: int) -> float:
        self.cache = self.new_cache(self.model.config)
        ids = torch.randint(self.model.config.vocab_size, (1, tokens))
        return timed(lambda: self._forward(ids)).seconds

    def fill(self, tokens: int) -> None:
        """Two tokens through the model, so that the cache becomes what the method makes of it, then random rows."""
        self.cache = self.new_cache(self.model.config)
        self._forward(self.last.expand(1, 2))  # HQQ's cache cannot begin with an odd number of rows
        config = self.model.config
        shape = (1, config.num_key_value_heads, tokens - 2, config.head_dim)
        for layer in range(config.num_hidden_layers):
            keys, values = (torch.randn(shape, dtype=torch.bfloat16) for _ in range(2))
            self.cache.update(keys, values, layer)

    def decode(self, tokens: int) -> list[Sample]:
        return [timed(self._step) for _ in range(tokens)]

    def _step(self) -> None:
        self.last = self._forward(self.last).argmax(-1, keepdim=True)


@dataclass(frozen=True)
class ModelMethod:
    """One way to run a checkpoint.

    Attributes:
        name: unique, and what a table shows.
        library, package: its name, and what is installed.
        limit: the largest relative error of its logits that its bits explain; that of unrelated logits is about 1.4.
        load: from the checkpoint's folder and one to keep files in.
    """

    name: str
    library: str
    package: str
    limit: float
    load: Callable[[Path, Path], Runner]


def load_float(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)


def growing(config: Any) -> Cache:
    """The cache of plain `generate`."""
    return DynamicCache(config=config)


def quantized_cache(config: Any, backend: str, axis: int) -> Cache:
    """transformers' own 4-bit cache."""
    return QuantizedCache(backend, config, nbits=4, axis_key=axis, axis_value=axis)


def bfloat16(folder: Path, work: Path) -> Runner:
    return Transformers(load_float(folder), growing)


def bfloat16_with_cache(folder: Path, work: Path, backend: str, axis: int) -> Runner:
    return Transformers(load_float(folder), partial(quantized_cache, backend=backend, axis=axis))


def ours(folder: Path, work: Path, scheme: str, head: bool = False) -> Runner:
    """Ours, and which of our products runs."""
    config = qllm_hf.QllmConfig.from_scheme(scheme, quantize_head=head)
    model = load_float(folder, quantization_config=config)
    parsed = Scheme.parse(scheme)
    assert parsed.weight is not None, scheme
    request = Request("cpu", torch.bfloat16, parsed.weight, parsed.activation)
    return Transformers(model, growing, f"linear: {resolve(request).chosen.name}")


def by_config(folder: Path, work: Path, module: str, config: str, **options: Any) -> Runner:
    """A library that transformers loads by a quantization config. `quant_type` may be [module, class, options]."""
    import transformers

    if module:
        need(module)
    if "quant_type" in options:
        place, name, arguments = options["quant_type"]
        options["quant_type"] = getattr(need(place), name)(**arguments)
    made = getattr(transformers, config)(**options)
    return Transformers(load_float(folder, quantization_config=made), growing)


class _AutoRoundLinear(nn.Module):
    """The forward of AutoRound's own layer, whose checkpoints take a tokenizer and a calibration to make."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.blob = autoround.pack(weight, bits=4, group_size=64, compute="auto")

    def forward(self, x: Tensor) -> Tensor:
        y = autoround.run(self.blob, x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])


def replaced(folder: Path, work: Path, module: str, make: Callable[[Tensor], nn.Module]) -> Runner:
    """A library that transformers does not load: its layer, made of a weight, in place of each but the head."""
    need(module)
    model = load_float(folder)
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                setattr(parent, name, make(child.weight.detach().float()))
    return Transformers(model, growing, "its layers put in place of each linear one")


def llama_cpp(folder: Path, work: Path, file_type: str) -> Runner:
    return LlamaCpp(folder, work, file_type)


def methods() -> list[ModelMethod]:
    """All of them, the baseline first."""
    prototype = "torchao.prototype.quantization.int4"
    int4 = (prototype, "PrototypeInt4WeightOnlyConfig", {"group_size": 64, "set_inductor_config": False})
    int8 = ("torchao.quantization", "Int8WeightOnlyConfig", {"set_inductor_config": False})
    four = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    config = partial(partial, by_config)
    return [
        ModelMethod(BASELINE, "transformers", "transformers", EXACT, bfloat16),
        *(
            ModelMethod(f"qllm_hf {scheme}", "qllm_hf", "qllm-hf", limit, partial(ours, scheme=scheme))
            for scheme, limit in (("W8", EIGHT_BITS), ("W4", FOUR_BITS), ("W4A8", FOUR_BITS), ("W4KV4", FOUR_BITS))
        ),
        *(
            ModelMethod(
                f"qllm_hf {scheme}, head too", "qllm_hf", "qllm-hf", FOUR_BITS, partial(ours, scheme=scheme, head=True)
            )
            for scheme in ("W4", "W4A8", "W4KV4")
        ),
        ModelMethod(
            "bitsandbytes nf4", "bitsandbytes", "bitsandbytes", FOUR_BITS,
            config(module="bitsandbytes", config="BitsAndBytesConfig", **four),
        ),
        ModelMethod(
            "torchao int4 weight-only", "torchao", "torchao", FOUR_BITS,
            config(module="torchao", config="TorchAoConfig", quant_type=int4),
        ),
        ModelMethod(
            "torchao int8 weight-only", "torchao", "torchao", EIGHT_BITS,
            config(module="torchao", config="TorchAoConfig", quant_type=int8),
        ),
        *(
            ModelMethod(
                f"quanto int{bits}", "quanto", "optimum-quanto", limit,
                config(module="optimum.quanto", config="QuantoConfig", weights=f"int{bits}"),
            )
            for bits, limit in ((8, EIGHT_BITS), (4, FOUR_BITS))
        ),
        ModelMethod(
            "HQQ 4 bit", "HQQ", "hqq", FOUR_BITS, partial(replaced, module="hqq", make=partial(modules.hqq, bits=4))
        ),
        ModelMethod(
            "AutoRound int4", "AutoRound", "auto-round-lib", FOUR_BITS,
            partial(replaced, module="auto_round_kernel", make=_AutoRoundLinear),
        ),
        ModelMethod(
            "bf16, quanto 4-bit cache", "quanto", "optimum-quanto", EIGHT_BITS,
            partial(bfloat16_with_cache, backend="quanto", axis=0),
        ),
        ModelMethod(
            "bf16, HQQ 4-bit cache", "HQQ", "hqq", EIGHT_BITS, partial(bfloat16_with_cache, backend="hqq", axis=1)
        ),
        *(
            ModelMethod(
                f"llama.cpp {file_type}", "llama.cpp", "llama-cpp-python", limit,
                partial(llama_cpp, file_type=file_type),
            )
            for file_type, limit in (("Q8_0", EIGHT_BITS), ("Q4_0", FOUR_BITS))
        ),
    ]  # fmt: skip
