"""What rotating keys before they are quantized is worth: the reference model on 4,096 tokens.

    python benchmarks/rotation.py

Once as it is, and once with two channels of the keys of each head larger than they were, and those of the queries
smaller by as much, which changes nothing but what rounding costs: keys of Qwen2 and Qwen2.5 look so.

`plain` and `rotated` are the mean divergence from the model with keys and values in float32, in nats per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from machine import write_results

from qllm_hf.cache import QllmCache
from qllm_hf.loading import load_model, load_tokenizer
from qllm_hf.methods.calibration import CURRICULUM, read_calibration
from qllm_hf.scheme import Scheme

BITS = (8, 4, 3, 2)
FACTORS = (1, 8, 24)
CHANNEL = 3  # and the one that the rotary embedding mixes it with


def enlarge_channels_(model: Any, factor: float) -> Any:
    """The same model: two channels of its keys are larger by a factor, and those of its queries smaller. In place."""
    for layer in model.model.layers:
        attention = layer.self_attn
        half = attention.head_dim // 2
        for projection, by in ((attention.k_proj, factor), (attention.q_proj, 1 / factor)):
            heads = projection.weight.data.view(-1, attention.head_dim, projection.in_features)
            heads[:, [CHANNEL, CHANNEL + half]] *= by
    return model


@torch.no_grad()
def measured() -> Iterator[dict[str, Any]]:
    """A row for each factor and number of bits."""
    ids = read_calibration(CURRICULUM, load_tokenizer("reference"), samples=8, seqlen=512).ids
    for factor in FACTORS:
        model = enlarge_channels_(load_model("reference", dtype="float32").eval(), factor)
        exact = model(ids, use_cache=False).logits.log_softmax(-1)
        for bits in BITS:
            found = {}
            for name, rotated in (("plain", False), ("rotated", True)):
                cache = QllmCache(model.config, Scheme(kv=bits, kv_rotate_keys=rotated))
                logits = model(ids, past_key_values=cache).logits.log_softmax(-1)
                found[name] = f"{(exact.exp() * (exact - logits)).sum(-1).mean():.3g}"
            yield {"times_larger": factor, "scheme": f"KV{bits}", "tokens": ids.numel(), **found}


def main() -> None:
    rows = []
    for row in measured():
        rows.append(row)
        print(row, flush=True)
    print(write_results("rotation", rows))


if __name__ == "__main__":
    main()
