"""Quantize a model that is already in memory."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from .config import QllmConfig
from .errors import ModelError
from .plan import make_plan
from .quantizer import QllmHfQuantizer, warn_of_low_coverage
from .scheme import Scheme
from .surgery import pack_modules_


def quantize_(model: PreTrainedModel, scheme: str | Scheme | QllmConfig, **options: Any) -> PreTrainedModel:
    """The same model, quantized in place: packed weights, quantized activations and KV cache.

    The result is what `from_pretrained` with a QllmConfig makes: it can be saved, reloaded and dequantized. Weights are
    packed one module after another, so the memory needed on top is that of one weight.

    Args:
        model: a transformers model with float weights.
        scheme: such as "W4KV8", or a QllmConfig.
        options: those of QllmConfig, if `scheme` is not one.

    Raises:
        SchemeError, ConfigError: the scheme or an option cannot be.
        ModelError: the model is quantized already, or cannot be quantized as asked.
    """
    if isinstance(scheme, QllmConfig):
        if options:
            raise ModelError(f"give options ({', '.join(options)}) to QllmConfig itself, not beside it.")
        config = scheme
    else:
        config = QllmConfig.from_scheme(scheme, **options)
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"quantize_ takes a transformers model, not a {type(model).__name__}.")
    current: Any = getattr(model, "hf_quantizer", None)
    if current is not None:
        method = current.quantization_config.quant_method
        raise ModelError(
            f"this model is already quantized by {method!r}. Load the float model, or call model.dequantize()."
        )
    plan = make_plan(model, config)
    warn_of_low_coverage(plan, config)
    pack_modules_(model, plan)
    quantizer = QllmHfQuantizer(config, pre_quantized=False)
    quantizer.plan = plan
    state: Any = model
    state.hf_quantizer = quantizer
    state.is_quantized = True
    state.quantization_method = config.quant_method
    quantizer.postprocess_model(model)
    return model
