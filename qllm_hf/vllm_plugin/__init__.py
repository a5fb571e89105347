"""Makes vLLM know quant_method "qllm": packed checkpoints are served as they are, without an export.

vLLM calls `register` in each of its processes (entry point group "vllm.general_plugins"). Only weights and per-token
activations are ours there; the cache is vLLM's own, chosen with its `--kv-cache-dtype`.
"""


def register() -> None:
    """Register the quantization config with vLLM, once."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    if "qllm" not in QUANTIZATION_METHODS:
        from . import quantization  # noqa: F401  # registers itself when it is imported
