"""Which program reads which exported checkpoint, as a table: what was run, and what was only read in its source.

A row is a property of a checkpoint, and most have several: a checkpoint is read as well as its worst row says. What no
reader takes is refused when it is exported, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Outcome = Literal["same", "own grid", "weights", "no"]
"""`same`: weights and inputs mean what they mean here. `own grid`: the weights do, inputs are rounded to the reader's
grid. `weights`: the weights do, inputs are not quantized. `no`: an error, or other numbers."""
Known = Literal["ran", "read", "not run"]
"""How that is known: it was run; the reader's source says so; nobody has looked."""

TRANSFORMERS, DEQUANTIZE, VLLM, VLLM_CPU = "transformers", "transformers-dequantize", "vllm", "vllm-cpu"
READERS: Mapping[str, str] = {
    TRANSFORMERS: "transformers 5.23 with compressed-tensors 0.20: from_pretrained(DIR)",
    DEQUANTIZE: "the same with quantization_config=CompressedTensorsConfig(dequantize=True)",
    VLLM: "vLLM 0.32 on NVIDIA GPUs, model in bfloat16 or float16",
    VLLM_CPU: "vLLM 0.32 on x86 CPUs (here one without AMX), model in bfloat16 or float16",
}
WANTED: Mapping[str, tuple[str, ...]] = {
    TRANSFORMERS: (TRANSFORMERS, DEQUANTIZE),
    DEQUANTIZE: (DEQUANTIZE,),
    VLLM: (VLLM,),
    VLLM_CPU: (VLLM_CPU,),
}
"""What `--for NAME` asks for: one of these readers."""


OWN_WEIGHTS = ("falcon", "mamba", "mamba2", "rwkv")
"""Values of model_type whose code in transformers asks for `layer.weight` before the layer has unpacked it."""
OWN_WEIGHTS_ROW = ", ".join(OWN_WEIGHTS)


class Cell(NamedTuple):
    """What a reader makes of a property: how well, how that is known, and what to know of it."""

    outcome: Outcome
    known: Known
    note: str = ""


_ZERO_POINTS = "compressed-tensors makes room for unpacked zero points: RuntimeError, sizes do not match"
_MARLIN = "Marlin and Machete take groups of 32, 64, 128 or per channel"
_HUMMING = "only with the package humming"
_CPU_4 = "Failed to find a kernel: its CPU kernels take 4 bits"
_NO_AMX = "No WNA16 MoE backend supports the deployment configuration: its kernels of experts need AMX"
_NO_SCHEME = "No compressed-tensors compatible scheme was found"
_ONE_SCHEME = "takes the first group's bits for all layers, and says nothing: other numbers, or an error of conversion"
_FUSED_NO = "it merges these layers into one, and takes the scheme of the first for all"

TABLE: Mapping[str, Mapping[str, Cell]] = {
    "W4 symmetric": {
        TRANSFORMERS: Cell("same", "ran"),
        DEQUANTIZE: Cell("same", "ran"),
        VLLM: Cell("same", "read", _MARLIN),
        VLLM_CPU: Cell("same", "ran", "not in float32"),
    },
    "W4 asymmetric": {
        TRANSFORMERS: Cell("no", "ran", _ZERO_POINTS),
        DEQUANTIZE: Cell("same", "ran"),
        VLLM: Cell("same", "read", _MARLIN),
        VLLM_CPU: Cell("same", "ran", "not in float32"),
    },
    "W8 symmetric": {
        TRANSFORMERS: Cell("same", "ran"),
        DEQUANTIZE: Cell("same", "ran"),
        VLLM: Cell("same", "read", _MARLIN),
        VLLM_CPU: Cell("no", "ran", _CPU_4),
    },
    "W8 asymmetric": {
        TRANSFORMERS: Cell("no", "ran", _ZERO_POINTS),
        DEQUANTIZE: Cell("same", "ran"),
        VLLM: Cell("same", "read", _HUMMING),
        VLLM_CPU: Cell("no", "ran", _CPU_4),
    },
    "W2 W3 W5 W6 W7 symmetric": {
        TRANSFORMERS: Cell("same", "ran"),
        DEQUANTIZE: Cell("same", "ran"),
        VLLM: Cell("same", "read", _HUMMING),
        VLLM_CPU: Cell("no", "ran", _CPU_4),
    },
    "W2 W3 W5 W6 W7 asymmetric": {
        TRANSFORMERS: Cell("no", "ran", _ZERO_POINTS),
        DEQUANTIZE: Cell("same", "ran"),
        VLLM: Cell("same", "read", _HUMMING),
        VLLM_CPU: Cell("no", "ran", _CPU_4),
    },
    "W8A8 symmetric weights per channel": {
        TRANSFORMERS: Cell(
            "own grid", "ran", "asymmetric inputs: the same grid; symmetric ones: max/127.5, not max/127"
        ),
        DEQUANTIZE: Cell("weights", "ran"),
        VLLM: Cell("same", "read"),
        VLLM_CPU: Cell("same", "ran"),
    },
    "symmetric weights with A8 symmetric": {
        TRANSFORMERS: Cell("own grid", "ran", "inputs: max/127.5, not max/127"),
        DEQUANTIZE: Cell("weights", "ran"),
        VLLM: Cell("same", "read", _HUMMING),
        VLLM_CPU: Cell("weights", "ran"),
    },
    "asymmetric weights with A8 symmetric": {
        TRANSFORMERS: Cell("no", "ran", _ZERO_POINTS),
        DEQUANTIZE: Cell("weights", "ran"),
        VLLM: Cell("same", "read", _HUMMING),
        VLLM_CPU: Cell("weights", "ran"),
    },
    "symmetric weights with A8 asymmetric": {
        TRANSFORMERS: Cell("own grid", "ran", "the same grid up to ties"),
        DEQUANTIZE: Cell("weights", "ran"),
        VLLM: Cell("no", "read", _NO_SCHEME),
        VLLM_CPU: Cell("no", "ran", _NO_SCHEME),
    },
    "asymmetric weights with A8 asymmetric": {
        TRANSFORMERS: Cell("no", "ran", _ZERO_POINTS),
        DEQUANTIZE: Cell("weights", "ran"),
        VLLM: Cell("no", "read", _NO_SCHEME),
        VLLM_CPU: Cell("no", "ran", _NO_SCHEME),
    },
    "symmetric weights with A4 symmetric": {
        TRANSFORMERS: Cell("own grid", "ran", "inputs: max/7.5, not max/7"),
        DEQUANTIZE: Cell("weights", "ran"),
        VLLM: Cell("same", "read", _HUMMING),
        VLLM_CPU: Cell("weights", "ran"),
    },
    "asymmetric weights with A4 symmetric": {
        TRANSFORMERS: Cell("no", "ran", _ZERO_POINTS),
        DEQUANTIZE: Cell("weights", "ran"),
        VLLM: Cell("same", "read", _HUMMING),
        VLLM_CPU: Cell("weights", "ran"),
    },
    "symmetric weights with other inputs": {
        TRANSFORMERS: Cell("own grid", "ran"),
        DEQUANTIZE: Cell("weights", "ran"),
        VLLM: Cell("no", "read", _NO_SCHEME),
        VLLM_CPU: Cell("no", "ran", _NO_SCHEME),
    },
    "asymmetric weights with other inputs": {
        TRANSFORMERS: Cell("no", "ran", _ZERO_POINTS),
        DEQUANTIZE: Cell("weights", "ran"),
        VLLM: Cell("no", "read", _NO_SCHEME),
        VLLM_CPU: Cell("no", "ran", _NO_SCHEME),
    },
    "experts, symmetric weights": {
        TRANSFORMERS: Cell("same", "ran"),
        DEQUANTIZE: Cell("same", "ran"),
        VLLM: Cell("same", "read", _MARLIN),
        VLLM_CPU: Cell("no", "ran", _NO_AMX),
    },
    "experts, asymmetric weights": {
        TRANSFORMERS: Cell("no", "ran", "its conversion of experts knows no zero points"),
        DEQUANTIZE: Cell("no", "ran", "its conversion of experts knows no zero points"),
        VLLM: Cell("same", "read", _HUMMING),
        VLLM_CPU: Cell("no", "ran", _NO_AMX),
    },
    "experts with quantized inputs": {
        TRANSFORMERS: Cell("no", "ran", "its conversion of experts knows packed weights only"),
        DEQUANTIZE: Cell("no", "ran", "its conversion of experts knows packed weights only"),
        VLLM: Cell("same", "read"),
        VLLM_CPU: Cell("no", "ran", _NO_AMX),
    },
    "Conv1D": {
        TRANSFORMERS: Cell("no", "ran", "compressed-tensors does not see Conv1D: random weights, with a warning only"),
        DEQUANTIZE: Cell("no", "ran", "Conv1D weights are read untransposed: RuntimeError, sizes do not match"),
        VLLM: Cell("same", "read", "GPT-2"),
        VLLM_CPU: Cell("same", "ran", "GPT-2"),
    },
    OWN_WEIGHTS_ROW: {
        TRANSFORMERS: Cell("no", "ran", "its code reads weights that are not there yet: AttributeError"),
        DEQUANTIZE: Cell("same", "ran"),
        VLLM: Cell("same", "not run"),
        VLLM_CPU: Cell("same", "not run"),
    },
    "layers of different schemes": {
        TRANSFORMERS: Cell("same", "ran"),
        DEQUANTIZE: Cell("no", "ran", _ONE_SCHEME),
        VLLM: Cell("same", "read"),
        VLLM_CPU: Cell("same", "ran", "all of 4 bits"),
    },
    "different schemes within q, k, v or gate, up": {
        TRANSFORMERS: Cell("same", "ran"),
        DEQUANTIZE: Cell("no", "ran", _ONE_SCHEME),
        VLLM: Cell("no", "read", _FUSED_NO),
        VLLM_CPU: Cell("no", "ran", _FUSED_NO),
    },
}
