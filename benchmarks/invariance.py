"""Every family: where scales can be moved, and how far the float logits move when they are.

    python benchmarks/invariance.py

Tiny random models (tests/tiny_models.py) in float32; a random scale between 1/e and e for every channel of every
pair of every block, before anything is rounded.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from machine import write_results

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny_models import MODELS, float_model, prompt

from qllm_hf.config import QllmConfig
from qllm_hf.methods.as_packed import run_as_packed_
from qllm_hf.methods.blocks import Blocks, block_list
from qllm_hf.methods.heads import heads_of
from qllm_hf.methods.pairs import find_pairs
from qllm_hf.methods.scales import apply_scale, scale_input
from qllm_hf.plan import make_plan


@torch.no_grad()
def row_of(name: str) -> dict[str, Any]:
    """One family: its pairs, what is left alone, and the largest change of a logit."""
    model, ids = float_model(name), prompt(name)
    run_as_packed_(model)
    plan = make_plan(model, QllmConfig(w=4))
    blocks = Blocks(model, block_list(model, plan))
    generator = torch.Generator().manual_seed(0)
    before = model(ids, use_cache=False).logits
    kinds: Counter[str] = Counter()
    left: set[str] = set()
    hidden = blocks.embed(ids)
    for index, block in enumerate(blocks.modules):
        prefix = f"{blocks.name}.{index}."
        weights = frozenset(e.name.removeprefix(prefix) for e in plan.quantized() if e.name.startswith(prefix))

        def run(index: int = index, hidden: torch.Tensor = hidden) -> torch.Tensor:
            return blocks.run(index, ids, hidden)

        pairs, skipped = find_pairs(block, run, heads_of(model.config), quantized=weights)
        following = blocks.advance(index, ids, hidden)
        for pair in pairs:
            scale = torch.exp(2 * torch.rand(pair.scale_shape(block), generator=generator) - 1)
            moved = apply_scale(block, pair, scale)
            if pair.kind == "input":
                scale_input(block.get_submodule(pair.consumers[0].rpartition(".")[0]), 1 / moved)
            kinds[pair.kind] += 1
        left |= skipped.keys()
        hidden = following
    after = model(ids, use_cache=False).logits
    return {
        "family": name,
        **{kind: kinds[kind] for kind in ("norm", "linear", "experts", "input")},
        "left_alone": " ".join(sorted(left)),
        "max_dlogits": f"{(after - before).abs().max():.1e}",
        "max_logits": f"{before.abs().max():.3g}",
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = [row_of(name) for name in MODELS]
    for row in rows:
        print(*row.values())
    print(write_results("invariance", rows))


if __name__ == "__main__":
    main()
