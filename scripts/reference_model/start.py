"""Where training starts: random weights, but for a first layer whose heads look one, two, three, ... tokens back.

Looking up what followed a word the last time takes two heads, one that knows the word before each token and one
that finds it. Neither is of use without the other, so a model needs millions of tokens until it has both by chance.
With the first one given, the second is learned in a hundred steps. The heads are free to change.
"""

from __future__ import annotations

import math
from typing import Any

import torch

SHARPNESS = 6.0
FAST_PAIRS = 16  # pairs of elements of a head that RoPE turns fast enough to tell neighbours apart


@torch.no_grad()
def look_back(model: Any) -> None:
    """Changes the embedding and the first layer of a Llama in place.

    All embeddings get a common part. A key made from it is the same for every token, and RoPE turns it with the
    position; a query that is turned back by n positions then fits best to the key n tokens before it.
    """
    config = model.config
    size, width = config.head_dim, config.hidden_size
    common = torch.sign(torch.randn(width))
    model.model.embed_tokens.weight.add_(config.initializer_range * common)
    # After the norm, half of the power of each embedding is the common part.
    reader = common / math.sqrt(width) / math.sqrt(width / 2)
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    strength = torch.zeros(size // 2)
    strength[:FAST_PAIRS] = SHARPNESS
    attention = model.model.layers[0].self_attn
    for head in range(config.num_key_value_heads):
        key = torch.cat([strength, torch.zeros(size // 2)])
        attention.k_proj.weight[head * size : (head + 1) * size].add_(torch.outer(key, reader))
    for head in range(config.num_attention_heads):
        angle = -(head + 1) * frequencies
        query = torch.cat([strength * torch.cos(angle), strength * torch.sin(angle)])
        attention.q_proj.weight[head * size : (head + 1) * size].add_(torch.outer(query, reader))
