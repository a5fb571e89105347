"""Does paper_exact=True give the bits of the study's code? Counts the groups that differ; the answer has to be 0.

    python benchmarks/exactness.py [--groups 2000000] [--model ../shared/models/stories260K] [--text FILE.jsonl]

Compares `fake_quantize` and the packed way, `quantize` then `dequantize`, with tests/paper_reference.py on random
groups, on adversarial ones and, given a model, on its weights and on the activations, keys and values of a forward
pass. Prints a table and writes benchmarks/results/exactness.csv.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import write_results
from torch import Tensor

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "tests"))

from paper_reference import published  # noqa: E402

from qllm_hf.scheme import PER_ROW, Spec  # noqa: E402
from qllm_hf.uniform import dequantize, fake_quantize, quantize  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = {"W": (8, 4, 3, 2), "KV": (8, 4, 3, 2), "A": (8, 4)}
# Elements per group: weights by group size, keys and values by head dim, activations by row.
SIZES = {"W": (128, 32), "KV": (128, 64), "A": (256,)}
Real = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Row:
    """The outcome for one kind of tensor, spec and dtype: groups compared and groups with a different bit."""

    tensor: str
    bits: int
    dtype: str
    symmetric: bool
    group_size: int
    source: str
    groups: int
    mismatches: int


def compare_all(groups: int, real: Real) -> Iterator[Row]:
    """One Row per kind of tensor, bits, dtype, symmetry, group size and source, at least `groups` groups together."""
    cases = [
        (tensor, bits, dtype, symmetric)
        for tensor in BITS
        for bits in BITS[tensor]
        for dtype in DTYPES
        for symmetric in (False, True)
    ]
    each = -(-groups // (2 * sum(len(SIZES[tensor]) for tensor, *_ in cases)))
    for tensor, bits, dtype, symmetric in cases:
        samples = [("random", random_groups(each, size), size) for size in SIZES[tensor]]
        samples += [("adversarial", adversarial_groups(each, size, bits, dtype), size) for size in SIZES[tensor]]
        samples += [("real", x, x.shape[-1]) for x in real.get(tensor, ())]
        for source, x, size in samples:
            # Four groups to a row of weights, so that the cut into groups is compared as well.
            x = x.to(dtype)
            x = x[: len(x) // 4 * 4].reshape(-1, 4 * size) if tensor == "W" else x
            spec = Spec(bits, PER_ROW if tensor == "A" else size, symmetric, paper_exact=True)
            name = str(dtype).removeprefix("torch.")
            yield Row(tensor, bits, name, symmetric, size, source, x.numel() // size, mismatches(x, spec, size))


def mismatches(x: Tensor, spec: Spec, size: int) -> int:
    """Groups of `size` elements in which a bit differs from the published result, the sign of zero included."""
    wanted = published(x, spec.bits, symmetric=spec.symmetric, group_size=spec.group_size)
    results = (fake_quantize(x, spec), dequantize(*quantize(x, spec), spec))
    differs = torch.stack([same_bits(result, wanted).logical_not() for result in results]).any(0)
    return int(differs.reshape(-1, size).any(-1).sum())


def same_bits(left: Tensor, right: Tensor) -> Tensor:
    """Element by element, whether two tensors of one dtype hold the same bits."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.dtype.itemsize]
    return left.contiguous().view(integer) == right.contiguous().view(integer)


def random_groups(count: int, size: int) -> Tensor:
    """Normal groups [count, size], each with a scale of its own from 1e-3 to 10 and some of them off centre."""
    spread = 10 ** torch.empty(count, 1).uniform_(-3, 1)
    return (torch.randn(count, size) + torch.randn(count, 1) * (torch.rand(count, 1) < 0.3)) * spread


def adversarial_groups(count: int, size: int, bits: int, dtype: torch.dtype) -> Tensor:
    """At least `count` groups [.., size] of the kinds that break quantizers, the same number of each."""
    each = -(-count // 9)
    limit = torch.finfo(dtype)
    uniform, sign = torch.rand(each, size, dtype=torch.float64), torch.randn(each, 1).sign().double()
    outlier = torch.randn(each, size, dtype=torch.float64) * 0.01
    outlier[torch.arange(each), torch.randint(size, (each,))] *= 1e4
    zeros = torch.zeros(each, size, dtype=torch.float64)
    ties = torch.randint(0, 2**bits * 2 - 1, (each, size)) / 2.0 - torch.randint(0, 2**bits, (each, 1))
    ends = ties.floor().amin(-1) - torch.randint(2, (each,)) / 2  # the zero point is a tie as well, or is not
    ties[:, 0], ties[:, 1] = ends, ends + 2**bits - 1
    kinds = {
        "one sided": sign * (5 + uniform),
        "constant": sign * uniform[:, :1].expand(-1, size) * 10,
        "denormal": (uniform - 0.5) * limit.smallest_normal,
        "huge": (uniform - 0.5) * limit.max * 0.98,  # the range itself does not overflow
        "one outlier": outlier,
        "zero": zeros,
        "zero of either sign": torch.where(uniform < 0.5, -zeros, zeros),
        "mixed scales": (uniform - 0.5) * 10 ** torch.empty(each, size).uniform_(-7, 4),
        "ties": ties * 2.0 ** torch.randint(-8, 4, (each, 1)),
    }
    return torch.cat(list(kinds.values())).to(dtype)


def real_tensors(model_path: Path, texts: list[str]) -> Real:
    """The weights of a model as groups of 128, inputs of its linear layers, and its keys and values for `texts`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    inputs: list[Tensor] = []

    def record(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if not inputs or inputs[-1] is not arguments[0]:  # q, k and v share theirs
            inputs.append(arguments[0])

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(record)
    keys_and_values = []
    with torch.no_grad():
        for text in texts:
            cache = DynamicCache()
            tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=256).input_ids
            model(tokens, past_key_values=cache)
            keys_and_values += [x.flatten(0, -2) for layer in cache.layers for x in (layer.keys, layer.values)]
    weights = [p.data.flatten() for p in model.parameters() if p.dim() == 2]
    activations = defaultdict(list)
    for x in inputs:
        activations[x.shape[-1]].append(x.flatten(0, -2))
    return {
        "W": [torch.cat([w[: w.numel() // 128 * 128] for w in weights]).reshape(-1, size) for size in SIZES["W"]],
        "KV": [torch.cat(keys_and_values)],
        "A": [torch.cat(rows) for rows in activations.values()],
    }


def table(rows: list[Row]) -> str:
    """Groups and mismatches by tensor, bits, dtype and symmetry, as aligned text."""
    totals: dict[tuple[object, ...], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        key = (row.tensor, row.bits, row.dtype, "symmetric" if row.symmetric else "asymmetric")
        totals[key] = [totals[key][0] + row.groups, totals[key][1] + row.mismatches]
    totals["total", "", "", ""] = [sum(counts) for counts in zip(*totals.values(), strict=True)]
    lines = [f"{'tensor':<8}{'bits':<6}{'dtype':<10}{'mode':<12}{'groups':>12}{'mismatches':>12}"]
    for (tensor, bits, dtype, mode), (groups, wrong) in totals.items():
        lines.append(f"{tensor:<8}{bits:<6}{dtype:<10}{mode:<12}{groups:>12,}{wrong:>12,}")
    return "\n".join(lines)


def main() -> None:
    shared = REPO.parent / "shared"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=2_000_000, help="groups made up, beside the real ones")
    parser.add_argument("--model", type=Path, default=shared / "models" / "stories260K")
    parser.add_argument("--text", type=Path, default=shared / "data" / "basic_nlp" / "tinystories.jsonl")
    options = parser.parse_args()
    torch.manual_seed(0)
    real: Real = {}
    if options.model.is_dir() and options.text.is_file():
        with options.text.open(encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
        real = real_tensors(options.model, texts[:20])
    else:
        print(f"no {options.model} or no {options.text}: made-up groups only", file=sys.stderr)
    rows = list(compare_all(options.groups, real))
    print(table(rows))
    print(write_results("exactness", map(asdict, rows)))
    sys.exit(any(row.mismatches for row in rows))


if __name__ == "__main__":
    main()
