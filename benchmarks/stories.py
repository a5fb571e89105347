"""What bits cost on a real model and real text: nats per token of stories260K under each scheme.

    python benchmarks/stories.py MODEL DATA [--stories N] [--windows N]

MODEL is the folder of a causal LM (stories260K), DATA a folder with tinystories.jsonl and wikitext2.jsonl
(one {"text": ...} per line). Three questions, one table each:

1. nats per token under FP16 and each scheme, weight groups of 128 and 32;
2. whether token-by-token decoding gives the logits of one forward over the whole text;
3. the same for the quantized cache that transformers ships, beside ours.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import write_results
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import qllm_hf

SCHEMES = ("FP16", "W8", "W4", "W3", "W2", "KV8", "KV4", "KV3", "KV2", "W8A8", "W4A8", "W4A4", "W4KV8")
CONTEXT = 512


def texts(folder: Path, name: str) -> list[str]:
    with (folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def story_ids(tokenizer: Any, folder: Path, count: int) -> list[Tensor]:
    """Each story on its own, with the model's paragraph separator, cut at the context."""
    stories = [text.replace("\n\n", "\n") for text in texts(folder, "tinystories")[:count]]
    return [tokenizer(text, return_tensors="pt").input_ids[:, :CONTEXT] for text in stories]


def window_ids(tokenizer: Any, folder: Path, count: int) -> list[Tensor]:
    """The articles as one text, in windows that each start with the bos token."""
    ids = tokenizer("".join(texts(folder, "wikitext2")), add_special_tokens=False, return_tensors="pt").input_ids[0]
    bos = torch.tensor([tokenizer.bos_token_id])
    return [torch.cat([bos, window])[None] for window in ids.split(CONTEXT - 1)[:count]]


@torch.no_grad()
def nats_per_token(model: Any, sequences: list[Tensor]) -> float:
    """Mean negative log-likelihood of all tokens but the first of each sequence, in nats, without a cache."""
    total, count = 0.0, 0
    for ids in sequences:
        logits = model(ids, use_cache=False).logits[0, :-1].double()
        total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return total / count


@torch.no_grad()
def one_by_one(model: Any, ids: Tensor, cache: Any = None) -> Tensor:
    """Logits [T, V] of a sequence fed one token at a time through the cache."""
    rows = []
    for position in range(ids.shape[1]):
        output = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        rows.append(output.logits[0, -1])
    return torch.stack(rows)


@torch.no_grad()
def whole(model: Any, ids: Tensor, cache: Any = None) -> Tensor:
    """Logits [T, V] of a sequence in one forward."""
    logits: Tensor = model(ids, past_key_values=cache, use_cache=cache is not None).logits[0]
    return logits


def nats(logits: Tensor, ids: Tensor) -> float:
    return F.cross_entropy(logits[:-1].double(), ids[0, 1:]).item()


def load(path: str, scheme: str, group_size: int, dtype: torch.dtype = torch.float32) -> Any:
    config = None if scheme == "FP16" else qllm_hf.QllmConfig.from_scheme(scheme, w_group_size=group_size)
    return AutoModelForCausalLM.from_pretrained(path, quantization_config=config, dtype=dtype).eval()


def cost_table(path: str, stories: list[Tensor], windows: list[Tensor]) -> Iterator[dict[str, Any]]:
    print(f"\n{'scheme':8} {'group':>5} {'TinyStories':>12} {'WikiText-2':>11}   nats per token")
    for scheme in SCHEMES:
        for group_size in (128, 32):
            if "W" not in scheme and group_size == 32:
                continue  # the groups of K and V are the 8 elements of a head in any case
            model = load(path, scheme, group_size)
            row = {"scheme": scheme, "w_group_size": group_size if "W" in scheme else ""}
            row |= {"tinystories": nats_per_token(model, stories), "wikitext2": nats_per_token(model, windows)}
            print(f"{scheme:8} {row['w_group_size']:>5} {row['tinystories']:12.4f} {row['wikitext2']:11.4f}")
            yield row


def peer_caches(config: Any, bits: int) -> dict[str, Any]:
    """Caches to compare at the same bits: ours, and those of transformers whose backend is installed."""
    from transformers import QuantizedCache

    makers = {"qllm_hf": lambda: qllm_hf.QllmCache(config, f"KV{bits}")}
    # head_dim is 8, so groups of 8; the smallest float window that each accepts
    options = {"nbits": bits, "q_group_size": 8, "residual_length": 1}
    for backend, axis in (("quanto", 0), ("hqq", 1)):
        if backend == "quanto" and bits == 8:
            continue  # it offers 2 and 4 bits
        try:
            QuantizedCache(backend, config, axis_key=axis, axis_value=axis, **options)
        except ImportError as error:
            print(f"transformers QuantizedCache({backend}) left out: {error}")
        else:
            makers[f"transformers {backend}"] = lambda backend=backend, axis=axis: QuantizedCache(
                backend, config, axis_key=axis, axis_value=axis, **options
            )
    return makers


def cache_table(path: str, stories: list[Tensor]) -> Iterator[dict[str, Any]]:
    model = load(path, "FP16", 128)
    reference = sum(nats(whole(model, ids), ids) for ids in stories) / len(stories)
    print(
        f"\nKV caches on {len(stories)} stories, {sum(i.shape[1] for i in stories)} tokens; FP16 {reference:.4f} nats"
    )
    print(f"{'cache':22} {'bits':>4} {'one forward':>12} {'one by one':>11} {'max |dlogits|':>14} {'s':>6}")
    for bits in (8, 4, 2):
        for name, make in peer_caches(model.config, bits).items():
            forward = stepped = worst = 0.0
            start = time.perf_counter()
            for ids in stories:
                a, b = whole(model, ids, make()), one_by_one(model, ids, make())
                forward, stepped = forward + nats(a, ids), stepped + nats(b, ids)
                worst = max(worst, (a - b).abs().max().item())
            row = {
                "cache": name,
                "bits": bits,
                "one_forward": forward / len(stories),
                "one_by_one": stepped / len(stories),
            }
            row |= {"max_logit_difference": worst, "seconds": time.perf_counter() - start, "fp16": reference}
            print(
                f"{name:22} {bits:4} {row['one_forward']:12.4f} {row['one_by_one']:11.4f} {worst:14.2e} "
                f"{row['seconds']:6.1f}"
            )
            yield row


def decoding_table(path: str, stories: list[Tensor]) -> Iterator[dict[str, Any]]:
    """In float64 the two ways agree to 1e-13. In float32 they differ by 1e-6 before rounding, and where that moves a
    value over the edge between two codes, the tokens after it see another code."""
    print("\nOne token at a time against one forward: |difference| of logits, per token the largest")
    print(f"{'scheme':6} {'float64 max':>12} {'float32 max':>12} {'median':>9} {'tokens above 1e-3':>18}")
    for scheme in ("FP16", "KV8", "KV4", "KV3", "KV2", "W4", "W4KV8", "W4KV4"):
        row: dict[str, Any] = {"scheme": scheme}
        for dtype in (torch.float64, torch.float32):
            model = load(path, scheme, 128, dtype)
            worst = torch.cat([(whole(model, ids) - one_by_one(model, ids)).abs().amax(-1) for ids in stories])
            name = str(dtype).removeprefix("torch.")
            row |= {f"{name}_max": worst.max().item(), f"{name}_median": worst.median().item()}
            row[f"{name}_share_above_1e-3"] = (worst > 1e-3).double().mean().item()
        print(
            f"{scheme:6} {row['float64_max']:12.1e} {row['float32_max']:12.1e} {row['float32_median']:9.1e} "
            f"{row['float32_share_above_1e-3']:18.1%}"
        )
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--stories", type=int, default=150, help="stories to score")
    parser.add_argument("--windows", type=int, default=100, help="windows of 512 tokens of WikiText-2 to score")
    parser.add_argument("--skip-costs", action="store_true", help="leave out the first table")
    parser.add_argument("--decoded", type=int, default=8, help="stories that are also fed token by token")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    stories = story_ids(tokenizer, arguments.data, arguments.stories)
    windows = window_ids(tokenizer, arguments.data, arguments.windows)
    counts = [sum(ids.shape[1] - 1 for ids in sequences) for sequences in (stories, windows)]
    print(f"{counts[0]} tokens of TinyStories, {counts[1]} of WikiText-2")
    if not arguments.skip_costs:
        print(write_results("stories_schemes", cost_table(arguments.model, stories, windows)))
    print(write_results("stories_decoding", decoding_table(arguments.model, stories[: arguments.decoded])))
    print(write_results("stories_caches", cache_table(arguments.model, stories[: arguments.decoded])))


if __name__ == "__main__":
    main()
