"""What a job of a sweep asks a cluster for, next to what its process really takes: python benchmarks/cluster.py

Each scheme is measured in a process of its own, as a worker does it, on tasks whose texts are read and written in the
largest batches. The peak is that of the whole process, in the computer's memory: it is run without GPUs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from machine import write_results
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from qllm_hf.builtin import reference_model
from qllm_hf.cluster.footprint import footprint
from qllm_hf.cluster.worker import Asked, Failed, Order, Scored, Subject, measure
from qllm_hf.loading import model_on_meta
from qllm_hf.sweep.schemes import parse_candidates

SCHEMES = ("FP16", "W8", "W4", "KV4", "W4KV4")
TASKS = ("mini_stories", "mini_second_turn", "mini_lines_1024")
SHAPES = {
    "reference": None,
    "llama-135m-shaped": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "heads": (9, 3)},
    "llama-1b1-shaped": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "heads": (32, 4)},
}
"""Models by name; those with shapes have random weights, and the tokenizer of the reference model."""


def make_model(name: str, folder: Path) -> str:
    """The folder of a model, or the name of one that the package carries."""
    shape = SHAPES[name]
    if shape is None:
        return name
    tokenizer = AutoTokenizer.from_pretrained(reference_model())
    heads, kv_heads = shape["heads"]
    config = LlamaConfig(
        vocab_size=32000,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        **{key: value for key, value in shape.items() if key != "heads"},
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def peak(where: str, label: str, limit: int) -> None:
    """Print the most bytes that this process had while it measured one scheme."""
    config = parse_candidates([label], baseline=False)[label]
    for step in measure(Order(Subject.of(where), Asked(limit=limit), label, config, TASKS)):
        if isinstance(step, Failed):
            raise SystemExit(step.why)
        if isinstance(step, Scored) and not step.record["items"]:
            raise SystemExit("nothing was measured")
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(SHAPES), help="with commas between")
    parser.add_argument("--limit", type=int, default=40, help="items of each task")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "SCHEME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(*options.peak, options.limit)
        return
    rows = []
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            where = make_model(name, Path(folder) / "model")
            shapes = model_on_meta(where)
            for label, config in parse_candidates(SCHEMES).items():
                need = footprint(shapes, config)
                words = [sys.executable, __file__, "--limit", str(options.limit), "--peak", where, label]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                took = int(done.stdout.splitlines()[-1])
                row = {"model": name, "scheme": label, "limit": options.limit, "weights": need.weights}
                row |= {"cache": need.cache, "work": need.work, "process": need.process}
                rows.append({**row, "asked_bytes": need.total, "peak_bytes": took, "part": round(took / need.total, 3)})
                print(f"{name} {label}: asked {need.total / 1e9:.2f} GB, took {took / 1e9:.2f} GB", flush=True)
    print(write_results("cluster", rows))


if __name__ == "__main__":
    main()
