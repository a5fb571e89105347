"""Quantize a model that is already in memory."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from .config import QllmConfig
from .errors import ModelError
from .methods.apply import pack_by_method_
from .parallel import check_whole
from .plan import Plan, make_plan
from .quantizer import QllmHfQuantizer, warn_of_low_coverage
from .scheme import Scheme


def quantize_(
    model: PreTrainedModel, scheme: str | Scheme | QllmConfig, *, progress: bool = False, **options: Any
) -> PreTrainedModel:
    """The same model, quantized in place: packed weights, quantized activations and KV cache.

    The result is what `from_pretrained` with a QllmConfig makes: it can be saved, reloaded and dequantized. Weights are
    packed one module after another, so the memory needed on top is that of one weight.

    Args:
        model: a transformers model with float weights.
        scheme: such as "W4KV8", or a QllmConfig.
        progress: show a bar while a method looks at calibration text.
        options: those of QllmConfig, if `scheme` is not one.

    Raises:
        SchemeError, ConfigError: the scheme or an option cannot be.
        CalibrationError: the method needs text, and there is none or none that helps.
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
    check_whole(model, "quantizing", "Give from_pretrained a QllmConfig: weights are then packed while they are cut.")
    warn_of_low_coverage(make_plan(model, config), config)
    adopt_(model, config, pack_by_method_(model, config, progress=progress))
    return model


def adopt_(model: PreTrainedModel, config: QllmConfig, plan: Plan) -> None:
    """Make a model whose weights were packed in place what `from_pretrained` would have made of it."""
    quantizer = QllmHfQuantizer(config, pre_quantized=False)
    quantizer.plan = plan
    state: Any = model
    state.hf_quantizer = quantizer
    state.is_quantized = True
    state.quantization_method = config.quant_method
    quantizer.postprocess_model(model)
