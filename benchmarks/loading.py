"""Peak memory and time of loading a sharded bf16 checkpoint of 1.1B parameters as W4, and its size on disk.

    python benchmarks/loading.py [--keep FOLDER]

The checkpoint has the shape of TinyLlama-1.1B (hidden 2048, 22 layers, 32 heads on 4 kv heads, intermediate
5632, vocabulary 32,000), random weights, shards of at most 500 MB. Loading runs in a process of its own,
which samples its anonymous resident memory every 5 ms: pages of the checkpoint that the system maps
and may drop at any time are not counted, allocations are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from machine import write_results
from transformers import AutoModelForCausalLM, LlamaConfig

MB = 1e6
SHAPE = dict(
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    vocab_size=32000,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
)


def anonymous_mb() -> float:
    """Anonymous resident memory of this process, in MB (1e6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024 / MB
    raise RuntimeError("RssAnon is not reported by this system")


class Peak:
    """Samples anonymous memory in the background."""

    def __enter__(self) -> Peak:
        self.baseline = self.peak = anonymous_mb()
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, anonymous_mb())
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()


def make_checkpoint(folder: Path, shape: dict[str, int], max_shard_size: str) -> None:
    """A float checkpoint of random weights in bfloat16."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=max_shard_size)


def largest_tensor_mb(shape: dict[str, int]) -> float:
    """The largest tensor of such a checkpoint, in MB."""
    return 2 * shape["hidden_size"] * max(shape["vocab_size"], shape["intermediate_size"]) / MB


def measure_in_process(folder: Path, scheme: str, out: Path) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--measure", str(folder), scheme, str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(folder: str, scheme: str, out: str) -> dict[str, float]:
    """Load the checkpoint under a scheme, save it packed, and report MB, seconds and bits."""
    import qllm_hf

    config = qllm_hf.QllmConfig.from_scheme(scheme)
    tiny = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    qllm_hf.quantize_(AutoModelForCausalLM.from_config(LlamaConfig(**tiny)), "W4")  # import everything first
    with Peak() as memory:
        start = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
        seconds = time.perf_counter() - start
        loaded = anonymous_mb()
    model.save_pretrained(out)
    tensors = {id(p): p for p in model.parameters()}.values()
    entries = model.hf_quantizer.plan.quantized()
    elements = sum(entry.elements for entry in entries)
    packed = [p for n, p in model.named_parameters() if n.endswith(("_packed", "_scale", "_zero_point"))]
    packed_bytes = sum(p.numel() * p.element_size() for p in packed)
    float_bytes = sum(p.numel() * p.element_size() for p in tensors) - packed_bytes
    disk = sum(f.stat().st_size for f in Path(out).glob("*.safetensors"))
    theory = sum(e.elements * e.weight.bits_per_element(e.shape[-1]) for e in entries) / elements
    return {
        "baseline_mb": memory.baseline,
        "peak_over_baseline_mb": memory.peak - memory.baseline,
        "after_over_baseline_mb": loaded - memory.baseline,
        "packed_model_mb": (packed_bytes + float_bytes) / MB,
        "seconds": seconds,
        "bits_per_weight_disk": (disk - float_bytes) * 8 / elements,
        "bits_per_weight_theory": theory,
        "disk_mb": disk / MB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder for the checkpoint, to use it again")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "SCHEME", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary) / "float"
        if not (folder / "config.json").exists():
            make_checkpoint(folder, SHAPE, "500MB")
        largest = largest_tensor_mb(SHAPE)
        rows = []
        for scheme in ("W8", "W4", "W3", "W2"):
            row = {"scheme": scheme, **measure_in_process(folder, scheme, Path(temporary) / scheme)}
            allowed = row["packed_model_mb"] + 3 * largest + 300
            row |= {"largest_tensor_mb": largest, "allowed_peak_mb": allowed}
            rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
            print(
                f"{scheme}: peak {row['peak_over_baseline_mb']:.0f} MB over the baseline (allowed {allowed:.0f}: "
                f"packed {row['packed_model_mb']:.0f} + 3 x {largest:.0f} + 300), {row['seconds']:.1f} s, on disk "
                f"{row['bits_per_weight_disk']:.4f} bits/weight (theory {row['bits_per_weight_theory']:.4f})"
            )
    print(write_results("loading", rows))


if __name__ == "__main__":
    main()
