"""Does an imported checkpoint hold the same integers, and compute the same, as the library that wrote it?

    python benchmarks/importing.py PYTHON CHECKPOINT [CHECKPOINT ..] [--activations float]

PYTHON is the interpreter of an environment with gptqmodel, auto-round and compressed-tensors, each CHECKPOINT a folder
that one of them wrote. For each, `peers/reader.py` runs there: its own loader and kernels give logits, its own
functions unpack codes and zero points. Here the checkpoint is imported, loaded with from_pretrained, and compared:

- codes, zero points, scales: how many differ. The answer has to be 0, and is a check, not a tolerance.
- logits: the largest difference, and the largest logit. Both models are loaded in the dtype of the scales and compute
  in float32 on the CPU.
- bytes of the weights before and after, and seconds that the import took.

Writes results/importing.csv, in which rows of other checkpoints stay.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from machine import read_rows, with_machine, write_rows
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import qllm_hf  # noqa: F401  (teaches transformers the format)
from qllm_hf.checkpoint import SCALE, read_checkpoint
from qllm_hf.importing.convert import import_checkpoint
from qllm_hf.input_order import in_own_order
from qllm_hf.nn import PackedLinear
from qllm_hf.safetensors_stream import DTYPES

READER = Path(__file__).resolve().parent / "peers" / "reader.py"
SEQUENCES, LENGTH = 4, 48


@dataclass(frozen=True)
class Row:
    """What was found of one checkpoint; counts are of differing elements, and of all in brackets."""

    checkpoint: str
    library: str
    kernels: str
    scheme: str
    layers: int
    codes: int
    codes_differing: int
    zero_points_differing: int
    scales_differing: int
    dtype: str
    logits_differing_by: float
    largest_logit: float
    bytes_before: int
    bytes_after: int
    seconds: float


def compare(python: str, folder: Path, activations: Any) -> Row:
    """The row of one checkpoint."""
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "imported"
        begin = time.perf_counter()
        imported = import_checkpoint(folder, out, activations=activations)
        seconds = time.perf_counter() - begin
        stored = read_checkpoint(out)
        scales = {tensor.dtype for name, tensor in stored.tensors.items() if name.endswith(SCALE)}
        (dtype,) = (DTYPES[name] for name in scales)
        vocabulary = stored.config["vocab_size"]
        ids = torch.randint(3, vocabulary, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))
        tokens, theirs = Path(work) / "tokens.safetensors", Path(work) / "theirs.safetensors"
        save_file({"ids": ids}, tokens)
        name = str(dtype).removeprefix("torch.")
        command = [python, str(READER), str(folder), str(tokens), str(theirs), "--dtype", name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=dtype).eval()
        exact = AutoModelForCausalLM.from_pretrained(out).eval()
        with safe_open(theirs, framework="pt") as file:
            names = set(file.keys())
            layers = sorted(name.removeprefix("codes/") for name in names if name.startswith("codes/"))
            found = [_differing(exact.get_submodule(layer), file, layer) for layer in layers]
            expected, said = file.get_tensor("logits"), file.metadata()
        ours = _logits(nn.Module.float(model), ids)  # transformers forbids .float()
        return Row(
            checkpoint=folder.name,
            library=said["library"],
            kernels=said["kernels"],
            scheme=str(imported.config.scheme),
            layers=len(layers),
            codes=sum(count for count, *_ in found),
            codes_differing=sum(codes for _, codes, _, _ in found),
            zero_points_differing=sum(zero for _, _, zero, _ in found),
            scales_differing=sum(scale for *_, scale in found),
            dtype=name,
            logits_differing_by=round(float((ours - expected).abs().max()), 6),
            largest_logit=round(float(expected.abs().max()), 3),
            bytes_before=read_checkpoint(folder).file_bytes,
            bytes_after=stored.file_bytes,
            seconds=round(seconds, 2),
        )


def _differing(module: nn.Module, file: Any, layer: str) -> tuple[int, int, int, int]:
    """(codes, of these differing, zero points differing, scales differing) of one layer."""
    assert isinstance(module, PackedLinear)
    packed = module.packed("weight")
    codes, scale = file.get_tensor(f"codes/{layer}"), file.get_tensor(f"scale/{layer}")
    middle = torch.full_like(packed.scale, 2 ** (packed.spec.bits - 1), dtype=torch.uint8)
    ours = middle if packed.zero_point is None else packed.zero_point
    zero = file.get_tensor(f"zero/{layer}") if f"zero/{layer}" in set(file.keys()) else middle
    ours_codes = packed.codes()
    if module.input_order is not None:  # theirs are not sorted by group
        ours_codes = in_own_order(ours_codes, module.input_order)
    scales = _unequal(packed.scale.reshape(-1), scale.to(packed.scale.dtype).reshape(-1))
    return codes.numel(), _unequal(ours_codes, codes), _unequal(ours, zero), scales


def _unequal(a: Tensor, b: Tensor) -> int:
    return int((a != b).sum()) if a.shape == b.shape else max(a.numel(), b.numel())


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Tensor:
    return torch.cat([model(row[None], use_cache=False).logits.float() for row in ids])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--activations", default="float", choices=["same", "ours", "float"])
    given = parser.parse_args()
    for folder in given.checkpoints:
        (row,) = with_machine([asdict(compare(given.python, folder, given.activations))])
        print(row, flush=True)
        rows = read_rows("importing", ["checkpoint"]) | {(folder.name,): row}
        write_rows("importing", list(rows.values()))


if __name__ == "__main__":
    main()
