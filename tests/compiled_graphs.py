"""What torch.compile makes of a model: graphs to look into, and a model that is run token by token."""

import torch
from tiny_models import prompt
from torch._dynamo.backends.common import aot_autograd
from transformers import StaticCache

OPERATOR = "qllm_hf.attention.default"


class Graphs:
    """A backend of torch.compile that keeps what it is given: for each graph the nodes that compute something."""

    def __init__(self):
        self.nodes = []
        self.backend = aot_autograd(fw_compiler=self._keep)

    def __deepcopy__(self, memo):
        return self  # generate copies its options

    def _keep(self, module, inputs):
        self.nodes.append([node for node in module.graph.nodes if node.op == "call_function"])
        return module.forward

    def operators(self):
        """How often each graph calls the operator."""
        return [sum(str(node.target) == OPERATOR for node in nodes) for nodes in self.nodes]

    def decoded(self, tokens, length):
        """What is computed of the size of a decoded history, in any graph."""
        values = [node.meta["val"] for nodes in self.nodes for node in nodes]
        tensors = [x for value in values for x in (value if isinstance(value, tuple | list) else [value])]
        return [
            x for x in tensors if isinstance(x, torch.Tensor) and x.dtype.is_floating_point
            and tuple(x.shape[-2:]) == (tokens, length)
        ]  # fmt: skip


LENGTH = 32


def left_padded(name):
    ids = prompt(name)
    mask = torch.ones(ids.shape[0], LENGTH, dtype=torch.long)
    ids[0, :6], mask[0, :6] = 0, 0
    return ids, mask


def steps(model, forward, name, after_prompt=lambda _: None):
    """Logits of a prompt, and then of each token by itself, which `forward` computes: [tokens, B, vocabulary].

    `after_prompt` gets the cache in between.
    """
    ids, mask = left_padded(name)
    cache = StaticCache(config=model.config, max_cache_len=LENGTH)
    found = [model(ids[:, :-8], attention_mask=mask, past_key_values=cache, use_cache=True).logits[:, -1]]
    after_prompt(cache)
    for token in range(ids.shape[1] - 8, ids.shape[1]):
        # the number of tokens in a window is a number of Python, which the second graph takes as a variable
        with torch._dynamo.config.patch(error_on_recompile=token >= ids.shape[1] - 6):
            out = forward(ids[:, token : token + 1], attention_mask=mask, past_key_values=cache, use_cache=True)
        found.append(out.logits[:, -1])
    return torch.stack(found)
