"""How much faster 4-bit weights were on an A100, as the survey of the same group prints it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from .read import rows_of


@dataclass(frozen=True)
class Speedup:
    """One cell of the survey's table.

    Attributes:
        framework: "TensorRT-LLM" or "LMDeploy".
        model: "LLaMA-2-7B" or "LLaMA-2-13B".
        params_b: in billions.
        scheme: "W4-awq": 4-bit weights by AWQ, all else in 16 bits.
        gpu: "A100".
        batch: sequences.
        input_tokens: of each.
        stage: prefill, decode, or end_to_end.
        speedup: time with FP16 divided by this time; None where the memory was too small.
    """

    framework: str
    model: str
    params_b: float
    scheme: str
    gpu: str
    batch: int
    input_tokens: int
    stage: str
    speedup: float | None


@cache
def speedups() -> tuple[Speedup, ...]:
    """All 300 cells; six have no value, since the float model did not fit.

    Some are odd as printed: 7B has the same numbers at batch 8 and 16, TensorRT-LLM shares decode values between batch
    1 and 2 of 13B, and LMDeploy has an end-to-end value above its decode value at 13B and batch 8.

    Source: table 4 of arXiv 2404.14294, read from its text.
    """
    return tuple(
        Speedup(
            framework=row["framework"],
            model=row["model"],
            params_b=float(row["params_b"]),
            scheme="W4-awq",
            gpu=row["gpu"],
            batch=int(row["batch"]),
            input_tokens=int(row["input_len"]),
            stage=row["stage"],
            speedup=float(row["speedup_vs_fp16"]) if row["status"] == "ok" else None,
        )
        for row in rows_of("speedups")
    )
