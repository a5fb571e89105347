"""Float models that packed ones are compared with: ordinary models of transformers, rounded from outside.

Nothing here calls the packed code. Weights, layer inputs, keys and values are each rounded by the formula in
`qllm_hf.uniform`, in the place where a packed model rounds them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from tiny_models import MODELS, float_model
from torch import Tensor, nn
from transformers import PreTrainedModel, cache_utils
from transformers.pytorch_utils import Conv1D

from qllm_hf import Scheme
from qllm_hf.uniform import fake_quantize


def quantizable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers and fused experts that a scheme acts on: all but routers and the output head."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        is_linear = isinstance(module, nn.Linear | Conv1D) and name.rpartition(".")[2] not in ("gate", "router")
        if module is not head and (is_linear or is_experts(module)):
            yield name, module


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the weights of all experts in 3-D parameters, as transformers 5 keeps them."""
    return hasattr(module, "is_transposed") and any(p.ndim == 3 for p in module.parameters(recurse=False))


def round_weights_(model: PreTrainedModel, scheme: Scheme) -> PreTrainedModel:
    """The same float model with each quantizable weight rounded to its grid."""
    if scheme.weight is None:
        return model
    with torch.no_grad():
        for _, module in quantizable(model):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim < 2 or (is_experts(module) and parameter.ndim < 3):
                    continue
                is_transposed = isinstance(module, Conv1D) or getattr(module, "is_transposed", False)
                matrix = parameter.transpose(-1, -2) if is_transposed else parameter
                rounded = fake_quantize(matrix.contiguous(), scheme.weight)
                parameter.copy_(rounded.transpose(-1, -2) if is_transposed else rounded)
    return model


def round_inputs_(model: PreTrainedModel, scheme: Scheme) -> PreTrainedModel:
    """The same model with the input of each quantizable layer rounded per token.

    Fused experts get a forward of our own for it, since theirs has no place for a hook between its two products.
    """
    spec = scheme.activation
    if spec is None:
        return model
    for _, module in quantizable(model):
        if is_experts(module):
            module.forward = MethodType(_experts_forward(lambda x: fake_quantize(x, spec)), module)
        else:
            module.register_forward_pre_hook(lambda _, args: (fake_quantize(args[0], spec), *args[1:]))
    return model


def _experts_forward(rounded: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        def product(x: Tensor, name: str, expert: int) -> Tensor:
            weight = getattr(self, name)[expert]
            y = F.linear(rounded(x), weight.t().contiguous() if self.is_transposed else weight)
            return y + getattr(self, name + "_bias")[expert] if self.has_bias else y

        parts = hidden_states.new_zeros(*top_k_index.shape, hidden_states.shape[-1])
        for expert in range(self.num_experts):
            token, choice = torch.where(top_k_index == expert)
            if self.has_gate:
                hidden = self._apply_gate(product(hidden_states[token], "gate_up_proj", expert))
            else:
                hidden = self.act_fn(product(hidden_states[token], "up_proj", expert))
            parts[token, choice] = product(hidden, "down_proj", expert) * top_k_weights[token, choice, None]
        return parts.sum(1)

    return forward


def simulated_model(name: str, scheme: Scheme) -> PreTrainedModel:
    """A float model that computes what the packed one means, up to K and V (see `rounded_kv`)."""
    model = float_model(name)
    for key, value in MODELS[name].reference.items():
        setattr(model.config, key, value)
    return round_inputs_(round_weights_(model, scheme), scheme)


WRITERS = ("DynamicLayer", "DynamicSlidingWindowLayer", "StaticLayer", "StaticSlidingWindowLayer")


@contextmanager
def rounded_kv(name: str, scheme: Scheme) -> Iterator[None]:
    """Within the block, every cache of transformers rounds K and V per token and head before it stores them.

    For float models only: packed layers inherit from these classes. They must exist before (see the
    import of `qllm_hf.cache_layers`), or they would inherit the rounding too.
    """

    def with_rounding(update: Callable[..., Any]) -> Callable[..., Any]:
        def run(layer: Any, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
            keys = fake_quantize(keys, scheme.kv_spec(keys.shape[-1]))
            if not MODELS[name].keys_only:
                values = fake_quantize(values, scheme.kv_spec(values.shape[-1]))
            return update(layer, keys, values, *args, **kwargs)

        return run

    with ExitStack() as stack:
        if scheme.kv_spec(1) is not None:
            for writer in WRITERS:
                cls = getattr(cache_utils, writer)
                stack.enter_context(mock.patch.object(cls, "update", with_rounding(cls.update)))
        yield
