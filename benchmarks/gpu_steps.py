"""How fast a whole model of the shape of Llama-3.1-8B decodes on a GPU, packed and in bfloat16.

    python benchmarks/gpu_steps.py [--only REGEX] [--seconds 450] [--output DIR]
    python benchmarks/gpu_steps.py --tiny     two small layers on a CPU: only verifies, and needs no GPU

Weights and cache are random, since speed does not depend on values. A step is what transformers' `generate` makes of a
static cache: the model compiled into one graph, replayed as a CUDA graph. Before it is timed, the logits of a few
tokens are compared with those of plain torch on the same codes; where they differ, nothing is timed.

- `ms` is the median step of a batch, `ratio` the time of bfloat16 at the same batch and context over it; `goal` is what
  it should reach.
- `weight_gb` and `cache_gb` are what is stored, `peak_gb` the most that was allocated while steps ran.
- `left` counts the kinds of work that failed their trial (`qllm_hf.trials`) and were left to plain torch.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from gpu import RESULTS, reason_of
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from qllm_hf import QllmConfig, attention, ops, quantize_
from qllm_hf.cache import cache_nbytes, kv_format_of, quantize_cache_
from qllm_hf.on_gpu import TRIALS
from qllm_hf.scheme import Scheme

FLOAT = "FP16"
SHAPE = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072 + 128, "rope_theta": 5e5,
}  # fmt: skip
TINY = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 256, "vocab_size": 320, "max_position_embeddings": 256,
}  # fmt: skip
STEPS, WARM_UP = 40, 4
PROMPT, FORCED = 24, 4  # tokens of the comparison
ALLOWED = 0.05  # of the logits' norm: bfloat16 rounds between layers, in either
COLUMNS = (
    "shape", "scheme", "batch", "context", "ms", "q1_ms", "q3_ms", "steps", "tokens_per_s", "bf16_ms", "ratio", "goal",
    "weight_gb", "cache_gb", "peak_gb", "error", "allowed", "left", "remark", "device", "torch", "transformers",
)  # fmt: skip


class Case(NamedTuple):
    """A scheme at a batch size, with so many tokens in the cache, and the ratio that it should reach."""

    scheme: str
    batch: int
    context: int
    goal: float | None = None

    def __str__(self) -> str:
        return f"{self.scheme} batch {self.batch} context {self.context}"


CASES = (
    Case("W4", 1, 2048, 2.0),
    Case("W4", 8, 2048, 1.3),
    Case("W4", 64, 2048, 1.0),
    Case("W8", 1, 2048),
    Case("W3", 1, 2048),
    Case("W4A8", 64, 2048),
    Case("W4KV4", 1, 2048),
    Case("W4KV4", 64, 2048),
    Case("W4KV4", 1, 131072, 2.2),
    Case("KV4", 1, 131072),
)
TINY_CASES = (Case("W4", 1, 40), Case("W4KV4", 2, 40))


def make(scheme: str, device: torch.device, shape: dict[str, Any]) -> Any:
    """A model with random weights, the same for every scheme."""
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape), dtype=torch.bfloat16).eval()
    model.requires_grad_(False)
    return model if scheme == FLOAT else quantize_(model, QllmConfig.from_scheme(scheme))


def fresh_cache(model: Any, scheme: str, batch: int, context: int, room: int) -> StaticCache:
    """A static cache with random keys and values of `context` tokens, as a model of that scheme has it."""
    config = model.config
    cache = StaticCache(config=config, max_cache_len=context + room)
    kv_format = kv_format_of(config, Scheme.parse(scheme))
    if kv_format is not None:
        quantize_cache_(cache, kv_format)
    generator = torch.Generator(model.device).manual_seed(1)
    shape = (batch, config.num_key_value_heads, context, config.head_dim)
    for layer in range(config.num_hidden_layers):
        keys, values = (
            torch.randn(shape, generator=generator, device=model.device, dtype=torch.bfloat16) for _ in range(2)
        )
        cache.update(keys, values, layer)
    return cache


def logits(model: Any, step: Any, ids: Tensor) -> Tensor:
    """Of FORCED tokens after a prompt, each decoded by `step`: float32 [FORCED, B, V]."""
    cache = StaticCache(config=model.config, max_cache_len=ids.shape[1])
    model(ids[:, :PROMPT], past_key_values=cache, use_cache=True)
    found = [
        step(ids[:, token : token + 1], past_key_values=cache, use_cache=True).logits[:, -1].float().clone()
        for token in range(PROMPT, ids.shape[1])
    ]
    return torch.stack(found)


def error_of(model: Any, step: Any, batch: int) -> float:
    """How far the logits of compiled steps are from those of plain torch on the same codes, of their norm."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(model.config.vocab_size, (batch, PROMPT + FORCED), generator=generator).to(model.device)
    with ops.prefer("dequantize"), attention.prefer("dequantize"):
        wanted = logits(model, model, ids)
    return ((logits(model, step, ids) - wanted).norm() / wanted.norm()).item()


def timed(model: Any, step: Any, case: Case) -> dict[str, Any]:
    """The columns that a GPU gives."""
    cache = fresh_cache(model, case.scheme, case.batch, case.context, WARM_UP + STEPS)
    token = torch.zeros(case.batch, 1, dtype=torch.long, device=model.device)
    torch.cuda.reset_peak_memory_stats()
    found = []
    for number in range(WARM_UP + STEPS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step(token, past_key_values=cache, use_cache=True)
        stop.record()
        stop.synchronize()
        if number >= WARM_UP:
            found.append(start.elapsed_time(stop))
    first, median, third = torch.tensor(found).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {
        "ms": f"{median:.4f}",
        "q1_ms": f"{first:.4f}",
        "q3_ms": f"{third:.4f}",
        "steps": STEPS,
        "tokens_per_s": f"{case.batch / median * 1e3:.1f}",
        "cache_gb": f"{cache_nbytes(cache) / 1e9:.4f}",
        "peak_gb": f"{torch.cuda.max_memory_allocated() / 1e9:.3f}",
    }


def rows_of(
    scheme: str, cases: Sequence[Case], device: torch.device, shape: dict[str, Any], late: float
) -> Iterator[dict[str, Any]]:
    """A row for each case of a scheme; no case begins later than `late`."""
    torch._dynamo.reset()
    about = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}
    about |= {"torch": torch.__version__, "transformers": transformers.__version__}
    model = make(scheme, device, shape)
    options = {"mode": "reduce-overhead"} if device.type == "cuda" else {"backend": "aot_eager"}
    step = torch.compile(model, fullgraph=True, **options)
    stored = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    for case in cases:
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        row |= {"shape": f"{shape['num_hidden_layers']} x {shape['hidden_size']}", **case._asdict(), **about}
        row |= {"goal": "" if case.goal is None else case.goal, "weight_gb": f"{stored / 1e9:.3f}"}
        if time.monotonic() > late:
            yield row | {"remark": "not begun in time"}
            continue
        try:
            error = error_of(model, step, case.batch)
            row |= {"error": f"{error:.3e}", "allowed": ALLOWED, "left": len(TRIALS.failed)}
            if not error <= ALLOWED:
                row["remark"] = f"wrong: logits are off by {error:.3g} of their size"
            elif device.type == "cuda":
                row |= timed(model, step, case)
            else:
                row["remark"] = "verified, not timed"
        except Exception as failed:  # of any kind: the reason is the result
            row["remark"] = reason_of(failed)
        yield row


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with the time of bfloat16 at the same batch and context."""
    floats = {(row["batch"], row["context"]): row["ms"] for row in rows if row["scheme"] == FLOAT}
    found = []
    for row in rows:
        base = floats.get((row["batch"], row["context"]), "")
        ratio = f"{float(base) / float(row['ms']):.3f}" if base and row["ms"] else ""
        found.append({**row, "bf16_ms": base, "ratio": ratio})
    return found


def write(output: Path, rows: Sequence[dict[str, Any]]) -> None:
    """gpu_steps.csv, whole at every moment."""
    output.mkdir(parents=True, exist_ok=True)
    partial = output / ".gpu_steps.partial"
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(output / "gpu_steps.csv")


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 if nothing of ours was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="two small layers on a CPU, verified and not timed")
    parser.add_argument("--only", default="", help="regular expression: cases whose name it finds")
    parser.add_argument("--seconds", type=float, default=450.0, help="no case begins later than this")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of gpu_steps.csv")
    given = parser.parse_args(arguments)
    late = time.monotonic() + given.seconds
    if not given.tiny and not torch.cuda.is_available():
        print("nothing to measure: torch finds no GPU (--tiny verifies without one)", file=sys.stderr)
        return 1
    device = torch.device("cpu") if given.tiny else torch.device("cuda", torch.cuda.current_device())
    cases = [case for case in (TINY_CASES if given.tiny else CASES) if re.search(given.only, str(case))]
    floats = dict.fromkeys((case.batch, case.context) for case in cases)
    cases = [*(Case(FLOAT, *of) for of in floats), *cases]
    rows: list[dict[str, Any]] = []
    for scheme in dict.fromkeys(case.scheme for case in cases):
        mine = [case for case in cases if case.scheme == scheme]
        for row in rows_of(scheme, mine, device, TINY if given.tiny else SHAPE, late):
            rows = with_ratios([*rows, row])
            shown = ("scheme", "batch", "context", "ms", "ratio", "goal", "error", "left", "remark")
            print(*(f"{column} {rows[-1][column]}" for column in shown if rows[-1][column] != ""), flush=True)
            if not given.tiny:
                write(given.output, rows)
    wrong = [row for row in rows if row["remark"] not in ("", "verified, not timed", "not begun in time")]
    print(f"{len(rows)} rows, {len(wrong)} did not run or were wrong")
    return int(bool(wrong) or not rows)


if __name__ == "__main__":
    sys.exit(main())
