"""How far the kernels and plain torch are from the same model in float64: the reference model on 4,096 tokens.

    python benchmarks/kernel_rounding.py

With quantized activations one number that lies between two codes moves a log-likelihood by more than all other rounding
together. Either code is right; which one it becomes depends on the order of the sums before it. So kernels and plain
torch differ more from each other there, and this says by how much each of them differs from what both approximate.
In bfloat16 all that lies between layers is rounded to 8 bits of mantissa in either.

Nats of the log-likelihood of each next token: the mean and the largest difference.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from machine import write_results
from torch import Tensor

from qllm_hf import QllmConfig, ops
from qllm_hf.loading import load_model, load_tokenizer
from qllm_hf.methods.calibration import CURRICULUM, read_calibration

DTYPES = ("float32", "bfloat16")
SCHEMES = ("W8", "W4", "W2", "W8A8", "W4A8", "W4A4")
PATHS = {"kernels": "cpu", "torch": "dequantize"}


@torch.no_grad()
def likelihoods(model: Any, tokens: Tensor) -> Tensor:
    """Log-likelihood of each token after the first: float64 [N, T - 1]."""
    logits = torch.cat([model(block[None], use_cache=False).logits.double() for block in tokens])
    return logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def measure(dtype: str, scheme: str, tokens: Tensor) -> dict[str, Any]:
    """The row of a scheme."""
    model = load_model("reference", QllmConfig.from_scheme(scheme), dtype=dtype).eval()
    found = {}
    for path, name in PATHS.items():
        with ops.prefer(name):
            found[path] = likelihoods(model, tokens)
    with ops.prefer(PATHS["torch"]):
        exact = likelihoods(model.double(), tokens)
    row: dict[str, Any] = {"dtype": dtype, "scheme": scheme, "tokens": exact.numel()}
    for name, (left, right) in {
        "kernels_float64": (found["kernels"], exact),
        "torch_float64": (found["torch"], exact),
        "kernels_torch": (found["kernels"], found["torch"]),
    }.items():
        difference = (left - right).abs()
        row |= {f"{name}_mean": f"{difference.mean():.3g}", f"{name}_largest": f"{difference.max():.3g}"}
    return row


def main() -> None:
    tokens = read_calibration(CURRICULUM, load_tokenizer("reference"), samples=8, seqlen=512).ids
    rows = []
    for dtype, scheme in itertools.product(DTYPES, SCHEMES):
        rows.append(measure(dtype, scheme, tokens))
        print(rows[-1], flush=True)
    print(write_results("kernel_rounding", rows))


if __name__ == "__main__":
    main()
