"""How fast packed models run on this machine: `qllm-hf bench` on models of a 135M and a 1.1B shape, random weights.

python benchmarks/speed.py WORK

WORK keeps the models and what was measured: the same command goes on where it stopped. Let nothing else run meanwhile.
Speed does not depend on the values of weights, so random ones do; scores are measured elsewhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from machine import write_results
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "llama-135m-shaped": dict(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "llama-1b1-shaped": dict(
        hidden_size=2048,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        intermediate_size=5632,
        vocab_size=32000,
        tie_word_embeddings=False,
    ),
}
GRIDS = {
    "llama-135m-shaped": "--schemes FP16,W8,W8A8,KV8,KV4,W4,W4A8,W4KV4 --batch 1,4 --input 128 --output 16 --repeats 3",
    "llama-1b1-shaped": "--schemes FP16,W8,W8A8,KV8,KV4,W4,W4A8,W4KV4 --batch 1 --input 128 --output 8 --repeats 2",
}


def make_model(folder: Path, shape: dict[str, int]) -> None:
    """A model of a shape, in bfloat16, if it is not there yet."""
    if (folder / "config.json").exists():
        return
    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=4096, **shape)
    LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work.resolve()
    rows = []
    for name, shape in SHAPES.items():
        make_model(work / name, shape)
        command = [sys.executable, "-m", "qllm_hf", "bench", name, *GRIDS[name].split()]
        done = subprocess.run(
            [*command, "-o", f"bench-{name}", "--json"], cwd=work, stdout=subprocess.PIPE, text=True, check=True
        )
        said = json.loads(done.stdout)
        for row in said["rows"]:
            seconds, ratios = row["seconds"], row["ratio_to_fp16"]
            rows.append(
                {
                    "model": name,
                    "params": said["params"],
                    "dtype": said["dtype"],
                    **{key: row[key] for key in ("scheme", "batch", "input", "output", "status")},
                    "weight_bytes": row["weight_bytes"],
                    "kv_bytes": row["kv_bytes"],
                    "peak_bytes": row["peak_bytes"],
                    **{f"{stage}_s": round(spread["median"], 5) for stage, spread in seconds.items()},
                    **{
                        f"{stage}_ratio": round(ratios[stage]["median"], 4) if ratios else ""
                        for stage in ("prefill", "decode", "end_to_end")
                    },
                    "repeats": said["repeats"],
                }
            )
    write_results("speed", rows)


if __name__ == "__main__":
    main()
