"""The page of `qllm-hf demo` as a Space. What it offers is said by variables of the Space, so this file stays as it is.

QLLM_DEMO_MODELS    ids on the Hub to offer beside the reference model, with commas between
QLLM_DEMO_RESULTS   folders of sweeps in this repository, with commas between
QLLM_DEMO_MEMORY    of weights at once, such as 8GB
"""

import contextlib
import os

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  # ZeroGPU wants to be imported before torch

from qllm_hf.advice.quantities import parse_memory
from qllm_hf.demo.app import launch
from qllm_hf.demo.host import make_host
from qllm_hf.demo.limits import Limits


def listed(variable: str) -> list[str]:
    """What a variable names, with commas between."""
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


if __name__ == "__main__":
    limits = Limits(memory_bytes=parse_memory(os.environ.get("QLLM_DEMO_MEMORY", "4GB")))
    launch(make_host(listed("QLLM_DEMO_MODELS"), listed("QLLM_DEMO_RESULTS"), limits))
