"""One model cut over 2 and 4 processes: how far its logits are from those of one process, and what each process holds.

    python benchmarks/parallel.py [--dry-run]

Random models of six families (hidden 256, intermediate 512, 4 layers, 8 heads on 4 kv heads) and the trained reference
model, each quantized while it is loaded (whose packed weights in a checkpoint are the same), on the CPU with gloo.
Differences are the largest of all logits of a text of 64 tokens. In float32 a sum in another order now and then rounds
an activation, a key or a value the other way, which later layers make much of; in float64 that does not happen, and
what is left is the rounding of sums.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import write_results
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from qllm_hf import QllmConfig
from qllm_hf.builtin import BUILTIN, REFERENCE
from qllm_hf.cache import cache_nbytes
from qllm_hf.reporting.tensors import parameter_bytes

SHAPE = dict(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    vocab_size=1024,
    pad_token_id=0,
)
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=512)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "qwen2": SHAPE,
    "qwen3_moe": {**SHAPE, **EXPERTS, "num_experts": 8},
    "mixtral": {**SHAPE, **EXPERTS, "num_local_experts": 8},
    "phi3": SHAPE,
    "gemma2": SHAPE,
}
SCHEMES: dict[str, dict[str, Any]] = {
    "W4": dict(w=4, w_group_size=64),
    "W4 per row": dict(w=4, w_group_size=-1),
    "W8 per matrix": dict(w=8, w_group_size=0),
    "W3": dict(w=3, w_group_size=64),
    "W4A8": dict(w=4, a=8, w_group_size=64),
    "W4KV8": dict(w=4, kv=8, w_group_size=64),
    "W4KV4": dict(w=4, kv=4, w_group_size=64),
    "W4A8KV4": dict(w=4, a=8, kv=4, w_group_size=64),
}
DTYPES = ("float32", "float64")
SIZES = (1, 2, 4)
TOKENS = 64


def work(folder: Path) -> None:
    """Every model under every scheme, in this process or in this process's part of a group."""
    from transformers.distributed import DistributedConfig

    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    ids = torch.arange(5, 5 + TOKENS)[None]
    for path in sorted((folder / "models").iterdir()):
        for scheme, config in SCHEMES.items():
            for dtype in DTYPES:
                if path.name == REFERENCE and size == 4:
                    continue  # it has two heads of keys
                options: dict[str, Any] = {"dtype": dtype, "quantization_config": QllmConfig(**config)}
                if size > 1:
                    options["distributed_config"] = DistributedConfig(tp_size=size)
                model: Any = AutoModelForCausalLM.from_pretrained(path, **options).eval()
                with torch.no_grad():
                    result = model(ids)
                name = f"{path.name}.{scheme}.{dtype}.{size}.{rank}"
                held = {
                    "cache_bytes": cache_nbytes(result.past_key_values),
                    "weight_bytes": parameter_bytes(model, here=True),
                    "packed_bytes": parameter_bytes(model, here=True)
                    - sum(_here(p) for n, p in model.named_parameters() if not n.endswith(PACKED)),
                }
                save_file({"logits": result.logits.contiguous()}, folder / f"{name}.safetensors")
                (folder / f"{name}.json").write_text(json.dumps(held))
    if size > 1:
        torch.distributed.destroy_process_group()


PACKED = ("_packed", "_scale", "_zero_point")


def _here(parameter: Any) -> int:
    return int((parameter.to_local() if hasattr(parameter, "to_local") else parameter).nbytes)


def make_models(folder: Path) -> None:
    """Random float checkpoints, whose logits are large enough to say something, and a link to the reference model."""
    for family, options in FAMILIES.items():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**options), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2 if parameter.ndim > 1 else 1)
        model.save_pretrained(folder / family)
    (folder / REFERENCE).symlink_to(BUILTIN[REFERENCE])


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A row for each model, scheme and number of processes."""
    rows = []
    for path in sorted((folder / "models").iterdir()):
        for scheme in SCHEMES:
            for size in SIZES[1:]:
                row: dict[str, Any] = {"family": path.name, "scheme": scheme, "processes": size}
                for dtype in DTYPES:
                    stem = f"{path.name}.{scheme}.{dtype}"
                    if not (folder / f"{stem}.{size}.0.json").exists():
                        break
                    alone = load_file(folder / f"{stem}.1.0.safetensors")["logits"]
                    parts = [load_file(folder / f"{stem}.{size}.{rank}.safetensors")["logits"] for rank in range(size)]
                    row[f"{dtype}_max_difference"] = max((part - alone).abs().max().item() for part in parts)
                    row["largest_logit"] = alone.abs().max().item()
                else:
                    whole, own = (
                        json.loads((folder / f"{path.name}.{scheme}.float32.{name}.json").read_text())
                        for name in ("1.0", f"{size}.0")
                    )
                    for key in whole:
                        row[key], row[f"{key}_each"] = whole[key], own[key]
                    rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_models(folder / "models")
        for size in SIZES:
            start = ["-m", "torch.distributed.run", "--nproc-per-node", str(size)] if size > 1 else []
            subprocess.run([sys.executable, *start, __file__, "--work", str(folder)], check=True)
        rows = rows_of(folder)
    for row in rows:
        print(row)
    if not arguments.dry_run:
        print(write_results("parallel", rows))


if __name__ == "__main__":
    main()
